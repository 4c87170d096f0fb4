//! The typed shape of a recipe, with every default. Field docs are what a user of a recipe needs to know.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::given_teacher::GivenTeachers;
use super::per_task::PerTask;
use super::slurm::SlurmSection;
use super::task_entry::TaskEntry;
use super::train::TrainSection;
use crate::digest;
use crate::task::{SUBMISSION, Selection, Task, glue_task};

/// A whole recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Names the run directory `runs/NAME`.
    pub name: String,
    /// Who teaches whom.
    #[serde(default)]
    pub mode: Mode,
    /// Everything random follows from it.
    #[serde(default = "one")]
    pub seed: u64,
    /// How often everything is trained, each time with the next seed; results are medians.
    #[serde(default = "one")]
    pub trials: u64,
    /// What leaves every bit of the result as it is: stops and resumes with the same number of processes (`processes`), or
    /// with another number, too (`world-size`).
    #[serde(default)]
    pub reproducible: Reproducible,
    /// With `reproducible: world-size`: into how many parts a global batch is cut; at most so many processes can share it.
    /// Each part is differentiated on its own, so that more of them make smaller and slower computations, and a rank with
    /// n parts needs memory for some log2 n more gradients. Another number gives other bits.
    #[serde(default = "default_virtual_shards")]
    pub virtual_shards: usize,
    /// The encoder to start from.
    pub model: ModelSection,
    /// The tasks and where their examples are.
    pub data: DataSection,
    /// Epochs, batches, rates.
    #[serde(default)]
    pub train: TrainSection,
    /// How the student's targets are mixed.
    #[serde(default)]
    pub distill: Distill,
    /// How often each task is drawn.
    #[serde(default)]
    pub sampling: Sampling,
    /// Which splits the last models are asked about at the end: `test` (with GLUE's AX), `dev`, `train`.
    #[serde(default)]
    pub predict: Vec<PredictedSplit>,
    /// When and how many.
    #[serde(default)]
    pub checkpoint: CheckpointSection,
    /// How the work is spread, and what computes it.
    #[serde(default)]
    pub cluster: ClusterSection,
    /// What `bam submit` asks Slurm for.
    #[serde(default)]
    pub slurm: SlurmSection,
}

/// What leaves every bit of the result as it is, on machines of one kind, with the same `cluster.threads`.
/// Anything else leaves the mathematics as it is, dropout masks included, and changes rounding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Reproducible {
    /// Stops and resumes with the same number of processes.
    #[default]
    Processes,
    /// Any number of processes, also another one after a stop: the parts of a batch (`virtual_shards`) and the order in
    /// which their gradients are added up are the same for all.
    WorldSize,
}

/// A split, or a group of splits, to predict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PredictedSplit {
    /// What was learnt from.
    Train,
    /// What models were judged on; MNLI's mismatched dev split, too.
    Dev,
    /// Test sets, which have no gold labels.
    Test,
}

impl PredictedSplit {
    /// As in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            PredictedSplit::Train => "train",
            PredictedSplit::Dev => "dev",
            PredictedSplit::Test => "test",
        }
    }
}

/// Who teaches whom (section 3 of the BAM paper).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// One model per task, no teachers.
    Single,
    /// One model of all tasks, no teachers.
    Multi,
    /// One model per task, each taught by another one of the same task.
    SingleToSingle,
    /// One model of all tasks, taught by another one of all tasks.
    MultiToMulti,
    /// One model of all tasks, taught by one model per task: BAM proper.
    #[default]
    SingleToMulti,
}

/// How many tasks a model learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breadth {
    /// One; there is a model for each task.
    Single,
    /// All of them.
    Multi,
}

impl Mode {
    /// The models whose predictions the last ones learn from; none: gold labels alone.
    pub fn teachers(self) -> Option<Breadth> {
        match self {
            Mode::Single | Mode::Multi => None,
            Mode::SingleToSingle | Mode::SingleToMulti => Some(Breadth::Single),
            Mode::MultiToMulti => Some(Breadth::Multi),
        }
    }

