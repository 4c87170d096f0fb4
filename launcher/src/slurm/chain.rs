//! The jobs that a run is made of on Slurm: stages that can run side by side are elements of one array, and each job waits
//! for those that make what it needs. A pure function of the plan.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use bam_cluster::config::ClusterSection;
use bam_cluster::plan::{Plan, Stage, StageWork};

/// The job that writes the table, and its name among the stages.
pub const REPORT: &str = "report";
/// The job that does everything, where there is only one.
pub const ALL: &str = "all";
/// The array of several trials.
const TRIAL: &str = "trial";
const PREPARE: &str = "prepare";
const FINE_TUNED: &str = "fine-tuned";
/// The job of nothing but choices between models.
const CHOICE: &str = "choice";

/// One job, or one array of jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainJob {
    /// What it is for: `teacher`, `student`, …; unique in the run.
    pub name: String,
    /// The stages of each element of an array; of one, if it is none. Empty: it does everything.
    pub elements: Vec<Element>,
    /// Whether it is submitted as an array. One of which most is done remains one, with the same numbers.
    pub is_array: bool,
    /// How many ranks each element has.
    pub ranks: Ranks,
    /// The jobs that must have ended well before it starts; for the report, the jobs that must have ended.
    pub after: Vec<String>,
}

/// A job's share of the work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// Its number in the array.
    pub index: u64,
    /// What it does.
    pub stages: Vec<String>,
}

/// How many ranks a job has, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ranks {
    /// It computes with so many, wherever they fit.
    Computing(usize),
    /// As many as one node has room for, without GPUs.
    OneNode,
    /// One, without GPUs.
    One,
}

impl Element {
    /// For people: the last of its stages, which all others lead to.
    pub fn does(&self) -> String {
        self.stages.last().cloned().unwrap_or_default()
    }
}

impl ChainJob {
    /// The one job that does the whole run.
    pub fn whole(cluster: &ClusterSection) -> ChainJob {
        ChainJob {
            name: ALL.to_owned(),
            elements: vec![],
            is_array: false,
            ranks: Ranks::Computing(cluster.processes),
            after: vec![],
        }
    }

    /// Whether it waits for ends of any kind.
    pub fn is_report(&self) -> bool {
        self.name == REPORT
    }
}

/// The jobs of a run of which these stages are complete, each after all that it waits for; none if all stages are.
///
/// Models that do not need one another are elements of one array, the longest first. If a trial consists of more than that
/// (teachers, logits, student, …), all of it is one element, so that a trial that fails keeps no other waiting.
pub fn chain(plan: &Plan, cluster: &ClusterSection, is_done: impl Fn(&str) -> bool) -> Vec<ChainJob> {
    let mut jobs: Vec<ChainJob> = vec![];
    let mut waited_for: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, stages) in groups(plan) {
        let mut elements = match &name[..] {
            CHOICE => vec![Element { index: 0, stages: stages.iter().map(|stage| stage.name.clone()).collect() }],
            _ => elements(&stages, name != TRIAL),
        };
        let is_array = elements.len() > 1;
        elements.retain(|element| !element.stages.iter().all(|stage| is_done(stage)));
        if elements.is_empty() {
            continue;
        }
        let makes = |job: &&ChainJob| {
            let mut made = job.elements.iter().flat_map(|element| &element.stages);
            made.any(|made| stages.iter().any(|stage| stage.needs().contains(&made.as_str())))
        };
        let needed: Vec<String> = jobs.iter().filter(makes).map(|job| job.name.clone()).collect();
        // What another one waits for need not be waited for again.
        let is_implied = |name: &String| needed.iter().any(|other| waited_for[other].contains(name));
        let after: Vec<String> = needed.iter().filter(|name| !is_implied(name)).cloned().collect();
        let all = needed.iter().flat_map(|name| waited_for[name].iter().chain([name])).cloned().collect();
        waited_for.insert(name.clone(), all);
        let ranks = match most_ranks(&stages, cluster) {
            _ if name == PREPARE => Ranks::OneNode,
            // Choices between models.
            0 => Ranks::One,
            ranks => Ranks::Computing(ranks),
        };
        jobs.push(ChainJob { name, elements, is_array, ranks, after });
    }
    if !jobs.is_empty() {
        let after = jobs.iter().map(|job| job.name.clone()).collect();
        let elements = vec![Element { index: 0, stages: vec![REPORT.to_owned()] }];
        jobs.push(ChainJob { name: REPORT.to_owned(), elements, is_array: false, ranks: Ranks::One, after });
    }
    jobs
}

