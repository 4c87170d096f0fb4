//! Damaged files: whatever happens to a checkpoint, a manifest, a recipe or an encoder's description, it is an error or
//! what it was before, and never a panic.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod mutation;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bam_cluster::checkpoint::{Fence, State, Store};
use bam_cluster::config::{Recipe, load};
use bam_cluster::encoder::Encoder;
use bam_cluster::files;
use bam_cluster::plan::{Plan, Receipt, Schedule, StageWork, TaskSize};
use bam_cluster::run_dir::RunDir;
use bam_cluster::task::Kind;
use bam_cluster::teacher::{FORMAT_VERSION, LogitsManifest, Provenance, Shard, read_manifest, shard_name};
use mutation::{Mutator, replace};

const TENSORS: [&str; 2] = ["model.safetensors", "optimizer.safetensors"];
const FILES: [&str; 4] = ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"];

/// A stage with checkpoints of steps 10 and 20.
struct Stage {
    _directory: tempfile::TempDir,
    store: Store,
    newest: PathBuf,
    /// Content of the newest checkpoint.
    state: State,
    content: BTreeMap<&'static str, Vec<u8>>,
}

impl Stage {
    fn new() -> Stage {
        let directory = tempfile::tempdir().unwrap();
        let run = RunDir::new(directory.path());
        let store = Store::new(run.checkpoints("student"), &TENSORS, 2, Fence::advance(&run, "student").unwrap());
        let state = |step| {
            let schedule = Schedule { total_steps: 100, warmup_steps: 10, base_rate: 1e-4, constant_lambda: None };
            let (receipt, inputs) = (Receipt::empty(), "ab".repeat(32));
            State { step, receipt, schedule, inputs, incarnation: 1, world_size: 2 }
        };
        let mut newest = PathBuf::new();
        for step in [10, 20] {
            let draft = store.draft().unwrap();
            for name in TENSORS {
                fs::write(draft.file(name), format!("{name} of step {step} ").repeat(8)).unwrap();
            }
            newest = store.commit(draft, &state(step), |_| {}).unwrap();
        }
        let content = FILES.map(|name| (name, fs::read(newest.join(name)).unwrap())).into();
        Stage { _directory: directory, store, newest, state: state(20), content }
    }

    /// Puts `damaged` in the place of a file: the checkpoint is not taken any more, or holds what it always did.
    fn try_with(&self, name: &str, damaged: &[u8]) {
        replace(&self.newest.join(name), damaged);
        let (found, refused) = self.store.newest_good().unwrap();
        let found = found.unwrap();
        if found.state.step == 20 {
            assert_eq!((&found.state, refused.len()), (&self.state, 0));
            assert_eq!(found.path, self.newest);
            // A manifest may be written in many ways; what it vouches for may not.
            let intact = name == "manifest.json" || damaged == self.content[name];
            assert!(intact, "{name} is taken as {:?}", String::from_utf8_lossy(damaged));
        } else {
            assert_eq!((found.state.step, refused.len()), (10, 1));
        }
    }

    fn restore(&self, name: &str) {
        replace(&self.newest.join(name), &self.content[name]);
    }
}

#[test]
fn a_checkpoint_cut_short_anywhere_is_not_taken() {
    let stage = Stage::new();
    for name in FILES {
        let whole = &stage.content[name];
        for end in 0..whole.len() {
            stage.try_with(name, &whole[..end]);
            let taken = stage.store.newest_good().unwrap().0.unwrap().state.step == 20;
            // Without its last line's end a manifest says the same.
            assert_eq!(taken, name == "manifest.json" && end == whole.len() - 1, "{name} cut at {end}");
        }
        stage.restore(name);
        assert_eq!(stage.store.newest_good().unwrap().0.unwrap().state, stage.state);
    }
}

#[test]
fn a_checkpoint_changed_anyhow_is_not_taken_for_another() {
    let stage = Stage::new();
    let mut mutator = Mutator::new(1);
    for (name, times) in FILES.into_iter().zip([2_000, 2_000, 6_000, 12_000]) {
        let whole = stage.content[name].clone();
        for i in 0..times {
            let damaged = if name.ends_with("json") && i % 2 == 0 {
                mutator.text(str::from_utf8(&whole).unwrap())
            } else {
                mutator.bytes(&whole)
            };
            stage.try_with(name, &damaged);
        }
        stage.restore(name);
    }
}

