//! Training examples in memory: tokens, gold labels and the teachers' predictions, by task.

use bam_cluster::task::Kind;

use crate::data::TokenSet;
use crate::model::{DropoutKey, Sequence};

/// One task's training examples.
pub struct TrainTask {
    /// What its head puts out.
    pub kind: Kind,
    /// Tokens, labels and ids.
    pub set: TokenSet,
    /// The teachers' predictions, [examples, outputs] in the order of `set`.
    pub teacher: Option<Vec<f32>>,
}

/// One example as the loss needs it.
#[derive(Debug, Clone, Copy)]
pub struct Item<'a> {
    /// Index of its task.
    pub task: usize,
    /// Its place among the examples of its task.
    pub example: usize,
    /// Its tokens.
    pub sequence: Sequence<'a>,
    /// Class index, or score on the 0–1 scale.
    pub gold: f32,
    /// The teachers' predictions.
    pub teacher: Option<&'a [f32]>,
    /// What its dropout masks follow from.
    pub dropout: DropoutKey,
}

impl TrainTask {
    /// One example; `task` is this task's index.
    pub fn item(&self, task: usize, example: usize, dropout: DropoutKey) -> Item<'_> {
        let outputs = self.kind.outputs();
        Item {
            task,
            example,
            sequence: Sequence { tokens: self.set.tokens(example), types: self.set.token_types(example) },
            gold: unit_label(&self.kind, self.set.labels[example]),
            teacher: self.teacher.as_ref().map(|t| &t[example * outputs..(example + 1) * outputs]),
            dropout,
        }
    }
}

/// A label as the loss sees it: a score is brought to the 0–1 scale.
fn unit_label(kind: &Kind, label: f32) -> f32 {
    match kind {
        Kind::Classification { .. } => label,
        Kind::Regression { min, max } => ((f64::from(label) - min) / (max - min)) as f32,
    }
}
