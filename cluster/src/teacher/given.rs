//! A model directory as the teacher of a task: whether its vocabulary, its classes and its scores are the task's, and
//! how its outputs become the task's own. For models that bam wrote and for Hugging Face's alike. A model may have learnt more
//! tasks than the recipe has: what it knows beyond the one that it is asked about does no harm.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::config::{GivenTeacher, RegressionOutput};
use crate::encoder::{Encoder, EncoderError, Head, WeightsError, one_below};
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
    /// Looks at a directory. `student` is the encoder whose tokenizer turned the task's text into tokens.
    ///
    /// # Errors
    /// It is no such model, or it makes other tokens of the same text, or it has other classes or another range of scores.
    pub fn inspect(
        teacher: &GivenTeacher,
        task: &Task,
        student: &Encoder,
        max_length: usize,
    ) -> Result<TaskModel, EncoderError> {
        let path = teacher.path.join("config.json");
        let refuse = |problem: String| EncoderError { path: path.clone(), problem };
        let bytes = fs::read(&path).map_err(|e| {
            refuse(format!(
                "{e}{}\n  each of distill.teachers.{} must be a directory with config.json, weights, and vocab.txt or \
                 tokenizer.json",
                one_below(&teacher.path),
                task.name
            ))
        })?;
        let encoder = Encoder::inspect(&teacher.path, None, max_length)?;
        check_tokens(&encoder, student)?;
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
            Err(_) => {
                check_problem(&config, task).map_err(refuse)?;
                (labels_of(&config), Scale::Own)
            }
        };
        let labels = teacher.labels.clone().unwrap_or(labels);
        let columns = columns(&labels, task).map_err(|problem| {
            refuse(format!("{problem}\n  if you know their order, name them: {}", example(task, &teacher.path)))
        })?;
        Ok(TaskModel { encoder, columns, scale })
    }

    /// Proves by names and shapes that its weights are those of such a model, as far as that is known without reading a pickle.
    ///
    /// # Errors
    /// A tensor is missing, or has another shape or kind, or there are more layers than config.json says.
    pub fn check_weights(&self, task: &Task) -> Result<(), WeightsError> {
        self.encoder.check_model(Head::of(task))
    }
}

/// Refuses a teacher that would make other tokens of a text than those that it is asked about.
fn check_tokens(teacher: &Encoder, student: &Encoder) -> Result<(), EncoderError> {
    let (own, other) = (teacher.vocabulary()?, student.vocabulary()?);
    if own.tokens != other.tokens {
        let problem = format!(
            "this teacher has another vocabulary than {}: it would read other words than the student\n  \
             choose a teacher that was made from the same encoder",
            other.path.display()
        );
        return Err(EncoderError { path: own.path, problem });
    }
    let (own, other) = (teacher.normalizing()?, student.normalizing()?);
    if own != other {
        let problem = format!(
            "this teacher's tokenizer cleans texts in another way than {}: {own} against {other}; it would read other words \
             than the student\n  choose a teacher that was made from the same encoder; if its tokenizer_config.json is wrong, \
             correct do_lower_case, strip_accents and tokenize_chinese_chars there",
            student.directory.display()
        );
        return Err(EncoderError { path: teacher.directory.clone(), problem });
    }
    Ok(())
}

