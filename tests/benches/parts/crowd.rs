//! Plays all ranks of a run at once, in one process in `mpirun`'s place: so many authenticated control connections, a
//! heartbeat a second on each, and a rank 0 that obeys orders and computes nothing. It also measures the launcher, which
//! is its parent, and leaves its findings in a file.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::exit;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bam_cluster::files;
use bam_cluster::plan::{Plan, StageWork};
use bam_cluster::protocol::channel::{self, Receiver, Sender};
use bam_cluster::protocol::{
    ControlFile, FromRank, Heartbeat, Hello, LastCollective, Outcome, Phases, StepReport, ToRank,
};
use bam_cluster::run_dir::RunDir;
use bam_cluster::stage_record::{Scores, TaskScores};
use bam_tests::Process;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};

/// How a crowd ends: `finish`, `silent` (a rank in the middle stops beating) or `gone` (its connection ends).
pub const END: &str = "CROWD_END";
/// Where findings go.
pub const FINDINGS: &str = "CROWD_FINDINGS";

const BEAT: Duration = Duration::from_secs(1);
/// Heartbeats of so many ranks are sent in one go.
const AT_ONCE: usize = 16;
/// For so long nothing but heartbeats is sent, while the launcher's processor time is taken.
const PEACE: Duration = Duration::from_secs(5);
const CONNECT_WITHIN: Duration = Duration::from_secs(60);
/// Threads that only wait for a launcher need little.
const STACK: usize = 128 << 10;

/// Plays the ranks that `mpirun` with these arguments is to start.
pub fn play(arguments: &[String]) -> ! {
    let begun = unix_time();
    let after = |name: &str| arguments.iter().position(|a| a == name).map(|i| arguments[i + 1].clone()).unwrap();
    let (size, run, stage) = (after("-n").parse().unwrap(), RunDir::new(after("--run")), after("--stage"));
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let plan: Plan = files::read_json(&run.plan()).unwrap().unwrap();
    let launcher = nix::unistd::getppid().as_raw();
    let crowd = Crowd::join(size, &run, &stage);
    let findings = Findings { path: env::var(FINDINGS).unwrap().into(), stage: stage.clone() };
    findings.note("begun_at", json!(begun));
    findings.note("joined_s", json!(crowd.joined.as_secs_f64()));
    match &plan.stage(&stage).unwrap().work {
        StageWork::Prepare => crowd.prepare(&plan, &run),
        StageWork::Train(train) => crowd.train(&train.tasks, &run, &stage, launcher, &findings),
        other => panic!("nothing is known of {other:?}"),
    }
    exit(0);
}

/// All ranks, connected.
struct Crowd {
    /// By rank.
    senders: Arc<Vec<Mutex<Sender>>>,
    orders: mpsc::Receiver<ToRank>,
    /// Ranks from this one on to the next are not heard of.
    silent: Arc<AtomicUsize>,
    /// How long it took all of them to get in.
    joined: Duration,
}

impl Crowd {
    /// Connects all ranks at the same moment, as ranks come out of `MPI_Init`. Rank 0 says hello last, so that its first
    /// order tells that the launcher has heard of all.
    fn join(size: usize, run: &RunDir, stage: &str) -> Crowd {
        let control: ControlFile = files::read_json(&run.control(stage)).unwrap().unwrap();
        let (control, gate) = (Arc::new(control), Arc::new(Barrier::new(size + 1)));
        let connect = |rank| {
            let (control, gate) = (control.clone(), gate.clone());
            let connect = move || {
                gate.wait();
                let (mut sender, receiver) =
                    channel::connect(&control.addresses, &control.secret, CONNECT_WITHIN).unwrap();
                if rank > 0 {
                    sender.send(&hello(&control, rank, size)).unwrap();
                }
                (sender, receiver)
            };
            thread::Builder::new().stack_size(STACK).spawn(connect).unwrap()
        };
        let threads: Vec<_> = (0..size).map(connect).collect();
        gate.wait();
        let since = Instant::now();
        let mut connected: Vec<(Sender, Receiver)> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        connected[0].0.send(&hello(&control, 0, size)).unwrap();
        let (senders, mut receivers): (Vec<_>, Vec<_>) = connected.into_iter().unzip();
        assert!(matches!(receivers[0].receive::<ToRank>().unwrap(), Some(ToRank::Begin(_))));
        let joined = since.elapsed();
        let senders: Arc<Vec<Mutex<Sender>>> = Arc::new(senders.into_iter().map(Mutex::new).collect());
        let silent = Arc::new(AtomicUsize::new(usize::MAX));
        let (beaten, mute) = (senders.clone(), silent.clone());
        thread::spawn(move || beat(&beaten, &mute));
        Crowd { senders, orders: listen(receivers.swap_remove(0)), silent, joined }
    }

    fn say(&self, message: &FromRank) {
        self.senders[0].lock().unwrap().send(message).unwrap();
    }

    fn prepare(&self, plan: &Plan, run: &RunDir) {
        let names = plan.tasks.iter().flat_map(|t| ["train", "dev"].map(|s| (t.task.clone(), s)));
        let outputs = names.map(|(task, split)| made(format!("{task}-{split}"), &run.data(&task, split))).collect();
        self.say(&FromRank::Done(Outcome::Finished { outputs }));
    }

