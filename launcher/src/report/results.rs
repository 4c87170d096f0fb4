//! Every score of a run: for each task and metric, what each kind of its models reached.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use bam_cluster::config::{Breadth, Mode, Recipe};
use bam_cluster::files;
use bam_cluster::plan::{ModelStage, Plan, StageWork};
use bam_cluster::run_dir::RunDir;
use bam_cluster::stage_record::{Scores, StageRecord};
use bam_cluster::task::Metric;
use serde_json::{Map, Value, json};

use super::statistics::median;

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
    /// Models that predict one class only: (stage, task).
    pub collapsed: Vec<(String, String)>,
    /// Stages that are not complete.
    pub missing: Vec<String>,
}

/// All models of one kind.
#[derive(Debug)]
pub struct Column {
    /// What they have in common.
    pub kind: ModelKind,
    /// One for each trial and member of an ensemble: models that together have learnt all tasks once.
    pub samples: Vec<Sample>,
}

/// Models that together have learnt all tasks once.
#[derive(Debug, Default)]
pub struct Sample {
    /// Trial and member of an ensemble.
    pub number: (u64, usize),
    /// Scores on dev.
    pub scores: Scores,
    /// Scores on MNLI's mismatched dev split, if it was predicted, under the task's name.
    pub mismatched: Scores,
    /// The stage whose model learnt a task.
    pub stages: BTreeMap<String, String>,
}

/// What models of a run have in common; a column of its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelKind {
    /// For people: `Single`, `Single→Multi`, …
    pub title: &'static str,
    /// For programs: `single`, `single-to-multi`, …
    pub key: &'static str,
}

impl Sample {
    fn score(&self, task: &str, metric: Metric) -> Option<f64> {
        score(&self.scores, task, metric)
    }

    /// Mean of the tasks' main metrics, as the paper has it; none if one is not there, or no share.
    fn average(&self, tasks: &[(String, Vec<Metric>)]) -> Option<f64> {
        self.mean(tasks, |task, metrics| self.score(task, *metrics.first()?).map(|s| vec![s]))
    }

    /// Mean over tasks of the mean of all their metrics, as GLUE has it; MNLI's are matched and mismatched accuracy, if
    /// the latter is known.
    fn glue_average(&self, tasks: &[(String, Vec<Metric>)]) -> Option<f64> {
        self.mean(tasks, |task, metrics| {
            let mut scores: Vec<f64> = metrics.iter().map(|m| self.score(task, *m)).collect::<Option<_>>()?;
            scores.extend(metrics.iter().filter_map(|m| score(&self.mismatched, task, *m)));
            Some(scores)
        })
    }

    /// Mean over tasks of the mean of those scores; none if one is missing, or is no share.
    fn mean(
        &self,
        tasks: &[(String, Vec<Metric>)],
        scores: impl Fn(&str, &[Metric]) -> Option<Vec<f64>>,
    ) -> Option<f64> {
        let mean = |scores: &[f64]| (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64);
        let of_task = |(task, metrics): &(String, Vec<Metric>)| {
            let shares = metrics.iter().all(|m| m.is_share());
            scores(task, metrics).filter(|_| shares).and_then(|s| mean(&s))
        };
        tasks.iter().map(of_task).collect::<Option<Vec<f64>>>().and_then(|s| mean(&s))
    }
}

fn score(scores: &Scores, task: &str, metric: Metric) -> Option<f64> {
    scores.get(task)?.metrics.get(metric.name()).copied().flatten()
}

impl Column {
    /// What its models reached; those that are not there yet, or undefined, are left out.
    pub fn scores(&self, task: &str, metric: Metric) -> Vec<f64> {
        self.samples.iter().filter_map(|s| s.score(task, metric)).collect()
    }

    /// What its models reached on a task's mismatched dev split.
    pub fn mismatched(&self, task: &str, metric: Metric) -> Vec<f64> {
        self.samples.iter().filter_map(|s| score(&s.mismatched, task, metric)).collect()
    }

    /// The averages of its models, as the paper has them.
    pub fn averages(&self, tasks: &[(String, Vec<Metric>)]) -> Vec<f64> {
        self.samples.iter().filter_map(|s| s.average(tasks)).collect()
    }

    /// The averages of its models, as GLUE has them.
    pub fn glue_averages(&self, tasks: &[(String, Vec<Metric>)]) -> Vec<f64> {
        self.samples.iter().filter_map(|s| s.glue_average(tasks)).collect()
    }
}

impl ModelKind {
    fn of_mode(mode: Mode) -> ModelKind {
        let key = match mode {
            Mode::Single => "single",
            Mode::Multi => "multi",
            Mode::SingleToSingle => "single-to-single",
            Mode::MultiToMulti => "multi-to-multi",
            Mode::SingleToMulti => "single-to-multi",
        };
        ModelKind { title: mode.title(), key }
    }

