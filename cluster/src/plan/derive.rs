//! From a recipe and the sizes of its tasks to the stages of a run: a pure function.

use std::collections::BTreeMap;

use super::mixture::Mixture;
use super::schedule::Schedule;
use super::stages::{
    ChooseStage, LogitsStage, Plan, PredictStage, Question, Stage, StageWork, TaskSize, Teacher, TrainStage,
};
use crate::config::{Annealing, Breadth, GivenTeacher, GivenTeachers, Mode, PredictedSplit, Recipe, TrainSettings};
use crate::digest;

/// Base of the names of stages that run teachers.
const LOGITS: &str = "logits";

impl Plan {
    /// Derives the run from a recipe and the sizes of its tasks (in the recipe's order).
    pub fn derive(recipe: &Recipe, tasks: &[TaskSize]) -> Plan {
        let mut stages = vec![Stage { name: "prepare".into(), work: StageWork::Prepare }];
        let mut shared: Vec<Teacher> = vec![];
        for number in 1..=recipe.trials {
            let trial = Trial { recipe, tasks, number };
            let mut teachers = given_teachers(recipe);
            if recipe.distill.share_teachers && number > 1 {
                teachers.clone_from(&shared);
            } else if let Some(breadth) = recipe.mode.teachers() {
                let trained = trial.teachers(breadth);
                teachers.extend(teachers_of(&trained, &trial, &recipe.distill.teachers));
                stages.extend(trained);
                // Given teachers answer the same in every trial.
                let to_run = teachers.iter().filter(|t| number == 1 || t.given.is_none());
                let work = LogitsStage { teachers: to_run.cloned().collect() };
                if !work.teachers.is_empty() {
                    stages.push(Stage { name: trial.name(LOGITS), work: StageWork::Logits(work) });
                }
                shared.clone_from(&teachers);
            }
            stages.extend(trial.students(&teachers));
        }
        let questions = questions(recipe, tasks, &stages);
        if !questions.is_empty() {
            stages.push(Stage { name: "predict".into(), work: StageWork::Predict(PredictStage { questions }) });
        }
        Plan { recipe: recipe.identity(), tasks: tasks.to_vec(), stages }
    }
}

/// The teachers that are there already, in the order of the tasks.
fn given_teachers(recipe: &Recipe) -> Vec<Teacher> {
    let of_task = |(task, given): (&String, &GivenTeachers)| {
        let teacher = |(i, given): (usize, &GivenTeacher)| Teacher {
            task: task.clone(),
            name: format!("given-{}", i + 1),
            logits: LOGITS.to_owned(),
            given: Some(given.clone()),
        };
        given.0.iter().enumerate().map(teacher).collect::<Vec<_>>()
    };
    recipe.distill.teachers.iter().flat_map(of_task).collect()
}

/// Each task with every stage that learns it, but for tasks whose teachers are given.
fn teachers_of(models: &[Stage], trial: &Trial, given: &BTreeMap<String, GivenTeachers>) -> Vec<Teacher> {
    let of_stage = |stage: &Stage| -> Vec<(String, String)> {
        let tasks = stage.model().map(|m| m.tasks).unwrap_or_default();
        tasks.iter().map(|task| (task.clone(), stage.name.clone())).collect()
    };
    let taught = models.iter().flat_map(of_stage).filter(|(task, _)| !given.contains_key(task));
    taught.map(|(task, name)| Teacher { task, name, logits: trial.name(LOGITS), given: None }).collect()
}

