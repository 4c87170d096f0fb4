//! What a stage was made from and what it made: how a finished stage is recognised and a changed input is noticed.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::digest::short;
use crate::files;
use crate::run_dir::RunDir;

/// Names with SHA-256 sums.
pub type Sums = BTreeMap<String, String>;

/// `stages/STAGE/done.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageRecord {
    /// What it was made from.
    pub inputs: Sums,
    /// What it made.
    pub outputs: Sums,
    /// Wall time of the start that completed it.
    pub seconds: f64,
}

/// A model's scores on dev: task → metric → value (`stages/STAGE/dev.json`).
pub type Scores = BTreeMap<String, TaskScores>;

/// A model's scores on one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskScores {
    /// Metric → value, as a share (0.5, not 50 %). A metric that is undefined, such as a correlation with constant
    /// predictions, is null.
    pub metrics: BTreeMap<String, Option<f64>>,
    /// Dev examples, each counted exactly once.
    pub examples: usize,
    /// Number of different classes predicted; 1 means that the model has collapsed. Null for regression.
    pub classes_predicted: Option<usize>,
    /// Standard deviation of a regression's predictions over that of the gold labels (over the task's range, where these
    /// are all the same); next to 0 means that the model has collapsed. Null for classes, and in older files.
    pub spread: Option<f64>,
}

/// A regression whose predictions spread less than this has collapsed. One that has just begun to learn may spread by half a
/// hundredth and put examples into the right order for all that, which a correlation is about.
const LEAST_SPREAD: f64 = 0.001;

impl TaskScores {
    /// What a model that has collapsed does: it answers everything alike. None for any other, and where there are too few
    /// examples to tell.
    pub fn collapse(&self) -> Option<&'static str> {
        let is_alike = match (self.classes_predicted, self.spread) {
            (Some(classes), _) => classes == 1,
            (None, Some(spread)) => spread < LEAST_SPREAD,
            // An older file: correlations with predictions that are all the same are undefined.
            (None, None) => self.metrics.values().any(Option::is_none),
        };
        let said = match self.classes_predicted {
            Some(_) => "predicts the same class for every dev example",
            None => "predicts nearly the same value for every dev example",
        };
        (is_alike && self.examples > 1).then_some(said)
    }
}

/// A stage that cannot go on where it was left.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Its inputs are not those that it was begun with.
    #[error(
        "stage '{stage}' was made from other inputs than are there now:\n{changes}\n  restore them, choose another \
         name (-o name=…) or remove {directory} to make the stage again"
    )]
    Changed {
        /// Which stage.
        stage: String,
        /// One line for each changed input.
        changes: String,
        /// Where the stage's files are.
        directory: PathBuf,
    },
    /// A record cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What is known of a stage before it starts.
#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    /// Nothing was done yet, or it was interrupted.
    Open,
    /// It is complete.
    Finished(StageRecord),
}

/// Looks a stage up, and refuses one that was begun or finished from other inputs.
///
/// # Errors
/// The inputs have changed, or a record cannot be read.
pub fn standing(run: &RunDir, stage: &str, inputs: &Sums) -> Result<Standing, RecordError> {
    let io = |path: PathBuf| move |source| RecordError::Io { path, source };
    let changed = |was: &Sums| RecordError::Changed {
        stage: stage.to_owned(),
        changes: changes(was, inputs),
        directory: run.stage(stage),
    };
    let done = run.done(stage);
    if let Some(record) = files::read_json::<StageRecord>(&done).map_err(io(done))? {
        return if record.inputs == *inputs { Ok(Standing::Finished(record)) } else { Err(changed(&record.inputs)) };
    }
    let begun = run.inputs(stage);
    match files::read_json::<Sums>(&begun).map_err(io(begun))? {
        Some(was) if was != *inputs => Err(changed(&was)),
        _ => Ok(Standing::Open),
    }
}

/// Notes what a stage is made from, before it starts; it is not complete any more, if it was.
///
/// # Errors
/// A file cannot be written or removed.
pub fn begin(run: &RunDir, stage: &str, inputs: &Sums) -> Result<(), RecordError> {
    let done = run.done(stage);
    if done.exists() {
        std::fs::remove_file(&done).map_err(|source| RecordError::Io { path: done, source })?;
    }
    let path = run.inputs(stage);
    files::write_json(&path, inputs).map_err(|source| RecordError::Io { path, source })
}

/// Notes that a stage is complete.
///
/// # Errors
/// The file cannot be written.
pub fn finish(run: &RunDir, stage: &str, record: &StageRecord) -> Result<(), RecordError> {
    let path = run.done(stage);
    files::write_json(&path, record).map_err(|source| RecordError::Io { path, source })
}

fn changes(was: &Sums, now: &Sums) -> String {
    let mut names: Vec<&String> = was.keys().chain(now.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let show = |sums: &Sums, name: &str| sums.get(name).map_or("absent".to_owned(), |s| short(s).to_owned());
    let lines: Vec<String> = names
        .into_iter()
        .filter(|n| was.get(*n) != now.get(*n))
        .map(|n| format!("  {n}: was {}, now {}", show(was, n), show(now, n)))
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(pairs: &[(&str, &str)]) -> Sums {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_finished_stage_is_recognised_and_a_changed_input_named() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path());
        let inputs = sums(&[("data rte", "aaaa"), ("encoder", "bbbb")]);
        assert_eq!(standing(&run, "s", &inputs).unwrap(), Standing::Open);
        begin(&run, "s", &inputs).unwrap();
        assert_eq!(standing(&run, "s", &inputs).unwrap(), Standing::Open);
        let other = sums(&[("data rte", "cccc"), ("encoder", "bbbb")]);
        let message = standing(&run, "s", &other).unwrap_err().to_string();
        assert!(message.contains("data rte: was aaaa, now cccc") && !message.contains("encoder"), "{message}");
        let record = StageRecord { inputs: inputs.clone(), outputs: sums(&[("model", "d")]), seconds: 1.0 };
        finish(&run, "s", &record).unwrap();
        assert_eq!(standing(&run, "s", &inputs).unwrap(), Standing::Finished(record));
        assert!(standing(&run, "s", &other).is_err());
    }
}
