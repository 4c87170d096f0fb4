//! The `srun` command for one stage: a step of the job of Slurm that bam runs in.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

use bam_cluster::config::ClusterSection;
use nix::sys::signal::Signal;

use super::Programs;
use super::launch::{Launch, Start};

/// `srun` in a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Srun {
    /// Where it is.
    pub program: PathBuf,
    /// Which of its ways to let ranks find one another; none: the recipe says it itself (`cluster.srun_args`).
    pub mpi: Option<String>,
    /// How many nodes the job has.
    pub nodes: usize,
}

impl Srun {
    /// Whether ranks find one another by PMIx.
    pub fn has_pmix(&self, cluster: &ClusterSection) -> bool {
        self.mpi.is_some() || cluster.srun_args.iter().any(|word| word.contains("pmix"))
    }
}

/// One rank that dies ends the step: the others would wait for it for ever.
const DIE_TOGETHER: [&str; 2] = ["--kill-on-bad-exit=1", "--label"];

/// Steps side by side share the job's cores, memory and GPUs, and none has to wait until another one is over; ranks may be
/// more than cores, and are not bound to one. `mpirun` does the same. bam itself sees to it that there are not more ranks
/// at a time than the recipe says.
const SHARE_THE_NODES: [&str; 4] = ["--overlap", "--overcommit", "--cpu-bind=none", "--mem=0"];

/// The job's own wishes, which `srun` would take for the step's: a step has another number of ranks than the job has tasks,
/// and they contradict what is said above. Without them, a step has all GPUs of its nodes that the job has.
/// `SLURM_EXPORT_ENV=NONE` (from `sbatch --export=NONE`) would leave ranks without `LD_LIBRARY_PATH`.
const NOT_OF_THE_STEP: &[&str] = &[
    "SLURM_NTASKS",
    "SLURM_NPROCS",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_NTASKS_PER_CORE",
    "SLURM_NTASKS_PER_SOCKET",
    "SLURM_NTASKS_PER_GPU",
    "SLURM_NTASKS_PER_TRES",
    "SLURM_CPUS_PER_TASK",
    "SLURM_CPUS_PER_GPU",
    "SLURM_GPUS",
    "SLURM_GPUS_PER_SOCKET",
    "SLURM_GPUS_PER_TASK",
    "SLURM_TRES_PER_TASK",
    "SLURM_MEM_PER_CPU",
    "SLURM_MEM_PER_GPU",
    "SLURM_MEM_PER_NODE",
    "SLURM_CPU_BIND",
    "SLURM_CPU_BIND_LIST",
    "SLURM_CPU_BIND_TYPE",
    "SLURM_CPU_BIND_VERBOSE",
    "SLURM_GPU_BIND",
    "SLURM_HINT",
    "SLURM_THREADS_PER_CORE",
    "SLURM_DISTRIBUTION",
    "SLURM_HOSTFILE",
    "SLURM_EXACT",
    "SLURM_EXCLUSIVE",
    "SLURM_EXPORT_ENV",
    "SLURM_LABELIO",
    "SLURM_UNBUFFEREDIO",
    "SLURM_STDINMODE",
    "SLURM_STDOUTMODE",
    "SLURM_STDERRMODE",
    "SLURM_WAIT",
    "SLURM_WORKING_DIR",
    // The same for steps alone.
    "SRUN_CPUS_PER_TASK",
    "SRUN_EXPORT_ENV",
    "SRUN_INPUT",
    "SRUN_OUTPUT",
    "SRUN_ERROR",
];

/// What ranks do when they wait, and on which cores they run, where the site has not said it: see `mpirun`'s arguments.
const UNLESS_SAID: [(&str, &str); 2] =
    [("OMPI_MCA_mpi_yield_when_idle", "1"), ("OMPI_MCA_hwloc_base_binding_policy", "none")];