/// What each trial's last model of each task is asked.
fn questions(recipe: &Recipe, tasks: &[TaskSize], stages: &[Stage]) -> Vec<Question> {
    let mut last: BTreeMap<(u64, &str), &str> = BTreeMap::new();
    for stage in stages {
        if let Some(model) = stage.model() {
            last.extend(model.tasks.iter().map(|task| ((model.trial, task.as_str()), stage.name.as_str())));
        }
    }
    let mut questions = vec![];
    for ((_, task), stage) in last {
        let Some(size) = tasks.iter().find(|t| t.task == task) else { continue };
        let asked = |split: PredictedSplit| recipe.predict.contains(&split);
        let own = [(PredictedSplit::Train, size.train), (PredictedSplit::Dev, size.dev)];
        let own = own.into_iter().filter(|(split, _)| asked(*split)).map(|(split, n)| (split.name().to_owned(), n));
        let further = size.further.iter().map(|(split, n)| (split.clone(), *n));
        questions.extend(own.chain(further).map(|(split, examples)| Question {
            stage: stage.to_owned(),
            task: task.to_owned(),
            split,
            examples,
        }));
    }
    questions
}

/// One of the times that everything is trained.
struct Trial<'a> {
    recipe: &'a Recipe,
    tasks: &'a [TaskSize],
    /// From 1.
    number: u64,
}

