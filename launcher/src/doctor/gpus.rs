//! GPUs, as `nvidia-smi` tells of them: are they there, does the driver answer, who uses them, is NCCL at hand?

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::Finding;

const ABOUT: &str = "GPUs";
const GPU_FIELDS: &str = "--query-gpu=index,uuid,name,memory.used,memory.total,driver_version";
const PROCESS_FIELDS: &str = "--query-compute-apps=gpu_uuid,pid,process_name,used_memory";
const FORMAT: &str = "--format=csv,noheader,nounits";
/// MiB that a GPU which nobody uses may have in use: the driver's own.
const OWN_MIB: f64 = 1024.0;
/// Where libraries are besides `LD_LIBRARY_PATH`.
const LIBRARIES: [&str; 6] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/local/cuda/lib64",
];

/// A GPU.
#[derive(Debug, Clone, PartialEq)]
struct Gpu {
    index: String,
    uuid: String,
    name: String,
    used_mib: f64,
    total_mib: f64,
    driver: String,
}

/// A process that computes on one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    uuid: String,
    pid: String,
    name: String,
    used_mib: String,
}

/// Looks at those of this machine. `wanted`: how many the recipe's jobs ask for on each node.
pub fn look(wanted: Option<usize>) -> Vec<Finding> {
    let wanted = wanted.filter(|n| *n > 0);
    match asked(GPU_FIELDS) {
        Err(Silence::NotThere) if library("libcuda.so.1").is_some() => {
            let remedy = "install nvidia-smi beside the driver, so that bam can see who uses the GPUs";
            vec![Finding::warning(ABOUT, "the CUDA driver is here (libcuda.so.1), nvidia-smi is not", remedy)]
        }
        Err(Silence::NotThere) => vec![Finding::ok(ABOUT, "no NVIDIA driver here (no nvidia-smi, no libcuda.so.1)")],
        Err(Silence::Failed(words)) => {
            let remedy =
                "have the driver loaded, or restarted after an update (dmesg says more); until then there are no GPUs";
            vec![Finding::problem(ABOUT, format!("nvidia-smi does not answer: {words}"), remedy)]
        }
        Ok(text) => {
            let processes = asked(PROCESS_FIELDS).map(|text| processes(&text)).unwrap_or_default();
            let mut findings = judge(&gpus(&text), &processes, wanted);
            findings.push(nccl(library("libnccl.so.2")));
            findings
        }
    }
}

/// Why there is no answer.
enum Silence {
    NotThere,
    Failed(String),
}

fn asked(fields: &str) -> Result<String, Silence> {
    let answer = Command::new("nvidia-smi").args([fields, FORMAT]).stdin(Stdio::null()).output();
    match answer {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Silence::NotThere),
        Err(error) => Err(Silence::Failed(error.to_string())),
        Ok(answer) if answer.status.success() => Ok(String::from_utf8_lossy(&answer.stdout).into_owned()),
        // It complains on stdout.
        Ok(answer) => {
            let words = [answer.stdout, answer.stderr].concat();
            Err(Silence::Failed(String::from_utf8_lossy(&words).split_whitespace().collect::<Vec<_>>().join(" ")))
        }
    }
}

/// The cells of lines with so many of them.
fn rows<const N: usize>(text: &str) -> impl Iterator<Item = [String; N]> {
    text.lines().filter_map(|line| {
        let cells: Vec<String> = line.split(',').map(|cell| cell.trim().to_owned()).collect();
        cells.try_into().ok()
    })
}

fn gpus(text: &str) -> Vec<Gpu> {
    let gpu = |[index, uuid, name, used, total, driver]: [String; 6]| {
        // `[N/A]` on some machines whose memory is the host's.
        let mib = |text: &str| text.parse().unwrap_or(0.0);
        Gpu { index, uuid, name, used_mib: mib(&used), total_mib: mib(&total), driver }
    };
    rows(text).map(gpu).collect()
}

fn processes(text: &str) -> Vec<Process> {
    rows(text).map(|[uuid, pid, name, used_mib]| Process { uuid, pid, name, used_mib }).collect()
}

