//! What a plan costs before it runs: how its batches are spread over ranks, and what it takes of memory, network, disk and time.
//! Estimates, by rules that each file here states; computed from recipe and plan alone, so that a cluster one does not sit on
//! can be rehearsed.

mod disk;
mod lengths;
mod memory;
mod pace;
mod remaining;
mod spread;

use bam_cluster::config::{FEW_EXAMPLES, Precision, Reproducible, SlurmSection};
use bam_cluster::encoder::EncoderConfig;
use bam_cluster::plan::{Stage, StageWork, TrainStage};
use bam_cluster::task::Task;
use serde::Serialize;

pub use disk::Disk;
pub use lengths::Lengths;
pub use memory::Memory;
pub use pace::Pace;
pub use remaining::Remaining;
pub use spread::{Layout, Share};

use self::memory::{FLOAT, GpuNumbers, Training};
use self::pace::Work;
use crate::conduct;
use crate::numbers::{bytes, count};
use crate::project::Project;
use crate::slurm::{ChainJob, Ranks, chain};

/// Bytes of memory of a rank on a CPU, beyond which a smaller micro-batch is worth a word.
const MUCH_MEMORY: f64 = (64u64 << 30) as f64;
/// A share of the ranks' time that is worth a warning.
const MUCH_WAITING: f64 = 0.1;

/// What a run costs.
#[derive(Debug, Serialize)]
pub struct Forecast {
    /// The machines.
    pub layout: Layout,
    /// Each training.
    pub trainings: Vec<TrainingForecast>,
    /// Bytes on disk.
    pub disk: Disk,
    /// By what speed time is estimated; none is known.
    pub pace: Option<Pace>,
    /// Seconds of each stage, in the order of the plan, by that speed.
    pub stage_seconds: Option<Vec<f64>>,
    /// Seconds of the whole run.
    pub seconds: Option<f64>,
    /// The jobs of Slurm, if the recipe has a section for them.
    pub jobs: Vec<JobForecast>,
    /// What works, but not as well as it could.
    pub warnings: Vec<String>,
    /// What `bam run` would refuse.
    pub problems: Vec<String>,
}

/// What a training costs.
#[derive(Debug, Serialize)]
pub struct TrainingForecast {
    /// The stage.
    pub stage: String,
    /// Its ranks.
    pub ranks: usize,
    /// What of each batch is one rank's.
    pub share: Share,
    /// Bytes of gradients that a rank hands in for each step to be added up; of the word embeddings, touched rows alone.
    pub bytes_reduced: f64,
    /// Bytes of a step that a rank sends over the network; unknown with `reproducible: world-size`.
    pub bytes_sent: Option<f64>,
    /// Memory of the rank that needs most: of its host, or of its GPU.
    pub memory: Memory,
    /// Bytes of one checkpoint.
    pub checkpoint: f64,
}

/// A job of Slurm.
#[derive(Debug, Serialize)]
pub struct JobForecast {
    /// What it is for.
    pub job: String,
    /// Elements of its array; 1 if it is none.
    pub elements: usize,
    /// Ranks of each.
    pub ranks: usize,
    /// Nodes of each.
    pub nodes: usize,
    /// The jobs that it waits for.
    pub after: Vec<String>,
    /// The limit that it asks for, as the recipe writes it.
    pub time: Option<String>,
    /// Seconds that its longest element takes.
    pub seconds: Option<f64>,
}

impl Forecast {
    /// For a run of this project on these machines, at this speed.
    pub fn of(project: &Project, layout: Layout, pace: Option<Pace>) -> Forecast {
        let Project { recipe, plan, encoder, .. } = project;
        let work = Work { plan, lengths: &project.lengths, shape: &encoder.config };
        let seconds_of = |stage: &Stage| {
            let ranks = stage.ranks(&recipe.cluster);
            pace.as_ref().map(|pace| work.seconds(stage, ranks, pace))
        };
        let stage_seconds: Option<Vec<f64>> = plan.stages.iter().map(seconds_of).collect();
        let whole = |_: &Vec<f64>| {
            conduct::duration(&plan.stages, &recipe.cluster, layout.nodes, |stage| {
                seconds_of(stage).unwrap_or_default()
            })
        };
        let mut forecast = Forecast {
            layout,
            trainings: trainings(project).map(|(stage, train)| training(project, &layout, stage, train)).collect(),
            disk: Disk::of(recipe, plan, &project.tasks, &project.lengths, &encoder.config),
            seconds: stage_seconds.as_ref().map(whole),
            stage_seconds,
            pace: pace.clone(),
            jobs: vec![],
            warnings: vec![],
            problems: problems(project, &layout),
        };
        if recipe.slurm != SlurmSection::default() {
            let jobs = chain(plan, &recipe.cluster, |_| false);
            forecast.jobs = jobs.iter().map(|job| forecast_job(project, &layout, job, seconds_of)).collect();
        }
        forecast.warnings = warnings(project, &forecast);
        forecast
    }
}

