//! The contract of teacher logits: who wrote them, from what, and that they are complete before anybody learns from
//! them (invariant 6). The numbers themselves are in HDF5 shards, which the worker reads and writes.

mod given;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::short;
use crate::files;
use crate::run_dir::RunDir;

pub use given::{Scale, TaskModel};

/// Version of the shards' layout; also an attribute of every shard.
pub const FORMAT_VERSION: u32 = 1;

/// What a set of shards was made from. Written into the manifest and, as attributes, into every shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// The task.
    pub task: String,
    /// Names of the columns of `logits`, in order.
    pub label_names: Vec<String>,
    /// SHA-256 of the teacher's weights.
    pub teacher_sha256: String,
    /// SHA-256 of the tokenised training data.
    pub data_sha256: String,
    /// SHA-256 of the vocabulary.
    pub vocab_sha256: String,
}

/// `logits/TEACHER/TASK/manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogitsManifest {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Where the logits come from.
    #[serde(flatten)]
    pub provenance: Provenance,
    /// Examples over all shards.
    pub examples: usize,
    /// In the order of ranks.
    pub shards: Vec<Shard>,
}

/// One shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// File name beside the manifest.
    pub file: String,
    /// Examples in it.
    pub rows: usize,
    /// SHA-256 of the file.
    pub sha256: String,
}

/// Logits that must not be learnt from.
#[derive(Debug, thiserror::Error)]
pub enum LogitsError {
    /// There are none.
    #[error("{path}: there are no complete teacher logits here{}", remedy(path))]
    Missing {
        /// The manifest that was looked for.
        path: PathBuf,
    },
    /// They were made from something else.
    #[error(
        "{path}: the logits of task '{task}' were made from another {what} ({was} instead of {now}){}",
        remedy(path)
    )]
    Foreign {
        /// Where.
        path: PathBuf,
        /// The task.
        task: String,
        /// What differs.
        what: &'static str,
        /// What they were made from.
        was: String,
        /// What is there now.
        now: String,
    },
    /// They are not what they should be.
    #[error("{path}: {problem}{}", remedy(path))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// What helps against bad logits in a file of `RUN/logits/TEACHER/TASK`.
fn remedy(path: &Path) -> String {
    let run = RunDir::new(path.ancestors().nth(4).unwrap_or(Path::new(".")));
    let teacher = path.ancestors().nth(2).and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    // Each trial's teachers are run by a stage of that trial.
    let stage = teacher.split_once('@').map_or("logits".to_owned(), |(_, trial)| format!("logits@{trial}"));
    format!("\n  remove {} and run again: the logits stage makes them anew", run.stage(&stage).display())
}

/// File name of one shard.
pub fn shard_name(index: usize, count: usize) -> String {
    format!("shard-{index:05}-of-{count:05}.h5")
}

/// Reads the manifest in `directory` and checks that its shards were made from what is there now.
///
/// # Errors
/// No manifest, another provenance, or numbers that do not add up.
pub fn read_manifest(directory: &Path, expected: &Provenance) -> Result<LogitsManifest, LogitsError> {
    let path = directory.join("manifest.json");
    let damaged = |problem: String| LogitsError::Damaged { path: path.clone(), problem };
    let manifest: LogitsManifest = files::read_json(&path)
        .map_err(|e| damaged(e.to_string()))?
        .ok_or_else(|| LogitsError::Missing { path: path.clone() })?;
    if manifest.format_version != FORMAT_VERSION {
        return Err(damaged(format!("format version {} is not known here", manifest.format_version)));
    }
    let (was, now) = (&manifest.provenance, expected);
    let labels = |p: &Provenance| format!("{:?}", p.label_names);
    let parts = [
        ("task", was.task.clone(), now.task.clone()),
        ("list of labels", labels(was), labels(now)),
        ("teacher", was.teacher_sha256.clone(), now.teacher_sha256.clone()),
        ("data set", was.data_sha256.clone(), now.data_sha256.clone()),
        ("vocabulary", was.vocab_sha256.clone(), now.vocab_sha256.clone()),
    ];
    for (what, was, now) in parts {
        if was != now {
            // Of a sum the first digits are enough to see the difference, unless that is what was tampered with.
            let is_sum = was.len() == now.len() && short(&was) != short(&now) && was.len() == 64;
            let shown = |text: String| if is_sum { short(&text).to_owned() } else { text };
            let (was, now) = (shown(was), shown(now));
            return Err(LogitsError::Foreign { path, task: expected.task.clone(), what, was, now });
        }
    }
    let rows = manifest.shards.iter().try_fold(0usize, |rows, shard| rows.checked_add(shard.rows));
    if rows != Some(manifest.examples) {
        return Err(damaged(format!("its shards do not hold {} examples together", manifest.examples)));
    }
    Ok(manifest)
}