fn judge(gpus: &[Gpu], processes: &[Process], wanted: Option<usize>) -> Vec<Finding> {
    let Some(first) = gpus.first() else {
        return vec![Finding::warning(
            ABOUT,
            "nvidia-smi is here and lists no GPU",
            "ask for some in the job (--gpus-per-node)",
        )];
    };
    let mut findings = vec![Finding::ok(ABOUT, format!("driver {}", first.driver))];
    if let Some(wanted) = wanted.filter(|wanted| *wanted > gpus.len()) {
        let said = format!("slurm.gpus_per_node is {wanted}, this machine has {}", gpus.len());
        findings.push(Finding::warning(ABOUT, said, "ask for as many as a node of the partition has"));
    }
    findings.extend(gpus.iter().map(|gpu| one(gpu, processes)));
    findings
}

fn one(gpu: &Gpu, processes: &[Process]) -> Finding {
    let Gpu { index, name, used_mib, total_mib, .. } = gpu;
    let said = format!("GPU {index}, {name}: {:.1} of {:.1} GiB in use", used_mib / 1024.0, total_mib / 1024.0);
    let of = |process: &Process| format!("{} (pid {}, {} MiB)", process.name, process.pid, process.used_mib);
    let users: Vec<String> = processes.iter().filter(|process| process.uuid == gpu.uuid).map(of).collect();
    let remedy =
        "end what uses it, or choose others (CUDA_VISIBLE_DEVICES): both would be slow, and one may run out of memory";
    match &users[..] {
        [] if *used_mib <= OWN_MIB => Finding::ok(ABOUT, said),
        // In a container, processes of others are not seen.
        [] => Finding::warning(ABOUT, format!("{said}, by processes that are not seen from here"), remedy),
        users => Finding::warning(ABOUT, format!("{said}, by {}", users.join(", ")), remedy),
    }
}

fn nccl(path: Option<PathBuf>) -> Finding {
    match path {
        Some(path) => Finding::ok(ABOUT, format!("NCCL: {}", path.display())),
        None => Finding::warning(
            ABOUT,
            "NCCL is not found (libnccl.so.2 is in no directory of LD_LIBRARY_PATH and none of the system's)",
            "load the site's module for it, or let LD_LIBRARY_PATH name its directory: without it GPUs exchange gradients \
             through the host",
        ),
    }
}

/// Where the loader would find a library. It is not loaded: that would start what belongs to the workers.
fn library(name: &str) -> Option<PathBuf> {
    let named = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let directories = env::split_paths(&named).chain(LIBRARIES.map(PathBuf::from));
    directories.map(|directory| directory.join(name)).find(|path| Path::exists(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    const GPUS: &str = "0, GPU-a, NVIDIA H100 80GB HBM3, 4, 81559, 550.54.15\n1, GPU-b, NVIDIA H100 80GB HBM3, 40960, 81559, 550.54.15\n";
    const PROCESSES: &str = "GPU-b, 4711, python3, 40950\n";

    #[test]
    fn a_gpu_in_use_is_named_with_its_users() {
        let findings = judge(&gpus(GPUS), &processes(PROCESSES), None);
        let said: Vec<(Verdict, &str)> = findings.iter().map(|f| (f.verdict, f.said.as_str())).collect();
        assert_eq!(
            said,
            [
                (Verdict::Ok, "driver 550.54.15"),
                (Verdict::Ok, "GPU 0, NVIDIA H100 80GB HBM3: 0.0 of 79.6 GiB in use"),
                (
                    Verdict::Warning,
                    "GPU 1, NVIDIA H100 80GB HBM3: 40.0 of 79.6 GiB in use, by python3 (pid 4711, 40950 MiB)"
                ),
            ]
        );
        let unseen = judge(&gpus(GPUS), &[], Some(4));
        assert!(unseen[1].said.contains("slurm.gpus_per_node is 4, this machine has 2"), "{unseen:?}");
        assert!(unseen[3].said.ends_with("not seen from here"), "{unseen:?}");
        assert_eq!(judge(&gpus("No devices were found\n"), &[], None)[0].verdict, Verdict::Warning);
    }
}
