//! What token files and logit shards have in common as HDF5 files: written aside and renamed, equal content gives equal
//! bytes, and a reader trusts no shape and no type.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use bam_cluster::{aside, digest, files};
use hdf5::H5Type;
use hdf5::types::VarLenUnicode;

/// An HDF5 file that could not be written. Whatever was at `path` before is still there.
#[derive(Debug, thiserror::Error)]
#[error(
    "{path}: cannot be written: {problem}\n  check the free space and the quota of this file system and the directory's \
     permissions, then run again"
)]
pub struct WriteError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub problem: String,
}

/// Writes the file that `fill` describes, all or nothing, and makes sure that it is on disk. Returns its SHA-256, which
/// depends on the content only.
///
/// # Errors
/// The disk is full, the directory cannot be written, or `fill` failed.
pub fn write(path: &Path, fill: impl FnOnce(&hdf5::File) -> hdf5::Result<()>) -> Result<String, WriteError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let aside = aside::file(path);
    let written = (|| {
        fs::create_dir_all(parent)?;
        create(&aside, fill).map_err(|e| io::Error::other(sentence(&e)))?;
        OpenOptions::new().write(true).open(&aside)?.sync_all()?;
        let sha256 = digest::of_file(&aside)?;
        fs::rename(&aside, path)?;
        files::sync_dir(parent)?;
        Ok(sha256)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&aside);
    }
    written.map_err(|e: io::Error| WriteError { path: path.to_owned(), problem: e.to_string() })
}

fn create(path: &Path, fill: impl FnOnce(&hdf5::File) -> hdf5::Result<()>) -> hdf5::Result<()> {
    let file = hdf5::File::with_options().with_fapl(|p| p.libver_earliest().file_locking(false)).create(path)?;
    let filled = fill(&file).and_then(|()| file.flush());
    // Closed in any case, so that the library keeps no handle of a file that is about to be removed.
    let closed = file.close();
    filled.and(closed)
}

/// An HDF5 error without addresses and times: the system's own words where there are any, else its first line.
fn sentence(error: &hdf5::Error) -> String {
    let text = error.to_string();
    let system = text.split_once("error message = '").and_then(|(_, rest)| rest.split_once('\''));
    system.map_or_else(|| text.lines().next().unwrap_or_default().to_owned(), |(words, _)| words.to_owned())
}

/// Adds a dataset of `shape`, checksummed in chunks of at most `chunk_rows` rows. `data` is in row-major order. The time
/// of its creation is not noted, or the same content would have another sum tomorrow.
///
/// # Errors
/// HDF5's own, among them that `data` does not fill the shape.
pub fn put<T: H5Type>(
    file: &hdf5::File,
    name: &str,
    shape: &[usize],
    chunk_rows: usize,
    data: &[T],
) -> hdf5::Result<()> {
    let mut chunk = shape.to_vec();
    if let Some(rows) = chunk.first_mut() {
        *rows = (*rows).clamp(1, chunk_rows);
    }
    file.new_dataset::<T>().chunk(chunk).fletcher32().obj_track_times(false).shape(shape).create(name)?.write_raw(data)
}

/// Adds a text attribute (variable-length UTF-8).
///
/// # Errors
/// HDF5's own, and text with a NUL character.
pub fn put_text(file: &hdf5::File, name: &str, text: &str) -> hdf5::Result<()> {
    file.new_attr::<VarLenUnicode>().create(name)?.write_scalar(&variable_length(text)?)
}

/// Adds an attribute that is an array of texts.
///
/// # Errors
/// HDF5's own, and text with a NUL character.
pub fn put_texts(file: &hdf5::File, name: &str, texts: &[String]) -> hdf5::Result<()> {
    let texts: Vec<VarLenUnicode> = texts.iter().map(|t| variable_length(t)).collect::<Result<_, _>>()?;
    file.new_attr::<VarLenUnicode>().shape(texts.len()).create(name)?.write_raw(&texts)
}

/// Adds a number attribute.
///
/// # Errors
/// HDF5's own.
pub fn put_number(file: &hdf5::File, name: &str, number: u32) -> hdf5::Result<()> {
    file.new_attr::<u32>().create(name)?.write_scalar(&number)
}

fn variable_length(text: &str) -> hdf5::Result<VarLenUnicode> {
    text.parse().map_err(|e| hdf5::Error::from(format!("'{text}' cannot be stored: {e}")))
}

/// A file that is open for reading, whose SHA-256 was compared with a recorded one: HDF5 itself can crash on a file whose
/// inner structure is damaged, and its checksums cover the datasets' content only. Every error is a sentence about what is wrong, without the file's name.
pub struct Reader {
    file: hdf5::File,
    bytes: u64,
}