/// The trainings of the first trial and of the first member of an ensemble; the others differ in their seeds alone.
pub fn trainings(project: &Project) -> impl Iterator<Item = (&Stage, &TrainStage)> {
    project.plan.stages.iter().filter_map(|stage| match &stage.work {
        StageWork::Train(train) => (train.trial == 1 && train.member == 1).then_some((stage, train)),
        _ => None,
    })
}

/// Parameters of the encoder and of the heads of some tasks.
pub fn parameters(shape: &EncoderConfig, tasks: &[Task], learnt: &[String]) -> usize {
    let outputs: usize = tasks.iter().filter(|task| learnt.contains(&task.name)).map(|task| task.kind.outputs()).sum();
    shape.parameters() + outputs * (shape.hidden_size + 1)
}

fn training(project: &Project, layout: &Layout, stage: &Stage, train: &TrainStage) -> TrainingForecast {
    let Project { recipe, encoder, tasks, plan, lengths, .. } = project;
    let shape = &encoder.config;
    let (batch, ranks) = (train.settings.batch_size, stage.ranks(&recipe.cluster));
    let share = Share::of(batch, ranks, recipe.reproducible, recipe.virtual_shards, train.settings.micro_batch_size);
    let work = Work { plan, lengths, shape };
    let shares = train.mixture.shares(&train.sizes);
    let mean: f64 = train.tasks.iter().zip(&shares).map(|(task, share)| share * work.mean(task) as f64).sum();
    let own = plan.tasks.iter().zip(lengths).filter(|(size, _)| train.tasks.contains(&size.task));
    let longest = own.map(|(_, lengths)| lengths.longest).max().unwrap_or_default();
    let parameters = parameters(shape, tasks, &train.tasks);
    let is_fixed = recipe.reproducible == Reproducible::WorldSize;
    let words = if is_fixed { shape.vocab_size } else { touched_rows(shape, batch as f64 * mean) };
    let bytes_reduced = (parameters - (shape.vocab_size - words) * shape.hidden_size) as f64 * FLOAT;
    let shards = if is_fixed { recipe.virtual_shards.div_ceil(ranks) } else { 1 };
    let needs = Training {
        shape,
        parameters,
        ranks_on_a_node: ranks.min(layout.ranks_on_a_node()),
        micro_batch: share.micro_batch,
        copies_checkpoints: recipe.checkpoint.asynchronous,
        waiting_gradients: shards.ilog2() as usize,
    };
    let mean_length = mean.round() as usize;
    let memory = match layout.gpus_per_node {
        Some(_) => Memory::on_gpu(&needs, gpu_numbers(recipe.cluster.precision), mean_length, longest),
        None => Memory::of(&needs, mean_length, longest),
    };
    TrainingForecast {
        stage: stage.name.clone(),
        ranks,
        share,
        bytes_reduced: if ranks > 1 { bytes_reduced } else { 0.0 },
        bytes_sent: (!is_fixed).then(|| layout.bytes_sent(bytes_reduced, ranks)),
        memory,
        checkpoint: 3.0 * parameters as f64 * FLOAT,
    }
}

/// What GPUs of today compute in.
fn gpu_numbers(precision: Precision) -> GpuNumbers {
    match precision {
        Precision::Auto | Precision::Bf16 => GpuNumbers::Bf16,
        Precision::Fp32 | Precision::Tf32 => GpuNumbers::Float,
    }
}

/// Rows of the word embeddings that are sent, of a batch of so many tokens: those of its words, unless that is most of them.
fn touched_rows(shape: &EncoderConfig, tokens: f64) -> usize {
    let touched = lengths::different(tokens, shape.vocab_size).round() as usize;
    if 2 * touched > shape.vocab_size { shape.vocab_size } else { touched }
}

