//! A plan as people read it: tables, and a foot with the whole of it.

use bam_cluster::config::{Mode, Reproducible};
use bam_cluster::plan::{Schedule, Stage, StageWork, TrainStage};

use super::{drawn, steps};
use crate::forecast::{Forecast, JobForecast, Layout, Pace, TrainingForecast, trainings};
use crate::numbers::{brief, bytes, count, thousands};
use crate::project::Project;
use crate::report::plain_table;

/// Everything.
pub fn render(project: &Project, forecast: &Forecast) -> String {
    let mut text = head(project, forecast);
    text += &format!("\nTasks\n{}", tasks(project));
    text += &format!("\nStages\n{}", stages(project, forecast));
    text += &spread(forecast);
    for (stage, train) in trainings(project).filter(|(_, train)| train.tasks.len() > 1) {
        text += &format!("\nExamples that '{}' draws\n{}", stage.name, draws(train));
    }
    let of = |(stage, train): (&Stage, &TrainStage)| (stage.name.clone(), train.schedule);
    let rate: Figure = |schedule, step| format!("{:.2e}", schedule.learning_rate(step));
    text += &format!("\nLearning rate\n{}", milestones(trainings(project).map(of), rate));
    let mut distilled = trainings(project).filter(|(_, train)| !train.teachers.is_empty()).peekable();
    if distilled.peek().is_some() {
        let lambda: Figure = |schedule, step| format!("{:.3}", schedule.lambda(step));
        text += &format!("\nλ, the weight of the gold labels\n{}", milestones(distilled.map(of), lambda));
    }
    if !forecast.jobs.is_empty() {
        text += &format!("\nJobs of Slurm\n{}", jobs(forecast));
    }
    text + &foot(project, forecast)
}

