//! What travels at the end of the gradient buffer, summed over ranks in the same reduction: losses, counts, and
//! whether a stop is wanted. So all ranks know the same of a step, at the same step (invariant 8).

/// Sums over the ranks' shares of one global batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tail {
    /// Weighted loss of all examples, divided as the recipe wants it: the loss that was differentiated.
    pub loss: f32,
    /// Sum of each task's losses.
    pub task_losses: Vec<f32>,
    /// Examples of each task.
    pub task_counts: Vec<f32>,
    /// Tokens, padding not counted.
    pub tokens: f32,
    /// Above 0 if a rank was asked to stop.
    pub stop: f32,
}

/// How many values a tail takes for so many tasks.
pub fn tail_length(tasks: usize) -> usize {
    3 + 2 * tasks
}

/// Where in a tail the loss is.
pub const LOSS_SLOT: usize = 0;
/// Where in a tail the tasks' losses begin.
pub const TASK_LOSSES_SLOT: usize = 3;

impl Tail {
    /// An empty one for so many tasks.
    pub fn new(tasks: usize) -> Self {
        Tail { task_losses: vec![0.0; tasks], task_counts: vec![0.0; tasks], ..Tail::default() }
    }

    /// Writes it into the end of the gradient buffer.
    pub fn write(&self, slots: &mut [f32]) {
        let head = [self.loss, self.tokens, self.stop];
        let values = head.iter().chain(&self.task_losses).chain(&self.task_counts);
        for (slot, value) in slots.iter_mut().zip(values) {
            *slot = *value;
        }
    }

    /// Reads it from there.
    pub fn read(slots: &[f32]) -> Tail {
        let tasks = (slots.len() - 3) / 2;
        Tail {
            loss: slots[0],
            tokens: slots[1],
            stop: slots[2],
            task_losses: slots[3..3 + tasks].to_vec(),
            task_counts: slots[3 + tasks..].to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let tail = Tail { loss: 1.0, task_losses: vec![2.0, 3.0], task_counts: vec![4.0, 5.0], tokens: 6.0, stop: 0.0 };
        let mut slots = vec![0.0; tail_length(2)];
        tail.write(&mut slots);
        assert_eq!(Tail::read(&slots), tail);
    }
}
