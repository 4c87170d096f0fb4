//! GLUE's tasks in their official file layout (columns, headers, label order): a table, no logic.

use std::path::Path;

use super::{Column, Dev, Kind, Layout, Malformed, Metric, Source, Task};

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
                label: Column::Index(row.label),
                malformed: row.malformed,
            },
        },
    })
}

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
}
