//! `bam run` as a child of a rehearsal: started, watched line by line, signalled, awaited.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::LONGEST_RUN;
use crate::supervise::Interrupts;

const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Two signals that come faster count as one.
const AT_A_PERSONS_PACE: Duration = Duration::from_millis(300);
/// How long a `bam run` may take to end when it is told to a second time.
const END_WITHIN: Duration = Duration::from_secs(15);

/// What to run.
pub struct Invocation<'a> {
    /// The recipe's file.
    pub config: &'a Path,
    /// Changes to it.
    pub overrides: &'a [String],
    /// On how many processes.
    pub processes: usize,
    /// In which directory.
    pub run: &'a Path,
}

/// A running `bam run`. Dropped, it is ended with its ranks.
pub struct Child {
    child: std::process::Child,
    lines: Arc<Mutex<Vec<(Instant, String)>>>,
    reader: Option<JoinHandle<()>>,
    began: Instant,
    interrupts: Interrupts,
}

/// A `bam run` that has ended.
pub struct Ended {
    /// Exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// What it said on stderr, and when.
    lines: Vec<(Instant, String)>,
}

impl Child {
    /// Starts it, with `more` arguments.
    pub fn start(invocation: &Invocation, more: &[&str], interrupts: &Interrupts) -> anyhow::Result<Child> {
        let own = std::env::current_exe().context("this program's own file")?;
        let mut command = Command::new(&own);
        command.arg("run").arg(invocation.config).args(["-n", &invocation.processes.to_string()]);
        for change in invocation.overrides {
            command.args(["-o", change]);
        }
        command.arg("--run-dir").arg(invocation.run).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| own.display().to_string())?;
        let lines: Arc<Mutex<Vec<(Instant, String)>>> = Arc::default();
        let heard = lines.clone();
        let reader = child.stderr.take().map(|pipe| {
            thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    heard.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), line));
                }
            })
        });
        Ok(Child { child, lines, reader, began: Instant::now(), interrupts: interrupts.clone() })
    }

    /// Waits until so many steps are in a stage's metrics.
    pub fn wait_for_steps(&self, metrics: &Path, steps: u64) -> anyhow::Result<()> {
        let done = || fs::read(metrics).map_or(0, |text| text.iter().filter(|b| **b == b'\n').count() as u64);
        let pid = self.child.id();
        while done() < steps {
            self.go_on()?;
            let is_over = self.reader.as_ref().is_none_or(JoinHandle::is_finished);
            if is_over || self.began.elapsed() > LONGEST_RUN {
                bail!("bam run (pid {pid}) did not come to step {steps}:\n{}", said(&self.heard()));
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Sends a signal to `bam` alone.
    pub fn signal(&self, signal: Signal) {
        // It is a child that was not waited for, so that its number is still its own.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
    }

    /// Waits for its end.
    pub fn wait(mut self) -> anyhow::Result<Ended> {
        loop {
            if let Some(status) = self.child.try_wait().context("waiting for bam run")? {
                return Ok(self.ended(status));
            }
            self.go_on()?;
            if self.began.elapsed() > LONGEST_RUN {
                bail!("bam run has not ended within {LONGEST_RUN:?}:\n{}", said(&self.heard()));
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Fails if somebody wants the rehearsal to end.
    fn go_on(&self) -> anyhow::Result<()> {
        ensure!(self.interrupts.wish().is_none(), "the rehearsal was interrupted");
        Ok(())
    }

    fn ended(&mut self, status: ExitStatus) -> Ended {
        // An orphan may hold the pipe for a moment; what it says is of no interest.
        let since = Instant::now();
        while self.reader.as_ref().is_some_and(|r| !r.is_finished()) && since.elapsed() < Duration::from_secs(2) {
            thread::sleep(LOOK_EVERY);
        }
        Ended { code: status.code(), lines: self.heard() }
    }

    fn heard(&self) -> Vec<(Instant, String)> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Insists, as a person would: `bam` then ends its ranks at once.
        for _ in 0..2 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            self.signal(Signal::SIGTERM);
            thread::sleep(AT_A_PERSONS_PACE);
        }
        let since = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && since.elapsed() < END_WITHIN {
            thread::sleep(LOOK_EVERY);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// Everything that it said.
    pub fn said(&self) -> String {
        said(&self.lines)
    }

    /// What `bam` said about the failure that it went on from.
    pub fn sentence(&self) -> Option<String> {
        self.verdict().map(|(_, line)| line.clone())
    }

    /// Seconds from the failure, which the rank announces, to the sentence about it.
    pub fn noticed(&self) -> Option<f64> {
        let (failed, _) = self.lines.iter().find(|(_, line)| line.contains("rehearsal: "))?;
        Some(self.verdict()?.0.duration_since(*failed).as_secs_f64())
    }

    fn verdict(&self) -> Option<&(Instant, String)> {
        self.lines.iter().find(|(_, line)| line.contains("(restart 1 of"))
    }
}

fn said(lines: &[(Instant, String)]) -> String {
    lines.iter().map(|(_, line)| format!("    {line}\n")).collect()
}
