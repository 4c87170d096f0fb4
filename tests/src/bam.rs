//! Starts `bam` as a user would, with a deadline, and keeps what it prints.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::process_tree::{self, Process};
use crate::programs::program;

/// How long a command may take unless said otherwise. The tasks are tiny: this is for machines that do much else.
const DEADLINE: Duration = Duration::from_secs(150);
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// A command line of `bam`, not yet started.
#[derive(Debug)]
pub struct Bam {
    command: Command,
    deadline: Duration,
}

/// A `bam` that was started. Dropped, it is killed with everything that it has started.
#[derive(Debug)]
pub struct Running {
    child: Child,
    status: Option<ExitStatus>,
    stdout: File,
    stderr: File,
    words: String,
    begun: Instant,
    deadline: Duration,
}

/// A `bam` that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Exit code; none if a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// What it printed on stdout.
    pub stdout: String,
    /// What it printed on stderr.
    pub stderr: String,
    /// How long it took.
    pub time: Duration,
    words: String,
}

impl Bam {
    /// `bam` with these arguments, to be run in `directory`.
    pub fn new<'a>(directory: &Path, arguments: impl IntoIterator<Item = &'a str>) -> Bam {
        Bam::of_program(&program("bam"), directory, arguments)
    }

    /// The same with another program: a copy of this one, or what it is compared with.
    pub fn of_program<'a>(program: &Path, directory: &Path, arguments: impl IntoIterator<Item = &'a str>) -> Bam {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(directory).stdin(Stdio::null());
        let of_the_hub = ["HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_TOKEN_PATH"];
        let of_proxies = ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"];
        let own = ["BAM_WORKER", "BAM_MPIRUN", "BAM_LOG", "BAM_GLUE_URL"];
        for setting in own.into_iter().chain(of_the_hub).chain(of_proxies) {
            command.env_remove(setting);
        }
        command.env("RUST_BACKTRACE", "1");
        Bam { command, deadline: DEADLINE }
    }

    /// With one more argument.
    #[must_use]
    pub fn arg(mut self, argument: &str) -> Bam {
        self.command.arg(argument);
        self
    }

    /// With an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Bam {
        self.command.env(name, value);
        self
    }

    /// Without an environment variable.
    #[must_use]
    pub fn without_env(mut self, name: &str) -> Bam {
        self.command.env_remove(name);
        self
    }

    /// With more or less time than usual.
    #[must_use]
    pub fn within(mut self, deadline: Duration) -> Bam {
        self.deadline = deadline;
        self
    }

    /// Starts it.
    pub fn start(mut self) -> Running {
        let (stdout, stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        self.command.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
        let words = format!("{:?}", self.command);
        let child = self.command.spawn().unwrap_or_else(|e| panic!("{words}: {e}"));
        Running { child, status: None, stdout, stderr, words, begun: Instant::now(), deadline: self.deadline }
    }

    /// Runs it to its end.
    pub fn finish(self) -> Finished {
        self.start().finish()
    }

    /// Runs it to its end, which has to have this exit code.
    pub fn expect(self, code: i32) -> Finished {
        self.finish().expect(code)
    }
}

impl Running {
    /// Its process number.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Waits until something has happened.
    ///
    /// # Panics
    /// `bam` ends before, or the deadline passes.
    pub fn wait_until(&mut self, what: &str, mut happened: impl FnMut() -> bool) {
        loop {
            if happened() {
                return;
            }
            if self.has_ended() {
                panic!("bam ended before {what}: {}", self.said());
            }
            self.check_deadline();
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Waits until this many ranks are running, and returns them in the order of their birth, which is that of ranks.
    pub fn ranks(&mut self, n: usize) -> Vec<Process> {
        let pid = self.pid();
        let mut found = vec![];
        self.wait_until("its ranks were there", || {
            found = process_tree::tree(pid).into_iter().filter(|p| p.name == "bam-worker").collect();
            found.len() == n
        });
        found.sort_by_key(|p| p.pid);
        found
    }

    /// Sends a signal to `bam` alone.
    pub fn signal(&self, signal: Signal) {
        if let Some(process) = Process::of(self.pid()) {
            process.signal(signal);
        }
    }

    /// Kills `bam`, `mpirun` and all ranks at one moment.
    pub fn kill_all(mut self) -> Vec<Process> {
        let killed = process_tree::kill_all(self.pid());
        self.status = self.child.wait().ok();
        killed
    }

    /// What it has printed on stderr so far.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// Waits until these words are on stderr; returns how long it took.
    ///
    /// # Panics
    /// As [`wait_until`](Self::wait_until).
    pub fn wait_for_words(&mut self, words: &str) -> Duration {
        let since = Instant::now();
        let stderr = self.stderr.try_clone().unwrap();
        self.wait_until(words, || read(&stderr).contains(words));
        since.elapsed()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// The deadline passes.
    pub fn finish(self) -> Finished {
        self.watch(LOOK_EVERY, || {})
    }

    /// Waits for its end and looks at something again and again until then.
    ///
    /// # Panics
    /// The deadline passes.
    pub fn watch(mut self, every: Duration, mut look: impl FnMut()) -> Finished {
        while !self.has_ended() {
            self.check_deadline();
            look();
            thread::sleep(every);
        }
        let status = self.status.unwrap();
        Finished {
            code: status.code(),
            signal: status.signal(),
            stdout: read(&self.stdout),
            stderr: read(&self.stderr),
            time: self.begun.elapsed(),
            words: self.words.clone(),
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().unwrap();
        }
        self.status.is_some()
    }

    fn check_deadline(&mut self) {
        if self.begun.elapsed() > self.deadline {
            process_tree::kill_all(self.pid());
            panic!("no end after {:?}: {}", self.deadline, self.said());
        }
    }

    fn said(&self) -> String {
        format!("{}\n--- stdout\n{}\n--- stderr\n{}", self.words, read(&self.stdout), read(&self.stderr))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.has_ended() {
            process_tree::kill_all(self.pid());
            let _ = self.child.wait();
        }
    }
}

impl Finished {
    /// Panics unless it ended with this exit code.
    pub fn expect(self, code: i32) -> Finished {
        assert_eq!(self.code, Some(code), "exit code (signal {:?}) of {self}", self.signal);
        self
    }

    /// Panics unless it ended with this exit code and one error that a person can use: with all of `parts` in it, and
    /// nothing of the programs' insides.
    pub fn expect_error(self, code: i32, parts: &[&str]) -> Finished {
        let done = self.expect(code);
        let errors = done.stderr.lines().filter(|l| l.starts_with("error:")).count();
        assert_eq!(errors, 1, "number of errors of {done}");
        for part in parts {
            assert!(done.stderr.contains(part), "'{part}' is not in what it said: {done}");
        }
        for inside in ["panicked", "stack backtrace", "RUST_BACKTRACE", "internal error", ".rs:"] {
            assert!(!done.stderr.contains(inside), "'{inside}' is in what it said: {done}");
        }
        done
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}\n--- stdout\n{}\n--- stderr\n{}", self.words, self.stdout, self.stderr)
    }
}

/// A file from its beginning, without moving the place where the program writes on.
fn read(file: &File) -> String {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    let n = file.read_at(&mut bytes, 0).unwrap();
    String::from_utf8_lossy(&bytes[..n]).into_owned()
}
