//! What one rank of a bam run does: join the others, obey the launcher's orders, train, keep what was learnt.

pub mod comm;
pub mod control;
pub mod data;
pub mod device;
pub mod eval;
pub mod fault;
pub mod gradient;
pub mod model;
pub mod objective;
pub mod optim;
pub mod probe;
pub mod session;
pub mod shard;
pub mod shim;
pub mod snapshot;
pub mod stage;
pub mod telemetry;
pub mod tensor_memory;
pub mod train;
pub mod weights;
