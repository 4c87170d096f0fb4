//! `bam plan`: what would run and what it takes, at once and without starting anything.

use bam_cluster::config::{ConfigError, Mode, Reproducible, SlurmSection};
use bam_cluster::exit_code;
use bam_cluster::plan::{Schedule, StageWork, TrainStage};
use bam_cluster::run_dir::RunDir;
use serde_json::{Value, json};

use crate::cli::PlanArguments;
use crate::forecast::{Forecast, Layout, Memory, Pace, TrainingForecast, trainings};
use crate::numbers::{brief, bytes, count, thousands};
use crate::project::Project;
use crate::report::plain_table;
use crate::slurm::Allocation;

/// Prints the plan. What a run would refuse on the machines that are asked about is part of it, and an exit code.
pub fn run(arguments: &PlanArguments) -> anyhow::Result<u8> {
    let (project, layout) = load(arguments)?;
    let forecast = Forecast::of(&project, layout, pace(arguments, &project, &layout)?);
    let text = if arguments.json {
        serde_json::to_string_pretty(&to_json(&project, &forecast))? + "\n"
    } else {
        render(&project, &forecast)
    };
    super::print(&text)?;
    Ok(if forecast.problems.is_empty() { exit_code::DONE } else { exit_code::USAGE })
}

/// The project, and the machines that it is planned for.
fn load(arguments: &PlanArguments) -> anyhow::Result<(Project, Layout)> {
    let Some(nodes) = arguments.nodes else {
        let slurm = Project::recipe(&arguments.recipe, None).map(|recipe| recipe.slurm)?;
        let has_section = slurm != SlurmSection::default();
        // As many processes as bam run or bam submit would take.
        let tasks = Allocation::of_this_process().and_then(|job| job.tasks);
        let submitted = has_section.then(|| slurm.nodes.saturating_mul(slurm.gpus_per_node.unwrap_or(1)));
        let project = Project::load_for(&arguments.recipe, tasks.or(submitted))?;
        let nodes = if has_section { slurm.nodes } else { project.recipe.cluster.hosts.len().max(1) };
        let (processes, gpus_per_node) = (project.recipe.cluster.processes, slurm.gpus_per_node);
        return Ok((project, Layout { nodes, processes, gpus_per_node }));
    };
    // Of other machines than these, everything is shown: what does not fit is said beside it.
    let mut recipe = arguments.recipe.clone();
    let gpus_per_node = arguments.gpus_per_node.map(|n| n.get());
    let processes = recipe.processes.take().unwrap_or(nodes.get().saturating_mul(gpus_per_node.unwrap_or(1)));
    if processes == 0 {
        let (key, problem) = ("cluster.processes".to_owned(), "must be at least 1 (-n)".to_owned());
        return Err(ConfigError::Invalid { key, problem }.into());
    }
    let mut project = Project::load_for(&recipe, Some(1))?;
    project.recipe.cluster.processes = processes;
    project.recipe.cluster.hosts.clear();
    project.recipe.slurm.nodes = nodes.get();
    project.recipe.slurm.gpus_per_node = gpus_per_node;
    Ok((project, Layout { nodes: nodes.get(), processes, gpus_per_node }))
}

/// The speed to estimate time by: what is stated here, what was measured, what the recipe states. What was measured here says
/// nothing of GPUs elsewhere.
fn pace(arguments: &PlanArguments, project: &Project, layout: &Layout) -> anyhow::Result<Option<Pace>> {
    let stated = |samples_per_second| Pace::Stated { samples_per_second };
    if let Some(speed) = arguments.samples_per_second {
        return Ok(Some(stated(speed)));
    }
    let recipe = &project.recipe;
    let run = RunDir::new(super::directory_or_default(arguments.run_dir.as_deref(), &recipe.name)?);
    let is_here = arguments.nodes.is_none() || layout.gpus_per_node.is_none();
    let measured = if is_here { Pace::find(&run, recipe, &project.encoder.config) } else { None };
    Ok(measured.or(recipe.slurm.samples_per_second.map(stated)))
}