fn head(project: &Project, forecast: &Forecast) -> String {
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
    let Layout { nodes, gpus_per_node, .. } = forecast.layout;
    let hosts = match (nodes, gpus_per_node) {
        (1, None) => String::new(),
        (nodes, None) => format!(" on {}", count(nodes, "node")),
        (nodes, Some(gpus)) => format!(" on {} with {} each", count(nodes, "node"), count(gpus, "GPU")),
    };
    let warnings: String = project.warnings.iter().map(|w| format!("warning: {w}\n")).collect();
    format!(
        "{} ({mode})\n{}, processes {}{hosts}, at most {} tokens\n{bits}encoder {}: {} layers of width {}, {} parameters\n{warnings}",
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
    let sizes = project.plan.tasks.iter().zip(&project.lengths);
    let rows = project.tasks.iter().zip(sizes).map(|(task, (size, lengths))| {
        let metrics: Vec<&str> = task.metrics.iter().map(|m| m.name()).collect();
        let outputs = task.kind.output_names().join(", ");
        let tokens = format!("~{}, ≤ {}", lengths.mean, lengths.longest);
        vec![task.name.clone(), outputs, metrics.join(", "), tokens, thousands(size.train), thousands(size.dev)]
    });
    plain_table(&["task", "predicts", "judged by", "tokens", "train", "dev"], 3, &rows.collect::<Vec<_>>())
}

fn stages(project: &Project, forecast: &Forecast) -> String {
    let row = |(i, stage): (usize, &Stage)| {
        let seconds = forecast.stage_seconds.as_ref().map(|all| all[i]).filter(|seconds| *seconds > 0.0);
        let time = seconds.map(|seconds| format!("~{}", brief(seconds))).unwrap_or_default();
        let StageWork::Train(train) = &stage.work else {
            let empty = (0..6).map(|_| String::new());
            return std::iter::once(stage.name.clone()).chain(empty).chain([time]).collect();
        };
        let checkpoint = forecast.trainings.iter().find(|t| t.stage == stage.name).map(|t| bytes(t.checkpoint));
        vec![
            stage.name.clone(),
            train.settings.epochs.to_string(),
            thousands(train.settings.batch_size),
            thousands(train.schedule.total_steps as usize),
            thousands(train.schedule.warmup_steps as usize),
            train.layerwise_decay.to_string(),
            checkpoint.unwrap_or_default(),
            time,
        ]
    };
    let rows: Vec<Vec<String>> = project.plan.stages.iter().enumerate().map(row).collect();
    let header = ["stage", "epochs", "batch", "steps", "warm-up", "layer decay", "checkpoint", "time"];
    plain_table(&header, 1, &rows)
}

/// How each training is spread; those that are spread alike are one line.
fn spread(forecast: &Forecast) -> String {
    let range = |a: usize, b: usize| if a == b { a.to_string() } else { format!("{a}–{b}") };
    let row = |training: &TrainingForecast| {
        let TrainingForecast { ranks, share, .. } = training;
        let memory = &training.memory;
        vec![
            ranks.to_string(),
            range(share.fewest, share.most),
            format!("{} × {}", share.micro_batches, share.micro_batch),
            if *ranks > 1 { bytes(training.bytes_reduced) } else { "–".to_owned() },
            training.bytes_sent.map_or("–".to_owned(), bytes),
            format!("{}, ≤ {}", bytes(memory.usual()), bytes(memory.most())),
        ]
    };
    let mut rows: Vec<(String, usize, Vec<String>)> = vec![];
    for training in &forecast.trainings {
        let cells = row(training);
        match rows.iter_mut().find(|(_, _, known)| known[..3] == cells[..3]) {
            Some((_, more, _)) => *more += 1,
            None => rows.push((training.stage.clone(), 0, cells)),
        }
    }
    let named =
        rows.into_iter().map(|(name, more, cells)| std::iter::once(and_more(&name, more)).chain(cells).collect());
    let memory = if forecast.layout.gpus_per_node.is_some() { "memory a GPU" } else { "memory a rank" };
    let header = ["training", "ranks", "examples a rank", "passes", "reduced a step", "sent a rank", memory];
    format!("\nEach step\n{}", plain_table(&header, 1, &named.collect::<Vec<_>>()))
}

/// A stage that stands for others, too.
fn and_more(name: &str, more: usize) -> String {
    if more > 0 { format!("{name}, {more} more") } else { name.to_owned() }
}

/// How often each task is drawn, and how many passes over its data that makes.
fn draws(train: &TrainStage) -> String {
    let row = |[share, drawn, epochs, weight]: [f64; 4]| {
        [
            format!("{:.1} %", 100.0 * share),
            thousands(drawn.round() as usize),
            format!("{epochs:.1}"),
            format!("{weight:.3}"),
        ]
    };
    let named = train.tasks.iter().zip(drawn(train));
    let rows: Vec<_> = named.map(|(task, figures)| [vec![task.clone()], row(figures).to_vec()].concat()).collect();
    plain_table(&["task", "share", "examples", "epochs", "loss weight"], 1, &rows)
}

/// A figure of each training at its milestones, which are named once for all, as shares of the whole; trainings with the same
/// figures but for the number of their steps are one line.
fn milestones(trainings: impl Iterator<Item = (String, Schedule)>, show: Figure) -> String {
    let mut groups: Vec<(String, usize, Schedule)> = vec![];
    for (name, schedule) in trainings {
        let warm_up = |s: &Schedule| (100.0 * s.warmup_steps as f64 / s.total_steps as f64).round();
        let is_alike = |known: &Schedule| {
            (known.base_rate, known.constant_lambda, warm_up(known))
                == (schedule.base_rate, schedule.constant_lambda, warm_up(&schedule))
        };
        match groups.iter_mut().find(|(_, _, known)| is_alike(known)) {
            Some((_, more, _)) => *more += 1,
            None => groups.push((name, 0, schedule)),
        }
    }
    let row = |(name, more, schedule): (String, usize, Schedule)| {
        std::iter::once(and_more(&name, more)).chain(steps(&schedule).map(|step| show(&schedule, step))).collect()
    };
    let rows: Vec<Vec<String>> = groups.into_iter().map(row).collect();
    plain_table(&["stage", "first step", "warmed up", "25 %", "50 %", "75 %", "last step"], 1, &rows)
}

/// What a schedule says of a step.
type Figure = fn(&Schedule, u64) -> String;

fn jobs(forecast: &Forecast) -> String {
    let row = |job: &JobForecast| {
        let name = if job.elements > 1 { format!("{} [0–{}]", job.job, job.elements - 1) } else { job.job.clone() };
        let after = if job.after.is_empty() { "–".to_owned() } else { job.after.join(", ") };
        let time = job.seconds.filter(|seconds| *seconds > 0.0).map(|seconds| format!("~{}", brief(seconds)));
        let limit = job.time.clone().unwrap_or_else(|| "the site's".to_owned());
        vec![name, after, job.ranks.to_string(), job.nodes.to_string(), limit, time.unwrap_or_default()]
    };
    let rows: Vec<Vec<String>> = forecast.jobs.iter().map(row).collect();
    plain_table(&["job", "after", "ranks", "nodes", "limit", "time"], 2, &rows)
}

/// The whole of it, and what is wrong with it.
fn foot(project: &Project, forecast: &Forecast) -> String {
    let disk = &forecast.disk;
    let mut text = format!(
        "\ndisk  ~{}: checkpoints {} and {} while they are written, models {}, logits {}, data {}\n",
        bytes(disk.total()),
        bytes(disk.checkpoints),
        bytes(disk.being_written),
        bytes(disk.models),
        bytes(disk.logits),
        bytes(disk.data)
    );
    text += &match (&forecast.pace, forecast.seconds) {
        (Some(pace), Some(seconds)) => format!("time  ~{}, {}\n", brief(seconds), by(pace)),
        _ => "time  unknown: no run of this encoder was measured in this directory; state a speed (--samples-per-second)\n"
            .to_owned(),
    };
    text += "~ marks estimates (docs/json.md says how they are made)\n";
    if project.recipe.trials > 1 || project.recipe.distill.ensemble > 1 {
        text += "further trials and teachers of the same task differ in their seeds alone; tables but the first two show the first\n";
    }
    text.extend(forecast.warnings.iter().map(|warning| format!("warning: {warning}\n")));
    text.extend(forecast.problems.iter().map(|problem| format!("PROBLEM: {problem}\n")));
    text
}

fn by(pace: &Pace) -> String {
    match pace {
        Pace::Stated { samples_per_second } => {
            format!("if one process trains on {samples_per_second} examples a second, and more of them on as many more")
        }
        Pace::Measured { operations_per_second, run, stage } => format!(
            "at {:.0} GFLOP/s a process, as in '{stage}' of {run}, if more processes are as much faster",
            operations_per_second / 1e9
        ),
    }
}
