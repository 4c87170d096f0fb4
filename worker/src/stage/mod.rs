//! The stages: what a rank does between meeting the others and leaving them.

mod logits;
mod micro_batch;
mod predict;
mod prepare;
mod publish;
mod train;

use anyhow::{Result, bail};
use bam_cluster::plan::StageWork;
use bam_cluster::protocol::Outcome;

use crate::session::Session;

/// Does the session's stage.
///
/// # Errors
/// Whatever keeps this rank from going on.
pub fn run(session: &Session) -> Result<Outcome> {
    match &session.stage.work {
        StageWork::Prepare => prepare::run(session),
        StageWork::Train(stage) => train::run(session, stage),
        StageWork::Choose(_) => bail!("the launcher does this stage by itself"),
        StageWork::Logits(stage) => logits::run(session, stage),
        StageWork::Predict(stage) => predict::run(session, stage),
    }
}
