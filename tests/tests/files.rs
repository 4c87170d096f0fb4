//! What a run leaves behind can be read by others: h5py, and whoever reads safetensors.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use bam_tests::{Bam, Recipe, Run, Workplace, python, repository, sha256};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

fn finished() -> &'static Run {
    static ONCE: OnceLock<Run> = OnceLock::new();
    ONCE.get_or_init(|| {
        let place = Workplace::shared("files");
        let mut recipe = Recipe::of(&["cola", "mood", "warmth"]);
        recipe.single = "epochs: 1, batch_size: 16".into();
        recipe.multi = "epochs: 1, batch_size: 16".into();
        recipe.cluster = "processes: 3, trace_steps: 4".into();
        place.recipe("recipe.yaml", &recipe);
        place.bam(["run", "recipe.yaml"]).expect(0);
        Run::new(place.at("runs/tiny"))
    })
}

/// What h5py finds in these files.
fn read(python: &Path, files: &[PathBuf]) -> Vec<Value> {
    let output = Command::new(python).arg(repository().join("tests/read_with_h5py.py")).args(files).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    files.iter().map(|f| all[f.to_str().unwrap()].clone()).collect()
}

fn ids(dataset: &Value) -> Vec<i64> {
    dataset["values"].as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect()
}

fn assert_dataset(file: &Value, name: &str, dtype: &str, shape: &[usize]) {
    let found = &file["datasets"][name];
    assert_eq!((&found["dtype"], &found["shape"]), (&json!(dtype), &json!(shape)), "dataset {name}");
    assert_eq!(found["checksummed"], true, "dataset {name}");
}

/// Rows, classes and label names of each task's training data.
const TASKS: [(&str, usize, &[&str]); 3] =
    [("cola", 240, &["0", "1"]), ("mood", 240, &["negative", "neutral", "positive"]), ("warmth", 240, &["score"])];

#[test]
fn h5py_reads_logits_by_their_documented_names() {
    let Some(python) = python("h5py_reads_logits_by_their_documented_names") else { return };
    let run = finished();
    for (task, rows, labels) in TASKS {
        let directory = run.at(format!("logits/teacher-{task}/{task}"));
        let shards: Vec<PathBuf> = (0..3).map(|i| directory.join(format!("shard-{i:05}-of-00003.h5"))).collect();
        let data = run.at(format!("data/{task}-train.h5"));
        let files = read(&python, &[&shards[..], std::slice::from_ref(&data)].concat());
        let (shards, tokens) = (&files[..3], &files[3]);
        let mut covered = vec![];
        for shard in shards {
            let ids = ids(&shard["datasets"]["example_id"]);
            assert_dataset(shard, "example_id", "int64", &[ids.len()]);
            assert_dataset(shard, "logits", "float32", &[ids.len(), labels.len()]);
            covered.extend(ids);
            let expected = json!({
                "task": task,
                "label_names": labels,
                "teacher_sha256": sha256(&run.weights(&format!("teacher-{task}"))),
                "data_sha256": sha256(&data),
                "vocab_sha256": tokens["attributes"]["vocab_sha256"],
                "format_version": 1,
            });
            assert_eq!(shard["attributes"], expected);
        }
        let mut expected = ids(&tokens["datasets"]["example_id"]);
        expected.sort_unstable();
        covered.sort_unstable();
        assert_eq!(covered, expected, "every training example of {task} exactly once");
        assert_eq!(expected.len(), rows);
    }
}

