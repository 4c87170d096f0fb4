//! Which stage may start next: one whose needs are met, on ranks that are free; of the earliest trial, and the longest
//! first where several can run side by side.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use bam_cluster::config::ClusterSection;
use bam_cluster::plan::Stage;

/// A run's stages and how far each has come.
pub(super) struct Schedule<'a> {
    stages: &'a [Stage],
    cluster: &'a ClusterSection,
    /// Not looked at yet.
    open: BTreeSet<usize>,
    /// Ranks of those that run.
    running: BTreeMap<&'a str, usize>,
    complete: BTreeSet<&'a str>,
}

impl<'a> Schedule<'a> {
    pub(super) fn new(stages: &'a [Stage], cluster: &'a ClusterSection) -> Self {
        let open = (0..stages.len()).collect();
        Schedule { stages, cluster, open, running: BTreeMap::new(), complete: BTreeSet::new() }
    }

    /// The stage to look at next, if there is one that could start now.
    pub(super) fn next(&self) -> Option<&'a Stage> {
        let free = self.cluster.processes.saturating_sub(self.running.values().sum());
        let can_start = |&&i: &&usize| {
            let stage = &self.stages[i];
            self.cluster.ranks(stage.tasks_learnt()) <= free
                && stage.needs().iter().all(|need| self.complete.contains(need))
        };
        let side_by_side = 2 * self.cluster.ranks(1) <= self.cluster.processes;
        let key = |&&i: &&usize| {
            let stage = &self.stages[i];
            (stage.trial(), Reverse(if side_by_side { stage.examples() } else { 0 }), i)
        };
        self.open.iter().filter(can_start).min_by_key(key).map(|&i| &self.stages[i])
    }

    /// A stage has been started.
    pub(super) fn start(&mut self, name: &str) {
        if let Some(stage) = self.take(name) {
            self.running.insert(&stage.name, self.cluster.ranks(stage.tasks_learnt()));
        }
    }

    /// A stage is not to be started any more.
    pub(super) fn hold(&mut self, name: &str) {
        self.take(name);
    }

    /// A stage does not run any more.
    pub(super) fn end(&mut self, name: &str) {
        self.running.remove(name);
    }

    /// A stage's products are there.
    pub(super) fn complete(&mut self, name: &str) {
        self.take(name);
        self.complete.extend(self.stages.iter().map(|s| s.name.as_str()).filter(|n| *n == name));
    }

    /// Stages that were not started, each with the first that it waits for.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.open.iter().filter_map(|&i| {
            let stage = &self.stages[i];
            let need = stage.needs().into_iter().find(|need| !self.complete.contains(need))?;
            Some((stage.name.as_str(), need))
        })
    }

    pub(super) fn is_any_running(&self) -> bool {
        !self.running.is_empty()
    }

    fn take(&mut self, name: &str) -> Option<&'a Stage> {
        let index = self.stages.iter().position(|s| s.name == name)?;
        self.open.remove(&index);
        Some(&self.stages[index])
    }
}

/// How long a run takes whose stages take so many seconds each, started as this schedule starts them.
pub fn duration(stages: &[Stage], cluster: &ClusterSection, seconds: impl Fn(&Stage) -> f64) -> f64 {
    let mut schedule = Schedule::new(stages, cluster);
    let (mut now, mut running) = (0.0, vec![]);
    loop {
        while let Some(stage) = schedule.next() {
            schedule.start(&stage.name);
            running.push((now + seconds(stage), stage));
        }
        let next_end = (0..running.len()).min_by(|&a, &b| f64::total_cmp(&running[a].0, &running[b].0));
        let Some(next_end) = next_end else { return now };
        let (end, stage) = running.swap_remove(next_end);
        now = end;
        schedule.end(&stage.name);
        schedule.complete(&stage.name);
    }
}

#[cfg(test)]
mod tests {
    use bam_cluster::config::Recipe;
    use bam_cluster::plan::{Plan, TaskSize};

    use super::*;

    fn stages(more: &str) -> Vec<Stage> {
        let text = format!("name: x\nmodel: {{ path: m }}\ndata: {{ glue: g, tasks: [rte, mrpc, cola] }}\n{more}");
        let recipe: Recipe = serde_norway::from_str(&text).unwrap();
        let size =
            |(task, train): (&str, usize)| TaskSize { task: task.into(), train, dev: 9, further: BTreeMap::new() };
        let sizes: Vec<TaskSize> = [("rte", 2490), ("mrpc", 3668), ("cola", 8551)].map(size).to_vec();
        Plan::derive(&recipe, &sizes).stages
    }

    fn ranks(processes: usize, single_processes: Option<usize>) -> ClusterSection {
        ClusterSection { processes, single_processes, ..ClusterSection::default() }
    }

    /// Which stages start together, wave by wave, if all of a wave end at the same time.
    fn waves<'a>(stages: &'a [Stage], cluster: &'a ClusterSection) -> Vec<Vec<&'a str>> {
        let mut schedule = Schedule::new(stages, cluster);
        let mut waves = vec![];
        loop {
            let mut wave = vec![];
            while let Some(stage) = schedule.next() {
                schedule.start(&stage.name);
                wave.push(stage.name.as_str());
            }
            if wave.is_empty() {
                return waves;
            }
            for name in &wave {
                schedule.end(name);
                schedule.complete(name);
            }
            waves.push(wave);
        }
    }

    #[test]
    fn with_all_ranks_for_each_stage_they_run_in_the_order_of_the_plan() {
        let all = stages("trials: 2");
        let cluster = ranks(4, None);
        let order: Vec<&str> = waves(&all, &cluster).into_iter().flatten().collect();
        assert_eq!(order, all.iter().map(|s| s.name.as_str()).collect::<Vec<_>>());
    }

    #[test]
    fn single_models_run_side_by_side_the_longest_first() {
        let expected = [
            vec!["prepare"],
            vec!["teacher-cola", "teacher-mrpc"],
            vec!["teacher-rte"],
            vec!["logits"],
            vec!["student"],
        ];
        assert_eq!(waves(&stages(""), &ranks(4, Some(2))), expected);
        let two = stages("trials: 2");
        let cluster = ranks(8, Some(2));
        let wide = waves(&two, &cluster);
        assert_eq!(wide[1], ["teacher-cola", "teacher-mrpc", "teacher-rte", "teacher-cola@2"]);
    }

    #[test]
    fn a_run_takes_as_long_as_its_stages_one_after_another_or_side_by_side() {
        let all = stages("");
        let seconds = |stage: &Stage| match stage.name.as_str() {
            "teacher-cola" => 10.0,
            "teacher-mrpc" => 4.0,
            "teacher-rte" => 3.0,
            _ => 1.0,
        };
        assert_eq!(duration(&all, &ranks(2, None), seconds), 20.0);
        // Both of the shorter teachers beside the longest.
        assert_eq!(duration(&all, &ranks(2, Some(1)), seconds), 13.0);
    }

    #[test]
    fn what_needs_a_stage_that_is_held_never_starts() {
        let all = stages("");
        let cluster = ranks(1, None);
        let mut schedule = Schedule::new(&all, &cluster);
        schedule.complete("prepare");
        schedule.hold("teacher-rte");
        for name in ["teacher-mrpc", "teacher-cola"] {
            assert_eq!(schedule.next().unwrap().name, name);
            schedule.complete(name);
        }
        assert!(schedule.next().is_none());
    }
}
