//! Everything that launcher and workers say to one another: JSON, one message a line, over an authenticated TCP
//! [`channel`]. Whole, in one place.
//!
//! Each rank connects, proves that it knows the secret and says [`FromRank::Hello`]. Rank 0 gets [`ToRank`] orders and
//! answers with events; every rank sends heartbeats from a thread of its own.

pub mod channel;
mod probe;
mod reach;
mod secret;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::fault::Fault;

pub use probe::{Devices, Probe};
pub use reach::Reach;
pub use secret::Secret;

/// How ranks find the launcher. Written with mode 0600, so that the secret is on no command line.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ControlFile {
    /// Where the launcher listens, the likeliest first.
    pub addresses: Vec<SocketAddr>,
    /// What both sides prove to know and never say.
    pub secret: Secret,
    /// Which start of this run it is.
    pub incarnation: u64,
    /// Which places of its host, counted from 0, the stage's ranks have, if other stages may run on the other ones; empty: all
    /// that there are. A rank's place decides which GPU it has.
    pub places: Vec<usize>,
}

/// From a rank to the launcher.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromRank {
    /// The first message of every rank.
    Hello(Hello),
    /// What the rank is doing; every rank, every second.
    Heartbeat(Heartbeat),
    /// What the rank computes on; every rank, once.
    Device {
        /// `cpu`, `cuda:0`, …
        device: String,
    },
    /// Rank 0: everything is loaded, the next order may start at this step.
    Ready {
        /// Optimizer steps that a checkpoint has already.
        next_step: u64,
    },
    /// Rank 0: an optimizer step is done.
    Step(StepReport),
    /// Rank 0: how far a stage without steps has come.
    Progress {
        /// Examples done.
        done: u64,
        /// Examples in all.
        total: u64,
    },
    /// Rank 0: a checkpoint is on disk.
    Checkpoint(CheckpointReport),
    /// Something that a person should read; the stage goes on.
    Warning {
        /// A sentence.
        message: String,
    },
    /// Something worth a line; the stage goes on.
    Note {
        /// A sentence.
        message: String,
    },
    /// The rank cannot go on.
    Failed(Failure),
    /// Rank 0: the stage is over.
    Done(Outcome),
}

/// Who a rank is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// From the control file.
    pub incarnation: u64,
    /// As MPI numbers it.
    pub rank: usize,
    /// As MPI counts them.
    pub world_size: usize,
    /// Host name.
    pub host: String,
    /// Process id on that host.
    pub pid: u32,
    /// What it computes on, as far as it knows; [`FromRank::Device`] says it for certain.
    pub device: String,
}

/// What a rank is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// What part of its work.
    pub phase: String,
    /// The optimizer step, in training.
    pub step: Option<u64>,
    /// The collective that it entered last.
    pub collective: Option<LastCollective>,
    /// Seconds since it last got on: began a phase, a step or a batch, entered or left a collective.
    pub idle: f64,
    /// Bytes of memory that it has in use, where the system tells.
    pub memory: Option<u64>,
}

/// The collective that a rank entered last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastCollective {
    /// What it is called.
    pub name: String,
    /// It was the rank's n-th.
    pub sequence: u64,
    /// Seconds since the rank entered it; null: it has left it.
    pub waiting: Option<f64>,
}

/// A checkpoint that is on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckpointReport {
    /// Optimizer steps in it.
    pub step: u64,
    /// Receipt of the data order up to it.
    pub receipt: String,
    /// Seconds for which training stood still.
    pub stall: f64,
    /// Seconds from the first byte to the last sync.
    pub seconds: f64,
}

