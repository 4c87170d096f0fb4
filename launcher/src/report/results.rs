//! Every score of a run: for each task and metric, what each kind of its models reached.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::Context;
use bam_cluster::config::{Mode, Recipe};
use bam_cluster::files;
use bam_cluster::plan::{Plan, StageWork};
use bam_cluster::run_dir::RunDir;
use bam_cluster::stage_record::{Scores, StageRecord, TaskScores};
use bam_cluster::task::Metric;
use serde_json::{Map, Value, json};

use super::models::{Column, ModelKind, Sample};

/// A run's results, as far as there are any.
#[derive(Debug, Default)]
pub struct Results {
    /// The run's name.
    pub name: String,
    /// Who taught whom.
    pub mode: Mode,
    /// The tasks, with their metrics; the main one first.
    pub tasks: Vec<(String, Vec<Metric>)>,
    /// Models by kind, in the order in which they are trained.
    pub columns: Vec<Column>,
    /// Of each complete stage.
    pub seconds: BTreeMap<String, f64>,
    /// Models that answer everything alike.
    pub collapsed: Vec<Collapse>,
    /// Stages that are not complete.
    pub missing: Vec<String>,
}

/// A model that answers everything alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collapse {
    /// The stage that trained it.
    pub stage: String,
    /// The task.
    pub task: String,
    /// What it does.
    pub what: &'static str,
}

impl fmt::Display for Collapse {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "'{}' has collapsed on '{}': it {}", self.stage, self.task, self.what)
    }
}

impl Results {
    /// Reads what the stages of a run have scored so far.
    ///
    /// # Errors
    /// A file of scores cannot be read.
    pub fn collect(run: &RunDir, recipe: &Recipe, plan: &Plan) -> anyhow::Result<Results> {
        let tasks = recipe.tasks().into_iter().map(|task| (task.name, task.metrics)).collect();
        let mut results = Results { name: recipe.name.clone(), mode: recipe.mode, tasks, ..Results::default() };
        let teaching = teaching_stages(plan);
        for stage in &plan.stages {
            let record: Option<StageRecord> = read(run.done(&stage.name))?;
            // Scores of a stage that was interrupted and is being made again would be of an older model.
            let is_done = record.is_some();
            results.seconds.extend(record.map(|r| (stage.name.clone(), r.seconds)));
            results.missing.extend((!is_done).then(|| stage.name.clone()));
            let Some(model) = stage.model() else { continue };
            let kind = ModelKind::of_stage(&model, recipe.mode, teaching.contains(stage.name.as_str()));
            let sample = results.sample(kind, (model.trial, model.member));
            if !is_done {
                sample.missing.extend(model.tasks.iter().map(|task| (task.clone(), stage.name.clone())));
                continue;
            }
            let own: Scores = read(run.scores(&stage.name))?.unwrap_or_default();
            sample.stages.extend(own.keys().map(|task| (task.clone(), stage.name.clone())));
            let collapse = |(task, scores): (&String, &TaskScores)| {
                scores.collapse().map(|what| Collapse { stage: stage.name.clone(), task: task.clone(), what })
            };
            let collapsed: Vec<Collapse> = own.iter().filter_map(collapse).collect();
            sample.scores.extend(own);
            let further: Scores = read(run.further_scores(&stage.name))?.unwrap_or_default();
            let mismatched = further
                .into_iter()
                .filter_map(|(name, scores)| Some((name.strip_suffix("-dev-mismatched")?.to_owned(), scores)));
            sample.mismatched.extend(mismatched);
            results.collapsed.extend(collapsed);
        }
        Ok(results)
    }

    /// The sample of that kind and number, made if it is not there.
    fn sample(&mut self, kind: ModelKind, number: (u64, usize)) -> &mut Sample {
        let found = self.columns.iter().position(|c| c.kind == kind);
        let column = found.unwrap_or_else(|| {
            self.columns.push(Column { kind, samples: vec![] });
            self.columns.len() - 1
        });
        let samples = &mut self.columns[column].samples;
        let found = samples.iter().position(|s| s.number == number);
        let sample = found.unwrap_or_else(|| {
            samples.push(Sample { number, ..Sample::default() });
            samples.len() - 1
        });
        &mut samples[sample]
    }

    /// What has to be said of these results: models that have collapsed, and stages that are not complete.
    pub fn notes(&self) -> Vec<String> {
        let missing = (!self.missing.is_empty()).then(|| format!("not complete: {}", self.missing.join(", ")));
        self.collapsed.iter().map(Collapse::to_string).chain(missing).collect()
    }

