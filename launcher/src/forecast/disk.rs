//! What a run leaves on disk.

use bam_cluster::config::Recipe;
use bam_cluster::encoder::EncoderConfig;
use bam_cluster::plan::{Plan, StageWork};
use bam_cluster::task::Task;
use serde::Serialize;

use super::lengths::Lengths;
use super::memory::FLOAT;
use super::parameters;

/// Weights and Adam's two moments.
const TENSORS_OF_A_CHECKPOINT: f64 = 3.0;

/// Bytes on disk when the run is over, and at most on the way there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Disk {
    /// Tokens of all tasks.
    pub data: f64,
    /// Logits of all teachers.
    pub logits: f64,
    /// A model for each training.
    pub models: f64,
    /// The checkpoints that are kept.
    pub checkpoints: f64,
    /// Room for the checkpoints that are being written.
    pub being_written: f64,
}

impl Disk {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.data + self.logits + self.models + self.checkpoints + self.being_written
    }

    /// What a run of this plan leaves.
    pub fn of(recipe: &Recipe, plan: &Plan, tasks: &[Task], lengths: &[Lengths], shape: &EncoderConfig) -> Disk {
        let mut disk = Disk::default();
        for (size, lengths) in plan.tasks.iter().zip(lengths) {
            // Ids and segments; of each row, its id, label and place.
            disk.data += (size.train + size.dev) as f64 * (lengths.mean as f64 * 5.0 + 20.0);
        }
        let mut largest = 0.0f64;
        for stage in &plan.stages {
            match &stage.work {
                StageWork::Train(train) => {
                    let model = parameters(shape, tasks, &train.tasks) as f64 * FLOAT;
                    let checkpoint = model * TENSORS_OF_A_CHECKPOINT;
                    let written = train.schedule.total_steps.div_ceil(recipe.checkpoint.every_steps);
                    disk.models += model;
                    disk.checkpoints += checkpoint * written.min(recipe.checkpoint.keep as u64) as f64;
                    let side_by_side = recipe.cluster.processes / stage.ranks(&recipe.cluster).max(1);
                    largest = largest.max(checkpoint * side_by_side.max(1) as f64);
                }
                StageWork::Logits(logits) => {
                    for teacher in &logits.teachers {
                        let rows = plan.tasks.iter().filter(|t| t.task == teacher.task).map(|t| t.train).sum::<usize>();
                        let outputs = tasks.iter().find(|t| t.name == teacher.task).map_or(1, |t| t.kind.outputs());
                        disk.logits += rows as f64 * (FLOAT * outputs as f64 + 8.0);
                    }
                }
                // A choice is a link to the model that was chosen.
                StageWork::Prepare | StageWork::Choose(_) | StageWork::Predict(_) => {}
            }
        }
        disk.being_written = largest;
        disk
    }
}
