//! A real Slurm on several hosts of this machine: whatever it does to a job, and whatever becomes of the job's nodes, the
//! run ends with the weights of one that was left in peace without Slurm.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::fs;
use std::ops::RangeBounds;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use bam_tests::{Bam, Lab, Process, Recipe, Run, Workplace, freeze};
use nix::sys::signal::Signal;

/// Long enough for a machine that does much else.
const DEADLINE: Duration = Duration::from_secs(180);
/// Three troubles at a time, each on nodes of its own: these are the nodes of the others.
const NOT_LIMITED: &str = "n[3-7]";
const NOT_FAILING: &str = "n[1-2,6-7]";
const NOT_PREEMPTED: &str = "n[1-5]";
const NODES: usize = 7;

struct Cluster {
    lab: Lab,
    place: Workplace,
}

/// A run, and the job that does it.
struct Job<'a> {
    cluster: &'a Cluster,
    run: Run,
    id: u64,
}

fn recipe() -> Recipe {
    let mut recipe = Recipe::of(&["cola"]);
    recipe.mode = "multi".into();
    // Dropout has to be the same after a resume, too.
    recipe.model = "max_length: 40".into();
    recipe.multi = "epochs: 80, batch_size: 16, learning_rate: 0.001".into();
    recipe.checkpoint = "every_steps: 10, keep: 2".into();
    recipe.slurm = "nodes: 2, time: 10".into();
    recipe
}

/// The words by which the whole of a recipe becomes one job.
fn submission(run: &Run) -> Vec<&str> {
    vec!["submit", "recipe.yaml", "--one-job", "--run-dir", run.path().to_str().unwrap()]
}

fn wait(what: &str, mut happened: impl FnMut() -> bool) {
    let since = Instant::now();
    while !happened() {
        assert!(since.elapsed() < DEADLINE, "waited in vain for {what}");
        // To ask Slurm takes a processor some time, too.
        thread::sleep(Duration::from_millis(200));
    }
}

impl Cluster {
    fn bam(&self, words: &[&str]) -> Bam {
        self.lab.bam(self.place.path(), words).within(DEADLINE)
    }

    fn run(&self, name: &str) -> Run {
        Run::new(self.place.at("runs").join(name))
    }

    /// A run without Slurm.
    fn undisturbed(&self) -> Run {
        let run = self.run("undisturbed");
        self.bam(&["run", "recipe.yaml", "-n", "2", "--run-dir", run.path().to_str().unwrap()]).expect(0);
        run
    }

    /// A job on two of the nodes that are not in `others`.
    fn submit(&self, name: &str, others: &str, options: &[&str]) -> Job<'_> {
        let run = self.run(name);
        let extra = format!("slurm.extra=['--exclude={others}']");
        let words = submission(&run).into_iter().chain(["-o", &extra]).chain(options.iter().copied());
        self.bam(&words.collect::<Vec<_>>()).expect(0);
        let id = run.json("slurm/jobs.json")["jobs"][0]["id"].as_u64().unwrap();
        Job { cluster: self, run, id }
    }

    fn is_idle(&self, node: &str) -> bool {
        self.lab.on("ctl", &["sinfo", "--noheader", "--partition=lab", "--nodes", node, "--format=%T"]) == "idle"
    }
}