    /// For `report.json`: medians, and what they are of. Scores are shares.
    pub fn to_json(&self) -> Value {
        let by_kind = |of: &dyn Fn(&Column) -> Value| -> Value {
            self.columns.iter().map(|column| (column.kind.key.to_owned(), of(column))).collect()
        };
        let by_task = |of: &dyn Fn(&Column, &str, Metric) -> Value| -> Map<String, Value> {
            let metrics = |(task, metrics): &(String, Vec<Metric>)| {
                let scores = |m: &Metric| (m.name().to_owned(), by_kind(&|column| of(column, task, *m)));
                (task.clone(), metrics.iter().map(scores).collect())
            };
            self.tasks.iter().map(metrics).collect()
        };
        let collapsed =
            |Collapse { stage, task, what }: &Collapse| json!({ "stage": stage, "task": task, "what": what });
        json!({
            "name": self.name,
            "mode": self.mode,
            "tasks": by_task(&|column, task, metric| json!(column.scores(task, metric).middle)),
            "average": by_kind(&|column| json!(column.average(&self.tasks).middle)),
            "glue_average": by_kind(&|column| json!(column.glue_average(&self.tasks).middle)),
            "samples": by_task(&|column, task, metric| json!(column.scores(task, metric).each)),
            "mismatched": by_task(&|column, task, metric| json!(column.mismatched(task, metric).middle)),
            "average_samples": by_kind(&|column| json!(column.average(&self.tasks).each)),
            "seeds": by_kind(&|column| json!({ "judged": column.judged(), "planned": column.samples.len() })),
            "collapsed": self.collapsed.iter().map(collapsed).collect::<Vec<_>>(),
            "missing": self.missing,
            "seconds": self.seconds,
        })
    }
}

/// The stages whose models others learn from.
fn teaching_stages(plan: &Plan) -> BTreeSet<&str> {
    let teachers = plan.stages.iter().filter_map(|stage| match &stage.work {
        StageWork::Logits(logits) => Some(&logits.teachers),
        _ => None,
    });
    teachers.flatten().filter(|t| t.given.is_none()).map(|t| t.name.as_str()).collect()
}

