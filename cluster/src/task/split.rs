//! A task's train and dev examples: files as given, or a seeded share of one file; optionally cut down.

use serde::Serialize;

use super::{DataError, Dev, Example, Table, Task, TextSize, count_table, read_table};
use crate::digest;
use crate::plan::shuffled;

/// A task's examples, ready to be tokenised.
#[derive(Debug, Clone, PartialEq)]
pub struct Examples {
    /// To train on, by ascending id.
    pub train: Vec<Example>,
    /// To judge on, by ascending id.
    pub dev: Vec<Example>,
    /// Rows left out of the train and dev files because they lack a column.
    pub skipped: [u64; 2],
    /// SHA-256 of the files (or file) that these came from.
    pub source_sha256: String,
}

/// Which of a task's examples are used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Selection {
    /// Train on a seeded sample of at most so many.
    pub max_train: Option<usize>,
    /// Judge on a seeded sample of at most so many.
    pub max_dev: Option<usize>,
    /// If the order of a pair's texts means nothing, train on each pair the other way round, too.
    pub double_unordered: bool,
}

/// Reads both splits of a task. An example that is the swapped copy of another has that one's id plus the number of rows
/// in the training file.
///
/// # Errors
/// Whatever [`read_table`] refuses, and a split that is left without an example.
pub fn read_examples(task: &Task, seed: u64, selection: &Selection) -> Result<Examples, DataError> {
    let train_path = &task.source.train;
    let train_table = read_table(task, train_path)?;
    let rows = train_table.rows;
    let (mut train, mut dev, skipped, source_sha256) = match &task.source.dev {
        Dev::File(dev_path) => {
            let dev_table = read_table(task, dev_path)?;
            let both = both(&train_table.sha256, &dev_table.sha256);
            (train_table.examples, dev_table.examples, [train_table.skipped, dev_table.skipped], both)
        }
        Dev::Fraction(fraction) => {
            let Table { examples, skipped, sha256, .. } = train_table;
            let n_dev = share(task, examples.len(), *fraction)?;
            let (dev, train) = sample(examples, n_dev, &["split", &seed.to_string(), &task.name]);
            (train, dev, [skipped, 0], sha256)
        }
    };
    for (examples, limit, split) in [(&mut train, selection.max_train, "train"), (&mut dev, selection.max_dev, "dev")] {
        if let Some(limit) = limit {
            *examples = sample(std::mem::take(examples), limit, &["limit", &seed.to_string(), &task.name, split]).0;
        }
    }
    if selection.double_unordered && task.unordered {
        let copies: Vec<Example> = train.iter().filter_map(|e| swapped(e, rows)).collect();
        train.extend(copies);
    }
    Ok(Examples { train, dev, skipped, source_sha256 })
}

/// How many examples [`read_examples`] finds, and in what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sizes {
    /// Examples to train on.
    pub train: usize,
    /// Examples to judge on.
    pub dev: usize,
    /// Rows left out of the train and dev files because they lack a column.
    pub skipped: [u64; 2],
    /// Rows of the train and dev files, those included; of a dev split without a file of its own, 0.
    pub rows: [u64; 2],
    /// Mean length of the training file's texts, in bytes.
    pub mean_bytes: usize,
    /// Length of the longest of them, in bytes.
    pub longest_bytes: usize,
    /// SHA-256 of the files (or file).
    pub source_sha256: String,
}

/// Reads and checks both splits of a task and keeps nothing of them.
///
/// # Errors
/// As for [`read_examples`].
pub fn count_examples(task: &Task, selection: &Selection) -> Result<Sizes, DataError> {
    let of_train = count_table(task, &task.source.train)?;
    let TextSize { total, longest } = of_train.text;
    let mean_bytes = (total as usize).div_ceil(of_train.examples.max(1));
    let (mut train, mut dev, skipped, rows, source_sha256) = match &task.source.dev {
        Dev::File(path) => {
            let of_dev = count_table(task, path)?;
            let both = both(&of_train.sha256, &of_dev.sha256);
            let rows = [of_train.rows(), of_dev.rows()];
            (of_train.examples, of_dev.examples, [of_train.skipped, of_dev.skipped], rows, both)
        }
        Dev::Fraction(fraction) => {
            let n_dev = share(task, of_train.examples, *fraction)?;
            (of_train.examples - n_dev, n_dev, [of_train.skipped, 0], [of_train.rows(), 0], of_train.sha256)
        }
    };
    for (examples, limit) in [(&mut train, selection.max_train), (&mut dev, selection.max_dev)] {
        *examples = limit.map_or(*examples, |limit| limit.min(*examples));
    }
    if selection.double_unordered && task.unordered && task.source.layout.text_b.is_some() {
        train *= 2;
    }
    Ok(Sizes { train, dev, skipped, rows, mean_bytes, longest_bytes: longest, source_sha256 })
}

/// The sum of a task that has two files.
fn both(train: &str, dev: &str) -> String {
    digest::of_bytes(format!("{train} {dev}"))
}