/// The ranks of a stage as a step.
pub(super) fn launch(srun: &Srun, programs: &Programs, start: &Start) -> Launch {
    let mut environment = start.environment();
    let unsaid = UNLESS_SAID.into_iter().filter(|(name, _)| env::var_os(name).is_none());
    environment.extend(unsaid.map(|(name, value)| (name, value.to_owned())));
    let mut arguments: Vec<OsString> = vec![];
    arguments.extend(srun.mpi.iter().map(|kind| format!("--mpi={kind}").into()));
    arguments.extend(DIE_TOGETHER.iter().chain(&SHARE_THE_NODES).map(OsString::from));
    arguments.extend(["--export=ALL".into(), format!("--job-name={}", start.name()).into()]);
    arguments.push(format!("--ntasks={}", start.ranks()).into());
    arguments.push(format!("--nodes={}", start.seats.ranks.len()).into());
    arguments.extend(start.seats.first_of_some().map(|first| format!("--relative={first}").into()));
    arguments.extend(start.cluster.srun_args.iter().map(OsString::from));
    arguments.extend(start.worker(programs));
    // On SIGKILL, srun would leave its ranks behind; on SIGTERM, it kills them at once, on all nodes.
    Launch { program: srun.program.clone(), arguments, environment, without: NOT_OF_THE_STEP, kill: Signal::SIGTERM }
}

#[cfg(test)]
mod tests {
    use bam_cluster::plan::{Stage, StageWork};
    use bam_cluster::run_dir::RunDir;

    use super::*;
    use crate::backend::{Duty, Scratch, Starter, slots};

    fn on(nodes: usize, cluster: &ClusterSection, ranks: usize) -> Launch {
        let srun = Srun { program: "/usr/bin/srun".into(), mpi: Some("pmix_v4".into()), nodes };
        let worker = "/opt/bam-worker".into();
        let programs = Programs { starter: Starter::Srun(srun), why: String::new(), worker };
        let stage = Stage { name: "logits".into(), work: StageWork::Prepare };
        let (run, scratch) = (RunDir::new("/runs/my run"), Scratch::new().unwrap());
        let seats = slots(&programs, cluster).find(ranks).unwrap();
        let start = Start { cluster, duty: Duty::Stage(&run, &stage), seats: &seats, scratch: &scratch };
        Launch::new(&programs, &start)
    }

    #[test]
    fn the_step_has_as_many_ranks_as_asked_and_shares_its_nodes() {
        let cluster = ClusterSection { processes: 3, threads: 2, ..ClusterSection::default() };
        let launch = on(2, &cluster, 3);
        let line = launch.command_line();
        assert!(line.starts_with("OMP_NUM_THREADS=2 HDF5_USE_FILE_LOCKING="), "{line}");
        let expected = " /usr/bin/srun --mpi=pmix_v4 --kill-on-bad-exit=1 --label --overlap --overcommit --cpu-bind=none \
                        --mem=0 --export=ALL --job-name=logits --ntasks=3 --nodes=2 /opt/bam-worker --run '/runs/my run' \
                        --stage logits";
        assert!(line.ends_with(expected), "{line}");
        assert_eq!(launch.kill, Signal::SIGTERM);
        for name in ["SLURM_NTASKS_PER_NODE", "SLURM_EXPORT_ENV", "SLURM_MEM_PER_CPU"] {
            assert!(launch.without.contains(&name), "{name}");
        }
        let part = on(2, &cluster, 1).command_line();
        assert!(part.contains(" --ntasks=1 --nodes=1 --relative=0 "), "{part}");
        // By these, srun knows the cluster and the job.
        assert!(!launch.without.contains(&"SLURM_CONF") && !launch.without.contains(&"SLURM_JOB_ID"));
    }

    #[test]
    fn the_recipes_own_arguments_come_before_the_worker_and_mpiruns_stay_out() {
        let (srun_args, mpirun_args) = (vec!["--mpi=none".to_owned()], vec!["--oversubscribe".to_owned()]);
        let line = on(1, &ClusterSection { srun_args, mpirun_args, ..ClusterSection::default() }, 1).command_line();
        assert!(line.contains(" --mpi=none /opt/bam-worker ") && !line.contains("--oversubscribe"), "{line}");
    }
}
