//! One launcher at a time in a run directory: an exclusive lock that the kernel drops when its holder dies. Where the holder
//! may live on although Slurm has given its node up, the next start of the same batch job takes the lock over.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, SystemTime};

use bam_cluster::exit_code;
use bam_cluster::run_dir::RunDir;

use crate::backend::host_name;
use crate::slurm::Allocation;

/// How often, and how far apart, it is tried again.
const LOOKS: usize = 10;
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often the launcher of a batch job looks whether a later start of the job has taken its lock over.
const LOOK_FOR_SUCCESSOR: Duration = Duration::from_secs(1);

/// The lock, held for as long as this lives.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
    /// Ends the watch when it is dropped.
    _watch: Option<Sender<()>>,
}

/// A run directory that cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else works here.
    #[error(
        "{directory} is in use by another bam ({holder})\n  wait for it or stop it, or choose another name (-o name=…)"
    )]
    Held {
        /// The run directory.
        directory: PathBuf,
        /// What the holder wrote about itself.
        holder: String,
    },
    /// The file system says no.
    #[error("{path}: {source}\n  the run directory must be writable; --run-dir chooses another place")]
    Io {
        /// The lock file or its directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl RunLock {
    /// Makes the run directory if need be and locks it.
    ///
    /// # Errors
    /// Another launcher holds it, unless that is an earlier start of this batch job; or it cannot be written.
    pub fn acquire(run: &RunDir) -> Result<RunLock, LockError> {
        RunLock::acquire_in(run, Allocation::of_this_process())
    }

    /// The same as a part of a batch job.
    fn acquire_in(run: &RunDir, job: Option<Allocation>) -> Result<RunLock, LockError> {
        let path = run.lock();
        let io = |source| LockError::Io { path: path.clone(), source };
        fs::create_dir_all(run.path()).map_err(|source| LockError::Io { path: run.path().to_owned(), source })?;
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        let mut locked = file.try_lock();
        // Whoever only looks (`bam status`) holds it for a moment.
        for _ in 0..LOOKS {
            if !matches!(locked, Err(TryLockError::WouldBlock)) {
                break;
            }
            thread::sleep(LOOK_EVERY);
            locked = file.try_lock();
        }
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let holder = fs::read_to_string(&path).map_err(io)?.trim().to_owned();
                if !job.is_some_and(|job| is_earlier_start(&holder, job)) {
                    return Err(LockError::Held { directory: run.path().to_owned(), holder });
                }
                file = replace(&path).map_err(io)?;
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        let since = humantime::format_rfc3339_seconds(SystemTime::now());
        let part = job.map(|job| format!("{START}{}{OF_JOB}{}", job.restart, job.id)).unwrap_or_default();
        let holder = format!("pid {} on {} since {since}{part}\n", process::id(), host_name());
        file.set_len(0).and_then(|()| file.write_all(holder.as_bytes())).map_err(io)?;
        let watch = job.map(|_| watch(path.clone(), &file)).transpose().map_err(io)?;
        Ok(RunLock { _file: file, _watch: watch })
    }
}

/// What a batch job's launcher writes about itself, besides what all do.
const START: &str = ", start ";
const OF_JOB: &str = " of job ";

/// Whether whoever wrote this about itself is an earlier start of the batch job `job`. Slurm starts a job again only when
/// the start before is over, or when its node is silent and given up. There everything may live on, with the lock: it must
/// not keep the job from going on.
fn is_earlier_start(holder: &str, job: Allocation) -> bool {
    let Some((restart, id)) = holder.rsplit_once(START).and_then(|(_, part)| part.split_once(OF_JOB)) else {
        return false;
    };
    id.parse() == Ok(job.id) && restart.parse().is_ok_and(|restart: u32| restart < job.restart)
}

/// Puts a new lock, which this process holds, in the place of one that an earlier start holds.
fn replace(path: &Path) -> io::Result<File> {
    let aside = path.with_extension("new");
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&aside)?;
    // Nobody else makes such a file: a job has one start at a time.
    file.try_lock()?;
    fs::rename(&aside, path)?;
    Ok(file)
}

/// Ends this process as soon as another lock is in the place of `own`. Ranks cannot commit any more once a newer start of
/// their stage is under way; this is for their launcher, which would otherwise begin a yet newer one.
fn watch(path: PathBuf, own: &File) -> io::Result<Sender<()>> {
    let identity = |file: &File| file.metadata().map(|file| (file.dev(), file.ino()));
    let own = identity(own)?;
    let (held, released) = mpsc::channel();
    thread::spawn(move || {
        while released.recv_timeout(LOOK_FOR_SUCCESSOR) == Err(RecvTimeoutError::Timeout) {
            // Opened anew, so that a network file system asks its server. One that does not answer proves nothing.
            if File::open(&path).and_then(|file| identity(&file)).is_ok_and(|now| now != own) {
                eprintln!(
                    "error: a later start of this batch job has taken the run over ({}); this one, on a node that Slurm \
                     has given up, ends",
                    path.display()
                );
                process::exit(exit_code::FAILURE.into());
            }
        }
    });
    Ok(held)
}

/// Who works in the run directory, as it wrote about itself; nothing is made or changed.
///
/// # Errors
/// The lock cannot be read.
pub fn holder(run: &RunDir) -> Result<Option<String>, LockError> {
    let path = run.lock();
    let io = |source| LockError::Io { path: path.clone(), source };
    let file = match File::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(io)?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Ok(Some(fs::read_to_string(&path).map_err(io)?.trim().to_owned())),
        Err(TryLockError::Error(source)) => Err(io(source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path().join("new"));
        let lock = RunLock::acquire(&run).unwrap();
        let message = RunLock::acquire(&run).unwrap_err().to_string();
        assert!(message.contains(&format!("pid {} on ", process::id())), "{message}");
        assert!(holder(&run).unwrap().is_some_and(|who| message.contains(&who)));
        drop(lock);
        assert_eq!(holder(&run).unwrap(), None);
        RunLock::acquire(&run).unwrap();
    }

    #[test]
    fn a_later_start_of_a_job_takes_over_from_an_earlier_one_and_from_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path());
        let start = |id, restart| Some(Allocation { id, restart, tasks: None, nodes: 2 });
        let first = RunLock::acquire_in(&run, start(12, 0)).unwrap();
        for other in [None, start(12, 0), start(13, 1), start(1, 1)] {
            let refused = RunLock::acquire_in(&run, other).unwrap_err().to_string();
            assert!(refused.contains(", start 0 of job 12"), "{refused}");
        }
        // The watch of the first, which would end this process, looks once a second.
        drop(first._watch);
        let second = RunLock::acquire_in(&run, start(12, 1)).unwrap();
        assert!(holder(&run).unwrap().is_some_and(|who| who.ends_with(", start 1 of job 12")));
        drop(first._file);
        assert!(RunLock::acquire_in(&run, start(12, 0)).is_err());
        drop(second);
        assert_eq!(holder(&run).unwrap(), None);
    }
}
