//! Teachers that are there already, in every form in which models are kept, and ensembles.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bam_tests::{Recipe, Run, Workplace, keep_tokenizer_json_alone, python, repository};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// Two models of one task each, and a recipe that learns from others.
fn workplace() -> (Workplace, Recipe) {
    let place = Workplace::new();
    let mut recipe = Recipe::of(&["cola", "stsb"]);
    (recipe.name, recipe.mode) = ("own".into(), "single".into());
    recipe.single = "epochs: 1, batch_size: 16, learning_rate: 0.002".into();
    recipe.multi = "epochs: 1, batch_size: 16".into();
    place.recipe("own.yaml", &recipe);
    place.bam(["run", "own.yaml"]).expect(0);
    recipe.mode = "single-to-multi".into();
    (place, recipe)
}

fn model(place: &Workplace, task: &str) -> PathBuf {
    place.at(format!("runs/own/stages/single-{task}/model"))
}

/// Runs `recipe` with these teachers as the run `name`.
fn taught(place: &Workplace, recipe: &Recipe, name: &str, teachers: &str) -> Run {
    let recipe = Recipe { name: name.into(), distill: format!("teachers: {{ {teachers} }}"), ..recipe.clone() };
    place.recipe(&format!("{name}.yaml"), &recipe);
    place.bam(["run", &format!("{name}.yaml")]).expect(0);
    Run::new(place.at(format!("runs/{name}")))
}

/// A teacher's logits, in the order of the example ids.
fn logits(python: &Path, run: &Run, teacher: &str, task: &str) -> Vec<f64> {
    let directory = run.at(format!("logits/{teacher}/{task}"));
    let files: Vec<PathBuf> = (0..2).map(|i| directory.join(format!("shard-{i:05}-of-00002.h5"))).collect();
    let output = Command::new(python).arg(repository().join("tests/read_with_h5py.py")).args(&files).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut rows: Vec<(i64, Vec<f64>)> = vec![];
    for file in &files {
        let sets = &all[file.to_str().unwrap()]["datasets"];
        let numbers = |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect::<Vec<_>>();
        let ids = sets["example_id"]["values"].as_array().unwrap();
        let values = sets["logits"]["values"].as_array().unwrap();
        rows.extend(ids.iter().zip(values).map(|(id, row)| (id.as_i64().unwrap(), numbers(row))));
    }
    rows.sort_by_key(|(id, _)| *id);
    rows.into_iter().flat_map(|(_, row)| row).collect()
}

