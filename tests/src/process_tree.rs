//! Processes by number and time of birth, found as descendants of one that a test has started: so that no other
//! process is ever signalled.

use std::fs;

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// One process. Its time of birth tells it from a later one of the same number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// The name of its program, cut to 15 characters.
    pub name: String,
    parent: i32,
    born: u64,
    is_zombie: bool,
}

impl Process {
    /// The process of that number, if there is one.
    pub fn of(pid: i32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name is in parentheses and may hold anything.
        let (start, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        Some(Process {
            pid,
            name: start.split_once('(')?.1.to_owned(),
            parent: fields.get(1)?.parse().ok()?,
            born: fields.get(19)?.parse().ok()?,
            is_zombie: matches!(fields.first(), Some(&"Z" | &"X")),
        })
    }

    /// Whether it is still there and running or stopped.
    pub fn is_alive(&self) -> bool {
        Process::of(self.pid).is_some_and(|now| now.born == self.born && !now.is_zombie)
    }

    /// A variable of the environment that it was started with.
    pub fn variable(&self, name: &str) -> Option<String> {
        let environment = fs::read(format!("/proc/{}/environ", self.pid)).ok()?;
        let mut entries = environment.split(|b| *b == 0).filter_map(|e| str::from_utf8(e).ok()?.split_once('='));
        entries.find(|(n, _)| *n == name).map(|(_, value)| value.to_owned())
    }

    /// The most memory that it has had in use, in MiB, if it is still there.
    pub fn peak_memory_mib(&self) -> Option<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
        Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
    }

    /// Seconds of processor time that it has used, if it is still there.
    pub fn processor_seconds(&self) -> Option<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks = |i: usize| fields.get(i)?.parse::<f64>().ok();
        // Linux counts a hundred of them a second for programs, whatever it counts for itself.
        Some((ticks(11)? + ticks(12)?) / 100.0)
    }

    /// Its command line.
    pub fn command_line(&self) -> String {
        let bytes = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\0', " ")
    }

    /// Whether a signal has come that it has not taken yet, as while it is stopped.
    pub fn has_pending(&self, signal: Signal) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
        let pending = pending.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or_default();
        pending & (1 << (signal as i32 - 1)) != 0
    }

    /// Sends it a signal, if it is still there.
    pub fn signal(&self, signal: Signal) {
        if self.pid > 1 && self.is_alive() {
            let _ = signal::kill(Pid::from_raw(self.pid), signal);
        }
    }
}

fn children(pid: i32) -> Vec<Process> {
    let numbers = fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    numbers.filter_map(Process::of).filter(|p| p.parent == pid && !p.is_zombie).collect()
}

/// The process `root` and all its descendants, parents first.
pub fn tree(root: i32) -> Vec<Process> {
    let mut all: Vec<Process> = Process::of(root).into_iter().collect();
    let mut next = 0;
    while let Some(process) = all.get(next) {
        let below = children(process.pid);
        all.extend(below);
        next += 1;
    }
    all
}

/// Stops `root` and all its descendants, parents first, so that none of them can start another or say anything; returns
/// them.
pub fn freeze(root: i32) -> Vec<Process> {
    let mut all: Vec<Process> = Process::of(root).into_iter().collect();
    let mut next = 0;
    while let Some(process) = all.get(next) {
        process.signal(Signal::SIGSTOP);
        let below = children(process.pid);
        all.extend(below);
        next += 1;
    }
    all
}

/// Kills `root` and all its descendants at one moment, as a power cut would; returns them.
pub fn kill_all(root: i32) -> Vec<Process> {
    let all = freeze(root);
    all.iter().for_each(|p| p.signal(Signal::SIGKILL));
    all
}
