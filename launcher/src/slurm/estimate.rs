//! How long the training of a job takes, from the speed that the recipe states or that the run's own steps have shown, and
//! what that means for its time limit.

use bam_cluster::config::Recipe;
use bam_cluster::plan::{Plan, StageWork};

use super::chain::{ChainJob, Ranks};
use crate::progress::StageProgress;

/// Seconds of training that the longest element of a job has before it; none if a speed is not known, or nothing is trained.
///
/// Stages that share a job's ranks out between them take as long as their ranks' share of it.
pub fn seconds(job: &ChainJob, plan: &Plan, recipe: &Recipe, progress: &[StageProgress]) -> Option<f64> {
    let all: Vec<Vec<String>> = match &job.elements[..] {
        [] => vec![plan.stages.iter().map(|stage| stage.name.clone()).collect()],
        elements => elements.iter().map(|element| element.stages.clone()).collect(),
    };
    let of_stage = |name: &String| -> Option<f64> {
        let stage = plan.stage(name);
        let open = progress.iter().find(|stage| stage.name == *name && !stage.is_done);
        let (Some(stage), Some(open)) = (stage, open) else { return Some(0.0) };
        let StageWork::Train(train) = &stage.work else { return Some(0.0) };
        let steps = train.schedule.total_steps.saturating_sub(open.checkpoint.unwrap_or_default()) as f64;
        let ranks = stage.ranks(&recipe.cluster) as f64;
        let stated = recipe.slurm.samples_per_second.map(|n| train.settings.batch_size as f64 / (n * ranks));
        let share = match job.ranks {
            Ranks::Computing(all) => ranks / all as f64,
            Ranks::OneNode | Ranks::One => 1.0,
        };
        Some(steps * open.step_seconds.or(stated)? * share)
    };
    let of_element = |stages: &Vec<String>| stages.iter().map(of_stage).sum::<Option<f64>>();
    let longest = all.iter().map(of_element).collect::<Option<Vec<f64>>>()?.into_iter().fold(0.0, f64::max);
    (longest > 0.0).then_some(longest)
}

/// What a person should know of a job that takes so many seconds; nothing if they fit.
pub fn note(job: &ChainJob, seconds: f64, recipe: &Recipe) -> Option<String> {
    let slurm = recipe.slurm.of_job(&job.name);
    let limit = slurm.seconds()?;
    let usable = limit.saturating_sub(slurm.lead) as f64;
    if seconds <= usable {
        return None;
    }
    let times = (seconds / usable).ceil() as u64 - 1;
    let times = if times == 1 { "once".to_owned() } else { format!("{times} times") };
    let about = humantime::format_duration(std::time::Duration::from_secs((seconds / 60.0).ceil() as u64 * 60));
    Some(format!(
        "note: '{}' trains for about {about} and has {} (slurm.time): it will stop at a checkpoint and go back into the queue \
         some {times}",
        job.name,
        humantime::format_duration(std::time::Duration::from_secs(limit)),
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bam_cluster::plan::{Stage, TaskSize};

    use super::super::chain::chain;
    use super::*;

    /// What is known of one stage's past: the steps in its checkpoint, and what a step took.
    #[derive(Clone, Copy)]
    struct Past {
        kept: u64,
        step: Option<f64>,
    }

    fn estimates(slurm: &str, past: impl Fn(&str) -> Option<Past>) -> Vec<(String, Option<f64>, Option<String>)> {
        let text = format!(
            "name: x\nmodel: {{ path: m }}\ndata: {{ glue: g, tasks: [rte, cola] }}\n\
             cluster: {{ processes: 4, single_processes: 2 }}\n\
             train: {{ single: {{ epochs: 1, batch_size: 10 }}, multi: {{ epochs: 1, batch_size: 10 }} }}\n\
             sampling: {{ method: uniform }}\nslurm: {{ {slurm} }}\n"
        );
        let recipe: Recipe = serde_norway::from_str(&text).unwrap();
        let size = |task: &str, train| TaskSize { task: task.into(), train, dev: 9, further: BTreeMap::new() };
        let plan = Plan::derive(&recipe, &[size("rte", 1_000), size("cola", 3_000)]);
        let jobs = chain(&plan, &recipe.cluster, |_| false);
        let progress = |stage: &Stage| StageProgress {
            name: stage.name.clone(),
            is_begun: true,
            is_done: past(&stage.name).is_none(),
            step: 0,
            total: None,
            checkpoint: past(&stage.name).map(|past| past.kept),
            step_seconds: past(&stage.name).and_then(|past| past.step),
            latest: None,
        };
        let progress: Vec<StageProgress> = plan.stages.iter().map(progress).collect();
        let whole = ChainJob::whole(&recipe.cluster);
        let jobs = jobs.into_iter().chain([whole]);
        jobs.map(|job| {
            let seconds = seconds(&job, &plan, &recipe, &progress);
            let note = seconds.and_then(|s| note(&job, s, &recipe));
            (job.name, seconds, note)
        })
        .collect()
    }

    fn of(estimates: &[(String, Option<f64>, Option<String>)], job: &str) -> Option<f64> {
        estimates.iter().find(|(name, ..)| name == job).unwrap().1
    }

    #[test]
    fn a_stated_speed_is_that_of_one_process() {
        let fresh = |_: &str| Some(Past { kept: 0, step: None });
        let all = estimates("samples_per_second: 0.5", fresh);
        // The longer teacher: 3,000 examples on two ranks; the student: 4,000 on four.
        assert_eq!((of(&all, "teacher"), of(&all, "student")), (Some(3_000.0), Some(2_000.0)));
        assert_eq!((of(&all, "prepare"), of(&all, "report")), (None, None));
        // Both teachers use half of the ranks.
        assert_eq!(of(&all, "all"), Some(500.0 + 1_500.0 + 2_000.0));
        assert!(estimates("", fresh).iter().all(|(_, seconds, _)| seconds.is_none()));
    }

    #[test]
    fn what_was_measured_counts_more_and_what_is_done_is_done() {
        let past = |stage: &str| match stage {
            "teacher-cola" => Some(Past { kept: 100, step: Some(3.0) }),
            "student" => Some(Past { kept: 0, step: None }),
            _ => None,
        };
        let all = estimates("samples_per_second: 1", past);
        assert_eq!((of(&all, "teacher"), of(&all, "student")), (Some(600.0), Some(1_000.0)));
    }

    #[test]
    fn a_job_that_does_not_fit_is_said_to_go_back_into_the_queue() {
        let fresh = |_: &str| Some(Past { kept: 0, step: None });
        let notes: Vec<String> =
            estimates("samples_per_second: 0.5, time: 17", fresh).into_iter().filter_map(|e| e.2).collect();
        assert_eq!(notes.len(), 3, "{notes:?}");
        assert!(notes[0].contains("'teacher' trains for about 50m and has 17m (slurm.time)"), "{notes:?}");
        assert!(notes[0].contains("some 3 times") && notes[1].contains("some 2 times"), "{notes:?}");
        assert!(estimates("samples_per_second: 0.5, time: 120", fresh).iter().all(|e| e.2.is_none()));
    }
}
