//! Where the programs are that a run needs, and what starts its ranks: `mpirun` or `srun`; and the worker beside this
//! executable.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bam_cluster::config::{ClusterSection, Launcher};

use super::srun::Srun;
use super::{mpirun, probe};
use crate::slurm::Allocation;

/// What is started.
#[derive(Debug, Clone)]
pub struct Programs {
    /// What starts the ranks.
    pub starter: Starter,
    /// Why it does.
    pub why: String,
    /// The program of one rank.
    pub worker: PathBuf,
}

/// What starts the ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Starter {
    /// Open MPI's launcher, which is here.
    Mpirun(PathBuf),
    /// Slurm's.
    Srun(Srun),
}

impl Starter {
    /// As people call it.
    pub fn name(&self) -> &'static str {
        match self {
            Starter::Mpirun(_) => "mpirun",
            Starter::Srun(_) => "srun",
        }
    }
}

/// A program that is not there, or nothing that can start ranks.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// No mpirun.
    #[error(
        "{program} is not an executable program or not on PATH\n  install Open MPI (Debian: apt-get install openmpi-bin), or set BAM_MPIRUN to its mpirun"
    )]
    NoMpirun {
        /// What was looked for.
        program: PathBuf,
    },
    /// No worker.
    #[error(
        "{program} is not an executable program\n  bam-worker must stand beside bam (cargo build --release makes both), or set BAM_WORKER to it"
    )]
    NoWorker {
        /// What was looked for.
        program: PathBuf,
    },
    /// `srun` is wanted, and there is no job.
    #[error(
        "cluster.launcher is srun, but bam does not run in a job of Slurm (SLURM_JOB_ID is not set)\n  use 'bam submit', or run bam in sbatch or salloc, or say cluster.launcher: mpirun"
    )]
    Outside,
    /// `srun` is wanted and cannot start ranks.
    #[error("srun (cluster.launcher) cannot start ranks that find one another: {tried}\n  {REMEDY}")]
    NoSrun {
        /// What was tried, and what it answered.
        tried: String,
    },
    /// Nothing can start ranks on the job's nodes.
    #[error("nothing can start ranks on the nodes of job {job}\n  mpirun: {mpirun}\n  srun: {srun}\n  {REMEDY}")]
    Nothing {
        /// Its number.
        job: u64,
        /// What was tried, and what it answered.
        mpirun: String,
        /// What was tried, and what it answered.
        srun: String,
    },
}

/// What to do where nothing starts ranks.
const REMEDY: &str = "load an Open MPI that was built with Slurm's support (slurm.modules, slurm.prologue, BAM_MPIRUN), or \
                      have Slurm built with PMIx ('srun --mpi=list' then names pmix)";

impl Programs {
    /// Finds the programs, and out what starts ranks here. `BAM_MPIRUN` and `BAM_WORKER` say otherwise. In a job of Slurm
    /// with several nodes this takes a moment: it is tried.
    ///
    /// # Errors
    /// One is missing, or nothing can start ranks.
    pub fn find(cluster: &ClusterSection) -> Result<Programs, ProgramError> {
        let worker = worker()?;
        let job = Allocation::of_this_process();
        let (starter, why) = match (cluster.launcher, job) {
            (Launcher::Srun, None) => return Err(ProgramError::Outside),
            (Launcher::Srun, Some(job)) => {
                let srun = find_srun(cluster, job).map_err(|tried| ProgramError::NoSrun { tried })?;
                (Starter::Srun(srun), "cluster.launcher says so".to_owned())
            }
            (Launcher::Mpirun, _) => (Starter::Mpirun(find_mpirun()?), "cluster.launcher says so".to_owned()),
            (Launcher::Auto, None) => (Starter::Mpirun(find_mpirun()?), "this is no job of Slurm".to_owned()),
            (Launcher::Auto, Some(job)) => choose(cluster, job)?,
        };
        Ok(Programs { starter, why, worker })
    }

