//! Speed and memory of `bam` against its peer, what people use today: Hugging Face's BERT under PyTorch's DDP
//! (`tests/bench/peer.py`). Two processes each, on the same encoder with random weights and the same prepared text, in
//! turns within one run (A, B, A, B, …), since machines are shared and noisy; what counts are the ratios.
//!
//!     make bench                                                   # sets the peer's Python up; 5 GB
//!     cargo bench -p bam-tests --locked --bench peer               # some twelve minutes on two idle cores
//!     BAM_BENCH_SHAPES=minilm,logits cargo bench -p bam-tests --locked --bench peer
//!
//! `BAM_BENCH_SHAPES` chooses among `minilm`, `base` and `large` (training steps of these shapes) and `logits` (teachers
//! of MiniLM's shape over training data). `BAM_BENCH_GLUE` is a directory in GLUE's layout; without it,
//! `../shared/data/glue` is taken if it is there, else the demo's text. `BAM_PEER_PYTHON` names a Python that has what
//! `tests/bench/requirements.txt` names, if it is not to be `.venv-peer`. Both are absolute paths. With `BAM_BENCH_GPUS=N` both
//! sides train on N GPUs, in bfloat16 and with batches of 128 (`make bench-gpu`). Figures go to `target/bench/peer.json`, too. BERT-Large needs 20 GB of memory, and 1.4 GB below `target/bench`, while it runs.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot be set up has failed: there is nobody to tell")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use std::{env, fs};

use bam_tests::{
    Bam, Finished, FirstSteps, MINILM, Machine, Run, Shape, Text, Training, Trial, bench_directory, median,
    peak_of_ranks_mib, repository, say_skipped, workshop, write_random,
};
use serde_json::{Value, json};

const TURNS: usize = 3;
const PHASES: [&str; 6] = ["data", "forward", "backward", "waiting", "reduction", "optimizer"];
const LONGEST: Duration = Duration::from_secs(900);
/// Rare enough to cost the ranks nothing.
const LOOK_EVERY: Duration = Duration::from_millis(250);

const MEMORY_TARGET: f64 = 1.0;
const LOGITS_TARGET: f64 = 4.0;

const LOGITS: &str = "logits";
/// Examples of each task that teachers are asked about, and so few that nothing but the stage's start takes time.
const MANY: usize = 1000;
const FEW: usize = 8;
/// Batches of each process of the peer, and examples of each. They are all alike: padding makes them so.
const PEER_BATCHES: usize = 6;
const PEER_BATCH: usize = 32;

fn main() -> ExitCode {
    let Some(python) = python() else { return ExitCode::SUCCESS };
    let (chosen, machine, text) = (chosen(), Machine::find(), Text::find());
    let (processes, device) = (machine.processes(), machine.device());
    println!(
        "bam against Hugging Face + DDP, {processes} process(es) on {device} ({TURNS} turns, medians), on {}",
        text.name
    );
    let trained = machine.trainings().iter().filter(|training| chosen.iter().any(|key| key == training.key));
    let mut comparisons: Vec<Comparison> = trained.map(|training| train(training, &text, &python)).collect();
    if chosen.iter().any(|key| key == LOGITS) {
        comparisons.push(logits(&text, &python));
    }
    write_figures(&text, &comparisons);
    ExitCode::from(u8::from(!comparisons.iter().all(Comparison::is_within)))
}

/// The peer's Python, if it is there; else says what is missing.
fn python() -> Option<PathBuf> {
    let path = env::var_os("BAM_PEER_PYTHON").map_or_else(|| repository().join(".venv-peer/bin/python"), PathBuf::from);
    if path.is_file() {
        return Some(path);
    }
    let why = format!("there is no {}; setup/setup.sh python-peer makes .venv-peer, 5 GB", path.display());
    say_skipped("bam against its peer", &why);
    None
}

/// The keys of what is to be compared.
fn chosen() -> Vec<String> {
    let all: Vec<&str> = Machine::find().trainings().iter().map(|training| training.key).chain([LOGITS]).collect();
    let Ok(wish) = env::var("BAM_BENCH_SHAPES") else { return all.iter().map(|&key| key.to_owned()).collect() };
    let keys: Vec<String> = wish.split(',').map(|key| key.trim().to_owned()).collect();
    for key in &keys {
        assert!(all.contains(&key.as_str()), "BAM_BENCH_SHAPES has '{key}'; known are {}", all.join(", "));
    }
    keys
}

