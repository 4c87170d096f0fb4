//! How many examples of each task a stage has learnt from: counted out, since the examples of every step follow from the
//! plan.

use bam_cluster::plan::{Sampler, TrainStage};

/// One task's share of a training.
#[derive(Debug, Clone, PartialEq)]
pub struct Draws {
    /// The task.
    pub task: String,
    /// Its training examples.
    pub size: usize,
    /// What share of all draws it should have.
    pub share: f64,
    /// Examples drawn so far, the same one every time it comes.
    pub drawn: u64,
}

/// The draws of the first `steps` steps.
pub fn count(stage: &TrainStage, steps: u64) -> Vec<Draws> {
    let batch = stage.settings.batch_size;
    let mut drawn = vec![0; stage.tasks.len()];
    if let [only] = &mut drawn[..] {
        *only = steps * batch as u64;
    } else {
        let mut sampler = Sampler::new(stage.seed, &stage.sizes, &stage.mixture.drawing, batch);
        for draw in (0..steps).flat_map(|_| sampler.next_batch()) {
            drawn[usize::from(draw.task)] += 1;
        }
    }
    let shares = stage.mixture.shares(&stage.sizes);
    let of_task = |(i, drawn): (usize, u64)| Draws {
        task: stage.tasks[i].clone(),
        size: stage.sizes[i],
        share: shares[i],
        drawn,
    };
    drawn.into_iter().enumerate().map(of_task).collect()
}

#[cfg(test)]
mod tests {
    use bam_cluster::config::Recipe;
    use bam_cluster::plan::{Plan, StageWork, TaskSize};

    use super::*;

    #[test]
    fn every_example_of_every_batch_is_counted() {
        let text = "name: x\nmodel: { path: m }\ndata: { glue: g, tasks: [rte, mrpc] }\n\
                    train: { multi: { epochs: 4, batch_size: 10 } }\n";
        let recipe: Recipe = serde_norway::from_str(text).unwrap();
        let size = |task: &str, train| TaskSize { task: task.into(), train, dev: 5, further: Default::default() };
        let plan = Plan::derive(&recipe, &[size("rte", 50), size("mrpc", 200)]);
        let StageWork::Train(student) = &plan.stage("student").unwrap().work else { panic!() };
        let draws = count(student, 100);
        assert_eq!(draws.iter().map(|d| d.drawn).sum::<u64>(), 1000);
        assert!(draws[1].drawn > draws[0].drawn && draws[0].drawn > 150, "{draws:?}");
        let StageWork::Train(teacher) = &plan.stage("teacher-rte").unwrap().work else { panic!() };
        assert_eq!(count(teacher, 3)[0].drawn, 3 * teacher.settings.batch_size as u64);
    }
}