#[test]
fn a_file_that_the_manifest_does_not_vouch_for_is_not_believed() {
    let stage = Stage::new();
    let manifest: serde_json::Value = serde_json::from_slice(&stage.content["manifest.json"]).unwrap();
    for left_out in 0..3 {
        let mut less = manifest.clone();
        less["files"].as_array_mut().unwrap().remove(left_out);
        stage.try_with("manifest.json", less.to_string().as_bytes());
        assert_eq!(stage.store.newest_good().unwrap().0.unwrap().state.step, 10);
    }
    let mut outside = manifest.clone();
    outside["files"][0]["name"] = "../step-00000020/model.safetensors".into();
    stage.try_with("manifest.json", outside.to_string().as_bytes());
    assert_eq!(stage.store.newest_good().unwrap().0.unwrap().state.step, 10);
}

#[test]
fn a_number_of_starts_is_a_number_or_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let run = RunDir::new(directory.path());
    Fence::advance(&run, "student").unwrap();
    let mut mutator = Mutator::new(2);
    for number in ["1\n", "7", "18446744073709551614", "18446744073709551615", "-1", "", "1e3"] {
        for _ in 0..300 {
            let damaged = mutator.text(number);
            replace(&run.incarnation(), &damaged);
            if let Ok(fence) = Fence::advance(&run, "student") {
                let before: u64 = str::from_utf8(&damaged).unwrap().trim().parse().unwrap();
                assert_eq!(Some(fence.incarnation()), before.checked_add(1));
            }
        }
    }
}

#[test]
fn a_manifest_of_logits_says_what_is_expected_or_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let provenance = Provenance {
        task: "rte".into(),
        label_names: vec!["entailment".into(), "not_entailment".into()],
        teacher_sha256: "0123456789abcdef".repeat(4),
        data_sha256: "123456789abcdef0".repeat(4),
        vocab_sha256: "23456789abcdef01".repeat(4),
    };
    let shard = |i, rows| Shard { file: shard_name(i, 2), rows, sha256: "89abcdef01234567".repeat(4) };
    let shards = vec![shard(0, 5), shard(1, 4)];
    let manifest =
        LogitsManifest { format_version: FORMAT_VERSION, provenance: provenance.clone(), examples: 9, shards };
    let path = directory.path().join("manifest.json");
    files::write_json(&path, &manifest).unwrap();
    let whole = fs::read_to_string(&path).unwrap();
    let mut mutator = Mutator::new(3);
    let try_with = |damaged: &[u8]| {
        replace(&path, damaged);
        if let Ok(read) = read_manifest(directory.path(), &provenance) {
            assert_eq!((&read.provenance, read.format_version), (&provenance, FORMAT_VERSION));
            let rows: u128 = read.shards.iter().map(|s| s.rows as u128).sum();
            assert_eq!(rows, read.examples as u128);
        }
    };
    for end in 0..whole.len() {
        try_with(&whole.as_bytes()[..end]);
    }
    for _ in 0..10_000 {
        try_with(&mutator.text(&whole));
        try_with(&mutator.bytes(whole.as_bytes()));
    }
    // Whatever the shards claim together, no sum wraps around.
    let huge = whole
        .replace("\"rows\": 5", &format!("\"rows\": {}", u64::MAX - 3))
        .replace("\"examples\": 9", "\"examples\": 0");
    assert_ne!(huge, whole);
    try_with(huge.as_bytes());
}

const RECIPE: &str = "\
name: x
mode: single-to-multi
seed: 3
trials: 2
model: { path: m, max_length: 64, layers: 4, dropout: 0.1 }
data:
  glue: g
  max_train_examples: 900
  tasks:
    - cola
    - { name: own, train: a.tsv, dev: b.tsv, text: 0, text_b: c, label: 1, type: regression, range: [-4, 4] }
    - name: other
      train: a.tsv
      dev_fraction: 0.2
      header: false
      text: 0
      label: 1
      type: classification
      labels: [negative, neutral, positive]
      thresholds: [-0.5, 0.5]
train:
  single: { epochs: 2, batch_size: 32, learning_rate: 1.0e-4, search: { layerwise_decay: [1.0, 0.9] } }
  multi: { epochs: 3, batch_size: 64, rate_scaling: linear, layerwise_decay: { own: 1.0, default: 0.9 } }
  fine_tune: { epochs: 1 }
