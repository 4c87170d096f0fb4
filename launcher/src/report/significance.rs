//! Whether kinds of models differ from Single and Multi by more than chance.

use std::collections::BTreeSet;

use anyhow::ensure;
use bam_cluster::task::Metric;
use serde_json::{Value, json};

use super::comparison::{Comparison, Line};
use super::layout::{plain_table, scale};
use super::predictions::{self, Predictions};
use super::statistics::{Paired, holm, mann_whitney, resamples};

/// Of the bootstrap's draws: the same answers have the same p in every report.
const SEED: u64 = 1;
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
    /// The tested one's figure less the other's: points, where the metric is a share. Of an error, below 0 is better.
    pub difference: f64,
    /// Whether the tested one is the better of the two.
    pub is_better: bool,
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
        match (self.is_significant(), self.is_better) {
            (true, true) => "better, more than chance",
            (true, false) => "worse, more than chance",
            (false, _) => "may be chance",
        }
    }

    /// For programs.
    pub fn to_json(&self, comparison: &Comparison) -> Value {
        let line = |line: usize| comparison.lines[line].to_json();
        json!({
            "task": self.task,
            "tested": line(self.line),
            "against": line(self.baseline),
            "difference": self.difference,
            "better": self.is_better,
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
    let mut found = vec![];
    for (baseline, against) in lines.iter().enumerate().filter(|(_, line)| line.is_baseline()) {
        for (line, tested) in lines.iter().enumerate().filter(|(_, l)| l.column.kind != against.column.kind) {
            // Single and Multi are compared once.
            if !tested.is_baseline() || against.column.kind.key == "single" {
                found.extend(compare(comparison, baseline, line)?);
            }
        }
    }
    let resamples = resamples(found.len());
    let made = |(test, answers): (Test, Option<Paired>)| match answers {
        Some(answers) => Test { p: answers.bootstrap(SEED, resamples), ..test },
        None => test,
    };
    let mut tests: Vec<Test> = found.into_iter().map(made).collect();
    let corrected = holm(&tests.iter().map(|t| t.p).collect::<Vec<_>>());
    for (test, p) in tests.iter_mut().zip(corrected) {
        test.corrected = p;
    }
    Ok(tests)
}

/// How the tests were made.
pub fn how(tests: &[Test], comparison: &Comparison) -> String {
    let pair = |test: &Test| (test.line, test.baseline);
    let pairs: BTreeSet<(usize, usize)> = tests.iter().map(pair).collect();
    let on_average = tests.iter().filter(|t| t.task.is_none()).count();
    let averages = match on_average {
        0 if comparison.tasks.iter().any(|(_, metric)| !metric.is_share()) => {
            "averages were not tested: there are none where a task's main metric is an error"
        }
        0 => "averages were not tested: that needs two trials of each, with scores on every task",
        n if n < pairs.len() => "averages: Mann–Whitney's U over trials, where there are two of each or more",
        _ => "averages: Mann–Whitney's U over trials",
    };
    format!(
        "tests, two-sided; tasks: paired bootstrap over dev examples ({} resamples) of the mean over trials; {averages}; p \
         corrected for {} tests after Holm",
        resamples(tests.len()),
        tests.len()
    )
}

/// What stands where there is nothing to test.
pub const NO_TESTS: &str = "no tests: there are no models to compare with Single or Multi";

/// A header and a row for each test.
pub fn rows(tests: &[Test], comparison: &Comparison) -> ([&'static str; 5], Vec<Vec<String>>) {
    let row = |test: &Test| {
        let metric = |task: &String| comparison.tasks.iter().find(|(t, _)| t == task).map(|(_, metric)| *metric);
        let digits = test.task.as_ref().and_then(metric).map_or(1, |metric| scale(metric).1);
        let difference = format!("{:+.digits$}", test.difference);
        let figures = [difference, format!("{:.4}", test.p), format!("{:.4}", test.corrected)];
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
    format!("\n{}\n{}", how(tests, comparison), plain_table(&header, 1, &rows))
}

/// Two lines on each task, with the answers by which p is yet to be found, and on the average.
fn compare(comparison: &Comparison, baseline: usize, line: usize) -> anyhow::Result<Vec<(Test, Option<Paired>)>> {
    let (against, tested) = (&comparison.lines[baseline], &comparison.lines[line]);
    let test = |task: Option<&String>, difference: f64, is_better: bool, p: f64| Test {
        task: task.cloned(),
        line,
        baseline,
        difference,
        is_better,
        p,
        corrected: p,
    };
    let mut tests = vec![];
    for (task, metric) in &comparison.tasks {
        if let Some(answers) = paired(against, tested, task, *metric)? {
            let difference = answers.difference();
            let is_better = if metric.is_share() { difference > 0.0 } else { difference < 0.0 };
            tests.push((test(Some(task), scale(*metric).0 * difference, is_better, 1.0), Some(answers)));
        }
    }
    let whole = comparison.main_metrics();
    let (a, b) = (against.column.average(&whole), tested.column.average(&whole));
    // One trial says nothing about how trials differ.
    if let (Some(p), true) = (mann_whitney(&a.each, &b.each), a.each.len().min(b.each.len()) > 1) {
        let difference = 100.0 * (b.middle.unwrap_or_default() - a.middle.unwrap_or_default());
        tests.push((test(None, difference, difference > 0.0, p), None));
    }
    Ok(tests)
}

/// What two lines answered on a task; none if one of them has no models there.
fn paired(against: &Line, tested: &Line, task: &str, metric: Metric) -> anyhow::Result<Option<Paired>> {
    let (a, b) = (answers(against, task)?, answers(tested, task)?);
    let (Some(first), false) = (a.first(), b.is_empty()) else { return Ok(None) };
    let same = |p: &Predictions| p.ids == first.ids && p.gold == first.gold;
    ensure!(
        a.iter().chain(&b).all(same),
        "task '{task}': {} and {} were judged on other dev examples; compare runs of the same data",
        against.of.run.path().display(),
        tested.of.run.path().display()
    );
    let labels = first.gold.clone();
    let models = |all: Vec<Predictions>| all.into_iter().map(|p| p.answers).collect::<Vec<_>>();
    Ok(Some(Paired { metric, a: models(a), b: models(b), labels }))
}

/// What all models of a line answered on a task.
fn answers(line: &Line, task: &str) -> anyhow::Result<Vec<Predictions>> {
    let Some(kind) = line.of.kind_of(task) else { return Ok(vec![]) };
    let stages = line.column.samples.iter().filter_map(|s| s.stages.get(task));
    stages.map(|stage| predictions::read(&line.of.run.predictions(stage, task, "dev"), &kind)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::JudgedRun;
    use super::super::fabricated::{self, everywhere};
    use super::*;

    /// A run of one regression, whose models answered so; each score is that of its answers.
    fn run(at: &std::path::Path, mode: &str, metric: Metric, trials: &[[f32; 4]]) -> JudgedRun {
        let text = format!(
            "name: x\nmode: {mode}\ntrials: {}\nmodel: {{ path: /m }}\ndata: {{ tasks: [{{ name: dose, train: t.tsv, dev: d.tsv, \
             text: a, label: b, type: regression, range: [0, 1], metric: {} }}] }}\n",
            trials.len(),
            metric.name()
        );
        let gold = [0.0, 0.3, 0.6, 0.9];
        let run = fabricated::run(&at.join(mode), &text, |i, _| {
            Some(everywhere(bam_cluster::metrics::value(metric, &trials[i - 1], &gold)))
        });
        let trains = run.plan.stages.iter().filter(|stage| stage.model().is_some());
        for (stage, answers) in trains.zip(trials) {
            let rows: Vec<(f32, f32)> = answers.iter().copied().zip(gold).collect();
            fabricated::answer(&run, &stage.name, "dose", &rows);
        }
        run
    }

    #[test]
    fn of_an_error_less_is_better() {
        let dir = tempfile::tempdir().unwrap();
        let runs = [
            run(dir.path(), "single", Metric::Mse, &[[0.1, 0.4, 0.7, 1.0]]),
            run(dir.path(), "multi", Metric::Mse, &[[0.0, 0.3, 0.6, 0.9]]),
        ];
        let comparison = Comparison::of(&runs);
        let made = tests(&comparison).unwrap();
        let [test] = &made[..] else { panic!("{made:?}") };
        assert!((test.difference + 0.01).abs() < 1e-6 && test.is_better, "{test:?}");
        assert_eq!(rows(&made, &comparison).1[0][1], "-0.010");
        assert_eq!(test.to_json(&comparison)["better"], true);
        let verdict = |corrected, is_better| Test { corrected, is_better, ..test.clone() }.verdict();
        assert_eq!(
            (verdict(0.01, true), verdict(0.01, false)),
            ("better, more than chance", "worse, more than chance")
        );
        assert_eq!(verdict(0.2, true), "may be chance");
        assert!(how(&made, &comparison).contains("averages were not tested: there are none"));
    }

    #[test]
    fn a_model_that_collapsed_counts_as_0_in_the_difference_as_in_the_bootstrap() {
        let dir = tempfile::tempdir().unwrap();
        let good = [0.0, 0.3, 0.6, 0.9];
        let runs = [
            run(dir.path(), "single", Metric::Spearman, &[good, [0.5; 4]]),
            run(dir.path(), "multi", Metric::Spearman, &[good, good]),
        ];
        let comparison = Comparison::of(&runs);
        let made = tests(&comparison).unwrap();
        let [on_task, on_average] = &made[..] else { panic!("{made:?}") };
        assert!((on_task.difference - 50.0).abs() < 1e-9 && on_task.is_better, "{on_task:?}");
        assert!(on_average.task.is_none() && (on_average.difference - 50.0).abs() < 1e-9, "{on_average:?}");
        assert!(how(&made, &comparison).contains("averages: Mann–Whitney's U over trials; p corrected for 2 tests"));
    }

    #[test]
    fn what_was_not_tested_is_not_explained() {
        let dir = tempfile::tempdir().unwrap();
        let good = [0.0, 0.3, 0.6, 0.9];
        let runs = [
            run(dir.path(), "single", Metric::Pearson, &[good, good]),
            run(dir.path(), "multi", Metric::Pearson, &[good]),
        ];
        let comparison = Comparison::of(&runs);
        let how = how(&tests(&comparison).unwrap(), &comparison);
        assert!(
            how.contains("averages were not tested: that needs two trials of each") && !how.contains("Mann"),
            "{how}"
        );
    }
}
