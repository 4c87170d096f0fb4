//! Training and dev data on its way to the model: text becomes tokens, tokens become checked files, files become memory.

pub(crate) mod hdf5_file;
pub mod prepare;
pub mod token_file;
pub mod tokenize;
mod words;

pub use hdf5_file::WriteError;
pub use prepare::{PrepareError, Progress, prepare_task, tokenize};
pub use token_file::{TokenFile, TokenFileError, TokenSet};
pub use tokenize::{TokenizeError, Tokenizer, Tokens};
