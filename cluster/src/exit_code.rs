//! Exit codes of `bam` and `bam-worker`. Scripts may rely on them.

/// Everything that was asked for is done.
pub const DONE: u8 = 0;
/// Something failed that is neither the user's recipe nor the user's data.
pub const FAILURE: u8 = 1;
/// The command line or the recipe is wrong, or the run directory belongs to another recipe.
pub const USAGE: u8 = 2;
/// A data file, a model directory or a derived file is missing, damaged or not what the recipe says.
pub const BAD_DATA: u8 = 3;
/// Stopped early at a checkpoint, on request: run the same command again to go on (`EX_TEMPFAIL`).
pub const STOPPED_AT_CHECKPOINT: u8 = 75;
/// Ended at once by a second Ctrl-C, without a checkpoint (128 + SIGINT).
pub const INTERRUPTED: u8 = 130;
