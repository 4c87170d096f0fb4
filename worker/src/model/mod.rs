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

pub use bam_cluster::encoder::{Head, Init, ParameterSpec, parameter_count, specs};
pub use batch::{Batch, Sequence};
pub use bert::{Bert, Pass};
pub use dropout::{DropoutKey, StepSeed};
pub(crate) use embedding::EMBEDDING_TENSORS;
pub(crate) use layer::LAYER_TENSORS;
pub use parameters::Parameters;
pub(crate) use parameters::attach_gradient;
