//! One entry of `data.tasks`: the name of a GLUE task, or the declaration of a task of one's own.

use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::task::{Column, Dev, FurtherSplit, GLUE_NAMES, Kind, Layout, Malformed, Metric, Source, Task};

/// An entry of `data.tasks`.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum TaskEntry {
    /// A GLUE task by its name.
    Glue(#[schemars(extend("enum" = GLUE_NAMES))] String),
    /// A task of one's own.
    Own(OwnTask),
}

/// A task of one's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OwnTask {
    /// Lower-case letters, digits, `-` and `_`.
    pub name: String,
    /// The training file: tab-separated, UTF-8, no quoting.
    pub train: PathBuf,
    /// The dev file; or else `dev_fraction`.
    #[serde(default)]
    pub dev: Option<PathBuf>,
    /// Share of the training file's rows (a seeded choice) to judge on.
    #[serde(default)]
    pub dev_fraction: Option<f64>,
    /// The test file, without gold labels; for predictions.
    #[serde(default)]
    pub test: Option<PathBuf>,
    /// Column of the (first) text in the test file, if it is another than in the training file: position or name. If it is
    /// left out, a position in `text` is one of the training file; in the test file it is the column of the same name.
    /// Without `header` the test file then needs as many columns as the training file, labels' place included.
    #[serde(default)]
    pub test_text: Option<Column>,
    /// Column of the second text in the test file; goes with `test_text`.
    #[serde(default)]
    pub test_text_b: Option<Column>,
    /// Whether the files start with a row of column names.
    #[serde(default = "yes")]
    pub header: bool,
    /// Column of the (first) text: position from 0 (negative: from the end) or name.
    pub text: Column,
    /// Column of the second text of a pair.
    #[serde(default)]
    pub text_b: Option<Column>,
    /// Whether the two texts of a pair could as well change places (for `data.double_unordered`).
    #[serde(default)]
    pub unordered: bool,
    /// Column of the gold label.
    pub label: Column,
    /// Classification or regression.
    #[serde(rename = "type")]
    pub kind: TaskType,
    /// Classification: the class names, as they stand in the file (or, with thresholds, as you wish to call them).
    #[serde(default)]
    pub labels: Vec<String>,
    /// Classification of a numeric column: one threshold fewer than labels, ascending.
    #[serde(default)]
    pub thresholds: Vec<f64>,
    /// Regression: smallest and largest score.
    #[serde(default)]
    pub range: Option<[f64; 2]>,
    /// The figure in the results table. Default: accuracy, or spearman.
    #[serde(default)]
    pub metric: Option<Metric>,
}

/// What a task's head puts out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TaskType {
    /// One of `labels`.
    Classification,
    /// A number in `range`.
    Regression,
}

impl OwnTask {
    /// The metric named, or the usual one for this type.
    pub fn metric(&self) -> Metric {
        self.metric.unwrap_or(match self.kind {
            TaskType::Classification => Metric::Accuracy,
            TaskType::Regression => Metric::Spearman,
        })
    }

    /// The task in full. Sound only for an entry that passed validation.
    pub(super) fn resolve(&self) -> Task {
        let kind = match self.kind {
            TaskType::Classification => {
                Kind::Classification { labels: self.labels.clone(), thresholds: self.thresholds.clone() }
            }
            TaskType::Regression => {
                let [min, max] = self.range.unwrap_or([0.0, 1.0]);
                Kind::Regression { min, max }
            }
        };
        let dev = match (&self.dev, self.dev_fraction) {
            (Some(file), _) => Dev::File(file.clone()),
            (None, fraction) => Dev::Fraction(fraction.unwrap_or(0.0)),
        };
        let layout = Layout {
            header: self.header,
            text: self.text.clone(),
            text_b: self.text_b.clone(),
            label: Some(self.label.clone()),
            index: None,
            malformed: Malformed::Refuse,
        };
        let test = |file: &PathBuf| FurtherSplit {
            name: "test".to_owned(),
            files: vec![file.clone()],
            layout: Layout {
                text: self.test_text.as_ref().unwrap_or(&self.text).clone(),
                text_b: self.test_text_b.as_ref().or(self.text_b.as_ref()).cloned(),
                label: None,
                ..layout.clone()
            },
            counted_in: self.test_text.is_none().then(|| self.train.clone()),
        };
        let further = self.test.iter().map(test).collect();
        let source = Source { train: self.train.clone(), dev, layout, further };
        Task { name: self.name.clone(), kind, metrics: vec![self.metric()], unordered: self.unordered, source }
    }
}

impl TaskEntry {
    /// The task's name.
    pub fn name(&self) -> &str {
        match self {
            TaskEntry::Glue(name) => name,
            TaskEntry::Own(own) => &own.name,
        }
    }
}

fn yes() -> bool {
    true
}

// Written by hand because serde's untagged enums lose the message and the place of what is wrong inside them.
impl<'de> Deserialize<'de> for TaskEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntryVisitor;
        impl<'de> Visitor<'de> for EntryVisitor {
            type Value = TaskEntry;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("the name of a GLUE task, or the declaration of a task (name, train, text, label, type, …)")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<TaskEntry, E> {
                Ok(TaskEntry::Glue(name.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<TaskEntry, A::Error> {
                OwnTask::deserialize(MapAccessDeserializer::new(map)).map(TaskEntry::Own)
            }
        }
        deserializer.deserialize_any(EntryVisitor)
    }
}
