//! What a model answered on a dev split, read back from `stages/STAGE/predictions/TASK-dev.tsv`.

use std::fs;
use std::path::Path;

use anyhow::{Context, anyhow};
use bam_cluster::task::Kind;

/// Answers and gold labels, in the order of the file: class indices, or scores.
#[derive(Debug, Clone, PartialEq)]
pub struct Predictions {
    /// Row numbers in the task's file.
    pub ids: Vec<u64>,
    /// What the model answered.
    pub answers: Vec<f32>,
    /// What would have been right.
    pub gold: Vec<f32>,
}

/// Reads a file.
///
/// # Errors
/// It is missing, or is not what bam writes for a task of this kind.
pub fn read(path: &Path, kind: &Kind) -> anyhow::Result<Predictions> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut found = Predictions { ids: vec![], answers: vec![], gold: vec![] };
    for (i, line) in text.lines().enumerate().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let row = match fields[..] {
            [id, answer, gold] => id.parse().ok().zip(value(answer, kind).zip(value(gold, kind))),
            _ => None,
        };
        let (id, (answer, gold)) =
            row.ok_or_else(|| anyhow!("{}, line {}: is no prediction for this task", path.display(), i + 1))?;
        found.ids.push(id);
        found.answers.push(answer);
        found.gold.push(gold);
    }
    Ok(found)
}

fn value(text: &str, kind: &Kind) -> Option<f32> {
    match kind {
        Kind::Classification { labels, .. } => labels.iter().position(|l| l == text).map(|i| i as f32),
        Kind::Regression { .. } => text.parse().ok().filter(|score: &f32| score.is_finite()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_read_by_name_and_scores_as_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.tsv");
        let classes = Kind::Classification { labels: vec!["no".into(), "yes".into()], thresholds: vec![] };
        fs::write(&path, "id\tprediction\tgold\n7\tyes\tno\n9\tno\tno\n").unwrap();
        let found = read(&path, &classes).unwrap();
        assert_eq!((found.ids, found.answers, found.gold), (vec![7, 9], vec![1.0, 0.0], vec![0.0, 0.0]));
        let message = read(&path, &Kind::Regression { min: 0.0, max: 1.0 }).unwrap_err().to_string();
        assert!(message.contains("line 2"), "{message}");
        fs::write(&path, "id\tprediction\tgold\n7\t0.250\t1.000\n").unwrap();
        assert_eq!(read(&path, &Kind::Regression { min: 0.0, max: 1.0 }).unwrap().answers, [0.25]);
    }
}
