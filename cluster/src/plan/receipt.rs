//! The receipt of the data order: a rolling hash of the (task, example id) of every step (invariant 3).

use serde::{Deserialize, Serialize};

use crate::digest;

/// SHA-256 chain over all batches so far. Two runs with equal receipts have seen the same examples in the same order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Receipt(String);

impl Receipt {
    /// Before the first step.
    pub fn empty() -> Self {
        Receipt(digest::of_bytes("bam receipt 1"))
    }

    /// Adds the global batch of one step: task index and example id of each example, in order.
    pub fn add(&mut self, step: u64, batch: impl Iterator<Item = (u16, u64)>) {
        let mut bytes = self.0.as_bytes().to_vec();
        bytes.extend(step.to_le_bytes());
        for (task, id) in batch {
            bytes.extend(task.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        self.0 = digest::of_bytes(bytes);
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_step_matter() {
        let with = |step, batch: &[(u16, u64)]| {
            let mut r = Receipt::empty();
            r.add(step, batch.iter().copied());
            r
        };
        assert_eq!(with(0, &[(0, 1), (1, 2)]), with(0, &[(0, 1), (1, 2)]));
        assert_ne!(with(0, &[(0, 1), (1, 2)]), with(0, &[(1, 2), (0, 1)]));
        assert_ne!(with(0, &[(0, 1)]), with(1, &[(0, 1)]));
    }
}