/// The stages of each job, in order.
fn groups(plan: &Plan) -> Vec<(String, Vec<&Stage>)> {
    let mut levels: BTreeMap<&str, usize> = BTreeMap::new();
    let mut groups: BTreeMap<usize, Vec<&Stage>> = BTreeMap::new();
    for stage in &plan.stages {
        let needed = stage.needs().into_iter().filter_map(|need| levels.get(need)).max();
        let level = needed.map_or(0, |level| level + 1);
        levels.insert(&stage.name, level);
        groups.entry(level).or_default().push(stage);
    }
    let is_repeated = |stages: &[&Stage]| stages.iter().any(|stage| stage.trial() > 1);
    let repeated: Vec<usize> = groups.iter().filter(|(_, stages)| is_repeated(stages)).map(|(l, _)| *l).collect();
    let mut trials = None;
    let computing = repeated.iter().filter(|level| !are_choices(&groups[*level])).count();
    if let [first, more @ ..] = &repeated[..]
        && computing > 1
    {
        trials = Some(*first);
        for level in more {
            let stages = groups.remove(level).unwrap_or_default();
            groups.entry(*first).or_default().extend(stages);
        }
    }
    let name = |level, stages: &[&Stage]| {
        if trials == Some(level) {
            return TRIAL.to_owned();
        }
        if are_choices(stages) { CHOICE.to_owned() } else { stages.first().map_or(String::new(), |s| role(s)) }
    };
    groups.into_iter().map(|(level, stages)| (name(level, &stages), stages)).collect()
}

/// Whether these choose between models, which takes no time.
fn are_choices(stages: &[&Stage]) -> bool {
    stages.iter().all(|stage| matches!(stage.work, StageWork::Choose(_)))
}

/// What a stage's model is to the run: its name without the task, number and trial.
fn role(stage: &Stage) -> String {
    match stage.model() {
        Some(model) if model.is_tuned => FINE_TUNED.to_owned(),
        _ => stage.name.split(['-', '.', '+', '@']).next().unwrap_or_default().to_owned(),
    }
}

/// The stages that do not need one another, each with those that it shares a need or a use with in here.
fn elements(stages: &[&Stage], longest_first: bool) -> Vec<Element> {
    let mut parts: Vec<Vec<&Stage>> = vec![];
    for stage in stages {
        let needs = stage.needs();
        let (mut mine, others): (Vec<_>, Vec<_>) =
            parts.into_iter().partition(|part| part.iter().any(|s| needs.contains(&s.name.as_str())));
        mine.push(vec![*stage]);
        parts = others;
        parts.push(mine.concat());
    }
    let position = |stage: &&Stage| stages.iter().position(|s| s.name == stage.name);
    for part in &mut parts {
        part.sort_by_key(position);
    }
    if longest_first {
        parts.sort_by_key(|part| Reverse(part.iter().map(|stage| stage.examples()).sum::<u64>()));
    } else {
        parts.sort_by_key(|part| part.iter().map(|stage| stage.trial()).min());
    }
    let names = |part: Vec<&Stage>| part.into_iter().map(|stage| stage.name.clone()).collect();
    (0..).zip(parts).map(|(index, part)| Element { index, stages: names(part) }).collect()
}

