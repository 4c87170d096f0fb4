//! Optimizers over flat buffers: BERT's Adam, AdamW and LAMB, which share their moments and the parts of the model that
//! have settings of their own.

mod adam;
mod lamb;
mod optimizer;

pub use optimizer::{Optimizer, Span, is_corrected, spans};
