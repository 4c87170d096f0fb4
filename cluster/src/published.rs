//! What the config.json of a published model says besides the encoder's shape: its heads, for bam itself, and what Hugging
//! Face's tools need to open a model of one task.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::config::RegressionOutput;
use crate::task::{Kind, Task};

/// Files that turn text into tokens; they travel with every model, as far as the encoder has them.
pub const TOKENIZER_FILES: [&str; 4] =
    ["vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];

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

/// Writes the heads into a model's config: for one, what `BertForSequenceClassification` needs, too.
pub fn describe_heads(config: &mut Value, heads: &[PublishedHead]) {
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
}