    /// The kind of the model that a stage trains. `teaches`: others learn from it.
    fn of_stage(stage: &ModelStage, mode: Mode, teaches: bool) -> ModelKind {
        match mode.teachers() {
            _ if stage.is_tuned => ModelKind { title: "Fine-tuned", key: "fine-tuned" },
            Some(Breadth::Single) if teaches => ModelKind::of_mode(Mode::Single),
            Some(Breadth::Multi) if teaches => ModelKind::of_mode(Mode::Multi),
            _ => ModelKind::of_mode(mode),
        }
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
            if is_done {
                let own: Scores = read(run.scores(&stage.name))?.unwrap_or_default();
                sample.stages.extend(own.keys().map(|task| (task.clone(), stage.name.clone())));
                let collapsed = own.iter().filter(|(_, s)| s.classes_predicted == Some(1));
                let collapsed: Vec<_> = collapsed.map(|(task, _)| (stage.name.clone(), task.clone())).collect();
                sample.scores.extend(own);
                let further: Scores = read(run.further_scores(&stage.name))?.unwrap_or_default();
                let mismatched = further
                    .into_iter()
                    .filter_map(|(name, scores)| Some((name.strip_suffix("-dev-mismatched")?.to_owned(), scores)));
                sample.mismatched.extend(mismatched);
                results.collapsed.extend(collapsed);
            }
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
        let collapsed: Vec<Value> =
            self.collapsed.iter().map(|(stage, task)| json!({ "stage": stage, "task": task })).collect();
        json!({
            "name": self.name,
            "mode": self.mode,
            "tasks": by_task(&|column, task, metric| json!(median(&column.scores(task, metric)))),
            "average": by_kind(&|column| json!(median(&column.averages(&self.tasks)))),
            "glue_average": by_kind(&|column| json!(median(&column.glue_averages(&self.tasks)))),
            "samples": by_task(&|column, task, metric| json!(column.scores(task, metric))),
            "mismatched": by_task(&|column, task, metric| json!(median(&column.mismatched(task, metric)))),
            "average_samples": by_kind(&|column| json!(column.averages(&self.tasks))),
            "collapsed": collapsed,
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
    use super::*;
    use bam_cluster::plan::TaskSize;
    use bam_cluster::stage_record::TaskScores;

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
        let score = |column: usize, task: &str, metric| results.columns[column].scores(task, metric);
        assert_eq!((score(0, "mrpc", Metric::Accuracy), score(1, "mrpc", Metric::Accuracy)), (vec![0.8], vec![]));
        assert_eq!((score(0, "mrpc", Metric::F1), score(0, "rte", Metric::Accuracy)), (vec![0.9], vec![]));
        assert_eq!(score(1, "rte", Metric::Accuracy), [0.6]);
        assert_eq!(results.collapsed, [("teacher-mrpc".to_owned(), "mrpc".to_owned())]);
        assert_eq!(results.missing, ["prepare", "teacher-rte", "logits"]);
        assert!(results.columns.iter().all(|c| c.averages(&results.tasks).is_empty()));
        let json = results.to_json();
        assert_eq!(json["mode"], "single-to-multi");
        assert_eq!(json["tasks"]["mrpc"]["f1"]["single"], 0.9);
        assert_eq!(json["tasks"]["rte"]["accuracy"]["single-to-multi"], 0.6);
        assert_eq!(json["seconds"]["student"], 2.0);
    }

    #[test]
    fn trials_and_members_are_samples_of_their_kind() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path());
        let text = "name: x\nmodel: { path: /m }\ndata: { glue: /g, tasks: [mrpc, stsb] }\ntrials: 2\ndistill: { ensemble: 2 }\n";
        let recipe: Recipe = serde_norway::from_str(text).unwrap();
        let size = |task: &str| TaskSize { task: task.into(), train: 9, dev: 9, further: BTreeMap::new() };
        let plan = Plan::derive(&recipe, &[size("mrpc"), size("stsb")]);
        for (i, stage) in plan.stages.iter().enumerate() {
            let StageWork::Train(train) = &stage.work else { continue };
            let metrics = ["accuracy", "f1", "pearson", "spearman"].map(|m| (m.to_owned(), Some(i as f64)));
            let one = TaskScores { metrics: metrics.into(), examples: 9, classes_predicted: None };
            let scores: Scores = train.tasks.iter().map(|t| (t.clone(), one.clone())).collect();
            files::write_json(&run.scores(&stage.name), &scores).unwrap();
            let record = StageRecord { inputs: Default::default(), outputs: Default::default(), seconds: 2.0 };
            bam_cluster::stage_record::finish(&run, &stage.name, &record).unwrap();
        }
        let results = Results::collect(&run, &recipe, &plan).unwrap();
        // prepare, four teachers (two tasks, two members), logits, student, and the same from teachers on.
        let [single, multi] = &results.columns[..] else { panic!() };
        assert_eq!(single.scores("mrpc", Metric::F1), [1.0, 3.0, 7.0, 9.0]);
        assert_eq!(single.averages(&results.tasks), [1.5, 3.5, 7.5, 9.5]);
        assert_eq!(multi.scores("stsb", Metric::Spearman), [6.0, 12.0]);
        assert_eq!(single.samples[1].stages["stsb"], "teacher-stsb.2");
        assert_eq!(results.to_json()["average"]["single-to-multi"], 9.0);
    }

    #[test]
    fn glues_average_takes_mnlis_mismatched_split_in() {
        let scores = |accuracy| {
            let metrics = BTreeMap::from([("accuracy".to_owned(), Some(accuracy)), ("mse".to_owned(), Some(0.1))]);
            Scores::from([("mnli".to_owned(), TaskScores { metrics, examples: 9, classes_predicted: None })])
        };
        let sample = Sample { scores: scores(0.8), mismatched: scores(0.6), ..Sample::default() };
        let of = |metrics: &[Metric]| {
            let tasks = [("mnli".to_owned(), metrics.to_vec())];
            (sample.average(&tasks), sample.glue_average(&tasks))
        };
        assert_eq!(of(&[Metric::Accuracy]), (Some(0.8), Some(0.7)));
        // An error is no share, and has no place in an average.
        assert_eq!(of(&[Metric::Mse]), (None, None));
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