/// A model as Hugging Face's tools would have left it: no word of bam, the classes in another order, the vocabulary in
/// `tokenizer.json`, the weights in shards.
fn as_hugging_face(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    fs::copy(from.join("vocab.txt"), to.join("vocab.txt")).unwrap();
    keep_tokenizer_json_alone(to);
    let mut config: Value = serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    config.as_object_mut().unwrap().remove("bam_heads");
    config["id2label"] = json!({ "0": "1", "1": "0" });
    config["label2id"] = json!({ "1": 0, "0": 1 });
    fs::write(to.join("config.json"), config.to_string()).unwrap();
    let bytes = fs::read(from.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let swapped: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .tensors()
        .into_iter()
        .map(|(name, tensor)| {
            let data = tensor.data();
            let half = data.len() / 2;
            let data =
                if name.starts_with("classifier.") { [&data[half..], &data[..half]].concat() } else { data.to_vec() };
            (name, tensor.shape().to_vec(), data)
        })
        .collect();
    let write = |part: &[(String, Vec<usize>, Vec<u8>)], file: &str| {
        let views =
            part.iter().map(|(n, s, d)| (n.clone(), TensorView::new(safetensors::Dtype::F32, s.clone(), d).unwrap()));
        safetensors::serialize_to_file(views, None, &to.join(file)).unwrap();
    };
    // In two shards with an index.
    let (first, second) = swapped.split_at(swapped.len() / 2);
    let mut map = serde_json::Map::new();
    for (part, file) in [(first, "model-00001-of-00002.safetensors"), (second, "model-00002-of-00002.safetensors")] {
        write(part, file);
        map.extend(part.iter().map(|(name, ..)| (name.clone(), json!(file))));
    }
    fs::write(to.join("model.safetensors.index.json"), json!({ "metadata": {}, "weight_map": map }).to_string())
        .unwrap();
}

fn write_pickle(python: &Path, place: &Workplace, from: &Path, to: &Path, kind: &str) {
    let script = repository().join("tests/write_pickle.py");
    let status =
        Command::new(python).arg(script).arg(from).arg(to).arg(kind).current_dir(place.path()).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_model_teaches_the_same_in_whatever_form_it_is_kept() {
    let Some(python) = python("a_model_teaches_the_same_in_whatever_form_it_is_kept") else { return };
    let (place, recipe) = workplace();
    let [cola, stsb] = ["cola", "stsb"].map(|task| model(&place, task));
    as_hugging_face(&cola, &place.at("sharded"));
    for kind in ["zip", "legacy"] {
        let directory = place.at(kind);
        fs::create_dir(&directory).unwrap();
        for file in ["config.json", "vocab.txt"] {
            fs::copy(cola.join(file), directory.join(file)).unwrap();
        }
        write_pickle(&python, &place, &cola.join("model.safetensors"), &directory.join("pytorch_model.bin"), kind);
    }
    // Relative to the recipe.
    let teachers = format!("cola: [{}, sharded, {{ path: zip }}, legacy], stsb: {}", cola.display(), stsb.display());
    let run = taught(&place, &recipe, "taught", &teachers);
    assert_eq!(run.stages(), ["logits", "prepare", "student"]);
    let expected = logits(&python, &run, "given-1", "cola");
    assert_eq!(expected.len(), 2 * 240);
    for other in ["given-2", "given-3", "given-4"] {
        let found = logits(&python, &run, other, "cola");
        let worst = expected.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(found.len() == expected.len() && worst < 1e-6, "{other} differs by {worst}");
    }
    // A student of all of them is a teacher, too: of the task that it is asked about.
    let student = run.at("stages/student/model");
    let again = taught(&place, &recipe, "again", &format!("cola: {0}, stsb: {0}", student.display()));
    assert_eq!(logits(&python, &again, "given-1", "stsb").len(), 240);
}

/// Keeps the tensors of a model for which `keep` says so; it may make them shorter, too.
fn change_tensors(model: &Path, keep: impl Fn(&str, &mut Vec<usize>) -> bool) {
    let path = model.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let kept = tensors.tensors().into_iter().filter_map(|(name, tensor)| {
        let mut shape = tensor.shape().to_vec();
        let is_kept = keep(&name, &mut shape);
        let data = &tensor.data()[..4 * shape.iter().product::<usize>()];
        is_kept.then(|| (name, TensorView::new(safetensors::Dtype::F32, shape, data).unwrap()))
    });
    safetensors::serialize_to_file(kept.collect::<Vec<_>>(), None, &path).unwrap();
}

#[test]
fn a_teacher_that_does_not_fit_is_refused_before_anything_is_trained() {
    let (place, recipe) = workplace();
    let refused = |directory: &str, code: i32, words: &[&str]| {
        let recipe =
            Recipe { name: "no".into(), distill: format!("teachers: {{ cola: {directory} }}"), ..recipe.clone() };
        place.recipe("no.yaml", &recipe);
        place.bam(["run", "no.yaml"]).finish().expect_error(code, words)
    };
    let cola = model(&place, "cola");
    let copy = |name: &str| {
        Run::new(&cola).copy_to(&place.at(name));
        place.at(name)
    };
    refused("nowhere", 3, &["nowhere/config.json", "No such file", "distill.teachers.cola must be a directory"]);
    refused("runs/own/stages/single-cola", 3, &["there is a model in", "stages/single-cola/model"]);
    refused("runs/own/stages/single-stsb/model", 3, &["no head for task 'cola'"]);
    let other = copy("other-vocabulary");
    fs::write(
        other.join("vocab.txt"),
        fs::read_to_string(other.join("vocab.txt")).unwrap().replace("\nthe\n", "\nteh\n"),
    )
    .unwrap();
    let same = fs::read(other.join("vocab.txt")).unwrap() == fs::read(cola.join("vocab.txt")).unwrap();
    assert!(!same, "the vocabulary has no 'the'");
    refused("other-vocabulary", 3, &["another vocabulary", "same encoder"]);
    let renamed = copy("renamed");
    let mut config: Value = serde_json::from_slice(&fs::read(renamed.join("config.json")).unwrap()).unwrap();
    config.as_object_mut().unwrap().remove("bam_heads");
    for (labels, words) in [
        (json!({ "0": "bad", "1": "good" }), &["outputs are named bad, good", "labels: [0, 1]"][..]),
        (json!({ "0": "a", "1": "b", "2": "c" }), &["has 3 outputs, task 'cola' needs 2"]),
    ] {
        config["id2label"] = labels;
        fs::write(renamed.join("config.json"), config.to_string()).unwrap();
        refused("renamed", 3, words);
    }
    let cased = copy("cased");
    fs::write(cased.join("tokenizer_config.json"), r#"{ "do_lower_case": false }"#).unwrap();
    refused("cased", 3, &["cased, accents kept", "against lower case", "do_lower_case"]);
    let headless = copy("headless");
    change_tensors(&headless, |name, _| !name.starts_with("classifier."));
    refused("headless", 3, &["headless/model.safetensors", "no tensor 'classifiers.cola.weight'", "fine-tuned?"]);
    let narrow = copy("narrow");
    change_tensors(&narrow, |name, shape| {
        if name == "bert.pooler.dense.bias" {
            shape[0] /= 2;
        }
        true
    });
    refused("narrow", 3, &["'bert.pooler.dense.bias' has shape [16], but the model needs [32]"]);
    let fewer = copy("fewer-layers");
    let config = fs::read_to_string(fewer.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["num_hidden_layers"] = json!(1);
    fs::write(fewer.join("config.json"), config.to_string()).unwrap();
    refused("fewer-layers", 3, &["tensors of 2 layers", "num_hidden_layers in config.json is 1"]);
    let mut unknown = recipe.clone();
    unknown.distill = "teachers: { rte: x }".into();
    place.recipe("unknown.yaml", &unknown);
    place.bam(["plan", "unknown.yaml"]).finish().expect_error(2, &["distill.teachers.rte", "cola, stsb"]);
    assert!(!place.at("runs/no").exists());
    // Numbers are looked at by the first stage, once.
    let damaged = copy("damaged").join("model.safetensors");
    let mut bytes = fs::read(&damaged).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(damaged, bytes).unwrap();
    let done = refused("damaged", 3, &["damaged/model.safetensors: tensor '", "holds NaN", "fetch or export it again"]);
    assert!(!format!("{done}").contains("restart"), "{done}");
    assert_eq!(Run::new(place.at("runs/no")).stages(), ["prepare"]);
}

#[test]
fn code_in_a_pickle_is_named_and_not_run() {
    let Some(python) = python("code_in_a_pickle_is_named_and_not_run") else { return };
    let place = Workplace::new();
    let weights = place.at("encoder/model.safetensors");
    let mut recipe = Recipe::of(&["cola", "stsb"]);
    // A teacher is asked last, and its weights are looked at first.
    recipe.distill = "teachers: { cola: teacher }".into();
    place.recipe("recipe.yaml", &recipe);
    let refused = |words: &[&str]| {
        place.bam(["run", "recipe.yaml"]).finish().expect_error(3, words);
        let run = Run::new(place.at("runs/tiny"));
        assert_eq!(run.stages(), ["prepare"]);
        assert!(!run.is_done("prepare") && !place.at("executed").exists());
        fs::remove_dir_all(run.path()).unwrap();
    };
    let teacher = place.at("teacher");
    Run::new(place.at("encoder")).copy_to(&teacher);
    fs::remove_file(teacher.join("model.safetensors")).unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(teacher.join("config.json")).unwrap()).unwrap();
    config["id2label"] = json!({ "0": "0", "1": "1" });
    fs::write(teacher.join("config.json"), config.to_string()).unwrap();
    write_pickle(&python, &place, &weights, &teacher.join("pytorch_model.bin"), "code");
    refused(&["teacher/pytorch_model.bin", "system", "only tensors are read"]);
    write_pickle(&python, &place, &weights, &teacher.join("pytorch_model.bin"), "zip");
    refused(&["teacher/pytorch_model.bin", "no tensor 'classifiers.cola.weight'", "fine-tuned?"]);
    write_pickle(&python, &place, &weights, &place.at("encoder/pytorch_model.bin"), "code");
    fs::remove_file(weights).unwrap();
    refused(&["encoder/pytorch_model.bin", "system", "only tensors are read"]);
}

#[test]
fn an_encoder_may_be_pickled_and_lack_a_pooler_and_vocab_txt() {
    let Some(python) = python("an_encoder_may_be_pickled_and_lack_a_pooler_and_vocab_txt") else { return };
    let place = Workplace::new();
    let encoder = place.at("encoder");
    change_tensors(&encoder, |name, _| !name.starts_with("pooler."));
    let weights = encoder.join("model.safetensors");
    write_pickle(&python, &place, &weights, &encoder.join("pytorch_model.bin"), "zip");
    fs::remove_file(weights).unwrap();
    let vocabulary = fs::read_to_string(encoder.join("vocab.txt")).unwrap();
    keep_tokenizer_json_alone(&encoder);
    // It was kept in half precision, by somebody who had fine-tuned it for something else.
    let mut config: Value = serde_json::from_slice(&fs::read(encoder.join("config.json")).unwrap()).unwrap();
    config["dtype"] = json!("bfloat16");
    config["id2label"] = json!({ "0": "a", "1": "b", "2": "c" });
    fs::write(encoder.join("config.json"), config.to_string()).unwrap();
    let mut recipe = Recipe::of(&["cola", "stsb"]);
    recipe.mode = "multi".into();
    recipe.multi = "epochs: 1, batch_size: 32".into();
    place.recipe("recipe.yaml", &recipe);
    let done = place.bam(["run", "recipe.yaml"]).expect(0);
    assert!(format!("{done}").contains("the encoder has no pooler"), "{done}");
    place.bam(["export", "runs/tiny"]).expect(0);
    let run = Run::new(place.at("runs/tiny"));
    for (model, labels) in [("stages/multi/model", Value::Null), ("export/cola", json!({ "0": "0", "1": "1" }))] {
        let config = run.json(&format!("{model}/config.json"));
        assert_eq!((&config["dtype"], &config["id2label"]), (&json!("float32"), &labels), "{model}");
        assert_eq!(config.get("torch_dtype"), None, "{model}");
        assert!(run.at(model).join("tokenizer.json").is_file());
        assert_eq!(fs::read_to_string(run.at(model).join("vocab.txt")).unwrap(), vocabulary, "{model}");
    }
}
