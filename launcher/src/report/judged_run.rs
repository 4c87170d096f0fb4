//! A run, finished or not, with what its models have scored so far.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use bam_cluster::config::Recipe;
use bam_cluster::digest;
use bam_cluster::plan::Plan;
use bam_cluster::run_dir::RunDir;
use bam_cluster::task::Kind;

use super::predictions;
use super::results::Results;

/// A run with its results so far.
#[derive(Debug)]
pub struct JudgedRun {
    /// Where it is.
    pub run: RunDir,
    /// What was asked for.
    pub recipe: Recipe,
    /// What follows from that.
    pub plan: Plan,
    /// What was reached.
    pub results: Results,
    /// A sum over the dev examples that its models were judged on, with their gold labels, by task; read when somebody asks,
    /// which one run alone gives no reason for.
    judged_on: OnceLock<BTreeMap<String, String>>,
}

impl JudgedRun {
    /// Collects the results of a run.
    ///
    /// # Errors
    /// A file of scores cannot be read.
    pub fn collect(run: RunDir, recipe: Recipe, plan: Plan) -> anyhow::Result<JudgedRun> {
        let results = Results::collect(&run, &recipe, &plan)?;
        Ok(JudgedRun { run, recipe, plan, results, judged_on: OnceLock::new() })
    }

    /// The tasks on which this run and the other were judged on different dev examples.
    pub fn judged_otherwise(&self, other: &JudgedRun) -> Vec<&str> {
        let there = other.judged_on();
        let differs = |(task, sum): &(&String, &String)| there.get(*task).is_some_and(|there| there != *sum);
        self.judged_on().iter().filter(differs).map(|(task, _)| task.as_str()).collect()
    }

    fn judged_on(&self) -> &BTreeMap<String, String> {
        let sum = |(task, kind): (String, Kind)| {
            let samples = self.results.columns.iter().flat_map(|column| &column.samples);
            let stage = samples.filter_map(|sample| sample.stages.get(&task)).next()?;
            // Whether they can be read is of importance to tests alone, which say so.
            let dev = predictions::read(&self.run.predictions(stage, &task, "dev"), &kind).ok()?;
            Some((task, digest::of_json(&(dev.ids, dev.gold))))
        };
        let tasks = || self.recipe.tasks().into_iter().map(|task| (task.name, task.kind));
        self.judged_on.get_or_init(|| tasks().filter_map(sum).collect())
    }

    /// What a task's head puts out.
    pub fn kind_of(&self, task: &str) -> Option<Kind> {
        self.recipe.tasks().into_iter().find(|t| t.name == task).map(|t| t.kind)
    }
}
