//! Trains one model, publishes it and judges it on dev.

use anyhow::{Context, Result, ensure};
use bam_cluster::encoder::EncoderConfig;
use bam_cluster::files;
use bam_cluster::metrics::score;
use bam_cluster::plan::TrainStage;
use bam_cluster::protocol::{FromRank, Outcome};
use bam_cluster::stage_record::{Scores, Sums};
use bam_cluster::task::{Kind, Task};
use tch::Tensor;

use super::logits::read_teacher_logits;
use super::publish::{check_model, publish};
use crate::comm::Host;
use crate::data::{TokenFile, TokenSet};
use crate::eval::predict;
use crate::gradient::tail_length;
use crate::model::{Bert, Head, parameter_count};
use crate::objective::teacher_predictions;
use crate::session::Session;
use crate::snapshot::{one_file, read_encoder, read_model};
use crate::telemetry::Metrics;
use crate::train::{LoopEnd, TrainTask, Trainer, peak, train};

pub(super) fn run(session: &Session, stage: &TrainStage) -> Result<Outcome> {
    session.activity.phase("loading");
    let tasks: Vec<&Task> = stage.tasks.iter().map(|t| session.task(t)).collect::<Result<_>>()?;
    let data = load_data(session, stage, &tasks)?;
    let (host, model) = initial_model(session, stage, &tasks)?;
    let peak = peak(session.world.as_ref(), model.config())?;
    let mut trainer = Trainer::new(session, stage.clone(), data, model, host, peak);
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
    finish(session, &tasks, trainer.model())
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

/// The pretrained encoder with fresh heads, or an earlier stage's model with its own, in the memory of each host.
fn initial_model(session: &Session, stage: &TrainStage, tasks: &[&Task]) -> Result<(Host, Bert)> {
    let heads: Vec<Head> = tasks.iter().map(|t| Head { task: t.name.clone(), outputs: t.kind.outputs() }).collect();
    let mut config = session.encoder.config.clone();
    if let Some(p) = session.recipe.model.dropout {
        config = EncoderConfig { hidden_dropout_prob: p, attention_probs_dropout_prob: p, ..config };
    }
    let host = Host::find(session.world.as_ref(), parameter_count(&config, &heads), tail_length(tasks.len()))?;
    let mut model = Bert::on_host(config, heads, &host);
    if host.leads() {
        fill(session, stage, &mut model)?;
    }
    host.local().barrier("first values")?;
    Ok((host, model))
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
fn finish(session: &Session, tasks: &[&Task], model: &mut Bert) -> Result<Outcome> {
    let stage = &session.stage.name;
    session.activity.phase("evaluation");
    let mut scores = Scores::new();
    for (head, task) in tasks.iter().enumerate() {
        let set = read_tokens(session, &task.name, "dev")?;
        let predictions = predict(session, model, head, &task.kind, &set)?;
        scores.insert(task.name.clone(), score(&task.kind, &task.metrics, &predictions, &set.labels));
        if session.is_first() {
            let path = session.run.predictions(stage, &task.name, "dev");
            let text = table(task, &set, &predictions);
            files::write_atomically(&path, text.as_bytes()).with_context(|| path.display().to_string())?;
            session.faults.wrote();
        }
    }
    let mut outputs = Sums::new();
    if session.is_first() {
        session.activity.phase("publishing");
        let directory = session.run.model(stage);
        outputs.insert("model".to_owned(), publish(session, model, tasks, &directory)?);
        let path = session.run.scores(stage);
        files::write_json(&path, &scores).with_context(|| path.display().to_string())?;
        session.faults.wrote();
    }
    Ok(Outcome::Finished { outputs })
}

/// Predictions as a tab-separated table: id, prediction, gold if it is known; classes by name.
pub(super) fn table(task: &Task, set: &TokenSet, predictions: &[f32]) -> String {
    let show = |value: f32| match &task.kind {
        Kind::Classification { labels, .. } => labels.get(value as usize).cloned().unwrap_or_default(),
        Kind::Regression { .. } => format!("{value:.3}"),
    };
    let has_gold = set.labels.iter().all(|l| l.is_finite());
    let mut text = if has_gold { "id\tprediction\tgold\n".to_owned() } else { "id\tprediction\n".to_owned() };
    for ((id, prediction), gold) in set.example_ids.iter().zip(predictions).zip(&set.labels) {
        let gold = if has_gold { format!("\t{}", show(*gold)) } else { String::new() };
        text += &format!("{id}\t{}{gold}\n", show(*prediction));
    }
    text
}
