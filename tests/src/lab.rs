//! Several hosts on this machine, with or without a real Slurm on them: `slurm/lab`, for as long as a test needs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::bam::Bam;
use crate::process_tree::{self, Process};
use crate::programs::{program, repository, say_skipped};

/// Seconds for a command of the lab; setting up may have to install packages.
const WITHIN: &str = "300";

/// Hosts that vanish when this is dropped. Things are started from the one called `ctl`.
#[derive(Debug)]
pub struct Lab {
    script: PathBuf,
    environment: Vec<(&'static str, String)>,
}

impl Lab {
    /// The hosts `ctl`, `n1` and `n2`; none where they cannot be made, and it has been said why.
    pub fn of_hosts(test: &str, directory: &Path) -> Option<Lab> {
        let lab = Lab::new("hosts", directory, &[]);
        lab.is_set_up(test, &["up", "ctl", "n1", "n2"]).then_some(lab)
    }

    /// Slurm on hosts `n1` to `nNODES` with one processor each; none where it cannot be set up, and it has been said why.
    pub fn of_slurm(test: &str, directory: &Path, nodes: usize) -> Option<Lab> {
        // A node is given up sooner than a site would.
        let settings =
            [("LAB_NODES", nodes.to_string()), ("LAB_CPUS", "1".to_owned()), ("LAB_NODE_TIMEOUT", "6".to_owned())];
        let lab = Lab::new("lab", directory, &settings);
        lab.is_set_up(test, &["up"]).then_some(lab)
    }

    fn new(script: &str, directory: &Path, settings: &[(&'static str, String)]) -> Lab {
        let directory = ("LAB_DIR", directory.display().to_string());
        let environment = std::iter::once(directory).chain(settings.iter().cloned()).collect();
        Lab { script: repository().join("slurm/lab").join(script), environment }
    }

    fn is_set_up(&self, test: &str, up: &[&str]) -> bool {
        // Nobody's own machine gets packages from a test. Whether that went well shows at once.
        if std::env::var_os("CI").is_some() {
            self.command(&self.script.with_file_name("lab"), &["install"]);
        }
        let done = self.command(&self.script, up);
        if done.status.success() {
            return true;
        }
        let words = String::from_utf8_lossy(&done.stderr);
        let last = words.trim().lines().last().unwrap_or("it said nothing");
        say_skipped(test, &format!("it takes root, namespaces and, for Slurm, its packages: {last}"));
        false
    }

    fn command(&self, script: &Path, words: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.arg(WITHIN).arg(script).args(words).envs(self.environment.iter().cloned());
        command.output().unwrap()
    }

    /// Does something to the lab: `cut n2`.
    ///
    /// # Panics
    /// It fails.
    pub fn run(&self, words: &[&str]) {
        let done = self.command(&self.script, words);
        assert!(done.status.success(), "{words:?}: {done:?}");
    }

    /// What a command prints on one of the hosts.
    ///
    /// # Panics
    /// It fails.
    pub fn on(&self, host: &str, words: &[&str]) -> String {
        let all: Vec<&str> = ["exec", host].iter().chain(words).copied().collect();
        let done = self.command(&self.script, &all);
        assert!(done.status.success(), "{words:?} on {host}: {done:?}");
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    }

    /// `bam` on the host `ctl`, to be run in `directory`.
    pub fn bam(&self, directory: &Path, words: &[&str]) -> Bam {
        let bam = program("bam");
        let all: Vec<&str> = [bam.to_str().unwrap()].into_iter().chain(words.iter().copied()).collect();
        self.through(directory, &all)
    }

    /// `bam` through another command on the host `ctl`: all words of both.
    pub fn through(&self, directory: &Path, words: &[&str]) -> Bam {
        let all = ["exec", "ctl"].into_iter().chain(words.iter().copied());
        let bam = Bam::of_program(&self.script, directory, all);
        self.environment.iter().fold(bam, |bam, (name, value)| bam.env(name, value))
    }

    /// How `mpirun` reaches other hosts than its own.
    pub fn remote_shell(&self) -> String {
        format!("{} rsh", self.script.display())
    }

    /// All processes of the program `name` on a host other than `ctl`.
    pub fn processes(&self, host: &str, name: &str) -> Vec<Process> {
        let (_, directory) = &self.environment[0];
        let first = std::fs::read_to_string(Path::new(directory).join(format!("hosts/{host}.pid")));
        let first = first.ok().and_then(|pid| pid.trim().parse().ok());
        let all = first.map(process_tree::tree).unwrap_or_default();
        all.into_iter().filter(|process| process.name == name).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.command(&self.script, &["down"]);
    }
}
