//! Which stage may start next: one whose needs are met, on slots that are free. Of those that could, one of the earliest
//! trial, and the longest first where several can run side by side; what has to wait for more slots keeps no other waiting,
//! so that none lie idle while there is something to train.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use bam_cluster::config::ClusterSection;
use bam_cluster::plan::Stage;

use crate::backend::{Seats, Slots};

/// A run's stages and how far each has come.
pub(super) struct Schedule<'a> {
    stages: &'a [Stage],
    cluster: &'a ClusterSection,
    /// Not looked at yet.
    open: BTreeSet<usize>,
    /// Where those are that run.
    running: BTreeMap<&'a str, Seats>,
    slots: Slots,
    complete: BTreeSet<&'a str>,
}

impl<'a> Schedule<'a> {
    pub(super) fn new(stages: &'a [Stage], cluster: &'a ClusterSection, slots: Slots) -> Self {
        let open = (0..stages.len()).collect();
        Schedule { stages, cluster, open, running: BTreeMap::new(), slots, complete: BTreeSet::new() }
    }

    /// The stage to look at next, if there is one that could start now, and where.
    pub(super) fn next(&self) -> Option<(&'a Stage, Seats)> {
        let is_ready = |&&i: &&usize| self.stages[i].needs().iter().all(|need| self.complete.contains(need));
        let key = |&i: &usize| {
            let stage = &self.stages[i];
            // Those that fill the cluster run one after another in any case: in the order of the plan.
            let side_by_side = stage.ranks(self.cluster) < self.cluster.processes;
            (stage.trial(), Reverse(if side_by_side { self.length(stage) } else { 0 }), i)
        };
        let mut ready: Vec<usize> = self.open.iter().filter(is_ready).copied().collect();
        ready.sort_by_key(key);
        ready.iter().find_map(|&i| Some((&self.stages[i], self.slots.find(self.stages[i].ranks(self.cluster))?)))
    }

    /// How long a stage takes beside others: the examples of one of its ranks.
    fn length(&self, stage: &Stage) -> u64 {
        stage.examples() / stage.ranks(self.cluster).max(1) as u64
    }

    /// A stage has been started there.
    pub(super) fn start(&mut self, name: &str, seats: Seats) {
        if let Some(stage) = self.take(name) {
            self.slots.take(&seats);
            self.running.insert(&stage.name, seats);
        }
    }

    /// A stage is not to be started any more.
    pub(super) fn hold(&mut self, name: &str) {
        self.take(name);
    }

    /// A stage does not run any more.
    pub(super) fn end(&mut self, name: &str) {
        if let Some(seats) = self.running.remove(name) {
            self.slots.give_back(&seats);
        }
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

/// How many stages may run at the same time at most.
pub fn side_by_side(stages: &[Stage], cluster: &ClusterSection) -> usize {
    let fewest = stages.iter().map(|stage| stage.ranks(cluster)).filter(|ranks| *ranks > 0).min().unwrap_or(1);
    (cluster.processes / fewest).min(stages.len())
}

/// How long a run takes whose stages take so many seconds each, started as this schedule starts them on so many nodes.
pub fn duration(stages: &[Stage], cluster: &ClusterSection, nodes: usize, seconds: impl Fn(&Stage) -> f64) -> f64 {
    let mut schedule = Schedule::new(stages, cluster, Slots::even(nodes, cluster.processes));
    let (mut now, mut running) = (0.0, vec![]);
    loop {
        while let Some((stage, seats)) = schedule.next() {
            schedule.start(&stage.name, seats);
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

    fn ranks(processes: usize, single_processes: &str) -> ClusterSection {
        let single_processes = serde_norway::from_str(single_processes).unwrap();
        ClusterSection { processes, single_processes, ..ClusterSection::default() }
    }

    /// Which stages start together, wave by wave, if all of a wave end at the same time.
    fn waves<'a>(stages: &'a [Stage], cluster: &'a ClusterSection) -> Vec<Vec<&'a str>> {
        let mut schedule = Schedule::new(stages, cluster, Slots::even(1, cluster.processes));
        let mut waves = vec![];
        loop {
            let mut wave = vec![];
            while let Some((stage, seats)) = schedule.next() {
                schedule.start(&stage.name, seats);
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
        let cluster = ranks(4, "null");
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
        assert_eq!(waves(&stages(""), &ranks(4, "2")), expected);
        let two = stages("trials: 2");
        let cluster = ranks(8, "2");
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
        assert_eq!(duration(&all, &ranks(2, "null"), 1, seconds), 20.0);
        // Both of the shorter teachers beside the longest.
        assert_eq!(duration(&all, &ranks(2, "1"), 1, seconds), 13.0);
    }

    #[test]
    fn what_needs_a_stage_that_is_held_never_starts() {
        let all = stages("");
        let cluster = ranks(1, "null");
        let mut schedule = Schedule::new(&all, &cluster, Slots::even(1, 1));
        schedule.complete("prepare");
        schedule.hold("teacher-rte");
        for name in ["teacher-mrpc", "teacher-cola"] {
            assert_eq!(schedule.next().unwrap().0.name, name);
            schedule.complete(name);
        }
        assert!(schedule.next().is_none());
    }

    #[test]
    fn each_model_has_its_own_number_of_ranks_and_slots_that_no_other_has() {
        let all = stages("");
        let cluster = ranks(8, "{ cola: 4, rte: 1, default: 2 }");
        let mut schedule = Schedule::new(&all, &cluster, Slots::even(2, 8));
        schedule.complete("prepare");
        let start = |schedule: &mut Schedule, name: &str| {
            let (stage, seats) = schedule.next().unwrap();
            assert_eq!(stage.name, name);
            schedule.start(name, seats.clone());
            (seats.first, seats.ranks, seats.places)
        };
        // RTE's one rank has more to compute than each of CoLA's four, and each of those more than each of MRPC's two.
        assert_eq!(start(&mut schedule, "teacher-rte"), (0, vec![1], vec![0]));
        assert_eq!(start(&mut schedule, "teacher-cola"), (1, vec![4], vec![]));
        assert_eq!(start(&mut schedule, "teacher-mrpc"), (0, vec![2], vec![1, 2]));
        for name in ["teacher-cola", "teacher-rte"] {
            schedule.end(name);
            schedule.complete(name);
        }
        assert!(schedule.next().is_none());
        schedule.end("teacher-mrpc");
        schedule.complete("teacher-mrpc");
        assert_eq!(start(&mut schedule, "logits"), (0, vec![4, 4], vec![]));
    }

    #[test]
    fn a_choice_needs_no_ranks() {
        let all = stages("mode: single\ntrain: { single: { search: { learning_rate: [5.0e-5, 3.0e-5] } } }");
        let cluster = ranks(2, "1");
        let mut schedule = Schedule::new(&all, &cluster, Slots::even(1, 2));
        schedule.complete("prepare");
        for name in ["single-cola+1", "single-cola+2"] {
            let (stage, seats) = schedule.next().unwrap();
            assert_eq!(stage.name, name);
            schedule.start(name, seats);
        }
        schedule.complete("single-rte+1");
        schedule.complete("single-rte+2");
        assert_eq!(schedule.next().unwrap().0.name, "single-rte");
    }
}
