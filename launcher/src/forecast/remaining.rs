//! How long the rest of a running run takes, going by the pace of its own steps.

use std::collections::BTreeMap;

use bam_cluster::config::ClusterSection;
use bam_cluster::encoder::EncoderConfig;
use bam_cluster::plan::{Plan, Stage};
use bam_cluster::protocol::StepReport;

use super::lengths::Lengths;
use super::pace::{Pace, Work};
use crate::conduct;

/// Weight of the past in the running mean of the pace.
const MEMORY: f64 = 0.95;

/// What is still to do of a run, and how fast it goes.
#[derive(Debug)]
pub struct Remaining {
    plan: Plan,
    cluster: ClusterSection,
    lengths: Vec<Lengths>,
    shape: EncoderConfig,
    /// The share of each stage that is done; 0 where nothing is said.
    done: BTreeMap<String, f64>,
    /// Floating-point operations a second of one rank.
    pace: Option<f64>,
}

impl Remaining {
    /// Of a run of which nothing is done yet.
    pub fn new(plan: Plan, cluster: ClusterSection, lengths: Vec<Lengths>, shape: EncoderConfig) -> Remaining {
        Remaining { plan, cluster, lengths, shape, done: BTreeMap::new(), pace: None }
    }

    /// A stage is done to this share.
    pub fn is_done(&mut self, stage: &str, share: f64) {
        self.done.insert(stage.to_owned(), share);
    }

    /// A training has made a step.
    pub fn step(&mut self, stage: &str, report: &StepReport) {
        let ranks = self.plan.stage(stage).map_or(1, |stage| self.cluster.ranks(stage.tasks_learnt()));
        if let Some(pace) = Pace::of_steps(std::slice::from_ref(report), ranks, &self.shape) {
            self.pace = Some(self.pace.map_or(pace, |old| MEMORY * old + (1.0 - MEMORY) * pace));
        }
    }

    /// How many of the run's stages are complete, and how many there are.
    pub fn stages(&self) -> (usize, usize) {
        (self.done.values().filter(|share| **share >= 1.0).count(), self.plan.stages.len())
    }

    /// Seconds to the end of the run; none before the first step.
    pub fn seconds(&self) -> Option<f64> {
        let pace = Pace::Measured { operations_per_second: self.pace?, run: String::new(), stage: String::new() };
        let work = Work { plan: &self.plan, lengths: &self.lengths, shape: &self.shape };
        let left = |stage: &Stage| {
            let share = 1.0 - self.done.get(&stage.name).copied().unwrap_or_default();
            share.max(0.0) * work.seconds(stage, self.cluster.ranks(stage.tasks_learnt()), &pace)
        };
        Some(conduct::duration(&self.plan.stages, &self.cluster, left))
    }
}
