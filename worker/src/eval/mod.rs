//! Running a trained model: its outputs for any examples, and its scores on dev, computed by all ranks together with
//! every example counted exactly once.

use anyhow::{Result, ensure};
use bam_cluster::config::RegressionOutput;
use bam_cluster::encoder::EncoderConfig;
use bam_cluster::plan::{sequence_cost, slice_by_cost};
use bam_cluster::task::Kind;
use tch::Tensor;

use crate::data::TokenSet;
use crate::model::{Batch, Bert, Head, Sequence};
use crate::objective::prediction;
use crate::session::Session;

/// A model that answers questions, wherever it is.
pub trait Scorer {
    /// Its shape.
    fn config(&self) -> &EncoderConfig;

    /// Its heads.
    fn heads(&self) -> &[Head];

    /// How many tokens had best be computed at once.
    fn tokens_at_once(&self) -> usize;

    /// Outputs of head `head`, without dropout: [sequences, outputs], in the order of the sequences.
    ///
    /// # Errors
    /// The device fails.
    fn outputs(&self, head: usize, sequences: &[Sequence]) -> Result<Vec<f32>>;
}

/// Tokens that a CPU computes at once: what lies between products stays in its cache.
const TOKENS_AT_ONCE: usize = 512;

impl Scorer for Bert {
    fn config(&self) -> &EncoderConfig {
        self.config()
    }

    fn heads(&self) -> &[Head] {
        self.heads()
    }

    fn tokens_at_once(&self) -> usize {
        TOKENS_AT_ONCE
    }

    fn outputs(&self, head: usize, sequences: &[Sequence]) -> Result<Vec<f32>> {
        let batch = Batch::new(sequences);
        let sorted: Vec<f32> = tch::no_grad(|| Vec::try_from(self.head(head, &self.pooled(&batch)).flatten(0, -1)))?;
        let width = self.heads()[head].outputs;
        let mut all = vec![0f32; sorted.len()];
        for (&position, row) in batch.order().iter().zip(sorted.chunks(width)) {
            all[position * width..][..width].copy_from_slice(row);
        }
        Ok(all)
    }
}

/// Examples that are computed at once, by their places in a set.
pub type EvalBatch = Vec<usize>;

/// The batches that each of `ranks` ranks computes with a model, by rank; a rank may have none. What is in a batch depends on
/// the set and the kind of device alone, so that outputs have the same bits for every number of ranks.
pub fn deal(set: &TokenSet, model: &dyn Scorer, ranks: usize) -> Vec<Vec<EvalBatch>> {
    let lengths: Vec<usize> = (0..set.len()).map(|i| set.length(i)).collect();
    let batches = batches(&lengths, model.tokens_at_once());
    let hidden = model.config().hidden_size;
    let cost = |batch: &EvalBatch| batch.iter().map(|&i| sequence_cost(lengths[i], hidden)).sum();
    let slices = slice_by_cost(&batches.iter().map(cost).collect::<Vec<u64>>(), ranks);
    slices.into_iter().map(|slice| slice.into_iter().map(|b| batches[b].clone()).collect()).collect()
}

/// Cuts examples of these lengths, the shortest first, into batches.
fn batches(lengths: &[usize], tokens_at_once: usize) -> Vec<EvalBatch> {
    let mut by_length: Vec<usize> = (0..lengths.len()).collect();
    by_length.sort_by_key(|&i| (lengths[i], i));
    let (mut batches, mut tokens) = (vec![], tokens_at_once);
    for i in by_length {
        tokens += lengths[i];
        if tokens > tokens_at_once {
            batches.push(vec![]);
            tokens = lengths[i];
        }
        if let Some(batch) = batches.last_mut() {
            batch.push(i);
        }
    }
    batches
}

