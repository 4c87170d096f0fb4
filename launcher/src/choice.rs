//! Chooses between models of one task: the one that is best on dev takes the name that others know it by. The launcher
//! does this itself, since there is nothing to compute.

use std::fs;
use std::path::Path;

use anyhow::{Context, anyhow};
use bam_cluster::files;
use bam_cluster::plan::{ChooseStage, Plan, StageWork};
use bam_cluster::run_dir::RunDir;
use bam_cluster::stage_record::{Scores, StageRecord, Sums};
use bam_cluster::task::Metric;
use serde::{Deserialize, Serialize};

/// `stages/STAGE/choice.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// The stage whose model was chosen.
    pub chosen: String,
    /// Every candidate, in order.
    pub candidates: Vec<Candidate>,
}

/// What a candidate was trained with, and what it reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The stage that trained it.
    pub stage: String,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Factor between the rates of neighbouring layers.
    pub layerwise_decay: f64,
    /// The task's main metric on dev.
    pub score: Option<f64>,
}

/// Makes the best candidate's model, scores and predictions those of `stage`. All candidates are complete.
///
/// # Errors
/// A candidate's files cannot be read, or the stage's cannot be written.
pub fn choose(run: &RunDir, plan: &Plan, stage: &str, work: &ChooseStage, metric: Metric) -> anyhow::Result<Sums> {
    let mut candidates = vec![];
    for name in &work.candidates {
        let path = run.scores(name);
        let scores: Option<Scores> = files::read_json(&path).with_context(|| path.display().to_string())?;
        let scores =
            scores.ok_or_else(|| anyhow!("{} is missing; remove {}", path.display(), run.stage(name).display()))?;
        let score = work.tasks.iter().find_map(|t| scores.get(t)?.metrics.get(metric.name()).copied().flatten());
        let (learning_rate, layerwise_decay) = settings(plan, name).unwrap_or_default();
        candidates.push(Candidate { stage: name.clone(), learning_rate, layerwise_decay, score });
    }
    let best = best(&candidates, metric).ok_or_else(|| anyhow!("stage '{stage}' has no candidates"))?;
    let chosen = candidates[best].stage.clone();
    for part in ["model", "predictions"] {
        take_over(&run.stage(&chosen).join(part), &run.stage(stage).join(part))?;
    }
    let scores = fs::read(run.scores(&chosen)).context("the chosen candidate's scores")?;
    files::write_atomically(&run.scores(stage), &scores)?;
    files::write_json(&run.stage(stage).join("choice.json"), &Choice { chosen: chosen.clone(), candidates })?;
    let record: Option<StageRecord> = files::read_json(&run.done(&chosen))?;
    Ok(record.map(|r| r.outputs).unwrap_or_default())
}

/// What a choice was, in words.
///
/// # Errors
/// It cannot be read.
pub fn describe(run: &RunDir, stage: &str) -> anyhow::Result<String> {
    let path = run.stage(stage).join("choice.json");
    let choice: Option<Choice> = files::read_json(&path).with_context(|| path.display().to_string())?;
    let choice = choice.with_context(|| format!("{} is missing", path.display()))?;
    let of = choice.candidates.len();
    let chosen = choice.candidates.iter().find(|c| c.stage == choice.chosen);
    Ok(chosen.map_or(String::new(), |c| {
        let (rate, decay) = (c.learning_rate, c.layerwise_decay);
        format!("learning rate {rate:e} and layer decay {decay} are the best of {of} on dev")
    }))
}

fn settings(plan: &Plan, stage: &str) -> Option<(f64, f64)> {
    match &plan.stage(stage)?.work {
        StageWork::Train(train) => Some((train.settings.learning_rate, train.layerwise_decay)),
        _ => None,
    }
}

/// The index of the best; the first of equals, and any before one whose metric is undefined.
fn best(candidates: &[Candidate], metric: Metric) -> Option<usize> {
    let value = |c: &Candidate| match c.score {
        Some(score) if metric.is_share() => score,
        Some(score) => -score,
        None => f64::NEG_INFINITY,
    };
    (0..candidates.len()).reduce(|best, i| if value(&candidates[i]) > value(&candidates[best]) { i } else { best })
}

/// Puts a copy of the directory `from` in the place of `to`. Files are linked where the file system can.
fn take_over(from: &Path, to: &Path) -> anyhow::Result<()> {
    let context = || format!("copying {} to {}", from.display(), to.display());
    let aside = to.with_extension("draft");
    for old in [&aside, &to.to_owned()] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(context)?;
        }
    }
    fs::create_dir_all(&aside).with_context(context)?;
    for entry in fs::read_dir(from).with_context(context)? {
        let entry = entry.with_context(context)?;
        let target = aside.join(entry.file_name());
        if fs::hard_link(entry.path(), &target).is_err() {
            fs::copy(entry.path(), &target).with_context(context)?;
        }
    }
    fs::rename(&aside, to).with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_counts_and_the_first_of_equals() {
        let candidates = |scores: &[Option<f64>]| -> Vec<Candidate> {
            let candidate = |score: &Option<f64>| Candidate {
                stage: String::new(),
                learning_rate: 1.0,
                layerwise_decay: 1.0,
                score: *score,
            };
            scores.iter().map(candidate).collect()
        };
        let of = |scores: &[Option<f64>], metric| best(&candidates(scores), metric);
        assert_eq!(of(&[None, Some(-0.1), Some(0.4), Some(0.4)], Metric::Spearman), Some(2));
        assert_eq!(of(&[Some(0.9), Some(0.2)], Metric::Mse), Some(1));
        assert_eq!((of(&[None, None], Metric::F1), of(&[], Metric::F1)), (Some(0), None));
    }
}
