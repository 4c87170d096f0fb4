//! Running a trained model: its outputs for any examples, and its scores on dev, computed by all ranks together with
//! every example counted exactly once.

use anyhow::{Result, ensure};
use bam_cluster::comm::Communicator;
use bam_cluster::config::{Layout, RegressionOutput};
use bam_cluster::task::Kind;
use tch::Tensor;

use crate::data::TokenSet;
use crate::model::{Batch, Bert, Sequence};
use crate::objective::prediction;

/// At most so many tokens are computed at once.
const TOKENS_AT_ONCE: usize = 2048;

/// The examples of `set` that `rank` of `size` ranks computes: dealt out by length, so that all have about as much.
pub fn share(set: &TokenSet, rank: usize, size: usize) -> Vec<usize> {
    let mut by_length: Vec<usize> = (0..set.len()).collect();
    by_length.sort_by_key(|&i| (set.length(i), i));
    by_length.into_iter().skip(rank).step_by(size).collect()
}

/// Outputs of head `head` for the examples `which` of `set`, as the head gives them: [examples, outputs] in the order
/// of `which`. `done` hears how many examples each batch had.
pub fn outputs(
    model: &Bert,
    head: usize,
    set: &TokenSet,
    which: &[usize],
    layout: Layout,
    mut done: impl FnMut(usize) -> Result<()>,
) -> Result<Vec<f32>> {
    let width = model.heads()[head].outputs;
    let mut all = vec![0f32; which.len() * width];
    let mut start = 0;
    while start < which.len() {
        let end = end_of_batch(set, which, start);
        let sequence = |&i: &usize| Sequence { tokens: set.tokens(i), types: set.token_types(i) };
        let sequences: Vec<Sequence> = which[start..end].iter().map(sequence).collect();
        let batch = Batch::new(&sequences, layout);
        let values: Vec<f32> =
            tch::no_grad(|| Vec::try_from(model.head(head, &model.pooled(&batch, false)).flatten(0, -1)))?;
        for (&position, row) in batch.order().iter().zip(values.chunks(width)) {
            all[(start + position) * width..][..width].copy_from_slice(row);
        }
        done(end - start)?;
        start = end;
    }
    Ok(all)
}

fn end_of_batch(set: &TokenSet, which: &[usize], start: usize) -> usize {
    let mut tokens = 0;
    let fits = |&&i: &&usize| {
        tokens += set.length(i);
        tokens <= TOKENS_AT_ONCE
    };
    start + which[start..].iter().take_while(fits).count().max(1)
}

/// Predictions for all of `set`, computed by all ranks: class indices, or scores on the task's own scale, in the order
/// of the set, on every rank.
///
/// # Errors
/// The model answers with something that is no number, or a collective did not come about.
pub fn predict(
    model: &Bert,
    head: usize,
    kind: &Kind,
    set: &TokenSet,
    world: &dyn Communicator,
    layout: Layout,
    output: RegressionOutput,
) -> Result<Vec<f32>> {
    let mine = share(set, world.rank(), world.size());
    let raw = outputs(model, head, set, &mine, layout, |_| Ok(()))?;
    ensure!(raw.iter().all(|r| r.is_finite()), "the model's outputs are not finite: training has diverged");
    let predictions = to_predictions(&raw, kind, output);
    let gathered = world.all_gather("predictions", bytemuck::cast_slice(&predictions))?;
    let mut all = vec![f32::NAN; set.len()];
    for (rank, bytes) in gathered.iter().enumerate() {
        let values = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
        for (i, value) in share(set, rank, world.size()).into_iter().zip(values) {
            all[i] = value;
        }
    }
    ensure!(all.iter().all(|p| p.is_finite()), "a dev example was predicted by no rank");
    Ok(all)
}

fn to_predictions(raw: &[f32], kind: &Kind, output: RegressionOutput) -> Vec<f32> {
    match kind {
        Kind::Classification { .. } => raw.chunks(kind.outputs()).map(|row| largest(row) as f32).collect(),
        Kind::Regression { min, max } => {
            let units = prediction(&Tensor::from_slice(raw).view([-1, 1]), output);
            let units: Vec<f32> = Vec::try_from(units).unwrap_or_default();
            units.iter().map(|u| (min + f64::from(*u) * (max - min)) as f32).collect()
        }
    }
}

/// The first largest value's index.
fn largest(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}