/// Outputs of head `head` for the examples of `batches`, as the head gives them: [examples, outputs], batch after batch.
/// `done` hears how many examples each batch had.
pub fn outputs(
    model: &dyn Scorer,
    head: usize,
    set: &TokenSet,
    batches: &[EvalBatch],
    mut done: impl FnMut(usize) -> Result<()>,
) -> Result<Vec<f32>> {
    let mut all = vec![];
    for examples in batches {
        let sequence = |&i: &usize| Sequence { tokens: set.tokens(i), types: set.token_types(i) };
        let sequences: Vec<Sequence> = examples.iter().map(sequence).collect();
        all.append(&mut model.outputs(head, &sequences)?);
        done(examples.len())?;
    }
    Ok(all)
}

/// A model answers with something that is no number.
#[derive(Debug, thiserror::Error)]
#[error(
    "the model's outputs are not finite: its training has diverged\n  lower the learning rate or lengthen the warm-up, under another \
     name (-o name=…)"
)]
pub struct NotFinite;

/// Predictions for all of `set`, computed by all ranks: class indices, or scores on the task's own scale, in the order
/// of the set, on every rank.
///
/// # Errors
/// The model answers with something that is no number, or a collective did not come about.
pub fn predict(session: &Session, model: &dyn Scorer, head: usize, kind: &Kind, set: &TokenSet) -> Result<Vec<f32>> {
    let (world, activity) = (session.world.as_ref(), &session.activity);
    let output = session.recipe.model.regression_output;
    let shares = deal(set, model, world.size());
    let raw = outputs(model, head, set, &shares[world.rank()], |_| {
        activity.progress();
        Ok(())
    })?;
    ensure!(raw.iter().all(|r| r.is_finite()), NotFinite);
    let predictions = to_predictions(&raw, kind, output);
    let gathered = world.all_gather("predictions", bytemuck::cast_slice(&predictions))?;
    let mut all = vec![f32::NAN; set.len()];
    for (share, bytes) in shares.iter().zip(&gathered) {
        let values = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
        for (i, value) in share.iter().flatten().zip(values) {
            all[*i] = value;
        }
    }
    ensure!(all.iter().all(|p| p.is_finite()), "a dev example was predicted by no rank");
    Ok(all)
}

fn to_predictions(raw: &[f32], kind: &Kind, output: RegressionOutput) -> Vec<f32> {
    match kind {
        Kind::Classification { .. } => raw.chunks(kind.outputs()).map(|row| largest(row) as f32).collect(),
        Kind::Regression { min, max } => {
            let units = prediction(&Tensor::from_slice(raw).unsqueeze(-1), output);
            let units: Vec<f32> = Vec::try_from(units).unwrap_or_default();
            units.iter().map(|u| (min + f64::from(*u) * (max - min)) as f32).collect()
        }
    }
}

/// The first largest value's index.
fn largest(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_example_is_in_one_batch_and_batches_are_full(lengths in proptest::collection::vec(1usize..600, 0..80)) {
            let batches = batches(&lengths, TOKENS_AT_ONCE);
            let mut all = batches.concat();
            prop_assert!(all.is_sorted_by_key(|&i| lengths[i]));
            all.sort_unstable();
            prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
            let tokens = |batch: &EvalBatch| batch.iter().map(|&i| lengths[i]).sum::<usize>();
            prop_assert!(batches.iter().all(|b| tokens(b) <= TOKENS_AT_ONCE || b.len() == 1));
            for pair in batches.windows(2) {
                prop_assert!(tokens(&pair[0]) + lengths[pair[1][0]] > TOKENS_AT_ONCE);
            }
        }
    }

    #[test]
    fn an_example_that_is_too_long_is_a_batch_of_its_own() {
        assert_eq!(
            batches(&[3, TOKENS_AT_ONCE + 1, 2, TOKENS_AT_ONCE + 1], TOKENS_AT_ONCE),
            [vec![2, 0], vec![1], vec![3]]
        );
    }

    #[test]
    fn a_rank_without_examples_predicts_nothing() {
        let labels = vec!["no".to_owned(), "yes".to_owned()];
        for kind in [Kind::Regression { min: 0.0, max: 5.0 }, Kind::Classification { labels, thresholds: vec![] }] {
            assert!(to_predictions(&[], &kind, RegressionOutput::Sigmoid).is_empty());
        }
    }
}
