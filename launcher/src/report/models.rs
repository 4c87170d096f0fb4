//! Models of one kind, and what they reached: each of them, and all together.

use std::collections::BTreeMap;

use bam_cluster::config::{Breadth, Mode};
use bam_cluster::metrics::counted;
use bam_cluster::plan::ModelStage;
use bam_cluster::stage_record::Scores;
use bam_cluster::task::Metric;

use super::average;
use super::statistics::median;

/// What the models of a kind reached in one respect. Scores are shares (0.5, not 50 %), but for errors.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    /// The figure for all of them: the median, or of an average the mean of the tasks' medians.
    pub middle: Option<f64>,
    /// What each of them reached; those that are not there yet are left out.
    pub each: Vec<f64>,
}

impl Summary {
    /// The median.
    fn of(each: Vec<f64>) -> Summary {
        Summary { middle: median(&each), each }
    }

    /// The lowest and the highest of several.
    pub fn range(&self) -> Option<(f64, f64)> {
        let range = self.each.iter().fold((f64::MAX, f64::MIN), |(low, high), s| (low.min(*s), high.max(*s)));
        (self.each.len() > 1).then_some(range)
    }
}

/// All models of one kind.
#[derive(Debug)]
pub struct Column {
    /// What they have in common.
    pub kind: ModelKind,
    /// One for each trial and member of an ensemble, whether it is there yet or not: models that together learn all tasks
    /// once.
    pub samples: Vec<Sample>,
}

/// Models that together learn all tasks once.
#[derive(Debug, Default)]
pub struct Sample {
    /// Trial and member of an ensemble.
    pub number: (u64, usize),
    /// Scores on dev.
    pub scores: Scores,
    /// Scores on MNLI's mismatched dev split, if it was predicted, under the task's name.
    pub mismatched: Scores,
    /// The stage whose model learnt a task.
    pub stages: BTreeMap<String, String>,
    /// The stage whose model will have learnt a task, and is not complete.
    pub missing: BTreeMap<String, String>,
}

/// What models of a run have in common; a column of its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelKind {
    /// For people: `Single`, `Single→Multi`, …
    pub title: &'static str,
    /// For programs: `single`, `single-to-multi`, …
    pub key: &'static str,
}

impl Sample {
    fn score(&self, task: &str, metric: Metric) -> Option<f64> {
        score(&self.scores, task, metric)
    }

    fn mismatched(&self, task: &str, metric: Metric) -> Option<f64> {
        score(&self.mismatched, task, metric)
    }

    /// Whether any of its models has been judged.
    fn is_judged(&self) -> bool {
        !self.scores.is_empty()
    }
}

/// A score as it counts; none of a task that was not learnt.
fn score(scores: &Scores, task: &str, metric: Metric) -> Option<f64> {
    counted(metric, scores.get(task)?.metrics.get(metric.name()).copied()?)
}

impl Column {
    /// How many of its samples have been judged.
    pub fn judged(&self) -> usize {
        self.samples.iter().filter(|s| s.is_judged()).count()
    }

    /// The same in words; `3 of 20` where some are not there yet.
    pub fn seeds(&self) -> String {
        let (judged, all) = (self.judged(), self.samples.len());
        if judged == all { all.to_string() } else { format!("{judged} of {all}") }
    }

    /// What its models reached on a task.
    pub fn scores(&self, task: &str, metric: Metric) -> Summary {
        Summary::of(self.samples.iter().filter_map(|s| s.score(task, metric)).collect())
    }

    /// What its models reached on a task's mismatched dev split.
    pub fn mismatched(&self, task: &str, metric: Metric) -> Summary {
        Summary::of(self.samples.iter().filter_map(|s| s.mismatched(task, metric)).collect())
    }

    /// The average as the paper has it, of the tasks' medians, and that of each sample.
    pub fn average(&self, tasks: &[(String, Vec<Metric>)]) -> Summary {
        let of = |sample: &Sample| average::of_paper(tasks, |task, metric| sample.score(task, metric));
        Summary {
            middle: average::of_paper(tasks, |task, metric| self.scores(task, metric).middle),
            each: self.samples.iter().filter_map(of).collect(),
        }
    }

    /// The average as GLUE has it, of the tasks' medians, and that of each sample.
    pub fn glue_average(&self, tasks: &[(String, Vec<Metric>)]) -> Summary {
        let of = |s: &Sample| average::of_glue(tasks, |t, metric| s.score(t, metric), |t, m| s.mismatched(t, m));
        let (scores, mismatched) = (|t: &str, m| self.scores(t, m).middle, |t: &str, m| self.mismatched(t, m).middle);
        Summary {
            middle: average::of_glue(tasks, scores, mismatched),
            each: self.samples.iter().filter_map(of).collect(),
        }
    }
}

/// Models that go on from one of all tasks, on each task by itself.
pub const FINE_TUNED: ModelKind = ModelKind { title: "Fine-tuned", key: "fine-tuned" };

impl ModelKind {
    /// The kind of a mode's last models that are trained from the pretrained encoder.
    pub fn of_mode(mode: Mode) -> ModelKind {
        let key = match mode {
            Mode::Single => "single",
            Mode::Multi => "multi",
            Mode::SingleToSingle => "single-to-single",
            Mode::MultiToMulti => "multi-to-multi",
            Mode::SingleToMulti => "single-to-multi",
        };
        ModelKind { title: mode.title(), key }
    }

    /// The kind of the model that a stage trains. `teaches`: others learn from it.
    pub fn of_stage(stage: &ModelStage, mode: Mode, teaches: bool) -> ModelKind {
        match mode.teachers() {
            _ if stage.is_tuned => FINE_TUNED,
            Some(Breadth::Single) if teaches => ModelKind::of_mode(Mode::Single),
            Some(Breadth::Multi) if teaches => ModelKind::of_mode(Mode::Multi),
            _ => ModelKind::of_mode(mode),
        }
    }
}