/// Where each expected example's logits stand among those found. The error says what is missing, twice or unknown.
pub fn coverage(expected: &[u64], found: &[u64]) -> Result<Vec<usize>, String> {
    let mut rows = HashMap::with_capacity(found.len());
    for (row, id) in found.iter().enumerate() {
        if rows.insert(*id, row).is_some() {
            return Err(format!("example {id} has logits twice"));
        }
    }
    let row_of = |id: &u64| rows.get(id).copied().ok_or_else(|| format!("example {id} has no logits"));
    let order: Vec<usize> = expected.iter().map(row_of).collect::<Result<_, _>>()?;
    if order.len() < found.len() {
        return Err(format!("{} logits belong to no training example", found.len() - order.len()));
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provenance() -> Provenance {
        Provenance {
            task: "rte".into(),
            label_names: vec!["entailment".into(), "not_entailment".into()],
            teacher_sha256: "t".into(),
            data_sha256: "d".into(),
            vocab_sha256: "v".into(),
        }
    }

    fn manifest(rows: usize) -> LogitsManifest {
        let shard = Shard { file: shard_name(0, 1), rows, sha256: "s".into() };
        LogitsManifest { format_version: FORMAT_VERSION, provenance: provenance(), examples: 2, shards: vec![shard] }
    }

    #[test]
    fn logits_of_another_teacher_data_set_or_label_order_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read_manifest(dir.path(), &provenance()), Err(LogitsError::Missing { .. })));
        files::write_json(&dir.path().join("manifest.json"), &manifest(2)).unwrap();
        assert_eq!(read_manifest(dir.path(), &provenance()).unwrap(), manifest(2));
        let swapped = Provenance { label_names: vec!["not_entailment".into(), "entailment".into()], ..provenance() };
        let other_teacher = Provenance { teacher_sha256: "u".into(), ..provenance() };
        let other_data = Provenance { data_sha256: "e".into(), ..provenance() };
        let other_words = Provenance { vocab_sha256: "w".into(), ..provenance() };
        let other_task = Provenance { task: "wnli".into(), ..provenance() };
        for (expected, what) in [
            (swapped, "list of labels"),
            (other_teacher, "teacher"),
            (other_data, "data set"),
            (other_words, "vocabulary"),
            (other_task, "task"),
        ] {
            let message = read_manifest(dir.path(), &expected).unwrap_err().to_string();
            assert!(message.contains(&format!("another {what}")), "{message}");
        }
    }

    #[test]
    fn a_manifest_that_does_not_add_up_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        files::write_json(&dir.path().join("manifest.json"), &manifest(1)).unwrap();
        assert!(matches!(read_manifest(dir.path(), &provenance()), Err(LogitsError::Damaged { .. })));
    }

    #[test]
    fn the_remedy_names_the_stage_to_remove() {
        let path = PathBuf::from("runs/x/logits/teacher-rte/rte/shard-00000-of-00002.h5");
        let message = LogitsError::Damaged { path, problem: "is damaged".into() }.to_string();
        assert!(message.contains("remove runs/x/stages/logits and run again"), "{message}");
        let path = PathBuf::from("runs/x/logits/teacher-rte@2/rte/manifest.json");
        let message = LogitsError::Missing { path }.to_string();
        assert!(message.contains("remove runs/x/stages/logits@2 and run again"), "{message}");
    }

    #[test]
    fn every_example_exactly_once() {
        assert_eq!(coverage(&[3, 1], &[1, 3]), Ok(vec![1, 0]));
        assert_eq!(coverage(&[1, 2], &[1]), Err("example 2 has no logits".into()));
        assert_eq!(coverage(&[1], &[1, 1]), Err("example 1 has logits twice".into()));
        assert_eq!(coverage(&[1], &[1, 7]), Err("1 logits belong to no training example".into()));
    }
}
