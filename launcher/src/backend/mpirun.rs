//! The `mpirun` command for one stage, as data: what is run can be read, logged and tested before it runs.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use bam_cluster::config::ClusterSection;
use bam_cluster::plan::Stage;
use bam_cluster::protocol::Reach;
use bam_cluster::run_dir::RunDir;

use super::Programs;
use crate::shell::quoted;
use crate::slurm::Allocation;

/// More ranks than cores must not spin (an all-reduce then takes 20 ms instead of half a one), and a rank must not be
/// bound to one core when it has several threads.
const SHARE_THE_CORES: [&str; 6] = ["--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1"];

/// When one rank has died, `mpirun` kills the others without waiting for them to heed SIGTERM, which is a wish for a
/// checkpoint to them: it says who died two seconds earlier.
const KILL_AT_ONCE: [&str; 3] = ["--mca", "odls_base_sigkill_timeout", "0"];

/// Open MPI itself waits for a lost host for ever, unless the connections between its daemons are probed. It gives up
/// after 40 s, later than bam does, which has the better sentence; daemons on a host that was cut off end by this.
const PROBE_HOSTS: [&str; 9] = [
    "--mca",
    "oob_tcp_keepalive_time",
    "20",
    "--mca",
    "oob_tcp_keepalive_intvl",
    "5",
    "--mca",
    "oob_tcp_keepalive_probes",
    "4",
];

/// Arguments of `mpirun` that name other hosts.
const NAME_HOSTS: [&str; 8] =
    ["--host", "-host", "-H", "--hostfile", "-hostfile", "--machinefile", "-machinefile", "--default-hostfile"];

/// How the names of Open MPI's parameters end that say where sessions are kept.
const SESSION_BASE: &str = "tmpdir_base";

/// A command that starts all ranks of a stage.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Set in its environment, and so in every local rank's.
    pub environment: Vec<(&'static str, String)>,
}

impl Launch {
    /// The ranks of `stage` under `mpirun`; `scratch` is a directory of this start's own.
    pub fn new(programs: &Programs, cluster: &ClusterSection, run: &RunDir, stage: &Stage, scratch: &Path) -> Launch {
        let file_locking = env::var("HDF5_USE_FILE_LOCKING").ok();
        // Shared file systems often lack locks; files are written by one rank each and published by rename.
        let file_locking = file_locking.unwrap_or_else(|| "FALSE".to_owned());
        let mut environment = vec![
            ("OMP_NUM_THREADS", cluster.threads.to_string()),
            ("HDF5_USE_FILE_LOCKING", file_locking),
            ("OMPI_ALLOW_RUN_AS_ROOT", "1".to_owned()),
            ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1".to_owned()),
        ];
        // Open MPI 4 keeps the sessions of all of a user's starts in one directory, which the one that ends first may
        // remove from under another that is just starting. Whoever says where sessions belong is obeyed.
        let said = env::vars_os().any(|(name, _)| name.to_string_lossy().ends_with(SESSION_BASE));
        let reach = reach(cluster);
        if !said
            && reach == Reach::ThisHost
            && !cluster.mpirun_args.iter().any(|argument| argument.ends_with(SESSION_BASE))
        {
            environment.push(("OMPI_MCA_orte_tmpdir_base", scratch.display().to_string()));
        }
        let mut arguments: Vec<OsString> = vec!["-n".into(), cluster.ranks(stage.tasks_learnt()).to_string().into()];
        arguments.push("--tag-output".into());
        arguments.extend(SHARE_THE_CORES.iter().chain(&KILL_AT_ONCE).map(OsString::from));
        if !cluster.hosts.is_empty() {
            arguments.extend(["--host".into(), cluster.hosts.join(",").into()]);
        }
        if reach == Reach::Network {
            arguments.extend(PROBE_HOSTS.map(OsString::from));
        }
        // Ranks on other hosts get only what is named here.
        for name in ["OMP_NUM_THREADS", "HDF5_USE_FILE_LOCKING"] {
            arguments.extend(["-x".into(), name.into()]);
        }
        arguments.extend(cluster.mpirun_args.iter().map(OsString::from));
        arguments.push(programs.worker.clone().into());
        arguments.extend(["--run".into(), run.path().into(), "--stage".into(), stage.name.clone().into()]);
        Launch { program: programs.mpirun.clone(), arguments, environment }
    }

