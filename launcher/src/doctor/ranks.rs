//! Ranks: do they start, find one another, and get on equally well?

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use bam_cluster::config::ClusterSection;
use bam_cluster::protocol::{Devices, Probe};
use tempfile::NamedTempFile;

use super::Finding;
use super::files::nearest;
use crate::backend::{self, Duty, Launch, Programs, Scratch, Start};

const ABOUT: &str = "ranks";
/// Within one host, a collective takes microseconds; ranks that wait for a core take milliseconds.
const SLOW_COLLECTIVE: f64 = 1e-3;
/// Of the median's rate: a rank that is slower keeps all waiting.
const SLOW_RANK: f64 = 0.7;
/// Seconds that clocks may be apart before times in logs mislead people.
const CLOCKS: f64 = 2.0;

/// Starts as many ranks as a run would have, which then look around, also for what is put into `directory`, where runs are
/// to be written.
pub fn look(programs: &Programs, cluster: &ClusterSection, directory: &Path) -> Vec<Finding> {
    let scratch = match Scratch::new() {
        Ok(scratch) => scratch,
        Err(error) => {
            let said = format!("cannot make a temporary directory: {error}");
            return vec![Finding::problem(ABOUT, said, "let TMPDIR name a directory with room on this host")];
        }
    };
    let token = token(nearest(directory));
    let duty = Duty::Probe(token.as_ref().map(|token| token.path()));
    let seats = backend::slots(programs, cluster).all(cluster.processes);
    let start = Start { cluster, duty, seats: &seats, scratch: &scratch };
    let launch = Launch::new(programs, &start);
    match backend::output(&launch) {
        Ok(lines) => {
            let probes = probes(&lines);
            let mut findings = judge(&probes, start.ranks(), &lines);
            if let (Some(_), [probe, ..]) = (&token, &probes[..])
                && probe.ranks == start.ranks()
            {
                findings.push(views(probe, nearest(directory)));
            }
            findings
        }
        Err(error) => {
            let remedy = format!("try it by hand: {}", launch.command_line());
            vec![Finding::problem(ABOUT, error, remedy)]
        }
    }
}

/// A file that ranks on other hosts see only if the directory is the same there. Where none can be written, the file system
/// has a finding of its own.
fn token(directory: &Path) -> Option<NamedTempFile> {
    let mut file = tempfile::Builder::new().prefix(".bam-doctor-").tempfile_in(directory).ok()?;
    file.write_all(backend::host_name().as_bytes()).and_then(|()| file.as_file().sync_all()).ok()?;
    Some(file)
}

/// Whether all ranks see the directory that this host sees.
fn views(probe: &Probe, directory: &Path) -> Finding {
    let blind = probe.hosts.iter().zip(&probe.sees_token).enumerate().filter(|(_, (_, sees))| !**sees);
    let blind: Vec<String> = blind.map(|(rank, (host, _))| format!("rank {rank} on {host}")).collect();
    if blind.is_empty() {
        return Finding::ok(ABOUT, format!("all see {} as this host does", directory.display()));
    }
    let said = format!("{} do not see in {} what this host writes there", blind.join(", "), directory.display());
    let remedy =
        "runs must be written to a file system that all hosts share, at the same path (--dir; --run-dir of bam run)";
    Finding::problem(ABOUT, said, remedy)
}

/// What was printed, behind whatever mark each line has of its rank.
fn probes(lines: &[String]) -> Vec<Probe> {
    let json = lines.iter().filter_map(|line| line.find('{').map(|start| &line[start..]));
    json.filter_map(|text| serde_json::from_str(text).ok()).collect()
}

