//! Teacher logits as HDF5 shards: written by one rank each, read back only when everything about them is as promised.

use std::path::{Path, PathBuf};

use bam_cluster::digest;
use bam_cluster::teacher::{FORMAT_VERSION, LogitsError, LogitsManifest, Provenance, Shard, coverage, read_manifest};

use crate::data::WriteError;
use crate::data::hdf5_file::{self, Reader, put, put_number, put_text, put_texts};

/// Rows in a chunk, each of which has a checksum of its own.
const CHUNK_ROWS: usize = 4096;

/// A shard that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// There is not one row of logits for each example.
    #[error("{path}: {logits} logits for {examples} examples of {classes} classes; this is a fault in bam")]
    Shape {
        /// The shard.
        path: PathBuf,
        /// Numbers given.
        logits: usize,
        /// Examples given.
        examples: usize,
        /// Logits of an example.
        classes: usize,
    },
    /// The teacher's answer is no number.
    #[error(
        "the teacher of task '{task}' answers example {id} with {value}\n  its training has diverged: lower the learning rate or \
         lengthen the warm-up, under another name (-o name=…)"
    )]
    NotFinite {
        /// The task.
        task: String,
        /// Which example.
        id: u64,
        /// NaN or an infinity.
        value: f32,
    },
    /// It cannot be written.
    #[error(transparent)]
    Unwritable(#[from] WriteError),
}

/// Writes one shard, all or nothing: `logits` is \[N, C\] in row-major order, row i being that of example `ids[i]`; N may
/// be 0. Returns the shard's entry for the manifest. Equal logits give equal files.
///
/// # Errors
/// The shape is wrong, a logit is not finite, or the file cannot be written.
pub fn write_shard(path: &Path, provenance: &Provenance, ids: &[u64], logits: &[f32]) -> Result<Shard, ShardError> {
    let classes = provenance.label_names.len();
    if classes == 0 || logits.len() != ids.len() * classes {
        let (logits, examples) = (logits.len(), ids.len());
        return Err(ShardError::Shape { path: path.to_owned(), logits, examples, classes });
    }
    if let Some(i) = logits.iter().position(|l| !l.is_finite()) {
        let (task, id, value) = (provenance.task.clone(), ids[i / classes], logits[i]);
        return Err(ShardError::NotFinite { task, id, value });
    }
    let too_large = |_| WriteError { path: path.to_owned(), problem: "an example id is too large".to_owned() };
    let stored: Vec<i64> = ids.iter().map(|&id| i64::try_from(id)).collect::<Result<_, _>>().map_err(too_large)?;
    let sha256 = hdf5_file::write(path, |file| {
        put(file, "logits", &[ids.len(), classes], CHUNK_ROWS, logits)?;
        put(file, "example_id", &[ids.len()], CHUNK_ROWS, &stored)?;
        for (name, value) in text_attributes(provenance) {
            put_text(file, name, value)?;
        }
        put_texts(file, "label_names", &provenance.label_names)?;
        put_number(file, "format_version", FORMAT_VERSION)
    })?;
    let file = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
    Ok(Shard { file, rows: ids.len(), sha256 })
}

/// Reads all shards that the manifest in `directory` names and returns the logits, \[N, C\] in row-major order, row i
/// being that of `expected_ids[i]`.
///
/// # Errors
/// There is no manifest; it is about another teacher, data set, vocabulary or list of labels; a shard is missing or
/// damaged; an example has no logits or has them twice; a logit is not finite.
pub fn read_logits(directory: &Path, expected: &Provenance, expected_ids: &[u64]) -> Result<Vec<f32>, LogitsError> {
    let manifest = read_manifest(directory, expected)?;
    let classes = expected.label_names.len();
    // What the manifest promises is not trusted with memory before it is proved.
    let (mut ids, mut logits) = (Vec::new(), Vec::new());
    for shard in &manifest.shards {
        let path = directory.join(&shard.file);
        let (shard_ids, shard_logits) =
            read_shard(&path, &manifest, shard).map_err(|problem| LogitsError::Damaged { path, problem })?;
        ids.extend(shard_ids);
        logits.extend(shard_logits);
    }
    let order = coverage(expected_ids, &ids)
        .map_err(|problem| LogitsError::Damaged { path: directory.join("manifest.json"), problem })?;
    let mut ordered = Vec::with_capacity(logits.len());
    for row in order {
        ordered.extend_from_slice(&logits[row * classes..(row + 1) * classes]);
    }
    Ok(ordered)
}

