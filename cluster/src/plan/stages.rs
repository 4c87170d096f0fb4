//! What a run consists of: stages, in order, each with everything that decides its outcome. `derive` makes them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::mixture::Mixture;
use super::schedule::Schedule;
use crate::config::{ClusterSection, GivenTeacher, TrainSettings};
use crate::digest;

/// How many examples a task has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSize {
    /// The task's name.
    pub task: String,
    /// Training examples.
    pub train: usize,
    /// Dev examples.
    pub dev: usize,
    /// Rows of each further split that is to be predicted and is there.
    #[serde(default)]
    pub further: BTreeMap<String, usize>,
}

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Hash of the recipe's part that decides what is learnt.
    pub recipe: String,
    /// Tasks and their sizes, in the recipe's order.
    pub tasks: Vec<TaskSize>,
    /// In order of execution.
    pub stages: Vec<Stage>,
}

/// One stage: its name and what it does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Unique; names `stages/NAME` in the run directory.
    pub name: String,
    /// What is done.
    pub work: StageWork,
}

/// What a stage does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StageWork {
    /// Tokenise every task once.
    Prepare,
    /// Train one model and judge it on dev.
    Train(TrainStage),
    /// Choose the model that is best on dev.
    Choose(ChooseStage),
    /// Run teachers over their training data.
    Logits(LogitsStage),
    /// Ask the last models about further splits.
    Predict(PredictStage),
}

/// One model's training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainStage {
    /// The tasks learnt, in order; their indices are those of draws and receipts.
    pub tasks: Vec<String>,
    /// Each task's training examples.
    pub sizes: Vec<usize>,
    /// Rates, batch, clipping.
    pub settings: TrainSettings,
    /// Factor between the rates of neighbouring layers.
    pub layerwise_decay: f64,
    /// Optimizer steps of one epoch: ⌈examples of an epoch / batch⌉.
    pub steps_per_epoch: u64,
    /// λ and learning rate.
    pub schedule: Schedule,
    /// How often each task is drawn, and what its losses weigh.
    pub mixture: Mixture,
    /// Which of the recipe's trials it belongs to, from 1.
    pub trial: u64,
    /// Which teacher of an ensemble it trains, from 1; 1 for all else.
    pub member: usize,
    /// Seed of data order, head initialisation and dropout in this stage.
    pub seed: u64,
    /// Who teaches each task; empty: gold labels alone.
    pub teachers: Vec<Teacher>,
    /// What teachers' logits are divided by.
    pub temperature: f64,
    /// The stage whose model it goes on from; none: from the pretrained encoder.
    pub start: Option<String>,
    /// Whether another stage chooses between its model and others.
    pub is_candidate: bool,
}

/// A choice between models of one task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChooseStage {
    /// The task; one, as a list for those who ask what a model has learnt.
    pub tasks: Vec<String>,
    /// The stages whose models there are.
    pub candidates: Vec<String>,
    /// As for [`TrainStage`].
    pub trial: u64,
    /// As for [`TrainStage`].
    pub member: usize,
}

/// A stage that leaves a model for others to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelStage<'a> {
    /// What the model has learnt.
    pub tasks: &'a [String],
    /// As for [`TrainStage`].
    pub trial: u64,
    /// As for [`TrainStage`].
    pub member: usize,
    /// Whether it goes on from another stage's model.
    pub is_tuned: bool,
}

impl Stage {
    /// The stages whose products it is made from.
    pub fn needs(&self) -> Vec<&str> {
        let mut needs: Vec<&str> = match &self.work {
            StageWork::Prepare => return vec![],
            StageWork::Train(train) => {
                let logits = train.teachers.iter().map(|t| t.logits.as_str());
                logits.chain(train.start.as_deref()).collect()
            }
            StageWork::Choose(choose) => choose.candidates.iter().map(String::as_str).collect(),
            StageWork::Logits(logits) => {
                logits.teachers.iter().filter(|t| t.given.is_none()).map(|t| t.name.as_str()).collect()
            }
            StageWork::Predict(predict) => predict.questions.iter().map(|q| q.stage.as_str()).collect(),
        };
        needs.push("prepare");
        needs.sort_unstable();
        needs.dedup();
        needs
    }

    /// Which of the recipe's trials it belongs to, from 1.
    pub fn trial(&self) -> u64 {
        self.name.split_once('@').and_then(|(_, trial)| trial.parse().ok()).unwrap_or(1)
    }

    /// Examples that it computes in training, as a measure of how long it takes; 0 if it trains nothing.
    pub fn examples(&self) -> u64 {
        match &self.work {
            StageWork::Train(train) => train.schedule.total_steps * train.settings.batch_size as u64,
            _ => 0,
        }
    }

    /// Whether it trains a model.
    pub fn is_training(&self) -> bool {
        matches!(self.work, StageWork::Train(_))
    }

    /// How many ranks it has. A choice needs none.
    pub fn ranks(&self, cluster: &ClusterSection) -> usize {
        match &self.work {
            StageWork::Choose(_) => 0,
            StageWork::Train(train) => match &train.tasks[..] {
                [task] => cluster.single_ranks(task, train.settings.batch_size),
                _ => cluster.processes,
            },
            StageWork::Prepare | StageWork::Logits(_) | StageWork::Predict(_) => cluster.processes,
        }
    }

    /// What model it leaves, if it leaves one. Candidates, between which another stage chooses, do not count.
    pub fn model(&self) -> Option<ModelStage<'_>> {
        match &self.work {
            StageWork::Train(t) if !t.is_candidate => {
                Some(ModelStage { tasks: &t.tasks, trial: t.trial, member: t.member, is_tuned: t.start.is_some() })
            }
            StageWork::Choose(c) => {
                Some(ModelStage { tasks: &c.tasks, trial: c.trial, member: c.member, is_tuned: false })
            }
            StageWork::Prepare | StageWork::Train(_) | StageWork::Logits(_) | StageWork::Predict(_) => None,
        }
    }
}

/// A model that teaches a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Teacher {
    /// The task taught.
    pub task: String,
    /// Unique among the teachers of a task, with the stage that trains the model if there is one; names
    /// `logits/NAME/TASK`.
    pub name: String,
    /// The stage that runs it over the task's training data.
    pub logits: String,
    /// The model, if no stage trains it.
    pub given: Option<GivenTeacher>,
}

impl Teacher {
    /// What its logits are called among the products of the stage that makes them.
    pub fn logits_key(&self) -> String {
        format!("{} by {}", self.task, self.name)
    }
}

/// Teachers to run over the training data of the tasks they teach.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogitsStage {
    /// Every teacher.
    pub teachers: Vec<Teacher>,
}

/// Questions to models that are trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PredictStage {
    /// Every question.
    pub questions: Vec<Question>,
}

/// What a model answers to every example of a split.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The stage that trained the model.
    pub stage: String,
    /// The task.
    pub task: String,
    /// The split.
    pub split: String,
    /// Examples of the split.
    pub examples: usize,
}

impl Question {
    /// What the answers are called among the products of the stage that gives them.
    pub fn key(&self) -> String {
        format!("{}-{} by {}", self.task, self.split, self.stage)
    }
}

impl Plan {
    /// The stage of that name.
    pub fn stage(&self, name: &str) -> Option<&Stage> {
        self.stages.iter().find(|s| s.name == name)
    }

    /// What launcher and ranks compare before the first step.
    pub fn hash(&self) -> String {
        digest::of_json(self)
    }
}

impl TrainStage {
    /// Epoch that a step belongs to, from 0.
    pub fn epoch_of(&self, step: u64) -> u64 {
        step / self.steps_per_epoch
    }
}
