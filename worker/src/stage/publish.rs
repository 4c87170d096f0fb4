//! A trained model as a directory that Hugging Face's tools open, written aside and renamed; and the way back.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use bam_cluster::checkpoint::Fence;
use bam_cluster::encoder::Encoder;
use bam_cluster::published::{PublishedHead, TOKENIZER_FILES, describe_heads, heads_of};
use bam_cluster::task::Task;
use bam_cluster::{digest, files};
use serde_json::{Value, json};

use crate::model::{Bert, Head};
use crate::session::Session;
use crate::snapshot::{Reading, read_parameters, write_parameters};

const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";

/// Writes `model` to `directory` and returns the SHA-256 of its weights.
pub(super) fn publish(
    model: &mut Bert,
    tasks: &[&Task],
    encoder: &Encoder,
    directory: &Path,
    fence: &Fence,
) -> Result<String> {
    let context = || format!("publishing the model to {}", directory.display());
    let aside = directory.with_extension(format!("draft-{}", fence.incarnation()));
    if aside.exists() {
        fs::remove_dir_all(&aside).with_context(context)?;
    }
    fs::create_dir_all(&aside).with_context(context)?;
    write_parameters(&aside.join(WEIGHTS), model.parameters_mut(), tasks.len() == 1).with_context(context)?;
    let config = config(model, tasks, &encoder.directory)?;
    files::write_json(&aside.join(CONFIG), &config).with_context(context)?;
    for name in TOKENIZER_FILES {
        let from = encoder.directory.join(name);
        if from.exists() {
            fs::copy(&from, aside.join(name)).with_context(context)?;
        }
    }
    let sum = digest::of_file(&aside.join(WEIGHTS)).with_context(context)?;
    for entry in fs::read_dir(&aside).with_context(context)? {
        fs::File::open(entry.with_context(context)?.path()).and_then(|f| f.sync_all()).with_context(context)?;
    }
    fence.check()?;
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(context)?;
    }
    fs::rename(&aside, directory).with_context(context)?;
    files::sync_dir(directory.parent().unwrap_or(directory)).with_context(context)?;
    Ok(sum)
}

/// SHA-256 of the weights that an earlier stage of this run published, proved to be those that the launcher knows.
///
/// # Errors
/// They are missing, or were changed since.
pub(super) fn check_model(session: &Session, stage: &str) -> Result<String> {
    let weights = session.run.model(stage).join(WEIGHTS);
    let sum = digest::of_file(&weights).with_context(|| weights.display().to_string())?;
    ensure!(
        sum == session.input(&format!("model {stage}"))?,
        "{}: the model was changed after its training; remove {} and run again",
        weights.display(),
        session.run.stage(stage).display()
    );
    Ok(sum)
}

/// Reads a published model, and which of its heads is the one of `task`.
///
/// # Errors
/// A file is missing or damaged, or the model has no head with the task's labels.
pub(super) fn load(directory: &Path, task: &Task) -> Result<(Bert, usize)> {
    let encoder = Encoder::inspect(directory, None, 1)?;
    let path = directory.join(CONFIG);
    let config: Value = files::read_json(&path).with_context(|| path.display().to_string())?.unwrap_or_default();
    let published = heads_of(&config).map_err(|problem| anyhow!("{}: {problem}", path.display()))?;
    let head = published.iter().position(|h| h.task == task.name && h.labels == task.kind.output_names());
    let head = head.with_context(|| {
        format!("{}: there is no head for task '{}' with its labels in bam_heads", path.display(), task.name)
    })?;
    let heads = published.into_iter().map(|h| Head { outputs: h.labels.len(), task: h.task }).collect();
    let mut model = Bert::new(encoder.config.clone(), heads, 0);
    read_parameters(&encoder.weights(), model.parameters_mut(), Reading::Whole)?;
    Ok((model, head))
}

/// The encoder's own config.json with what this model adds.
fn config(model: &Bert, tasks: &[&Task], encoder: &Path) -> Result<Value> {
    let original = encoder.join(CONFIG);
    let text = fs::read(&original).with_context(|| original.display().to_string())?;
    let mut config: Value = serde_json::from_slice(&text)?;
    config["num_hidden_layers"] = json!(model.config().num_hidden_layers);
    config["hidden_dropout_prob"] = json!(model.config().hidden_dropout_prob);
    config["attention_probs_dropout_prob"] = json!(model.config().attention_probs_dropout_prob);
    config["model_type"] = json!("bert");
    describe_heads(&mut config, &tasks.iter().map(|task| PublishedHead::of(task)).collect::<Vec<_>>());
    Ok(config)
}
