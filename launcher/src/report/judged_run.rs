//! A run, finished or not, with what its models have scored so far.

use bam_cluster::config::Recipe;
use bam_cluster::plan::Plan;
use bam_cluster::run_dir::RunDir;
use bam_cluster::task::Kind;

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
}

impl JudgedRun {
    /// Collects the results of a run.
    ///
    /// # Errors
    /// A file of scores cannot be read.
    pub fn collect(run: RunDir, recipe: Recipe, plan: Plan) -> anyhow::Result<JudgedRun> {
        let results = Results::collect(&run, &recipe, &plan)?;
        Ok(JudgedRun { run, recipe, plan, results })
    }

    /// What a task's head puts out.
    pub fn kind_of(&self, task: &str) -> Option<Kind> {
        self.recipe.tasks().into_iter().find(|t| t.name == task).map(|t| t.kind)
    }
}
