//! Where everything is in a run directory: the one place that knows the names.

use std::path::{Path, PathBuf};

/// A run directory, `runs/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// The run directory at `path`, which need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        RunDir(path.into())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The recipe, completed with defaults.
    pub fn recipe(&self) -> PathBuf {
        self.0.join("config.yaml")
    }

    /// The plan derived from it.
    pub fn plan(&self) -> PathBuf {
        self.0.join("plan.json")
    }

    /// Held by the one launcher that works here.
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// How a stage's ranks find the launcher, with the secret; only there while the stage runs.
    pub fn control(&self, stage: &str) -> PathBuf {
        self.stage(stage).join("control.json")
    }

    /// How many starts of stages there have been.
    pub fn incarnation(&self) -> PathBuf {
        self.0.join("incarnation")
    }

    /// The number of a stage's newest start; whoever has another one must not commit.
    pub fn stage_incarnation(&self, stage: &str) -> PathBuf {
        self.stage(stage).join("incarnation")
    }

    /// Token ids and labels of one split of a task.
    pub fn data(&self, task: &str, split: &str) -> PathBuf {
        self.0.join("data").join(format!("{task}-{split}.h5"))
    }

    /// Logits of one teacher on one task's training data.
    pub fn logits(&self, teacher_stage: &str, task: &str) -> PathBuf {
        self.0.join("logits").join(teacher_stage).join(task)
    }

    /// Everything of one stage.
    pub fn stage(&self, stage: &str) -> PathBuf {
        self.0.join("stages").join(stage)
    }

    /// What a stage that was begun is made from.
    pub fn inputs(&self, stage: &str) -> PathBuf {
        self.stage(stage).join("inputs.json")
    }

    /// Written when a stage is complete.
    pub fn done(&self, stage: &str) -> PathBuf {
        self.stage(stage).join("done.json")
    }

    /// A stage's checkpoints.
    pub fn checkpoints(&self, stage: &str) -> PathBuf {
        self.stage(stage).join("checkpoints")
    }

    /// A stage's model, in Hugging Face's layout.
    pub fn model(&self, stage: &str) -> PathBuf {
        self.stage(stage).join("model")
    }

    /// One line a step.
    pub fn metrics(&self, stage: &str) -> PathBuf {
        self.stage(stage).join("metrics.jsonl")
    }

    /// A model's scores on dev.
    pub fn scores(&self, stage: &str) -> PathBuf {
        self.stage(stage).join("dev.json")
    }

    /// A model's scores on other splits than dev.
    pub fn further_scores(&self, stage: &str) -> PathBuf {
        self.stage(stage).join("further.json")
    }

    /// A model's answers to every example of one task's split.
    pub fn predictions(&self, stage: &str, task: &str, split: &str) -> PathBuf {
        self.stage(stage).join("predictions").join(format!("{task}-{split}.tsv"))
    }

    /// All ranks' lines of one stage, merged.
    pub fn log(&self, stage: &str) -> PathBuf {
        self.0.join("logs").join(format!("{stage}.log"))
    }

    /// One line for each start and end of `bam` in a batch job.
    pub fn history(&self) -> PathBuf {
        self.0.join("history.jsonl")
    }

    /// Everything of the batch job.
    pub fn slurm(&self) -> PathBuf {
        self.0.join("slurm")
    }

    /// The batch script that was submitted.
    pub fn job_script(&self) -> PathBuf {
        self.slurm().join("job.sh")
    }

    /// The recipe as it was when it was submitted, completed with defaults.
    pub fn job_recipe(&self) -> PathBuf {
        self.slurm().join("recipe.yaml")
    }

    /// What is known of the job that was submitted last.
    pub fn job(&self) -> PathBuf {
        self.slurm().join("job.json")
    }

    /// Held by whoever submits.
    pub fn submit_lock(&self) -> PathBuf {
        self.slurm().join("lock")
    }

    /// There when the job is not to be put into the queue again.
    pub fn cancelled(&self) -> PathBuf {
        self.slurm().join("cancelled")
    }

    /// What the batch script and `bam` in it print, as Slurm names files: `%j` is the job's number.
    pub fn job_output(&self) -> PathBuf {
        self.0.join("logs").join("slurm-%j.out")
    }

    /// The results of the whole run.
    pub fn report(&self) -> PathBuf {
        self.0.join("report.json")
    }
}
