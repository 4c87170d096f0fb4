//! Trains one model, publishes it and judges it on dev.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bam_cluster::config::DeviceKind;
use bam_cluster::encoder::EncoderConfig;
use bam_cluster::files;
use bam_cluster::metrics::score;
use bam_cluster::plan::TrainStage;
use bam_cluster::protocol::{FromRank, Outcome};
use bam_cluster::stage_record::{Scores, Sums};
use bam_cluster::task::{Kind, Task};
use tch::Tensor;

use super::logits::read_teacher_logits;
use super::micro_batch;
use super::publish::{check_model, publish};
use crate::comm::Host;
use crate::comm::preflight::preflight;
use crate::control::LAST_WORD;
use crate::data::{TokenFile, TokenSet};
use crate::device::{DeviceLearner, Exchange, Together, binding};
use crate::eval::predict;
use crate::gradient::tail_length;
use crate::model::{Bert, Head, Parameters, parameter_count};
use crate::objective::teacher_predictions;
use crate::optim::{Span, spans};
use crate::session::Session;
use crate::snapshot::{one_file, read_encoder, read_model};
use crate::telemetry::Metrics;
use crate::train::{HostLearner, Learner, LoopEnd, TrainTask, Trainer, objective, peak, train};

pub(super) fn run(session: &Session, stage: &TrainStage) -> Result<Outcome> {
    session.activity.phase("loading");
    if session.opens_training && session.recipe.cluster.device == DeviceKind::Auto {
        session.tell(&FromRank::Note { message: session.place.of_auto() })?;
    }
    let tasks: Vec<&Task> = stage.tasks.iter().map(|t| session.task(t)).collect::<Result<_>>()?;
    let data = load_data(session, stage, &tasks)?;
    let config = shape(session);
    let learner = learner(session, stage, &tasks, &data, config.clone())?;
    let peak = peak(session.world.as_ref(), &config, session.place)?;
    let mut trainer = Trainer::new(session, stage.clone(), data, config, learner, peak);
    trainer.resume(session)?;
    let mut metrics = if session.is_first() {
        let path = session.run.metrics(&session.stage.name);
        Some(Metrics::open(&path, trainer.next_step()).with_context(|| path.display().to_string())?)
    } else {
        None
    };
    session.tell(&FromRank::Ready { next_step: trainer.next_step() })?;
    if let LoopEnd::Stopped(step) = train(session, &mut trainer, &mut metrics)? {
        return Ok(Outcome::Stopped { step });
    }
    finish(session, &tasks, &mut trainer)
}

/// Tokens, labels and teachers' outputs of all tasks.
fn load_data(session: &Session, stage: &TrainStage, tasks: &[&Task]) -> Result<Vec<TrainTask>> {
    let mut data = Vec::new();
    for (task, size) in tasks.iter().zip(&stage.sizes) {
        let set = read_tokens(session, &task.name, "train")?;
        ensure!(set.len() == *size, "task '{}' has {} training examples, the plan says {size}", task.name, set.len());
        let teacher = teaching(session, stage, task, &set)?;
        data.push(TrainTask { kind: task.kind.clone(), set, teacher });
    }
    Ok(data)
}

/// What a task's teachers predict for all of `set` together: [examples, outputs]; nothing without teachers.
fn teaching(session: &Session, stage: &TrainStage, task: &Task, set: &TokenSet) -> Result<Option<Vec<f32>>> {
    let mut answers = vec![];
    for teacher in stage.teachers.iter().filter(|t| t.task == task.name) {
        let logits = read_teacher_logits(session, teacher, task, set)?;
        answers.push(Tensor::from_slice(&logits).view([-1, task.kind.outputs() as i64]));
    }
    if answers.is_empty() {
        return Ok(None);
    }
    let output = session.recipe.model.regression_output;
    let together = teacher_predictions(&answers, task.kind.is_classification(), stage.temperature, output);
    Ok(Some(Vec::try_from(together.flatten(0, -1))?))
}

/// One split of a task, checked against the sum that the launcher knows.
pub(super) fn read_tokens(session: &Session, task: &str, split: &str) -> Result<TokenSet> {
    let expected = session.input(&format!("data {task}-{split}"))?;
    Ok(TokenFile::read(&session.run.data(task, split), Some(expected))?)
}

