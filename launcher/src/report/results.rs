//! Every score of a run: for each task and metric, what each kind of its models reached.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use bam_cluster::config::{Breadth, Mode, Recipe};
use bam_cluster::files;
use bam_cluster::plan::{Plan, StageWork, TrainStage};
use bam_cluster::run_dir::RunDir;
use bam_cluster::stage_record::{Scores, StageRecord};
use serde_json::{Map, Value, json};

/// A run's results, as far as there are any.
#[derive(Debug, Default)]
pub struct Results {
    /// The run's name.
    pub name: String,
    /// Who taught whom.
    pub mode: Mode,
    /// Kinds of models, in the order in which they are trained.
    pub kinds: Vec<ModelKind>,
    /// Of each task, the main metric first.
    pub tasks: Vec<TaskResult>,
    /// Of each complete stage.
    pub seconds: BTreeMap<String, f64>,
    /// Models that predict one class only: (stage, task).
    pub collapsed: Vec<(String, String)>,
}

/// What models of a run have in common; a column of its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelKind {
    /// For people: `Single`, `Single→Multi`, …
    pub title: &'static str,
    /// For programs: `single`, `single-to-multi`, …
    pub key: &'static str,
}

/// One task's results.
#[derive(Debug)]
pub struct TaskResult {
    /// Its name.
    pub task: String,
    /// Its metrics, the main one first.
    pub metrics: Vec<MetricResult>,
}

