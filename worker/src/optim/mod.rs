//! Optimizers over flat buffers.

mod bert_adam;

pub use bert_adam::{BertAdam, Span, spans};