    /// The last models that are trained from the pretrained encoder.
    pub fn students(self) -> Breadth {
        match self {
            Mode::Single | Mode::SingleToSingle => Breadth::Single,
            Mode::Multi | Mode::MultiToMulti | Mode::SingleToMulti => Breadth::Multi,
        }
    }

    /// Whether models of this breadth are trained at all.
    pub fn trains(self, breadth: Breadth) -> bool {
        self.teachers() == Some(breadth) || self.students() == breadth
    }

    /// As the paper writes it.
    pub fn title(self) -> &'static str {
        match self {
            Mode::Single => "Single",
            Mode::Multi => "Multi",
            Mode::SingleToSingle => "Single→Single",
            Mode::MultiToMulti => "Multi→Multi",
            Mode::SingleToMulti => "Single→Multi",
        }
    }
}

/// The encoder to start from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// A Hugging Face directory (config.json, model.safetensors, and vocab.txt or tokenizer.json), or a model's name on Hugging
    /// Face's hub, such as `bert-base-uncased`, that `bam fetch model` has put into the hub's cache. A directory beside the
    /// recipe comes first.
    pub path: PathBuf,
    /// Most tokens of an input, [CLS] and [SEP] included. These two are added to texts and never read in them: a `[SEP]` that
    /// somebody wrote in an example is text like any other, where Hugging Face's tokenizers would take it for a separator.
    #[serde(default = "default_max_length")]
    pub max_length: usize,
    /// How a pair that is too long is cut.
    #[serde(default)]
    pub truncation: Truncation,
    /// Use only this many of the encoder's first layers.
    #[serde(default)]
    pub layers: Option<usize>,
    /// Dropout on hidden states, attention and pooled output. Default: what the encoder's config.json says.
    #[serde(default)]
    pub dropout: Option<f64>,
    /// What becomes of a regression head's output before it is compared with a score on the 0–1 scale.
    #[serde(default)]
    pub regression_output: RegressionOutput,
}

/// How a pair of texts that is too long is cut. The two differ by one token, and only where both texts are cut and an odd
/// number of tokens is left for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Truncation {
    /// As Hugging Face's fast tokenizers do it: where both are cut, the text that was longer (on a tie the second) keeps
    /// one token more than the other.
    #[default]
    HuggingFace,
    /// As BERT's own code does it: token by token the longer text loses its last, on a tie the second.
    Bert,
}

/// What becomes of a regression head's output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RegressionOutput {
    /// It passes a sigmoid.
    #[default]
    Sigmoid,
    /// Nothing, as in the reference implementation.
    Linear,
}

/// The tasks and where their examples are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// Directory with GLUE's own folders (CoLA, SST-2, …); needed when a GLUE task is named.
    #[serde(default)]
    pub glue: Option<PathBuf>,
    /// GLUE tasks by name, and tasks of one's own.
    pub tasks: Vec<TaskEntry>,
    /// Train on a seeded sample of at most this many examples of each task.
    #[serde(default)]
    pub max_train_examples: Option<usize>,
    /// Judge on a seeded sample of at most this many examples of each task.
    #[serde(default)]
    pub max_dev_examples: Option<usize>,
    /// Train on a copy of each pair with its two texts swapped, too, where the task has no order (MRPC, STS-B, and tasks
    /// of one's own that say `unordered: true`). The reference implementation does; the paper's sizes are without.
    #[serde(default)]
    pub double_unordered: bool,
}

impl DataSection {
    /// Which of a task's examples are used.
    pub fn selection(&self) -> Selection {
        Selection {
            max_train: self.max_train_examples,
            max_dev: self.max_dev_examples,
            double_unordered: self.double_unordered,
        }
    }
}

/// How the student's targets are mixed from gold labels and teachers' predictions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Distill {
    /// How λ, the weight of the gold label, moves.
    pub annealing: Annealing,
    /// The λ of `annealing: constant`.
    #[serde(rename = "lambda")]
    pub constant: Option<f64>,
    /// What teachers' logits are divided by before they become probabilities; above 1 they are less sure. 1 in BAM.
    pub temperature: f64,
    /// How many teachers are trained for the same task, each with another seed. The student learns from the mean of their
    /// predictions. 1 in BAM.
    pub ensemble: usize,
    /// Teachers that are there already and are not trained, by task; several of one task are an ensemble.
    pub teachers: BTreeMap<String, GivenTeachers>,
    /// Whether all trials learn from the teachers of the first.
    pub share_teachers: bool,
}

