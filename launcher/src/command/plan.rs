//! `bam plan`: what would run, at once and without starting anything.

use bam_cluster::config::{Mode, Reproducible};
use bam_cluster::exit_code;
use bam_cluster::plan::{Schedule, StageWork, TrainStage};

use crate::cli::RecipeArguments;
use crate::project::Project;
use crate::report::plain_table;

/// Bytes of one float32.
const FLOAT: usize = 4;
/// Weights and Adam's two moments.
const TENSORS_OF_A_CHECKPOINT: usize = 3;

/// Prints the plan.
pub fn run(arguments: &RecipeArguments) -> anyhow::Result<u8> {
    let project = Project::load(arguments)?;
    super::print(&render(&project))?;
    Ok(exit_code::DONE)
}

fn render(project: &Project) -> String {
    let mut text = head(project);
    text += &format!("\nTasks\n{}", tasks(project));
    text += &format!("\nStages\n{}", stages(project));
    for (name, train) in trainings(project).filter(|(_, train)| train.tasks.len() > 1) {
        text += &format!("\nExamples that '{name}' draws\n{}", draws(train));
    }
    let rate: Figure = |schedule, step| format!("{:.2e}", schedule.learning_rate(step));
    text += &format!("\nLearning rate\n{}", milestones(trainings(project), rate));
    let mut distilled = trainings(project).filter(|(_, train)| !train.teachers.is_empty()).peekable();
    if distilled.peek().is_some() {
        let lambda: Figure = |schedule, step| format!("{:.3}", schedule.lambda(step));
        text += &format!("\nλ, the weight of the gold labels\n{}", milestones(distilled, lambda));
    }
    text
}

/// The trainings of the first trial and of the first member of an ensemble; the others differ in their seeds alone.
fn trainings(project: &Project) -> impl Iterator<Item = (&str, &TrainStage)> {
    project.plan.stages.iter().filter_map(|stage| match &stage.work {
        StageWork::Train(train) => (train.trial == 1 && train.member == 1).then_some((stage.name.as_str(), train)),
        _ => None,
    })
}

fn head(project: &Project) -> String {
    let (recipe, encoder) = (&project.recipe, &project.encoder);
    let mode = match recipe.mode {
        Mode::Single => "single: one model per task",
        Mode::Multi => "multi: one model of all tasks",
        Mode::SingleToSingle => "single-to-single: one model per task, taught by another one of the same task",
        Mode::MultiToMulti => "multi-to-multi: one model of all tasks, taught by another one of all tasks",
        Mode::SingleToMulti => "single-to-multi: one model of all tasks, taught by one model per task",
    };
    let shape = &encoder.config;
    let bits = match recipe.reproducible {
        Reproducible::Processes => String::new(),
        Reproducible::WorldSize => {
            format!("reproducible: world-size, the same bits on 1 to {} processes\n", recipe.virtual_shards)
        }
    };
    let warnings: String = project.warnings.iter().map(|w| format!("warning: {w}\n")).collect();
    format!(
        "{} ({mode})\n{}, processes {}, at most {} tokens\n{bits}encoder {}: {} layers of width {}, {} parameters\n{warnings}",
        recipe.name,
        seeds(recipe.seed, recipe.trials),
        recipe.cluster.processes,
        recipe.model.max_length,
        encoder.directory.display(),
        shape.num_hidden_layers,
        shape.hidden_size,
        thousands(shape.parameters()),
    )
}

fn seeds(first: u64, trials: u64) -> String {
    if trials == 1 {
        format!("seed {first}")
    } else {
        format!("{trials} trials, seeds {first} to {}", first + trials - 1)
    }
}

