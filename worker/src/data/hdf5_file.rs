//! What token files and logit shards have in common as HDF5 files: written aside and renamed, equal content gives equal
//! bytes, and a reader trusts no shape and no type.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bam_cluster::{digest, files};
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
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("file");
    let aside = parent.join(format!(".{name}.{}.tmp", std::process::id()));
    let written = (|| {
        fs::create_dir_all(parent)?;
        let headers = create(&aside, fill)?;
        let mut file = OpenOptions::new().read(true).write(true).open(&aside)?;
        for address in headers {
            forget_time(&mut file, address)?;
        }
        file.sync_all()?;
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

/// Creates and closes the file; returns the address of each dataset's header.
fn create(path: &Path, fill: impl FnOnce(&hdf5::File) -> hdf5::Result<()>) -> hdf5::Result<Vec<u64>> {
    let file = hdf5::File::with_options().with_fapl(|p| p.file_locking(false)).create(path)?;
    let filled = (|| {
        fill(&file)?;
        file.flush()?;
        let datasets = file.datasets()?;
        datasets.iter().map(|d| Ok(d.loc_info()?.token.to_raw())).collect()
    })();
    // Closed in any case, so that the library keeps no handle of a file that is about to be removed.
    let closed = file.close();
    filled.and_then(|headers| closed.map(|()| headers))
}
