//! The state of one model's training, and the parts of a step that change it.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use bam_cluster::checkpoint::{Found, State, Store};
use bam_cluster::comm::Communicator;
use bam_cluster::config::{LossReduction, Reproducible};
use bam_cluster::digest;
use bam_cluster::encoder::EncoderConfig;
use bam_cluster::plan::{Draw, Receipt, Sampler, Schedule, TrainStage, sequence_cost, slice_by_cost};
use bam_cluster::protocol::{FromRank, TrainOrder};

use super::clock::Clock;
use super::data::{Item, TrainTask};
use super::learner::{Learner, Shard};
use super::saver::{FILES, MODEL, OPTIMIZER, Saver};
use super::step::Objective;
use crate::gradient::{Reduced, Tail, clip_scale};
use crate::model::StepSeed;
use crate::session::Session;

/// A model in training.
pub struct Trainer {
    stage: TrainStage,
    tasks: Vec<TrainTask>,
    objective: Objective,
    config: EncoderConfig,
    learner: Box<dyn Learner>,
    sampler: Sampler,
    receipt: Receipt,
    next_step: u64,
    store: Store,
    saver: Saver,
    /// Optimizer steps in the newest checkpoint, known to every rank; 0 if there is none.
    saved: u64,
    /// What the last step is credited with, and what all ranks can do in a second, in floating-point operations.
    operations: f64,
    peak: f64,
}

/// The gradient is not finite any more.
#[derive(Debug, thiserror::Error)]
#[error(
    "training has diverged in step {step}: {what}\n  {}lower the learning rate or lengthen the warm-up, under another name \
     (-o name=…)",
    kept(*saved)
)]
pub struct Diverged {
    step: u64,
    what: String,
    /// Optimizer steps in the newest checkpoint; 0 if there is none.
    saved: u64,
}

/// What is left of a training that diverged.
fn kept(saved: u64) -> String {
    if saved == 0 { String::new() } else { format!("the checkpoint of step {saved} is from before and is kept; ") }
}

/// One of the parts into which a global batch is cut, whatever rank it is for.
pub struct Share {
    number: usize,
    micro_batches: Vec<Vec<Placed>>,
}

/// An example with its place in the global batch.
#[derive(Clone, Copy)]
struct Placed {
    place: usize,
    draw: Draw,
}

impl Trainer {
    /// A training at step 0, of a model that has its first values and this shape; `peak`: floating-point operations a second
    /// that all ranks can do.
    pub fn new(
        session: &Session,
        stage: TrainStage,
        tasks: Vec<TrainTask>,
        config: EncoderConfig,
        learner: Box<dyn Learner>,
        peak: f64,
    ) -> Self {
        let recipe = &session.recipe;
        let settings = &stage.settings;
        let directory = session.run.checkpoints(&session.stage.name);
        let store = Store::new(directory, &FILES, recipe.checkpoint.keep, session.fence.clone());
        let (specs, ranges) = learner.shape();
        Trainer {
            saver: Saver::new(session, store.clone(), specs, ranges),
            sampler: Sampler::new(stage.seed, &stage.sizes, &stage.mixture.drawing, settings.batch_size),
            receipt: Receipt::empty(),
            next_step: 0,
            operations: 0.0,
            peak,
            store,
            saved: 0,
            objective: objective(session, &stage, &tasks),
            stage,
            tasks,
            config,
            learner,
        }
    }