fn tasks(project: &Project) -> String {
    let row = |(task, size): (&bam_cluster::task::Task, &bam_cluster::plan::TaskSize)| {
        let metrics: Vec<&str> = task.metrics.iter().map(|m| m.name()).collect();
        let outputs = task.kind.output_names().join(", ");
        vec![task.name.clone(), outputs, metrics.join(", "), thousands(size.train), thousands(size.dev)]
    };
    let rows: Vec<_> = project.tasks.iter().zip(&project.plan.tasks).map(row).collect();
    plain_table(&["task", "predicts", "judged by", "train", "dev"], 3, &rows)
}

fn stages(project: &Project) -> String {
    let row = |stage: &bam_cluster::plan::Stage| {
        let StageWork::Train(train) = &stage.work else {
            return std::iter::once(stage.name.clone()).chain((0..7).map(|_| String::new())).collect();
        };
        let parameters = parameters(project, train);
        vec![
            stage.name.clone(),
            train.settings.epochs.to_string(),
            thousands(train.settings.batch_size),
            thousands(train.schedule.total_steps as usize),
            thousands(train.schedule.warmup_steps as usize),
            train.layerwise_decay.to_string(),
            bytes(parameters * FLOAT),
            bytes(parameters * FLOAT * TENSORS_OF_A_CHECKPOINT),
        ]
    };
    let rows: Vec<Vec<String>> = project.plan.stages.iter().map(row).collect();
    let header = ["stage", "epochs", "batch", "steps", "warm-up", "layer decay", "reduced a step", "checkpoint"];
    plain_table(&header, 1, &rows)
}

/// Parameters of the encoder and of the heads of the stage's tasks.
fn parameters(project: &Project, train: &TrainStage) -> usize {
    let shape = &project.encoder.config;
    let learnt = project.tasks.iter().filter(|task| train.tasks.contains(&task.name));
    let outputs: usize = learnt.map(|task| task.kind.outputs()).sum();
    shape.parameters() + outputs * (shape.hidden_size + 1)
}

/// How often each task is drawn, and how many passes over its data that makes.
fn draws(train: &TrainStage) -> String {
    let all = train.schedule.total_steps as f64 * train.settings.batch_size as f64;
    let row = |(i, share): (usize, f64)| {
        let drawn = share * all;
        vec![
            train.tasks[i].clone(),
            format!("{:.1} %", 100.0 * share),
            thousands(drawn.round() as usize),
            format!("{:.1}", drawn / train.sizes[i] as f64),
            format!("{:.3}", train.mixture.loss_weights[i]),
        ]
    };
    let rows: Vec<_> = train.mixture.shares(&train.sizes).into_iter().enumerate().map(row).collect();
    plain_table(&["task", "share", "examples", "epochs", "loss weight"], 1, &rows)
}

/// A figure of each training at its milestones; those steps are named once for all, as shares of the whole.
fn milestones<'a>(trainings: impl Iterator<Item = (&'a str, &'a TrainStage)>, show: Figure) -> String {
    let row = |(name, train): (&str, &TrainStage)| {
        let schedule = &train.schedule;
        let total = schedule.total_steps;
        let steps = [0, schedule.warmup_steps, total / 4, total / 2, total * 3 / 4, total - 1];
        std::iter::once(name.to_owned()).chain(steps.map(|step| show(schedule, step))).collect()
    };
    let rows: Vec<Vec<String>> = trainings.map(row).collect();
    plain_table(&["stage", "first step", "warmed up", "25 %", "50 %", "75 %", "last step"], 1, &rows)
}

/// What a schedule says of a step.
type Figure = fn(&Schedule, u64) -> String;

/// `12,345`.
fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn bytes(n: usize) -> String {
    match n as f64 {
        n if n >= 1e9 => format!("{:.2} GB", n / 1e9),
        n if n >= 1e6 => format!("{:.1} MB", n / 1e6),
        n => format!("{:.1} kB", n / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_for_people() {
        assert_eq!([7, 999, 1_000, 335_141_888].map(thousands), ["7", "999", "1,000", "335,141,888"]);
        assert_eq!([1_500, 90_800_000, 1_340_000_000].map(bytes), ["1.5 kB", "90.8 MB", "1.34 GB"]);
    }
}
