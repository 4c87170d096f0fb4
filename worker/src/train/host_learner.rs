//! A model in training in the memory of a host: its ranks share parameters and moments, and each updates its part.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use anyhow::Result;
use bam_cluster::comm::Communicator;
use bam_cluster::config::{OptimizerKind, Reproducible};

use super::clock::{Clock, Part};
use super::learner::{Learner, Shard, Tensors};
use super::step::{Objective, backward};
use crate::comm::Host;
use crate::eval::Scorer;
use crate::gradient::{Reduced, Reduction, Tail};
use crate::model::{Bert, ParameterSpec};
use crate::optim::{Optimizer, Span};
use crate::snapshot::{one_file, read_model, read_moments};

/// A model in training on CPUs, in float32.
pub struct HostLearner {
    model: Bert,
    optimizer: Optimizer,
    host: Host,
    /// What of the model this rank updates for its host.
    share: Range<usize>,
    reduction: Reduction,
    diverged: Vec<(usize, usize)>,
}

impl HostLearner {
    /// `model` has its first values and is in the memory of `host`, with room for the [tail](Tail) of its tasks.
    pub fn new(
        world: &dyn Communicator,
        model: Bert,
        host: Host,
        kind: OptimizerKind,
        spans: Vec<Span>,
        reproducible: Reproducible,
        virtual_shards: usize,
    ) -> Self {
        let optimizer = Optimizer::new(kind, spans, host.moments());
        HostLearner {
            share: optimizer.shares(host.local().size(), model.config().hidden_size).swap_remove(host.local().rank()),
            optimizer,
            reduction: Reduction::new(reproducible, virtual_shards, world),
            diverged: vec![],
            model,
            host,
        }
    }
}

impl Learner for HostLearner {
    fn shards(&self) -> usize {
        self.reduction.shards()
    }

    fn own(&self) -> Range<usize> {
        self.reduction.own()
    }

    fn tokens_at_once(&self) -> Option<usize> {
        None
    }

    fn differentiate(&mut self, shard: &Shard, objective: &Objective, lambda: f64, clock: &mut Clock) -> Result<()> {
        if shard.number == self.own().start {
            self.diverged.clear();
        }
        self.model.parameters_mut().zero_gradients();
        let mut tail = Tail::new(objective.kinds.len());
        for items in &shard.micro_batches {
            clock.progress();
            let done = backward(&mut self.model, items, objective, lambda, &mut tail);
            let [start, middle, end] = done.times;
            clock.add(Part::Forward, start, middle);
            clock.add(Part::Backward, middle, end);
            self.diverged.extend(done.diverged.iter().map(|&i| (items[i].task, items[i].example)));
        }
        let n = self.model.parameters().len();
        let (buffer, words) = self.model.parameters_mut().gradients_and_words();
        tail.write(&mut buffer[n..]);
        self.reduction.take(shard.number, buffer, words);
        Ok(())
    }

    /// From here on ranks read one another's gradients and tails.
    fn agree(&mut self, world: &dyn Communicator, stop: bool, clock: &mut Clock) -> Result<()> {
        let n = self.model.parameters().len();
        let (buffer, words) = self.model.parameters_mut().gradients_and_words();
        let mut tail = Tail::read(&buffer[n..]);
        tail.stop = f32::from(u8::from(stop));
        tail.write(&mut buffer[n..]);
        Ok(clock.time(Part::Waiting, || self.reduction.agree(world, words))?)
    }

    fn reduce(&mut self, world: &dyn Communicator) -> Result<(Tail, Reduced)> {
        let n = self.model.parameters().len();
        let (buffer, words) = self.model.parameters_mut().gradients_and_words();
        let reduced = self.reduction.finish(world, &self.host, &self.share, buffer, words)?;
        Ok((Tail::read(&buffer[n..]), reduced))
    }

    fn diverged(&self) -> Vec<(usize, usize)> {
        self.diverged.clone()
    }

    fn update(&mut self, scale: f64, rate: f64, step: u64) -> Result<()> {
        let (values, gradients) = self.model.parameters_mut().values_and_gradients();
        self.optimizer.step(&self.share, values, gradients, scale, rate, step);
        Ok(self.host.local().barrier("update")?)
    }

    fn shape(&self) -> (&[ParameterSpec], &[Range<usize>]) {
        (self.model.parameters().specs(), self.model.parameters().ranges())
    }

    fn tensors(&mut self) -> Tensors<'_> {
        let (first, second) = self.optimizer.moments();
        [&*self.model.parameters_mut().values_mut(), first, second].map(Cow::Borrowed)
    }

    fn values(&mut self) -> Cow<'_, [f32]> {
        Cow::Borrowed(self.model.parameters_mut().values_mut())
    }

    fn restore(&mut self, model: &Path, optimizer: &Path) -> Result<()> {
        if self.host.leads() {
            read_model(&one_file(model), self.model.parameters_mut())?;
            let p = self.model.parameters();
            read_moments(optimizer, (p.specs(), p.ranges()), self.optimizer.moments_mut())?;
        }
        Ok(self.host.local().barrier("checkpoint read")?)
    }

    fn scorer(&self) -> &dyn Scorer {
        &self.model
    }

    fn peak_memory(&self) -> Option<u64> {
        None
    }
}