    /// Goes on from the newest good checkpoint, if there is one. Rank 0 chooses it for all.
    ///
    /// # Errors
    /// A checkpoint is of other inputs or another schedule, or its tensors do not fit.
    pub fn resume(&mut self, session: &Session) -> Result<()> {
        let mut chosen = None;
        if session.is_first() {
            let (found, damaged) = self.store.take_over()?;
            let next = if found.is_some() { "the one before it is used" } else { "the stage begins again" };
            for one in damaged {
                session.tell(&FromRank::Warning { message: format!("{one}; it is set aside and {next}") })?;
            }
            chosen = found.map(|Found { path, state }| (path, state));
        }
        let chosen = session.world.broadcast("checkpoint to resume", 0, serde_json::to_vec(&chosen)?)?;
        let chosen: Option<(std::path::PathBuf, State)> = serde_json::from_slice(&chosen)?;
        let Some((path, state)) = chosen else { return Ok(()) };
        let at = || path.display().to_string();
        ensure!(state.inputs == digest::of_json(&session.begin.inputs), "{}: was made from other inputs", at());
        ensure!(state.schedule == self.stage.schedule, "{}: was made under another schedule", at());
        let began = Instant::now();
        self.learner.restore(&path.join(MODEL), &path.join(OPTIMIZER))?;
        let seconds = began.elapsed().as_secs_f64();
        // The receipt is made anew from the data, so that it proves the order and does not only repeat it.
        while self.next_step < state.step {
            self.draw();
            session.activity.progress();
        }
        ensure!(
            self.receipt == state.receipt,
            "{}: the data order up to step {} is not the one that this checkpoint was made with",
            at(),
            state.step
        );
        self.saved = state.step;
        let (step, total, size) = (state.step, self.stage.schedule.total_steps, state.world_size);
        let mut message = format!("resumed at step {step} of {total}");
        if size != session.world.size() {
            let same = match session.recipe.reproducible {
                Reproducible::Processes => "the batches are the same, rounding is not",
                Reproducible::WorldSize => "the batches are the same, and so is every bit",
            };
            message += &format!(" (the checkpoint is of {size} processes: {same})");
        }
        message += &format!("; checkpoint read in {seconds:.3} s");
        session.tell(&FromRank::Note { message })
    }

    /// Optimizer steps done.
    pub fn next_step(&self) -> u64 {
        self.next_step
    }

    /// λ and learning rate.
    pub fn schedule(&self) -> Schedule {
        self.stage.schedule
    }

    /// Examples of a global batch.
    pub fn batch_size(&self) -> usize {
        self.stage.settings.batch_size
    }

    /// Model FLOPs utilisation of the last step, which took so many seconds.
    pub fn utilisation(&self, seconds: f64) -> f64 {
        self.operations / (seconds * self.peak)
    }

    /// The model in training.
    pub fn learner(&mut self) -> &mut dyn Learner {
        self.learner.as_mut()
    }

    /// Compares an order with this rank's own plan.
    ///
    /// # Errors
    /// They differ.
    pub fn check(&self, order: &TrainOrder) -> Result<()> {
        let s = self.stage.schedule;
        let fits = order.first_step == self.next_step
            && order.first_step < order.end_step
            && order.end_step <= s.total_steps
            && order.lambda_first == s.lambda(order.first_step)
            && order.lambda_last == s.lambda(order.end_step - 1);
        ensure!(fits, "the order {order:?} does not fit this rank's plan at step {}", self.next_step);
        Ok(())
    }

    /// Draws the next global batch, adds it to the receipt, and gives this rank's shards of it in micro-batches.
    pub fn next_share(&mut self) -> Vec<Share> {
        let batch = self.draw();
        let length = |d: &Draw| self.tasks[d.task as usize].set.length(d.example as usize);
        let config = &self.config;
        let costs: Vec<u64> = batch.iter().map(|d| sequence_cost(length(d), config.hidden_size)).collect();
        self.operations = batch.iter().map(|d| config.training_operations(length(d))).sum();
        let slices = slice_by_cost(&costs, self.learner.shards());
        let size = self.stage.settings.micro_batch_size;
        let shard = |number: usize| {
            let mut draws: Vec<Placed> =
                slices[number].iter().map(|&place| Placed { place, draw: batch[place] }).collect();
            // Like lengths together: the gradient is the same sum, and each micro-batch is cheaper.
            draws.sort_by_key(|placed| length(&placed.draw));
            let size = size.unwrap_or(draws.len()).max(1);
            let mut micro_batches: Vec<Vec<Placed>> = draws.chunks(size).map(<[Placed]>::to_vec).collect();
            if let Some(most) = self.learner.tokens_at_once() {
                let cut = |draws: &Vec<Placed>| cut_by_tokens(draws, |placed| length(&placed.draw), most);
                micro_batches = micro_batches.iter().flat_map(cut).collect();
            }
            Share { number, micro_batches }
        };
        self.learner.own().map(shard).collect()
    }