impl Trial<'_> {
    /// A stage's name: the first trial's have no addition, so that one trial looks as if there were no such thing.
    fn name(&self, base: &str) -> String {
        if self.number == 1 { base.to_owned() } else { format!("{base}@{}", self.number) }
    }

    /// The trainings of all teachers that are not given, each task's one after another.
    fn teachers(&self, breadth: Breadth) -> Vec<Stage> {
        let given = &self.recipe.distill.teachers;
        let untaught: Vec<TaskSize> = self.tasks.iter().filter(|t| !given.contains_key(&t.task)).cloned().collect();
        let learnt = if breadth == Breadth::Multi && !untaught.is_empty() { self.tasks } else { &untaught };
        let members = 1..=self.recipe.distill.ensemble;
        members.flat_map(|member| self.models(learnt, breadth, "teacher", member, &[])).collect()
    }

    /// The last models, and what is trained on from them.
    fn students(&self, teachers: &[Teacher]) -> Vec<Stage> {
        let role = match self.recipe.mode {
            Mode::Single => "single",
            Mode::Multi => "multi",
            Mode::SingleToSingle | Mode::MultiToMulti | Mode::SingleToMulti => "student",
        };
        let mut stages = self.models(self.tasks, self.recipe.mode.students(), role, 1, teachers);
        if let Some(settings) = &self.recipe.train.fine_tune {
            let tuned = |size: &TaskSize| {
                let base = format!("fine-tuned-{}", size.task);
                let mut train = self.training(&base, std::slice::from_ref(size), settings, vec![]);
                train.start = Some(self.name(role));
                Stage { name: self.name(&base), work: StageWork::Train(train) }
            };
            stages.extend(self.tasks.iter().map(tuned));
        }
        stages
    }

    /// The stages that train models in one role: one of all tasks, or one for each.
    fn models(
        &self,
        tasks: &[TaskSize],
        breadth: Breadth,
        role: &str,
        member: usize,
        teachers: &[Teacher],
    ) -> Vec<Stage> {
        let settings = self.recipe.train.of(breadth).candidates();
        // Task names have neither dot nor plus, so that a second 'rte' is never mistaken for a task 'rte-2'.
        let ending = if member == 1 { String::new() } else { format!(".{member}") };
        let stages = |base: String, learnt: &[TaskSize]| {
            let taught = |t: &&Teacher| learnt.iter().any(|l| l.task == t.task);
            let teachers: Vec<Teacher> = teachers.iter().filter(taught).cloned().collect();
            let train = |settings| TrainStage { member, ..self.training(&base, learnt, settings, teachers.clone()) };
            if let [only] = &settings[..] {
                return vec![Stage { name: self.name(&base), work: StageWork::Train(train(only)) }];
            }
            let candidate = |(i, settings)| Stage {
                name: self.name(&format!("{base}+{}", i + 1)),
                work: StageWork::Train(TrainStage { is_candidate: true, ..train(settings) }),
            };
            let mut stages: Vec<Stage> = settings.iter().enumerate().map(candidate).collect();
            let candidates = stages.iter().map(|s| s.name.clone()).collect();
            let tasks = learnt.iter().map(|l| l.task.clone()).collect();
            let choice = ChooseStage { tasks, candidates, trial: self.number, member };
            stages.push(Stage { name: self.name(&base), work: StageWork::Choose(choice) });
            stages
        };
        match breadth {
            Breadth::Multi if tasks.is_empty() => vec![],
            Breadth::Multi => stages(format!("{role}{ending}"), tasks),
            Breadth::Single => tasks
                .iter()
                .flat_map(|t| stages(format!("{role}-{}{ending}", t.task), std::slice::from_ref(t)))
                .collect(),
        }
    }

    fn training(&self, base: &str, sizes: &[TaskSize], settings: &TrainSettings, teachers: Vec<Teacher>) -> TrainStage {
        let recipe = self.recipe;
        let counts: Vec<usize> = sizes.iter().map(|s| s.train).collect();
        let tasks: Vec<String> = sizes.iter().map(|s| s.task.clone()).collect();
        let mixture = Mixture::of(&recipe.sampling, &counts).weighted(&tasks, &recipe.sampling.loss_weights);
        let steps_per_epoch = mixture.examples_per_epoch(&counts).div_ceil(settings.batch_size as u64);
        let total_steps = steps_per_epoch * settings.epochs;
        let constant_lambda = match (teachers.is_empty(), recipe.distill.annealing) {
            (true, _) | (false, Annealing::None) => Some(1.0),
            (false, Annealing::Constant) => recipe.distill.constant,
            (false, Annealing::Linear) => None,
        };
        // Trial k of seed s is what a run with seed s + k − 1 trains.
        let seed = recipe.seed.wrapping_add(self.number - 1);
        TrainStage {
            layerwise_decay: settings.factor(&tasks),
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
            trial: self.number,
            member: 1,
            seed: digest::seed_u64(&["stage", &seed.to_string(), base]),
            teachers,
            temperature: recipe.distill.temperature,
            start: None,
            is_candidate: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(mode: &str) -> Plan {
        let text = format!("name: x\nmode: {mode}\nmodel: {{ path: m }}\ndata: {{ glue: g, tasks: [cola, rte] }}\n");
        let recipe: Recipe = serde_norway::from_str(&text).unwrap();
        let size = |task: &str, train| TaskSize { task: task.into(), train, dev: 10, further: BTreeMap::new() };
        Plan::derive(&recipe, &[size("cola", 8551), size("rte", 2490)])
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.stages.iter().map(|s| s.name.as_str()).collect()
    }

    /// The reference implementation's sizes: MRPC and STS-B doubled, QNLI v1.
    #[test]
    fn the_references_run_has_its_steps() {
        let sizes = [
            ("cola", 8_551),
            ("sst2", 67_349),
            ("mrpc", 7_336),
            ("stsb", 11_498),
            ("qqp", 363_869),
            ("mnli", 392_702),
            ("qnli", 108_436),
            ("rte", 2_490),
        ];
        let names = sizes.map(|(task, _)| task).join(", ");
        let text = format!(
            "name: x\nmode: multi\nmodel: {{ path: m }}\ndata: {{ glue: g, tasks: [{names}] }}\nsampling: {{ method: multiples }}\n"
        );
        let recipe: Recipe = serde_norway::from_str(&text).unwrap();
        let size =
            |(task, train): (&str, usize)| TaskSize { task: task.into(), train, dev: 9, further: BTreeMap::new() };
        let multi = training(&Plan::derive(&recipe, &sizes.map(size)), "multi");
        let schedule = &multi.schedule;
        assert_eq!((multi.steps_per_epoch, schedule.total_steps, schedule.warmup_steps), (8_441, 50_646, 5_064));
    }

    #[test]
    fn the_weight_of_gold_labels_rises_stays_or_is_all() {
        let lambda = |distill: &str| {
            let plan = plan(&format!("single-to-multi\ndistill: {{ {distill} }}"));
            training(&plan, "student").schedule.constant_lambda
        };
        assert_eq!(lambda("annealing: linear"), None);
        assert_eq!(lambda("annealing: constant, lambda: 0.5"), Some(0.5));
        assert_eq!(lambda("annealing: none"), Some(1.0));
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
            teachers.into_iter().map(|t| format!("{} by {}", t.task, t.name)).collect::<Vec<_>>()
        };
        assert_eq!(taught("single-to-single", "student-rte"), ["rte by teacher-rte"]);
        assert_eq!(taught("multi-to-multi", "student"), ["cola by teacher", "rte by teacher"]);
        assert_eq!(taught("single-to-multi", "student"), ["cola by teacher-cola", "rte by teacher-rte"]);
        assert!(taught("single-to-multi", "teacher-rte").is_empty());
    }

    #[test]
    fn an_ensemble_has_a_training_for_each_member_with_a_seed_of_its_own() {
        let plan = plan("single-to-multi\ndistill: { ensemble: 2 }");
        let expected = ["teacher-cola", "teacher-rte", "teacher-cola.2", "teacher-rte.2", "logits", "student"];
        assert_eq!(names(&plan)[1..], expected);
        assert_ne!(training(&plan, "teacher-rte").seed, training(&plan, "teacher-rte.2").seed);
        let teachers = training(&plan, "student").teachers;
        assert_eq!(teachers.iter().filter(|t| t.task == "rte").count(), 2);
    }

    #[test]
    fn given_teachers_are_not_trained() {
        let plan_of = |mode: &str, given: &str| plan(&format!("{mode}\ndistill: {{ teachers: {{ {given} }} }}"));
        let one = plan_of("single-to-multi", "rte: [/a, /b]");
        assert_eq!(names(&one)[1..], ["teacher-cola", "logits", "student"]);
        let teachers = training(&one, "student").teachers;
        let said: Vec<_> = teachers.iter().map(|t| (t.task.as_str(), t.name.as_str(), t.given.is_some())).collect();
        assert_eq!(said, [("rte", "given-1", true), ("rte", "given-2", true), ("cola", "teacher-cola", false)]);
        assert_eq!(names(&plan_of("multi-to-multi", "rte: /a, cola: /a"))[1..], ["logits", "student"]);
        let some = plan_of("multi-to-multi", "rte: /a");
        assert_eq!(names(&some)[1..], ["teacher", "logits", "student"]);
        assert_eq!(training(&some, "teacher").tasks, ["cola", "rte"]);
    }

    #[test]
    fn a_trial_is_a_run_with_the_next_seed() {
        let two = plan("single-to-single\ntrials: 2\ndistill: { teachers: { cola: /a } }");
        let second = ["teacher-rte@2", "logits@2", "student-cola@2", "student-rte@2"];
        assert_eq!(names(&two)[5..], second);
        let next = plan("single-to-single\nseed: 2\ndistill: { teachers: { cola: /a } }");
        let (again, alone) = (training(&two, "student-rte@2"), training(&next, "student-rte"));
        assert_eq!((again.seed, again.trial, alone.trial), (alone.seed, 2, 1));
        assert_eq!((again.teachers[0].name.as_str(), again.teachers[0].logits.as_str()), ("teacher-rte@2", "logits@2"));
        assert_eq!(training(&two, "student-cola@2").teachers[0].logits, "logits");
        let shared = plan("single-to-multi\ntrials: 3\ndistill: { share_teachers: true }");
        assert_eq!(names(&shared)[3..], ["logits", "student", "student@2", "student@3"]);
        assert_eq!(training(&shared, "student@3").teachers, training(&shared, "student").teachers);
        let tuned = training(&plan("multi\ntrials: 2\ntrain: { fine_tune: {} }"), "fine-tuned-rte@2");
        assert_eq!(tuned.start.as_deref(), Some("multi@2"));
    }

    #[test]
    fn stages_need_what_they_are_made_from() {
        let plan = plan(
            "single-to-multi\ntrials: 2\ntrain: { fine_tune: {} }\ndistill: { teachers: { cola: /a } }\npredict: [dev]",
        );
        let needs = |stage: &str| plan.stage(stage).unwrap().needs();
        assert_eq!((needs("prepare"), needs("teacher-rte")), (vec![], vec!["prepare"]));
        assert_eq!(needs("logits@2"), ["prepare", "teacher-rte@2"]);
        assert_eq!(needs("student@2"), ["logits", "logits@2", "prepare"]);
        assert_eq!(needs("fine-tuned-rte"), ["prepare", "student"]);
        assert!(needs("predict").contains(&"fine-tuned-cola@2"));
        // Whatever a stage needs comes before it.
        for (i, stage) in plan.stages.iter().enumerate() {
            assert!(stage.needs().iter().all(|n| plan.stages[..i].iter().any(|s| s.name == *n)), "{}", stage.name);
        }
    }

    #[test]
    fn a_search_trains_candidates_and_chooses() {
        let search = "train: { single: { search: { learning_rate: [5.0e-5, 3.0e-5] } } }";
        let plan = plan(&format!("single-to-multi\n{search}"));
        let expected =
            ["teacher-cola+1", "teacher-cola+2", "teacher-cola", "teacher-rte+1", "teacher-rte+2", "teacher-rte"];
        assert_eq!(names(&plan)[1..7], expected);
        let StageWork::Choose(choice) = &plan.stage("teacher-rte").unwrap().work else { panic!() };
        assert_eq!((choice.tasks.as_slice(), choice.candidates.len()), (&["rte".to_owned()][..], 2));
        let [first, second] = ["teacher-rte+1", "teacher-rte+2"].map(|s| training(&plan, s));
        assert_eq!((first.seed, first.settings.learning_rate), (second.seed, 5e-5));
        assert_eq!(second.settings.learning_rate, 3e-5);
        let teachers: Vec<String> = training(&plan, "student").teachers.into_iter().map(|t| t.name).collect();
        assert_eq!(teachers, ["teacher-cola", "teacher-rte"]);
    }

    #[test]
    fn the_last_models_of_each_trial_are_asked() {
        let text = "name: x\nmodel: { path: m }\ndata: { glue: g, tasks: [cola, mnli] }\ntrials: 2\npredict: [dev, test]\n\
                    train: { fine_tune: {} }\n";
        let recipe: Recipe = serde_norway::from_str(text).unwrap();
        let size = |task: &str, further: &[(&str, usize)]| TaskSize {
            task: task.into(),
            train: 100,
            dev: 10,
            further: further.iter().map(|(s, n)| ((*s).to_owned(), *n)).collect(),
        };
        let plan = Plan::derive(&recipe, &[size("cola", &[("test", 7)]), size("mnli", &[("ax", 5)])]);
        let StageWork::Predict(predict) = &plan.stages.last().unwrap().work else { panic!() };
        let said: Vec<String> = predict.questions.iter().map(|q| format!("{} ({})", q.key(), q.examples)).collect();
        let expected = [
            "cola-dev by fine-tuned-cola (10)",
            "cola-test by fine-tuned-cola (7)",
            "mnli-dev by fine-tuned-mnli (10)",
            "mnli-ax by fine-tuned-mnli (5)",
            "cola-dev by fine-tuned-cola@2 (10)",
            "cola-test by fine-tuned-cola@2 (7)",
            "mnli-dev by fine-tuned-mnli@2 (10)",
            "mnli-ax by fine-tuned-mnli@2 (5)",
        ];
        assert_eq!(said, expected);
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
