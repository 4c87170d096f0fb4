//! Who may work in a run directory: one launcher on the whole run, or several, each on stages of its own. The kernel drops
//! a lock when its holder dies. Where the holder may live on although Slurm has given its node up, the next start of the same
//! batch job takes the lock over.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, SystemTime};

use bam_cluster::exit_code;
use bam_cluster::files;
use bam_cluster::run_dir::RunDir;

use crate::backend::host_name;
use crate::slurm::Allocation;

/// How often, and how far apart, it is tried again.
const LOOKS: usize = 10;
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often the launcher of a batch job looks whether a later start of the job has taken a lock over.
const LOOK_FOR_SUCCESSOR: Duration = Duration::from_secs(1);

/// The right to work in a run directory, held for as long as this lives.
#[derive(Debug)]
pub struct RunLock {
    /// On the run, with others.
    _shared: Option<Lock>,
    own: Vec<Lock>,
    /// Ends the watch when it is dropped.
    _watch: Option<Sender<()>>,
}

/// A lock, held for as long as this lives.
#[derive(Debug)]
struct Lock {
    _file: File,
    place: Place,
}

/// A lock's name, and what tells it from another one of that name: device and number.
#[derive(Debug, Clone)]
struct Place {
    path: PathBuf,
    identity: (u64, u64),
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
    /// A later start of the same batch job has taken it over.
    #[error(
        "a later start of this batch job has taken the run over ({path}); this one, on a node that Slurm has given up, ends"
    )]
    TakenOver {
        /// The lock file.
        path: PathBuf,
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

/// Whether others may hold the same lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    Alone,
    Together,
}

impl RunLock {
    /// Makes the run directory if need be and takes all of it.
    ///
    /// # Errors
    /// Another launcher works there, unless that is an earlier start of this batch job; or it cannot be written.
    pub fn acquire(run: &RunDir) -> Result<RunLock, LockError> {
        RunLock::acquire_in(Allocation::of_this_process(), run)
    }

    /// The same as a part of a batch job.
    fn acquire_in(job: Option<Allocation>, run: &RunDir) -> Result<RunLock, LockError> {
        match lock(&run.lock(), Share::Alone, job)? {
            Some(own) => Ok(RunLock::watched(job, None, vec![own])),
            None => Err(held(run, holders(run)?)),
        }
    }

    /// Takes some stages of a run, beside launchers that have taken others.
    ///
    /// # Errors
    /// Another launcher works on the whole run or on one of the stages, unless that is an earlier start of this batch job;
    /// or the directory cannot be written.
    pub fn acquire_stages<'a>(run: &RunDir, stages: impl IntoIterator<Item = &'a str>) -> Result<RunLock, LockError> {
        RunLock::acquire_stages_in(Allocation::of_this_process(), run, stages)
    }

    /// The same as a part of a batch job.
    fn acquire_stages_in<'a>(
        job: Option<Allocation>,
        run: &RunDir,
        stages: impl IntoIterator<Item = &'a str>,
    ) -> Result<RunLock, LockError> {
        let Some(shared) = lock(&run.lock(), Share::Together, job)? else { return Err(held(run, holders(run)?)) };
        let mut own = vec![];
        for stage in stages {
            let path = run.stage_lock(stage);
            match lock(&path, Share::Alone, job)? {
                Some(lock) => own.push(lock),
                None => {
                    let who = holder_of(&path)?.map(|who| format!("{who}: {stage}"));
                    return Err(held(run, who.into_iter().collect()));
                }
            }
        }
        Ok(RunLock::watched(job, Some(shared), own))
    }

    /// Has those locks watched that a later start of a batch job might take over.
    fn watched(job: Option<Allocation>, shared: Option<Lock>, own: Vec<Lock>) -> RunLock {
        let places = own.iter().map(|lock| lock.place.clone()).collect();
        RunLock { _shared: shared, own, _watch: job.map(|_| watch(places)) }
    }

    /// Makes sure that no later start has taken a lock over.
    ///
    /// # Errors
    /// One has.
    pub fn check(&self) -> Result<(), LockError> {
        match self.own.iter().find(|lock| lock.place.is_taken()) {
            Some(taken) => Err(LockError::TakenOver { path: taken.place.path.clone() }),
            None => Ok(()),
        }
    }
}