/// The encoder's shape, with the recipe's dropout.
fn shape(session: &Session) -> EncoderConfig {
    let config = session.encoder.config.clone();
    match session.recipe.model.dropout {
        Some(p) => EncoderConfig { hidden_dropout_prob: p, attention_probs_dropout_prob: p, ..config },
        None => config,
    }
}

/// A training of the pretrained encoder with fresh heads, or of an earlier stage's model with its own: in the memory of each
/// host, or of each rank's device.
fn learner(
    session: &Session,
    stage: &TrainStage,
    tasks: &[&Task],
    data: &[TrainTask],
    config: EncoderConfig,
) -> Result<Box<dyn Learner>> {
    let heads: Vec<Head> = tasks.iter().map(|task| Head::of(task)).collect();
    let (world, recipe, layers) = (session.world.as_ref(), &session.recipe, config.num_hidden_layers);
    let settings = &stage.settings;
    let spans = |p: &Parameters| spans(p.specs(), p.ranges(), layers, stage.layerwise_decay, settings.weight_decay);
    if session.place.needs_device_engine() {
        let mut model = Bert::new(config, heads);
        fill(session, stage, &mut model)?;
        let spans = spans(model.parameters());
        return on_device(session, stage, data, &mut model, &spans);
    }
    let host = Host::find(world, parameter_count(&config, &heads), tail_length(tasks.len()))?;
    let mut model = Bert::on_host(config, heads, &host);
    if host.leads() {
        fill(session, stage, &mut model)?;
    }
    host.local().barrier("first values")?;
    let spans = spans(model.parameters());
    let (reproducible, shards) = (recipe.reproducible, recipe.virtual_shards);
    Ok(Box::new(HostLearner::new(world, model, host, settings.optimizer, spans, reproducible, shards)))
}

/// The same on this rank's device.
fn on_device(
    session: &Session,
    stage: &TrainStage,
    data: &[TrainTask],
    model: &mut Bert,
    spans: &[Span],
) -> Result<Box<dyn Learner>> {
    let (world, recipe, place) = (session.world.as_ref(), &session.recipe, session.place);
    let exchange = exchange(session)?;
    if place.is_cuda() {
        look_at_devices(session, &exchange)?;
    }
    let together = Together {
        world,
        reproducible: recipe.reproducible,
        virtual_shards: recipe.virtual_shards,
        exchange,
        reduce_precision: recipe.cluster.reduce_precision,
    };
    let mut learner = DeviceLearner::new(model, place, stage.settings.optimizer, spans, together)?;
    let (device, numbers, by) = (place.name(), place.numbers.name(), learner.reduces_by());
    session.tell(&FromRank::Note { message: format!("on {device} in {numbers}; gradients are added up by {by}") })?;
    if place.is_cuda() {
        let tokens = micro_batch::find(session, stage, &objective(session, stage, data), &mut learner)?;
        learner.compute_at_once(tokens);
    }
    Ok(Box::new(learner))
}

/// How this training's devices exchange gradients.
fn exchange(session: &Session) -> Result<Exchange> {
    // The launcher comes first, and then the watchdog.
    let deadline = Duration::from_secs(session.recipe.cluster.deadline) + 2 * LAST_WORD;
    let exchange = Exchange::open(session.world.as_ref(), session.place, deadline, session.activity.clone())?;
    if let Exchange::Nccl(nccl) = &exchange {
        session.control.abort_first(nccl.abort_handle());
        tracing::info!("{}", nccl.describe());
    }
    Ok(exchange)
}

/// For so long devices are looked at before a training.
const LOOK_FOR: Duration = Duration::from_secs(2);

