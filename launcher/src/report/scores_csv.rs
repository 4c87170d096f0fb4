//! Every score as a line of CSV: one for each run, kind of models, model, task and metric.

use serde::Serialize;

use super::judged_run::JudgedRun;
use super::published;

/// What stands for the run in lines of published numbers.
const PUBLISHED: &str = "published (BERT-Large, medians)";

/// One line. Scores are shares (0.5, not 50 %).
#[derive(Debug, Serialize)]
struct Row<'a> {
    run: &'a str,
    /// As in `report.json`: `single`, `single-to-multi`, …
    models: &'a str,
    /// None of published numbers.
    trial: Option<u64>,
    /// Which model of an ensemble.
    member: Option<usize>,
    stage: Option<&'a str>,
    task: &'a str,
    split: &'a str,
    metric: &'a str,
    /// None where it is undefined.
    score: Option<f64>,
    examples: Option<usize>,
}

/// The text, with a header.
///
/// # Errors
/// None that can happen in memory; they are csv's to name.
pub fn render(runs: &[JudgedRun], with_published: bool) -> anyhow::Result<String> {
    let mut writer = csv::Writer::from_writer(vec![]);
    for run in runs {
        add(&mut writer, run)?;
    }
    for (title, _, scores) in published::TABLE_1.iter().filter(|_| with_published) {
        let key = title.to_lowercase().replace('→', "-to-");
        for (i, task) in published::TASKS.iter().enumerate() {
            let (metric, score) = (published::METRICS[i], Some(scores[i] / 100.0));
            let (run, models, split) = (PUBLISHED, key.as_str(), "dev");
            let (trial, member, stage, examples) = (None, None, None, None);
            writer.serialize(Row { run, models, trial, member, stage, task, split, metric, score, examples })?;
        }
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

fn add(writer: &mut csv::Writer<Vec<u8>>, JudgedRun { results, .. }: &JudgedRun) -> csv::Result<()> {
    for column in &results.columns {
        for sample in &column.samples {
            for (split, scores) in [("dev", &sample.scores), ("dev-mismatched", &sample.mismatched)] {
                for (task, of_task) in scores {
                    for (metric, score) in &of_task.metrics {
                        writer.serialize(Row {
                            run: &results.name,
                            models: column.kind.key,
                            trial: Some(sample.number.0),
                            member: Some(sample.number.1),
                            stage: sample.stages.get(task).map(String::as_str),
                            task,
                            split,
                            metric,
                            score: *score,
                            examples: Some(of_task.examples),
                        })?;
                    }
                }
            }
        }
    }
    Ok(())
}