    /// Looks whether the programs seem to be there for a job that is to run later, on other hosts.
    ///
    /// # Errors
    /// One is missing.
    pub fn look_for(cluster: &ClusterSection) -> Result<(), ProgramError> {
        worker()?;
        let has_srun = || on_search_path("srun".as_ref()).is_some();
        match cluster.launcher {
            Launcher::Srun if has_srun() => Ok(()),
            Launcher::Srun => Err(ProgramError::NoSrun { tried: "srun is not on PATH".to_owned() }),
            Launcher::Mpirun => find_mpirun().map(drop),
            Launcher::Auto => find_mpirun().map(drop).or_else(|error| if has_srun() { Ok(()) } else { Err(error) }),
        }
    }
}

/// `mpirun` if it reaches all nodes of the job, else `srun`.
fn choose(cluster: &ClusterSection, job: Allocation) -> Result<(Starter, String), ProgramError> {
    let tried = match find_mpirun() {
        Ok(mpirun) if mpirun::names_hosts(cluster) => {
            return Ok((Starter::Mpirun(mpirun), "the recipe names hosts".to_owned()));
        }
        Ok(mpirun) if job.is_this_host() => {
            return Ok((Starter::Mpirun(mpirun), "the job is on this host alone".to_owned()));
        }
        Ok(mpirun) => match probe::mpirun_reaches(&mpirun, cluster, job.nodes) {
            Ok(()) => return Ok((Starter::Mpirun(mpirun), format!("it reaches the job's nodes ({})", job.nodes))),
            Err(tried) => tried,
        },
        Err(_) => "is not on PATH (BAM_MPIRUN)".to_owned(),
    };
    match find_srun(cluster, job) {
        Ok(srun) => Ok((Starter::Srun(srun), format!("mpirun does not do: {tried}"))),
        Err(srun) => Err(ProgramError::Nothing { job: job.id, mpirun: tried, srun }),
    }
}

fn find_mpirun() -> Result<PathBuf, ProgramError> {
    let mpirun: OsString = env::var_os("BAM_MPIRUN").unwrap_or_else(|| "mpirun".into());
    on_search_path(&mpirun).ok_or_else(|| ProgramError::NoMpirun { program: mpirun.into() })
}

/// An `srun` that knows PMIx; the text says why there is none.
fn find_srun(cluster: &ClusterSection, job: Allocation) -> Result<Srun, String> {
    let program = on_search_path("srun".as_ref()).ok_or("srun is not on PATH")?;
    let is_said = cluster.srun_args.iter().any(|word| word == "--mpi" || word.starts_with("--mpi="));
    let mpi = if is_said { None } else { Some(probe::pmix_of(&program)?) };
    Ok(Srun { program, mpi, nodes: job.nodes.max(1) as usize })
}

fn worker() -> Result<PathBuf, ProgramError> {
    let worker = env::var_os("BAM_WORKER").map_or_else(beside_this_program, PathBuf::from);
    if !is_program(&worker) {
        return Err(ProgramError::NoWorker { program: worker });
    }
    // The ranks may start in another directory.
    Ok(std::path::absolute(&worker).unwrap_or(worker))
}

fn on_search_path(program: &OsStr) -> Option<PathBuf> {
    on_path(program, &env::var_os("PATH").unwrap_or_default())
}

fn beside_this_program() -> PathBuf {
    // Through links: `bam` on PATH may be a link into the place where both programs are.
    let own = env::current_exe().and_then(fs::canonicalize).unwrap_or_default();
    own.with_file_name("bam-worker")
}

fn on_path(program: &OsStr, path: &OsStr) -> Option<PathBuf> {
    let as_given = Path::new(program);
    if as_given.components().count() > 1 {
        return is_program(as_given).then(|| as_given.to_owned());
    }
    env::split_paths(path).map(|directory| directory.join(program)).find(|candidate| is_program(candidate))
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_executable_files_on_the_path_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("mpirun");
        let path = dir.path().as_os_str();
        assert_eq!(on_path("mpirun".as_ref(), path), None);
        fs::write(&program, "").unwrap();
        assert_eq!(on_path("mpirun".as_ref(), path), None);
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(on_path("mpirun".as_ref(), path), Some(program.clone()));
        assert_eq!(on_path(program.as_os_str(), "".as_ref()), Some(program));
    }
}