/// Example ids \[N\] and logits \[N, C\] of one shard; the error is a sentence about what is wrong.
fn read_shard(path: &Path, manifest: &LogitsManifest, shard: &Shard) -> Result<(Vec<u64>, Vec<f32>), String> {
    let provenance = &manifest.provenance;
    if Path::new(&shard.file).file_name() != Some(shard.file.as_ref()) {
        return Err("the manifest names a file outside its own directory".to_owned());
    }
    let sha256 = digest::of_file(path).map_err(|e| e.to_string())?;
    if sha256 != shard.sha256 {
        let (was, now) = (digest::short(&shard.sha256), digest::short(&sha256));
        return Err(format!("the shard was changed or damaged since it was made (SHA-256 {now} instead of {was})"));
    }
    let file = Reader::open(path)?;
    let version = file.number("format_version")?;
    if version != FORMAT_VERSION {
        return Err(format!("format version {version} is not known here, only {FORMAT_VERSION}"));
    }
    for (name, value) in text_attributes(provenance) {
        let found = file.text(name)?;
        if found != value {
            return Err(format!("its {name} is '{found}', but the manifest says '{value}'"));
        }
    }
    let labels = file.texts("label_names")?;
    if labels != provenance.label_names {
        return Err(format!("its labels are {labels:?}, but the manifest says {:?}", provenance.label_names));
    }
    let (logits, [rows, classes]) = file.dataset::<f32, 2>("logits")?;
    let (ids, [id_rows]) = file.dataset::<i64, 1>("example_id")?;
    if rows != shard.rows || id_rows != shard.rows || classes != labels.len() {
        let (promised, outputs) = (shard.rows, labels.len());
        return Err(format!(
            "it holds {id_rows} example ids and logits of shape [{rows}, {classes}] instead of [{promised}, {outputs}]"
        ));
    }
    if let Some(i) = logits.iter().position(|l| !l.is_finite()) {
        return Err(format!("the logits of example {} are not finite", ids[i / classes]));
    }
    let ids = ids.into_iter().map(u64::try_from).collect::<Result<_, _>>();
    Ok((ids.map_err(|_| "it holds a negative example id".to_owned())?, logits))
}