/// What one side did in one turn.
struct Turn {
    /// Wall time of each step, or of all at once.
    seconds: Vec<f64>,
    examples: f64,
    /// Padding not counted.
    tokens: f64,
    /// Largest memory that a process had in use.
    peak_mib: f64,
    /// For those who read the figures.
    more: Value,
}

impl Turn {
    fn time(&self) -> f64 {
        self.seconds.iter().sum()
    }

    fn json(&self) -> Value {
        let Turn { seconds, examples, tokens, peak_mib, more } = self;
        json!({ "seconds": seconds, "examples": examples, "tokens": tokens, "peak_mib": peak_mib, "more": more })
    }
}

/// What speed is counted in.
#[derive(Clone, Copy)]
enum Unit {
    /// Where the two sides compute other examples of the same kind: which lengths were drawn then matters little.
    Tokens,
    /// Where padding makes all examples equal for one side.
    Examples,
}

impl Unit {
    fn a_second(self, turn: &Turn) -> f64 {
        let done = match self {
            Unit::Tokens => turn.tokens,
            Unit::Examples => turn.examples,
        };
        done / turn.time()
    }
}

/// Both sides' turns, and what is wanted.
struct Comparison {
    key: &'static str,
    name: String,
    unit: Unit,
    target: f64,
    bam: Vec<Turn>,
    peer: Vec<Turn>,
}

impl Comparison {
    /// bam's speed as a multiple of the peer's: of medians, and the lowest and highest of all turns.
    fn speed(&self) -> [f64; 3] {
        let speeds = |turns: &[Turn]| turns.iter().map(|turn| self.unit.a_second(turn)).collect::<Vec<f64>>();
        let (bam, peer) = (speeds(&self.bam), speeds(&self.peer));
        // Turn by turn, so that a slow minute of the machine weighs on both sides.
        let ratios = bam.iter().zip(&peer).map(|(bam, peer)| bam / peer);
        let (lowest, highest) = ratios.fold((f64::MAX, 0.0f64), |(l, h), ratio| (l.min(ratio), h.max(ratio)));
        [median(&bam) / median(&peer), lowest, highest]
    }

    fn memory(&self) -> f64 {
        peak(&self.bam) / peak(&self.peer)
    }

    fn is_within(&self) -> bool {
        self.speed()[0] >= self.target && self.memory() <= MEMORY_TARGET
    }

    fn print(&self) {
        println!("\n{}", self.name);
        for (side, turns) in [("bam", &self.bam), ("peer", &self.peer)] {
            let rate = |unit: Unit| median(&turns.iter().map(|turn| unit.a_second(turn)).collect::<Vec<f64>>());
            let tokens = match self.unit {
                Unit::Tokens => format!("{:>9.0} tokens/s", rate(Unit::Tokens)),
                Unit::Examples => String::new(),
            };
            println!(
                "{side:<8}{:>9.1} samples/s{tokens:>18}   at most {:.0} MiB a rank",
                rate(Unit::Examples),
                peak(turns)
            );
        }
        if let Some(turn) = self.bam.last().filter(|turn| turn.more.is_object()) {
            let share = |name: &str| 100.0 * turn.more["phases"][name].as_f64().unwrap() / turn.time();
            let shares: Vec<String> = PHASES.iter().map(|name| format!("{name} {:.1} %", share(name))).collect();
            println!("        MFU {:.1} %; {}", 100.0 * turn.more["utilisation"].as_f64().unwrap(), shares.join(", "));
        }
        let [speed, lowest, highest] = self.speed();
        let verdict = |is_within| if is_within { "within" } else { "MISSES" };
        println!(
            "speed   × {speed:.2} ({lowest:.2} to {highest:.2})   {} its target of {}",
            verdict(speed >= self.target),
            self.target
        );
        let memory = self.memory();
        println!("memory  × {memory:.2}   {} its target of {MEMORY_TARGET}", verdict(memory <= MEMORY_TARGET));
    }

