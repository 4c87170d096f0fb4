//! Cuts a recipe down to a few dozen steps, leaving everything else as it is: the same model, batches and processes.

use bam_cluster::config::Recipe;
use bam_cluster::plan::TaskSize;

/// About so many optimizer steps are left of a model of all tasks, and of the largest task's model.
const MULTI_STEPS: u64 = 24;
const SINGLE_STEPS: u64 = 8;
/// Dev examples of each task.
const DEV: usize = 32;
/// Steps between checkpoints.
pub const EVERY_STEPS: u64 = 4;
/// Seconds after which a rank that does not get on is given up, unless the recipe says less. A step must not take longer.
const DEADLINE: u64 = 20;

/// What to say on the command line so that `recipe`, whose tasks have these sizes, becomes small.
pub fn cut_down(recipe: &Recipe, sizes: &[TaskSize]) -> Vec<String> {
    let (single, multi) = (&recipe.train.single, &recipe.train.multi);
    let share = (MULTI_STEPS as usize * multi.batch_size).div_ceil(sizes.len().max(1));
    let train = share.max(SINGLE_STEPS as usize * single.batch_size);
    let left = |size: &TaskSize| size.train.min(train);
    let epochs =
        |steps: u64, batch: usize, examples: usize| (steps * batch as u64).div_ceil(examples.max(1) as u64).max(1);
    let all: usize = sizes.iter().map(left).sum();
    let largest = sizes.iter().map(left).max().unwrap_or(1);
    let mut cuts = vec![
        format!("data.max_train_examples={train}"),
        format!("data.max_dev_examples={DEV}"),
        format!("train.single.epochs={}", epochs(SINGLE_STEPS, single.batch_size, largest)),
        format!("train.multi.epochs={}", epochs(MULTI_STEPS, multi.batch_size, all)),
        "train.single.search=null".to_owned(),
        "trials=1".to_owned(),
        "predict=[]".to_owned(),
        format!("checkpoint.every_steps={EVERY_STEPS}"),
        "checkpoint.keep=2".to_owned(),
        format!("cluster.deadline={}", recipe.cluster.deadline.min(DEADLINE)),
        "cluster.max_restarts=1".to_owned(),
    ];
    if recipe.train.fine_tune.is_some() {
        cuts.push("train.fine_tune.epochs=1".to_owned());
    }
    cuts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_tasks_are_sampled_and_small_ones_repeated() {
        let text = "name: x\nmodel: { path: m }\ndata: { glue: g, tasks: [rte, qqp] }\n";
        let recipe: Recipe = serde_norway::from_str(text).unwrap();
        let size = |task: &str, train| TaskSize { task: task.into(), train, dev: 5, further: Default::default() };
        let cuts = cut_down(&recipe, &[size("rte", 2490), size("qqp", 363_870)]);
        // 24 steps of 128 examples, from two tasks.
        assert!(cuts.contains(&"data.max_train_examples=1536".to_owned()), "{cuts:?}");
        assert!(cuts.contains(&"train.multi.epochs=1".to_owned()), "{cuts:?}");
        let cuts = cut_down(&recipe, &[size("rte", 100), size("qqp", 200)]);
        assert!(cuts.contains(&"train.multi.epochs=11".to_owned()), "{cuts:?}");
        assert!(cuts.contains(&"train.single.epochs=2".to_owned()), "{cuts:?}");
    }
}
