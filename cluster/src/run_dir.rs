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

    /// Held by the one launcher that works on the whole run, or together by all that work on some of its stages.
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// Held by the one launcher that works on this stage and not on the whole run.
    pub fn stage_lock(&self, stage: &str) -> PathBuf {
        self.stage(stage).join("lock")
    }

    /// How a stage's ranks find the launcher, with the secret; only there while the stage runs.
    pub fn control(&self, stage: &str) -> PathBuf {
        self.stage(stage).join("control.json")
    }

    /// How many starts of stages there have been.
    pub fn incarnation(&self) -> PathBuf {
        self.0.join("incarnation")
    }

    /// Held by whoever takes the next number for a start.
    pub fn incarnation_lock(&self) -> PathBuf {
        self.0.join("incarnation.lock")
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

    /// Where each stage has a directory.
    pub fn stages(&self) -> PathBuf {
        self.0.join("stages")
    }

    /// Everything of one stage.
    pub fn stage(&self, stage: &str) -> PathBuf {
        self.stages().join(stage)
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

    /// The same for TensorBoard, with scores on dev: a file for each start.
    pub fn tensorboard(&self, stage: &str) -> PathBuf {
        self.stage(stage).join("tensorboard")
    }

    /// What every rank did when, in the first steps.
    pub fn trace(&self, stage: &str) -> PathBuf {
        self.stage(stage).join("trace.json")
    }

    /// A model's scores on dev.
    pub fn scores(&self, stage: &str) -> PathBuf {
        self.stage(stage).join("dev.json")
    }

    /// A model's scores on other splits than dev.
    pub fn further_scores(&self, stage: &str) -> PathBuf {
        self.stage(stage).join("further.json")
    }

    /// Which questions were answered, over all starts.
    pub fn answers(&self) -> PathBuf {
        self.stage("predict").join("answers.json")
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

    /// How the last `bam run` ended; not there while one works, and after one that was killed.
    pub fn ending(&self) -> PathBuf {
        self.0.join("ending.json")
    }

    /// Everything of the batch jobs.
    pub fn slurm(&self) -> PathBuf {
        self.0.join("slurm")
    }

    /// The batch script of one job.
    pub fn job_script(&self, job: &str) -> PathBuf {
        self.slurm().join(format!("{job}.sh"))
    }

    /// The recipe as it was when it was submitted, completed with defaults.
    pub fn job_recipe(&self) -> PathBuf {
        self.slurm().join("recipe.yaml")
    }

    /// What is known of the jobs that were submitted last.
    pub fn jobs(&self) -> PathBuf {
        self.slurm().join("jobs.json")
    }

    /// Held by whoever submits.
    pub fn submit_lock(&self) -> PathBuf {
        self.slurm().join("lock")
    }

    /// There when no job is to be started or put into the queue again.
    pub fn cancelled(&self) -> PathBuf {
        self.slurm().join("cancelled")
    }

    /// What a batch script and `bam` in it print: `job` is its number, with that of an array's element `12_3`.
    pub fn job_output(&self, job: &str) -> PathBuf {
        self.0.join("logs").join(format!("slurm-{job}.out"))
    }

    /// One line for each different command that worked on the run.
    pub fn commands(&self) -> PathBuf {
        self.0.join("logs").join("commands.jsonl")
    }

    /// The results of the whole run.
    pub fn report(&self) -> PathBuf {
        self.0.join("report.json")
    }

    /// The same and how they came about, as a page for people.
    pub fn report_page(&self) -> PathBuf {
        self.0.join("report.html")
    }
}
