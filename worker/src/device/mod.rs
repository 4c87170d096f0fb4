//! The engine that trains and runs models on GPUs, through libtorch's kernels: a whole model in the memory of one device, and
//! numbers of the precision that was asked for. In bf16 it serves CPUs, too; in float32 these have an engine of their own
//! (`model`), which shares memory between the ranks of a host.

mod adam;
mod attention;
mod batch;
mod bert;
mod lamb;
mod layer;
mod learner;
mod micro_batch;
mod numa;
mod parameters;
mod place;
mod reduction;

pub(crate) use batch::upload;
pub use bert::DeviceBert;
pub use learner::{DeviceLearner, Exchange, Together};
pub use micro_batch::{is_trying, tokens_that_fit};
pub use numa::binding;
pub use place::{DeviceError, Numbers, Place};
