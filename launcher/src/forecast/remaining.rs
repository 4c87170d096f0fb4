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
        let ranks = self.plan.stage(stage).map_or(1, |stage| stage.ranks(&self.cluster));
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
            share.max(0.0) * work.seconds(stage, stage.ranks(&self.cluster), &pace)
        };
        // As if all slots were on one node, which matters only where stages of several nodes run side by side.
        Some(conduct::duration(&self.plan.stages, &self.cluster, 1, left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bam_cluster::config::Recipe;
    use bam_cluster::plan::TaskSize;

    fn step(seconds: f64) -> StepReport {
        serde_json::from_value(serde_json::json!({
            "step": 0, "loss": 1.0, "task_losses": {}, "lambda": 0.0, "learning_rate": 0.0, "gradient_norm": 1.0,
            "examples": 10, "tokens": 200, "seconds": seconds
        }))
        .unwrap()
    }

    #[test]
    fn what_is_left_follows_from_the_pace_and_what_is_done() {
        let text = "name: x\nmode: multi\nmodel: { path: m }\ndata: { glue: g, tasks: [rte, cola] }\n\
                    train: { multi: { epochs: 1, batch_size: 10 } }\ncluster: { processes: 2 }\n";
        let recipe: Recipe = serde_norway::from_str(text).unwrap();
        let size = |task: &str| TaskSize { task: task.into(), train: 500, dev: 9, further: BTreeMap::new() };
        let plan = Plan::derive(&recipe, &[size("rte"), size("cola")]);
        let shape = serde_json::json!({
            "vocab_size": 50, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
            "max_position_embeddings": 20
        });
        let lengths = vec![Lengths { mean: 20, longest: 20 }; 2];
        let mut remaining = Remaining::new(plan, recipe.cluster, lengths, serde_json::from_value(shape).unwrap());
        assert_eq!(remaining.seconds(), None);
        // 100 steps of 10 examples, as long as those of this one.
        remaining.step("multi", &step(3.0));
        assert!((remaining.seconds().unwrap() - 300.0).abs() < 1e-6, "{remaining:?}");
        remaining.is_done("prepare", 1.0);
        remaining.is_done("multi", 0.75);
        assert!((remaining.seconds().unwrap() - 75.0).abs() < 1e-6, "{remaining:?}");
        assert_eq!(remaining.stages(), (1, 2));
    }
}
