//! What is known of a stage's ranks and of what started them: filled by the dispatcher, judged by `verdict`.

use std::collections::VecDeque;
use std::process::ExitStatus;
use std::time::Duration;

use bam_cluster::protocol::{Failure, Heartbeat, Hello, Outcome};

use super::host::ProcessState;
use super::starter_output::RankEnd;

/// How many lines of each are remembered, to be quoted in a verdict.
const REMEMBERED: usize = 8;

/// All evidence. Times count from the start of the stage.
#[derive(Debug)]
pub struct Evidence {
    /// What started the ranks: `mpirun` or `srun`.
    pub starter: &'static str,
    /// By rank.
    pub ranks: Vec<RankEvidence>,
    /// How long a collective may take.
    pub deadline: Duration,
    /// The newest optimizer step that all ranks have done.
    pub latest_step: Option<u64>,
    /// Optimizer steps in the newest checkpoint.
    pub checkpoint: Option<u64>,
    /// How rank 0 says that the stage ended, and when.
    pub done: Option<(Outcome, Duration)>,
    /// How the starter says that ranks ended.
    pub rank_ends: Vec<RankEnd>,
    /// When it first said so.
    pub rank_end_at: Option<Duration>,
    /// The starter's own last lines.
    pub starter_tail: Tail,
    /// How and when the starter ended.
    pub exit: Option<(ExitStatus, Duration)>,
    /// How many processes of this host the kernel has killed for lack of memory since the stage started.
    pub out_of_memory_kills: u64,
    /// A process that knows the secret and is not one of ours, or one that cannot find the others.
    pub misfit: Option<Misfit>,
}

/// What is known of one rank.
#[derive(Debug, Default)]
pub struct RankEvidence {
    /// Who it is, since it said hello.
    pub identity: Option<Identity>,
    /// When it last said anything.
    pub last_heard: Duration,
    /// What it was doing then.
    pub heartbeat: Option<Heartbeat>,
    /// When its connection ended.
    pub left: Option<Duration>,
    /// What the kernel says of its process, if it runs on this host and has not been heard of lately.
    pub process: Option<ProcessState>,
    /// Why it cannot go on, and since when.
    pub failure: Option<(Failure, Duration)>,
    /// Its last printed lines.
    pub tail: Tail,
}

/// Ranks that do not belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit {
    /// What is wrong, and what to do.
    pub problem: String,
    /// The next start would be the same.
    pub is_lasting: bool,
}

/// Where a rank runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Host name.
    pub host: String,
    /// Process id there.
    pub pid: u32,
    /// What it computes on.
    pub device: String,
}

/// The last lines of somebody.
#[derive(Debug, Default)]
pub struct Tail(VecDeque<String>);

impl Evidence {
    /// Nothing is known yet of `world_size` ranks.
    pub fn new(world_size: usize, deadline: Duration) -> Self {
        Evidence {
            starter: "mpirun",
            ranks: (0..world_size).map(|_| RankEvidence::default()).collect(),
            deadline,
            latest_step: None,
            checkpoint: None,
            done: None,
            rank_ends: vec![],
            rank_end_at: None,
            starter_tail: Tail::default(),
            exit: None,
            out_of_memory_kills: 0,
            misfit: None,
        }
    }

    /// Takes a rank in.
    ///
    /// # Errors
    /// It is not one of those that were started; the text says why.
    pub fn join(&mut self, hello: &Hello, now: Duration) -> Result<(), String> {
        let (rank, size, started) = (hello.rank, hello.world_size, self.ranks.len());
        let Some(known) = self.ranks.get_mut(rank).filter(|_| size == started) else {
            let problem = format!(
                "a process on {} (pid {}) says that it is rank {rank} of {size}, but {started} ranks were started; {}",
                hello.host,
                hello.pid,
                self.remedy()
            );
            self.misfit.get_or_insert(Misfit { problem: problem.clone(), is_lasting: true });
            return Err(problem);
        };
        if known.identity.is_some() {
            return Err(format!("rank {rank} has connected already"));
        }
        known.identity = Some(Identity { host: hello.host.clone(), pid: hello.pid, device: hello.device.clone() });
        known.last_heard = now;
        Ok(())
    }

    /// Notes that a rank said itself that it cannot find the others.
    pub fn lonely(&mut self, rank: usize, is_lasting: bool) {
        let problem = format!("rank {rank} cannot find the other ranks; {}", self.remedy());
        self.misfit.get_or_insert(Misfit { problem, is_lasting });
    }

    /// What to do where ranks that were started together do not find one another.
    fn remedy(&self) -> &'static str {
        if self.starter == "srun" {
            "srun's --mpi does not fit the MPI library that bam-worker was built with: say cluster.launcher: mpirun, or use \
             an MPI library and a Slurm with the same PMIx ('srun --mpi=list')"
        } else {
            "mpirun and the MPI library that bam-worker was built with must be of the same installation"
        }
    }

    /// Remembers how ranks ended.
    pub fn ended(&mut self, ends: Vec<RankEnd>, now: Duration) {
        if !ends.is_empty() {
            self.rank_end_at.get_or_insert(now);
            self.rank_ends.extend(ends);
        }
    }

    /// Remembers a printed line.
    pub fn printed(&mut self, rank: Option<usize>, text: &str) {
        match rank.and_then(|r| self.ranks.get_mut(r)) {
            Some(rank) => rank.tail.push(text),
            None => self.starter_tail.push(text),
        }
    }
}

impl Tail {
    fn push(&mut self, line: &str) {
        // Blank lines and rulers say nothing.
        if line.chars().all(|c| c == '-' || c.is_whitespace()) {
            return;
        }
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(line.to_owned());
    }

    /// The last lines, indented; empty if there are none.
    pub fn quoted(&self) -> String {
        self.0.iter().map(|line| format!("\n    {line}")).collect()
    }
}