impl Place {
    fn of(path: &Path, file: &File) -> io::Result<Place> {
        let file = file.metadata()?;
        Ok(Place { path: path.to_owned(), identity: (file.dev(), file.ino()) })
    }

    /// Whether another lock is there now. A file system that does not answer proves nothing.
    fn is_taken(&self) -> bool {
        // Opened anew, so that a network file system asks its server.
        let now = File::open(&self.path).and_then(|file| Place::of(&self.path, &file));
        now.is_ok_and(|now| now.identity != self.identity)
    }
}

fn held(run: &RunDir, holders: Vec<String>) -> LockError {
    // They may have let go in the meantime.
    let holder = if holders.is_empty() { "which has just ended".to_owned() } else { holders.join("; ") };
    LockError::Held { directory: run.path().to_owned(), holder }
}

/// Makes sure that nobody works in the run directory; nothing is made or changed.
///
/// # Errors
/// Somebody does, or a lock cannot be read.
pub fn check_free(run: &RunDir) -> Result<(), LockError> {
    let holders = holders(run)?;
    if holders.is_empty() { Ok(()) } else { Err(held(run, holders)) }
}

/// Opens a lock file, made if need be, and locks it, unless somebody else holds it; its holder, if it is alone, writes into
/// it who it is. One that an earlier start of the same batch job holds is taken over.
fn lock(path: &Path, share: Share, job: Option<Allocation>) -> Result<Option<Lock>, LockError> {
    let io = |source| LockError::Io { path: path.to_owned(), source };
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory).map_err(|source| LockError::Io { path: directory.to_owned(), source })?;
    let mut file = files::open_to_lock(path).map_err(io)?;
    let try_lock = |file: &File| match share {
        Share::Alone => file.try_lock(),
        Share::Together => file.try_lock_shared(),
    };
    let mut locked = try_lock(&file);
    // Whoever only looks (`bam status`) holds it for a moment.
    for _ in 0..LOOKS {
        if !matches!(locked, Err(TryLockError::WouldBlock)) {
            break;
        }
        thread::sleep(LOOK_EVERY);
        locked = try_lock(&file);
    }
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(path).map_err(io)?;
            if share == Share::Together || !job.is_some_and(|job| is_earlier_start(holder.trim(), job)) {
                return Ok(None);
            }
            file = replace(path).map_err(io)?;
        }
        Err(TryLockError::Error(source)) => return Err(io(source)),
    }
    if share == Share::Alone {
        let since = humantime::format_rfc3339_seconds(SystemTime::now());
        let part = job.map(|job| format!("{START}{}{OF_JOB}{}", job.restart, job.name())).unwrap_or_default();
        let who = format!("pid {} on {} since {since}{part}\n", process::id(), host_name());
        file.set_len(0).and_then(|()| file.write_all(who.as_bytes())).map_err(io)?;
    }
    let place = Place::of(path, &file).map_err(io)?;
    Ok(Some(Lock { _file: file, place }))
}

/// What a batch job's launcher writes about itself, besides what all do.
const START: &str = ", start ";
const OF_JOB: &str = " of job ";

