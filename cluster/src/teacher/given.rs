//! A model directory as the teacher of a task: whether its vocabulary, its classes and its scores are the task's, and
//! how its outputs become the task's own. For models that bam wrote and for Hugging Face's alike.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::{GivenTeacher, RegressionOutput};
use crate::encoder::{Encoder, EncoderError};
use crate::published::heads_of;
use crate::task::{Kind, Task};

/// A model that is known to fit a task.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskModel {
    /// Its encoder.
    pub encoder: Encoder,
    /// For each of the task's outputs, which of the head's it is.
    pub columns: Vec<usize>,
    /// What a regression head's output is; of no meaning for classification.
    pub scale: Scale,
}

/// What the output of a regression head is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// A score on the 0–1 scale after this function, as bam trains it.
    Unit(RegressionOutput),
    /// A score on the task's own scale, as Hugging Face's scripts train it.
    Own,
}

impl TaskModel {
    /// Looks at a directory. `vocabulary` is the file that turned the task's text into tokens.
    ///
    /// # Errors
    /// It is no such model, or it has another vocabulary, other classes or another range of scores.
    pub fn inspect(
        teacher: &GivenTeacher,
        task: &Task,
        vocabulary: &Path,
        max_length: usize,
    ) -> Result<TaskModel, EncoderError> {
        let encoder = Encoder::inspect(&teacher.path, None, max_length)?;
        check_vocabulary(&encoder, vocabulary)?;
        let path = teacher.path.join("config.json");
        let refuse = |problem: String| EncoderError { path: path.clone(), problem };
        let bytes = fs::read(&path).map_err(|e| refuse(e.to_string()))?;
        let config: Value = serde_json::from_slice(&bytes).map_err(|e| refuse(e.to_string()))?;
        let (labels, scale) = match heads_of(&config) {
            Ok(heads) => {
                let known: Vec<&str> = heads.iter().map(|h| h.task.as_str()).collect();
                let head = heads.iter().find(|h| h.task == task.name).ok_or_else(|| {
                    refuse(format!("there is no head for task '{}' in this model of {}", task.name, known.join(", ")))
                })?;
                if let (Kind::Regression { min, max }, Some(range)) = (&task.kind, head.range)
                    && range != [*min, *max]
                {
                    return Err(refuse(format!(
                        "its scores of task '{}' range from {} to {}, those of the recipe from {min} to {max}",
                        task.name, range[0], range[1]
                    )));
                }
                (head.labels.clone(), Scale::Unit(head.output.unwrap_or_default()))
            }
            Err(_) => (labels_of(&config), Scale::Own),
        };
        let labels = teacher.labels.clone().unwrap_or(labels);
        let columns = columns(&labels, task).map_err(|problem| {
            refuse(format!("{problem}\n  if you know their order, name them: {}", example(task, &teacher.path)))
        })?;
        Ok(TaskModel { encoder, columns, scale })
    }
}

fn check_vocabulary(teacher: &Encoder, vocabulary: &Path) -> Result<(), EncoderError> {
    let path = teacher.vocabulary();
    let read = |path: &PathBuf| fs::read(path).map_err(|e| EncoderError { path: path.clone(), problem: e.to_string() });
    if read(&path)? == read(&vocabulary.to_owned())? {
        return Ok(());
    }
    let problem = format!(
        "this teacher has another vocabulary than {}: it would read other words than the student\n  \
         choose a teacher that was made from the same encoder",
        vocabulary.display()
    );
    Err(EncoderError { path, problem })
}

/// The classes that Hugging Face's config names; without a word it has two.
fn labels_of(config: &Value) -> Vec<String> {
    let Some(names) = config.get("id2label").and_then(Value::as_object) else {
        return vec!["LABEL_0".to_owned(), "LABEL_1".to_owned()];
    };
    let name = |i: usize| names.get(&i.to_string()).and_then(Value::as_str).unwrap_or_default().to_owned();
    (0..names.len()).map(name).collect()
}

