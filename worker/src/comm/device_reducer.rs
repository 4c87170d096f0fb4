//! How gradients that are on a device are summed over all ranks: by NCCL, or through the host.

use bam_cluster::comm::{CommError, Communicator};
use tch::{Device, Kind, Tensor, no_grad};

use super::nccl::{Nccl, NcclError};
use crate::tensor_memory::floats_mut;

/// Sums parts of a gradient over all ranks. All ranks sum the same parts in the same order.
pub trait DeviceReducer {
    /// Starts to make `bucket` its sum over all ranks. It is contiguous, float32 or bf16, and must not be touched before
    /// [`wait`](Self::wait).
    ///
    /// # Errors
    /// The sum cannot come about.
    fn sum(&self, name: &'static str, bucket: &Tensor) -> Result<(), ReduceError>;

    /// Makes what the device is given from now on wait for all sums that were started.
    ///
    /// # Errors
    /// As [`sum`](Self::sum).
    fn wait(&self) -> Result<(), ReduceError>;

    /// Waits on the host for all sums that were started. Before that nothing else may wait for the device: this alone gives up
    /// when a rank is lost.
    ///
    /// # Errors
    /// As [`sum`](Self::sum), or a rank is lost.
    fn settle(&self, name: &'static str) -> Result<(), ReduceError>;

    /// What it is, for the log.
    fn name(&self) -> String;
}

/// A sum that did not come about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReduceError {
    /// Of NCCL.
    #[error(transparent)]
    Nccl(#[from] NcclError),
    /// Through the host.
    #[error(transparent)]
    Host(#[from] CommError),
}

impl DeviceReducer for Nccl {
    fn sum(&self, name: &'static str, bucket: &Tensor) -> Result<(), ReduceError> {
        Ok(self.all_reduce_sum(name, bucket)?)
    }

    fn wait(&self) -> Result<(), ReduceError> {
        Ok(self.wait_on_device()?)
    }

    fn settle(&self, name: &'static str) -> Result<(), ReduceError> {
        Ok(Nccl::settle(self, name)?)
    }

    fn name(&self) -> String {
        format!("NCCL {}", self.describe().version)
    }
}

/// Goes through the host's memory, where NCCL is not to be had. A sum is done when it has been started.
pub struct Staged(pub Box<dyn Communicator>);

impl DeviceReducer for Staged {
    fn sum(&self, name: &'static str, bucket: &Tensor) -> Result<(), ReduceError> {
        if self.0.size() == 1 {
            return Ok(());
        }
        // On the host, in float32: the same memory where the bucket is that already. bf16 is rounded once, at the end.
        let mut values = bucket.to_device(Device::Cpu).to_kind(Kind::Float).view(-1);
        self.0.all_reduce_sum(name, floats_mut(&mut values))?;
        if values.data_ptr() != bucket.data_ptr() {
            no_grad(|| bucket.shallow_clone().copy_(&values.view_as(bucket)));
        }
        Ok(())
    }

    fn wait(&self) -> Result<(), ReduceError> {
        Ok(())
    }

    fn settle(&self, _name: &'static str) -> Result<(), ReduceError> {
        Ok(())
    }

    fn name(&self) -> String {
        "MPI, staged through the host".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bam_cluster::comm::Threads;

    use super::*;

    #[test]
    fn staged_sums_are_right_in_both_kinds_and_stay_in_place() {
        for kind in [Kind::Float, Kind::BFloat16] {
            std::thread::scope(|scope| {
                for world in Threads::world(3, Duration::from_secs(60)) {
                    scope.spawn(move || {
                        let whole = Tensor::arange(10, (Kind::Float, Device::Cpu)).to_kind(kind);
                        let whole = whole * (world.rank() + 1) as f64;
                        let staged = Staged(world.split("all ranks", 0).unwrap());
                        staged.sum("part", &whole.narrow(0, 4, 6)).unwrap();
                        staged.wait().unwrap();
                        staged.settle("step").unwrap();
                        let expected: Vec<f64> =
                            (0..10).map(|i| (i * if i < 4 { world.rank() + 1 } else { 6 }) as f64).collect();
                        assert_eq!(Vec::<f64>::try_from(&whole.to_kind(Kind::Double)).unwrap(), expected);
                        assert_eq!(whole.kind(), kind);
                    });
                }
            });
        }
    }
}
