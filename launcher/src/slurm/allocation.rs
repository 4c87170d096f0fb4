//! The batch job that this process runs in, as Slurm's variables say.

use std::env;

/// A job of which this process is a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocation {
    /// The job's number.
    pub id: u64,
    /// How often it was put into the queue again.
    pub restart: u32,
    /// How many tasks it was asked to have.
    pub tasks: Option<usize>,
    /// How many nodes it has.
    pub nodes: u32,
    /// Whether this process is on one of them: `salloc` runs its command where it was called itself.
    pub is_on_a_node: bool,
}

impl Allocation {
    /// None outside of any job.
    pub fn of_this_process() -> Option<Allocation> {
        Allocation::of(|name| env::var(name).ok())
    }

    /// Whether all of the job is on this host.
    pub fn is_this_host(&self) -> bool {
        self.nodes == 1 && self.is_on_a_node
    }

    fn of(variable: impl Fn(&str) -> Option<String>) -> Option<Allocation> {
        let id = variable("SLURM_JOB_ID")?.parse().ok()?;
        // The first time, this variable is not there.
        let restart = variable("SLURM_RESTART_COUNT").and_then(|n| n.parse().ok()).unwrap_or_default();
        let tasks = variable("SLURM_NTASKS").and_then(|n| n.parse().ok()).filter(|n| *n > 0);
        let nodes = variable("SLURM_JOB_NUM_NODES").and_then(|n| n.parse().ok()).unwrap_or(1);
        let is_on_a_node = variable("SLURMD_NODENAME").is_some();
        Some(Allocation { id, restart, tasks, nodes, is_on_a_node })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Option<Allocation> {
        Allocation::of(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn only_numbers_are_believed() {
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("SLURM_JOB_ID", "x")]), None);
        let bare = Allocation { id: 12, restart: 0, tasks: None, nodes: 1, is_on_a_node: false };
        assert_eq!(of(&[("SLURM_JOB_ID", "12")]), Some(bare));
        let all = [
            ("SLURM_JOB_ID", "12"),
            ("SLURM_RESTART_COUNT", "3"),
            ("SLURM_NTASKS", "8"),
            ("SLURM_JOB_NUM_NODES", "2"),
            ("SLURMD_NODENAME", "n1"),
        ];
        let full = Allocation { id: 12, restart: 3, tasks: Some(8), nodes: 2, is_on_a_node: true };
        assert_eq!(of(&all), Some(full));
        assert!(!full.is_this_host() && !bare.is_this_host());
        assert!(Allocation { nodes: 1, ..full }.is_this_host());
        assert_eq!(of(&[("SLURM_JOB_ID", "12"), ("SLURM_NTASKS", "0")]).and_then(|job| job.tasks), None);
    }
}
