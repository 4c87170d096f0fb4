//! Trainings of models with random weights on real text, of which benches measure the first steps.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::bam::Bam;
use crate::encoder::{Shape, write_encoder_of};
use crate::measure::peak_of_ranks_mib;
use crate::process_tree::Process;
use crate::programs::repository;
use crate::run::Run;

const LONGEST: Duration = Duration::from_secs(900);
/// Rare enough to cost the ranks nothing.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// all-MiniLM-L6-v2's.
pub const MINILM: Shape =
    Shape { layers: 6, hidden: 384, heads: 12, intermediate: 1536, positions: 512, outputs: None };
/// BERT-Base's.
pub const BASE: Shape = Shape { layers: 12, hidden: 768, heads: 12, intermediate: 3072, positions: 512, outputs: None };
/// BERT-Large's.
pub const LARGE: Shape =
    Shape { layers: 24, hidden: 1024, heads: 16, intermediate: 4096, positions: 512, outputs: None };

/// A training whose first steps are measured.
pub struct Training {
    /// Chooses it.
    pub key: &'static str,
    /// For people.
    pub name: &'static str,
    /// Of the model.
    pub shape: Shape,
    /// Examples of a global batch.
    pub batch: usize,
    /// Steps before those that are measured: the first ones fill caches.
    pub warm_up: usize,
    /// Steps that are measured.
    pub steps: usize,
    /// How many times as fast as the peer it should be.
    pub target: f64,
}

/// Those of the benches.
pub const TRAININGS: [Training; 3] = [
    Training { key: "minilm", name: "MiniLM-L6", shape: MINILM, batch: 32, warm_up: 2, steps: 12, target: 2.5 },
    Training { key: "base", name: "BERT-Base", shape: BASE, batch: 32, warm_up: 1, steps: 3, target: 2.4 },
    Training { key: "large", name: "BERT-Large", shape: LARGE, batch: 8, warm_up: 1, steps: 3, target: 2.4 },
];

/// Those of the benches on GPUs: batches that a GPU is not idle with.
const TRAININGS_ON_GPUS: [Training; 3] = [
    Training { key: "minilm", name: "MiniLM-L6", shape: MINILM, batch: 128, warm_up: 10, steps: 60, target: 2.5 },
    Training { key: "base", name: "BERT-Base", shape: BASE, batch: 128, warm_up: 10, steps: 40, target: 2.5 },
    Training { key: "large", name: "BERT-Large", shape: LARGE, batch: 128, warm_up: 10, steps: 30, target: 2.5 },
];

/// What benches measure on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Machine {
    /// So many processes on CPUs, in float32.
    Cpus(usize),
    /// So many GPUs, one a process, in bfloat16.
    Gpus(usize),
}

impl Machine {
    /// `BAM_BENCH_GPUS` GPUs if that is set, else two processes on CPUs.
    pub fn find() -> Machine {
        match env::var("BAM_BENCH_GPUS") {
            Ok(gpus) => Machine::Gpus(gpus.parse().expect("BAM_BENCH_GPUS is a number of GPUs")),
            Err(_) => Machine::Cpus(2),
        }
    }

    /// Ranks.
    pub fn processes(&self) -> usize {
        match self {
            Machine::Cpus(n) | Machine::Gpus(n) => *n,
        }
    }

    /// What is trained on it.
    pub fn trainings(&self) -> &'static [Training] {
        match self {
            Machine::Cpus(_) => &TRAININGS,
            Machine::Gpus(_) => &TRAININGS_ON_GPUS,
        }
    }

    /// What a recipe says of it, and the peer's command line.
    pub fn device(&self) -> &'static str {
        match self {
            Machine::Cpus(_) => "cpu",
            Machine::Gpus(_) => "cuda",
        }
    }
}

/// The text of a bench, as bam's recipes and arguments.
pub struct Text {
    /// For people.
    pub name: String,
    recipe: &'static str,
    arguments: Vec<String>,
    /// More arguments where teachers are asked.
    pub few_tasks: &'static [&'static str],
    /// Tasks whose teachers are asked, with the outputs of their heads.
    pub taught: &'static [(&'static str, &'static [&'static str])],
}

impl Text {
    /// GLUE's four small tasks where they are (`BAM_BENCH_GLUE`, `../shared/data/glue`), else the demo's.
    pub fn find() -> Text {
        let named = env::var_os("BAM_BENCH_GLUE").map(PathBuf::from);
        let beside = repository().join("../shared/data/glue");
        match named.or_else(|| beside.is_dir().then_some(beside)) {
            Some(glue) => Text::of_glue(&fs::canonicalize(glue).unwrap()),
            None => Text::of_the_demo(),
        }
    }

    fn of_glue(glue: &Path) -> Text {
        Text {
            name: "CoLA, MRPC, STS-B and RTE of GLUE".to_owned(),
            recipe: "configs/glue-small.yaml",
            arguments: vec![format!("data.glue={}", glue.display())],
            // As many examples of each of these are as long, on the mean, as all of the four tasks: 31 tokens.
            few_tasks: &["data.tasks=[cola, mrpc, stsb]"],
            taught: &[("cola", &["0", "1"]), ("mrpc", &["0", "1"]), ("stsb", &["score"])],
        }
    }