/// Refuses a head that Hugging Face's config says was trained for another kind of problem; the error is a sentence.
fn check_problem(config: &Value, task: &Task) -> Result<(), String> {
    let said = config.get("problem_type").and_then(Value::as_str).unwrap_or_default();
    let (own, contradicts) = match task.kind {
        Kind::Classification { .. } => ("one class of several", said == "regression"),
        Kind::Regression { .. } => ("a score", said == "single_label_classification"),
    };
    if contradicts || said == "multi_label_classification" {
        return Err(format!(
            "problem_type is '{said}', but what task '{}' asks for is {own}\n  choose a teacher that was fine-tuned for such a \
             task; if it was, and the word is wrong, remove problem_type there",
            task.name
        ));
    }
    Ok(())
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
        let student = Encoder::inspect(dir.path(), None, 32).unwrap();
        TaskModel::inspect(&teacher, &glue_task(task, Path::new("g")).unwrap(), &student, 32)
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
    fn a_head_for_another_kind_of_problem_is_refused() {
        let labels = json!({ "0": "entailment", "1": "not_entailment" });
        let of = |task: &str, labels: &Value, problem: Value| {
            inspect(task, &json!({ "id2label": labels, "problem_type": problem }), None).map_err(|e| e.to_string())
        };
        let one = json!({ "0": "LABEL_0" });
        of("rte", &labels, json!("single_label_classification")).unwrap();
        of("rte", &labels, Value::Null).unwrap();
        of("stsb", &one, json!("regression")).unwrap();
        for (task, labels, problem) in [
            ("rte", &labels, "regression"),
            ("rte", &labels, "multi_label_classification"),
            ("stsb", &one, "single_label_classification"),
            ("stsb", &one, "multi_label_classification"),
        ] {
            let message = of(task, labels, json!(problem)).unwrap_err();
            assert!(message.contains(&format!("problem_type is '{problem}', but what task '{task}'")), "{message}");
        }
    }

    #[test]
    fn a_directory_that_is_none_is_refused_as_a_teacher() {
        let dir = directory(&json!({}));
        let student = Encoder::inspect(dir.path(), None, 32).unwrap();
        let task = glue_task("rte", Path::new("g")).unwrap();
        let missing = |path: &Path| {
            let teacher = GivenTeacher { path: path.to_owned(), labels: None };
            TaskModel::inspect(&teacher, &task, &student, 32).unwrap_err().to_string()
        };
        let nowhere = missing(&dir.path().join("nowhere"));
        assert!(nowhere.contains("each of distill.teachers.rte must be a directory"), "{nowhere}");
        let stage = tempfile::tempdir().unwrap();
        fs::create_dir(stage.path().join("model")).unwrap();
        fs::copy(dir.path().join("config.json"), stage.path().join("model/config.json")).unwrap();
        let above = missing(stage.path());
        assert!(above.contains(&format!("there is a model in {}/model", stage.path().display())), "{above}");
    }

    #[test]
    fn a_head_of_a_task_that_the_recipe_does_not_have_does_no_harm() {
        let head = |task: &str| PublishedHead::of(&glue_task(task, Path::new("g")).unwrap(), RegressionOutput::Sigmoid);
        let mut both = json!({});
        describe_heads(&mut both, &[head("mnli"), head("rte")]);
        assert_eq!(inspect("rte", &both, None).unwrap().columns, [0, 1]);
        let missing = inspect("cola", &both, None).unwrap_err().to_string();
        assert!(missing.contains("no head for task 'cola' in this model of mnli, rte"), "{missing}");
    }

    #[test]
    fn other_tokens_are_refused_whatever_file_they_come_from() {
        let (dir, other) = (directory(&json!({})), directory(&json!({})));
        let task = glue_task("rte", Path::new("g")).unwrap();
        let teacher = GivenTeacher { path: dir.path().to_owned(), labels: None };
        let named = GivenTeacher { labels: Some(task.kind.output_names()), ..teacher };
        let inspect = || {
            let student = Encoder::inspect(other.path(), None, 32).unwrap();
            TaskModel::inspect(&named, &task, &student, 32)
        };
        inspect().unwrap();
        // The same vocabulary in the other kind of file.
        let vocab = json!({ "[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "b": 5, "c": 6, "d": 7 });
        let normalizer = json!({ "type": "BertNormalizer", "lowercase": true });
        let saved = json!({ "normalizer": normalizer, "model": { "type": "WordPiece", "vocab": vocab } });
        fs::write(other.path().join("tokenizer.json"), saved.to_string()).unwrap();
        fs::remove_file(other.path().join("vocab.txt")).unwrap();
        inspect().unwrap();
        let cased = dir.path().join("tokenizer_config.json");
        fs::write(&cased, r#"{ "do_lower_case": false }"#).unwrap();
        let error = inspect().unwrap_err().to_string();
        assert!(error.contains("cased, accents kept") && error.contains("lower case, accents dropped"), "{error}");
        fs::remove_file(cased).unwrap();
        fs::remove_file(other.path().join("tokenizer.json")).unwrap();
        fs::write(other.path().join("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\nd\nc\nb\na\n").unwrap();
        let error = inspect().unwrap_err().to_string();
        assert!(error.contains("another vocabulary"), "{error}");
    }
}
