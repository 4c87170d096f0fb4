//! The numbers that the BAM paper published (Clark et al. 2019): GLUE's dev sets, BERT-Large, medians of at least 20
//! trials, in percent.

use bam_cluster::config::Mode;
use serde_json::{Map, Value, json};

use super::changes::Alteration;

/// The tasks of the columns.
pub const TASKS: [&str; 8] = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"];

/// How papers write their names.
pub const TITLES: [&str; 8] = ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE"];

/// The metric of each column.
pub const METRICS: [&str; 8] =
    ["matthews", "accuracy", "accuracy", "spearman", "accuracy", "accuracy", "accuracy", "accuracy"];

/// Table 1: model, average, and one score for each task.
pub const TABLE_1: [(&str, f64, [f64; 8]); 5] = [
    ("Single", 84.0, [60.6, 93.2, 88.0, 90.0, 91.3, 86.6, 92.3, 70.4]),
    ("Multi", 85.5, [60.3, 93.3, 88.0, 89.8, 91.4, 86.5, 92.2, 82.1]),
    ("Single→Single", 84.3, [61.7, 93.2, 88.7, 90.0, 91.4, 86.8, 92.5, 70.0]),
    ("Multi→Multi", 85.6, [60.9, 93.5, 88.1, 89.8, 91.5, 86.7, 92.3, 82.0]),
    ("Single→Multi", 86.0, [61.8, 93.6, 89.3, 89.7, 91.6, 87.0, 92.5, 82.8]),
];

/// By how much something changes the average of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PublishedChange {
    /// How the model is trained otherwise.
    pub mode: Mode,
    /// What is done to it, or left out.
    pub what: Alteration,
    /// Points of the average.
    pub points: f64,
}

impl PublishedChange {
    /// The model, and what is done to it.
    pub fn label(&self) -> String {
        format!("{}, {}", self.mode.title(), self.what.title())
    }
}

/// Table 3, what fine-tuning on each task adds to a model's average; and table 4, what leaving a part out adds to that of
/// Single→Multi.
pub const CHANGES: [PublishedChange; 6] = [
    PublishedChange { mode: Mode::Multi, what: Alteration::FineTuning, points: 0.3 },
    PublishedChange { mode: Mode::SingleToMulti, what: Alteration::FineTuning, points: 0.1 },
    PublishedChange { mode: Mode::SingleToMulti, what: Alteration::NoLayerwiseRates, points: -0.3 },
    PublishedChange { mode: Mode::SingleToMulti, what: Alteration::NoTaskSampling, points: -0.4 },
    PublishedChange { mode: Mode::SingleToMulti, what: Alteration::TeachersAlone, points: -0.5 },
    PublishedChange { mode: Mode::SingleToMulti, what: Alteration::NoAnnealing, points: -0.3 },
];

/// All of them for programs. Scores are shares.
pub fn to_json() -> Value {
    let model = |(model, average, scores): &(&str, f64, [f64; 8])| {
        let tasks: Map<String, Value> =
            TASKS.iter().zip(scores).map(|(t, s)| ((*t).to_owned(), json!(s / 100.0))).collect();
        json!({ "models": model, "average": average / 100.0, "tasks": tasks })
    };
    let (tuned, ablated): (Vec<&PublishedChange>, Vec<&PublishedChange>) =
        CHANGES.iter().partition(|c| c.what == Alteration::FineTuning);
    let share = |change: &PublishedChange| json!(change.points / 100.0);
    json!({
        "table_1": TABLE_1.iter().map(model).collect::<Vec<_>>(),
        "table_3": tuned.into_iter().map(|c| (c.label(), share(c))).collect::<Map<_, _>>(),
        "table_4": ablated.into_iter().map(|c| (c.what.title().to_owned(), share(c))).collect::<Map<_, _>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_averages_are_those_of_the_columns() {
        for (model, average, scores) in TABLE_1 {
            let mean = scores.iter().sum::<f64>() / scores.len() as f64;
            // Of rounded figures.
            assert!((mean - average).abs() < 0.11, "{model}: {mean} instead of {average}");
        }
    }
}