    /// The command as one would type it.
    pub fn command_line(&self) -> String {
        let environment = self.environment.iter().map(|(name, value)| format!("{name}={value}"));
        let words = std::iter::once(self.program.as_os_str()).chain(self.arguments.iter().map(OsString::as_os_str));
        environment.chain(words.map(|w| quoted(&w.to_string_lossy()))).collect::<Vec<_>>().join(" ")
    }
}

/// Where the ranks will be.
pub fn reach(cluster: &ClusterSection) -> Reach {
    let is_named = !cluster.hosts.is_empty() || cluster.mpirun_args.iter().any(|a| NAME_HOSTS.contains(&a.as_str()));
    // In a batch job, mpirun uses the job's nodes.
    let has_nodes = Allocation::of_this_process().is_some_and(|job| job.nodes > 1);
    if is_named || has_nodes { Reach::Network } else { Reach::ThisHost }
}

#[cfg(test)]
mod tests {
    use bam_cluster::plan::StageWork;

    use super::*;

    fn launch(cluster: &ClusterSection) -> Launch {
        let programs = Programs { mpirun: "/usr/bin/mpirun".into(), worker: "/opt/bam-worker".into() };
        let stage = Stage { name: "logits".into(), work: StageWork::Prepare };
        Launch::new(&programs, cluster, &RunDir::new("/runs/my run"), &stage, Path::new("/tmp/bam-1"))
    }

    #[test]
    fn the_command_starts_as_many_ranks_as_asked_with_the_stage_last() {
        let line = launch(&ClusterSection { processes: 3, threads: 2, ..ClusterSection::default() }).command_line();
        assert!(line.starts_with("OMP_NUM_THREADS=2 HDF5_USE_FILE_LOCKING="), "{line}");
        assert!(line.contains(" OMPI_MCA_orte_tmpdir_base=/tmp/bam-1 "), "{line}");
        assert!(line.contains(" /usr/bin/mpirun -n 3 --tag-output --oversubscribe --bind-to none "), "{line}");
        assert!(line.ends_with(" /opt/bam-worker --run '/runs/my run' --stage logits"), "{line}");
    }

    #[test]
    fn the_recipes_own_arguments_come_before_the_worker() {
        let mpirun_args = ["--mca", "btl", "self,tcp"].map(str::to_owned).to_vec();
        let line = launch(&ClusterSection { mpirun_args, ..ClusterSection::default() }).command_line();
        assert!(line.contains(" --mca btl self,tcp /opt/bam-worker "), "{line}");
    }

    #[test]
    fn hosts_are_named_and_probed() {
        let hosts = ["n1", "n2:4"].map(str::to_owned).to_vec();
        let cluster = ClusterSection { hosts, ..ClusterSection::default() };
        let line = launch(&cluster).command_line();
        assert!(line.contains(" --host n1,n2:4 --mca oob_tcp_keepalive_time 20 "), "{line}");
        assert!(!line.contains("OMPI_MCA_orte_tmpdir_base"), "{line}");
        assert_eq!(reach(&cluster), Reach::Network);
        assert_eq!(reach(&ClusterSection::default()), Reach::ThisHost);
    }

    #[test]
    fn a_place_for_sessions_that_the_recipe_names_stands_alone() {
        let mpirun_args = ["--mca", "orte_tmpdir_base", "/scratch"].map(str::to_owned).to_vec();
        let line = launch(&ClusterSection { mpirun_args, ..ClusterSection::default() }).command_line();
        assert!(!line.contains("OMPI_MCA_orte_tmpdir_base"), "{line}");
    }
}