fn judge(probes: &[Probe], ranks: usize, lines: &[String]) -> Vec<Finding> {
    let Some(probe) = probes.first() else {
        let said = format!("ranks were started and said nothing that bam understands: {}", lines.join("; "));
        return vec![Finding::problem(ABOUT, said, "let bam and bam-worker be of one build")];
    };
    if probe.ranks != ranks {
        let said = format!("{ranks} ranks were started, of which {} found one another", probe.ranks);
        let remedy = "what starts the ranks is of another MPI than the one that bam-worker was built with: name the right \
                      mpirun (BAM_MPIRUN), or build bam with this one (MPICC)";
        return vec![Finding::problem(ABOUT, said, remedy)];
    }
    let mut findings = vec![Finding::ok(ABOUT, met(probe))];
    findings.push(talk(probe));
    if ranks > 1 {
        findings.push(memory(probe));
    }
    findings.push(speed(probe));
    if probe.clocks > CLOCKS {
        let said = format!("the clocks of the hosts are {:.1} s apart", probe.clocks);
        findings.push(Finding::warning(
            ABOUT,
            said,
            "have them set by NTP: times in logs and traces do not fit together",
        ));
    }
    findings.push(libtorch(probe));
    findings.push(match probe.gpus {
        0 => Finding::ok(ABOUT, "libtorch sees no GPU; ranks compute on CPUs"),
        n => Finding::ok(ABOUT, format!("libtorch sees {n} GPUs; ranks compute on them (cluster.device: auto)")),
    });
    let Devices { good, warnings, problems } = &probe.devices;
    findings.extend(good.iter().map(|said| Finding::ok(ABOUT, said)));
    findings.extend(warnings.iter().map(|said| Finding::warning(ABOUT, said, "runs are slower than they could be")));
    findings.extend(problems.iter().map(|said| Finding::problem(ABOUT, said, "or train on CPUs: cluster.device: cpu")));
    findings
}

fn met(probe: &Probe) -> String {
    let mut on_host: BTreeMap<&str, usize> = BTreeMap::new();
    probe.hosts.iter().for_each(|host| *on_host.entry(host).or_default() += 1);
    let hosts: Vec<String> = on_host.iter().map(|(host, ranks)| format!("{ranks} on {host}")).collect();
    format!("{} met ({}): {}, HDF5 {}", probe.ranks, hosts.join(", "), probe.mpi, probe.hdf5)
}

fn libtorch(probe: &Probe) -> Finding {
    let kind = if probe.libtorch_has_cuda { "with CUDA" } else { "for CPUs alone" };
    Finding::ok(ABOUT, format!("libtorch {}, built {kind}", probe.libtorch))
}

fn talk(probe: &Probe) -> Finding {
    let (latency, bandwidth) = (probe.latency * 1e6, probe.bandwidth / 1e9);
    let said = format!("an empty collective takes {latency:.1} µs, an all-reduce of 16 MiB does {bandwidth:.2} GB/s");
    let is_one_host = probe.hosts.iter().all(|host| *host == probe.hosts[0]);
    if is_one_host && probe.latency > SLOW_COLLECTIVE {
        return Finding::warning(
            ABOUT,
            said,
            "ranks wait for cores: use fewer processes (-n), or end what else runs here",
        );
    }
    Finding::ok(ABOUT, said)
}

fn memory(probe: &Probe) -> Finding {
    if probe.share_memory {
        return Finding::ok(ABOUT, "ranks of one host share its memory");
    }
    let remedy = "let every host have as many ranks, in one container each, whose /proc shows them; until then gradients go \
                  through MPI and every rank has a copy of everything";
    Finding::warning(ABOUT, "ranks of one host do not share its memory", remedy)
}

