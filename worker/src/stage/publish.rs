//! A trained model as a directory that Hugging Face's tools open, written aside and renamed; and the way back.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use bam_cluster::checkpoint::Fence;
use bam_cluster::encoder::Encoder;
use bam_cluster::task::{Kind, Task};
use bam_cluster::{digest, files};
use serde_json::{Value, json};

use crate::model::{Bert, Head};
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
    for name in ["vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
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

/// Reads a published model of one task.
pub(super) fn load(directory: &Path, task: &Task) -> Result<Bert> {
    let encoder = Encoder::inspect(directory, None, 1)?;
    let heads = vec![Head { task: task.name.clone(), outputs: task.kind.outputs() }];
    let mut model = Bert::new(encoder.config.clone(), heads, 0);
    read_parameters(&encoder.weights(), model.parameters_mut(), Reading::Whole)?;
    Ok(model)
}

/// The encoder's own config.json with what this model adds: for one task, what `BertForSequenceClassification` needs;
/// for several, the list of heads.
fn config(model: &Bert, tasks: &[&Task], encoder: &Path) -> Result<Value> {
    let original = encoder.join(CONFIG);
    let text = fs::read(&original).with_context(|| original.display().to_string())?;
    let mut config: Value = serde_json::from_slice(&text)?;
    config["num_hidden_layers"] = json!(model.config().num_hidden_layers);
    config["hidden_dropout_prob"] = json!(model.config().hidden_dropout_prob);
    config["attention_probs_dropout_prob"] = json!(model.config().attention_probs_dropout_prob);
    config["model_type"] = json!("bert");
    if let [task] = tasks {
        config["architectures"] = json!(["BertForSequenceClassification"]);
        let names = task.kind.output_names();
        let by_id: serde_json::Map<_, _> = names.iter().enumerate().map(|(i, n)| (i.to_string(), json!(n))).collect();
        let by_name: serde_json::Map<_, _> = names.iter().enumerate().map(|(i, n)| (n.clone(), json!(i))).collect();
        config["id2label"] = Value::Object(by_id);
        config["label2id"] = Value::Object(by_name);
        config["problem_type"] =
            json!(if task.kind.is_classification() { "single_label_classification" } else { "regression" });
    } else {
        config["architectures"] = json!(["BertModel"]);
    }
    let head = |task: &&Task| {
        let range = match task.kind {
            Kind::Regression { min, max } => json!([min, max]),
            Kind::Classification { .. } => Value::Null,
        };
        json!({ "task": task.name, "labels": task.kind.output_names(), "range": range })
    };
    config["bam_heads"] = tasks.iter().map(head).collect();
    Ok(config)
}
