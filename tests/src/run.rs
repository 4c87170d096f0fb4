//! A run directory, read as a user's script would.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::snapshot::sha256;

/// A run directory.
#[derive(Debug, Clone)]
pub struct Run(PathBuf);

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Number of the optimizer step, from 0.
    pub step: u64,
    /// Loss of the global batch.
    pub loss: f64,
    /// Weight of the gold labels.
    pub lambda: f64,
    /// Mean losses by task.
    pub task_losses: BTreeMap<String, f64>,
}

impl Run {
    /// The run in `path`.
    pub fn new(path: impl Into<PathBuf>) -> Run {
        Run(path.into())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A path in it.
    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    /// A path in a stage's directory.
    pub fn stage(&self, stage: &str, name: &str) -> PathBuf {
        self.at("stages").join(stage).join(name)
    }

    /// Whether a stage was begun.
    pub fn is_begun(&self, stage: &str) -> bool {
        self.stage(stage, "inputs.json").exists()
    }

    /// Whether a stage is complete.
    pub fn is_done(&self, stage: &str) -> bool {
        self.stage(stage, "done.json").exists()
    }

    /// The names of all stages that left anything.
    pub fn stages(&self) -> Vec<String> {
        names(&self.at("stages"))
    }

    /// The whole lines of a stage's `metrics.jsonl`; a line that is just being written is left out.
    pub fn steps(&self, stage: &str) -> Vec<Step> {
        let text = fs::read_to_string(self.stage(stage, "metrics.jsonl")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).map(step).collect()
    }

    /// A JSON file in the directory.
    pub fn json(&self, name: &str) -> Value {
        json(&self.at(name))
    }

    /// A stage's checkpoints, oldest first.
    pub fn checkpoints(&self, stage: &str) -> Vec<PathBuf> {
        let directory = self.stage(stage, "checkpoints");
        names(&directory).into_iter().filter(|n| n.starts_with("step-")).map(|n| directory.join(n)).collect()
    }

    /// Steps done and receipt of the data order, as the newest checkpoint of a stage has them.
    pub fn receipt(&self, stage: &str) -> (u64, String) {
        let checkpoint = self.checkpoints(stage).pop().unwrap_or_else(|| panic!("stage {stage} has no checkpoint"));
        let state = json(&checkpoint.join("state.json"));
        (state["step"].as_u64().unwrap(), state["receipt"].as_str().unwrap().to_owned())
    }

    /// The weights of a stage's model.
    pub fn weights(&self, stage: &str) -> PathBuf {
        self.stage(stage, "model/model.safetensors")
    }

    /// SHA-256 of the weights of a stage's model.
    pub fn weights_sha256(&self, stage: &str) -> String {
        sha256(&self.weights(stage))
    }

    /// Everything in the directory that has the name of something that is being written.
    pub fn half_written(&self) -> Vec<PathBuf> {
        let mut found = vec![];
        add_half_written(&self.0, &mut found);
        found
    }

    /// All lines of a stage's log.
    pub fn log(&self, stage: &str) -> String {
        fs::read_to_string(self.at(format!("logs/{stage}.log"))).unwrap_or_default()
    }

    /// Copies everything to `target`, which is not there yet.
    pub fn copy_to(&self, target: &Path) -> Run {
        copy(&self.0, target);
        Run::new(target)
    }
}

fn step(line: Value) -> Step {
    let number = |name: &str| line[name].as_f64().unwrap_or_else(|| panic!("no {name} in {line}"));
    let losses = line["task_losses"].as_object().unwrap();
    Step {
        step: line["step"].as_u64().unwrap(),
        loss: number("loss"),
        lambda: number("lambda"),
        task_losses: losses.iter().map(|(task, loss)| (task.clone(), loss.as_f64().unwrap())).collect(),
    }
}

fn json(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return vec![] };
    let mut names: Vec<String> = entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

fn add_half_written(directory: &Path, found: &mut Vec<PathBuf>) {
    for name in names(directory) {
        let path = directory.join(&name);
        if [".tmp", ".new"].iter().any(|end| name.ends_with(end))
            || name.contains(".draft")
            || name.starts_with(".old-")
        {
            found.push(path);
        } else if path.is_dir() {
            add_half_written(&path, found);
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