impl Default for Distill {
    fn default() -> Self {
        Distill {
            annealing: Annealing::Linear,
            constant: None,
            temperature: 1.0,
            ensemble: 1,
            teachers: BTreeMap::new(),
            share_teachers: false,
        }
    }
}

/// How λ moves over training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Annealing {
    /// From 0 to 1 (teacher annealing).
    Linear,
    /// It stays at `lambda`.
    Constant,
    /// No mixing: gold labels alone, λ = 1 throughout. Teachers are trained, and not heard.
    None,
}

/// How often each task is drawn, and what its losses weigh.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// By what rule.
    pub method: SamplingMethod,
    /// 0.75 in BAM; 1 is proportional to size, 0 draws all tasks alike, below 0 small ones more often than large ones.
    /// `multiples` takes 0 to 1; `uniform` needs none.
    pub exponent: f64,
    /// What the losses of a task's examples are multiplied with in models of several tasks, on top of the weights of
    /// `multiples`; 1 for tasks that are not named, as for all in BAM. A regression's squared errors are small beside
    /// cross-entropies.
    pub loss_weights: BTreeMap<String, f64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { method: SamplingMethod::Proportional, exponent: 0.75, loss_weights: BTreeMap::new() }
    }
}

/// By what rule tasks are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SamplingMethod {
    /// The task of each example at random, p(τ) ∝ |D_τ|^exponent.
    Proportional,
    /// As the reference implementation: each task a whole number of times an epoch, next to |D_τ|^exponent, and its
    /// losses weighted by what the rounding left.
    Multiples,
    /// The task of each example at random, all alike.
    Uniform,
}

/// Checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSection {
    /// One every so many optimizer steps, and one at the end.
    pub every_steps: u64,
    /// How many of a stage are kept.
    pub keep: usize,
    /// Whether training goes on while a checkpoint is written; it takes the first rank as
    /// much memory again as parameters and moments.
    pub asynchronous: bool,
    /// Seconds between the scheduler's signal that time is up and the end (Slurm: `--signal=USR1@120`), if there is one;
    /// bam warns if a step and a checkpoint take longer.
    pub lead: Option<u64>,
}

impl Default for CheckpointSection {
    fn default() -> Self {
        CheckpointSection { every_steps: 500, keep: 3, asynchronous: true, lead: None }
    }
}

/// How the work is spread over processes. Nothing in here changes the mathematics; `precision` and `reduce_precision` change
/// rounding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterSection {
    /// How many ranks; `-n` says otherwise. Default: in a batch job as many as it has tasks, else 1.
    pub processes: usize,
    /// How many of them train a model of one task, so that several such models are trained side by side, the longest
    /// first: a number, or one for each task (`{ mnli: 16, rte: 1, default: 4 }`); null: as many as have four examples of a
    /// batch each.
    pub single_processes: Option<PerTask<usize>>,
    /// The hosts to start ranks on, each as `mpirun --host` takes it (`n1`, or `n1:4` for four ranks); none: this host, or
    /// those of the batch job that bam runs in.
    pub hosts: Vec<String>,
    /// What starts the ranks: `mpirun`; `srun`, in a job of Slurm; or, with `auto`, mpirun where it works, else srun.
    pub launcher: Launcher,
    /// Seconds after which a collective is given up, and a rank that does not get on.
    pub deadline: u64,
    /// How often a stage that failed is started again from its last checkpoint, without a new checkpoint in between.
    pub max_restarts: usize,
    /// Threads that libtorch uses in each rank.
    pub threads: usize,
    /// What ranks compute on: with `auto` GPUs, one a rank, where there are any, and else CPUs.
    pub device: DeviceKind,
    /// In which numbers models are trained and run; `auto`: bf16 on GPUs that multiply it fast, else fp32.
    pub precision: Precision,
    /// In which numbers GPUs add up the gradients of all ranks; bf16 halves what is sent.
    pub reduce_precision: ReducePrecision,
    /// Whether more ranks than one may compute on the same GPU; gradients then go through the hosts' memory.
    pub share_gpus: bool,
    /// Of so many steps after each start of a training, `stages/STAGE/trace.json` shows what every rank did when, for
    /// <https://ui.perfetto.dev> and `chrome://tracing`; 0: there is none.
    pub trace_steps: u64,
    /// More arguments for `mpirun`.
    pub mpirun_args: Vec<String>,
    /// More arguments for `srun`.
    pub srun_args: Vec<String>,
}

