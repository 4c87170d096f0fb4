//! What a task is (its labels, its metrics, its files) and how its examples are read. GLUE's tasks are entries of a
//! table; a task of one's own is declared in the recipe; from here on nobody can tell them apart, but that GLUE's headers are
//! known.

mod counted;
mod error;
mod glue;
mod header;
mod read;
mod split;

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use error::DataError;
pub use glue::{NAMES as GLUE_NAMES, SUBMISSION, SubmissionFile, glue_task};
pub use read::{Count, Example, Table, TextSize, count_split, count_table, read_split, read_table};
pub use split::{Examples, Selection, Sizes, count_examples, read_examples};

/// A task to learn: what its head puts out, how it is judged, where its examples are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Unique within a recipe; names files and the head `classifiers.NAME`.
    pub name: String,
    /// Classification or regression.
    pub kind: Kind,
    /// What is computed on the dev split. The first one stands in the results table.
    pub metrics: Vec<Metric>,
    /// Whether the two texts of a pair could as well change places.
    pub unordered: bool,
    /// Where the examples come from.
    pub source: Source,
}

/// What a head puts out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One of several named classes.
    Classification {
        /// Class names; their order is the order of the logits.
        labels: Vec<String>,
        /// If not empty, the label column is a number, and the class is how many of these it reaches.
        thresholds: Vec<f64>,
    },
    /// One number, learnt on a 0–1 scale.
    Regression {
        /// The number that becomes 0.
        min: f64,
        /// The number that becomes 1.
        max: f64,
    },
}

impl Kind {
    /// Outputs of the head: the number of classes, or 1 for regression.
    pub fn outputs(&self) -> usize {
        match self {
            Kind::Classification { labels, .. } => labels.len(),
            Kind::Regression { .. } => 1,
        }
    }

    /// Names of the head's outputs, as they travel with stored logits.
    pub fn output_names(&self) -> Vec<String> {
        match self {
            Kind::Classification { labels, .. } => labels.clone(),
            Kind::Regression { .. } => vec!["score".to_owned()],
        }
    }

    /// True for classification.
    pub fn is_classification(&self) -> bool {
        matches!(self, Kind::Classification { .. })
    }
}

/// A figure computed from predictions and gold labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Share of right answers.
    Accuracy,
    /// F1 of the class at index 1.
    F1,
    /// Matthews correlation (of any number of classes).
    Matthews,
    /// Pearson correlation.
    Pearson,
    /// Spearman rank correlation, ties averaged.
    Spearman,
    /// Mean squared error, on the task's own scale; less is better.
    Mse,
}

impl Metric {
    /// The name as it is written in recipes and tables.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Accuracy => "accuracy",
            Metric::F1 => "f1",
            Metric::Matthews => "matthews",
            Metric::Pearson => "pearson",
            Metric::Spearman => "spearman",
            Metric::Mse => "mse",
        }
    }

    /// Whether it is a share of the best there is, so that percents and averages of it make sense.
    pub fn is_share(self) -> bool {
        self != Metric::Mse
    }

    /// Whether the metric judges classes (else it judges numbers).
    pub fn is_for_classes(self) -> bool {
        matches!(self, Metric::Accuracy | Metric::F1 | Metric::Matthews)
    }
}

/// Where a task's examples are, and which columns they use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// The training file.
    pub train: PathBuf,
    /// The dev split.
    pub dev: Dev,
    /// The columns, the same in both files.
    pub layout: Layout,
    /// Further splits, which are neither learnt from nor chosen by: test sets and the like.
    pub further: Vec<FurtherSplit>,
}

/// A split that models can be asked about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FurtherSplit {
    /// `test`, `test-mismatched`, `dev-mismatched`, `ax`.
    pub name: String,
    /// Where it may be; the first file that is there counts.
    pub files: Vec<PathBuf>,
    /// Its columns.
    pub layout: Layout,
    /// The file in which the layout counts columns, if that is not the split's own.
    pub counted_in: Option<PathBuf>,
}

impl FurtherSplit {
    /// The file that is there.
    pub fn file(&self) -> Option<&Path> {
        self.files.iter().find(|f| f.exists()).map(PathBuf::as_path)
    }

    /// Whether a recipe that asks for the predictions of `asked` (`dev`, `test`) means this one.
    pub fn belongs_to(&self, asked: &str) -> bool {
        let group = if self.name == "ax" { "test" } else { self.name.as_str() };
        group.split('-').next() == Some(asked)
    }
}

/// Where the dev split comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dev {
    /// A file of its own.
    File(PathBuf),
    /// A seeded share of the training file's rows, which are then not trained on.
    Fraction(f64),
}

/// How a tab-separated file is laid out. There is no quoting: a `"` is a character like any other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Layout {
    /// Whether the first line holds column names.
    pub header: bool,
    /// The (first) text.
    pub text: Column,
    /// The second text of a pair.
    pub text_b: Option<Column>,
    /// The gold label; none in test sets.
    pub label: Option<Column>,
    /// Where the row's number stands, if it is to be compared with the row's place.
    pub index: Option<Column>,
    /// What to do with a row that lacks one of these columns.
    pub malformed: Malformed,
}

/// One column of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Column {
    /// Position; 0 is the first, −1 the last.
    Index(i64),
    /// Name in the header row.
    Name(String),
}

/// What happens to a row with missing columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Malformed {
    /// It is an error.
    Refuse,
    /// It is left out, counted and reported (QQP's official file has such rows).
    Skip,
}
