//! One split of one task as token ids in memory, and the HDF5 file that keeps it (`data/TASK-SPLIT.h5`).

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use bam_cluster::digest::{self, short};

use super::hdf5_file::{self, Reader, WriteError, put, put_number, put_text, put_texts};

/// Version of the file's layout; an attribute of every file.
const FORMAT_VERSION: u32 = 1;
/// Numbers in a chunk, each of which has a checksum of its own.
const CHUNK: usize = 1 << 16;

/// Tokens and labels of one split of a task: N examples of T tokens together.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenSet {
    /// The task.
    pub task: String,
    /// `train` or `dev`.
    pub split: String,
    /// \[T\] all examples' token ids, one example after the other.
    pub input_ids: Vec<i32>,
    /// \[T\] the segment of each token, 0 or 1.
    pub token_type_ids: Vec<u8>,
    /// \[N+1\] example i's tokens are those from `offsets[i]` to `offsets[i + 1]`.
    pub offsets: Vec<usize>,
    /// \[N\] class index; for regression the score on the task's own scale.
    pub labels: Vec<f32>,
    /// \[N\] row number in the source file, each once.
    pub example_ids: Vec<u64>,
    /// Class names in the order of the logits; for regression `score`.
    pub label_names: Vec<String>,
    /// No example is longer.
    pub max_length: usize,
    /// SHA-256 of the files that the text came from.
    pub source_sha256: String,
    /// SHA-256 of what turned text into tokens.
    pub vocab_sha256: String,
}

impl TokenSet {
    /// Number of examples, N.
    pub fn len(&self) -> usize {
        self.example_ids.len()
    }

    /// True if there is no example, which no file of ours has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Token ids of example `i` < N.
    pub fn tokens(&self, i: usize) -> &[i32] {
        &self.input_ids[self.offsets[i]..self.offsets[i + 1]]
    }

    /// Segments of the tokens of example `i` < N.
    pub fn token_types(&self, i: usize) -> &[u8] {
        &self.token_type_ids[self.offsets[i]..self.offsets[i + 1]]
    }

    /// Number of tokens of example `i` < N.
    pub fn length(&self, i: usize) -> usize {
        self.offsets[i + 1] - self.offsets[i]
    }

    /// Whether its parts fit one another; the error is a sentence.
    fn check(&self) -> Result<(), String> {
        let (n, t) = (self.example_ids.len(), self.input_ids.len());
        if self.labels.len() != n || self.offsets.len() != n + 1 || self.token_type_ids.len() != t {
            return Err("its arrays do not have the same number of examples and tokens".to_owned());
        }
        if self.offsets.first() != Some(&0) || self.offsets.last() != Some(&t) {
            return Err("its offsets do not span all tokens".to_owned());
        }
        let fits = |length: Option<usize>| length.is_some_and(|l| (1..=self.max_length).contains(&l));
        if let Some(i) = self.offsets.windows(2).position(|w| !fits(w[1].checked_sub(w[0]))) {
            let longest = self.max_length;
            return Err(format!("example {} does not have 1 to {longest} tokens", self.example_ids[i]));
        }
        if self.input_ids.iter().any(|&id| id < 0) || self.token_type_ids.iter().any(|&segment| segment > 1) {
            return Err("it holds a negative token id or a segment other than 0 and 1".to_owned());
        }
        let classes = self.label_names.len();
        let is_label =
            |l: f32| l.is_finite() && (classes == 1 || (l >= 0.0 && l.fract() == 0.0 && (l as usize) < classes));
        if let Some(i) = self.labels.iter().position(|&l| !is_label(l)) {
            return Err(format!("example {} has the impossible label {}", self.example_ids[i], self.labels[i]));
        }
        let mut seen = HashSet::with_capacity(n);
        match self.example_ids.iter().find(|id| !seen.insert(**id)) {
            Some(id) => Err(format!("example {id} is in it twice")),
            None => Ok(()),
        }
    }
}

/// A token file that is missing, damaged or of another kind.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}\n  remove {stage} and run again: the prepare stage makes the file anew")]
pub struct TokenFileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub problem: String,
    /// The prepare stage's directory.
    pub stage: PathBuf,
}

/// The file `data/TASK-SPLIT.h5`: datasets `input_ids`, `token_type_ids`, `offsets`, `label`, `example_id`.
pub struct TokenFile;

