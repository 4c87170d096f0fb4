//! What the log should have of a communicator: version, who is where, and what the user told NCCL.

use std::env;
use std::fmt;

use super::Version;

/// A communicator in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// NCCL's version.
    pub version: Version,
    /// The file that it was loaded from.
    pub file: String,
    /// This rank.
    pub rank: usize,
    /// PCI bus id of its GPU.
    pub gpu: String,
    /// Each host and how many of its GPUs take part, in the order of ranks.
    pub hosts: Vec<(String, usize)>,
    /// The `NCCL_*` that the user has set. NCCL reads them itself; bam leaves them alone.
    pub environment: Vec<(String, String)>,
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let ranks = self.hosts.iter().map(|(_, gpus)| gpus).sum::<usize>();
        let hosts: Vec<String> = self.hosts.iter().map(|(host, gpus)| format!("{host}: {gpus}")).collect();
        let (version, file, rank, gpu) = (self.version, &self.file, self.rank, &self.gpu);
        let hosts = hosts.join(", ");
        write!(
            f,
            "NCCL {version} ({file}) among {ranks} GPUs ({hosts}); rank {rank} is on GPU {gpu}; set by the user: "
        )?;
        let set: Vec<String> = self.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        f.write_str(if set.is_empty() { "nothing" } else { "" })?;
        f.write_str(&set.join(" "))
    }
}

/// The `NCCL_*` of this process, by name.
pub(super) fn environment() -> Vec<(String, String)> {
    let all = env::vars_os().map(|(name, value)| (name.to_string_lossy().into(), value.to_string_lossy().into()));
    of_nccl(all)
}

fn of_nccl(all: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    let mut set: Vec<_> = all.filter(|(name, _)| name.starts_with("NCCL_")).collect();
    set.sort();
    set
}

/// Hosts and their ranks, in the order of their first ranks.
pub(super) fn count_hosts<'a>(of_ranks: impl Iterator<Item = &'a str>) -> Vec<(String, usize)> {
    let mut hosts: Vec<(String, usize)> = vec![];
    for host in of_ranks {
        match hosts.iter_mut().find(|(name, _)| name == host) {
            Some((_, gpus)) => *gpus += 1,
            None => hosts.push((host.to_owned(), 1)),
        }
    }
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_communicator_is_told_in_one_line() {
        let variables = [("PATH", "/bin"), ("NCCL_DEBUG", "INFO"), ("NCCL_ALGO", "Ring")];
        let mut about = Description {
            version: Version(22809),
            file: "libnccl.so.2".to_owned(),
            rank: 2,
            gpu: "0000:3b:00.0".to_owned(),
            hosts: count_hosts(["b", "b", "a"].into_iter()),
            environment: of_nccl(variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter()),
        };
        let line =
            "NCCL 2.28.9 (libnccl.so.2) among 3 GPUs (b: 2, a: 1); rank 2 is on GPU 0000:3b:00.0; set by the user: ";
        assert_eq!(about.to_string(), format!("{line}NCCL_ALGO=Ring NCCL_DEBUG=INFO"));
        about.environment.clear();
        assert_eq!(about.to_string(), format!("{line}nothing"));
    }
}
