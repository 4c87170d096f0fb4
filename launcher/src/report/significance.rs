//! Whether kinds of models differ from Single and Multi by more than chance.

use anyhow::ensure;
use bam_cluster::task::Metric;
use serde_json::{Value, json};

use super::comparison::{Comparison, Line, scale};
use super::layout::plain_table;
use super::predictions::{self, Predictions};
use super::results::Column;
use super::statistics::{RESAMPLES, bootstrap, holm, mann_whitney, median};

/// Below this p a difference is said to be more than chance.
const LEVEL: f64 = 0.05;

/// One comparison of two kinds of models.
#[derive(Debug, Clone, PartialEq)]
pub struct Test {
    /// On which task; none: on the average.
    pub task: Option<String>,
    /// The line that is tested.
    pub line: usize,
    /// The line of Single or Multi that it is tested against.
    pub baseline: usize,
    /// By how much the tested one is better: points, where the metric is a share.
    pub difference: f64,
    /// Two-sided.
    pub p: f64,
    /// The same, corrected for all tests together.
    pub corrected: f64,
}

impl Test {
    /// Whether the difference is more than chance.
    pub fn is_significant(&self) -> bool {
        self.corrected < LEVEL
    }

    /// What is compared with what.
    pub fn what(&self, comparison: &Comparison) -> String {
        let task = self.task.as_deref().unwrap_or("average");
        let label = |line: usize| comparison.lines[line].label.as_str();
        format!("{task}: {} against {}", label(self.line), label(self.baseline))
    }

    /// The verdict in words.
    pub fn verdict(&self) -> &'static str {
        if self.is_significant() { "more than chance" } else { "may be chance" }
    }

    /// For programs.
    pub fn to_json(&self, comparison: &Comparison) -> Value {
        let line = |line: usize| {
            let Line { of, column, .. } = &comparison.lines[line];
            json!({ "run": of.results.name, "models": column.kind.key })
        };
        json!({
            "task": self.task,
            "tested": line(self.line),
            "against": line(self.baseline),
            "difference": self.difference,
            "p": self.p,
            "p_holm": self.corrected,
        })
    }
}

/// Tests every kind of models against Single and Multi: on each task by the bootstrap over dev examples, on the average
/// by Mann–Whitney's U over trials; all p corrected together.
///
/// # Errors
/// Predictions cannot be read, or are of other dev examples.
pub fn tests(comparison: &Comparison) -> anyhow::Result<Vec<Test>> {
    let lines = &comparison.lines;
    let mut tests = vec![];
    for (baseline, against) in lines.iter().enumerate().filter(|(_, line)| line.is_baseline()) {
        for (line, tested) in lines.iter().enumerate().filter(|(_, l)| l.column.kind != against.column.kind) {
            // Single and Multi are compared once.
            if !tested.is_baseline() || against.column.kind.key == "single" {
                tests.extend(compare(comparison, baseline, line)?);
            }
        }
    }
    let corrected = holm(&tests.iter().map(|t| t.p).collect::<Vec<_>>());
    for (test, p) in tests.iter_mut().zip(corrected) {
        test.corrected = p;
    }
    Ok(tests)
}

/// How the tests were made.
pub fn how(tests: usize) -> String {
    format!(
        "tests, two-sided; tasks: paired bootstrap over dev examples ({RESAMPLES} resamples) of the mean over trials; \
         averages: Mann–Whitney's U over trials; p corrected for {tests} tests after Holm"
    )
}

/// What stands where there is nothing to test.
pub const NO_TESTS: &str = "no tests: there are no models to compare with Single or Multi";

/// A header and a row for each test.
pub fn rows(tests: &[Test], comparison: &Comparison) -> ([&'static str; 5], Vec<Vec<String>>) {
    let row = |test: &Test| {
        let figures = [format!("{:+.1}", test.difference), format!("{:.4}", test.p), format!("{:.4}", test.corrected)];
        [test.what(comparison)].into_iter().chain(figures).chain([test.verdict().to_owned()]).collect()
    };
    (["Comparison", "Difference", "p", "p (Holm)", ""], tests.iter().map(row).collect())
}

/// The tests as a terminal shows them.
pub fn render(tests: &[Test], comparison: &Comparison) -> String {
    if tests.is_empty() {
        return format!("\n{NO_TESTS}\n");
    }
    let (header, rows) = rows(tests, comparison);
    format!("\n{}\n{}", how(tests.len()), plain_table(&header, 1, &rows))
}

fn compare(comparison: &Comparison, baseline: usize, line: usize) -> anyhow::Result<Vec<Test>> {
    let (against, tested) = (&comparison.lines[baseline], &comparison.lines[line]);
    let test = |task: Option<&String>, difference: f64, p: f64| Test {
        task: task.cloned(),
        line,
        baseline,
        difference,
        p,
        corrected: p,
    };
    let mut tests = vec![];
    for (task, metric) in &comparison.tasks {
        if let Some((difference, p)) = compare_on(against, tested, task, *metric)? {
            tests.push(test(Some(task), difference, p));
        }
    }
    let whole = comparison.main_metrics();
    let (a, b) = (against.column.averages(&whole), tested.column.averages(&whole));
    // One trial says nothing about how trials differ.
    if let (Some(p), true) = (mann_whitney(&a, &b), a.len().min(b.len()) > 1) {
        let difference = 100.0 * (median(&b).unwrap_or_default() - median(&a).unwrap_or_default());
        tests.push(test(None, difference, p));
    }
    Ok(tests)
}

/// Difference and p on one task; none where one of them has no models of it.
fn compare_on(against: &Line, tested: &Line, task: &str, metric: Metric) -> anyhow::Result<Option<(f64, f64)>> {
    let (a, b) = (answers(against, task)?, answers(tested, task)?);
    let (Some(first), Some(_)) = (a.first(), b.first()) else { return Ok(None) };
    let same = a.iter().chain(&b).all(|p| p.ids == first.ids && p.gold == first.gold);
    ensure!(
        same,
        "task '{task}': {} and {} were judged on other dev examples; compare runs of the same data",
        against.of.run.path().display(),
        tested.of.run.path().display()
    );
    let models = |all: &[Predictions]| all.iter().map(|p| p.answers.clone()).collect::<Vec<_>>();
    let p = bootstrap(metric, &models(&a), &models(&b), &first.gold, 1);
    let mean = |column: &Column| {
        let scores = column.scores(task, metric);
        scores.iter().sum::<f64>() / scores.len().max(1) as f64
    };
    Ok(Some((scale(metric).0 * (mean(tested.column) - mean(against.column)), p)))
}

/// What all models of a line answered on a task.
fn answers(line: &Line, task: &str) -> anyhow::Result<Vec<Predictions>> {
    let Some(kind) = line.of.kind_of(task) else { return Ok(vec![]) };
    let stages = line.column.samples.iter().filter_map(|s| s.stages.get(task));
    stages.map(|stage| predictions::read(&line.of.run.predictions(stage, task, "dev"), &kind)).collect()
}
