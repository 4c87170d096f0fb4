//! What the training loop needs of a model in training, wherever it is: in the memory of a host's processor, or on a GPU.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use anyhow::Result;
use bam_cluster::comm::Communicator;

use super::clock::Clock;
use super::data::Item;
use super::step::Objective;
use crate::eval::Scorer;
use crate::gradient::{Reduced, Tail};
use crate::model::ParameterSpec;

/// One of the parts into which a global batch is cut, whatever rank it is for, in micro-batches.
pub struct Shard<'a> {
    /// Its number.
    pub number: usize,
    /// What is computed at once.
    pub micro_batches: Vec<Vec<Item<'a>>>,
}

/// Values that a checkpoint holds, flat: parameters, first and second moments.
pub type Tensors<'a> = [Cow<'a, [f32]>; 3];

/// A model in training, with its optimizer.
pub trait Learner {
    /// Into how many shards a global batch is cut.
    fn shards(&self) -> usize;

    /// Those of this rank.
    fn own(&self) -> Range<usize>;

    /// At most so many tokens may be in a micro-batch of more than one example; none: as many as there are.
    fn tokens_at_once(&self) -> Option<usize>;

    /// Differentiates Σ weight·loss / divisor over one of this rank's shards, which come in order.
    ///
    /// # Errors
    /// The device fails.
    fn differentiate(&mut self, shard: &Shard, objective: &Objective, lambda: f64, clock: &mut Clock) -> Result<()>;

    /// Waits for all ranks, whose batches have other words, and of which any may wish to stop.
    ///
    /// # Errors
    /// The collective did not come about.
    fn agree(&mut self, world: &dyn Communicator, stop: bool, clock: &mut Clock) -> Result<()>;

    /// Sums gradients and tails over all shards.
    ///
    /// # Errors
    /// The collective did not come about.
    fn reduce(&mut self, world: &dyn Communicator) -> Result<(Tail, Reduced)>;

    /// Task and example (counted within the task) of this rank's losses in this step that are not finite.
    fn diverged(&self) -> Vec<(usize, usize)>;

    /// Step number `step` (from 0) with gradients `scale`·gradients.
    ///
    /// # Errors
    /// A collective did not come about, or the device fails.
    fn update(&mut self, scale: f64, rate: f64, step: u64) -> Result<()>;

    /// What each parameter is, and where it lies in the flat buffers.
    fn shape(&self) -> (&[ParameterSpec], &[Range<usize>]);

    /// What a checkpoint holds.
    fn tensors(&mut self) -> Tensors<'_>;

    /// All parameters, flat.
    fn values(&mut self) -> Cow<'_, [f32]>;

    /// Reads what a checkpoint holds; all ranks do it together.
    ///
    /// # Errors
    /// A file is damaged or of another model.
    fn restore(&mut self, model: &Path, optimizer: &Path) -> Result<()>;

    /// The model, to be asked.
    fn scorer(&self) -> &dyn Scorer;

    /// The most memory of the device that was in use at one time, if it has memory of its own.
    fn peak_memory(&self) -> Option<u64>;
}
