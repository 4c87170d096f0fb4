//! BERT with one head per task, its parameters in one flat buffer, and the layouts of a batch that it reads.

mod attention;
mod batch;
mod bert;
mod parameters;
mod shape;

pub use batch::{Batch, Sequence};
pub use bert::Bert;
pub use parameters::Parameters;
pub use shape::{Head, Init, ParameterSpec, specs};