/// One optimizer step, as all ranks together did it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// 0 … total−1.
    pub step: u64,
    /// Loss of the global batch.
    pub loss: f64,
    /// Mean loss of each task's examples in this batch; tasks without any are left out.
    pub task_losses: BTreeMap<String, f64>,
    /// Weight of the gold labels.
    pub lambda: f64,
    /// Learning rate before layer-wise factors.
    pub learning_rate: f64,
    /// Global gradient norm before clipping.
    pub gradient_norm: f64,
    /// Examples in the batch.
    pub examples: usize,
    /// Tokens of the batch, padding not counted.
    pub tokens: u64,
    /// Wall time.
    pub seconds: f64,
    /// What rank 0 did in that time.
    #[serde(default)]
    pub phases: Phases,
    /// Bytes of gradients that each rank handed in to be added up with those of others.
    #[serde(default)]
    pub bytes_reduced: u64,
    /// Floating-point operations that the step is credited with, over those that all ranks could have done in that time if
    /// they only multiplied (model FLOPs utilisation).
    #[serde(default)]
    pub utilisation: f64,
    /// The most memory of rank 0's GPU that was in use at one time so far, in bytes; none on CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_memory: Option<u64>,
}

/// The parts of a step, in seconds. What is missing to the whole lies between two steps: metrics, looking after a checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Phases {
    /// Drawing the batch and putting it together.
    pub data: f64,
    /// Forward passes and losses.
    pub forward: f64,
    /// Backward passes.
    pub backward: f64,
    /// Waiting for the slowest rank.
    pub waiting: f64,
    /// Adding up the gradients of all ranks.
    pub reduction: f64,
    /// Clipping and updating.
    pub optimizer: f64,
}

/// Why a rank cannot go on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// The exit code that the launcher should end with.
    pub exit_code: u8,
    /// What, where and what to do.
    pub message: String,
    /// Going on from the last checkpoint would end in the same way.
    pub is_lasting: bool,
}

/// How a stage ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Complete.
    Finished {
        /// Names of what it made, with SHA-256.
        outputs: BTreeMap<String, String>,
    },
    /// Stopped at a checkpoint because that was asked for.
    Stopped {
        /// Optimizer steps in the checkpoint.
        step: u64,
    },
}

/// From the launcher to rank 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToRank {
    /// The answer to rank 0's hello.
    Begin(Begin),
    /// Train some steps.
    Train(TrainOrder),
    /// No more orders: publish what was made, evaluate it, end.
    Finish,
    /// Stop at the next step, with a checkpoint.
    Stop,
}

/// What a stage is made from; ranks check it before the first step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Begin {
    /// Hash of the plan as the launcher derived it.
    pub plan: String,
    /// Names of the stage's inputs, with SHA-256.
    pub inputs: BTreeMap<String, String>,
    /// Failures to rehearse.
    pub faults: Vec<Fault>,
}

/// Steps of one epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainOrder {
    /// From 0.
    pub epoch: u64,
    /// First step.
    pub first_step: u64,
    /// One past the last step.
    pub end_step: u64,
    /// λ at the first step.
    pub lambda_first: f64,
    /// λ at the last step.
    pub lambda_last: f64,
    /// Numbers of completed steps at which a checkpoint is committed.
    pub commit_at: Vec<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_a_line_of_metrics_is_documented() {
        let report = StepReport {
            step: 0,
            loss: 0.0,
            task_losses: BTreeMap::new(),
            lambda: 0.0,
            learning_rate: 0.0,
            gradient_norm: 0.0,
            examples: 0,
            tokens: 0,
            seconds: 0.0,
            phases: Phases::default(),
            bytes_reduced: 0,
            utilisation: 0.0,
            device_memory: Some(0),
        };
        let documented = include_str!("../../../docs/metrics.md");
        let line = serde_json::to_value(report).unwrap();
        let keys = line.as_object().unwrap().keys().cloned();
        let phases = line["phases"].as_object().unwrap().keys().map(|phase| format!("phases.{phase}"));
        for key in keys.chain(phases) {
            assert!(documented.contains(&format!("\n| `{key}` | ")), "'{key}' has no line in docs/metrics.md");
        }
    }
}
