//! How the ranks of one stage are started: the command is described first, as data, and then run.

mod launch;
mod mpirun;
mod probe;
mod process;
mod programs;
mod scratch;
mod slots;
mod srun;

use bam_cluster::config::ClusterSection;
use bam_cluster::protocol::Reach;

pub use launch::{Duty, Launch, Start};
pub use probe::output;
pub use process::{Process, ProcessEvent};
pub use programs::{Programs, Starter};
pub use scratch::Scratch;
pub use slots::{Seats, Slots};

use crate::slurm::Allocation;

/// This machine's name.
pub fn host_name() -> String {
    nix::unistd::gethostname().map_or_else(|_| "this host".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Where the ranks will be.
pub fn reach(programs: &Programs, cluster: &ClusterSection) -> Reach {
    let is_named = matches!(programs.starter, Starter::Mpirun(_)) && mpirun::names_hosts(cluster);
    // In a job, ranks are on the job's nodes.
    let is_elsewhere = Allocation::of_this_process().is_some_and(|job| !job.is_this_host());
    if is_named || is_elsewhere { Reach::Network } else { Reach::ThisHost }
}

/// The slots of all ranks, on the nodes that they are started on.
pub fn slots(programs: &Programs, cluster: &ClusterSection) -> Slots {
    match &programs.starter {
        Starter::Srun(srun) => Slots::even(srun.nodes, cluster.processes),
        Starter::Mpirun(_) => match Allocation::of_this_process() {
            _ if !cluster.hosts.is_empty() => Slots::on(mpirun::hosts(cluster).into_iter().map(|(_, slots)| slots)),
            Some(job) if !mpirun::names_hosts(cluster) => Slots::even(job.nodes as usize, cluster.processes),
            // This host; or where the recipe's own arguments for mpirun say, which bam does not read.
            _ => Slots::even(1, cluster.processes),
        },
    }
}