impl Job<'_> {
    /// What Slurm says of it.
    fn known(&self, key: &str) -> String {
        let text = self.cluster.lab.on("ctl", &["scontrol", "--oneliner", "show", "job", &self.id.to_string()]);
        let value = text.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        value.unwrap_or_else(|| panic!("no {key} in {text}")).to_owned()
    }

    fn restarts(&self) -> usize {
        self.known("Restarts").parse().unwrap()
    }

    fn output(&self) -> String {
        fs::read_to_string(self.run.at(format!("logs/slurm-{}.out", self.id))).unwrap_or_default()
    }

    fn status(&self) -> String {
        self.cluster.bam(&["status", self.run.path().to_str().unwrap()]).expect(0).stdout
    }

    fn wait(&self, what: &str, mut happened: impl FnMut() -> bool) {
        let ended = || ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"].contains(&self.known("JobState").as_str());
        wait(what, || happened() || ended());
        assert!(happened(), "the job ended before {what}:\n{}", self.output());
    }

    /// Waits until it has been started so often before, and gets on; returns how long that took.
    fn wait_for_training(&self, restarts: usize) -> Duration {
        let since = Instant::now();
        let start = format!(", start {restarts}, ");
        self.wait("training", || {
            let is_resumed = |own: &str| own.contains("resumed at step");
            let is_first = restarts == 0 && self.run.steps("multi").len() > 20;
            is_first || self.output().split_once(&start).is_some_and(|(_, own)| is_resumed(own))
        });
        since.elapsed()
    }

    /// Waits until it is done, and compares.
    fn finish(&self, restarts: impl RangeBounds<usize>, undisturbed: &Run) {
        wait("its end", || ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"].contains(&self.known("JobState").as_str()));
        let output = self.output();
        assert_eq!(self.known("JobState"), "COMPLETED", "{output}");
        assert!(restarts.contains(&self.restarts()), "{output}");
        assert!(output.contains("results on dev"), "{output}");
        assert_eq!(self.run.weights_sha256("multi"), undisturbed.weights_sha256("multi"));
        assert_eq!(self.run.receipt("multi"), undisturbed.receipt("multi"));
        assert_eq!(self.run.steps("multi"), undisturbed.steps("multi"));
    }

    /// The program `name` on the node that the batch script is on, which is also that of the first rank.
    fn process(&self, name: &str) -> Process {
        let mut found = self.cluster.lab.processes(&self.known("BatchHost"), name);
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        found.remove(0)
    }

    /// A checkpoint that is being written and has no manifest yet.
    fn half_written(&self) -> Option<PathBuf> {
        let entries = fs::read_dir(self.run.stage("multi", "checkpoints")).ok()?;
        let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        paths.find(|path| path.to_string_lossy().contains("/.draft-") && !path.join("manifest.json").exists())
    }
}

#[test]
fn whatever_slurm_and_its_nodes_do_the_weights_are_those_of_an_undisturbed_run() {
    let place = Workplace::new();
    let name = "whatever_slurm_and_its_nodes_do_the_weights_are_those_of_an_undisturbed_run";
    let Some(lab) = Lab::of_slurm(name, &place.at("lab"), NODES) else { return };
    place.recipe("recipe.yaml", &recipe());
    let cluster = Cluster { lab, place };
    let undisturbed = cluster.undisturbed();
    thread::scope(|scope| {
        scope.spawn(|| two_time_limits_in_mid_epoch(&cluster, &undisturbed));
        scope.spawn(|| {
            in_peace_and_cancelled(&cluster, &undisturbed);
            preempted(&cluster, &undisturbed);
        });
        a_power_failure(&cluster, &undisturbed);
        an_orphan(&cluster, &undisturbed);
    });
}

/// Slurm's own signal before the end of its time limit, twice.
fn two_time_limits_in_mid_epoch(cluster: &Cluster, undisturbed: &Run) {
    let job = cluster.submit("limited", NOT_LIMITED, &["-o", "slurm.time=1", "-o", "slurm.lead=15"]);
    job.wait_for_training(0);
    let said = job.status();
    assert!(said.contains(&format!("job {}: running on n[1-2] since ", job.id)), "{said}");
    cluster.bam(&submission(&job.run)).finish().expect_error(1, &["of this run", "is still RUNNING"]);
    assert_eq!(cluster.lab.processes("n2", "bam-worker").len(), 1);
    for restarts in 1..=2 {
        // Slurm looks at time limits every 30 s, so that the signal comes 15 to 45 s after the start. A fast machine would
        // be done by then: the job stands still until its batch script has passed the signal on.
        let bam = job.process("bam");
        let frozen = freeze(bam.pid);
        job.wait("the time limit", || bam.has_pending(Signal::SIGUSR1));
        frozen.iter().for_each(|process| process.signal(Signal::SIGCONT));
        let since = Instant::now();
        job.wait("the queue", || job.restarts() == restarts);
        let stopped = since.elapsed();
        let again = job.wait_for_training(restarts);
        report("time limit", stopped, again);
        let said = job.status();
        assert!(said.contains("put into the queue again"), "{said}");
    }
    // On a slow machine, its time is up once more.
    job.finish(2.., undisturbed);
}

/// With --nocapture, what docs/reliability.md says of times.
fn report(trouble: &str, queued: Duration, again: Duration) {
    let (queued, again) = (queued.as_secs_f64(), again.as_secs_f64());
    println!("{trouble}: back in the queue after {queued:.1} s, training again {again:.1} s later");
}

