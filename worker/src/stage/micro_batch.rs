//! How many tokens each GPU computes at once in a training: tried once, and remembered beside the stage, so that a training that
//! goes on does the same.

use anyhow::{Context, Result};
use bam_cluster::files;
use bam_cluster::plan::TrainStage;
use bam_cluster::protocol::FromRank;
use serde::{Deserialize, Serialize};
use tch::Device;

use crate::device::{DeviceLearner, tokens_that_fit};
use crate::session::Session;
use crate::shim;
use crate::train::Objective;

/// What was found, and where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Found {
    /// Tokens of a micro-batch.
    tokens: usize,
    /// Bytes of the smallest GPU's memory.
    memory: u64,
    /// Ranks.
    ranks: usize,
}

/// Tokens that fit into the memory of every rank's GPU. Gradients are accumulated over as many micro-batches as that takes.
///
/// # Errors
/// A GPU fails, or a collective did not come about.
pub(super) fn find(
    session: &Session,
    stage: &TrainStage,
    objective: &Objective,
    learner: &mut DeviceLearner,
) -> Result<usize> {
    let (world, length) = (session.world.as_ref(), session.recipe.model.max_length);
    let Device::Cuda(device) = session.place.device else { return Ok(usize::MAX) };
    let path = session.run.stage(&session.stage.name).join("micro_batch.json");
    let at = || path.display().to_string();
    let memory = shim::cuda_memory(device)?.total;
    let memory = least(&world.all_gather("memory of GPUs", &memory.to_le_bytes())?);
    let known: Option<Found> = if session.is_first() { files::read_json(&path).with_context(at)? } else { None };
    let known = world.broadcast("known micro-batch", 0, serde_json::to_vec(&known)?)?;
    let known: Option<Found> = serde_json::from_slice(&known)?;
    if let Some(found) = known.filter(|found| (found.memory, found.ranks) == (memory, world.size())) {
        return Ok(found.tokens);
    }
    session.activity.phase("finding how much fits into memory");
    // As if all sequences were as long as they may be, and this rank's share of a batch a little larger than the others'.
    let share = stage.settings.batch_size.div_ceil(world.size());
    let whole = (share + share / 8 + 1) * length;
    let own = tokens_that_fit(whole, length, |tokens| {
        session.activity.progress();
        learner.fits(tokens, length, objective)
    })?;
    let tokens = least(&world.all_gather("tokens that fit", &(own as u64).to_le_bytes())?) as usize;
    if tokens < whole {
        let message = format!("{tokens} tokens fit into a GPU at once; a batch is computed in several micro-batches");
        session.tell(&FromRank::Note { message })?;
    }
    if session.is_first() {
        files::write_json(&path, &Found { tokens, memory, ranks: world.size() }).with_context(at)?;
    }
    Ok(tokens)
}

fn least(numbers: &[Vec<u8>]) -> u64 {
    numbers.iter().filter_map(|n| n.first_chunk()).map(|n| u64::from_le_bytes(*n)).min().unwrap_or(0)
}
