//! The `mpirun` command for one stage.

use std::env;
use std::ffi::OsString;
use std::path::Path;

use bam_cluster::config::ClusterSection;
use bam_cluster::protocol::Reach;
use nix::sys::signal::Signal;

use super::launch::{Launch, Start};
use super::{Programs, Seats, reach};
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

/// The same of what says where ranks of one host share memory: in Open MPI 4, and from 5 on.
const MEMORY_BASE: &str = "backing_directory";
const MEMORY_BASES: [&str; 2] = ["OMPI_MCA_btl_vader_backing_directory", "OMPI_MCA_btl_sm_backing_directory"];

/// Containers are often root's, and Open MPI wants to be told that this is meant.
const AS_ROOT: [&str; 2] = ["OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"];

/// Open MPI starts its daemons on a job's nodes by a step of `srun`. Without this, a step has its processors for itself, so
/// that the second of two stages that run side by side waits, silently, for the first one's end.
const SHARE_STEPS: (&str, &str) = ("SLURM_OVERLAP", "1");

/// The ranks of a stage under `mpirun`.
pub(super) fn launch(mpirun: &Path, programs: &Programs, start: &Start) -> Launch {
    let cluster = start.cluster;
    let mut environment = start.environment();
    // Ranks on other hosts get only what is named here.
    let exported: Vec<OsString> = environment.iter().flat_map(|(name, _)| ["-x".into(), name.into()]).collect();
    environment.extend(AS_ROOT.map(|name| (name, "1".to_owned())));
    let job = Allocation::of_this_process();
    if job.is_some() {
        environment.push((SHARE_STEPS.0, SHARE_STEPS.1.to_owned()));
    }
    // Open MPI 4 keeps the sessions of all of a user's starts in one directory, which the one that ends first may
    // remove from under another that is just starting. Whoever says where sessions belong is obeyed.
    let reach = reach(programs, cluster);
    let is_free = |parameter: &str| reach == Reach::ThisHost && !is_said(cluster, parameter);
    if is_free(SESSION_BASE) {
        environment.push(("OMPI_MCA_orte_tmpdir_base", start.scratch.session().display().to_string()));
    }
    // What a killed start leaves in memory is found again in a directory that bam knows.
    if let Some(memory) = start.scratch.memory().filter(|_| is_free(MEMORY_BASE)) {
        environment.extend(MEMORY_BASES.map(|name| (name, memory.display().to_string())));
    }
    let mut arguments: Vec<OsString> = vec!["-n".into(), start.ranks().to_string().into()];
    arguments.push("--tag-output".into());
    arguments.extend(SHARE_THE_CORES.iter().chain(&KILL_AT_ONCE).map(OsString::from));
    let named = if cluster.hosts.is_empty() {
        job.filter(|_| !names_hosts(cluster)).and_then(|_| by_place(start.seats))
    } else {
        Some(by_name(cluster, start.seats))
    };
    arguments.extend(named.into_iter().flat_map(|hosts| ["--host".into(), hosts.into()]));
    if reach == Reach::Network {
        arguments.extend(PROBE_HOSTS.map(OsString::from));
    }
    arguments.extend(exported);
    arguments.extend(cluster.mpirun_args.iter().map(OsString::from));
    arguments.extend(start.worker(programs));
    Launch { program: mpirun.to_owned(), arguments, environment, without: &[], kill: Signal::SIGKILL }
}

/// Whether the user, or the recipe, says what a parameter of Open MPI is, whose name ends so.
fn is_said(cluster: &ClusterSection, parameter: &str) -> bool {
    env::vars_os().any(|(name, _)| name.to_string_lossy().ends_with(parameter))
        || cluster.mpirun_args.iter().any(|argument| argument.ends_with(parameter))
}

/// The nodes of a job by their places in it, as Open MPI takes them; none for all of them.
fn by_place(seats: &Seats) -> Option<String> {
    let first = seats.first_of_some()?;
    Some((first..first + seats.ranks.len()).map(|node| format!("+n{node}")).collect::<Vec<_>>().join(","))
}

/// The recipe's hosts; of a stage with a part of them, those that it is on, with its ranks on each.
fn by_name(cluster: &ClusterSection, seats: &Seats) -> String {
    if seats.is_everywhere() {
        return cluster.hosts.join(",");
    }
    let own = hosts(cluster).into_iter().skip(seats.first).zip(&seats.ranks);
    own.map(|((host, _), ranks)| format!("{host}:{ranks}")).collect::<Vec<_>>().join(",")
}

/// The recipe's hosts, each once, with as many slots as it says. Where that is not enough for all ranks, `mpirun` puts more of
/// them on all hosts alike.
pub(super) fn hosts(cluster: &ClusterSection) -> Vec<(String, usize)> {
    let mut hosts: Vec<(String, usize)> = vec![];
    for entry in &cluster.hosts {
        let (name, slots) = entry.split_once(':').unwrap_or((entry, "1"));
        let slots = slots.parse().unwrap_or(1);
        match hosts.iter_mut().find(|(host, _)| host == name) {
            Some((_, more)) => *more += slots,
            None => hosts.push((name.to_owned(), slots)),
        }
    }
    let missing = cluster.processes.saturating_sub(hosts.iter().map(|(_, slots)| slots).sum());
    let more = missing.div_ceil(hosts.len().max(1));
    hosts.into_iter().map(|(host, slots)| (host, slots + more)).collect()
}