/// How many of so many examples are the dev split. Both splits need one.
fn share(task: &Task, examples: usize, fraction: f64) -> Result<usize, DataError> {
    let n_dev = ((examples as f64 * fraction).round() as usize).min(examples);
    let (purpose, change) = match n_dev {
        0 => ("judge on", "larger"),
        n if n == examples => ("train on", "smaller"),
        n => return Ok(n),
    };
    let (task, path) = (task.name.clone(), task.source.train.clone());
    Err(DataError::Fraction { task, path, fraction, examples, purpose, change })
}

/// A pair with its texts in the other order.
fn swapped(example: &Example, rows: u64) -> Option<Example> {
    let (text, text_b) = (example.text_b.clone()?, Some(example.text.clone()));
    Some(Example { id: example.id + rows, text, text_b, label: example.label })
}

/// A seeded sample of `n` examples and the rest, both in their former order.
fn sample(examples: Vec<Example>, n: usize, seed: &[&str]) -> (Vec<Example>, Vec<Example>) {
    let mut chosen = vec![false; examples.len()];
    for i in shuffled(examples.len(), seed).into_iter().take(n) {
        chosen[i as usize] = true;
    }
    let mut flags = chosen.into_iter();
    examples.into_iter().partition(|_| flags.next().unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unordered_pairs_are_doubled_in_training_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("MRPC")).unwrap();
        let rows = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\ta\tb\n0\t3\t4\tc\td\n";
        for file in ["MRPC/train.tsv", "MRPC/dev.tsv"] {
            std::fs::write(dir.path().join(file), rows).unwrap();
        }
        let task = crate::task::glue_task("mrpc", dir.path()).unwrap();
        let read = |double_unordered| {
            read_examples(&task, 1, &Selection { double_unordered, ..Selection::default() }).unwrap()
        };
        assert_eq!((read(false).train.len(), read(true).dev.len()), (2, 2));
        let doubled: Vec<_> =
            read(true).train.into_iter().map(|e| (e.id, e.text, e.text_b.unwrap_or_default(), e.label)).collect();
        let pair = |id, a: &str, b: &str, label| (id, a.to_owned(), b.to_owned(), label);
        let expected = [pair(0, "a", "b", 1.0), pair(1, "c", "d", 0.0), pair(2, "b", "a", 1.0), pair(3, "d", "c", 0.0)];
        assert_eq!(doubled, expected);
    }

    #[test]
    fn what_is_counted_is_what_is_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("MRPC")).unwrap();
        let row = |i| format!("{}\t{i}\t{i}\ta {i}\tb {i}\n", i % 2);
        let rows = |n: usize| {
            "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n".to_owned() + &(0..n).map(row).collect::<String>()
        };
        for (file, n) in [("MRPC/train.tsv", 11), ("MRPC/dev.tsv", 3)] {
            std::fs::write(dir.path().join(file), rows(n)).unwrap();
        }
        let mut task = crate::task::glue_task("mrpc", dir.path()).unwrap();
        for dev in [task.source.dev.clone(), Dev::Fraction(0.3), Dev::Fraction(0.01), Dev::Fraction(1.0)] {
            task.source.dev = dev;
            for (max_train, max_dev) in [(None, None), (Some(4), Some(2)), (Some(100), Some(100))] {
                for double_unordered in [false, true] {
                    let selection = Selection { max_train, max_dev, double_unordered };
                    let read = read_examples(&task, 1, &selection);
                    let read = read.map(|e| (e.train.len(), e.dev.len(), e.skipped, e.source_sha256));
                    let counted = count_examples(&task, &selection);
                    let counted = counted.map(|s| (s.train, s.dev, s.skipped, s.source_sha256));
                    assert_eq!(counted.map_err(|e| e.to_string()), read.map_err(|e| e.to_string()), "{selection:?}");
                }
            }
        }
    }

    #[test]
    fn a_share_that_leaves_a_split_empty_is_told_from_an_empty_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut task = crate::task::glue_task("cola", dir.path()).unwrap();
        task.source.train = dir.path().join("train.tsv");
        std::fs::write(&task.source.train, "x\t1\t\tgood\n".repeat(8)).unwrap();
        let mut message = |fraction| {
            task.source.dev = Dev::Fraction(fraction);
            count_examples(&task, &Selection::default()).map_err(|e| e.to_string())
        };
        let judge = message(0.01).unwrap_err();
        assert!(judge.contains("train.tsv: dev_fraction 0.01 of 8 example(s) leaves none to judge on"), "{judge}");
        assert!(judge.contains("a larger dev_fraction"), "{judge}");
        let train = message(0.99).unwrap_err();
        assert!(train.contains("none to train on") && train.contains("a smaller dev_fraction"), "{train}");
        assert_eq!(message(0.1).map(|sizes| (sizes.train, sizes.dev, sizes.rows)), Ok((7, 1, [8, 0])));
    }

    #[test]
    fn a_sample_and_its_rest_are_the_whole() {
        let example = |id| Example { id, text: String::new(), text_b: None, label: 0.0 };
        let (a, b) = sample((0..10).map(example).collect(), 3, &["x"]);
        assert_eq!((a.len(), b.len()), (3, 7));
        let mut ids: Vec<_> = a.iter().chain(&b).map(|e| e.id).collect();
        assert!(a.is_sorted_by_key(|e| e.id) && b.is_sorted_by_key(|e| e.id));
        ids.sort_unstable();
        assert_eq!(ids, (0..10).collect::<Vec<_>>());
    }
}
