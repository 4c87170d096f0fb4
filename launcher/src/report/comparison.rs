//! Several kinds of models, of one run or more, side by side: one line each, one column for each task, as in the paper's
//! tables; and whether their differences are more than chance.

use std::collections::BTreeMap;

use anyhow::ensure;
use bam_cluster::run_dir::RunDir;
use bam_cluster::task::{Kind, Metric};

use super::layout::plain_table;
use super::predictions::{self, Predictions};
use super::published;
use super::results::{Column, Results};
use super::statistics::{RESAMPLES, bootstrap, holm, mann_whitney, median};
use super::table::{DASH, cell};

/// Below this p a difference is said to be more than chance.
const LEVEL: f64 = 0.05;

/// A run with its results.
#[derive(Debug)]
pub struct Finished {
    /// Where it is.
    pub run: RunDir,
    /// What its tasks' heads put out.
    pub kinds: BTreeMap<String, Kind>,
    /// What was reached.
    pub results: Results,
}

/// One line: a kind of models of one run.
#[derive(Clone, Copy)]
struct Line<'a> {
    of: &'a Finished,
    column: &'a Column,
}

impl Line<'_> {
    fn label(&self, all: &[Line]) -> String {
        let title = self.column.kind.title;
        let alike = all.iter().filter(|l| l.column.kind == self.column.kind).count();
        if alike > 1 { format!("{title} ({})", self.of.results.name) } else { title.to_owned() }
    }

    fn is_baseline(&self) -> bool {
        ["single", "multi"].contains(&self.column.kind.key)
    }
}

fn lines(runs: &[Finished]) -> Vec<Line<'_>> {
    runs.iter().flat_map(|of| of.results.columns.iter().map(move |column| Line { of, column })).collect()
}

/// Every task of the runs with its main metric, in the order in which they first occur.
fn tasks(runs: &[Finished]) -> Vec<(String, Metric)> {
    let mut all: Vec<(String, Metric)> = vec![];
    for (task, metrics) in runs.iter().flat_map(|r| &r.results.tasks) {
        if let (Some(metric), false) = (metrics.first(), all.iter().any(|(t, _)| t == task)) {
            all.push((task.clone(), *metric));
        }
    }
    all
}

/// The table: models, with how many seeds, their average and their main scores, in percent.
pub fn render(runs: &[Finished], with_published: bool) -> String {
    let (lines, tasks) = (lines(runs), tasks(runs));
    let whole: Vec<(String, Vec<Metric>)> = tasks.iter().map(|(t, m)| (t.clone(), vec![*m])).collect();
    let mut rows: Vec<Vec<String>> = lines
        .iter()
        .map(|line| {
            let scores = |(task, metric): &(String, Metric)| {
                let (factor, digits) = if metric.is_share() { (100.0, 1) } else { (1.0, 3) };
                cell(&line.column.scores(task, *metric), factor, digits)
            };
            let head = [line.label(&lines), line.column.samples.len().to_string()];
            let average = cell(&line.column.averages(&whole), 100.0, 1);
            head.into_iter().chain([average]).chain(tasks.iter().map(scores)).collect()
        })
        .collect();
    if with_published {
        for (model, average, scores) in published::TABLE_1 {
            let of_task = |(task, _): &(String, Metric)| {
                let column = published::TASKS.iter().position(|t| t == task);
                column.map_or(DASH.to_owned(), |i| format!("{:.1}", scores[i]))
            };
            let head = [format!("{model}, published"), "≥ 20".to_owned(), format!("{average:.1}")];
            rows.push(head.into_iter().chain(tasks.iter().map(of_task)).collect());
        }
    }
    let header: Vec<&str> =
        ["Models", "Seeds", "Average"].into_iter().chain(tasks.iter().map(|(t, _)| t.as_str())).collect();
    let mut text = format!(
        "\nresults on dev, in percent: medians over models with different seeds\n{}",
        plain_table(&header, 1, &rows)
    );
    if with_published {
        text += "published: BERT-Large; the average is that of all eight tasks (BAM, table 1)\n";
        for (what, table) in [("table 3", &published::TABLE_3[..]), ("table 4", &published::TABLE_4[..])] {
            let figures = table.iter().map(|(name, change)| format!("{name} {change:+.1}"));
            text += &format!(
                "published changes of the average (BAM, {what}): {}\n",
                figures.collect::<Vec<_>>().join("; ")
            );
        }
    }
    text
}