fn text_attributes(provenance: &Provenance) -> [(&'static str, &str); 4] {
    [
        ("task", &provenance.task),
        ("teacher_sha256", &provenance.teacher_sha256),
        ("data_sha256", &provenance.data_sha256),
        ("vocab_sha256", &provenance.vocab_sha256),
    ]
}

#[cfg(test)]
mod tests {
    use std::fs;

    use bam_cluster::files;
    use bam_cluster::teacher::shard_name;
    use proptest::prelude::*;

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

    /// Two logits of an example that tell which it is.
    fn logits(ids: &[u64]) -> Vec<f32> {
        ids.iter().flat_map(|&id| [id as f32, -0.5 * id as f32]).collect()
    }

    fn publish(directory: &Path, shards: Vec<Shard>) {
        let manifest = LogitsManifest {
            format_version: FORMAT_VERSION,
            provenance: provenance(),
            examples: shards.iter().map(|s| s.rows).sum(),
            shards,
        };
        files::write_json(&directory.join("manifest.json"), &manifest).unwrap();
    }

    /// Writes one shard for each list of ids, and the manifest.
    fn write_all(directory: &Path, parts: &[&[u64]]) {
        let write = |(i, ids): (usize, &&[u64])| {
            let path = directory.join(shard_name(i, parts.len()));
            write_shard(&path, &provenance(), ids, &logits(ids)).unwrap()
        };
        publish(directory, parts.iter().enumerate().map(write).collect());
    }

    fn problem(directory: &Path, ids: &[u64]) -> String {
        let error = read_logits(directory, &provenance(), ids).unwrap_err();
        assert!(matches!(error, LogitsError::Damaged { .. }), "{error}");
        error.to_string()
    }

    #[test]
    fn logits_come_back_in_the_order_of_the_examples_and_a_rank_may_have_none() {
        let dir = tempfile::tempdir().unwrap();
        write_all(dir.path(), &[&[5, 1], &[], &[3]]);
        assert_eq!(read_logits(dir.path(), &provenance(), &[1, 3, 5]).unwrap(), logits(&[1, 3, 5]));
        assert!(problem(dir.path(), &[1, 3, 4, 5]).contains("example 4 has no logits"));
        assert!(problem(dir.path(), &[1, 3]).contains("belong to no training example"));
        write_all(dir.path(), &[&[5, 1], &[1]]);
        assert!(problem(dir.path(), &[1, 5]).contains("example 1 has logits twice"));
    }

    #[test]
    fn a_shard_that_was_changed_cut_short_or_removed_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let ids: Vec<u64> = (0..5000).collect();
        write_all(dir.path(), &[&ids[..4500], &ids[4500..]]);
        let path = dir.path().join(shard_name(1, 2));
        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(whole.len() / 40) {
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            fs::write(&path, changed).unwrap();
            assert!(problem(dir.path(), &ids).contains("shard-00001-of-00002.h5: the shard was changed or damaged"));
        }
        fs::write(&path, &whole[..100]).unwrap();
        assert!(problem(dir.path(), &ids).contains("changed or damaged"));
        fs::remove_file(&path).unwrap();
        assert!(problem(dir.path(), &ids).contains("shard-00001-of-00002.h5: No such file"));
        fs::write(&path, whole).unwrap();
        assert_eq!(read_logits(dir.path(), &provenance(), &ids).unwrap(), logits(&ids));
    }

    /// Describes whatever is in the shard as if it had been meant.
    fn vouch_for(directory: &Path, rows: usize) {
        let file = shard_name(0, 1);
        let sha256 = digest::of_file(&directory.join(&file)).unwrap();
        publish(directory, vec![Shard { file, rows, sha256 }]);
    }

    #[test]
    fn what_the_manifest_vouches_for_is_checked_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(shard_name(0, 1));
        let other = |change: &dyn Fn(&mut Provenance)| {
            let mut foreign = provenance();
            change(&mut foreign);
            write_shard(&path, &foreign, &[1, 2], &logits(&[1, 2])).unwrap();
            vouch_for(dir.path(), 2);
            problem(dir.path(), &[1, 2])
        };
        assert!(other(&|p| p.task = "mrpc".into()).contains("its task is 'mrpc', but the manifest says 'rte'"));
        assert!(other(&|p| p.teacher_sha256 = "u".into()).contains("its teacher_sha256 is 'u'"));
        assert!(other(&|p| p.label_names.reverse()).contains("its labels are"));
        write_shard(&path, &provenance(), &[1, 2], &logits(&[1, 2])).unwrap();
        vouch_for(dir.path(), 3);
        assert!(problem(dir.path(), &[1, 2]).contains("2 example ids and logits of shape [2, 2] instead of [3, 2]"));
        let mut bytes = fs::read(&path).unwrap();
        let row = [1.0f32.to_le_bytes(), (-0.5f32).to_le_bytes()].concat();
        let at = bytes.windows(8).position(|w| w == row).unwrap();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        vouch_for(dir.path(), 2);
        assert!(problem(dir.path(), &[1, 2]).contains("dataset 'logits' cannot be read"));
        fs::write(&path, "no HDF5").unwrap();
        vouch_for(dir.path(), 2);
        assert!(problem(dir.path(), &[1, 2]).contains("is not a readable HDF5 file"));
        publish(dir.path(), vec![Shard { file: "../x.h5".into(), rows: 2, sha256: String::new() }]);
        assert!(problem(dir.path(), &[1, 2]).contains("outside its own directory"));
    }

    #[test]
    fn no_number_and_no_wrong_shape_is_written_or_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(shard_name(0, 1));
        let diverged = write_shard(&path, &provenance(), &[4, 9], &[0., 1., f32::NAN, 1.]).unwrap_err().to_string();
        assert!(diverged.contains("task 'rte' answers example 9 with NaN"), "{diverged}");
        assert!(matches!(write_shard(&path, &provenance(), &[4], &[0.]), Err(ShardError::Shape { .. })));
        hdf5_file::write(&path, |file| {
            put(file, "logits", &[1, 2], 1, &[f32::INFINITY, 0.])?;
            put(file, "example_id", &[1], 1, &[4i64])?;
            for (name, value) in text_attributes(&provenance()) {
                put_text(file, name, value)?;
            }
            put_texts(file, "label_names", &provenance().label_names)?;
            put_number(file, "format_version", FORMAT_VERSION)
        })
        .unwrap();
        vouch_for(dir.path(), 1);
        assert!(problem(dir.path(), &[4]).contains("the logits of example 4 are not finite"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn however_examples_are_dealt_out_the_logits_are_the_same(
            (dealt, parts) in (1..200u64).prop_flat_map(|n| (Just((0..n).collect::<Vec<_>>()).prop_shuffle(), 1..5usize)),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let chunks: Vec<&[u64]> = dealt.chunks(dealt.len().div_ceil(parts)).collect();
            write_all(dir.path(), &chunks);
            let mut ids = dealt.clone();
            ids.sort_unstable();
            prop_assert_eq!(read_logits(dir.path(), &provenance(), &ids).unwrap(), logits(&ids));
        }
    }
}