fn most_ranks(stages: &[&Stage], cluster: &ClusterSection) -> usize {
    stages.iter().map(|stage| stage.ranks(cluster)).max().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bam_cluster::config::{JOB_NAMES, Recipe};
    use bam_cluster::plan::TaskSize;

    fn plan(more: &str) -> (Plan, ClusterSection) {
        let text = format!("name: x\nmodel: {{ path: m }}\ndata: {{ glue: g, tasks: [rte, mrpc, cola] }}\n{more}");
        let recipe: Recipe = serde_norway::from_str(&text).unwrap();
        let size =
            |(task, train): (&str, usize)| TaskSize { task: task.into(), train, dev: 9, further: BTreeMap::new() };
        let sizes: Vec<TaskSize> = [("rte", 2490), ("mrpc", 3668), ("cola", 8551)].map(size).to_vec();
        (Plan::derive(&recipe, &sizes), recipe.cluster)
    }

    /// `name ranks: stages | stages < what it waits for`, line by line.
    fn said(more: &str, done: &[&str]) -> Vec<String> {
        let (plan, cluster) = plan(more);
        let jobs = chain(&plan, &cluster, |stage| done.contains(&stage));
        let line = |job: ChainJob| {
            let element = |e: &Element| {
                let number = if job.is_array { format!("{}=", e.index) } else { String::new() };
                number + &e.stages.join(" ")
            };
            let elements: Vec<String> = job.elements.iter().map(element).collect();
            let ranks = match job.ranks {
                Ranks::Computing(n) => n.to_string(),
                other => format!("{other:?}"),
            };
            format!("{} {ranks}: {} < {}", job.name, elements.join(" | "), job.after.join(" "))
        };
        jobs.into_iter().map(line).collect()
    }

    #[test]
    fn one_trial_is_a_chain_with_teachers_side_by_side_the_longest_first() {
        let expected = [
            "prepare OneNode: prepare < ",
            "teacher 2: 0=teacher-cola | 1=teacher-mrpc | 2=teacher-rte < prepare",
            "logits 8: logits < teacher",
            "student 8: student < logits",
            "fine-tuned 2: 0=fine-tuned-cola | 1=fine-tuned-mrpc | 2=fine-tuned-rte < student",
            "predict 8: predict < fine-tuned",
            "report One: report < prepare teacher logits student fine-tuned predict",
        ];
        let recipe = "cluster: { processes: 8, single_processes: 2 }\ntrain: { fine_tune: {} }\npredict: [dev]";
        assert_eq!(said(recipe, &[]), expected);
    }

    #[test]
    fn candidates_are_elements_and_the_choice_is_made_after_them() {
        let recipe = "train: { single: { search: { learning_rate: [5.0e-5, 3.0e-5] } } }\nmode: single";
        let jobs = said(recipe, &[]);
        assert_eq!(
            jobs[1..3],
            [
                "single 1: 0=single-cola+1 | 1=single-cola+2 | 2=single-mrpc+1 | 3=single-mrpc+2 | 4=single-rte+1 | \
                 5=single-rte+2 < prepare",
                "choice One: single-rte single-mrpc single-cola < single",
            ]
        );
        let taught = said(&recipe.replace("mode: single", "mode: single-to-multi"), &[]);
        assert!(taught[1].starts_with("teacher 1: 0=teacher-cola+1 | 1=teacher-cola+2 | "), "{taught:?}");
        assert_eq!(
            taught[2..4],
            ["choice One: teacher-rte teacher-mrpc teacher-cola < teacher", "logits 1: logits < choice",]
        );
        let trials = said(&format!("{recipe}\ntrials: 2\npredict: [dev]"), &[]);
        assert!(
            trials[1].starts_with("single 1: 0=single-cola+1 | 1=single-cola+2 | 2=single-cola+1@2 "),
            "{trials:?}"
        );
        assert!(trials[2].starts_with("choice One: ") && trials[3] == "predict 1: predict < choice", "{trials:?}");
    }

    #[test]
    fn a_trial_is_an_element() {
        let own = said("trials: 2", &[]);
        assert_eq!(
            own[1..],
            [
                "trial 1: 0=teacher-rte teacher-mrpc teacher-cola logits student | \
                 1=teacher-rte@2 teacher-mrpc@2 teacher-cola@2 logits@2 student@2 < prepare",
                "report One: report < prepare trial",
            ]
        );
        let shared = said("trials: 3\ndistill: { share_teachers: true }", &[]);
        assert_eq!(shared[3], "student 1: 0=student | 1=student@2 | 2=student@3 < logits");
        let tuned = said("trials: 2\ndistill: { share_teachers: true }\ntrain: { fine_tune: {} }", &[]);
        assert!(tuned[3].starts_with("trial 1: 0=student fine-tuned-rte fine-tuned-mrpc"), "{tuned:?}");
        assert!(tuned[3].contains(" | 1=student@2 fine-tuned-rte@2 "), "{tuned:?}");
        let single = said("trials: 2\nmode: single", &[]);
        assert!(single[1].starts_with("single 1: 0=single-cola | 1=single-cola@2 | 2=single-mrpc"), "{single:?}");
    }

    /// The second trial's students learn from logits that the first trial has made.
    #[test]
    fn what_trials_share_puts_them_into_one_element() {
        let jobs = said("trials: 2\ndistill: { teachers: { cola: /a } }", &[]);
        assert_eq!(jobs.len(), 3);
        assert!(
            jobs[1].starts_with("trial 1: teacher-rte teacher-mrpc teacher-rte@2 teacher-mrpc@2 logits "),
            "{jobs:?}"
        );
    }

    #[test]
    fn what_is_done_is_not_submitted_again() {
        let done = ["prepare", "teacher-cola", "teacher-rte"];
        let expected = [
            "teacher 1: 1=teacher-mrpc < ",
            "logits 1: logits < teacher",
            "student 1: student < logits",
            "report One: report < teacher logits student",
        ];
        assert_eq!(said("", &done), expected);
        let all = ["prepare", "teacher-cola", "teacher-rte", "teacher-mrpc", "logits", "student"];
        assert!(said("", &all).is_empty());
    }

    #[test]
    fn every_stage_is_in_one_element_and_needs_no_other_element_of_its_job() {
        for recipe in [
            "",
            "trials: 3",
            "mode: multi-to-multi\ntrials: 2\ntrain: { fine_tune: {} }",
            "mode: single-to-single\ndistill: { ensemble: 2 }",
            "trials: 2\ndistill: { share_teachers: true, ensemble: 2 }\npredict: [train]",
            "trials: 2\ndistill: { teachers: { cola: /a } }\ntrain: { single: { search: { learning_rate: [5.0e-5, 3.0e-5] } } }",
        ] {
            let (plan, cluster) = plan(recipe);
            let jobs = chain(&plan, &cluster, |_| false);
            let mut seen = vec![];
            for job in &jobs {
                for element in &job.elements {
                    for stage in element.stages.iter().filter_map(|name| plan.stage(name)) {
                        let others = job.elements.iter().filter(|other| other.index != element.index);
                        let theirs: Vec<&str> = others.flat_map(|o| &o.stages).map(String::as_str).collect();
                        assert!(stage.needs().iter().all(|need| !theirs.contains(need)), "{recipe}: {}", stage.name);
                        seen.push(stage.name.as_str());
                    }
                }
                let names: Vec<&str> = jobs.iter().map(|j| j.name.as_str()).collect();
                assert_eq!(names.iter().filter(|n| **n == job.name).count(), 1, "{recipe}: {names:?}");
                assert!(JOB_NAMES.contains(&job.name.as_str()), "{recipe}: {names:?}");
            }
            seen.sort_unstable();
            let mut all: Vec<&str> = plan.stages.iter().map(|s| s.name.as_str()).collect();
            all.sort_unstable();
            assert_eq!(seen, all, "{recipe}");
        }
    }
}
