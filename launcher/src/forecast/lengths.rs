//! How many tokens texts make, and how many different ones, without a tokenizer: rules of thumb for English in BERT's word
//! pieces.

use bam_cluster::task::{Sizes, Task};
use serde::Serialize;

/// Bytes of text for one word piece. On the training files of GLUE's eight tasks, the means that follow from it are between
/// 4 % below and 11 % above the tokenizer's.
const BYTES_A_TOKEN: f64 = 4.5;
/// So many different ones are among n tokens: 3.6·n^0.7 (Heaps' law), as far as the vocabulary has so many. On mixed batches of
/// GLUE, of 32 to 8,192 examples, this is within 16 % of what is found.
const HEAPS: (f64, f64) = (3.6, 0.7);

/// How long a task's examples are, in tokens with [CLS] and [SEP].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Lengths {
    /// The mean.
    pub mean: usize,
    /// The longest.
    pub longest: usize,
}

impl Lengths {
    /// Of a task whose files were looked at, cut to so many tokens.
    pub fn of(task: &Task, sizes: &Sizes, max_length: usize) -> Lengths {
        let special = if task.source.layout.text_b.is_some() { 3 } else { 2 };
        let tokens = |bytes: usize| (special + (bytes as f64 / BYTES_A_TOKEN).round() as usize).min(max_length);
        Lengths { mean: tokens(sizes.mean_bytes), longest: tokens(sizes.longest_bytes) }
    }
}

/// How many different tokens are among so many, of a vocabulary.
pub fn different(tokens: f64, vocabulary: usize) -> f64 {
    let all = vocabulary as f64;
    all * (1.0 - (-HEAPS.0 * tokens.powf(HEAPS.1) / all).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counted with bert-base-uncased's vocabulary in batches that BAM would draw from GLUE.
    #[test]
    fn different_tokens_are_about_as_many_as_were_counted() {
        for (tokens, found) in
            [(919.0, 376.0), (3_701.0, 1_134.0), (15_007.0, 3_308.0), (59_980.0, 7_656.0), (240_898.0, 14_620.0)]
        {
            let share = different(tokens, 30_522) / found;
            assert!((0.84..1.16).contains(&share), "{tokens}: {share}");
        }
        assert!(different(1e12, 30_522) <= 30_522.0);
    }
}