fn render(project: &Project, forecast: &Forecast) -> String {
    let mut text = head(project, forecast);
    text += &format!("\nTasks\n{}", tasks(project));
    text += &format!("\nStages\n{}", stages(project, forecast));
    text += &spread(forecast);
    for (stage, train) in trainings(project).filter(|(_, train)| train.tasks.len() > 1) {
        text += &format!("\nExamples that '{}' draws\n{}", stage.name, draws(train));
    }
    let of = |(stage, train): (&'_ bam_cluster::plan::Stage, &'_ TrainStage)| (stage.name.clone(), train.schedule);
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
    let row = |(i, stage): (usize, &bam_cluster::plan::Stage)| {
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
        let memory = training.memory.as_ref().map(Memory::usual).zip(training.memory.as_ref().map(Memory::most));
        vec![
            ranks.to_string(),
            range(share.fewest, share.most),
            format!("{} × {}", share.micro_batches, share.micro_batch),
            if *ranks > 1 { bytes(training.bytes_reduced) } else { "–".to_owned() },
            training.bytes_sent.map_or("–".to_owned(), bytes),
            memory.map_or("–".to_owned(), |(usual, most)| format!("{}, ≤ {}", bytes(usual), bytes(most))),
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
    let header = ["training", "ranks", "examples a rank", "passes", "reduced a step", "sent a rank", "memory a rank"];
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

/// Of each task its share of all examples, how many that is, how many passes over its data, and its loss weight.
fn drawn(train: &TrainStage) -> impl Iterator<Item = [f64; 4]> {
    let all = train.schedule.total_steps as f64 * train.settings.batch_size as f64;
    let shares = train.mixture.shares(&train.sizes).into_iter().enumerate();
    shares
        .map(move |(i, share)| [share, share * all, share * all / train.sizes[i] as f64, train.mixture.loss_weights[i]])
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

/// The milestones of a training.
fn steps(schedule: &Schedule) -> [u64; 6] {
    let total = schedule.total_steps;
    [0, schedule.warmup_steps, total / 4, total / 2, total * 3 / 4, total - 1]
}

/// What a schedule says of a step.
type Figure = fn(&Schedule, u64) -> String;

fn jobs(forecast: &Forecast) -> String {
    let row = |job: &crate::forecast::JobForecast| {
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

/// What docs/json.md describes.
fn to_json(project: &Project, forecast: &Forecast) -> Value {
    let (recipe, shape) = (&project.recipe, &project.encoder.config);
    let tasks = project.tasks.iter().zip(project.plan.tasks.iter().zip(&project.lengths));
    let tasks = tasks.map(|(task, (size, lengths))| {
        let metrics: Vec<&str> = task.metrics.iter().map(|m| m.name()).collect();
        let outputs = task.kind.output_names();
        json!({ "task": task.name, "outputs": outputs, "metrics": metrics, "train": size.train, "dev": size.dev, "tokens": lengths })
    });
    let stages = project.plan.stages.iter().enumerate().map(|(i, stage)| {
        let seconds = forecast.stage_seconds.as_ref().map(|all| all[i]);
        let ranks = recipe.cluster.ranks(stage.tasks_learnt());
        let mut value = json!({ "stage": stage.name, "ranks": ranks, "needs": stage.needs(), "seconds": seconds });
        if let StageWork::Train(train) = &stage.work {
            let draws = train.tasks.iter().zip(drawn(train)).map(|(task, [share, examples, epochs, loss_weight])| {
                json!({ "task": task, "share": share, "examples": examples, "epochs": epochs, "loss_weight": loss_weight })
            });
            let at = |step| {
                let s = &train.schedule;
                json!({ "step": step, "learning_rate": s.learning_rate(step), "lambda": s.lambda(step) })
            };
            value["training"] = json!({
                "epochs": train.settings.epochs,
                "batch_size": train.settings.batch_size,
                "steps": train.schedule.total_steps,
                "warmup_steps": train.schedule.warmup_steps,
                "layerwise_decay": train.layerwise_decay,
                "draws": draws.collect::<Vec<_>>(),
                "milestones": steps(&train.schedule).map(at),
            });
        }
        value
    });
    json!({
        "name": recipe.name,
        "mode": recipe.mode,
        "seed": recipe.seed,
        "trials": recipe.trials,
        "reproducible": recipe.reproducible,
        "virtual_shards": recipe.virtual_shards,
        "encoder": {
            "path": project.encoder.directory, "layers": shape.num_hidden_layers, "width": shape.hidden_size,
            "parameters": shape.parameters(),
        },
        "tasks": tasks.collect::<Vec<_>>(),
        "stages": stages.collect::<Vec<_>>(),
        "layout": forecast.layout,
        "trainings": forecast.trainings,
        "jobs": forecast.jobs,
        "disk": forecast.disk,
        "pace": forecast.pace,
        "seconds": forecast.seconds,
        "warnings": project.warnings.iter().chain(&forecast.warnings).collect::<Vec<_>>(),
        "problems": forecast.problems,
    })
}