fn in_peace_and_cancelled(cluster: &Cluster, undisturbed: &Run) {
    let run = cluster.run("peace");
    let words = submission(&run).into_iter().chain(["-o", "slurm.memory=80T"]);
    cluster.bam(&words.collect::<Vec<_>>()).finish().expect_error(1, &["sbatch --test-only"]);
    assert!(!run.path().exists());
    let job = cluster.submit("peace", NOT_PREEMPTED, &[]);
    job.wait_for_training(0);
    let done = cluster.bam(&["cancel", run.path().to_str().unwrap()]).expect(0);
    assert!(done.stdout.contains("told to stop"), "{done}");
    wait("its end", || job.known("JobState") == "FAILED");
    let said = job.status();
    assert!(said.contains("FAILED, exit code 75") && said.contains(": cancelled"), "{said}\n{}", job.output());
    // Submitted again, it goes on.
    cluster.submit("peace", NOT_PREEMPTED, &[]).finish(0..=0, undisturbed);
}

fn preempted(cluster: &Cluster, undisturbed: &Run) {
    let job = cluster.submit("preempted", NOT_PREEMPTED, &[]);
    job.wait_for_training(0);
    let exclude = format!("--exclude={NOT_PREEMPTED}");
    let urgent = ["sbatch", "--partition=urgent", "--nodes=2", &exclude, "--output=/dev/null", "--wrap=sleep 1"];
    cluster.lab.on("ctl", &urgent);
    let since = Instant::now();
    job.wait("the queue", || job.restarts() == 1);
    let stopped = since.elapsed();
    let again = job.wait_for_training(1);
    report("preemption", stopped, again);
    job.finish(1..=1, undisturbed);
}

/// The node of the batch script, of bam and of the first rank.
fn a_power_failure(cluster: &Cluster, undisturbed: &Run) {
    let job = cluster.submit("failure", NOT_FAILING, &[]);
    job.wait_for_training(0);
    let host = job.known("BatchHost");
    cluster.lab.run(&["crash", &host]);
    let since = Instant::now();
    job.wait("the queue", || job.restarts() == 1);
    let noticed = since.elapsed();
    cluster.lab.run(&["boot", &host]);
    let again = job.wait_for_training(1);
    report("power failure", noticed, again);
    job.finish(1..=1, undisturbed);
    wait("the node", || cluster.is_idle(&host));
}

/// The node of bam and of the first rank hangs in the middle of a commit and is cut off. When the job has been started
/// again elsewhere, it comes to life again, still cut off: the rank must not commit, and bam must not start anything.
fn an_orphan(cluster: &Cluster, undisturbed: &Run) {
    let job = cluster.submit("orphan", NOT_FAILING, &[]);
    job.wait_for_training(0);
    let host = job.known("BatchHost");
    let (bam, rank) = (job.process("bam"), job.process("bam-worker"));
    let since = Instant::now();
    loop {
        assert!(since.elapsed() < DEADLINE && rank.is_alive(), "no commit was met half-way:\n{}", job.output());
        if job.half_written().is_some() {
            rank.signal(Signal::SIGSTOP);
            // It may have got on until it heard of the signal.
            thread::sleep(Duration::from_millis(20));
            if job.half_written().is_some() {
                break;
            }
            rank.signal(Signal::SIGCONT);
        }
        thread::sleep(Duration::from_micros(200));
    }
    cluster.lab.run(&["cut", &host]);
    let frozen = freeze(bam.pid);
    let since = Instant::now();
    job.wait("the queue", || job.restarts() == 1);
    let noticed = since.elapsed();
    let again = job.wait_for_training(1);
    report("cut off", noticed, again);
    rank.signal(Signal::SIGCONT);
    let since = Instant::now();
    let fenced = "error: this process belongs to start ";
    wait("the orphan's last words", || job.run.log("multi").contains(fenced));
    println!("cut off: the orphan's commit was refused {:.2} s after it came to life", since.elapsed().as_secs_f64());
    let log = job.run.log("multi");
    assert!(log.lines().any(|line| line.starts_with("rank 0 | ") && line.contains(fenced)), "{log}");
    frozen.iter().for_each(|process| process.signal(Signal::SIGCONT));
    wait("the orphan's end", || !bam.is_alive());
    assert!(job.output().contains("has taken the run over"), "{}", job.output());
    job.finish(1..=1, undisturbed);
    cluster.lab.run(&["heal", &host]);
    wait("the end of all orphans", || cluster.lab.processes(&host, "bam-worker").is_empty());
}