/// Whether whoever wrote this about itself is an earlier start of the batch job `job`. Slurm starts a job again only when
/// the start before is over, or when its node is silent and given up. There everything may live on, with the lock: it must
/// not keep the job from going on.
fn is_earlier_start(holder: &str, job: Allocation) -> bool {
    let Some((restart, name)) = holder.rsplit_once(START).and_then(|(_, part)| part.split_once(OF_JOB)) else {
        return false;
    };
    name == job.name() && restart.parse().is_ok_and(|restart: u32| restart < job.restart)
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

/// Ends this process as soon as another lock is in the place of one of `own`. Ranks cannot commit any more once a newer
/// start of their stage is under way; this is for their launcher, which would otherwise begin a yet newer one.
fn watch(own: Vec<Place>) -> Sender<()> {
    let (held, released) = mpsc::channel();
    thread::spawn(move || {
        while released.recv_timeout(LOOK_FOR_SUCCESSOR) == Err(RecvTimeoutError::Timeout) {
            if let Some(Place { path, .. }) = own.iter().find(|place| place.is_taken()) {
                eprintln!("error: {}", LockError::TakenOver { path: path.clone() });
                process::exit(exit_code::FAILURE.into());
            }
        }
    });
    held
}

/// Who works in the run directory, as they wrote about themselves; nothing is made or changed.
///
/// # Errors
/// A lock cannot be read.
pub fn holders(run: &RunDir) -> Result<Vec<String>, LockError> {
    if let Some(who) = holder_of(&run.lock())? {
        return Ok(vec![who]);
    }
    let mut stages: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for stage in names_in(&run.stages()) {
        if let Some(who) = holder_of(&run.stage_lock(&stage))? {
            stages.entry(who).or_default().push(stage);
        }
    }
    Ok(stages.into_iter().map(|(who, stages)| format!("{who}: {}", stages.join(", "))).collect())
}

/// Whether somebody works on a stage, or on the whole run.
///
/// # Errors
/// A lock cannot be read.
pub fn is_held(run: &RunDir, stage: &str) -> Result<bool, LockError> {
    Ok(holder_of(&run.lock())?.is_some() || holder_of(&run.stage_lock(stage))?.is_some())
}

/// Who holds a lock alone.
fn holder_of(path: &Path) -> Result<Option<String>, LockError> {
    let io = |source| LockError::Io { path: path.to_owned(), source };
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(io)?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Ok(Some(fs::read_to_string(path).map_err(io)?.trim().to_owned())),
        Err(TryLockError::Error(source)) => Err(io(source)),
    }
}

/// What is in a directory, in order; nothing if it cannot be read.
fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
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
        assert!(holders(&run).unwrap().first().is_some_and(|who| message.contains(who)));
        drop(lock);
        assert!(holders(&run).unwrap().is_empty());
        RunLock::acquire(&run).unwrap();
    }

    #[test]
    fn a_later_start_of_a_job_takes_over_from_an_earlier_one_and_from_nobody_else() {
        let start =
            |id, element, restart| Some(Allocation { id, element, restart, tasks: None, nodes: 2, is_on_a_node: true });
        let whole = |run: &RunDir, job| RunLock::acquire_in(job, run);
        let stages = |run: &RunDir, job| RunLock::acquire_stages_in(job, run, ["a", "b"]);
        type Acquire<'a> = &'a dyn Fn(&RunDir, Option<Allocation>) -> Result<RunLock, LockError>;
        for acquire in [&whole as Acquire, &stages] {
            let dir = tempfile::tempdir().unwrap();
            let run = RunDir::new(dir.path());
            let mut first = acquire(&run, start(12, Some(1), 0)).unwrap();
            for other in [
                None,
                start(12, Some(1), 0),
                start(13, Some(1), 1),
                start(12, Some(2), 1),
                start(12, None, 1),
                start(1, Some(1), 1),
            ] {
                let refused = acquire(&run, other).unwrap_err().to_string();
                assert!(refused.contains(", start 0 of job 12_1"), "{refused}");
            }
            // The watch of the first, which would end this process, looks once a second.
            first._watch = None;
            let second = acquire(&run, start(12, Some(1), 1)).unwrap();
            assert!(holders(&run).unwrap().first().is_some_and(|who| who.contains(", start 1 of job 12_1")));
            assert!(matches!(first.check(), Err(LockError::TakenOver { .. })));
            second.check().unwrap();
            drop(first);
            assert!(acquire(&run, start(12, Some(1), 0)).is_err());
            drop(second);
            assert!(holders(&run).unwrap().is_empty());
        }
    }

    #[test]
    fn stages_are_shared_out_and_the_whole_run_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path());
        let first = RunLock::acquire_stages(&run, ["a", "b"]).unwrap();
        let second = RunLock::acquire_stages(&run, ["c"]).unwrap();
        assert!(holders(&run).unwrap().first().is_some_and(|who| who.ends_with(": a, b, c")));
        let message = RunLock::acquire(&run).unwrap_err().to_string();
        assert!(message.contains(": a, b, c)"), "{message}");
        let message = RunLock::acquire_stages(&run, ["d", "b"]).unwrap_err().to_string();
        assert!(message.contains(": b)"), "{message}");
        assert!(is_held(&run, "c").unwrap() && !is_held(&run, "d").unwrap());
        drop(first);
        assert!(holders(&run).unwrap().first().is_some_and(|who| who.ends_with(": c")));
        drop(second);
        let _whole = RunLock::acquire(&run).unwrap();
        RunLock::acquire_stages(&run, ["a"]).unwrap_err();
    }
}