/// A command that prints the name of each of a job's nodes, if `mpirun` can start something there.
pub(super) fn trial(mpirun: &Path, cluster: &ClusterSection, nodes: u32) -> Launch {
    let mut arguments: Vec<OsString> = vec!["-n".into(), nodes.to_string().into()];
    arguments.extend(["--map-by", "ppr:1:node", "--oversubscribe"].map(OsString::from));
    arguments.extend(cluster.mpirun_args.iter().map(OsString::from));
    arguments.extend(["uname", "-n"].map(OsString::from));
    let environment = AS_ROOT.map(|name| (name, "1".to_owned())).to_vec();
    Launch { program: mpirun.to_owned(), arguments, environment, without: &[], kill: Signal::SIGKILL }
}

/// Whether a recipe says itself on which hosts `mpirun` is to start ranks.
pub(super) fn names_hosts(cluster: &ClusterSection) -> bool {
    !cluster.hosts.is_empty() || cluster.mpirun_args.iter().any(|a| NAME_HOSTS.contains(&a.as_str()))
}

#[cfg(test)]
mod tests {
    use bam_cluster::plan::{Stage, StageWork};
    use bam_cluster::run_dir::RunDir;

    use super::*;
    use crate::backend::{Duty, Scratch, Starter, slots};

    fn programs() -> Programs {
        let starter = Starter::Mpirun("/usr/bin/mpirun".into());
        Programs { starter, why: String::new(), worker: "/opt/bam-worker".into() }
    }

    fn launch(cluster: &ClusterSection) -> Launch {
        let seats = slots(&programs(), cluster).find(cluster.processes).unwrap();
        launch_on(cluster, &seats)
    }

    fn launch_on(cluster: &ClusterSection, seats: &Seats) -> Launch {
        let stage = Stage { name: "logits".into(), work: StageWork::Prepare };
        let (run, scratch) = (RunDir::new("/runs/my run"), Scratch::new().unwrap());
        let start = Start { cluster, duty: Duty::Stage(&run, &stage), seats, scratch: &scratch };
        Launch::new(&programs(), &start)
    }

    #[test]
    fn the_command_starts_as_many_ranks_as_asked_with_the_stage_last() {
        let line = launch(&ClusterSection { processes: 3, threads: 2, ..ClusterSection::default() }).command_line();
        assert!(line.starts_with("OMP_NUM_THREADS=2 HDF5_USE_FILE_LOCKING="), "{line}");
        assert!(line.contains(" OMPI_MCA_orte_tmpdir_base=/"), "{line}");
        assert!(line.contains(" /usr/bin/mpirun -n 3 --tag-output --oversubscribe --bind-to none "), "{line}");
        assert!(line.ends_with(" /opt/bam-worker --run '/runs/my run' --stage logits"), "{line}");
    }

    #[test]
    fn nodes_are_named_by_their_places() {
        let seats = |first, ranks: &[usize]| Seats { first, ranks: ranks.to_vec(), of: 4, places: vec![] };
        assert_eq!(by_place(&seats(2, &[4, 4])).as_deref(), Some("+n2,+n3"));
        assert_eq!(by_place(&seats(0, &[4; 4])), None);
    }

    /// Where each of so many stages, started one after the other, is.
    fn placed(hosts: &[&str], processes: usize, stages: &[usize]) -> Vec<String> {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        let cluster = ClusterSection { hosts, processes, ..ClusterSection::default() };
        let mut free = slots(&programs(), &cluster);
        let mut place = |ranks: &usize| {
            let seats = free.find(*ranks).unwrap();
            free.take(&seats);
            let line = launch_on(&cluster, &seats).command_line();
            let (_, host) = line.split_once(" --host ").unwrap();
            host.split(' ').next().unwrap().to_owned()
        };
        stages.iter().map(&mut place).collect()
    }

    #[test]
    fn stages_side_by_side_are_on_hosts_of_their_own() {
        assert_eq!(placed(&["n1:32", "n2:32"], 64, &[16, 32, 16]), ["n1:16", "n2:32", "n1:16"]);
        assert_eq!(placed(&["n1:32", "n2:32"], 64, &[64]), ["n1:32,n2:32"]);
        // Hosts that are named more than once, or without a number.
        assert_eq!(placed(&["n1", "n2", "n1"], 3, &[1, 2]), ["n2:1", "n1:2"]);
        assert_eq!(placed(&["n1", "n2"], 8, &[4, 4]), ["n1:4", "n2:4"]);
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
        let cluster = ClusterSection { hosts, processes: 5, ..ClusterSection::default() };
        let line = launch(&cluster).command_line();
        assert!(line.contains(" --host n1,n2:4 --mca oob_tcp_keepalive_time 20 "), "{line}");
        assert!(!line.contains("OMPI_MCA_orte_tmpdir_base"), "{line}");
        assert_eq!(reach(&programs(), &cluster), Reach::Network);
        assert_eq!(reach(&programs(), &ClusterSection::default()), Reach::ThisHost);
    }

    #[test]
    fn a_place_for_sessions_that_the_recipe_names_stands_alone() {
        for (parameter, own) in
            [("orte_tmpdir_base", "OMPI_MCA_orte_tmpdir_base"), ("btl_vader_backing_directory", MEMORY_BASES[0])]
        {
            let mpirun_args = ["--mca", parameter, "/scratch"].map(str::to_owned).to_vec();
            let line = launch(&ClusterSection { mpirun_args, ..ClusterSection::default() }).command_line();
            assert!(!line.contains(own), "{line}");
        }
    }

    #[test]
    fn a_trial_starts_one_process_on_each_node() {
        let mpirun_args = ["--mca", "plm", "rsh"].map(str::to_owned).to_vec();
        let cluster = ClusterSection { mpirun_args, ..ClusterSection::default() };
        let line = trial(Path::new("/usr/bin/mpirun"), &cluster, 3).command_line();
        assert!(
            line.ends_with("/usr/bin/mpirun -n 3 --map-by ppr:1:node --oversubscribe --mca plm rsh uname -n"),
            "{line}"
        );
    }
}