/// One comparison of two kinds of models.
struct Test {
    what: String,
    difference: f64,
    p: f64,
}

/// Tests every kind of models against Single and Multi: on each task by the bootstrap over dev examples, on the average
/// by Mann–Whitney's U over trials; all p corrected together.
///
/// # Errors
/// Predictions cannot be read, or are of other dev examples.
pub fn tests(runs: &[Finished]) -> anyhow::Result<String> {
    let (lines, tasks) = (lines(runs), tasks(runs));
    let mut tests = vec![];
    for baseline in lines.iter().filter(|l| l.is_baseline()) {
        for line in lines.iter().filter(|l| l.column.kind != baseline.column.kind) {
            // Single and Multi are compared once.
            if line.is_baseline() && baseline.column.kind.key != "single" {
                continue;
            }
            let pair = format!("{} against {}", line.label(&lines), baseline.label(&lines));
            tests.extend(compare(baseline, line, &tasks, &pair)?);
        }
    }
    if tests.is_empty() {
        return Ok("\nno tests: there are no models to compare with Single or Multi\n".to_owned());
    }
    let corrected = holm(&tests.iter().map(|t| t.p).collect::<Vec<_>>());
    let row = |(test, p): (&Test, &f64)| {
        let verdict = if *p < LEVEL { "more than chance" } else { "may be chance" };
        [
            test.what.clone(),
            format!("{:+.1}", test.difference),
            format!("{:.4}", test.p),
            format!("{p:.4}"),
            verdict.to_owned(),
        ]
        .to_vec()
    };
    let rows: Vec<Vec<String>> = tests.iter().zip(&corrected).map(row).collect();
    let header = ["Comparison", "Difference", "p", "p (Holm)", ""];
    Ok(format!(
        "\ntests, two-sided; tasks: paired bootstrap over dev examples ({RESAMPLES} resamples) of the mean over trials; \
         averages: Mann–Whitney's U over trials; p corrected for {} tests after Holm\n{}",
        rows.len(),
        plain_table(&header, 1, &rows)
    ))
}

fn compare(baseline: &Line, line: &Line, tasks: &[(String, Metric)], pair: &str) -> anyhow::Result<Vec<Test>> {
    let mut tests = vec![];
    for (task, metric) in tasks {
        let (a, b) = (answers(baseline, task)?, answers(line, task)?);
        let (Some(first), Some(_)) = (a.first(), b.first()) else { continue };
        let same = a.iter().chain(&b).all(|p| p.ids == first.ids && p.gold == first.gold);
        ensure!(
            same,
            "task '{task}': {} and {} were judged on other dev examples; compare runs of the same data",
            baseline.of.run.path().display(),
            line.of.run.path().display()
        );
        let models = |all: &[Predictions]| all.iter().map(|p| p.answers.clone()).collect::<Vec<_>>();
        let p = bootstrap(*metric, &models(&a), &models(&b), &first.gold, 1);
        let mean = |column: &Column| {
            let scores = column.scores(task, *metric);
            scores.iter().sum::<f64>() / scores.len().max(1) as f64
        };
        let factor = if metric.is_share() { 100.0 } else { 1.0 };
        let difference = factor * (mean(line.column) - mean(baseline.column));
        tests.push(Test { what: format!("{task}: {pair}"), difference, p });
    }
    let whole: Vec<(String, Vec<Metric>)> = tasks.iter().map(|(t, m)| (t.clone(), vec![*m])).collect();
    let (a, b) = (baseline.column.averages(&whole), line.column.averages(&whole));
    // One trial says nothing about how trials differ.
    if let (Some(p), true) = (mann_whitney(&a, &b), a.len().min(b.len()) > 1) {
        let difference = 100.0 * (median(&b).unwrap_or_default() - median(&a).unwrap_or_default());
        tests.push(Test { what: format!("average: {pair}"), difference, p });
    }
    Ok(tests)
}

/// What all models of a line answered on a task.
fn answers(line: &Line, task: &str) -> anyhow::Result<Vec<Predictions>> {
    let Some(kind) = line.of.kinds.get(task) else { return Ok(vec![]) };
    let stages = line.column.samples.iter().filter_map(|s| s.stages.get(task));
    stages.map(|stage| predictions::read(&line.of.run.predictions(stage, task, "dev"), kind)).collect()
}