/// What starts the ranks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Launcher {
    /// `mpirun`; in a job of Slurm on whose nodes it cannot start anything, `srun`.
    #[default]
    Auto,
    /// Open MPI's own.
    Mpirun,
    /// Slurm's, with PMIx.
    Srun,
}

/// What ranks compute on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// GPUs where there are any, else CPUs.
    #[default]
    Auto,
    /// The processor's cores.
    Cpu,
    /// NVIDIA's GPUs, one a rank.
    Cuda,
}

/// In which numbers models are trained and run. Parameters, moments, gradients, LayerNorm's sums, softmax and losses are float32
/// in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bf16 on GPUs that multiply it fast (compute capability 8.0 and later), else fp32.
    #[default]
    Auto,
    /// float32 throughout.
    Fp32,
    /// float32, whose products GPUs compute with inputs rounded to 10 bits.
    Tf32,
    /// Products and what lies between them in bfloat16.
    Bf16,
}

/// In which numbers gradients are added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ReducePrecision {
    /// float32.
    #[default]
    Fp32,
    /// bfloat16.
    Bf16,
}

impl Default for ClusterSection {
    fn default() -> Self {
        ClusterSection {
            processes: 1,
            single_processes: None,
            hosts: vec![],
            launcher: Launcher::Auto,
            deadline: 300,
            max_restarts: 3,
            threads: 1,
            device: DeviceKind::Auto,
            precision: Precision::Auto,
            reduce_precision: ReducePrecision::Fp32,
            share_gpus: false,
            trace_steps: 0,
            mpirun_args: vec![],
            srun_args: vec![],
        }
    }
}

impl Recipe {
    /// The tasks in full, in the order of the recipe.
    pub fn tasks(&self) -> Vec<Task> {
        let glue = self.data.glue.clone().unwrap_or_default();
        let resolve = |entry: &TaskEntry| match entry {
            TaskEntry::Glue(name) => glue_task(name, &glue),
            TaskEntry::Own(own) => Some(own.resolve()),
        };
        self.data.tasks.iter().filter_map(resolve).collect()
    }

    /// Whether the task of that name is GLUE's, and not one of the recipe's own.
    pub fn is_glue(&self, task: &str) -> bool {
        self.data.tasks.iter().any(|entry| matches!(entry, TaskEntry::Glue(name) if name == task))
    }

    /// Whether a task of the recipe's own has the name of one whose answers GLUE's server takes.
    pub fn is_namesake(&self, task: &str) -> bool {
        SUBMISSION.iter().any(|file| file.task == task) && !self.is_glue(task)
    }

    /// Hash of all that decides what is learnt, in which numbers.
    pub fn identity(&self) -> String {
        digest::of_json(&self.identifying())
    }

    /// The recipe with defaults for all that is no part of its [identity](Self::identity): where it runs, how often it saves, how
    /// many trials are made of it and what is predicted in the end.
    pub fn identifying(&self) -> Recipe {
        Recipe {
            trials: 1,
            predict: vec![],
            checkpoint: CheckpointSection::default(),
            cluster: ClusterSection {
                precision: self.cluster.precision,
                reduce_precision: self.cluster.reduce_precision,
                ..ClusterSection::default()
            },
            slurm: SlurmSection::default(),
            ..self.clone()
        }
    }
}

fn one() -> u64 {
    1
}

fn default_virtual_shards() -> usize {
    8
}

fn default_max_length() -> usize {
    128
}
