//! GLUE's tasks in their official file layout (columns, headers, label order): tables, and whether something is in them.

use std::path::Path;

use super::{Column, Dev, FurtherSplit, Kind, Layout, Malformed, Metric, Source, Task};

/// The GLUE tasks that can be trained on, by the names that recipes use.
pub const NAMES: [&str; 9] = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"];

/// Folder, dev file, header, text, second text, label, class names (none: regression 0–5), metrics, malformed rows,
/// whether the texts of a pair are interchangeable.
struct Row {
    folder: &'static str,
    dev: &'static str,
    header: bool,
    text: i64,
    text_b: Option<i64>,
    label: i64,
    labels: &'static [&'static str],
    metrics: &'static [Metric],
    malformed: Malformed,
    unordered: bool,
}

const BINARY: &[&str] = &["0", "1"];
const ENTAILMENT: &[&str] = &["entailment", "not_entailment"];
const NLI: &[&str] = &["contradiction", "entailment", "neutral"];

/// The layout and labels of one GLUE task; the first metric is the one that BAM reports on dev.
fn row(name: &str) -> Option<Row> {
    use Malformed::{Refuse, Skip};
    use Metric::{Accuracy, F1, Matthews, Pearson, Spearman};
    let row = |folder, header, text, text_b, label, labels, metrics| Row {
        folder,
        dev: "dev.tsv",
        header,
        text,
        text_b,
        label,
        labels,
        metrics,
        malformed: Refuse,
        unordered: false,
    };
    Some(match name {
        "cola" => row("CoLA", false, 3, None, 1, BINARY, &[Matthews]),
        "sst2" => row("SST-2", true, 0, None, 1, BINARY, &[Accuracy]),
        "mrpc" => Row { unordered: true, ..row("MRPC", true, 3, Some(4), 0, BINARY, &[Accuracy, F1]) },
        "stsb" => Row { unordered: true, ..row("STS-B", true, -3, Some(-2), -1, &[], &[Spearman, Pearson]) },
        "qqp" => Row { malformed: Skip, ..row("QQP", true, 3, Some(4), 5, BINARY, &[Accuracy, F1]) },
        "mnli" => Row { dev: "dev_matched.tsv", ..row("MNLI", true, 8, Some(9), -1, NLI, &[Accuracy]) },
        "qnli" => row("QNLI", true, 1, Some(2), 3, ENTAILMENT, &[Accuracy]),
        "rte" => row("RTE", true, 1, Some(2), 3, ENTAILMENT, &[Accuracy]),
        "wnli" => row("WNLI", true, 1, Some(2), 3, BINARY, &[Accuracy]),
        _ => return None,
    })
}

/// The GLUE task `name` with its files under `directory`; `None` if there is no such task.
pub fn glue_task(name: &str, directory: &Path) -> Option<Task> {
    let row = row(name)?;
    let folder = directory.join(row.folder);
    let kind = if row.labels.is_empty() {
        Kind::Regression { min: 0.0, max: 5.0 }
    } else {
        Kind::Classification { labels: row.labels.iter().map(|l| (*l).to_owned()).collect(), thresholds: vec![] }
    };
    Some(Task {
        name: name.to_owned(),
        kind,
        metrics: row.metrics.to_vec(),
        unordered: row.unordered,
        source: Source {
            train: folder.join("train.tsv"),
            dev: Dev::File(folder.join(row.dev)),
            layout: Layout {
                header: row.header,
                text: Column::Index(row.text),
                text_b: row.text_b.map(Column::Index),
                label: Some(Column::Index(row.label)),
                index: None,
                malformed: row.malformed,
            },
            further: further(name, row.folder, directory, row.label),
        },
    })
}

/// Whether a task is GLUE's, and not one of a recipe's own of the same name.
pub(super) fn is_official(task: &Task) -> bool {
    let directory = task.source.train.parent().and_then(Path::parent);
    directory.and_then(|glue| glue_task(&task.name, glue)).as_ref() == Some(task)
}

/// What GLUE calls the text, the second text and the label in the header of a task's training and dev files.
fn column_names(name: &str) -> [&'static str; 3] {
    match name {
        "sst2" => ["sentence", "", "label"],
        "mrpc" => ["#1 String", "#2 String", "Quality"],
        "stsb" => ["sentence1", "sentence2", "score"],
        "qqp" => ["question1", "question2", "is_duplicate"],
        "mnli" => ["sentence1", "sentence2", "gold_label"],
        "qnli" => ["question", "sentence", "label"],
        _ => ["sentence1", "sentence2", "label"],
    }
}

/// The first of these three columns that has another one's name, and the name that GLUE gives it. Names that GLUE does not
/// know are a copy's own.
pub(super) fn misnamed<'a>(task: &str, found: [&'a str; 3]) -> Option<(&'a str, &'static str)> {
    let is_known = |name: &str| !name.is_empty() && NAMES.iter().any(|task| column_names(task).contains(&name));
    found.into_iter().zip(column_names(task)).find(|(name, expected)| name != expected && is_known(name))
}

