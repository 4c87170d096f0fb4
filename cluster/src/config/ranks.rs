//! How many ranks train a model of one task.

use super::per_task::PerTask;
use super::schema::ClusterSection;

/// With fewer examples of a batch, a rank mostly waits for the others.
pub const FEW_EXAMPLES: usize = 4;

impl ClusterSection {
    /// Ranks that train a model of this task in batches of so many examples: as many as the recipe says; else as many as have
    /// [four](FEW_EXAMPLES) of them each, so that on many ranks several models are trained side by side.
    pub fn single_ranks(&self, task: &str, batch_size: usize) -> usize {
        let said = self.single_processes.as_ref().and_then(|said| said.of(&[task]));
        said.unwrap_or_else(|| self.processes.min((batch_size / FEW_EXAMPLES).max(1)))
    }

    /// The largest number of ranks that the recipe says of a model of one task.
    pub fn most_single_processes(&self) -> Option<usize> {
        self.single_processes.iter().flat_map(PerTask::said).map(|(_, ranks)| ranks).max()
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
