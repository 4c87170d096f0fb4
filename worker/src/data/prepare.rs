//! The prepare stage's work on one task: both splits become token files.

use bam_cluster::run_dir::RunDir;
use bam_cluster::stage_record::Sums;
use bam_cluster::task::{Example, Examples, Task};

use super::hdf5_file::WriteError;
use super::token_file::{TokenFile, TokenSet};
use super::tokenize::{TokenizeError, Tokenizer};

/// Progress is told after so many examples.
const PROGRESS: usize = 256;

/// How far a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// So many examples of both splits together are tokenised.
    Tokenised(usize),
    /// One more of its files is written.
    Written,
}

/// A task that could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A text could not be tokenised.
    #[error("task '{task}', {split} example {id}: {source}")]
    Tokenize {
        /// The task.
        task: String,
        /// `train`, `dev` or a further one.
        split: String,
        /// Row number in the source file.
        id: u64,
        /// Why.
        source: TokenizeError,
    },
    /// A token file could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Tokenises both splits of `task` and writes `data/TASK-train.h5` and `data/TASK-dev.h5`. `progress` hears every now
/// and then, and at the end, how far it is. Returns `TASK-train` and `TASK-dev`
/// with their files' SHA-256, which depend on the content only.
///
/// # Errors
/// A text cannot be tokenised, or a file cannot be written.
pub fn prepare_task(
    task: &Task,
    examples: &Examples,
    tokenizer: &Tokenizer,
    max_length: usize,
    vocab_sha256: &str,
    run: &RunDir,
    mut progress: impl FnMut(Progress),
) -> Result<Sums, PrepareError> {
    let mut sums = Sums::new();
    let mut done = 0;
    for (split, examples_of_split) in [("train", &examples.train), ("dev", &examples.dev)] {
        let mut set = empty(task, split, max_length, vocab_sha256);
        set.source_sha256.clone_from(&examples.source_sha256);
        for example in examples_of_split {
            append(&mut set, example, tokenizer)?;
            done += 1;
            if done % PROGRESS == 0 {
                progress(Progress::Tokenised(done));
            }
        }
        let sum = TokenFile::write(&run.data(&task.name, split), &set)?;
        sums.insert(format!("{}-{split}", task.name), sum);
        progress(Progress::Written);
    }
    progress(Progress::Tokenised(done));
    Ok(sums)
}

/// Tokenises examples that are not to be kept.
///
/// # Errors
/// A text cannot be tokenised.
pub fn tokenize(
    task: &Task,
    split: &str,
    examples: &[Example],
    tokenizer: &Tokenizer,
    max_length: usize,
    vocab_sha256: &str,
) -> Result<TokenSet, PrepareError> {
    let mut set = empty(task, split, max_length, vocab_sha256);
    examples.iter().try_for_each(|example| append(&mut set, example, tokenizer))?;
    Ok(set)
}

fn empty(task: &Task, split: &str, max_length: usize, vocab_sha256: &str) -> TokenSet {
    TokenSet {
        task: task.name.clone(),
        split: split.to_owned(),
        input_ids: vec![],
        token_type_ids: vec![],
        offsets: vec![0],
        labels: vec![],
        example_ids: vec![],
        label_names: task.kind.output_names(),
        max_length,
        source_sha256: String::new(),
        vocab_sha256: vocab_sha256.to_owned(),
    }
}

fn append(set: &mut TokenSet, example: &Example, tokenizer: &Tokenizer) -> Result<(), PrepareError> {
    let tokens = tokenizer.encode(&example.text, example.text_b.as_deref(), set.max_length).map_err(|source| {
        PrepareError::Tokenize { task: set.task.clone(), split: set.split.clone(), id: example.id, source }
    })?;
    set.token_type_ids.extend(tokens.types());
    set.input_ids.extend(&tokens.ids);
    set.offsets.push(set.input_ids.len());
    set.labels.push(example.label);
    set.example_ids.push(example.id);
    Ok(())
}

#[cfg(test)]
mod tests {
    use bam_cluster::config::Truncation;
    use bam_cluster::encoder::{Encoder, Weights};
    use bam_cluster::task::{Selection, glue_task, read_examples};

    use super::*;

    #[test]
    fn both_splits_become_files_with_recorded_sums() {
        let dir = tempfile::tempdir().unwrap();
        let encoder = Encoder {
            directory: dir.path().to_owned(),
            config: serde_json::from_str(
                r#"{"vocab_size":8,"hidden_size":4,"num_hidden_layers":1,"num_attention_heads":1,
                    "intermediate_size":4,"max_position_embeddings":16}"#,
            )
            .unwrap(),
            whole_layers: 1,
            weights: Weights::Safetensors(vec![]),
        };
        std::fs::write(dir.path().join("vocab.txt"), "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nb\nc\nd\n").unwrap();
        std::fs::create_dir(dir.path().join("RTE")).unwrap();
        let rows = "index\ts1\ts2\tlabel\n0\ta b\tc\tentailment\n1\td\tx\tnot_entailment\n";
        for file in ["RTE/train.tsv", "RTE/dev.tsv"] {
            std::fs::write(dir.path().join(file), rows).unwrap();
        }
        let task = glue_task("rte", dir.path()).unwrap();
        let examples = read_examples(&task, 1, &Selection { max_dev: Some(1), ..Selection::default() }).unwrap();
        let tokenizer = Tokenizer::open(&encoder, Truncation::default()).unwrap();
        let run = RunDir::new(dir.path().join("run"));
        let mut told = Vec::new();
        let sums = prepare_task(&task, &examples, &tokenizer, 16, "v", &run, |n| told.push(n)).unwrap();
        assert_eq!(told, [Progress::Written, Progress::Written, Progress::Tokenised(3)]);
        assert_eq!(sums.keys().collect::<Vec<_>>(), ["rte-dev", "rte-train"]);
        let read =
            |split: &str| TokenFile::read(&run.data("rte", split), Some(&sums[&format!("rte-{split}")])).unwrap();
        let train = read("train");
        assert_eq!((train.task.as_str(), train.split.as_str(), train.len()), ("rte", "train", 2));
        assert_eq!(train.tokens(0), [2, 4, 5, 3, 6, 3]);
        assert_eq!(train.token_types(1), [0, 0, 0, 1, 1]);
        assert_eq!((train.labels[1], train.example_ids[1]), (1.0, 1));
        assert_eq!(train.source_sha256, examples.source_sha256);
        assert_eq!(read("dev").len(), 1);
        let again = prepare_task(&task, &examples, &tokenizer, 16, "v", &run, |_| {}).unwrap();
        assert_eq!(again, sums);
    }
}
