//! The stages of a run, in order, each with everything that decides its outcome.

use serde::{Deserialize, Serialize};

use super::mixture::Mixture;
use super::schedule::Schedule;
use crate::config::{Annealing, Breadth, Mode, Recipe, TrainSettings};
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
    /// Run teachers over their training data.
    Logits(LogitsStage),
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
    /// Seed of data order, head initialisation and dropout in this stage.
    pub seed: u64,
    /// Who teaches each task; empty: gold labels alone.
    pub teachers: Vec<Teacher>,
    /// What teachers' logits are divided by.
    pub temperature: f64,
    /// The stage whose model it goes on from; none: from the pretrained encoder.
    pub start: Option<String>,
}

/// A task and the stage whose model teaches it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Teacher {
    /// The task taught.
    pub task: String,
    /// The stage that trained the teacher.
    pub stage: String,
}

/// Teachers to run over the training data of the tasks they teach.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogitsStage {
    /// Every teacher.
    pub teachers: Vec<Teacher>,
}

impl Plan {
    /// Derives the run from a recipe and the sizes of its tasks (in the recipe's order).
    pub fn derive(recipe: &Recipe, tasks: &[TaskSize]) -> Plan {
        let mode = recipe.mode;
        let mut stages = vec![Stage { name: "prepare".into(), work: StageWork::Prepare }];
        let mut teachers = vec![];
        if let Some(breadth) = mode.teachers() {
            let models = models(recipe, tasks, breadth, "teacher", &[]);
            teachers = teachers_of(&models);
            stages.extend(models);
            let work = StageWork::Logits(LogitsStage { teachers: teachers.clone() });
            stages.push(Stage { name: "logits".into(), work });
        }
        let role = match mode {
            Mode::Single => "single",
            Mode::Multi => "multi",
            Mode::SingleToSingle | Mode::MultiToMulti | Mode::SingleToMulti => "student",
        };
        stages.extend(models(recipe, tasks, mode.students(), role, &teachers));
        if let Some(settings) = &recipe.train.fine_tune {
            for size in tasks {
                let name = format!("fine-tuned-{}", size.task);
                let mut train = train_stage(recipe, &name, std::slice::from_ref(size), settings, vec![]);
                train.start = Some(role.to_owned());
                stages.push(Stage { name, work: StageWork::Train(train) });
            }
        }
        Plan { recipe: recipe.identity(), tasks: tasks.to_vec(), stages }
    }

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

/// The stages that train models in one role: one of all tasks, or one for each.
fn models(recipe: &Recipe, tasks: &[TaskSize], breadth: Breadth, role: &str, teachers: &[Teacher]) -> Vec<Stage> {
    let settings = recipe.train.of(breadth);
    let stage = |name: String, learnt: &[TaskSize]| {
        let taught = |t: &&Teacher| learnt.iter().any(|l| l.task == t.task);
        let teachers = teachers.iter().filter(taught).cloned().collect();
        let work = StageWork::Train(train_stage(recipe, &name, learnt, settings, teachers));
        Stage { name, work }
    };
    match breadth {
        Breadth::Multi => vec![stage(role.to_owned(), tasks)],
        Breadth::Single => tasks.iter().map(|t| stage(format!("{role}-{}", t.task), std::slice::from_ref(t))).collect(),
    }
}

/// Each task with the stage that learns it.
fn teachers_of(models: &[Stage]) -> Vec<Teacher> {
    let tasks_of = |stage: &Stage| match &stage.work {
        StageWork::Train(train) => train.tasks.clone(),
        StageWork::Prepare | StageWork::Logits(_) => vec![],
    };
    let teacher = |stage: &Stage| {
        let name = stage.name.clone();
        tasks_of(stage).into_iter().map(move |task| Teacher { task, stage: name.clone() })
    };
    models.iter().flat_map(teacher).collect()
}

fn train_stage(
    recipe: &Recipe,
    name: &str,
    sizes: &[TaskSize],
    settings: &TrainSettings,
    teachers: Vec<Teacher>,
) -> TrainStage {
    let counts: Vec<usize> = sizes.iter().map(|s| s.train).collect();
    let mixture = Mixture::of(&recipe.sampling, &counts);
    let steps_per_epoch = mixture.examples_per_epoch(&counts).div_ceil(settings.batch_size as u64);
    let total_steps = steps_per_epoch * settings.epochs;
    let tasks: Vec<String> = sizes.iter().map(|s| s.task.clone()).collect();
    let constant_lambda = match (teachers.is_empty(), recipe.distill.annealing) {
        (true, _) => Some(1.0),
        (false, Annealing::Constant) => recipe.distill.constant,
        (false, Annealing::Linear) => None,
    };
    TrainStage {
        layerwise_decay: settings.layerwise_decay.of(&tasks),
        tasks,
        sizes: counts,
        steps_per_epoch,
        schedule: Schedule {
            total_steps,
            warmup_steps: (settings.warmup * total_steps as f64).floor() as u64,
            base_rate: settings.peak_rate(),
            constant_lambda,
        },
        settings: settings.clone(),
        mixture,
        seed: digest::seed_u64(&["stage", &recipe.seed.to_string(), name]),
        teachers,
        temperature: recipe.distill.temperature,
        start: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(mode: &str) -> Plan {
        let text = format!("name: x\nmode: {mode}\nmodel: {{ path: m }}\ndata: {{ glue: g, tasks: [cola, rte] }}\n");
        let recipe: Recipe = serde_norway::from_str(&text).unwrap();
        let size = |task: &str, train| TaskSize { task: task.into(), train, dev: 10 };
        Plan::derive(&recipe, &[size("cola", 8551), size("rte", 2490)])
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.stages.iter().map(|s| s.name.as_str()).collect()
    }

    #[test]
    fn each_mode_has_its_stages() {
        assert_eq!(names(&plan("single")), ["prepare", "single-cola", "single-rte"]);
        assert_eq!(names(&plan("multi")), ["prepare", "multi"]);
        assert_eq!(names(&plan("single-to-multi")), ["prepare", "teacher-cola", "teacher-rte", "logits", "student"]);
        assert_eq!(names(&plan("multi-to-multi")), ["prepare", "teacher", "logits", "student"]);
        let single = ["prepare", "teacher-cola", "teacher-rte", "logits", "student-cola", "student-rte"];
        assert_eq!(names(&plan("single-to-single")), single);
    }

    fn training(plan: &Plan, stage: &str) -> TrainStage {
        let StageWork::Train(train) = &plan.stage(stage).unwrap().work else { panic!() };
        train.clone()
    }

    #[test]
    fn each_student_has_the_teachers_of_its_own_tasks() {
        let taught = |mode: &str, stage: &str| {
            let teachers = training(&plan(mode), stage).teachers;
            teachers.into_iter().map(|t| format!("{} by {}", t.task, t.stage)).collect::<Vec<_>>()
        };
        assert_eq!(taught("single-to-single", "student-rte"), ["rte by teacher-rte"]);
        assert_eq!(taught("multi-to-multi", "student"), ["cola by teacher", "rte by teacher"]);
        assert_eq!(taught("single-to-multi", "student"), ["cola by teacher-cola", "rte by teacher-rte"]);
        assert!(taught("single-to-multi", "teacher-rte").is_empty());
    }

    #[test]
    fn settings_go_by_the_number_of_tasks() {
        let batch = |mode: &str, stage: &str| training(&plan(mode), stage).settings.batch_size;
        assert_eq!((batch("single-to-single", "teacher-rte"), batch("single-to-single", "student-rte")), (32, 32));
        assert_eq!((batch("multi-to-multi", "teacher"), batch("multi-to-multi", "student")), (128, 128));
    }

    #[test]
    fn the_rate_follows_the_batch_by_the_rule() {
        let peak = |scaling: &str| {
            let settings = format!("multi: {{ batch_size: 512, rate_scaling: {scaling} }}");
            training(&plan(&format!("multi\ntrain: {{ {settings} }}")), "multi").schedule.base_rate
        };
        assert_eq!((peak("none"), peak("square-root"), peak("linear")), (1e-4, 2e-4, 4e-4));
    }

    #[test]
    fn fine_tuning_goes_on_from_the_last_model_on_gold_labels() {
        let plan = plan("single-to-multi\ntrain: { fine_tune: {} }");
        assert_eq!(names(&plan)[5..], ["fine-tuned-cola", "fine-tuned-rte"]);
        let tuned = training(&plan, "fine-tuned-rte");
        assert_eq!((tuned.start.as_deref(), tuned.settings.learning_rate), (Some("student"), 1e-5));
        assert_eq!((tuned.schedule.constant_lambda, tuned.tasks), (Some(1.0), vec!["rte".to_owned()]));
    }

    #[test]
    fn steps_and_schedule_follow_from_sizes() {
        let plan = plan("single-to-multi");
        let StageWork::Train(student) = &plan.stage("student").unwrap().work else { panic!() };
        assert_eq!(student.steps_per_epoch, (8551 + 2490_u64).div_ceil(128));
        assert_eq!(student.schedule.total_steps, 87 * 6);
        assert_eq!(student.schedule.warmup_steps, 52);
        assert_eq!(student.schedule.constant_lambda, None);
        let StageWork::Train(teacher) = &plan.stage("teacher-rte").unwrap().work else { panic!() };
        assert_eq!(teacher.schedule.constant_lambda, Some(1.0));
        assert_ne!(teacher.seed, student.seed);
    }
}
