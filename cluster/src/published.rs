//! What the config.json of a published model says besides the encoder's shape: its heads, for bam itself, and what Hugging
//! Face's tools need to open a model of one task.

use std::path::Path;
use std::{fs, io};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::config::RegressionOutput;
use crate::encoder::Vocabulary;
use crate::task::{Kind, Task};

/// Files that turn text into tokens; they travel with every model, as far as the encoder has them.
const TOKENIZER_FILES: [&str; 4] = ["vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];

/// Start of the names of a head's tensors, `classifiers.TASK.weight` and `.bias`, in a model of several tasks.
pub const HEADS: &str = "classifiers.";

/// One head, as `bam_heads` in config.json lists it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PublishedHead {
    /// Its task.
    pub task: String,
    /// Names of its outputs, in order.
    pub labels: Vec<String>,
    /// Smallest and largest score; none for classification.
    pub range: Option<[f64; 2]>,
    /// What becomes of its output before it is a score on the 0–1 scale; none for classification.
    #[serde(default)]
    pub output: Option<RegressionOutput>,
}

impl PublishedHead {
    /// The head of a task; `output` is for regression.
    pub fn of(task: &Task, output: RegressionOutput) -> PublishedHead {
        let (range, output) = match task.kind {
            Kind::Regression { min, max } => (Some([min, max]), Some(output)),
            Kind::Classification { .. } => (None, None),
        };
        PublishedHead { task: task.name.clone(), labels: task.kind.output_names(), range, output }
    }
}

/// What an encoder's config may say of the heads of the model that it was taken from.
const OF_OTHER_HEADS: [&str; 7] =
    ["id2label", "label2id", "problem_type", "finetuning_task", "num_labels", "_num_labels", "classifier_dropout"];

/// Copies the files that turn text into tokens from one model directory to another. Where there is no `vocab.txt`, as in what
/// transformers 5 saves, it is made from `tokenizer.json`, for tools that know no other file.
///
/// # Errors
/// A file cannot be read or written, or there is no vocabulary.
pub fn copy_tokenizer(from: &Path, to: &Path) -> io::Result<()> {
    for name in TOKENIZER_FILES.iter().filter(|name| from.join(name).exists()) {
        fs::copy(from.join(name), to.join(name))?;
    }
    let [vocabulary, ..] = TOKENIZER_FILES.map(|name| to.join(name));
    if vocabulary.exists() {
        return Ok(());
    }
    fs::write(vocabulary, Vocabulary::read(from).map_err(io::Error::other)?.text())
}

/// Writes into a model's config that its numbers are float32, under whichever name it has for that: readers open a model in
/// what is written there, and an encoder may have been kept in half precision.
pub fn describe_numbers(config: &mut Value) {
    let names = ["torch_dtype", "dtype"].into_iter().filter(|name| config.get(name).is_some()).collect::<Vec<_>>();
    let names = if names.is_empty() { vec!["torch_dtype"] } else { names };
    names.into_iter().for_each(|name| config[name] = json!("float32"));
}

/// Writes the heads into a model's config, in place of any that are there: for one, what `BertForSequenceClassification` needs,
/// too.
pub fn describe_heads(config: &mut Value, heads: &[PublishedHead]) {
    if let Some(config) = config.as_object_mut() {
        config.retain(|name, _| !OF_OTHER_HEADS.contains(&name.as_str()));
    }
    if let [head] = heads {
        config["architectures"] = json!(["BertForSequenceClassification"]);
        let named = || head.labels.iter().enumerate();
        config["id2label"] = named().map(|(i, name)| (i.to_string(), json!(name))).collect::<Map<_, _>>().into();
        config["label2id"] = named().map(|(i, name)| (name.clone(), json!(i))).collect::<Map<_, _>>().into();
        let problem = if head.range.is_some() { "regression" } else { "single_label_classification" };
        config["problem_type"] = json!(problem);
    } else {
        config["architectures"] = json!(["BertModel"]);
    }
    config["bam_heads"] = json!(heads);
}

/// The heads that a model's config lists.
///
/// # Errors
/// It lists none that bam wrote; the error is a sentence.
pub fn heads_of(config: &Value) -> Result<Vec<PublishedHead>, String> {
    let listed = config.get("bam_heads").ok_or("there is no bam_heads: bam did not write this model")?;
    serde_json::from_value(listed.clone()).map_err(|e| format!("bam_heads is not what bam writes: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(task: &str) -> PublishedHead {
        PublishedHead { task: task.into(), labels: vec!["no".into(), "yes".into()], range: None, output: None }
    }

    #[test]
    fn one_head_is_described_for_hugging_face_and_any_number_for_bam() {
        let mut config = json!({ "hidden_size": 4 });
        describe_heads(&mut config, &[head("a")]);
        assert_eq!(config["id2label"], json!({ "0": "no", "1": "yes" }));
        assert_eq!(config["label2id"]["yes"], 1);
        assert_eq!(config["problem_type"], "single_label_classification");
        assert_eq!(heads_of(&config), Ok(vec![head("a")]));
        let mut config = json!({});
        describe_heads(&mut config, &[head("a"), head("b")]);
        assert_eq!(
            (&config["architectures"][0], heads_of(&config)),
            (&json!("BertModel"), Ok(vec![head("a"), head("b")]))
        );
        assert!(heads_of(&json!({})).is_err());
    }

    #[test]
    fn nothing_is_left_of_the_heads_that_an_encoder_had() {
        let of_other = json!({ "hidden_size": 4, "id2label": { "0": "x" }, "label2id": { "x": 0 },
            "problem_type": "regression", "finetuning_task": "mnli" });
        let mut several = of_other.clone();
        describe_heads(&mut several, &[head("a"), head("b")]);
        assert_eq!(several.as_object().unwrap().len(), 3, "{several}");
        let mut one = of_other;
        describe_heads(&mut one, &[head("a")]);
        assert_eq!((one["id2label"]["1"].as_str(), one.get("finetuning_task")), (Some("yes"), None));
    }

    #[test]
    fn numbers_are_said_to_be_float32_under_the_name_that_is_there() {
        for (before, after) in [
            (json!({}), json!({ "torch_dtype": "float32" })),
            (json!({ "dtype": "bfloat16" }), json!({ "dtype": "float32" })),
            (json!({ "torch_dtype": "float16" }), json!({ "torch_dtype": "float32" })),
            (json!({ "torch_dtype": null, "dtype": null }), json!({ "torch_dtype": "float32", "dtype": "float32" })),
        ] {
            let mut config = before;
            describe_numbers(&mut config);
            assert_eq!(config, after);
        }
    }
}