/// Text columns of a task's test file, all of which have a header and begin with the row's number.
fn test_columns(name: &str) -> (i64, Option<i64>) {
    match name {
        "cola" | "sst2" => (1, None),
        "mrpc" => (3, Some(4)),
        "stsb" => (-2, Some(-1)),
        "mnli" => (8, Some(9)),
        _ => (1, Some(2)),
    }
}

fn further(name: &str, folder: &str, glue: &Path, label: i64) -> Vec<FurtherSplit> {
    let split = |split: &str, files: &[&str], (text, text_b): (i64, Option<i64>), label: Option<i64>| FurtherSplit {
        name: split.to_owned(),
        files: files.iter().map(|f| glue.join(f)).collect(),
        layout: Layout {
            header: true,
            text: Column::Index(text),
            text_b: text_b.map(Column::Index),
            label: label.map(Column::Index),
            index: label.is_none().then_some(Column::Index(0)),
            malformed: Malformed::Refuse,
        },
        counted_in: None,
    };
    let columns = test_columns(name);
    if name != "mnli" {
        return vec![split("test", &[&format!("{folder}/test.tsv")], columns, None)];
    }
    vec![
        split("dev-mismatched", &["MNLI/dev_mismatched.tsv"], columns, Some(label)),
        split("test", &["MNLI/test_matched.tsv"], columns, None),
        split("test-mismatched", &["MNLI/test_mismatched.tsv"], columns, None),
        split("ax", &["AX/diagnostic.tsv", "diagnostic/diagnostic.tsv", "AX/AX.tsv"], (1, Some(2)), None),
    ]
}

/// One file of a submission to GLUE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubmissionFile {
    /// In the zip.
    pub file: &'static str,
    /// The task whose model answers.
    pub task: &'static str,
    /// Of which split.
    pub split: &'static str,
    /// Rows of GLUE's test set, each of which has to be answered.
    pub rows: usize,
}

impl SubmissionFile {
    /// The file that holds the answers to this split of a GLUE task, if GLUE's server wants them.
    pub fn of(task: &str, split: &str) -> Option<&'static SubmissionFile> {
        SUBMISSION.iter().find(|file| file.task == task && file.split == split)
    }
}

/// The files of a submission, all of which GLUE wants.
pub const SUBMISSION: [SubmissionFile; 11] = {
    const fn of(file: &'static str, task: &'static str, split: &'static str, rows: usize) -> SubmissionFile {
        SubmissionFile { file, task, split, rows }
    }
    [
        of("CoLA.tsv", "cola", "test", 1_063),
        of("SST-2.tsv", "sst2", "test", 1_821),
        of("MRPC.tsv", "mrpc", "test", 1_725),
        of("STS-B.tsv", "stsb", "test", 1_379),
        of("MNLI-m.tsv", "mnli", "test", 9_796),
        of("MNLI-mm.tsv", "mnli", "test-mismatched", 9_847),
        of("QNLI.tsv", "qnli", "test", 5_463),
        of("QQP.tsv", "qqp", "test", 390_965),
        of("RTE.tsv", "rte", "test", 3_000),
        of("WNLI.tsv", "wnli", "test", 146),
        of("AX.tsv", "mnli", "ax", 1_104),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_a_row_and_its_metrics_fit_its_kind() {
        for name in NAMES {
            let task = glue_task(name, Path::new("glue")).expect(name);
            assert!(task.metrics.iter().all(|m| m.is_for_classes() == task.kind.is_classification()), "{name}");
        }
        assert!(glue_task("ax", Path::new("glue")).is_none());
    }

    #[test]
    fn a_task_of_ones_own_is_not_glues_by_its_name() {
        for directory in ["glue", "", "/data/glue/"] {
            let mut task = glue_task("rte", Path::new(directory)).expect("rte");
            assert!(is_official(&task), "{directory}");
            task.source.layout.text = Column::Index(2);
            assert!(!is_official(&task), "{directory}");
        }
    }

    #[test]
    fn every_file_of_a_submission_has_its_split() {
        for SubmissionFile { file, task, split, .. } in SUBMISSION {
            let task = glue_task(task, Path::new("glue")).expect(file);
            assert!(task.source.further.iter().any(|f| f.name == split && f.belongs_to("test")), "{file}");
        }
        let mnli = glue_task("mnli", Path::new("glue")).expect("mnli");
        let of_dev: Vec<&str> =
            mnli.source.further.iter().filter(|f| f.belongs_to("dev")).map(|f| f.name.as_str()).collect();
        assert_eq!(of_dev, ["dev-mismatched"]);
    }
}
