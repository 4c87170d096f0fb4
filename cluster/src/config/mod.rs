//! Recipes: the YAML that describes a run, checked and completed with defaults. `load` is the way in.

mod error;
mod given_teacher;
mod json_schema;
mod load;
mod per_task;
mod ranks;
mod schema;
mod slurm;
mod task_entry;
mod train;
mod validate;
mod without_effect;

pub use error::{ConfigError, nearest};
pub use given_teacher::{GivenTeacher, GivenTeachers};
pub use json_schema::json_schema;
pub use load::{Override, load, load_resolved, load_with_defaults};
pub use per_task::PerTask;
pub use ranks::FEW_EXAMPLES;
pub use schema::{
    Annealing, Breadth, CheckpointSection, ClusterSection, DataSection, DeviceKind, Distill, Launcher, Mode,
    ModelSection, Precision, PredictedSplit, Recipe, ReducePrecision, RegressionOutput, Reproducible, Sampling,
    SamplingMethod, Truncation,
};
pub use slurm::{JOB_NAMES, JobSettings, Mail, SlurmSection, seconds as slurm_seconds};
pub use task_entry::{OwnTask, TaskEntry, TaskType};
pub use train::{LossReduction, OptimizerKind, RateScaling, Search, TrainSection, TrainSettings};