/// Adds up known values on all devices and compares their speeds; a warning names those that are slow.
///
/// # Errors
/// A sum is wrong.
fn look_at_devices(session: &Session, exchange: &Exchange) -> Result<()> {
    session.activity.phase("looking at devices");
    let world = session.world.as_ref();
    let found = preflight(world, exchange.reducer(), session.place.device, LOOK_FOR)?;
    let message = found.to_string();
    if !message.is_empty() {
        session.tell(&FromRank::Note { message })?;
    }
    match binding(session.place) {
        Some(Ok(said)) => tracing::info!("{said}"),
        Some(Err(message)) => session.control.send(&FromRank::Warning { message })?,
        None => {}
    }
    for finding in &found.findings {
        ensure!(!finding.is_fatal(), "{finding}");
        session.tell(&FromRank::Warning { message: finding.to_string() })?;
    }
    Ok(())
}

/// Gives a model its first values.
fn fill(session: &Session, stage: &TrainStage, model: &mut Bert) -> Result<()> {
    model.parameters_mut().initialise(stage.seed);
    match &stage.start {
        None => {
            if !read_encoder(&session.encoder.weights, model.parameters_mut())? {
                let message = "the encoder has no pooler: it starts from random values, as the heads do".to_owned();
                session.tell(&FromRank::Note { message })?;
            }
        }
        Some(start) => {
            check_model(session, start)?;
            let weights = session.run.model(start).join("model.safetensors");
            read_model(&one_file(&weights), model.parameters_mut())?;
        }
    }
    Ok(())
}

/// Publishes the model and writes its scores and predictions.
fn finish(session: &Session, tasks: &[&Task], trainer: &mut Trainer) -> Result<Outcome> {
    let stage = &session.stage.name;
    session.activity.phase("evaluation");
    let mut scores = Scores::new();
    for (head, task) in tasks.iter().enumerate() {
        let set = read_tokens(session, &task.name, "dev")?;
        let predictions = predict(session, trainer.learner().scorer(), head, &task.kind, &set)?;
        scores.insert(task.name.clone(), score(&task.kind, &task.metrics, &predictions, &set.labels));
        if session.is_first() {
            let path = session.run.predictions(stage, &task.name, "dev");
            let text = table(&task.kind, &set.example_ids, &predictions, &set.labels);
            files::write_atomically(&path, text.as_bytes()).with_context(|| path.display().to_string())?;
            session.faults.wrote();
        }
    }
    let mut outputs = Sums::new();
    if session.is_first() {
        session.activity.phase("publishing");
        let directory = session.run.model(stage);
        outputs.insert("model".to_owned(), publish(session, trainer.learner(), tasks, &directory)?);
        let path = session.run.scores(stage);
        files::write_json(&path, &scores).with_context(|| path.display().to_string())?;
        session.faults.wrote();
    }
    Ok(Outcome::Finished { outputs })
}

/// Predictions as a tab-separated table: id, prediction, gold if it is known (which is no number where it is not); classes by
/// name, scores with as many digits as it takes to read back the same number.
pub(super) fn table(kind: &Kind, ids: &[u64], predictions: &[f32], gold: &[f32]) -> String {
    let show = |value: f32| match kind {
        Kind::Classification { labels, .. } => labels.get(value as usize).cloned().unwrap_or_default(),
        Kind::Regression { .. } => value.to_string(),
    };
    let has_gold = gold.iter().all(|l| l.is_finite());
    let mut text = if has_gold { "id\tprediction\tgold\n".to_owned() } else { "id\tprediction\n".to_owned() };
    for ((id, prediction), gold) in ids.iter().zip(predictions).zip(gold) {
        let gold = if has_gold { format!("\t{}", show(*gold)) } else { String::new() };
        text += &format!("{id}\t{}{gold}\n", show(*prediction));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_read_back_as_they_were() {
        let predictions = [0.1f32 / 3.0, 7.25e-5, 1.0 - f32::EPSILON, f32::MIN_POSITIVE];
        let gold = [2.5e-4, 1.0e-9, 0.001, 3.8];
        let written = table(&Kind::Regression { min: 0.0, max: 5.0 }, &[0, 1, 2, 7], &predictions, &gold);
        let column = |n: usize| -> Vec<f32> {
            written.lines().skip(1).map(|line| line.split('\t').nth(n).unwrap().parse().unwrap()).collect()
        };
        assert_eq!((column(1), column(2)), (predictions.to_vec(), gold.to_vec()), "{written}");
        assert!(written.ends_with("\t3.8\n"), "no more digits than it takes: {written}");
    }
}
