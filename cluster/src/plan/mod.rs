//! Pure functions from a recipe and the sizes of its data to the whole run: stages, steps, rates, λ, and the examples
//! of every step. Launcher and workers derive the same plan and compare its hash.

mod derive;
mod mixture;
mod random;
mod receipt;
mod sampling;
mod schedule;
mod slice;
mod stages;

pub use mixture::{Drawing, Mixture};
pub use random::{Stream, shuffled};
pub use receipt::Receipt;
pub use sampling::{Draw, Sampler};
pub use schedule::{Schedule, layer_multiplier};
pub use slice::{sequence_cost, slice_by_cost};
pub use stages::{
    ChooseStage, LogitsStage, ModelStage, Plan, PredictStage, Question, Stage, StageWork, TaskSize, Teacher, TrainStage,
};
