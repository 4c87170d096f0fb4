//! Runs for tests: directories with what stages leave, without anything trained.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bam_cluster::config::Recipe;
use bam_cluster::files;
use bam_cluster::plan::{Plan, StageWork, TaskSize};
use bam_cluster::run_dir::RunDir;
use bam_cluster::stage_record::{Scores, StageRecord, TaskScores, finish};

use super::judged_run::JudgedRun;

/// A run in the directory `at`. `scores`: of the stage with that number in the plan, on a task; the stage is not complete
/// if there are none. Stages that train nothing are not complete.
pub fn run(at: &Path, recipe: &str, scores: impl Fn(usize, &str) -> Option<TaskScores>) -> JudgedRun {
    let run = RunDir::new(at);
    fs::create_dir_all(at).unwrap();
    fs::write(run.recipe(), recipe).unwrap();
    let recipe: Recipe = serde_norway::from_str(recipe).unwrap();
    let size = |task: String| TaskSize { task, train: 9, dev: 9, further: BTreeMap::new() };
    let sizes: Vec<TaskSize> = recipe.tasks().into_iter().map(|task| size(task.name)).collect();
    let plan = Plan::derive(&recipe, &sizes);
    for (i, stage) in plan.stages.iter().enumerate() {
        let StageWork::Train(train) = &stage.work else { continue };
        let of_task = |task: &String| Some((task.clone(), scores(i, task)?));
        let Some(all) = train.tasks.iter().map(of_task).collect::<Option<Scores>>() else { continue };
        files::write_json(&run.scores(&stage.name), &all).unwrap();
        let record = StageRecord { inputs: BTreeMap::new(), outputs: BTreeMap::new(), seconds: 2.0 };
        finish(&run, &stage.name, &record).unwrap();
    }
    JudgedRun::collect(run, recipe, plan).unwrap()
}

/// The same score in every metric.
pub fn everywhere(score: Option<f64>) -> TaskScores {
    let metrics = ["accuracy", "f1", "matthews", "pearson", "spearman", "mse"].map(|m| (m.to_owned(), score));
    TaskScores { metrics: metrics.into(), examples: 9, classes_predicted: None, spread: None }
}

/// Writes what a stage answered on a task's dev split, beside what would have been right.
pub fn answer(run: &JudgedRun, stage: &str, task: &str, answers: &[(f32, f32)]) {
    let path = run.run.predictions(stage, task, "dev");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let rows = answers.iter().enumerate().map(|(i, (answer, gold))| format!("{i}\t{answer}\t{gold}\n"));
    fs::write(path, format!("id\tprediction\tgold\n{}", rows.collect::<String>())).unwrap();
}
