//! How far a run is, from its directory alone: for those who only look, while somebody else may be writing.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use bam_cluster::checkpoint;
use bam_cluster::plan::{Plan, StageWork};
use bam_cluster::protocol::StepReport;
use bam_cluster::run_dir::RunDir;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Long enough for the last line of `metrics.jsonl`, of however many tasks.
const TAIL: u64 = 64 * 1024;

/// How far one stage is.
#[derive(Debug, Clone, PartialEq)]
pub struct StageProgress {
    /// The stage's name.
    pub name: String,
    /// Whether it was begun.
    pub is_begun: bool,
    /// Whether it is complete.
    pub is_done: bool,
    /// Optimizer steps done, as its metrics say.
    pub step: u64,
    /// Optimizer steps in all; none for a stage that trains nothing.
    pub total: Option<u64>,
    /// The step of its newest checkpoint.
    pub checkpoint: Option<u64>,
    /// What a step took lately, in seconds: the median of the last ones.
    pub step_seconds: Option<f64>,
    /// What its newest step was like.
    pub latest: Option<Latest>,
}

/// A step, as far as people look at it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Latest {
    /// Loss of the global batch.
    pub loss: f64,
    /// Weight of the gold labels.
    pub lambda: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Training examples a second.
    pub samples_per_second: f64,
    /// Model FLOPs utilisation.
    pub utilisation: f64,
}

impl StageProgress {
    /// How long its other steps take if they take what the last ones took, in seconds.
    pub fn left(&self) -> Option<f64> {
        let (total, seconds) = self.total.zip(self.step_seconds)?;
        Some(total.saturating_sub(self.step) as f64 * seconds)
    }
}

/// What would not be lost now: it grows as long as a run gets on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Stages that are complete.
    pub stages: usize,
    /// Optimizer steps in the newest checkpoints of all others.
    pub steps: u64,
}

/// All stages of a run.
pub fn stages(run: &RunDir, plan: &Plan) -> Vec<StageProgress> {
    let look = |stage: &bam_cluster::plan::Stage| {
        let total = match &stage.work {
            StageWork::Train(train) => Some(train.schedule.total_steps),
            _ => None,
        };
        let lines: Vec<Line> = total.and_then(|_| last_lines(&run.metrics(&stage.name)).ok()).unwrap_or_default();
        StageProgress {
            name: stage.name.clone(),
            is_begun: run.inputs(&stage.name).exists(),
            is_done: run.done(&stage.name).exists(),
            step: last_step(&lines).map_or(0, |step| step + 1),
            total,
            step_seconds: median_seconds(&lines),
            latest: total.and_then(|_| latest(&run.metrics(&stage.name))),
            checkpoint: total.and_then(|_| checkpoint::newest_step(&run.checkpoints(&stage.name))),
        }
    };
    plan.stages.iter().map(look).collect()
}

/// What of it would not be lost.
pub fn kept(stages: &[StageProgress]) -> Kept {
    Kept {
        stages: stages.iter().filter(|stage| stage.is_done).count(),
        steps: stages.iter().filter(|stage| !stage.is_done).filter_map(|stage| stage.checkpoint).sum(),
    }
}

fn latest(path: &Path) -> Option<Latest> {
    let StepReport { loss, lambda, learning_rate, examples, seconds, utilisation, .. } = recent_steps(path).pop()?;
    let samples_per_second = examples as f64 / seconds;
    Some(Latest { loss, lambda, learning_rate, samples_per_second, utilisation })
}

fn median_seconds(lines: &[Line]) -> Option<f64> {
    let mut seconds: Vec<f64> = lines.iter().filter_map(|line| line.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied()
}

/// What is needed here of a line of `metrics.jsonl`.
#[derive(Deserialize)]
struct Line {
    step: u64,
    seconds: Option<f64>,
}

fn last_step(newest_first: &[Line]) -> Option<u64> {
    newest_first.first().map(|line| line.step)
}

/// The last steps that `metrics.jsonl` has, the oldest first; none if there is no such file.
pub fn recent_steps(path: &Path) -> Vec<StepReport> {
    let mut steps: Vec<StepReport> = last_lines(path).unwrap_or_default();
    steps.reverse();
    steps
}

/// The last whole lines of `metrics.jsonl`, the newest first.
fn last_lines<T: DeserializeOwned>(path: &Path) -> io::Result<Vec<T>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut tail = vec![];
    file.take(TAIL).read_to_end(&mut tail)?;
    let lines = tail.rsplit(|byte| *byte == b'\n');
    Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_line_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        assert!(last_lines::<Line>(&path).is_err());
        for (text, step) in [
            ("", None),
            ("{\"step\":0,\"loss\":1}\n{\"step\":7,\"loss\":1}\n", Some(7)),
            ("{\"step\":7}\n{\"step\":8,\"lo", Some(7)),
            ("\u{0}\u{1}{{{\n\n", None),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(last_step(&last_lines(&path).unwrap()), step, "{text:?}");
        }
        std::fs::write(&path, format!("{}\n{{\"step\":9}}\n", "x".repeat(TAIL as usize))).unwrap();
        assert_eq!(last_step(&last_lines(&path).unwrap()), Some(9));
    }

    #[test]
    fn what_is_kept_counts_stages_and_the_checkpoints_of_open_ones() {
        let stage = |is_done, checkpoint| StageProgress {
            name: "s".into(),
            is_begun: true,
            is_done,
            step: 90,
            total: Some(100),
            checkpoint,
            step_seconds: None,
            latest: None,
        };
        let all = [stage(true, Some(100)), stage(false, Some(40)), stage(false, Some(30)), stage(false, None)];
        assert_eq!(kept(&all), Kept { stages: 1, steps: 70 });
    }
}