distill: { ensemble: 2, temperature: 2.0, teachers: { cola: [/t/a, /t/b] } }
sampling: { method: multiples, exponent: 0.75 }
predict: [dev, test]
checkpoint: { every_steps: 50, keep: 2 }
cluster: { processes: 2, single_processes: 1, deadline: 60, mpirun_args: [--oversubscribe], hosts: [n1, 'n2:4'], launcher: mpirun, srun_args: [--quiet] }
";

/// Loads a recipe that was damaged; one that is accepted is sound and derives a plan.
fn try_recipe(path: &Path, text: &[u8]) -> Option<Recipe> {
    replace(path, text);
    let begun = Instant::now();
    let recipe = load(path, &[]).ok();
    if let Some(recipe) = &recipe {
        let said = || String::from_utf8_lossy(text).into_owned();
        let size =
            |task: String| TaskSize { task, train: 1000, dev: 100, further: BTreeMap::from([("test".into(), 10)]) };
        let sizes: Vec<TaskSize> = recipe.tasks().into_iter().map(|t| size(t.name)).collect();
        let plan = Plan::derive(recipe, &sizes);
        for stage in &plan.stages {
            let StageWork::Train(train) = &stage.work else { continue };
            let schedule = &train.schedule;
            assert!(schedule.total_steps > 0 && schedule.warmup_steps <= schedule.total_steps, "{}", said());
            assert!(schedule.base_rate.is_finite() && schedule.base_rate > 0.0, "{}", said());
        }
        for task in recipe.tasks() {
            if let Kind::Regression { min, max } = task.kind {
                assert!(min < max && (max - min).is_finite(), "{}", said());
            }
        }
    }
    // Not a measurement: what gets out of proportion takes hours.
    assert!(begun.elapsed() < Duration::from_secs(60), "{} bytes of recipe took {:?}", text.len(), begun.elapsed());
    recipe
}

#[test]
fn a_damaged_recipe_is_an_error_or_a_sound_recipe() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("recipe.yaml");
    let whole = try_recipe(&path, RECIPE.as_bytes()).unwrap();
    let resolved = serde_json::to_string_pretty(&whole).unwrap();
    assert_eq!(try_recipe(&path, resolved.as_bytes()), Some(whole));
    for end in 0..RECIPE.len() {
        try_recipe(&path, &RECIPE.as_bytes()[..end]);
    }
    let mut mutator = Mutator::new(4);
    let mut accepted = 0;
    for _ in 0..12_000 {
        for text in [RECIPE, &resolved] {
            accepted += usize::from(try_recipe(&path, &mutator.text(text)).is_some());
        }
        try_recipe(&path, &mutator.bytes(RECIPE.as_bytes()));
    }
    assert!(accepted > 100, "{accepted} recipes were accepted");
}

/// Hosts become an argument of `mpirun`.
#[test]
fn a_damaged_list_of_hosts_is_an_error_or_a_list_of_hosts() {
    const HOSTS: &str = "[n1, 'n2:4', gpu-node_07.cluster.example.org:2]";
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("recipe.yaml");
    let head = "name: x\nmodel: { path: m }\ndata: { glue: g, tasks: [cola] }\ncluster: { hosts: ";
    let mut mutator = Mutator::new(6);
    let (mut accepted, mut hosts) = (0, 0);
    for _ in 0..8_000 {
        replace(&path, [head.as_bytes(), &mutator.text(HOSTS), b" }\n"].concat());
        let Ok(recipe) = load(&path, &[]) else { continue };
        accepted += 1;
        for host in &recipe.cluster.hosts {
            let is_word = |word: &str| word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            let (name, ranks) = host.split_once(':').unwrap_or((host, "1"));
            assert!(is_word(name) && !name.is_empty() && !name.starts_with('-'), "{host:?}");
            assert!(ranks.parse::<u16>().is_ok_and(|ranks| ranks > 0), "{host:?}");
            hosts += 1;
        }
    }
    assert!(accepted > 500 && hosts > 500, "{accepted} lists of {hosts} hosts were accepted");
}

