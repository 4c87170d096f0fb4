//! What is said of a stage that has just been completed: how long it took, what its model scores, and whether that has
//! collapsed.

use anyhow::Context;
use bam_cluster::files;
use bam_cluster::plan::{Stage, StageWork};
use bam_cluster::run_dir::RunDir;
use bam_cluster::stage_record::Scores;
use bam_cluster::task::Task;

use crate::choice;
use crate::numbers::{brief, thousands};
use crate::report::figure;

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
    let tasks: Vec<&Task> = tasks.iter().filter(|t| learnt.contains(&t.name)).collect();
    Ok(line + &on_dev(&tasks, &scores))
}

/// A model's main scores, and the tasks on which it has collapsed.
fn on_dev(tasks: &[&Task], scores: &Scores) -> String {
    let score = |task: &&Task| {
        let metric = *task.metrics.first()?;
        let score = scores.get(&task.name)?.metrics.get(metric.name()).copied().flatten();
        let score = score.map_or("undefined".to_owned(), |s| figure(s, metric));
        Some(format!("{} {} {score}", task.name, metric.name()))
    };
    let said: Vec<String> = tasks.iter().filter_map(score).collect();
    let dev = if said.is_empty() { String::new() } else { format!("; dev: {}", said.join(", ")) };
    let collapse =
        |task: &&Task| Some(format!("; collapsed on {}: it {}", task.name, scores.get(&task.name)?.collapse()?));
    dev + &tasks.iter().filter_map(collapse).collect::<String>()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bam_cluster::config::Recipe;
    use bam_cluster::stage_record::TaskScores;

    use super::*;

    #[test]
    fn a_model_is_told_by_its_scores_and_by_what_is_wrong_with_it() {
        let text = "name: x\nmodel: { path: m }\ndata: { glue: g, tasks: [rte, { name: dose, train: t.tsv, dev: d.tsv, \
                    text: a, label: b, type: regression, range: [0, 1], metric: mse }] }\n";
        let tasks = serde_norway::from_str::<Recipe>(text).unwrap().tasks();
        let scores = |rte: (f64, usize), (mse, spread): (f64, f64)| {
            let of = |metric: &str, score, classes_predicted, spread| TaskScores {
                metrics: BTreeMap::from([(metric.to_owned(), Some(score))]),
                examples: 9,
                classes_predicted,
                spread,
            };
            let all = [("rte", of("accuracy", rte.0, Some(rte.1), None)), ("dose", of("mse", mse, None, Some(spread)))];
            Scores::from(all.map(|(task, scores)| (task.to_owned(), scores)))
        };
        let said = |scores: &Scores| on_dev(&tasks.iter().collect::<Vec<_>>(), scores);
        assert_eq!(said(&scores((0.6, 2), (0.0123, 0.8))), "; dev: rte accuracy 60.0, dose mse 0.012");
        assert_eq!(
            said(&scores((0.527, 1), (0.25, 0.0005))),
            "; dev: rte accuracy 52.7, dose mse 0.250; collapsed on rte: it predicts the same class for every dev \
             example; collapsed on dose: it predicts nearly the same value for every dev example"
        );
        assert_eq!(said(&Scores::new()), "");
    }
}