    fn of_the_demo() -> Text {
        let whole = ["data.max_train_examples=null", "data.max_dev_examples=null", "model.max_length=128"];
        Text {
            name: "the demo's text".to_owned(),
            recipe: "configs/demo.yaml",
            arguments: whole.iter().chain(&["model.layers=null"]).map(|&change| change.to_owned()).collect(),
            few_tasks: &[],
            taught: &[
                ("movies", &["negative", "positive"]),
                ("products", &["negative", "neutral", "positive"]),
                ("editorials", &["score"]),
                ("tweets", &["score"]),
            ],
        }
    }

    /// `bam run` of `stages` by so many ranks, with these changes to the recipe.
    pub fn bam(&self, run: &Run, processes: &str, stages: &str, changes: &[String]) -> Bam {
        let device = format!("cluster.device={}", Machine::find().device());
        let place = ["--run-dir", run.path().to_str().unwrap(), "-o", &device];
        let fixed = ["run", self.recipe, "-n", processes, "--stages", stages].into_iter().chain(place);
        let changes = self.arguments.iter().chain(changes).flat_map(|change| ["-o", change.as_str()]);
        Bam::new(&repository(), fixed.chain(changes)).within(LONGEST)
    }
}

/// Where encoders and runs are while they are needed.
pub fn workshop() -> tempfile::TempDir {
    tempfile::tempdir_in(bench_directory()).unwrap()
}

/// `target/bench`, of `target/PROFILE/deps/BENCH`.
pub fn bench_directory() -> PathBuf {
    let own = env::current_exe().unwrap();
    let directory = own.ancestors().nth(3).unwrap().join("bench");
    fs::create_dir_all(&directory).unwrap();
    directory
}

/// Writes an encoder over the vocabulary of the demo's, which is BERT's own.
pub fn write_random(shape: &Shape, directory: &Path) -> PathBuf {
    let vocabulary = fs::read_to_string(repository().join("assets/all-MiniLM-L6-v2/vocab.txt")).unwrap();
    write_encoder_of(shape, &vocabulary, directory);
    directory.to_owned()
}

/// A training that is ready to begin, any number of times.
pub struct Trial<'a> {
    training: &'a Training,
    text: &'a Text,
    /// Its encoder's directory.
    pub encoder: PathBuf,
    /// Its run, whose data are prepared.
    pub run: Run,
    changes: Vec<String>,
}

/// What came of the beginning of a training.
pub struct FirstSteps {
    /// The metrics of the steps that are measured.
    pub steps: Vec<Value>,
    /// Largest memory that a rank had in use.
    pub peak_mib: f64,
}

impl Trial<'_> {
    /// Makes the encoder and prepares the data in `directory`.
    pub fn prepare<'a>(training: &'a Training, text: &'a Text, directory: &Path) -> Trial<'a> {
        let encoder = write_random(&training.shape, &directory.join("encoder"));
        let run = Run::new(directory.join("run"));
        let changes = vec![
            "mode=multi".to_owned(),
            format!("model.path={}", encoder.display()),
            format!("train.multi.batch_size={}", training.batch),
            "checkpoint.every_steps=1000000".to_owned(),
        ];
        text.bam(&run, &Machine::find().processes().to_string(), "prepare", &changes).expect(0);
        Trial { training, text, encoder, run, changes }
    }

    /// Begins the training and breaks it off after the steps that are measured.
    pub fn first_steps(&self, processes: &str) -> FirstSteps {
        let Trial { training, run, .. } = self;
        // A turn before left its steps.
        let _ = fs::remove_dir_all(run.stage("multi", ""));
        // Where ranks that are broken off leave their shared memory: in memory, if the machine has such a place.
        let shared = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let bam = self.text.bam(run, processes, "multi", &self.changes);
        let running = bam.env("OMPI_MCA_btl_vader_backing_directory", shared.path()).start();
        let pid = running.pid();
        let (mut peak_mib, mut done) = (0.0f64, false);
        let ended = running.watch(LOOK_EVERY, || {
            done = done || steps(run).len() >= training.warm_up + training.steps;
            if done {
                // The first time asks for a checkpoint, the second puts an end to it.
                Process::of(pid).iter().for_each(|bam| bam.signal(Signal::SIGINT));
            } else {
                peak_mib = peak_mib.max(peak_of_ranks_mib(pid));
            }
        });
        assert!(done, "the training ended by itself: {ended}");
        FirstSteps { steps: steps(run)[training.warm_up..][..training.steps].to_vec(), peak_mib }
    }
}

/// The steps that a training has done so far.
fn steps(run: &Run) -> Vec<Value> {
    let text = fs::read_to_string(run.stage("multi", "metrics.jsonl")).unwrap_or_default();
    // The last line may be half written.
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
