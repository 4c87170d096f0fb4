//! What happens to gradients between the backward pass and the optimizer: one reduction over all shards, which carries
//! the step's losses and the wish to stop along, and the global norm.

mod norm;
mod reduction;
mod rows;
mod tail;
mod tree;

pub use norm::{clip_scale, global_norm};
pub use reduction::{Reduced, Reduction};
pub use rows::TouchedRows;
pub use tail::{Tail, tail_length};
pub use tree::Tree;
