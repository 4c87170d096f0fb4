//! A running `mpirun` or `srun`: started in a process group of its own, its lines read, its end awaited, killed as a group.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::Launch;

/// How long lines may still come after the process has ended: an orphan may hold its pipe open for ever.
const LAST_LINES: Duration = Duration::from_secs(1);

/// How long a process that kills its ranks itself may take to do so.
const KILLS_WITHIN: Duration = Duration::from_secs(2);

/// What a process does.
#[derive(Debug)]
pub enum ProcessEvent {
    /// It printed a line.
    Line(String),
    /// It ended; no line comes after this.
    Ended(ExitStatus),
}

/// A running process. Dropped, it is killed.
#[derive(Debug)]
pub struct Process {
    group: Pid,
    kill: Signal,
    ended: Arc<AtomicBool>,
}

impl Process {
    /// Runs a command and tells `tell` what happens, from threads of its own.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(launch: &Launch, tell: impl Fn(ProcessEvent) + Clone + Send + 'static) -> io::Result<Process> {
        let mut command = Command::new(&launch.program);
        for name in launch.without {
            command.env_remove(name);
        }
        let mut child = command
            .args(&launch.arguments)
            .envs(launch.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // So that Ctrl-C in the terminal reaches bam alone, which then stops the ranks in good order.
            .process_group(0)
            .spawn()?;
        let group = Pid::from_raw(child.id().cast_signed());
        let readers = [
            child.stdout.take().map(|pipe| read_lines(pipe, tell.clone())),
            child.stderr.take().map(|pipe| read_lines(pipe, tell.clone())),
        ];
        let ended = Arc::new(AtomicBool::new(false));
        let has_ended = ended.clone();
        thread::spawn(move || {
            let status = await_end(child, readers.into_iter().flatten().collect(), &has_ended);
            if let Ok(status) = status {
                tell(ProcessEvent::Ended(status));
            }
        });
        Ok(Process { group, kill: launch.kill, ended })
    }

    /// Asks the group to end. `mpirun` passes this on to the ranks and kills those that do not obey, `srun` kills them.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Ends the group, and its ranks, without asking.
    pub fn kill(&self) {
        let since = Instant::now();
        self.signal(self.kill);
        while self.kill != Signal::SIGKILL && !self.has_ended() && since.elapsed() < KILLS_WITHIN {
            thread::sleep(Duration::from_millis(10));
        }
        self.signal(Signal::SIGKILL);
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    fn signal(&self, signal: Signal) {
        // A number that was given back to the system may be somebody else's by now.
        if !self.has_ended() {
            let _ = killpg(self.group, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn await_end(mut child: Child, readers: Vec<JoinHandle<()>>, ended: &AtomicBool) -> io::Result<ExitStatus> {
    let status = child.wait();
    ended.store(true, Ordering::SeqCst);
    let since = Instant::now();
    while since.elapsed() < LAST_LINES && !readers.iter().all(JoinHandle::is_finished) {
        thread::sleep(Duration::from_millis(10));
    }
    status
}

fn read_lines(pipe: impl Read + Send + 'static, tell: impl Fn(ProcessEvent) + Send + 'static) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        // Whatever a library prints, in whatever encoding, is worth a line.
        while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            tell(ProcessEvent::Line(String::from_utf8_lossy(&line).trim_end().to_owned()));
            line.clear();
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn shell(script: &str, kill: Signal) -> (Process, mpsc::Receiver<ProcessEvent>) {
        let arguments = vec!["-c".into(), script.into()];
        let environment = vec![("GREETING", "hello".into())];
        let launch = Launch { program: "/bin/sh".into(), arguments, environment, without: &["HOME"], kill };
        let (sender, receiver) = mpsc::channel();
        let process = Process::spawn(&launch, move |event| drop(sender.send(event))).unwrap();
        (process, receiver)
    }

    #[test]
    fn lines_come_before_the_end() {
        let (_process, events) = shell("echo $GREETING$HOME; exit 3", Signal::SIGKILL);
        assert!(matches!(events.recv().unwrap(), ProcessEvent::Line(l) if l == "hello"));
        assert!(matches!(events.recv().unwrap(), ProcessEvent::Ended(s) if s.code() == Some(3)));
    }

    #[test]
    fn the_whole_group_is_killed() {
        let (process, events) = shell("sleep 100 & echo started; wait", Signal::SIGKILL);
        assert!(matches!(events.recv().unwrap(), ProcessEvent::Line(_)));
        process.kill();
        let end = events.recv_timeout(Duration::from_secs(5)).unwrap();
        assert!(matches!(end, ProcessEvent::Ended(s) if s.code().is_none()));
    }

    #[test]
    fn one_that_kills_its_ranks_itself_is_given_the_time() {
        let (process, events) =
            shell("trap 'sleep 0.2; exit 7' TERM; echo started; while :; do sleep 0.01; done", Signal::SIGTERM);
        assert!(matches!(events.recv().unwrap(), ProcessEvent::Line(_)));
        process.kill();
        // The shell may have words of its own on what the signal did.
        let end = events.iter().find(|event| matches!(event, ProcessEvent::Ended(_))).unwrap();
        assert!(matches!(end, ProcessEvent::Ended(s) if s.code() == Some(7)), "{end:?}");
    }
}
