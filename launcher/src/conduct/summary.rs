//! What is said of a stage that has just been completed.

use anyhow::Context;
use bam_cluster::files;
use bam_cluster::plan::{Stage, StageWork};
use bam_cluster::run_dir::RunDir;
use bam_cluster::stage_record::Scores;
use bam_cluster::task::Task;

use crate::choice;
use crate::numbers::{brief, thousands};

/// One line; for a model, with its scores on dev.
///
/// # Errors
/// What the stage has made cannot be read.
pub fn summary(run: &RunDir, tasks: &[Task], stage: &Stage, seconds: f64) -> anyhow::Result<String> {
    let line = format!("{}: done in {}", stage.name, brief(seconds));
    if let StageWork::Predict(predict) = &stage.work {
        let answers: usize = predict.questions.iter().map(|q| q.examples).sum();
        return Ok(format!("{line}; {} answers in stages/STAGE/predictions", thousands(answers)));
    }
    let (line, learnt) = match &stage.work {
        StageWork::Train(train) => (line, &train.tasks),
        StageWork::Choose(work) => (format!("{}: {}", stage.name, choice::describe(run, &stage.name)?), &work.tasks),
        _ => return Ok(line),
    };
    let path = run.scores(&stage.name);
    let scores: Scores = files::read_json(&path).with_context(|| path.display().to_string())?.unwrap_or_default();
    let tasks = tasks.iter().filter(|t| learnt.contains(&t.name));
    let said: Vec<String> = tasks
        .filter_map(|task| {
            let metric = task.metrics.first()?.name();
            let score = scores.get(&task.name)?.metrics.get(metric).copied().flatten();
            let score = score.map_or("undefined".to_owned(), |s| format!("{:.1}", 100.0 * s));
            Some(format!("{} {metric} {score}", task.name))
        })
        .collect();
    Ok(if said.is_empty() { line } else { format!("{line}; dev: {}", said.join(", ")) })
}
