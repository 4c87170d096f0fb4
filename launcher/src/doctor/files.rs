//! The file system that runs are written to: room, speed, and whether it keeps what bam relies on.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

use bam_cluster::files;
use nix::sys::statvfs::statvfs;

use super::Finding;
use crate::numbers::bytes;

const ABOUT: &str = "files";
const GIB: f64 = (1u64 << 30) as f64;
/// Two checkpoints of a BERT-Large.
const ENOUGH: f64 = 8.0 * GIB;
/// Files of a run of all of GLUE.
const FILES: u64 = 10_000;
/// What is written to see how fast that is.
const WRITTEN: usize = 64 << 20;
/// Bytes a second: a checkpoint of a BERT-Base takes a minute at that.
const SLOW: f64 = 20e6;

/// The first directory that is there: this one, or one above it.
pub fn nearest(directory: &Path) -> &Path {
    directory.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"))
}

/// Looks at `directory`, or at the first one above it that is there. `needed`: bytes that a run is going to take.
pub fn look(directory: &Path, needed: Option<f64>) -> Vec<Finding> {
    let there = nearest(directory);
    let place = match tempfile::Builder::new().prefix(".bam-doctor-").tempdir_in(there) {
        Ok(place) => place,
        Err(error) => {
            let said = format!("nothing can be written to {}: {error}", there.display());
            return vec![Finding::problem(ABOUT, said, "name a directory of your own (--dir; --run-dir of bam run)")];
        }
    };
    let mut findings = vec![];
    findings.extend(room(there, needed));
    findings.push(speed(place.path()));
    findings.push(renames(place.path()));
    findings.push(locks(place.path()));
    findings
}

fn room(directory: &Path, needed: Option<f64>) -> Option<Finding> {
    let about = statvfs(directory).ok()?;
    let free = about.blocks_available() as f64 * about.fragment_size() as f64;
    let mut said = format!("{:.1} GiB are free in {}", free / GIB, directory.display());
    if let Some(needed) = needed {
        said += &format!("; the run takes ~{}", bytes(needed));
        if free < needed {
            let remedy =
                "make room, keep fewer checkpoints (checkpoint.keep), or write elsewhere (--dir; --run-dir of bam run)";
            return Some(Finding::problem(ABOUT, said, remedy));
        }
    } else if free < ENOUGH {
        let remedy = "a checkpoint of BERT-Base is 1.2 GiB, of BERT-Large 3.8, and several are kept (checkpoint.keep)";
        return Some(Finding::warning(ABOUT, said, remedy));
    }
    // A file system that does not count files says 0 of 0.
    if about.files() > 0 && (about.files_available() as u64) < FILES {
        let said = format!("{} more files may be made in {}", about.files_available(), directory.display());
        return Some(Finding::warning(ABOUT, said, "remove files, or have the quota raised"));
    }
    Some(Finding::ok(ABOUT, said))
}

fn speed(place: &Path) -> Finding {
    let write = || -> io::Result<f64> {
        let since = Instant::now();
        let mut file = File::create(place.join("speed"))?;
        // Not zeros, which some file systems do not write.
        let block: Vec<u8> = (0..1u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        (0..WRITTEN / block.len()).try_for_each(|_| file.write_all(&block))?;
        file.sync_all()?;
        Ok(WRITTEN as f64 / since.elapsed().as_secs_f64())
    };
    match write() {
        Ok(rate) if rate < SLOW => {
            let said = format!("{:.0} MB/s are written and synced", rate / 1e6);
            Finding::warning(ABOUT, said, "checkpoints are written beside the training, but the last one is waited for")
        }
        Ok(rate) => Finding::ok(ABOUT, format!("{:.0} MB/s are written and synced", rate / 1e6)),
        Err(error) => {
            let said = format!("64 MiB cannot be written: {error}");
            Finding::problem(ABOUT, said, "make room, or have the quota raised")
        }
    }
}

/// Whether a file is replaced by another as a whole, which every commit relies on.
fn renames(place: &Path) -> Finding {
    let path = place.join("renamed");
    let replace = || -> io::Result<bool> {
        files::write_atomically(&path, b"old")?;
        files::write_atomically(&path, b"new")?;
        files::sync_dir(place)?;
        Ok(fs::read(&path)? == b"new")
    };
    match replace() {
        Ok(true) => Finding::ok(ABOUT, "files are replaced as a whole, and synced with their directory"),
        Ok(false) => {
            let remedy = "choose another file system: checkpoints would not be safe on this one";
            Finding::problem(ABOUT, "a file that was replaced still has its old content", remedy)
        }
        Err(error) => {
            let remedy = "choose another file system: checkpoints cannot be committed on this one";
            Finding::problem(ABOUT, format!("a file cannot be replaced and synced: {error}"), remedy)
        }
    }
}

/// Whether two who want the same lock hear of one another.
fn locks(place: &Path) -> Finding {
    let path = place.join("lock");
    let both = || -> io::Result<bool> {
        let (one, other) = (files::open_to_lock(&path)?, files::open_to_lock(&path)?);
        one.try_lock().map_err(io::Error::from)?;
        match other.try_lock() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        }
    };
    let remedy =
        "mount it with locks (NFS: local_lock=none; Lustre: flock), or take care that no two start the same run";
    match both() {
        Ok(true) => Finding::ok(ABOUT, "locks keep a second start out of a run"),
        Ok(false) => Finding::warning(ABOUT, "two may hold the same lock here", remedy),
        Err(error) => Finding::problem(ABOUT, format!("files cannot be locked: {error}"), remedy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_directory_that_is_not_there_yet_is_looked_at_where_it_will_be() {
        let place = tempfile::tempdir().unwrap();
        let findings = look(&place.path().join("runs/x"), Some(1.0));
        assert_eq!(findings.len(), 4, "{findings:?}");
        assert!(findings.iter().all(|finding| finding.verdict != Verdict::Problem), "{findings:?}");
        let short = room(place.path(), Some(1e18)).unwrap();
        assert!(short.verdict == Verdict::Problem && short.said.ends_with("the run takes ~1000000.00 TB"), "{short:?}");
        // It leaves nothing behind.
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
        let nowhere = look(Path::new("/proc/bam/runs"), None);
        assert!(nowhere.len() == 1 && nowhere[0].verdict == Verdict::Problem, "{nowhere:?}");
    }
}
