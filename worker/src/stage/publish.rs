//! A trained model as a directory that Hugging Face's tools open, written aside and renamed; and the way back.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use bam_cluster::published::{PublishedHead, copy_tokenizer, describe_heads, describe_numbers};
use bam_cluster::task::Task;
use bam_cluster::teacher::TaskModel;
use bam_cluster::{aside, digest, files};
use serde_json::{Value, json};

use crate::device::DeviceBert;
use crate::eval::Scorer;
use crate::model::{Bert, Head};
use crate::session::Session;
use crate::snapshot::{read_finite_model, write_values};
use crate::train::Learner;

const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";

/// Writes the model to `directory` and returns the SHA-256 of its weights.
pub(super) fn publish(
    session: &Session,
    learner: &mut dyn Learner,
    tasks: &[&Task],
    directory: &Path,
) -> Result<String> {
    let (encoder, fence) = (&session.encoder, &session.fence);
    let context = || format!("publishing the model to {}", directory.display());
    let aside = aside::directory(directory, fence.incarnation());
    fs::create_dir_all(&aside).with_context(context)?;
    let (specs, ranges) = learner.shape();
    let (specs, ranges, is_single) = (specs.to_vec(), ranges.to_vec(), tasks.len() == 1);
    write_values(&aside.join(WEIGHTS), &specs, &ranges, &learner.values(), is_single).with_context(context)?;
    session.faults.wrote();
    let config = config(session, learner.scorer(), tasks)?;
    files::write_json(&aside.join(CONFIG), &config).with_context(context)?;
    session.faults.wrote();
    copy_tokenizer(&encoder.directory, &aside).with_context(context)?;
    let sum = digest::of_file(&aside.join(WEIGHTS)).with_context(context)?;
    for entry in fs::read_dir(&aside).with_context(context)? {
        fs::File::open(entry.with_context(context)?.path()).and_then(|f| f.sync_all()).with_context(context)?;
    }
    files::sync_dir(&aside).with_context(context)?;
    fence.check()?;
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(context)?;
    }
    fs::rename(&aside, directory).with_context(context)?;
    session.faults.wrote();
    files::sync_dir(directory.parent().unwrap_or(directory)).with_context(context)?;
    Ok(sum)
}

/// Proves that the weights that an earlier stage of this run published are those that the launcher knows.
///
/// # Errors
/// They are missing, or were changed since.
pub(super) fn check_model(session: &Session, stage: &str) -> Result<()> {
    let weights = session.run.model(stage).join(WEIGHTS);
    let sum = digest::of_file(&weights).with_context(|| weights.display().to_string())?;
    check_sum(session, stage, &sum)
}

/// The same, where the weights' SHA-256 is known already.
///
/// # Errors
/// The weights were changed since.
pub(super) fn check_sum(session: &Session, stage: &str, sum: &str) -> Result<()> {
    ensure!(
        sum == session.input(&format!("model {stage}"))?,
        "{}: the model was changed after its training; remove {} and run again",
        session.run.model(stage).join(WEIGHTS).display(),
        session.run.stage(stage).display()
    );
    Ok(())
}

/// Reads a model with the one head of `task` and brings it to where this rank computes.
///
/// # Errors
/// A file is damaged, or holds numbers that are not finite.
pub(super) fn load(session: &Session, found: &TaskModel, task: &Task) -> Result<Box<dyn Scorer>> {
    let head = Head::of(task);
    let mut model = Bert::new(found.encoder.config.clone(), vec![head]);
    read_finite_model(&found.encoder.weights, model.parameters_mut())?;
    Ok(match session.place.needs_device_engine() {
        true => Box::new(DeviceBert::new(&mut model, session.place)),
        false => Box::new(model),
    })
}

/// The encoder's own config.json with what this model adds.
fn config(session: &Session, model: &dyn Scorer, tasks: &[&Task]) -> Result<Value> {
    let original = session.encoder.directory.join(CONFIG);
    let text = fs::read(&original).with_context(|| original.display().to_string())?;
    let mut config: Value = serde_json::from_slice(&text)?;
    config["num_hidden_layers"] = json!(model.config().num_hidden_layers);
    config["hidden_dropout_prob"] = json!(model.config().hidden_dropout_prob);
    config["attention_probs_dropout_prob"] = json!(model.config().attention_probs_dropout_prob);
    config["model_type"] = json!("bert");
    describe_numbers(&mut config);
    let head = |task: &&Task| PublishedHead::of(task, session.recipe.model.regression_output);
    describe_heads(&mut config, &tasks.iter().map(head).collect::<Vec<_>>());
    Ok(config)
}
