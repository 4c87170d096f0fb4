//! How the ranks' gradients become one sum where they are in a device's memory.

use std::cell::RefCell;

use anyhow::Result;
use bam_cluster::comm::Communicator;
use tch::{Device, Kind, Tensor};

use crate::tensor_memory::floats_mut;

/// Sums of device tensors over all ranks, which all ask for the same ones in the same order.
pub trait DeviceReducer {
    /// Begins to replace `tensor`, which is contiguous, by its sum over all ranks, as soon as what was asked of libtorch so far
    /// is done. Until [`wait`](Self::wait) nobody may touch it.
    ///
    /// # Errors
    /// The sum cannot come about.
    fn sum(&self, name: &'static str, tensor: &Tensor) -> Result<()>;

    /// Lets what libtorch is asked from now on wait for all sums that were begun. Does not hold up the host.
    ///
    /// # Errors
    /// As [`sum`](Self::sum).
    fn wait(&self) -> Result<()>;

    /// Waits until all sums that were begun are there, and makes sure that they are.
    ///
    /// # Errors
    /// As [`sum`](Self::sum).
    fn settle(&self, name: &'static str) -> Result<()>;

    /// For the log.
    fn name(&self) -> String;
}

/// Sums through the host's memory and the ranks' communicator there.
pub struct Staged {
    world: Box<dyn Communicator>,
    room: RefCell<Option<Tensor>>,
}

impl Staged {
    /// For the ranks of `world`.
    pub fn new(world: Box<dyn Communicator>) -> Staged {
        Staged { world, room: RefCell::new(None) }
    }
}

impl DeviceReducer for Staged {
    fn sum(&self, name: &'static str, tensor: &Tensor) -> Result<()> {
        if self.world.size() == 1 {
            return Ok(());
        }
        let mut flat = tensor.flatten(0, -1);
        let n = flat.size()[0];
        let mut room = self.room.borrow_mut();
        let fits = room.as_ref().is_some_and(|room| room.size()[0] >= n);
        let whole = if fits { room.take() } else { None };
        let whole = whole.unwrap_or_else(|| Tensor::empty([n], (Kind::Float, Device::Cpu)));
        let mut part = whole.narrow(0, 0, n);
        part.copy_(&flat);
        self.world.all_reduce_sum(name, floats_mut(&mut part))?;
        flat.copy_(&part);
        *room = Some(whole);
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        Ok(())
    }

    fn settle(&self, _name: &'static str) -> Result<()> {
        Ok(())
    }

    fn name(&self) -> String {
        "MPI, through the hosts' memory".to_owned()
    }
}