    fn json(&self) -> Value {
        let [speed, lowest, highest] = self.speed();
        let turns = |turns: &[Turn]| turns.iter().map(Turn::json).collect::<Vec<Value>>();
        json!({
            "key": self.key,
            "name": self.name,
            "unit": match self.unit { Unit::Tokens => "tokens", Unit::Examples => "examples" },
            "speed": { "ratio": speed, "lowest": lowest, "highest": highest, "target": self.target },
            "memory": { "ratio": self.memory(), "target": MEMORY_TARGET },
            "is_within": self.is_within(),
            "bam": turns(&self.bam),
            "peer": turns(&self.peer),
        })
    }
}

fn processes() -> String {
    Machine::find().processes().to_string()
}

fn peak(turns: &[Turn]) -> f64 {
    turns.iter().map(|turn| turn.peak_mib).fold(0.0, f64::max)
}

/// Compares training steps.
fn train(training: &Training, text: &Text, python: &Path) -> Comparison {
    let place = workshop();
    let trial = Trial::prepare(training, text, place.path());
    let name = format!("{}, global batch {}", training.name, training.batch);
    let (unit, target) = (Unit::Tokens, training.target);
    let mut comparison = Comparison { key: training.key, name, unit, target, bam: vec![], peer: vec![] };
    for turn in 0..TURNS {
        comparison.bam.push(bam_trains(&trial));
        let batch = training.batch.to_string();
        let seed = turn.to_string();
        let arguments = ["--batch", &batch, "--seed", &seed];
        comparison.peer.push(peer(
            python,
            "train",
            &trial.encoder,
            &trial.run,
            (training.warm_up, training.steps),
            &arguments,
        ));
    }
    comparison.print();
    comparison
}

fn bam_trains(trial: &Trial) -> Turn {
    let FirstSteps { steps, peak_mib } = trial.first_steps(&processes());
    let values = |name: &str| steps.iter().map(|step| step[name].as_f64().unwrap()).collect::<Vec<f64>>();
    let of_device = steps.iter().filter_map(|step| step["device_memory"].as_f64()).reduce(f64::max);
    let phase = |name: &str| steps.iter().map(|step| step["phases"][name].as_f64().unwrap()).sum::<f64>();
    let phases: BTreeMap<&str, f64> = PHASES.iter().map(|name| (*name, phase(name))).collect();
    Turn {
        seconds: values("seconds"),
        examples: values("examples").iter().sum(),
        tokens: values("tokens").iter().sum(),
        peak_mib: of_device.map_or(peak_mib, |bytes| bytes / (1 << 20) as f64),
        more: json!({ "utilisation": median(&values("utilisation")), "phases": phases }),
    }
}

/// The peer at work on the data of `run`.
fn peer(python: &Path, mode: &str, encoder: &Path, run: &Run, (warm_up, steps): (usize, usize), more: &[&str]) -> Turn {
    let (warm_up, steps) = (warm_up.to_string(), steps.to_string());
    let [encoder, data] = [encoder, run.path()].map(|path| path.to_str().unwrap());
    let (processes, device) = (processes(), Machine::find().device());
    let fixed = ["tests/bench/peer.py", mode, "--encoder", encoder, "--run", data, "--processes", &processes];
    let length = ["--warm-up", &warm_up, "--steps", &steps, "--device", device];
    let arguments = fixed.into_iter().chain(length).chain(more.iter().copied());
    let peer = Bam::of_program(python, &repository(), arguments).env("OMP_NUM_THREADS", "1").within(LONGEST);
    reported(&peer.expect(0))
}

/// What the peer's last line says.
fn reported(peer: &Finished) -> Turn {
    let line = peer.stdout.lines().last().unwrap_or_default();
    let report: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in what the peer says: {peer}"));
    let values = |name: &str| {
        let values = report[name].as_array().unwrap();
        values.iter().map(|value| value.as_f64().unwrap()).collect::<Vec<f64>>()
    };
    Turn {
        seconds: values("seconds"),
        examples: values("examples").iter().sum(),
        tokens: values("tokens").iter().sum(),
        peak_mib: values("peak_mib").into_iter().fold(0.0, f64::max),
        more: json!({ "versions": report["versions"] }),
    }
}