fn forecast_job(
    project: &Project,
    layout: &Layout,
    job: &ChainJob,
    seconds: impl Fn(&Stage) -> Option<f64>,
) -> JobForecast {
    let ranks = match job.ranks {
        Ranks::Computing(ranks) => ranks,
        Ranks::OneNode => layout.ranks_on_a_node(),
        Ranks::One => 1,
    };
    let of_element = |stages: &Vec<String>| {
        let stages = stages.iter().filter_map(|name| project.plan.stage(name));
        stages.map(&seconds).sum::<Option<f64>>()
    };
    let all: Option<Vec<f64>> = job.elements.iter().map(|element| of_element(&element.stages)).collect();
    JobForecast {
        job: job.name.clone(),
        elements: job.elements.len(),
        ranks,
        nodes: layout.nodes_of(ranks),
        after: if job.is_report() { vec![] } else { job.after.clone() },
        time: project.recipe.slurm.of_job(&job.name).time,
        seconds: all.map(|all| all.into_iter().fold(0.0, f64::max)),
    }
}

/// What `bam run` refuses on so many ranks.
fn problems(project: &Project, layout: &Layout) -> Vec<String> {
    let recipe = &project.recipe;
    let mut problems = vec![];
    if recipe.reproducible == Reproducible::WorldSize && layout.processes > recipe.virtual_shards {
        problems.push(format!(
            "reproducible: world-size allows at most {} processes (virtual_shards), not {}: use fewer, or -o \
             virtual_shards={} under another name",
            recipe.virtual_shards,
            layout.processes,
            layout.processes.next_power_of_two()
        ));
    }
    if let Some(single) = recipe.cluster.most_single_processes().filter(|single| *single > layout.processes) {
        problems.push(format!("cluster.single_processes is {single}, but there are {} processes", layout.processes));
    }
    // What the recipe says of models of one task, and of virtual shards, was checked when it was read.
    let too_small: Vec<_> =
        trainings(project).filter(|(stage, train)| train.settings.batch_size < stage.ranks(&recipe.cluster)).collect();
    if let [(stage, train), more @ ..] = &too_small[..] {
        let batch = train.settings.batch_size;
        let others = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
        problems.push(format!(
            "'{}'{others}: a batch of {batch} examples cannot be shared by {} processes: use fewer processes (-n), at most {}, or a \
             larger batch",
            stage.name,
            stage.ranks(&recipe.cluster),
            largest_divisor(batch, batch.min(layout.processes) / 2),
        ));
    }
    problems
}

/// The largest number up to `most` that divides a batch evenly.
fn largest_divisor(batch: usize, most: usize) -> usize {
    (1..=most).rev().find(|n| batch.is_multiple_of(*n)).unwrap_or(1)
}

/// What is to be said of a training whose share of a batch fills a CPU's memory. GPUs find out themselves what fits.
fn too_much_at_once(((stage, train), forecast): ((&Stage, &TrainStage), &TrainingForecast)) -> Option<String> {
    let most = forecast.memory.most();
    let section = match (&train.start, train.tasks.len()) {
        (Some(_), _) => "fine_tune",
        (None, 1) => "single",
        (None, _) => "multi",
    };
    (most > MUCH_MEMORY && forecast.share.micro_batch > 1).then(|| {
        format!(
            "'{}': with {} at once, a rank on CPUs needs up to {} of memory: train.{section}.micro_batch_size makes parts \
             of them, with the same result",
            stage.name,
            count(forecast.share.micro_batch, "example"),
            bytes(most)
        )
    })
}

fn warnings(project: &Project, forecast: &Forecast) -> Vec<String> {
    let mut warnings = vec![];
    let batch = |stage: &str| {
        project.plan.stage(stage).map_or(0, |s| match &s.work {
            StageWork::Train(train) => train.settings.batch_size,
            _ => 0,
        })
    };
    for training in forecast.trainings.iter().filter(|t| t.ranks > 1 && t.share.fewest > 0) {
        let TrainingForecast { stage, ranks, share, .. } = training;
        let waiting = share.waiting(batch(stage), *ranks);
        if waiting > MUCH_WAITING {
            warnings.push(format!(
                "'{stage}': {} or {} examples for each of {ranks} ranks, so that they wait {:.0} % of their time for one \
                 another: let the batch be a multiple of the ranks",
                share.fewest,
                share.most,
                100.0 * waiting
            ));
        } else if share.most < FEW_EXAMPLES {
            warnings.push(format!(
                "'{stage}': {} for each of {ranks} ranks in a step leave them little to do between reductions: larger batches \
                 (configs/glue/large-batch-*.yaml) or fewer ranks make more of them",
                count(share.most, "example")
            ));
        }
    }
    if forecast.layout.gpus_per_node.is_none() {
        warnings.extend(trainings(project).zip(&forecast.trainings).filter_map(too_much_at_once));
    }
    // Trainings of one kind have it all alike.
    warnings.dedup_by(|a, b| a.split_once(':').map(|x| x.1) == b.split_once(':').map(|x| x.1));
    warnings
}
