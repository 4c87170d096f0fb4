//! The batch job that this process runs in, as Slurm's variables say.

use std::env;

/// A job of which this process is a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocation {
    /// The job's number; that of the array, for an element of one.
    pub id: u64,
    /// Which element of an array it is.
    pub element: Option<u64>,
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

    /// Its name for people, and for Slurm's commands: `12`, or `12_3` for an element of an array.
    pub fn name(&self) -> String {
        match self.element {
            Some(element) => format!("{}_{element}", self.id),
            None => self.id.to_string(),
        }
    }

    /// Whether all of the job is on this host.
    pub fn is_this_host(&self) -> bool {
        self.nodes == 1 && self.is_on_a_node
    }

    fn of(variable: impl Fn(&str) -> Option<String>) -> Option<Allocation> {
        let number = |name: &str| variable(name)?.parse().ok();
        // An element has a number of its own besides, by which nobody knows it.
        let (id, element) = match (number("SLURM_ARRAY_JOB_ID"), number("SLURM_ARRAY_TASK_ID")) {
            (Some(array), Some(element)) => (array, Some(element)),
            _ => (number("SLURM_JOB_ID")?, None),
        };
        // The first time, this variable is not there.
        let restart = variable("SLURM_RESTART_COUNT").and_then(|n| n.parse().ok()).unwrap_or_default();
        let tasks = variable("SLURM_NTASKS").and_then(|n| n.parse().ok()).filter(|n| *n > 0);
        let nodes = variable("SLURM_JOB_NUM_NODES").and_then(|n| n.parse().ok()).unwrap_or(1);
        let is_on_a_node = variable("SLURMD_NODENAME").is_some();
        Some(Allocation { id, element, restart, tasks, nodes, is_on_a_node })
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
        let bare = Allocation { id: 12, element: None, restart: 0, tasks: None, nodes: 1, is_on_a_node: false };
        assert_eq!(of(&[("SLURM_JOB_ID", "12")]), Some(bare));
        let all = [
            ("SLURM_JOB_ID", "12"),
            ("SLURM_RESTART_COUNT", "3"),
            ("SLURM_NTASKS", "8"),
            ("SLURM_JOB_NUM_NODES", "2"),
            ("SLURMD_NODENAME", "n1"),
        ];
        let full = Allocation { id: 12, element: None, restart: 3, tasks: Some(8), nodes: 2, is_on_a_node: true };
        assert_eq!(of(&all), Some(full));
        assert!(!full.is_this_host() && !bare.is_this_host());
        assert!(Allocation { nodes: 1, ..full }.is_this_host());
        let element =
            of(&[("SLURM_JOB_ID", "14"), ("SLURM_ARRAY_JOB_ID", "12"), ("SLURM_ARRAY_TASK_ID", "0")]).unwrap();
        assert_eq!((element.name(), element.id), ("12_0".to_owned(), 12));
        assert_eq!(of(&[("SLURM_JOB_ID", "12"), ("SLURM_NTASKS", "0")]).and_then(|job| job.tasks), None);
    }
}