impl TokenFile {
    /// Writes `set`, all or nothing, and returns the file's SHA-256. Equal sets give equal files.
    ///
    /// # Errors
    /// The parts of `set` do not fit one another, or the file cannot be written.
    pub fn write(path: &Path, set: &TokenSet) -> Result<String, WriteError> {
        let refuse = |problem: String| WriteError { path: path.to_owned(), problem };
        set.check().map_err(refuse)?;
        let too_large = |_| refuse("a number in it is too large".to_owned());
        let offsets: Vec<i64> =
            set.offsets.iter().map(|&o| i64::try_from(o)).collect::<Result<_, _>>().map_err(too_large)?;
        let ids: Vec<i64> =
            set.example_ids.iter().map(|&id| i64::try_from(id)).collect::<Result<_, _>>().map_err(too_large)?;
        let max_length = u32::try_from(set.max_length).map_err(too_large)?;
        hdf5_file::write(path, |file| {
            put(file, "input_ids", &[set.input_ids.len()], CHUNK, &set.input_ids)?;
            put(file, "token_type_ids", &[set.token_type_ids.len()], CHUNK, &set.token_type_ids)?;
            put(file, "offsets", &[offsets.len()], CHUNK, &offsets)?;
            put(file, "label", &[set.labels.len()], CHUNK, &set.labels)?;
            put(file, "example_id", &[ids.len()], CHUNK, &ids)?;
            put_text(file, "task", &set.task)?;
            put_text(file, "split", &set.split)?;
            put_text(file, "source_sha256", &set.source_sha256)?;
            put_text(file, "vocab_sha256", &set.vocab_sha256)?;
            put_number(file, "max_length", max_length)?;
            put_texts(file, "label_names", &set.label_names)?;
            put_number(file, "format_version", FORMAT_VERSION)
        })
    }

    /// Reads a file, after comparing it with the SHA-256 that was recorded when it was made. Without one (for files made
    /// a moment ago) only the content's checksums protect against damage.
    ///
    /// # Errors
    /// The file is missing, has another sum, has another format, or its parts do not fit one another.
    pub fn read(path: &Path, expected_sha256: Option<&str>) -> Result<TokenSet, TokenFileError> {
        read(path, expected_sha256).map_err(|problem| {
            let run = path.parent().and_then(Path::parent).unwrap_or(Path::new("."));
            let stage = bam_cluster::run_dir::RunDir::new(run).stage("prepare");
            TokenFileError { path: path.to_owned(), problem, stage }
        })
    }
}