/// Compares teachers that are asked about training data.
fn logits(text: &Text, python: &Path) -> Comparison {
    let place = workshop();
    let encoder = write_random(&MINILM, &place.path().join("encoder"));
    let changes = changes_for_teachers(text, place.path(), &encoder);
    let [many, few] = [MANY, FEW].map(|examples| {
        let run = Run::new(place.path().join(format!("run-{examples}")));
        let changes = [&changes[..], &[format!("data.max_train_examples={examples}")]].concat();
        text.bam(&run, &processes(), "prepare", &changes).expect(0);
        (run, changes)
    });
    let name = "Teacher logits, MiniLM-L6, the peer padded to 128".to_owned();
    let (unit, target) = (Unit::Examples, LOGITS_TARGET);
    let mut comparison = Comparison { key: LOGITS, name, unit, target, bam: vec![], peer: vec![] };
    let batch = PEER_BATCH.to_string();
    for _ in 0..TURNS {
        let [many_asked, few_asked] = [&many, &few].map(|(run, changes)| bam_asks(text, run, changes));
        comparison.bam.push(difference(&many_asked, &few_asked));
        comparison.peer.push(peer(python, "logits", &encoder, &many.0, (1, PEER_BATCHES), &["--batch", &batch]));
    }
    comparison.print();
    comparison
}

/// Writes a teacher for each number of outputs; returns the changes to the recipe that name them.
fn changes_for_teachers(text: &Text, place: &Path, encoder: &Path) -> Vec<String> {
    let teacher = |(task, labels): &(&str, &[&str])| {
        let directory = place.join(format!("teacher-{}", labels.len()));
        if !directory.exists() {
            write_random(&Shape { outputs: Some(labels.len()), ..MINILM }, &directory);
        }
        let labels = labels.iter().map(|label| format!("'{label}'")).collect::<Vec<String>>().join(", ");
        format!("distill.teachers.{task}={{ path: {}, labels: [{labels}] }}", directory.display())
    };
    let common = ["mode=single-to-multi".to_owned(), format!("model.path={}", encoder.display())];
    let few_tasks = text.few_tasks.iter().map(|&change| change.to_owned());
    common.into_iter().chain(few_tasks).chain(text.taught.iter().map(teacher)).collect()
}

/// Makes the teachers' logits.
fn bam_asks(text: &Text, run: &Run, changes: &[String]) -> Turn {
    let _ = fs::remove_dir_all(run.stage("logits", ""));
    let running = text.bam(run, &processes(), "logits", changes).start();
    let pid = running.pid();
    let mut peak = 0.0f64;
    running.watch(LOOK_EVERY, || peak = peak.max(peak_of_ranks_mib(pid))).expect(0);
    let seconds = run.json("stages/logits/done.json")["seconds"].as_f64().unwrap();
    Turn { seconds: vec![seconds], examples: asked(run), tokens: f64::NAN, peak_mib: peak, more: Value::Null }
}

/// Examples that teachers were asked about.
fn asked(run: &Run) -> f64 {
    let directories = |path: PathBuf| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let manifests = directories(run.at("logits")).flat_map(directories).map(|task| task.join("manifest.json"));
    let examples = |path: PathBuf| {
        let manifest: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        manifest["examples"].as_f64().unwrap()
    };
    manifests.map(examples).sum()
}

/// What the larger of two jobs did more than the smaller one: without starting programs and loading models.
fn difference(large: &Turn, small: &Turn) -> Turn {
    Turn {
        seconds: vec![large.time() - small.time()],
        examples: large.examples - small.examples,
        tokens: f64::NAN,
        peak_mib: large.peak_mib,
        more: json!({ "seconds_to_start": small.time() }),
    }
}

fn write_figures(text: &Text, comparisons: &[Comparison]) {
    let figures = json!({
        "text": text.name,
        "processes": Machine::find().processes(),
        "device": Machine::find().device(),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "comparisons": comparisons.iter().map(Comparison::json).collect::<Vec<Value>>(),
    });
    let path = bench_directory().join("peer.json");
    fs::write(&path, serde_json::to_vec_pretty(&figures).unwrap()).unwrap();
    println!("\nfigures: {}", path.display());
}