    fn draw(&mut self) -> Vec<Draw> {
        let batch = self.sampler.next_batch();
        let id = |d: &Draw| (d.task, self.tasks[d.task as usize].set.example_ids[d.example as usize]);
        self.receipt.add(self.next_step, batch.iter().map(id));
        self.next_step += 1;
        batch
    }

    /// Gradients and losses of these shards, with dropout masks that follow from seed, step and an example's place in the
    /// global batch.
    ///
    /// # Errors
    /// The device fails.
    pub fn differentiate(&mut self, share: &[Share], lambda: f64, clock: &mut Clock) -> Result<()> {
        let seed = StepSeed::new(self.stage.seed, self.next_step - 1);
        let item = |&Placed { place, draw }: &Placed| {
            self.tasks[draw.task as usize].item(draw.task as usize, draw.example as usize, seed.example(place))
        };
        for Share { number, micro_batches } in share {
            let micro_batches: Vec<Vec<Item>> = micro_batches.iter().map(|m| m.iter().map(item).collect()).collect();
            let shard = Shard { number: *number, micro_batches };
            self.learner.differentiate(&shard, &self.objective, lambda, clock)?;
        }
        Ok(())
    }

    /// Waits for all ranks, whose batches have other words, and of which any may wish to stop.
    ///
    /// # Errors
    /// The collective did not come about.
    pub fn agree(&mut self, world: &dyn Communicator, stop: bool, clock: &mut Clock) -> Result<()> {
        self.learner.agree(world, stop, clock)
    }

    /// Sums gradients and tails over all shards.
    ///
    /// # Errors
    /// The collective did not come about.
    pub fn reduce(&mut self, world: &dyn Communicator) -> Result<(Tail, Reduced)> {
        self.learner.reduce(world)
    }

    /// Clips the gradient, which has this norm, and updates.
    ///
    /// # Errors
    /// The gradient is not finite; the error names the examples whose losses are not.
    pub fn update(&mut self, world: &dyn Communicator, norm: f64, rate: f64) -> Result<()> {
        let step = self.next_step - 1;
        if !norm.is_finite() {
            // The reduced gradient is the same everywhere, so that all ranks come here, and end together when the
            // checkpoint that is being written is on disk.
            self.saver.settle()?;
            let name = |(task, example): (usize, usize)| {
                (self.stage.tasks[task].clone(), self.tasks[task].set.example_ids[example])
            };
            let own: Vec<(String, u64)> = self.learner.diverged().into_iter().map(name).collect();
            let all = world.all_gather("examples that diverged", &serde_json::to_vec(&own)?)?;
            let all: Vec<Vec<(String, u64)>> =
                all.iter().map(|b| serde_json::from_slice(b)).collect::<Result<_, _>>()?;
            return Err(Diverged { step, what: name_diverged(all.concat()), saved: self.saved }.into());
        }
        let scale = self.stage.settings.clip_norm.map_or(1.0, |limit| clip_scale(norm, limit));
        self.learner.update(scale, rate, step)
    }

    /// Mean loss of each task that has examples in the batch.
    pub fn mean_task_losses(&self, tail: &Tail) -> BTreeMap<String, f64> {
        let sums = tail.task_losses.iter().zip(&tail.task_counts);
        let named = self.stage.tasks.iter().zip(sums).filter(|(_, (_, count))| **count > 0.0);
        named.map(|(task, (sum, count))| (task.clone(), f64::from(sum / count))).collect()
    }

    /// Saves what is there now as a checkpoint: rank 0 writes it, while steps go on unless the recipe says otherwise. All
    /// compare receipts first.
    ///
    /// # Errors
    /// Receipts differ, or the checkpoint before this one could not be written.
    pub fn save(&mut self, session: &Session) -> Result<()> {
        session.activity.phase("checkpoint");
        let receipts = session.world.all_gather("receipts", self.receipt.as_str().as_bytes())?;
        if let Some(rank) = receipts.iter().position(|r| r != &receipts[0]) {
            bail!("rank {rank} has seen other examples than rank 0 up to step {}", self.next_step);
        }
        if self.saved == self.next_step {
            return Ok(());
        }
        self.saved = self.next_step;
        if !session.is_first() {
            return Ok(());
        }
        let state = State {
            step: self.next_step,
            receipt: self.receipt.clone(),
            schedule: self.stage.schedule,
            inputs: digest::of_json(&session.begin.inputs),
            incarnation: session.fence.incarnation(),
            world_size: session.world.size(),
        };
        self.saver.save(state, self.learner.as_mut())
    }