fn read(path: &Path, expected_sha256: Option<&str>) -> Result<TokenSet, String> {
    if let Some(expected) = expected_sha256 {
        let found = digest::of_file(path).map_err(|e| e.to_string())?;
        if found != expected {
            let (was, now) = (short(expected), short(&found));
            return Err(format!("the file was changed or damaged since it was made (SHA-256 {now} instead of {was})"));
        }
    }
    let file = Reader::open(path)?;
    let version = file.number("format_version")?;
    if version != FORMAT_VERSION {
        return Err(format!("format version {version} is not known here, only {FORMAT_VERSION}"));
    }
    let negative = |name: &str| format!("dataset '{name}' holds a negative number");
    let (offsets, [_]) = file.dataset::<i64, 1>("offsets")?;
    let (ids, [_]) = file.dataset::<i64, 1>("example_id")?;
    let set = TokenSet {
        task: file.text("task")?,
        split: file.text("split")?,
        input_ids: file.dataset::<i32, 1>("input_ids")?.0,
        token_type_ids: file.dataset::<u8, 1>("token_type_ids")?.0,
        offsets: offsets.into_iter().map(usize::try_from).collect::<Result<_, _>>().map_err(|_| negative("offsets"))?,
        labels: file.dataset::<f32, 1>("label")?.0,
        example_ids: ids
            .into_iter()
            .map(u64::try_from)
            .collect::<Result<_, _>>()
            .map_err(|_| negative("example_id"))?,
        label_names: file.texts("label_names")?,
        max_length: file.number("max_length")? as usize,
        source_sha256: file.text("source_sha256")?,
        vocab_sha256: file.text("vocab_sha256")?,
    };
    set.check()?;
    Ok(set)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Three examples of 2, 3 and 4 tokens.
    fn set() -> TokenSet {
        TokenSet {
            task: "rte".into(),
            split: "train".into(),
            input_ids: vec![101, 102, 101, 7, 102, 101, 102, 123_456, 102],
            token_type_ids: vec![0, 0, 0, 0, 0, 0, 0, 1, 1],
            offsets: vec![0, 2, 5, 9],
            labels: vec![0.0, 1.0, 0.0],
            example_ids: vec![0, 2, 9],
            label_names: vec!["entailment".into(), "not_entailment".into()],
            max_length: 8,
            source_sha256: "s".into(),
            vocab_sha256: "v".into(),
        }
    }

    fn path_in(dir: &tempfile::TempDir) -> PathBuf {
        dir.path().join("data/rte-train.h5")
    }

    #[test]
    fn examples_are_found_by_their_index() {
        let set = set();
        assert_eq!((set.len(), set.length(2)), (3, 4));
        assert_eq!(set.tokens(1), [101, 7, 102]);
        assert_eq!(set.token_types(2), [0, 0, 1, 1]);
    }

    #[test]
    fn a_file_that_is_missing_changed_or_cut_short_is_refused_with_a_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = path_in(&dir);
        let refused = |sum: Option<&str>| TokenFile::read(&path, sum).unwrap_err().to_string();
        assert!(refused(None).contains("No such file"));
        let sum = TokenFile::write(&path, &set()).unwrap();
        assert_eq!(TokenFile::read(&path, Some(&sum)).unwrap(), set());
        let whole = std::fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(61) {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            std::fs::write(&path, changed).unwrap();
            assert!(refused(Some(&sum)).contains("changed or damaged"));
        }
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(refused(Some(&sum)).contains("changed or damaged"));
        let stage = dir.path().join("stages/prepare");
        assert!(refused(None).contains(&format!("remove {} and run again", stage.display())));
        std::fs::write(&path, "no HDF5").unwrap();
        assert!(refused(None).contains("is not a readable HDF5 file"));
    }

    #[test]
    fn chunks_are_checksummed_even_when_no_sum_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = path_in(&dir);
        TokenFile::write(&path, &set()).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let token = 123_456i32.to_le_bytes();
        let at = bytes.windows(4).position(|w| w == token).unwrap();
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let message = TokenFile::read(&path, None).unwrap_err().to_string();
        assert!(message.contains("dataset 'input_ids' cannot be read"), "{message}");
    }

    #[test]
    fn another_format_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        hdf5_file::write(&path_in(&dir), |file| put_number(file, "format_version", 2)).unwrap();
        let message = TokenFile::read(&path_in(&dir), None).unwrap_err().to_string();
        assert!(message.contains("format version 2 is not known here"), "{message}");
    }

    #[test]
    fn parts_that_do_not_fit_are_neither_written_nor_believed() {
        type Fault = fn(&mut TokenSet);
        let faults: [(Fault, &str); 10] = [
            (|s| s.labels.truncate(2), "same number"),
            (|s| s.offsets.truncate(3), "same number"),
            (|s| s.token_type_ids.push(0), "same number"),
            (|s| s.offsets[0] = 1, "span all tokens"),
            (|s| s.offsets[3] = 10, "span all tokens"),
            (|s| s.offsets[1] = 6, "example 2 does not have"),
            (|s| s.max_length = 3, "example 9 does not have"),
            (|s| s.input_ids[3] = -1, "negative token id"),
            (|s| s.labels[1] = 2.0, "example 2 has the impossible label 2"),
            (|s| s.example_ids[2] = 0, "example 0 is in it twice"),
        ];
        let dir = tempfile::tempdir().unwrap();
        for (fault, expected) in faults {
            let mut set = set();
            fault(&mut set);
            let message = TokenFile::write(&path_in(&dir), &set).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        assert!(!path_in(&dir).exists());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_examples_survive_the_file_and_equal_ones_give_equal_files(
            examples in prop::collection::vec((prop::collection::vec(0..30_000i32, 1..40), 0.0..5.0f32), 1..60),
            first_id in 0..u64::MAX / 4,
        ) {
            let mut set = TokenSet { label_names: vec!["score".into()], max_length: 40, ..set() };
            (set.input_ids, set.token_type_ids, set.offsets) = (vec![], vec![], vec![0]);
            (set.labels, set.example_ids) = (vec![], vec![]);
            for (i, (tokens, label)) in examples.iter().enumerate() {
                set.input_ids.extend(tokens);
                set.token_type_ids.extend((0..tokens.len()).map(|t| u8::from(t > 5)));
                set.offsets.push(set.input_ids.len());
                set.labels.push(*label);
                set.example_ids.push(first_id + 3 * i as u64);
            }
            let dir = tempfile::tempdir().unwrap();
            let sum = TokenFile::write(&path_in(&dir), &set).unwrap();
            prop_assert_eq!(&TokenFile::read(&path_in(&dir), Some(&sum)).unwrap(), &set);
            prop_assert_eq!(TokenFile::write(&dir.path().join("data/again.h5"), &set).unwrap(), sum);
        }
    }
}