fn read<T: serde::de::DeserializeOwned>(path: std::path::PathBuf) -> anyhow::Result<Option<T>> {
    files::read_json(&path).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use bam_cluster::plan::TaskSize;

    use super::super::fabricated::{self, everywhere};
    use super::super::models::Summary;
    use super::*;

    #[test]
    fn scores_of_complete_stages_are_found_in_their_places() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path());
        let text = "name: x\nmodel: { path: /m }\ndata: { glue: /g, tasks: [mrpc, rte] }\n";
        let recipe: Recipe = serde_norway::from_str(text).unwrap();
        let size = |task: &str| TaskSize { task: task.into(), train: 9, dev: 9, further: BTreeMap::new() };
        let plan = Plan::derive(&recipe, &[size("mrpc"), size("rte")]);
        let scores = |accuracy, classes| TaskScores {
            metrics: BTreeMap::from([("accuracy".to_owned(), Some(accuracy)), ("f1".to_owned(), Some(0.9))]),
            examples: 9,
            classes_predicted: Some(classes),
            spread: None,
        };
        for (stage, task, value) in [
            ("teacher-mrpc", "mrpc", scores(0.8, 1)),
            ("student", "rte", scores(0.6, 2)),
            ("teacher-rte", "rte", scores(0.5, 2)),
        ] {
            files::write_json(&run.scores(stage), &Scores::from([(task.to_owned(), value)])).unwrap();
        }
        for stage in ["teacher-mrpc", "student"] {
            let record = StageRecord { inputs: Default::default(), outputs: Default::default(), seconds: 2.0 };
            bam_cluster::stage_record::finish(&run, stage, &record).unwrap();
        }
        let results = Results::collect(&run, &recipe, &plan).unwrap();
        assert_eq!(results.columns.iter().map(|c| c.kind.title).collect::<Vec<_>>(), ["Single", "Single→Multi"]);
        let score = |column: usize, task: &str, metric| results.columns[column].scores(task, metric).each;
        assert_eq!((score(0, "mrpc", Metric::Accuracy), score(1, "mrpc", Metric::Accuracy)), (vec![0.8], vec![]));
        assert_eq!((score(0, "mrpc", Metric::F1), score(0, "rte", Metric::Accuracy)), (vec![0.9], vec![]));
        assert_eq!(score(1, "rte", Metric::Accuracy), [0.6]);
        assert_eq!(
            results.notes(),
            [
                "'teacher-mrpc' has collapsed on 'mrpc': it predicts the same class for every dev example",
                "not complete: prepare, teacher-rte, logits"
            ]
        );
        assert_eq!(results.missing, ["prepare", "teacher-rte", "logits"]);
        assert!(results.columns.iter().all(|c| c.average(&results.tasks) == Summary::default()));
        assert_eq!(results.columns[0].samples[0].missing["rte"], "teacher-rte");
        let json = results.to_json();
        assert_eq!(json["mode"], "single-to-multi");
        assert_eq!(json["tasks"]["mrpc"]["f1"]["single"], 0.9);
        assert_eq!(json["tasks"]["rte"]["accuracy"]["single-to-multi"], 0.6);
        assert_eq!(json["seconds"]["student"], 2.0);
    }

    /// Results of a run of MRPC and STS-B; see [`fabricated::run`].
    fn judged(rest: &str, scores: impl Fn(usize, &str) -> Option<TaskScores>) -> Results {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("name: x\nmodel: {{ path: /m }}\ndata: {{ glue: /g, tasks: [mrpc, stsb] }}\n{rest}\n");
        fabricated::run(dir.path(), &text, scores).results
    }

    #[test]
    fn trials_and_members_are_samples_of_their_kind() {
        let results = judged("trials: 2\ndistill: { ensemble: 2 }", |i, _| Some(everywhere(Some(i as f64))));
        // prepare, four teachers (two tasks, two members), logits, student, and the same from teachers on.
        let [single, multi] = &results.columns[..] else { panic!() };
        assert_eq!(single.scores("mrpc", Metric::F1).each, [1.0, 3.0, 7.0, 9.0]);
        assert_eq!(single.average(&results.tasks).each, [1.5, 3.5, 7.5, 9.5]);
        assert_eq!(multi.scores("stsb", Metric::Spearman), Summary { middle: Some(9.0), each: vec![6.0, 12.0] });
        assert_eq!(single.samples[1].stages["stsb"], "teacher-stsb.2");
        assert_eq!(results.to_json()["average"]["single-to-multi"], 9.0);
    }

    /// Of three trials, a's scores are 0, 1, 1 and b's 1, 1, 0: the columns' mean is 1, the median of averages is 0.5.
    #[test]
    fn the_average_is_the_mean_of_the_tasks_medians() {
        let results = judged("mode: multi\ntrials: 3", |i, task| {
            Some(everywhere(Some(if (i, task) == (1, "mrpc") || (i, task) == (3, "stsb") { 0.0 } else { 1.0 })))
        });
        let [multi] = &results.columns[..] else { panic!() };
        let expected = Summary { middle: Some(1.0), each: vec![0.5, 1.0, 0.5] };
        assert_eq!((multi.average(&results.tasks), multi.glue_average(&results.tasks)), (expected.clone(), expected));
        let json = results.to_json();
        assert_eq!((&json["average"]["multi"], &json["glue_average"]["multi"]), (&json!(1.0), &json!(1.0)));
        assert_eq!(json["average_samples"]["multi"], json!([0.5, 1.0, 0.5]));
    }

    #[test]
    fn models_that_are_not_there_yet_are_not_counted() {
        let results = judged("mode: multi\ntrials: 20", |i, _| (i <= 3).then(|| everywhere(Some(0.5))));
        assert_eq!((results.columns[0].judged(), results.columns[0].seeds().as_str()), (3, "3 of 20"));
        assert_eq!(results.to_json()["seeds"]["multi"], json!({ "judged": 3, "planned": 20 }));
    }

    #[test]
    fn a_regression_that_collapsed_counts_as_0_and_is_named() {
        let results = judged("mode: multi\ntrials: 3", |i, task| {
            Some(everywhere(if (i, task) == (2, "stsb") { None } else { Some(0.8) }))
        });
        let multi = &results.columns[0];
        assert_eq!(multi.scores("stsb", Metric::Spearman), Summary { middle: Some(0.8), each: vec![0.8, 0.0, 0.8] });
        assert_eq!(multi.average(&results.tasks).each, [0.8, 0.4, 0.8]);
        let said = "'multi@2' has collapsed on 'stsb': it predicts nearly the same value for every dev example";
        assert_eq!(results.notes(), ["not complete: prepare"].map(|rest| [said, rest]).concat());
    }

    #[test]
    fn every_mode_has_its_kinds_of_models() {
        let kinds = |mode: &str| {
            let text = format!("name: x\nmode: {mode}\nmodel: {{ path: /m }}\ndata: {{ glue: /g, tasks: [rte] }}\n");
            let recipe: Recipe = serde_norway::from_str(&text).unwrap();
            let plan =
                Plan::derive(&recipe, &[TaskSize { task: "rte".into(), train: 9, dev: 9, further: BTreeMap::new() }]);
            let dir = tempfile::tempdir().unwrap();
            let results = Results::collect(&RunDir::new(dir.path()), &recipe, &plan).unwrap();
            results.columns.iter().map(|c| c.kind.key).collect::<Vec<_>>()
        };
        assert_eq!(kinds("single"), ["single"]);
        assert_eq!(kinds("multi\ntrain: { fine_tune: {} }"), ["multi", "fine-tuned"]);
        assert_eq!(kinds("single-to-single"), ["single", "single-to-single"]);
        assert_eq!(kinds("multi-to-multi"), ["multi", "multi-to-multi"]);
        assert_eq!(kinds("single-to-multi\ntrain: { fine_tune: {} }"), ["single", "single-to-multi", "fine-tuned"]);
    }
}
