//! What happens to gradients between the backward pass and the optimizer: one reduction over all ranks, which carries
//! the step's losses and the wish to stop along, and the global norm.

mod norm;
mod tail;

pub use norm::{clip_scale, global_norm};
pub use tail::{Tail, tail_length};