/// One metric of one task.
#[derive(Debug)]
pub struct MetricResult {
    /// The metric's name.
    pub metric: &'static str,
    /// For each of the run's kinds of models, as shares; none: not there yet, or undefined.
    pub scores: Vec<Option<f64>>,
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
    fn of_stage(stage: &TrainStage, mode: Mode, teaches: bool) -> ModelKind {
        match mode.teachers() {
            _ if stage.start.is_some() => ModelKind { title: "Fine-tuned", key: "fine-tuned" },
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
        let mut results = Results { name: recipe.name.clone(), mode: recipe.mode, ..Results::default() };
        let mut scores: Vec<Scores> = vec![];
        let teaching = teaching_stages(plan);
        for stage in &plan.stages {
            let record: Option<StageRecord> = read(run.done(&stage.name))?;
            // Scores of a stage that was interrupted and is being made again would be of an older model.
            let is_done = record.is_some();
            results.seconds.extend(record.map(|r| (stage.name.clone(), r.seconds)));
            let StageWork::Train(train) = &stage.work else { continue };
            let kind = ModelKind::of_stage(train, recipe.mode, teaching.contains(stage.name.as_str()));
            let column = results.kinds.iter().position(|k| *k == kind).unwrap_or_else(|| {
                results.kinds.push(kind);
                scores.push(Scores::new());
                scores.len() - 1
            });
            let own: Scores = if is_done { read(run.scores(&stage.name))?.unwrap_or_default() } else { Scores::new() };
            let collapsed = own.iter().filter(|(_, s)| s.classes_predicted == Some(1));
            results.collapsed.extend(collapsed.map(|(task, _)| (stage.name.clone(), task.clone())));
            scores[column].extend(own);
        }
        for task in recipe.tasks() {
            let score = |scores: &Scores, metric| scores.get(&task.name)?.metrics.get(metric).copied().flatten();
            let metric = |metric: &bam_cluster::task::Metric| MetricResult {
                metric: metric.name(),
                scores: scores.iter().map(|s| score(s, metric.name())).collect(),
            };
            results.tasks.push(TaskResult { metrics: task.metrics.iter().map(metric).collect(), task: task.name });
        }
        Ok(results)
    }

    /// For each kind of models the mean of all tasks' main metrics; none if one is not there.
    pub fn averages(&self) -> Vec<Option<f64>> {
        let mean = |kind: usize| {
            let scores: Option<Vec<f64>> = self.tasks.iter().map(|t| t.metrics.first()?.scores[kind]).collect();
            scores.filter(|s| !s.is_empty()).map(|s| s.iter().sum::<f64>() / s.len() as f64)
        };
        (0..self.kinds.len()).map(mean).collect()
    }

    /// For `report.json`. Scores are shares.
    pub fn to_json(&self) -> Value {
        let by_kind = |scores: &[Option<f64>]| -> Value {
            self.kinds.iter().zip(scores).map(|(kind, score)| (kind.key.to_owned(), json!(score))).collect()
        };
        let tasks: Map<String, Value> = self
            .tasks
            .iter()
            .map(|task| {
                let scores = |m: &MetricResult| (m.metric.to_owned(), by_kind(&m.scores));
                (task.task.clone(), task.metrics.iter().map(scores).collect())
            })
            .collect();
        let collapsed: Vec<Value> =
            self.collapsed.iter().map(|(stage, task)| json!({ "stage": stage, "task": task })).collect();
        json!({
            "name": self.name,
            "mode": self.mode,
            "tasks": tasks,
            "average": by_kind(&self.averages()),
            "collapsed": collapsed,
            "seconds": self.seconds,
        })
    }
}

/// The stages whose models others learn from.
fn teaching_stages(plan: &Plan) -> BTreeSet<&str> {
    let teachers = plan.stages.iter().filter_map(|stage| match &stage.work {
        StageWork::Logits(logits) => Some(&logits.teachers),
        StageWork::Prepare | StageWork::Train(_) => None,
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
        let size = |task: &str| TaskSize { task: task.into(), train: 9, dev: 9 };
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
        assert_eq!(results.kinds.iter().map(|k| k.title).collect::<Vec<_>>(), ["Single", "Single→Multi"]);
        let all: Vec<_> = results
            .tasks
            .iter()
            .flat_map(|t| t.metrics.iter().map(|m| (t.task.as_str(), m.metric, m.scores.as_slice())))
            .collect();
        let expected = [
            ("mrpc", "accuracy", &[Some(0.8), None][..]),
            ("mrpc", "f1", &[Some(0.9), None]),
            ("rte", "accuracy", &[None, Some(0.6)]),
        ];
        assert_eq!(all, expected);
        assert_eq!(results.collapsed, [("teacher-mrpc".to_owned(), "mrpc".to_owned())]);
        assert_eq!(results.averages(), [None, None]);
        let json = results.to_json();
        assert_eq!(json["mode"], "single-to-multi");
        assert_eq!(json["tasks"]["mrpc"]["f1"]["single"], 0.9);
        assert_eq!(json["tasks"]["rte"]["accuracy"]["single-to-multi"], 0.6);
        assert_eq!(json["seconds"]["student"], 2.0);
    }

    #[test]
    fn every_mode_has_its_kinds_of_models() {
        let kinds = |mode: &str| {
            let text = format!("name: x\nmode: {mode}\nmodel: {{ path: /m }}\ndata: {{ glue: /g, tasks: [rte] }}\n");
            let recipe: Recipe = serde_norway::from_str(&text).unwrap();
            let plan = Plan::derive(&recipe, &[TaskSize { task: "rte".into(), train: 9, dev: 9 }]);
            let dir = tempfile::tempdir().unwrap();
            let results = Results::collect(&RunDir::new(dir.path()), &recipe, &plan).unwrap();
            results.kinds.iter().map(|k| k.key).collect::<Vec<_>>()
        };
        assert_eq!(kinds("single"), ["single"]);
        assert_eq!(kinds("multi\ntrain: { fine_tune: {} }"), ["multi", "fine-tuned"]);
        assert_eq!(kinds("single-to-single"), ["single", "single-to-single"]);
        assert_eq!(kinds("multi-to-multi"), ["multi", "multi-to-multi"]);
        assert_eq!(kinds("single-to-multi\ntrain: { fine_tune: {} }"), ["single", "single-to-multi", "fine-tuned"]);
    }
}