#[test]
fn h5py_reads_data_by_their_documented_names() {
    let Some(python) = python("h5py_reads_data_by_their_documented_names") else { return };
    let run = finished();
    for (task, rows, labels) in TASKS {
        let mut seen: BTreeMap<i64, &str> = BTreeMap::new();
        for (split, rows) in [("train", rows), ("dev", 60)] {
            let file = &read(&python, &[run.at(format!("data/{task}-{split}.h5"))])[0];
            let offsets = ids(&file["datasets"]["offsets"]);
            let tokens = *offsets.last().unwrap() as usize;
            assert_dataset(file, "offsets", "int64", &[rows + 1]);
            assert_dataset(file, "input_ids", "int32", &[tokens]);
            assert_dataset(file, "token_type_ids", "uint8", &[tokens]);
            assert_dataset(file, "label", "float32", &[rows]);
            assert_dataset(file, "example_id", "int64", &[rows]);
            assert!(offsets[0] == 0 && offsets.windows(2).all(|w| (1..=40).contains(&(w[1] - w[0]))));
            let token_ids = ids(&file["datasets"]["input_ids"]);
            let (cls, sep) = (2, 3);
            for w in offsets.windows(2) {
                assert_eq!((token_ids[w[0] as usize], token_ids[w[1] as usize - 1]), (cls, sep));
            }
            let attributes = &file["attributes"];
            assert_eq!(attributes["task"], task);
            assert_eq!(attributes["split"], split);
            assert_eq!(attributes["label_names"], json!(labels));
            assert_eq!((&attributes["max_length"], &attributes["format_version"]), (&json!(40), &json!(1)));
            for sum in ["source_sha256", "vocab_sha256"] {
                assert_eq!(attributes[sum].as_str().map(str::len), Some(64), "{sum}");
            }
            if task == "mood" {
                for id in ids(&file["datasets"]["example_id"]) {
                    assert_eq!(seen.insert(id, split), None, "example {id} is in both splits");
                }
            }
        }
    }
}

fn tensors(path: &Path) -> BTreeMap<String, (Dtype, Vec<usize>)> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(name, t)| (name, (t.dtype(), t.shape().to_vec()))).collect()
}

#[test]
fn published_models_have_hugging_faces_names() {
    let run = finished();
    for (task, _, labels) in TASKS {
        let teacher = tensors(&run.weights(&format!("teacher-{task}")));
        assert_eq!(teacher["classifier.weight"], (Dtype::F32, vec![labels.len(), 32]));
        assert_eq!(teacher["classifier.bias"], (Dtype::F32, vec![labels.len()]));
        assert!(teacher.keys().all(|n| n.starts_with("bert.") || n.starts_with("classifier.")), "{teacher:?}");
    }
    let student = tensors(&run.weights("student"));
    for (task, _, labels) in TASKS {
        assert_eq!(student[&format!("classifiers.{task}.weight")], (Dtype::F32, vec![labels.len(), 32]));
    }
    assert_eq!(student["bert.encoder.layer.1.attention.self.query.weight"], (Dtype::F32, vec![32, 32]));
    assert_eq!(student["bert.pooler.dense.bias"], (Dtype::F32, vec![32]));
    // Five of the embeddings, sixteen of each layer, two of the pooler, two of each head.
    assert_eq!(student.len(), 5 + 2 * 16 + 2 + 3 * 2);
}

