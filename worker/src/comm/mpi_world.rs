//! Ranks that `mpirun` (or `srun`) started, talking through MPI.
//!
//! MPI's collectives cannot be given up: the deadline is kept by the watchdog thread (see `control`), which ends the
//! job when this rank has been in one collective for too long.

use std::cell::RefCell;
use std::ops::Range;

use bam_cluster::comm::{Activity, CommError, Communicator};
use mpi::Threading;
use mpi::collective::{CommunicatorCollectives, Root, SystemOperation};
use mpi::datatype::{Partition, PartitionMut};
use mpi::environment::Universe;
use mpi::topology::{Color, Communicator as _, SimpleCommunicator};

/// All ranks of the stage, or some of them.
pub struct MpiWorld {
    world: SimpleCommunicator,
    activity: Activity,
    scratch: RefCell<Vec<f32>>,
}

/// Sums go through a copy of so many values, small enough to stay in cache (rsmpi has no in-place all-reduce).
const PIECE: usize = 1 << 18;

impl MpiWorld {
    /// Joins the world. `None` if MPI does not grant threads, or was initialised before. The universe leaves MPI when it is
    /// dropped, and waits for all ranks to do so: a rank that fails must not drop it, but [`abort`](Self::abort).
    pub fn join(activity: Activity) -> Option<(MpiWorld, Universe)> {
        let (universe, threading) = mpi::initialize_with_threading(Threading::Multiple)?;
        if threading < Threading::Serialized {
            return None;
        }
        Some((MpiWorld { world: universe.world(), activity, scratch: RefCell::default() }, universe))
    }

    /// Name and version of the MPI library.
    pub fn library() -> String {
        let text = mpi::environment::library_version().unwrap_or_default();
        // Open MPI goes on with where and when it was built.
        text.split([',', '\n', '\0']).next().unwrap_or_default().trim().to_owned()
    }

    /// Ends all ranks at once.
    pub fn abort(code: u8) -> ! {
        SimpleCommunicator::world().abort(i32::from(code))
    }
}

impl Communicator for MpiWorld {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn size(&self) -> usize {
        self.world.size() as usize
    }

    fn all_gather(&self, name: &'static str, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        let _in_collective = self.activity.enter(name);
        let mut lengths = vec![0i32; self.size()];
        self.world.all_gather_into(&(bytes.len() as i32), &mut lengths[..]);
        let starts: Vec<i32> = lengths.iter().scan(0, |end, n| Some(std::mem::replace(end, *end + n))).collect();
        // An empty slice's address is the value of MPI_IN_PLACE in some MPIs: an extra byte keeps both buffers from it.
        let own = [bytes, &[0]].concat();
        let total = lengths.iter().sum::<i32>() as usize;
        let mut all = vec![0u8; total + 1];
        let mut parts = PartitionMut::new(&mut all[..], lengths.clone(), &starts[..]);
        self.world.all_gather_varcount_into(&own[..bytes.len()], &mut parts);
        let piece = |(start, length): (&i32, &i32)| all[*start as usize..(start + length) as usize].to_vec();
        Ok(starts.iter().zip(&lengths).map(piece).collect())
    }

    fn broadcast(&self, name: &'static str, root: usize, mut bytes: Vec<u8>) -> Result<Vec<u8>, CommError> {
        let _in_collective = self.activity.enter(name);
        let root = self.world.process_at_rank(root as i32);
        let mut length = bytes.len() as u64;
        root.broadcast_into(&mut length);
        bytes.resize(length as usize, 0);
        if length > 0 {
            root.broadcast_into(&mut bytes[..]);
        }
        Ok(bytes)
    }

    fn all_reduce_sum(&self, name: &'static str, values: &mut [f32]) -> Result<(), CommError> {
        if self.size() == 1 {
            return Ok(());
        }
        let _in_collective = self.activity.enter(name);
        let mut scratch = self.scratch.borrow_mut();
        for piece in values.chunks_mut(PIECE) {
            scratch.clear();
            scratch.extend_from_slice(piece);
            self.world.all_reduce_into(&scratch[..], piece, SystemOperation::sum());
        }
        Ok(())
    }

    fn all_to_all(
        &self,
        name: &'static str,
        send: &[f32],
        to: &[Range<usize>],
        receive: &mut [f32],
        from: &[Range<usize>],
    ) -> Result<(), CommError> {
        let _in_collective = self.activity.enter(name);
        let lengths = |parts: &[Range<usize>]| parts.iter().map(|p| p.len() as i32).collect::<Vec<_>>();
        let starts = |parts: &[Range<usize>]| parts.iter().map(|p| p.start as i32).collect::<Vec<_>>();
        let parts = Partition::new(send, lengths(to), starts(to));
        let mut places = PartitionMut::new(receive, lengths(from), starts(from));
        self.world.all_to_all_varcount_into(&parts, &mut places);
        Ok(())
    }

    fn split(&self, name: &'static str, color: u32) -> Result<Box<dyn Communicator>, CommError> {
        let _in_collective = self.activity.enter(name);
        // MPI's colors are not negative; more than two thousand million groups there are not.
        let color = Color::with_value((color & 0x7fff_ffff).cast_signed());
        let Some(world) = self.world.split_by_color(color) else {
            unreachable!("a rank that names a color is in a group")
        };
        Ok(Box::new(MpiWorld { world, activity: self.activity.clone(), scratch: RefCell::default() }))
    }
}