    /// Fails if the checkpoint that is being written could not be written.
    ///
    /// # Errors
    /// The file system refused, or this rank is an orphan of an earlier start.
    pub fn look_after_checkpoint(&mut self) -> Result<()> {
        self.saver.look()
    }

    /// Waits until the last checkpoint is on disk.
    ///
    /// # Errors
    /// As [`look_after_checkpoint`](Self::look_after_checkpoint).
    pub fn settle(&mut self, session: &Session) -> Result<()> {
        session.activity.phase("checkpoint");
        self.saver.settle()
    }
}

/// What a stage minimises.
pub fn objective(session: &Session, stage: &TrainStage, tasks: &[TrainTask]) -> Objective {
    Objective {
        kinds: tasks.iter().map(|t| t.kind.clone()).collect(),
        weights: stage.mixture.loss_weights.clone(),
        divisor: match stage.settings.loss_reduction {
            LossReduction::Mean => stage.settings.batch_size as f64,
            LossReduction::Sum => 1.0,
        },
        regression_output: session.recipe.model.regression_output,
    }
}

/// Cuts items, which ascend by length, into lists of at most `most` tokens; an item that is longer is a list of its own.
fn cut_by_tokens<T: Copy>(items: &[T], length: impl Fn(&T) -> usize, most: usize) -> Vec<Vec<T>> {
    let (mut lists, mut tokens): (Vec<Vec<T>>, usize) = (vec![], 0);
    for item in items {
        tokens += length(item);
        match lists.last_mut() {
            Some(list) if tokens <= most => list.push(*item),
            _ => {
                tokens = length(item);
                lists.push(vec![*item]);
            }
        }
    }
    lists
}

/// What is not finite, task by task with the ids of the first few examples.
fn name_diverged(mut examples: Vec<(String, u64)>) -> String {
    const NAMED: usize = 5;
    if examples.is_empty() {
        return "the gradient is not finite, although all losses are".to_owned();
    }
    examples.sort_unstable();
    examples.dedup();
    let of_task = |same: &[(String, u64)]| {
        let ids: Vec<String> = same.iter().take(NAMED).map(|(_, id)| id.to_string()).collect();
        let more = same.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let noun = if same.len() == 1 { "example" } else { "examples" };
        format!("task '{}', {noun} {}{more}", same[0].0, ids.join(", "))
    };
    let tasks: Vec<String> = examples.chunk_by(|a, b| a.0 == b.0).map(of_task).collect();
    format!("the loss is not finite for {}", tasks.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_have_as_many_tokens_as_may_be() {
        let cut = |most| cut_by_tokens(&[2usize, 3, 5, 9], |n| *n, most);
        assert_eq!(cut(100), [vec![2, 3, 5, 9]]);
        assert_eq!(cut(10), [vec![2, 3, 5], vec![9]]);
        assert_eq!(cut(4), [vec![2], vec![3], vec![5], vec![9]]);
    }

    #[test]
    fn diverged_examples_are_named_by_task() {
        let of =
            |examples: &[(&str, u64)]| name_diverged(examples.iter().map(|(t, i)| ((*t).to_owned(), *i)).collect());
        assert_eq!(
            of(&[("rte", 3), ("cola", 9), ("cola", 2), ("rte", 3)]),
            "the loss is not finite for task 'cola', examples 2, 9; task 'rte', example 3"
        );
        let many: Vec<(&str, u64)> = (0..9).map(|i| ("rte", i)).collect();
        assert!(of(&many).ends_with("examples 0, 1, 2, 3, 4 and 4 more"));
        assert!(of(&[]).contains("although all losses are"));
    }

    #[test]
    fn a_checkpoint_is_spoken_of_if_there_is_one() {
        let said = |saved| Diverged { step: 7, what: "x".into(), saved }.to_string();
        assert!(said(6).contains("the checkpoint of step 6 is from before and is kept; lower"), "{}", said(6));
        assert!(!said(0).contains("checkpoint") && said(0).contains("\n  lower the learning rate"), "{}", said(0));
    }
}
