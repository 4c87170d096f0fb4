//! The gradient of one micro-batch: forward, the losses of its tasks, backward.

use std::time::Instant;

use bam_cluster::config::RegressionOutput;
use bam_cluster::task::Kind;
use tch::{Device, Kind as Element, Tensor};

use super::data::Item;
use crate::device::upload;
use crate::gradient::Tail;
use crate::model::{Batch, Bert, DropoutKey, Sequence};
use crate::objective::{Targets, cross_entropy, squared_error};

/// What is minimised.
pub struct Objective {
    /// What each task's head puts out.
    pub kinds: Vec<Kind>,
    /// Weight of each task's losses.
    pub weights: Vec<f64>,
    /// What the sum of losses is divided by: the global batch size, or 1.
    pub divisor: f64,
    /// What becomes of a regression head's output.
    pub regression_output: RegressionOutput,
}

impl Objective {
    /// Losses of examples of one task, from its head's outputs, [examples, outputs]: [examples].
    pub fn losses(&self, kind: &Kind, outputs: &Tensor, targets: &Targets, lambda: f64) -> Tensor {
        match kind {
            Kind::Classification { .. } => cross_entropy(outputs, targets, lambda),
            Kind::Regression { .. } => squared_error(outputs, targets, lambda, self.regression_output),
        }
    }
}

/// What came of one micro-batch besides its gradient.
#[derive(Debug)]
pub struct Differentiated {
    /// The items whose losses are not finite.
    pub diverged: Vec<usize>,
    /// When the forward pass began, when the losses were there, and when the backward pass was over.
    pub times: [Instant; 3],
}

/// Adds the gradient of Σ weight·loss / divisor over `items` to the model's gradients, and their losses to `tail`.
pub fn backward(
    model: &mut Bert,
    items: &[Item],
    objective: &Objective,
    lambda: f64,
    tail: &mut Tail,
) -> Differentiated {
    let start = Instant::now();
    let sequences: Vec<Sequence> = items.iter().map(|i| i.sequence).collect();
    let keys: Vec<DropoutKey> = items.iter().map(|i| i.dropout).collect();
    let pass = model.encode(Batch::new(&sequences), &keys);
    let batch = pass.batch();
    let pooled = model.pooled_in_training(&pass);
    let mut total: Option<Tensor> = None;
    let mut diverged = vec![];
    for (task, kind) in objective.kinds.iter().enumerate() {
        // Rows of the pooled output that belong to this task, and their examples.
        let rows: Vec<usize> = (0..items.len()).filter(|&row| items[batch.order()[row]].task == task).collect();
        if rows.is_empty() {
            continue;
        }
        let examples: Vec<&Item> = rows.iter().map(|&row| &items[batch.order()[row]]).collect();
        let index = Tensor::from_slice(&rows.iter().map(|&r| r as i64).collect::<Vec<_>>());
        let outputs = model.head(task, &pooled.index_select(0, &index));
        let targets = Targets::of(&examples, kind.outputs(), Device::Cpu);
        let losses = objective.losses(kind, &outputs, &targets, lambda);
        let sum = losses.sum(Element::Float);
        let task_loss = sum.double_value(&[]);
        if !task_loss.is_finite() {
            let is_finite = |row: usize| losses.double_value(&[row as i64]).is_finite();
            diverged.extend((0..rows.len()).filter(|&i| !is_finite(i)).map(|i| batch.order()[rows[i]]));
        }
        tail.task_losses[task] += task_loss as f32;
        tail.task_counts[task] += rows.len() as f32;
        let part = sum * (objective.weights[task] / objective.divisor);
        total = Some(match total {
            Some(total) => total + part,
            None => part,
        });
    }
    tail.tokens += batch.tokens() as f32;
    let middle = Instant::now();
    if let Some(total) = total {
        tail.loss += total.double_value(&[]) as f32;
        total.backward();
        model.backward(pass);
    }
    Differentiated { diverged, times: [start, middle, Instant::now()] }
}

impl Targets {
    /// The targets of examples of one task, whose head has so many outputs, on `device`.
    pub fn of(examples: &[&Item], outputs: usize, device: Device) -> Targets {
        let gold: Vec<f32> = examples.iter().map(|i| i.gold).collect();
        let teacher: Option<Vec<&[f32]>> = examples.iter().map(|i| i.teacher).collect();
        let matrix = |rows: Vec<&[f32]>| Tensor::from_slice(&rows.concat()).view([-1, outputs as i64]);
        Targets {
            gold: upload(&Tensor::from_slice(&gold), device),
            teacher: teacher.map(|rows| upload(&matrix(rows), device)),
        }
    }
}
