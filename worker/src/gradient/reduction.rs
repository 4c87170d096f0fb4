//! How the gradients of a global batch's shards become one sum on every rank: by MPI, in whatever order it adds, or in
//! the fixed tree, which gives the same bits for every number of ranks.

use std::ops::Range;

use bam_cluster::comm::{CommError, Communicator};
use bam_cluster::config::Reproducible;

use super::tree::Tree;

/// Values that are exchanged at once in the fixed tree, so that memory beside the gradients stays bounded.
const CHUNK: usize = 1 << 20;

/// The sum over all shards of a global batch. A rank hands in its shards one after another; all ranks together finish.
pub struct Reduction {
    tree: Tree,
    own: Range<usize>,
    in_tree: Option<TreeSum>,
    /// Finished nodes of the tree that wait for their neighbours on the right, in order.
    pending: Vec<Vec<f32>>,
    /// Memory of earlier ones.
    spare: Vec<Vec<f32>>,
}

/// What ranks exchange to add up all of the tree.
struct TreeSum {
    /// Where the nodes of each rank are in the order of all.
    places: Vec<Range<usize>>,
    additions: Vec<(usize, usize)>,
    /// The nodes of all ranks, as far as this rank adds them up.
    gathered: Vec<f32>,
}

impl Reduction {
    /// For one of the ranks of `world`. With [`Reproducible::Processes`] every rank has one shard.
    pub fn new(reproducible: Reproducible, virtual_shards: usize, world: &dyn Communicator) -> Self {
        let (rank, ranks) = (world.rank(), world.size());
        let (tree, in_tree) = match reproducible {
            Reproducible::Processes => (Tree::over(ranks), None),
            Reproducible::WorldSize => {
                let tree = Tree::over(virtual_shards);
                (tree, Some(TreeSum::new(tree, ranks)))
            }
        };
        Reduction { tree, own: tree.shards_of(rank, ranks), in_tree, pending: vec![], spare: vec![] }
    }

    /// How many shards a global batch is cut into.
    pub fn shards(&self) -> usize {
        self.tree.shards()
    }

    /// Those of this rank.
    pub fn own(&self) -> Range<usize> {
        self.own.clone()
    }

    /// Takes the gradient of one of this rank's shards, which come in order. All but the last leave `gradient` to the
    /// next; the last one's stays, to be [finished](Self::finish).
    pub fn take(&mut self, shard: usize, gradient: &mut [f32]) {
        for _ in 0..self.tree.nodes_completed(self.own.start, shard) {
            if let Some(left) = self.pending.pop() {
                add(gradient, &left);
                self.spare.push(left);
            }
        }
        if shard + 1 < self.own.end {
            let mut node = self.spare.pop().unwrap_or_default();
            node.clear();
            node.extend_from_slice(gradient);
            self.pending.push(node);
        }
    }

    /// Makes `gradient` the sum over the shards of all ranks.
    ///
    /// # Errors
    /// A collective did not come about.
    pub fn finish(&mut self, world: &dyn Communicator, gradient: &mut [f32]) -> Result<(), CommError> {
        match &mut self.in_tree {
            None => world.all_reduce_sum("gradients", gradient)?,
            Some(sum) => {
                for start in (0..gradient.len()).step_by(CHUNK) {
                    let end = gradient.len().min(start + CHUNK);
                    let nodes: Vec<&[f32]> = self.pending.iter().map(|node| &node[start..end]).collect();
                    sum.finish(world, &nodes, &mut gradient[start..end])?;
                }
                self.spare.append(&mut self.pending);
            }
        }
        Ok(())
    }
}

impl TreeSum {
    fn new(tree: Tree, ranks: usize) -> Self {
        let (mut nodes, mut places) = (vec![], vec![]);
        for rank in 0..ranks {
            let first = nodes.len();
            nodes.extend(tree.nodes_within(&tree.shards_of(rank, ranks)));
            places.push(first..nodes.len());
        }
        TreeSum { places, additions: tree.additions(&nodes), gathered: vec![] }
    }

