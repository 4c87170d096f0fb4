//! The fixed tree of `reproducible: world-size` on the device: the gradients of all virtual shards are added up with the same
//! operands in each addition, whatever the number of ranks, so that the sum has the same bits.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::{Nccl, NcclError};
use crate::gradient::Tree;

/// Values that are exchanged at once, so that memory beside the gradients stays bounded: 64 MiB for each node of the tree
/// that ranks exchange, divided by the number of ranks.
const CHUNK: usize = 1 << 24;

/// What ranks exchange to add up all of the tree.
pub struct DeviceTreeSum {
    /// Where the nodes of each rank are in the order of all.
    places: Vec<Range<usize>>,
    additions: Vec<(usize, usize)>,
    chunk: usize,
    /// The nodes of all ranks, as far as this rank adds them up, one behind the other.
    gathered: Option<Tensor>,
}

impl DeviceTreeSum {
    /// For so many ranks, each of which has the nodes of the tree that lie within its shards.
    pub fn new(tree: Tree, ranks: usize) -> Self {
        Self::in_chunks(tree, ranks, CHUNK)
    }

    /// The same, where no more than about so many values of a node are exchanged at once.
    pub fn in_chunks(tree: Tree, ranks: usize, chunk: usize) -> Self {
        let (places, additions) = tree.shared_by(ranks);
        // Whole segments, so that all but the last chunk divide among the ranks.
        let chunk = chunk.div_ceil(ranks) * ranks;
        DeviceTreeSum { places, additions, chunk, gathered: None }
    }

    /// Makes the last of `nodes`, which are this rank's nodes in order, the sum of the whole tree: the same bits on every
    /// rank. Nodes are flat, float32 and equally long. torch's stream has waited for the sum; the host has not.
    ///
    /// # Errors
    /// As [`Nccl::all_reduce_sum`].
    ///
    /// # Panics
    /// The nodes are not this rank's: a mistake in this program.
    pub fn sum(&mut self, nccl: &Nccl, nodes: &[Tensor]) -> Result<(), NcclError> {
        let (rank, ranks) = (nccl.rank(), nccl.size());
        assert!(
            self.places.len() == ranks && self.places[rank].len() == nodes.len(),
            "one tensor for each of its nodes"
        );
        let length = nodes[0].numel();
        assert!(nodes.iter().all(|node| node.kind() == Kind::Float && node.numel() == length), "nodes are alike");
        if ranks == 1 {
            return Ok(());
        }
        for start in (0..length).step_by(self.chunk) {
            let width = self.chunk.min(length - start);
            let nodes: Vec<Tensor> = nodes.iter().map(|node| part(node, start, width)).collect();
            self.sum_chunk(nccl, &nodes)?;
        }
        Ok(())
    }

    /// Each rank adds up one segment of the chunk, for all.
    fn sum_chunk(&mut self, nccl: &Nccl, nodes: &[Tensor]) -> Result<(), NcclError> {
        let (rank, ranks, chunk) = (nccl.rank(), nccl.size(), &nodes[nodes.len() - 1]);
        let length = chunk.numel();
        let segments: Vec<Range<usize>> = (0..ranks).map(|r| r * length / ranks..(r + 1) * length / ranks).collect();
        let width = segments[rank].len();
        let count = self.places.iter().map(Range::len).sum::<usize>();
        let gathered = self.room(chunk, count * width);
        let nothing = vec![0..0; ranks];
        // In each round every rank sends one of its nodes, if it has so many.
        for round in 0..self.places.iter().map(Range::len).max().unwrap_or(0) {
            let (node, to) = nodes.get(round).map_or((chunk, &nothing), |node| (node, &segments));
            let place = |places: &Range<usize>| {
                let place = places.start + round;
                if round < places.len() { place * width..(place + 1) * width } else { 0..0 }
            };
            let from: Vec<Range<usize>> = self.places.iter().map(place).collect();
            nccl.all_to_all("gradients", (node, to), (&gathered, &from))?;
        }
        nccl.wait_on_device()?;
        for &(into, what) in &self.additions {
            let _ = part(&gathered, into * width, width).g_add_(&part(&gathered, what * width, width));
        }
        if length.is_multiple_of(ranks) {
            nccl.all_gather("summed gradients", &part(&gathered, 0, width), chunk)?;
        } else {
            nccl.all_to_all("summed gradients", (&gathered, &vec![0..width; ranks]), (chunk, &segments))?;
        }
        nccl.wait_on_device()
    }

    /// Memory for so many values, where `like` is.
    fn room(&mut self, like: &Tensor, values: usize) -> Tensor {
        let room = self.gathered.take().filter(|room| room.numel() >= values && room.device() == like.device());
        // At least one value: an empty tensor has no address.
        let room = room.unwrap_or_else(|| Tensor::empty([values.max(1) as i64], (Kind::Float, like.device())));
        self.gathered.insert(room).shallow_clone()
    }
}

fn part(tensor: &Tensor, start: usize, length: usize) -> Tensor {
    tensor.narrow(0, start as i64, length as i64)
}
