//! The training loop, whole on one page: take an order; for each of its steps draw, differentiate, reduce, clip,
//! update, tell; save checkpoints where the order says so.

mod clock;
mod data;
mod host_learner;
mod learner;
mod saver;
mod step;
mod trainer;
mod utilisation;

use std::time::Instant;

use anyhow::{Context, Result};
use bam_cluster::fault::Point;
use bam_cluster::protocol::{FromRank, StepReport, ToRank, TrainOrder};

pub use clock::{Clock, Part};
pub use data::{Item, TrainTask};
pub use host_learner::HostLearner;
pub use learner::{Learner, Shard, Tensors};
pub use step::{Differentiated, Objective, backward};
pub use trainer::{Diverged, Trainer, objective};
pub use utilisation::{peak, rates};

use crate::gradient::Tail;
use crate::session::Session;
use crate::telemetry::Metrics;

/// How the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoopEnd {
    /// All steps are done.
    Finished,
    /// A stop was asked for; a checkpoint of so many steps is committed.
    Stopped(u64),
}

/// Obeys the launcher's orders until there are no more.
///
/// # Errors
/// Whatever keeps a rank from going on; the last checkpoint stays.
pub fn train(session: &Session, trainer: &mut Trainer, metrics: &mut Option<Metrics>) -> Result<LoopEnd> {
    let mut clock = Clock::new(session)?;
    let end = obey(session, trainer, metrics, &mut clock)?;
    clock.finish(session)?;
    Ok(end)
}

fn obey(session: &Session, trainer: &mut Trainer, metrics: &mut Option<Metrics>, clock: &mut Clock) -> Result<LoopEnd> {
    loop {
        match session.next_order()? {
            ToRank::Train(order) => {
                trainer.check(&order)?;
                for step in order.first_step..order.end_step {
                    let tail = one_step(session, trainer, metrics, clock, &order, step)?;
                    let stop = tail.stop > 0.0;
                    if stop || order.commit_at.contains(&(step + 1)) {
                        trainer.save(session)?;
                    }
                    if stop {
                        trainer.settle(session)?;
                        return Ok(LoopEnd::Stopped(step + 1));
                    }
                }
            }
            ToRank::Stop => {
                trainer.save(session)?;
                trainer.settle(session)?;
                return Ok(LoopEnd::Stopped(trainer.next_step()));
            }
            ToRank::Finish => {
                trainer.settle(session)?;
                return Ok(LoopEnd::Finished);
            }
            ToRank::Begin(_) => {}
        }
    }
}

fn one_step(
    session: &Session,
    trainer: &mut Trainer,
    metrics: &mut Option<Metrics>,
    clock: &mut Clock,
    order: &TrainOrder,
    step: u64,
) -> Result<Tail> {
    let start = Instant::now();
    let (world, activity) = (session.world.as_ref(), &session.activity);
    let schedule = trainer.schedule();
    let (lambda, rate) = (schedule.lambda(step), schedule.learning_rate(step));
    clock.begin(step);
    let share = clock.time(Part::Data, || trainer.next_share());
    activity.phase("forward and backward");
    trainer.differentiate(&share, lambda, clock)?;
    session.faults.reach(Point::Step(step));
    let stop = session.control.stop_requested();
    trainer.agree(world, stop, clock)?;
    let (tail, reduced) = clock.time(Part::Reduction, || trainer.reduce(world))?;
    session.faults.reach(Point::Update(step));
    clock.time(Part::Optimizer, || trainer.update(world, reduced.norm, rate))?;
    let phases = clock.end(session)?;
    trainer.look_after_checkpoint()?;
    let seconds = start.elapsed().as_secs_f64();
    let report = StepReport {
        step,
        loss: f64::from(tail.loss),
        task_losses: trainer.mean_task_losses(&tail),
        lambda,
        learning_rate: rate,
        gradient_norm: reduced.norm,
        examples: trainer.batch_size(),
        tokens: tail.tokens as u64,
        seconds,
        phases,
        bytes_reduced: (reduced.values * size_of::<f32>()) as u64,
        utilisation: trainer.utilisation(seconds),
        device_memory: trainer.learner().peak_memory(),
    };
    if let Some(metrics) = metrics {
        metrics.add(&report).context("metrics.jsonl of this stage")?;
    }
    session.tell(&FromRank::Step(report))?;
    tracing::debug!(epoch = order.epoch, step, loss = tail.loss, "step");
    Ok(tail)
}