#[test]
fn a_student_is_exported_as_a_model_of_each_task() {
    let run = finished();
    let place = tempfile::tempdir().unwrap();
    let bam = |more: &[&str]| {
        let bam = Bam::new(place.path(), ["export", run.path().to_str().unwrap(), "--to", "out"]);
        more.iter().fold(bam, |bam, argument| bam.arg(argument))
    };
    let student = fs::read(run.weights("student")).unwrap();
    let student = SafeTensors::deserialize(&student).unwrap();
    // The second time it takes the place of the first.
    for _ in 0..2 {
        bam(&[]).expect(0);
    }
    assert_eq!(fs::read_dir(place.path().join("out")).unwrap().count(), TASKS.len());
    for (task, _, labels) in TASKS {
        let directory = place.path().join("out").join(task);
        let bytes = fs::read(directory.join("model.safetensors")).unwrap();
        let exported = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(exported.len(), 5 + 2 * 16 + 2 + 2, "{task}");
        for (name, tensor) in exported.tensors() {
            let original = name.replace("classifier.", &format!("classifiers.{task}."));
            let original = student.tensor(&original).unwrap();
            assert_eq!((tensor.shape(), tensor.data()), (original.shape(), original.data()), "{name} of {task}");
        }
        let config: Value = serde_json::from_slice(&fs::read(directory.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["architectures"], json!(["BertForSequenceClassification"]));
        assert_eq!(config["id2label"][(labels.len() - 1).to_string()], labels[labels.len() - 1]);
        let problem = if task == "warmth" { "regression" } else { "single_label_classification" };
        assert_eq!(config["problem_type"], problem);
        assert!(directory.join("vocab.txt").is_file());
    }
    let config = place.path().join("out/cola/config.json");
    fs::write(&config, "{}").unwrap();
    bam(&[]).finish().expect_error(2, &["out/cola", "in the way", "--to"]);
    assert_eq!(fs::read_to_string(config).unwrap(), "{}");
    // What is in the way of one is in the way of all: none is written.
    let last = TASKS[TASKS.len() - 1].0;
    fs::remove_dir_all(place.path().join("out")).unwrap();
    fs::create_dir_all(place.path().join("out").join(last)).unwrap();
    bam(&[]).finish().expect_error(2, &[format!("out/{last}").as_str(), "in the way"]);
    assert_eq!(fs::read_dir(place.path().join("out")).unwrap().count(), 1);
    let changed = run.copy_to(&place.path().join("changed"));
    let mut weights = fs::read(changed.weights("student")).unwrap();
    *weights.last_mut().unwrap() ^= 1;
    fs::write(changed.weights("student"), weights).unwrap();
    let words = ["student/model/model.safetensors", "was changed after its training"];
    Bam::new(place.path(), ["export", "changed"]).finish().expect_error(3, &words);
    bam(&["--stage", "teacher"]).finish().expect_error(2, &["no stage 'teacher'", "teacher-cola", "student"]);
    Bam::new(place.path(), ["export", "out"]).finish().expect_error(2, &["not the directory of a run"]);
}

#[test]
fn the_trace_shows_every_rank_and_metrics_have_the_parts_of_each_step() {
    let run = finished();
    let trace = run.json("stages/student/trace.json");
    let events = trace["traceEvents"].as_array().unwrap();
    for rank in 0..3 {
        let of_rank: Vec<&Value> = events.iter().filter(|e| e["pid"] == rank && e["ph"] == "X").collect();
        let steps: Vec<u64> = of_rank.iter().map(|e| e["args"]["step"].as_u64().unwrap()).collect();
        assert!(steps.is_sorted() && steps.first() == Some(&0) && steps.last() == Some(&3), "{steps:?}");
        let names: Vec<&str> = of_rank.iter().take(6).map(|e| e["name"].as_str().unwrap()).collect();
        assert_eq!(
            names,
            ["data", "forward", "backward", "waiting for the slowest rank", "reduction", "optimizer"],
            "rank {rank}"
        );
        let ends = |e: &&Value| e["ts"].as_f64().unwrap() + e["dur"].as_f64().unwrap();
        assert!(of_rank.windows(2).all(|pair| ends(&pair[0]) <= pair[1]["ts"].as_f64().unwrap() + 1.0), "rank {rank}");
    }
    let metrics = fs::read_to_string(run.stage("student", "metrics.jsonl")).unwrap();
    for line in metrics.lines() {
        let step: Value = serde_json::from_str(line).unwrap();
        let parts: f64 = step["phases"].as_object().unwrap().values().map(|part| part.as_f64().unwrap()).sum();
        let seconds = step["seconds"].as_f64().unwrap();
        assert!(parts > 0.0 && parts <= seconds, "{line}");
        assert!(step["utilisation"].as_f64().unwrap() > 0.0 && step["bytes_reduced"].as_u64().unwrap() > 0, "{line}");
    }
}
