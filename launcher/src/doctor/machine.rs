//! The machine that `bam` itself is on: cores, memory, limits.

use std::fs;
use std::num::NonZero;
use std::thread;

use bam_cluster::config::ClusterSection;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::sys::statvfs::statvfs;

use super::{Finding, Needs};
use crate::descriptors;
use crate::slurm::Allocation;

const ABOUT: &str = "this machine";
const GIB: f64 = (1u64 << 30) as f64;
/// What a rank of a BERT-Base in training needs.
const A_RANK: f64 = 2.5 * GIB;

/// Open MPI's ranks of one host talk through files in here.
const SHARED_MEMORY: &str = "/dev/shm";
/// Besides those that compute: MPI's, heartbeats, checkpoints.
const THREADS_A_RANK: usize = 8;
/// For each rank of a host.
const SHARED_A_RANK: f64 = 8.0 * (1u64 << 20) as f64;

/// Looks at it.
pub fn look(cluster: &ClusterSection, needs: Option<Needs>) -> Vec<Finding> {
    let mut findings = vec![cores(cluster)];
    findings.extend(memory(cluster, needs.map(|needs| needs.memory)));
    findings.extend(shared_memory(cluster));
    findings.extend(address_space());
    findings.extend(processes(cluster));
    findings.push(match descriptors::make_room(cluster.processes, needs.map_or(1, |needs| needs.side_by_side)) {
        Ok(()) => Finding::ok(ABOUT, format!("file descriptors for {} processes", cluster.processes)),
        Err(error) => Finding::of_error(ABOUT, &error.to_string()),
    });
    findings
}

/// Whether all ranks are on this machine.
fn is_alone(cluster: &ClusterSection) -> bool {
    cluster.hosts.is_empty() && Allocation::of_this_process().is_none_or(|job| job.is_this_host())
}

fn cores(cluster: &ClusterSection) -> Finding {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = cluster.processes * cluster.threads;
    let said =
        format!("{cores} cores (cluster.processes: {}, cluster.threads: {})", cluster.processes, cluster.threads);
    if is_alone(cluster) && threads > cores {
        return Finding::warning(ABOUT, said, "ranks that share cores keep one another waiting: use fewer (-n)");
    }
    Finding::ok(ABOUT, said)
}

fn memory(cluster: &ClusterSection, needed: Option<f64>) -> Option<Finding> {
    let available = available(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let mut said = format!("{:.1} GiB of memory are free", available / GIB);
    said += &needed.map_or(String::new(), |needed| format!("; the run takes ~{:.1} GiB on a host", needed / GIB));
    if is_alone(cluster) && available < needed.unwrap_or(A_RANK * cluster.processes as f64) {
        let remedy = "a rank of BERT-Base takes some 2 GiB, one of BERT-Large 5: use fewer processes or smaller models, or end \
                      what else runs here";
        return Some(Finding::warning(ABOUT, said, remedy));
    }
    Some(Finding::ok(ABOUT, said))
}

fn shared_memory(cluster: &ClusterSection) -> Option<Finding> {
    let about = statvfs(SHARED_MEMORY).ok()?;
    let free = about.blocks_available() as f64 * about.fragment_size() as f64;
    let needed = SHARED_A_RANK * cluster.processes as f64;
    let said = format!("{:.0} MiB are free in {SHARED_MEMORY}", free / f64::from(1 << 20));
    if is_alone(cluster) && free < needed {
        let remedy = "ranks of one host talk through it: remove what killed programs have left there, or give the container more \
                      (--shm-size)";
        return Some(Finding::warning(ABOUT, said, remedy));
    }
    Some(Finding::ok(ABOUT, said))
}

fn address_space() -> Option<Finding> {
    let (soft, _) = getrlimit(Resource::RLIMIT_AS).ok()?;
    (soft != RLIM_INFINITY).then(|| {
        let said = format!("a process may have {:.1} GiB of addresses (ulimit -v)", soft as f64 / GIB);
        Finding::warning(
            ABOUT,
            said,
            "ulimit -v unlimited: libtorch and shared memory take many more addresses than memory",
        )
    })
}

fn processes(cluster: &ClusterSection) -> Option<Finding> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NPROC).ok()?;
    let needed = (cluster.processes * (cluster.threads + THREADS_A_RANK)) as u64;
    (soft != RLIM_INFINITY && soft < needed).then(|| {
        let said = format!("this user may have {soft} processes and threads (ulimit -u), the ranks take some {needed}");
        Finding::problem(
            ABOUT,
            said,
            "have the limit raised (nproc in /etc/security/limits.conf), or use fewer processes (-n)",
        )
    })
}

/// Bytes, of `/proc/meminfo`.
fn available(text: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_read() {
        assert_eq!(available("MemTotal: 5 kB\nMemAvailable:    2048 kB\n"), Some(2_097_152.0));
        assert_eq!(available("MemTotal: 5 kB\n"), None);
    }
}
