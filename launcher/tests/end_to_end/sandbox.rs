//! A directory of its own for each test, with a toy encoder, two toy tasks, a recipe, and a stand-in for `mpirun`.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use bam_tests::{Shape, write_encoder_of};

const RECIPE: &str = "\
name: toy
model: { path: model, max_length: 32 }
data:
  tasks:
    - { name: weather, train: weather.tsv, dev_fraction: 0.2, header: false, text: 0, label: 1, type: classification, labels: [no, yes] }
    - { name: sports, train: sports.tsv, dev_fraction: 0.2, header: false, text: 0, label: 1, type: classification, labels: [no, yes] }
train: { single: { epochs: 2, batch_size: 2 }, multi: { epochs: 2, batch_size: 4 } }
checkpoint: { every_steps: 3 }
";

/// `-n N … --run RUN --stage STAGE`: starts N ranks and tags their lines.
const MPIRUN: &str = r#"
size=$2
while [ "$1" != --run ]; do worker=$1; shift; done
for rank in $(seq 0 $((size - 1))); do
    { FAKE_RANK=$rank FAKE_SIZE=$size FAKE_RUN=$2 FAKE_STAGE=$4 "$worker" 2>&1; echo $? > "$2/status-$rank"; } \
        | sed -u "s/^/[1,$rank]<stdout>:/" &
done
wait
cat "$2"/status-* | sort -n | tail -1 > "$2/status"
read status < "$2/status"
exit "$status"
"#;

/// How a command ended.
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A directory for one test.
pub struct Sandbox(tempfile::TempDir);

/// A `bam` that runs.
pub struct Running(Child);

impl Sandbox {
    pub fn new() -> Sandbox {
        let sandbox = Sandbox(tempfile::tempdir().unwrap());
        sandbox.write_encoder();
        fs::write(sandbox.path("recipe.yaml"), RECIPE).unwrap();
        fs::write(sandbox.path("weather.tsv"), "it rains\tyes\nit is dry\tno\n".repeat(10)).unwrap();
        fs::write(sandbox.path("sports.tsv"), "a goal\tyes\na miss\tno\n".repeat(10)).unwrap();
        sandbox.script("mpirun", MPIRUN);
        let this = std::env::current_exe().unwrap();
        sandbox.script("bam-worker", &format!("exec {} rank::plays_a_rank --exact --nocapture -q", this.display()));
        sandbox
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes an executable shell script and returns its path.
    pub fn script(&self, name: &str, body: &str) -> String {
        let path = self.path(name);
        // A process that another test starts while the file is open here for writing has it open as well for a moment, in
        // which it cannot be run ("Text file busy"): somebody else writes it.
        let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod +x \"$0\"";
        let written = Command::new("sh").args(["-c", write]).arg(&path).arg(body).status().unwrap();
        assert!(written.success());
        path.to_str().unwrap().to_owned()
    }

    pub fn bam(&self, arguments: &[&str]) -> Output {
        self.bam_with(&[], arguments)
    }

    pub fn bam_with(&self, environment: &[(&str, &str)], arguments: &[&str]) -> Output {
        self.start(environment, arguments).output(Duration::from_secs(60))
    }

    /// After a line of shell.
    pub fn bam_under(&self, line: &str, arguments: &[&str]) -> Output {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{line} && exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_bam")]);
        self.start_command(shell, &[], arguments).output(Duration::from_secs(60))
    }

    pub fn start(&self, environment: &[(&str, &str)], arguments: &[&str]) -> Running {
        self.start_command(Command::new(env!("CARGO_BIN_EXE_bam")), environment, arguments)
    }

    fn start_command(&self, mut command: Command, environment: &[(&str, &str)], arguments: &[&str]) -> Running {
        let child = command
            .current_dir(self.0.path())
            .env("BAM_MPIRUN", self.path("mpirun"))
            .env("BAM_WORKER", self.path("bam-worker"))
            .envs(environment.iter().copied())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Running(child)
    }

    fn write_encoder(&self) {
        let shape = Shape { layers: 1, hidden: 4, heads: 2, intermediate: 8, positions: 40, outputs: None };
        write_encoder_of(&shape, "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\nb\nc\nd\n", &self.path("model"));
    }
}

impl Running {
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// What Ctrl-C in a terminal does.
    pub fn interrupt(&self) {
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    }

    /// Waits for the end. These programs print little, so that no pipe fills up.
    pub fn output(mut self, limit: Duration) -> Output {
        let since = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            if since.elapsed() > limit {
                self.0.kill().unwrap();
                let output = self.0.wait_with_output().unwrap();
                panic!("bam did not end within {limit:?}: {}", String::from_utf8_lossy(&output.stderr));
            }
            thread::sleep(Duration::from_millis(10));
        }
        let output = self.0.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Output { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// Waits until something has happened.
pub fn wait_for(happened: impl Fn() -> bool) {
    let since = Instant::now();
    while !happened() {
        assert!(since.elapsed() < Duration::from_secs(20), "it did not happen");
        thread::sleep(Duration::from_millis(10));
    }
}
