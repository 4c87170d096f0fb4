//! Scores as lines of CSV: one for each run, kind of models, model, task and metric, and one for each average over tasks and
//! each change of it.

use bam_cluster::metrics::counted;
use bam_cluster::task::Metric;
use serde::Serialize;

use super::comparison::Comparison;
use super::judged_run::JudgedRun;
use super::models::{Column, ModelKind, Sample};
use super::published;

/// What stands for the run in lines of published numbers.
const PUBLISHED: &str = "published (BERT-Large, medians)";
/// The metric of a mean over tasks, as the paper forms it.
const AVERAGE: &str = "average";
/// The same as GLUE forms it.
const GLUE_AVERAGE: &str = "glue_average";

/// One line. Scores are shares (0.5, not 50 %), but for errors.
#[derive(Debug, Default, Clone, Copy, Serialize)]
struct Row<'a> {
    run: &'a str,
    /// As in `report.json`: `single`, `single-to-multi`, …
    models: &'a str,
    /// None of what is of all models together, and of published numbers.
    trial: Option<u64>,
    /// Which model of an ensemble.
    member: Option<usize>,
    stage: Option<&'a str>,
    /// None of averages.
    task: Option<&'a str>,
    split: &'a str,
    metric: &'a str,
    /// None of a model that is not there yet.
    score: Option<f64>,
    examples: Option<usize>,
    /// Whether the model answers everything alike.
    collapsed: Option<bool>,
}

/// The text, with a header.
///
/// # Errors
/// None that can happen in memory; they are csv's to name.
pub fn render(runs: &[JudgedRun], with_published: bool) -> anyhow::Result<String> {
    let mut writer = csv::Writer::from_writer(vec![]);
    for JudgedRun { results, .. } in runs {
        for column in &results.columns {
            let first = Row { run: &results.name, models: column.kind.key, split: "dev", ..Row::default() };
            for sample in &column.samples {
                add(&mut writer, &results.tasks, sample, &first)?;
            }
            add_averages(&mut writer, &results.tasks, column, &first)?;
        }
    }
    add_changes(&mut writer, &Comparison::of(runs))?;
    if with_published {
        add_published(&mut writer)?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

/// The scores of one sample. `first`: what all its lines begin with.
fn add(
    writer: &mut csv::Writer<Vec<u8>>,
    tasks: &[(String, Vec<Metric>)],
    sample: &Sample,
    first: &Row,
) -> csv::Result<()> {
    let first = Row { trial: Some(sample.number.0), member: Some(sample.number.1), ..*first };
    for (task, metrics) in tasks {
        let (stages, missing) = (sample.stages.get(task), sample.missing.get(task));
        for metric in metrics {
            let row = Row { task: Some(task), metric: metric.name(), ..first };
            for (split, scores) in [("dev", &sample.scores), ("dev-mismatched", &sample.mismatched)] {
                let Some(of_task) = scores.get(task) else { continue };
                writer.serialize(Row {
                    split,
                    stage: stages.map(String::as_str),
                    score: counted(*metric, of_task.metrics.get(metric.name()).copied().flatten()),
                    examples: Some(of_task.examples),
                    collapsed: Some(of_task.collapse().is_some()),
                    ..row
                })?;
            }
            if let Some(stage) = missing {
                writer.serialize(Row { stage: Some(stage), ..row })?;
            }
        }
    }
    Ok(())
}

fn add_averages(
    writer: &mut csv::Writer<Vec<u8>>,
    tasks: &[(String, Vec<Metric>)],
    column: &Column,
    first: &Row,
) -> csv::Result<()> {
    for (metric, summary) in [(AVERAGE, column.average(tasks)), (GLUE_AVERAGE, column.glue_average(tasks))] {
        if summary.middle.is_some() {
            writer.serialize(Row { metric, score: summary.middle, ..*first })?;
        }
    }
    Ok(())
}

/// What a line of a change has for a metric.
fn change_of_average(key: &str) -> String {
    format!("change of the average: {key}")
}

fn add_changes(writer: &mut csv::Writer<Vec<u8>>, comparison: &Comparison) -> csv::Result<()> {
    for change in &comparison.changes {
        let (run, models) =
            (&comparison.lines[change.to].of.results.name, comparison.lines[change.from].column.kind.key);
        let (metric, score) = (change_of_average(change.what.key()), change.of_average(comparison));
        writer.serialize(Row { run, models, split: "dev", metric: &metric, score, ..Row::default() })?;
    }
    Ok(())
}

fn add_published(writer: &mut csv::Writer<Vec<u8>>) -> csv::Result<()> {
    let first = Row { run: PUBLISHED, split: "dev", ..Row::default() };
    for (title, average, scores) in &published::TABLE_1 {
        let models = title.to_lowercase().replace('→', "-to-");
        let first = Row { models: &models, ..first };
        for (i, task) in published::TASKS.iter().enumerate() {
            let (metric, score) = (published::METRICS[i], Some(scores[i] / 100.0));
            writer.serialize(Row { task: Some(task), metric, score, ..first })?;
        }
        writer.serialize(Row { metric: AVERAGE, score: Some(average / 100.0), ..first })?;
    }
    for change in &published::CHANGES {
        let (models, metric) = (ModelKind::of_mode(change.mode).key, change_of_average(change.what.key()));
        writer.serialize(Row { models, metric: &metric, score: Some(change.points / 100.0), ..first })?;
    }
    Ok(())
}
