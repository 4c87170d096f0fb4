//! Every score of a run: for each task and metric, what the single-task model and the multi-task model reached.

use std::collections::BTreeMap;

use anyhow::Context;
use bam_cluster::config::{Mode, Recipe};
use bam_cluster::files;
use bam_cluster::plan::{Plan, StageWork};
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
    /// Of each task, the main metric first.
    pub tasks: Vec<TaskResult>,
    /// Of each complete stage.
    pub seconds: BTreeMap<String, f64>,
    /// Models that predict one class only: (stage, task).
    pub collapsed: Vec<(String, String)>,
}

/// One task's results.
#[derive(Debug)]
pub struct TaskResult {
    /// Its name.
    pub task: String,
    /// Its metrics, the main one first.
    pub metrics: Vec<MetricResult>,
}

/// One metric of one task, as shares; none: not there yet, or undefined.
#[derive(Debug)]
pub struct MetricResult {
    /// The metric's name.
    pub metric: &'static str,
    /// Of the model of this task alone.
    pub single: Option<f64>,
    /// Of the model of all tasks.
    pub student: Option<f64>,
}

impl Results {
    /// Reads what the stages of a run have scored so far.
    ///
    /// # Errors
    /// A file of scores cannot be read.
    pub fn collect(run: &RunDir, recipe: &Recipe, plan: &Plan) -> anyhow::Result<Results> {
        let trained: Vec<(&str, &[String])> = plan
            .stages
            .iter()
            .filter_map(|stage| match &stage.work {
                StageWork::Train(train) => Some((stage.name.as_str(), train.tasks.as_slice())),
                StageWork::Prepare | StageWork::Logits(_) => None,
            })
            .collect();
        // The multi-task model is always the last one that is trained.
        let singles = if recipe.mode == Mode::Single { trained.len() } else { trained.len().saturating_sub(1) };
        let (single_stages, student_stages) = trained.split_at(singles);
        let mut results = Results { name: recipe.name.clone(), mode: recipe.mode, ..Results::default() };
        let (mut single, mut student) = (Scores::new(), Scores::new());
        for (stages, all) in [(single_stages, &mut single), (student_stages, &mut student)] {
            for (stage, _) in stages {
                let scores = scores_of(run, stage)?;
                let collapsed = scores.iter().filter(|(_, s)| s.classes_predicted == Some(1));
                results.collapsed.extend(collapsed.map(|(task, _)| ((*stage).to_owned(), task.clone())));
                all.extend(scores);
            }
        }
        let score =
            |scores: &Scores, task: &str, metric: &str| scores.get(task)?.metrics.get(metric).copied().flatten();
        for task in recipe.tasks() {
            let metric = |metric: &bam_cluster::task::Metric| MetricResult {
                metric: metric.name(),
                single: score(&single, &task.name, metric.name()),
                student: score(&student, &task.name, metric.name()),
            };
            results.tasks.push(TaskResult { metrics: task.metrics.iter().map(metric).collect(), task: task.name });
        }
        for stage in &plan.stages {
            let record: Option<StageRecord> = read(run.done(&stage.name))?;
            results.seconds.extend(record.map(|r| (stage.name.clone(), r.seconds)));
        }
        Ok(results)
    }

    /// The mean of all tasks' main metrics for single-task and for multi-task models; none if one is not there.
    pub fn averages(&self) -> (Option<f64>, Option<f64>) {
        let mean = |pick: fn(&MetricResult) -> Option<f64>| {
            let scores: Option<Vec<f64>> = self.tasks.iter().map(|t| pick(t.metrics.first()?)).collect();
            scores.filter(|s| !s.is_empty()).map(|s| s.iter().sum::<f64>() / s.len() as f64)
        };
        (mean(|m| m.single), mean(|m| m.student))
    }

    /// For `report.json`. Scores are shares.
    pub fn to_json(&self) -> Value {
        let tasks: Map<String, Value> = self
            .tasks
            .iter()
            .map(|task| {
                let scores =
                    |m: &MetricResult| (m.metric.to_owned(), json!({ "single": m.single, "student": m.student }));
                (task.task.clone(), Value::Object(task.metrics.iter().map(scores).collect()))
            })
            .collect();
        let (single, student) = self.averages();
        let collapsed: Vec<Value> =
            self.collapsed.iter().map(|(stage, task)| json!({ "stage": stage, "task": task })).collect();
        json!({
            "name": self.name,
            "mode": self.mode,
            "tasks": tasks,
            "average": { "single": single, "student": student },
            "collapsed": collapsed,
            "seconds": self.seconds,
        })
    }
}

fn scores_of(run: &RunDir, stage: &str) -> anyhow::Result<Scores> {
    // Scores of a stage that was interrupted and is being made again would be of an older model.
    if !run.done(stage).exists() {
        return Ok(Scores::new());
    }
    Ok(read(run.scores(stage))?.unwrap_or_default())
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
        let all: Vec<_> = results
            .tasks
            .iter()
            .flat_map(|t| t.metrics.iter().map(|m| (t.task.as_str(), m.metric, m.single, m.student)))
            .collect();
        let expected = [
            ("mrpc", "accuracy", Some(0.8), None),
            ("mrpc", "f1", Some(0.9), None),
            ("rte", "accuracy", None, Some(0.6)),
        ];
        assert_eq!(all, expected);
        assert_eq!(results.collapsed, [("teacher-mrpc".to_owned(), "mrpc".to_owned())]);
        assert_eq!(results.averages(), (None, None));
        let json = results.to_json();
        assert_eq!(json["mode"], "single-to-multi");
        assert_eq!(json["tasks"]["mrpc"]["f1"]["single"], 0.9);
        assert_eq!(json["seconds"]["student"], 2.0);
    }
}