    fn train(&self, tasks: &[String], run: &RunDir, stage: &str, launcher: i32, findings: &Findings) {
        self.say(&FromRank::Ready { next_step: 0 });
        let (before, since) = (Load::of(launcher), Instant::now());
        thread::sleep(PEACE);
        let seconds = since.elapsed().as_secs_f64();
        let after = Load::of(launcher);
        findings.note("cpu_s_a_second", json!((after.processor - before.processor) / seconds));
        findings.note("threads", json!(after.threads));
        findings.note("file_descriptors", json!(after.file_descriptors));
        match env::var(END).unwrap().as_str() {
            "finish" => {}
            trouble => self.misbehave(trouble, findings),
        }
        let since = Instant::now();
        let mut steps = 0;
        while let ToRank::Train(order) = self.orders.recv().unwrap() {
            for step in order.first_step..order.end_step {
                self.say(&FromRank::Step(report(step)));
            }
            steps += order.end_step - order.first_step;
        }
        findings.note("steps_a_second", json!(steps as f64 / since.elapsed().as_secs_f64()));
        findings.note("peak_mib", json!(Process::of(launcher).unwrap().peak_memory_mib()));
        self.say(&FromRank::Done(Outcome::Finished { outputs: publish(tasks, run, stage) }));
    }

    /// One rank in the middle does what ranks should not; the launcher is to end all.
    fn misbehave(&self, how: &str, findings: &Findings) -> ! {
        let guilty = self.senders.len() / 2;
        findings.note("guilty", json!(guilty));
        self.silent.store(guilty, Ordering::SeqCst);
        if how == "gone" {
            self.senders[guilty].lock().unwrap().hang_up();
        }
        findings.note("trouble_at", json!(unix_time()));
        thread::sleep(Duration::from_secs(600));
        exit(1);
    }
}

fn hello(control: &ControlFile, rank: usize, world_size: usize) -> FromRank {
    let (host, device) = (format!("node-{}", rank / 8), "cpu".to_owned());
    FromRank::Hello(Hello { incarnation: control.incarnation, rank, world_size, host, pid: 1, device })
}

/// What the launcher says to rank 0.
fn listen(mut receiver: Receiver) -> mpsc::Receiver<ToRank> {
    let (heard, orders) = mpsc::channel();
    thread::spawn(move || {
        while let Ok(Some(order)) = receiver.receive()
            && heard.send(order).is_ok()
        {}
    });
    orders
}

/// Beats for all ranks, spread over the second as independent clocks are.
fn beat(senders: &[Mutex<Sender>], silent: &AtomicUsize) {
    let groups = senders.len().div_ceil(AT_ONCE);
    for number in 0.. {
        let begun = Instant::now();
        for (group, some) in senders.chunks(AT_ONCE).enumerate() {
            for (i, sender) in some.iter().enumerate() {
                if group * AT_ONCE + i != silent.load(Ordering::SeqCst) {
                    // The launcher may have hung up at the end.
                    let _ = sender.lock().unwrap().send(&heartbeat(number));
                }
            }
            thread::sleep((BEAT * group as u32 / groups as u32).saturating_sub(begun.elapsed()));
        }
        thread::sleep(BEAT.saturating_sub(begun.elapsed()));
    }
}

/// As a rank in the midst of training says it.
fn heartbeat(number: u64) -> FromRank {
    FromRank::Heartbeat(Heartbeat {
        phase: "forward and backward".to_owned(),
        step: Some(number),
        collective: Some(LastCollective { name: "gradients".to_owned(), sequence: 3 * number, waiting: Some(0.01) }),
        idle: 0.01,
        memory: Some(1 << 30),
    })
}

fn report(step: u64) -> StepReport {
    StepReport {
        step,
        loss: 0.7,
        task_losses: BTreeMap::from([("weather".to_owned(), 0.7)]),
        lambda: 1.0,
        learning_rate: 1e-4,
        gradient_norm: 1.5,
        examples: 1024,
        tokens: 40_000,
        seconds: 0.3,
        phases: Phases::default(),
        bytes_reduced: 0,
        utilisation: 0.5,
        device_memory: None,
    }
}

/// Makes a file; its name with a sum.
fn made(name: String, path: &Path) -> (String, String) {
    files::write_atomically(path, b"x").unwrap();
    (name, "0f".repeat(32))
}

fn publish(tasks: &[String], run: &RunDir, stage: &str) -> BTreeMap<String, String> {
    let metrics = BTreeMap::from([("accuracy".to_owned(), Some(0.8))]);
    let score = TaskScores { metrics, examples: 4, classes_predicted: Some(2), spread: None };
    let scores: Scores = tasks.iter().map(|t| (t.clone(), score.clone())).collect();
    files::write_json(&run.scores(stage), &scores).unwrap();
    BTreeMap::from([made("model".to_owned(), &run.model(stage).join("model.safetensors"))])
}

/// What a process uses.
struct Load {
    /// Seconds of processor time so far.
    processor: f64,
    threads: usize,
    file_descriptors: usize,
}

impl Load {
    fn of(pid: i32) -> Load {
        let entries = |name: &str| fs::read_dir(format!("/proc/{pid}/{name}")).unwrap().count();
        let processor = Process::of(pid).unwrap().processor_seconds().unwrap();
        Load { processor, threads: entries("task"), file_descriptors: entries("fd") }
    }
}

/// Seconds since 1970, the same in all processes.
pub fn unix_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// A file with one JSON object, which the benchmark reads when `bam` has ended.
struct Findings {
    path: PathBuf,
    stage: String,
}

impl Findings {
    fn note(&self, name: &str, value: Value) {
        let mut all: Value = files::read_json(&self.path).unwrap().unwrap_or(json!({}));
        all[&self.stage][name] = value;
        files::write_json(&self.path, &all).unwrap();
    }
}