#[test]
fn a_recipe_out_of_all_proportion_is_refused_in_no_time() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("recipe.yaml");
    let with = |from: &str, to: &str| {
        assert!(RECIPE.contains(from), "{from}");
        RECIPE.replace(from, to)
    };
    let many = |n: usize| format!("[{}]", vec!["0.5"; n].join(", "));
    for text in [
        with("trials: 2", "trials: 18446744073709551615"),
        with("ensemble: 2", "ensemble: 18446744073709551615"),
        with("epochs: 3", "epochs: 18446744073709551615"),
        with("epochs: 3", "epochs: 1000000000000"),
        with("batch_size: 64", "batch_size: 18446744073709551615"),
        with("processes: 2", "processes: 1000000000"),
        with("layerwise_decay: [1.0, 0.9]", &format!("layerwise_decay: {0}, learning_rate: {0}", many(20_000))),
        with("thresholds: [-0.5, 0.5]", "thresholds: [-0.5, .inf]"),
        with("labels: [negative, neutral, positive]", "labels: [a, b]").replace("[-0.5, 0.5]", "[.nan]"),
        with("range: [-4, 4]", "range: [-1.7e308, 1.7e308]"),
        with("rate_scaling: linear", "rate_scaling: linear, rate_batch_size: 1, learning_rate: 1.0e308"),
        // Laughs, a billion of them.
        format!(
            "name: x\nmodel: {{ path: m }}\na0: &a0 [x, x]\n{}",
            (1..40).map(|i| format!("a{i}: &a{i} [*a{0}, *a{0}]\n", i - 1)).collect::<String>()
        ),
        with("name: x", &format!("name: {}x", "[".repeat(20_000))),
        with("name: x", &format!("name: {}x", "{a: ".repeat(20_000))),
        with("name: x", &format!("name:\n  {}x", "- ".repeat(20_000))),
        "[".repeat(20_000),
        "? ".repeat(20_000),
        format!("name: &a {}", "x".repeat(1 << 20)),
    ] {
        assert!(try_recipe(&path, text.as_bytes()).is_none(), "{text:.300}");
    }
}

#[test]
fn a_damaged_encoder_is_an_error_or_an_encoder() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let config = "{ \"vocab_size\": 8, \"hidden_size\": 4, \"num_hidden_layers\": 1, \"num_attention_heads\": 2,\n  \
                  \"intermediate_size\": 8, \"max_position_embeddings\": 40, \"hidden_dropout_prob\": 0.1,\n  \
                  \"layer_norm_eps\": 1e-12 }\n";
    let header = r#"{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let weights = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 8]].concat();
    let tokenizer = r#"{"added_tokens":[{"id":0,"content":"[PAD]","special":true}],"normalizer":{"type":"BertNormalizer",
        "lowercase":false,"strip_accents":null},"model":{"type":"WordPiece","vocab":{"[PAD]":0,"[UNK]":1,"[CLS]":2,"[SEP]":3,
        "a":4,"b":5,"c":6,"d":7}}}"#;
    let files: [(&str, &[u8]); 5] = [
        ("config.json", config.as_bytes()),
        ("vocab.txt", b"[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nb\nc\nd\n"),
        ("model.safetensors", &weights),
        ("tokenizer_config.json", br#"{"do_lower_case":false,"tokenizer_class":"BertTokenizer"}"#),
        ("tokenizer.json", tokenizer.as_bytes()),
    ];
    files.iter().for_each(|(name, content)| fs::write(at(name), content).unwrap());
    assert!(Encoder::inspect(directory.path(), None, 32).is_ok());
    let mut mutator = Mutator::new(5);
    for (name, whole) in files {
        if name == "tokenizer.json" {
            // Now it is the vocabulary.
            fs::remove_file(at("vocab.txt")).unwrap();
            assert!(Encoder::inspect(directory.path(), None, 32).is_ok());
        }
        for i in 0..4_000 {
            let damaged = match str::from_utf8(whole) {
                Ok(text) if i % 2 == 0 => mutator.text(text),
                _ => mutator.bytes(whole),
            };
            replace(&at(name), damaged);
            if let Ok(encoder) = Encoder::inspect(directory.path(), Some(1), 32) {
                let config = &encoder.config;
                assert!(config.num_attention_heads > 0 && config.max_position_embeddings >= 32);
                assert!((0.0..1.0).contains(&config.hidden_dropout_prob), "{}", config.hidden_dropout_prob);
                assert!(config.layer_norm_eps > 0.0 && config.layer_norm_eps.is_finite(), "{}", config.layer_norm_eps);
                assert_eq!(encoder.vocabulary().unwrap().special_ids().unwrap().len(), 4);
                assert!(encoder.check_weights().is_err(), "it has one tensor of two numbers");
                let _ = (encoder.normalizing(), encoder.vocabulary_sha256());
            }
        }
        replace(&at(name), whole);
    }
}
