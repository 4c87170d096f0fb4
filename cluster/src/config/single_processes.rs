//! How many ranks train a model of one task.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema::ClusterSection;

/// With fewer examples of a batch, a rank mostly waits for the others.
pub const FEW_EXAMPLES: usize = 4;

/// One number of ranks, or one for each task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum SingleProcesses {
    /// The same for all.
    All(usize),
    /// By task name; `default` for the rest.
    ByTask(BTreeMap<String, usize>),
}

impl SingleProcesses {
    /// What is said of a model of this task.
    pub fn of(&self, task: &str) -> Option<usize> {
        match self {
            SingleProcesses::All(ranks) => Some(*ranks),
            SingleProcesses::ByTask(ranks) => ranks.get(task).or_else(|| ranks.get("default")).copied(),
        }
    }

    /// All that is said, each with the task that it is said of, if it is one.
    pub fn said(&self) -> Vec<(Option<&str>, usize)> {
        match self {
            SingleProcesses::All(ranks) => vec![(None, *ranks)],
            SingleProcesses::ByTask(ranks) => ranks.iter().map(|(task, n)| (Some(task.as_str()), *n)).collect(),
        }
    }
}

impl ClusterSection {
    /// Ranks that train a model of this task in batches of so many examples: as many as the recipe says; else as many as have
    /// [four](FEW_EXAMPLES) of them each, so that on many ranks several models are trained side by side.
    pub fn single_ranks(&self, task: &str, batch_size: usize) -> usize {
        let said = self.single_processes.as_ref().and_then(|said| said.of(task));
        said.unwrap_or_else(|| self.processes.min((batch_size / FEW_EXAMPLES).max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks(processes: usize, single_processes: Option<&str>) -> [usize; 3] {
        let single_processes = single_processes.map(|text| serde_norway::from_str(text).unwrap());
        let cluster = ClusterSection { processes, single_processes, ..ClusterSection::default() };
        ["mnli", "rte", "cola"].map(|task| cluster.single_ranks(task, 32))
    }

    #[test]
    fn unsaid_each_rank_has_four_examples_of_a_batch_or_there_are_no_more() {
        assert_eq!(ranks(2, None), [2; 3]);
        assert_eq!(ranks(8, None), [8; 3]);
        assert_eq!(ranks(64, None), [8; 3]);
        assert_eq!(ClusterSection { processes: 64, ..ClusterSection::default() }.single_ranks("rte", 2), 1);
    }

    #[test]
    fn a_recipe_gives_each_task_its_own_number() {
        assert_eq!(ranks(64, Some("16")), [16; 3]);
        assert_eq!(ranks(64, Some("{ mnli: 32, rte: 1, default: 4 }")), [32, 1, 4]);
        assert_eq!(ranks(64, Some("{ mnli: 32 }")), [32, 8, 8]);
    }
}