    /// Each rank adds up one segment of the chunk, for all. `nodes` and then `chunk` are this rank's nodes; `chunk`
    /// becomes the sum.
    fn finish(&mut self, world: &dyn Communicator, nodes: &[&[f32]], chunk: &mut [f32]) -> Result<(), CommError> {
        let (rank, ranks) = (world.rank(), world.size());
        if ranks == 1 {
            return Ok(());
        }
        let segments: Vec<Range<usize>> =
            (0..ranks).map(|r| r * chunk.len() / ranks..(r + 1) * chunk.len() / ranks).collect();
        let width = segments[rank].len();
        let count = self.places.iter().map(Range::len).sum::<usize>();
        // At least one value: an empty buffer has no address.
        self.gathered.resize((count * width).max(1), 0.0);
        // In each round every rank sends one of its nodes, if it has so many.
        let nothing = vec![0..0; ranks];
        for round in 0..self.places.iter().map(Range::len).max().unwrap_or(0) {
            let to = if round <= nodes.len() { &segments } else { &nothing };
            let place = |places: &Range<usize>| {
                let place = places.start + round;
                if round < places.len() { place * width..(place + 1) * width } else { 0..0 }
            };
            let from: Vec<Range<usize>> = self.places.iter().map(place).collect();
            let node = nodes.get(round).copied().unwrap_or(chunk);
            world.all_to_all("gradients", node, to, &mut self.gathered, &from)?;
        }
        for &(into, what) in &self.additions {
            let (before, from) = self.gathered.split_at_mut(what * width);
            add(&mut before[into * width..(into + 1) * width], &from[..width]);
        }
        world.all_to_all("summed gradients", &self.gathered, &vec![0..width; ranks], chunk, &segments)
    }
}

fn add(sum: &mut [f32], other: &[f32]) {
    for (sum, other) in sum.iter_mut().zip(other) {
        *sum += other;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bam_cluster::comm::Threads;
    use proptest::prelude::*;

    use super::*;

    /// Values of all magnitudes, so that almost no other order of additions gives the same bits.
    fn gradient(shard: usize, length: usize) -> Vec<f32> {
        let value = |i: usize| {
            let noise = (shard * 7919 + i * 104_729 + 12_345) as u64;
            let noise = noise.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
            let sign = if noise.is_multiple_of(2) { 1.0 } else { -1.0 };
            sign * (1.0 + (noise % 1000) as f32 / 999.0) * 10f32.powi((noise / 1000 % 9) as i32 - 4)
        };
        (0..length).map(value).collect()
    }

    /// The sum's bits, which all ranks have to agree on. Every step is made twice, since buffers are used again.
    fn sum(shards: usize, ranks: usize, length: usize) -> Vec<u32> {
        let one = |world: &Threads| {
            let mut reduction = Reduction::new(Reproducible::WorldSize, shards, world);
            let mut buffer = vec![f32::NAN; length];
            for _ in 0..2 {
                for shard in reduction.own() {
                    buffer.copy_from_slice(&gradient(shard, length));
                    reduction.take(shard, &mut buffer);
                }
                reduction.finish(world, &mut buffer).unwrap();
            }
            buffer.iter().map(|v| v.to_bits()).collect::<Vec<u32>>()
        };
        let sums: Vec<Vec<u32>> = std::thread::scope(|scope| {
            let world = Threads::world(ranks, Duration::from_secs(60));
            let threads: Vec<_> = world.into_iter().map(|w| scope.spawn(move || one(&w))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(sums.iter().all(|s| *s == sums[0]));
        sums.into_iter().next().unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn every_number_of_ranks_gives_the_same_bits(shards in 1usize..12, length in 1usize..60) {
            let alone = sum(shards, 1, length);
            for ranks in 2..=shards {
                prop_assert_eq!(&sum(shards, ranks, length), &alone, "{} ranks", ranks);
            }
        }
    }

    #[test]
    fn the_sum_is_right_beyond_one_chunk() {
        let length = CHUNK + 7;
        let found = sum(4, 3, length);
        assert_eq!(found, sum(4, 1, length));
        // Another order of additions would not pass for this one.
        let one_after_another = |i: usize| (1..4).fold(gradient(0, length)[i], |sum, s| sum + gradient(s, length)[i]);
        assert!((0..100).any(|i| one_after_another(i).to_bits() != found[i]));
        for i in [0, CHUNK - 1, CHUNK, length - 1] {
            let of = |shard: usize| gradient(shard, length)[i];
            let expected = (of(0) + of(1)) + (of(2) + of(3));
            assert_eq!(found[i], expected.to_bits(), "value {i}");
        }
    }

    #[test]
    fn without_the_tree_each_rank_has_one_shard() {
        let own: Vec<Range<usize>> = Threads::world(3, Duration::ZERO)
            .iter()
            .map(|world| Reduction::new(Reproducible::Processes, 8, world).own())
            .collect();
        assert_eq!(own, [0..1, 1..2, 2..3]);
    }
}