impl Reader {
    /// Opens `path`, without a lock: some shared file systems have none.
    pub fn open(path: &Path) -> Result<Reader, String> {
        let bytes = fs::metadata(path).map_err(|e| e.to_string())?.len();
        let file = hdf5::File::with_options()
            .with_fapl(|p| p.file_locking(false))
            .open(path)
            .map_err(|e| format!("is not a readable HDF5 file: {}", sentence(&e)))?;
        Ok(Reader { file, bytes })
    }

    /// The content of a dataset of exactly this type, in row-major order, and its shape.
    pub fn dataset<T: H5Type, const DIMENSIONS: usize>(
        &self,
        name: &str,
    ) -> Result<(Vec<T>, [usize; DIMENSIONS]), String> {
        let unreadable = |e: hdf5::Error| format!("dataset '{name}' cannot be read: {}", sentence(&e));
        let dataset = self.file.dataset(name).map_err(unreadable)?;
        if !dataset.dtype().map_err(unreadable)?.is::<T>() {
            return Err(format!("dataset '{name}' has another type of number than it should"));
        }
        let shape: [usize; DIMENSIONS] = dataset
            .shape()
            .try_into()
            .map_err(|shape| format!("dataset '{name}' has shape {shape:?}, not {DIMENSIONS} dimensions"))?;
        // It is not compressed, so a header that promises more than the file holds is damaged (and would eat memory).
        let promised = shape.iter().try_fold(size_of::<T>(), |bytes, n| bytes.checked_mul(*n));
        if promised.is_none_or(|n| n as u64 > self.bytes) {
            return Err(format!("dataset '{name}' promises more than the file holds (shape {shape:?})"));
        }
        Ok((dataset.read_raw().map_err(unreadable)?, shape))
    }

    /// A text attribute.
    pub fn text(&self, name: &str) -> Result<String, String> {
        let text: VarLenUnicode = self
            .file
            .attr(name)
            .and_then(|a| a.read_scalar())
            .map_err(|e| format!("attribute '{name}' cannot be read: {}", sentence(&e)))?;
        Ok(text.as_str().to_owned())
    }

    /// An attribute that is an array of texts.
    pub fn texts(&self, name: &str) -> Result<Vec<String>, String> {
        let texts: Vec<VarLenUnicode> = self
            .file
            .attr(name)
            .and_then(|a| a.read_raw())
            .map_err(|e| format!("attribute '{name}' cannot be read: {}", sentence(&e)))?;
        Ok(texts.iter().map(|t| t.as_str().to_owned()).collect())
    }

    /// A number attribute.
    pub fn number(&self, name: &str) -> Result<u32, String> {
        self.file
            .attr(name)
            .and_then(|a| a.read_scalar())
            .map_err(|e| format!("attribute '{name}' cannot be read: {}", sentence(&e)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(path: &Path) -> Result<String, WriteError> {
        write(path, |file| {
            put(file, "x", &[3, 2], 2, &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0])?;
            put(file, "empty", &[0, 2], 2, &[0f32; 0])?;
            put_texts(file, "names", &["ä".to_owned(), "b".to_owned()])?;
            put_text(file, "task", "rte")?;
            put_number(file, "version", 7)
        })
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/x.h5");
        assert_eq!(sample(&path).unwrap(), digest::of_file(&path).unwrap());
        let reader = Reader::open(&path).unwrap();
        assert_eq!(reader.dataset::<f32, 2>("x").unwrap(), (vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [3, 2]));
        assert_eq!(reader.dataset::<f32, 2>("empty").unwrap(), (vec![], [0, 2]));
        assert_eq!(reader.texts("names").unwrap(), ["ä", "b"]);
        assert_eq!(reader.text("task").unwrap(), "rte");
        assert_eq!(reader.number("version").unwrap(), 7);
        assert!(reader.dataset::<f32, 1>("x").unwrap_err().contains("not 1 dimensions"));
        assert!(reader.dataset::<f64, 2>("x").unwrap_err().contains("another type"));
        assert!(reader.dataset::<f32, 2>("y").unwrap_err().contains("'y' cannot be read"));
        assert!(reader.text("missing").unwrap_err().contains("'missing' cannot be read"));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left aside");
    }

    #[test]
    fn the_same_content_gives_the_same_bytes_at_another_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = sample(&dir.path().join("a.h5")).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1100));
        assert_eq!(first, sample(&dir.path().join("b.h5")).unwrap());
    }

    #[test]
    fn a_failed_write_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.h5");
        fs::write(&path, "before").unwrap();
        let failed = write(&path, |file| put(file, "x", &[2], 2, &[1.0f32]));
        assert!(failed.unwrap_err().to_string().contains("cannot be written"));
        let nul = write(&path, |file| put_text(file, "x", "a\0b"));
        assert!(nul.unwrap_err().to_string().contains("cannot be stored"));
        assert_eq!(fs::read(&path).unwrap(), b"before");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