fn speed(probe: &Probe) -> Finding {
    let mut sorted = probe.rates.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    let all = format!("each multiplies {:.0} to {:.0} GFLOP/s", sorted[0] / 1e9, sorted[sorted.len() - 1] / 1e9);
    let slow = probe.rates.iter().zip(&probe.hosts).enumerate().filter(|(_, (rate, _))| **rate < SLOW_RANK * median);
    let slow: Vec<String> =
        slow.map(|(rank, (rate, host))| format!("rank {rank} on {host} does {:.0}", rate / 1e9)).collect();
    if slow.is_empty() {
        return Finding::ok(ABOUT, all);
    }
    let remedy =
        "all wait for the slowest: see what else runs there, and whether its cores are throttled; leave the host out";
    Finding::warning(ABOUT, format!("{all}: {}", slow.join(", ")), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    fn probe() -> Probe {
        Probe {
            devices: Devices::default(),
            ranks: 3,
            hosts: ["a", "a", "b"].map(str::to_owned).to_vec(),
            share_memory: true,
            mpi: "Open MPI v4.1.4".into(),
            hdf5: "1.10.8".into(),
            gpus: 0,
            libtorch: "2.11.0+cpu".into(),
            libtorch_has_cuda: false,
            sees_token: vec![true; 3],
            latency: 2e-6,
            bandwidth: 3e9,
            clocks: 0.001,
            rates: vec![9e10, 1e11, 9.5e10],
        }
    }

    fn troubles(probe: Probe) -> Vec<(Verdict, String)> {
        let findings = judge(&[probe], 3, &[]);
        let wanting = findings.into_iter().filter(|finding| finding.verdict != Verdict::Ok);
        wanting.map(|finding| (finding.verdict, finding.said)).collect()
    }

    #[test]
    fn what_is_said_of_gpus_is_passed_on() {
        let devices = Devices {
            good: vec!["cuda:0 is next to cores 0-3".into()],
            warnings: vec!["rank 1 computes slowly".into()],
            problems: vec!["NCCL cannot be loaded".into()],
        };
        let found = troubles(Probe { gpus: 2, devices, ..probe() });
        let expected = [(Verdict::Warning, "rank 1 computes slowly"), (Verdict::Problem, "NCCL cannot be loaded")];
        assert_eq!(found, expected.map(|(verdict, said)| (verdict, said.to_owned())));
    }

    #[test]
    fn what_is_as_it_should_be_is_ok() {
        assert_eq!(troubles(probe()), []);
        assert!(judge(&[probe()], 3, &[])[0].said.starts_with("3 met (2 on a, 1 on b): Open MPI v4.1.4, HDF5 1.10.8"));
    }

    #[test]
    fn each_trouble_is_named() {
        let only = |probe: Probe, words: &str| {
            let found = troubles(probe);
            assert!(found.len() == 1 && found[0].1.contains(words), "{words}: {found:?}");
        };
        only(Probe { share_memory: false, ..probe() }, "do not share");
        only(Probe { clocks: 70.0, ..probe() }, "70.0 s apart");
        only(Probe { rates: vec![9e10, 1e11, 3e10], ..probe() }, "rank 2 on b does 30");
        // Between hosts, a network may be slow.
        assert_eq!(troubles(Probe { latency: 0.02, ..probe() }), []);
        only(Probe { latency: 0.02, hosts: vec!["a".into(); 3], ..probe() }, "20000.0 µs");
    }

    #[test]
    fn hosts_that_do_not_share_the_directory_are_named() {
        let directory = Path::new("/scratch/runs");
        assert_eq!(views(&probe(), directory).said, "all see /scratch/runs as this host does");
        let found = views(&Probe { sees_token: vec![true, true, false], ..probe() }, directory);
        assert_eq!(found.said, "rank 2 on b do not see in /scratch/runs what this host writes there");
        assert_eq!(found.verdict, Verdict::Problem);
    }

    #[test]
    fn ranks_that_are_alone_or_say_nothing_are_a_problem() {
        let alone = Probe { ranks: 1, ..probe() };
        let found = judge(&[alone.clone(), alone], 3, &[]);
        assert!(found.len() == 1 && found[0].verdict == Verdict::Problem && found[0].said.contains("of which 1 found"));
        let lines = ["[1,0]<stderr>:no".to_owned()];
        assert!(judge(&[], 3, &lines)[0].said.ends_with("[1,0]<stderr>:no"));
    }

    #[test]
    fn lines_may_have_marks() {
        let json = serde_json::to_string(&probe()).unwrap();
        let lines = ["[1,1]<stderr>:{no".to_owned(), format!("[1,0]<stdout>:{json}"), format!("0: {json}")];
        assert_eq!(probes(&lines), [probe(), probe()]);
    }
}
