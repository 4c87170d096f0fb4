//! The machine that `bam` itself is on: cores, memory, limits.

use std::fs;
use std::num::NonZero;
use std::thread;

use bam_cluster::config::ClusterSection;

use super::Finding;
use crate::descriptors;
use crate::slurm::Allocation;

const ABOUT: &str = "this machine";
const GIB: f64 = (1u64 << 30) as f64;
/// What a rank of a BERT-Base in training needs.
const A_RANK: f64 = 2.5 * GIB;

/// Looks at it.
pub fn look(cluster: &ClusterSection) -> Vec<Finding> {
    let mut findings = vec![cores(cluster)];
    findings.extend(memory(cluster));
    findings.push(match descriptors::make_room(cluster) {
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

fn memory(cluster: &ClusterSection) -> Option<Finding> {
    let available = available(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let said = format!("{:.1} GiB of memory are free", available / GIB);
    if is_alone(cluster) && available < A_RANK * cluster.processes as f64 {
        let remedy = "a rank of BERT-Base takes some 2 GiB, one of BERT-Large 5: use fewer processes or smaller models, or end \
                      what else runs here";
        return Some(Finding::warning(ABOUT, said, remedy));
    }
    Some(Finding::ok(ABOUT, said))
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