/// For each output of the task, its place among `labels`; the error is a sentence.
fn columns(labels: &[String], task: &Task) -> Result<Vec<usize>, String> {
    let own = task.kind.output_names();
    if labels.len() != own.len() {
        return Err(format!("this model has {} outputs, task '{}' needs {}", labels.len(), task.name, own.len()));
    }
    if !task.kind.is_classification() {
        return Ok(vec![0]);
    }
    let place = |name: &String| labels.iter().position(|l| l.eq_ignore_ascii_case(name));
    own.iter().map(place).collect::<Option<_>>().ok_or_else(|| {
        format!(
            "this model's outputs are named {}, those of task '{}' {}",
            labels.join(", "),
            task.name,
            own.join(", ")
        )
    })
}

fn example(task: &Task, path: &Path) -> String {
    let (name, path, labels) = (&task.name, path.display(), task.kind.output_names().join(", "));
    format!("distill.teachers: {{ {name}: {{ path: {path}, labels: [{labels}] }} }}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::published::{PublishedHead, describe_heads};
    use crate::task::glue_task;

    /// A directory with a tiny model whose config has `more`.
    fn directory(more: &Value) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut config = json!({ "vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 8, "max_position_embeddings": 40 });
        let fields = more.as_object().unwrap().clone();
        config.as_object_mut().unwrap().extend(fields);
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        fs::write(dir.path().join("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nb\nc\nd\n").unwrap();
        let header = br#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let weights = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 8]].concat();
        fs::write(dir.path().join("model.safetensors"), weights).unwrap();
        dir
    }

    fn inspect(task: &str, more: &Value, labels: Option<&[&str]>) -> Result<TaskModel, EncoderError> {
        let dir = directory(more);
        let labels = labels.map(|l| l.iter().map(|n| (*n).to_owned()).collect());
        let teacher = GivenTeacher { path: dir.path().to_owned(), labels };
        TaskModel::inspect(&teacher, &glue_task(task, Path::new("g")).unwrap(), &dir.path().join("vocab.txt"), 32)
    }

    #[test]
    fn classes_are_matched_by_name_and_refused_when_unknown() {
        let nli = json!({ "id2label": { "0": "CONTRADICTION", "1": "NEUTRAL", "2": "ENTAILMENT" } });
        assert_eq!(inspect("mnli", &nli, None).unwrap().columns, [0, 2, 1]);
        let unnamed = inspect("rte", &json!({}), None).unwrap_err().to_string();
        assert!(unnamed.contains("LABEL_0, LABEL_1") && unnamed.contains("labels: [entailment, not"), "{unnamed}");
        let named = Some(&["not_entailment", "entailment"][..]);
        assert_eq!(inspect("rte", &json!({}), named).unwrap().columns, [1, 0]);
        let fewer = inspect("mnli", &json!({}), None).unwrap_err().to_string();
        assert!(fewer.contains("has 2 outputs, task 'mnli' needs 3"), "{fewer}");
    }

    #[test]
    fn scores_are_on_the_scale_that_their_writer_uses() {
        let one = json!({ "id2label": { "0": "LABEL_0" } });
        assert_eq!(inspect("stsb", &one, None).unwrap().scale, Scale::Own);
        let task = glue_task("stsb", Path::new("g")).unwrap();
        let mut ours = json!({});
        let mut head = PublishedHead::of(&task, RegressionOutput::Linear);
        describe_heads(&mut ours, std::slice::from_ref(&head));
        assert_eq!(inspect("stsb", &ours, None).unwrap().scale, Scale::Unit(RegressionOutput::Linear));
        head.range = Some([0.0, 1.0]);
        describe_heads(&mut ours, std::slice::from_ref(&head));
        assert!(inspect("stsb", &ours, None).unwrap_err().to_string().contains("range from 0 to 1"));
        assert!(inspect("rte", &ours, None).unwrap_err().to_string().contains("no head for task 'rte'"));
    }

    #[test]
    fn another_vocabulary_is_refused() {
        let (dir, other) = (directory(&json!({})), directory(&json!({})));
        fs::write(other.path().join("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\nd\nc\nb\na\n").unwrap();
        let teacher = GivenTeacher { path: dir.path().to_owned(), labels: None };
        let task = glue_task("rte", Path::new("g")).unwrap();
        let error = TaskModel::inspect(&teacher, &task, &other.path().join("vocab.txt"), 32).unwrap_err();
        assert!(error.to_string().contains("another vocabulary"), "{error}");
    }
}
