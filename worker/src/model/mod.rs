//! BERT with one head per task, its parameters in one flat buffer, and the batches that it reads.

mod attention;
mod batch;
mod bert;
mod dense;
mod dropout;
mod embedding;
mod layer;
mod norm;
mod parameters;
#[cfg(test)]
mod plain;
mod shape;

pub use batch::{Batch, Sequence};
pub use bert::{Bert, Pass};
pub use dropout::{DropoutKey, StepSeed};
pub use parameters::Parameters;
pub use shape::{Head, Init, ParameterSpec, parameter_count, specs};
