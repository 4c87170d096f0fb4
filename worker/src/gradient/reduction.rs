//! How the gradients of a global batch's shards become one sum: each rank of a host adds up its share of the model, in
//! memory that all see, and exchanges it with the other hosts; or all ranks add up everything in the fixed tree, which gives
//! the same bits for every number of them.

use std::collections::BTreeSet;
use std::ops::Range;

use bam_cluster::comm::{CommError, Communicator};
use bam_cluster::config::Reproducible;

use super::norm::squares_of_rows;
use super::rows::TouchedRows;
use super::tree::Tree;
use crate::comm::Host;

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
    /// Words of the shards so far.
    words: BTreeSet<usize>,
    /// Touched rows of the word embeddings, one behind the other.
    packed: Vec<f32>,
}

/// What came of a reduction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reduced {
    /// Values of which there is more than one rank's.
    pub values: usize,
    /// Euclidean norm of the whole sum.
    pub norm: f64,
}

/// What ranks exchange to add up all of the [tree](Tree).
pub struct TreeSum {
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
        Reduction {
            tree,
            own: tree.shards_of(rank, ranks),
            in_tree,
            pending: vec![],
            spare: vec![],
            words: BTreeSet::new(),
            packed: vec![],
        }
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
    /// next; the last one's stays, to be [finished](Self::finish). What is left there may have a gradient for words of
    /// earlier shards.
    pub fn take(&mut self, shard: usize, gradient: &mut [f32], words: &mut TouchedRows) {
        self.words.extend(words.rows());
        words.extend(self.words.iter().copied());
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

    /// Finds out which word embeddings have a gradient on any rank, which is where ranks wait for the slowest of them; in the
    /// fixed tree all rows count as such. Afterwards a rank must not change its gradients and their tail any more: others
    /// read them.
    ///
    /// # Errors
    /// A collective did not come about.
    pub fn agree(&self, world: &dyn Communicator, words: &mut TouchedRows) -> Result<(), CommError> {
        if self.in_tree.is_some() {
            words.touch_all();
        } else if world.size() > 1 {
            let own: Vec<u32> = words.rows().map(|row| row as u32).collect();
            for rows in world.all_gather("words of the batch", bytemuck::cast_slice(&own))? {
                words.extend(rows.as_chunks::<4>().0.iter().map(|row| u32::from_ne_bytes(*row) as usize));
            }
            // Rows are copied there and back; whoever has most of them had better send the matrix as it is.
            if 2 * words.values() > words.end() {
                words.touch_all();
            }
        }
        Ok(())
    }

    /// Makes this rank's `share` of `gradient`, and the tail behind all shares, the sum over the shards of all ranks, after
    /// they have [agreed](Self::agree) on `words`; in the fixed tree the whole of it.
    ///
    /// # Errors
    /// A collective did not come about.
    pub fn finish(
        &mut self,
        world: &dyn Communicator,
        host: &Host,
        share: &Range<usize>,
        gradient: &mut [f32],
        words: &TouchedRows,
    ) -> Result<Reduced, CommError> {
        self.words.clear();
        let parameters = host.parameters();
        let Some(sum) = &mut self.in_tree else { return self.add_shares(host, share, gradient, words) };
        sum.finish(world, &self.pending, gradient)?;
        self.spare.append(&mut self.pending);
        let values = if world.size() > 1 { gradient.len() } else { 0 };
        Ok(Reduced { values, norm: squares_of_rows(gradient, words, &(0..parameters)).iter().sum::<f64>().sqrt() })
    }

    /// The sum in the order of the host's ranks, then in whatever order MPI adds; of the word embeddings, the touched rows
    /// alone.
    fn add_shares(
        &mut self,
        host: &Host,
        share: &Range<usize>,
        gradient: &mut [f32],
        words: &TouchedRows,
    ) -> Result<Reduced, CommError> {
        let (local, across) = (host.local(), host.across());
        let (last, tail) = (local.size() - 1, host.parameters()..gradient.len());
        // The tail is the last rank's.
        let end = if local.rank() == last { tail.end } else { share.end };
        let rest = words.end().clamp(share.start, end)..end;
        let rows = words.ranges_within(&(share.start..end));
        rows.iter().chain([&rest]).for_each(|part| host.add_others(gradient, part.clone()));
        if across.size() > 1 {
            self.packed.clear();
            rows.iter().for_each(|rows| self.packed.extend_from_slice(&gradient[rows.clone()]));
            across.all_reduce_sum("gradients of words", &mut self.packed)?;
            let mut packed = &self.packed[..];
            for rows in rows {
                let (own, others) = packed.split_at(rows.len());
                gradient[rows].copy_from_slice(own);
                packed = others;
            }
            across.all_reduce_sum("gradients", &mut gradient[rest])?;
        }
        // Also tells all that the others have read their gradients, and that the tail is summed.
        // All add them up in one order, so that the norm is the same for every number of ranks on a host.
        let squares = squares_of_rows(gradient, words, share);
        let squares = local.all_gather("norm", bytemuck::cast_slice(&squares))?;
        let squares = squares.iter().flat_map(|sums| sums.as_chunks().0).map(|sum| f64::from_ne_bytes(*sum));
        if local.rank() != last {
            gradient[tail.clone()].copy_from_slice(&host.gradients_of(last)[tail.clone()]);
        }
        let ranks = local.size() * across.size();
        let values = if ranks > 1 { words.values() + tail.end - words.end() } else { 0 };
        Ok(Reduced { values, norm: squares.sum::<f64>().sqrt() })
    }
}

impl TreeSum {
    /// For so many ranks.
    pub fn new(tree: Tree, ranks: usize) -> Self {
        let (places, additions) = tree.shared_by(ranks);
        TreeSum { places, additions, gathered: vec![] }
    }

    /// Adds up, chunk by chunk. `nodes` and then `last` are this rank's nodes, equally long; `last` becomes the sum.
    ///
    /// # Errors
    /// A collective did not come about.
    pub fn finish(&mut self, world: &dyn Communicator, nodes: &[Vec<f32>], last: &mut [f32]) -> Result<(), CommError> {
        for start in (0..last.len()).step_by(CHUNK) {
            let end = last.len().min(start + CHUNK);
            let nodes: Vec<&[f32]> = nodes.iter().map(|node| &node[start..end]).collect();
            self.finish_chunk(world, &nodes, &mut last[start..end])?;
        }
        Ok(())
    }

    /// Each rank adds up one segment of the chunk, for all. `nodes` and then `chunk` are this rank's nodes; `chunk`
    /// becomes the sum.
    fn finish_chunk(&mut self, world: &dyn Communicator, nodes: &[&[f32]], chunk: &mut [f32]) -> Result<(), CommError> {
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
    use std::cell::Cell;
    use std::time::Duration;

    use crate::tensor_memory::floats_mut;
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
            let host = Host::find(world, length, 0).unwrap();
            let mut reduction = Reduction::new(Reproducible::WorldSize, shards, world);
            let mut buffer = vec![f32::NAN; length];
            let mut words = TouchedRows::none(length / 8, 2);
            for _ in 0..2 {
                for shard in reduction.own() {
                    buffer.copy_from_slice(&gradient(shard, length));
                    reduction.take(shard, &mut buffer, &mut words);
                }
                reduction.agree(world, &mut words).unwrap();
                reduction.finish(world, &host, &(0..length), &mut buffer, &words).unwrap();
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

    /// Counts the values that a rank sends to others.
    struct Counting {
        world: Threads,
        sent: Cell<usize>,
    }

    impl Communicator for Counting {
        fn rank(&self) -> usize {
            self.world.rank()
        }

        fn size(&self) -> usize {
            self.world.size()
        }

        fn all_gather(&self, name: &'static str, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
            self.world.all_gather(name, bytes)
        }

        fn broadcast(&self, name: &'static str, root: usize, bytes: Vec<u8>) -> Result<Vec<u8>, CommError> {
            self.world.broadcast(name, root, bytes)
        }

        fn all_reduce_sum(&self, name: &'static str, values: &mut [f32]) -> Result<(), CommError> {
            self.world.all_reduce_sum(name, values)
        }

        fn all_to_all(
            &self,
            name: &'static str,
            send: &[f32],
            to: &[Range<usize>],
            receive: &mut [f32],
            from: &[Range<usize>],
        ) -> Result<(), CommError> {
            let to_others = (0..to.len()).filter(|&rank| rank != self.rank()).map(|rank| to[rank].len());
            self.sent.set(self.sent.get() + to_others.sum::<usize>());
            self.world.all_to_all(name, send, to, receive, from)
        }

        fn split(&self, name: &'static str, color: u32) -> Result<Box<dyn Communicator>, CommError> {
            self.world.split(name, color)
        }
    }

    /// What ranks send in the tree of 8 shards, over what they would send in a ring, where each sends 2 (N−1)/N values for
    /// each of the model: all of them together, and the rank that sends most.
    #[test]
    fn the_tree_sends_what_a_ring_sends_or_half_as_much_again_at_most() {
        const SHARDS: usize = 8;
        /// Divisible by all numbers of ranks.
        const LENGTH: usize = 840;
        let one = |world: Threads| {
            let world = Counting { world, sent: Cell::new(0) };
            let host = Host::find(&world, LENGTH, 0).unwrap();
            let mut reduction = Reduction::new(Reproducible::WorldSize, SHARDS, &world);
            let (mut buffer, mut words) = (vec![1.0; LENGTH], TouchedRows::none(1, 1));
            reduction.own().for_each(|shard| reduction.take(shard, &mut buffer, &mut words));
            reduction.finish(&world, &host, &(0..LENGTH), &mut buffer, &words).unwrap();
            world.sent.get()
        };
        let ratios: Vec<(f64, f64)> = (2..=SHARDS)
            .map(|ranks| {
                let sent: Vec<usize> = std::thread::scope(|scope| {
                    let world = Threads::world(ranks, Duration::from_secs(60));
                    let threads: Vec<_> = world.into_iter().map(|w| scope.spawn(|| one(w))).collect();
                    threads.into_iter().map(|t| t.join().unwrap()).collect()
                });
                let ring = (2 * LENGTH * (ranks - 1) / ranks) as f64;
                let (all, most) = (sent.iter().sum::<usize>(), sent.iter().max().unwrap());
                (all as f64 / ranks as f64 / ring, *most as f64 / ring)
            })
            .collect();
        let same = (1.0, 1.0);
        assert_eq!(ratios, [same, (4.0 / 3.0, 1.5), same, (1.1, 1.5), same, same, same]);
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
    fn words_that_some_rank_has_are_added_up_and_others_left_alone() {
        // Of 8 rows of 2 values, with 4 values besides, the last of which is the tail; from half of them on, all rows count.
        const SHARES: [[Range<usize>; 2]; 2] = [[0..8, 8..19], [0..18, 18..19]];
        for hosts in [&["a", "a"][..], &["a", "b"], &["a", "a", "b", "b"]] {
            let ranks = hosts.len();
            for (touched, counted) in [([vec![1, 3], vec![3, 4]], 3 * 2 + 4), ([vec![0, 1, 2], vec![6, 7]], 8 * 2 + 4)]
            {
                for shares in &SHARES {
                    let one = |world: Threads| {
                        let rank = world.rank();
                        let host = Host::find_named(&world, hosts[rank], 19, 1).unwrap();
                        let share = if host.local().size() == 1 { 0..19 } else { shares[host.local().rank()].clone() };
                        let mut words = TouchedRows::none(8, 2);
                        words.extend(touched[rank % 2].clone());
                        let mut reduction = Reduction::new(Reproducible::Processes, 8, &world);
                        let mut buffer = host.gradients();
                        let gradient = floats_mut(&mut buffer);
                        // As a backward pass leaves them: nothing but the touched rows and the rest.
                        for i in words.ranges().into_iter().flatten().chain(16..20) {
                            gradient[i] = (i * (rank + 1)) as f32;
                        }
                        reduction.agree(&world, &mut words).unwrap();
                        let reduced = reduction.finish(&world, &host, &share, gradient, &words).unwrap();
                        let found: Vec<(usize, f32)> = share.chain([19]).map(|i| (i, gradient[i])).collect();
                        world.barrier("compared").unwrap();
                        (found, reduced)
                    };
                    let all: Vec<_> = std::thread::scope(|scope| {
                        let world = Threads::world(ranks, Duration::from_secs(60));
                        let threads: Vec<_> = world.into_iter().map(|world| scope.spawn(|| one(world))).collect();
                        threads.into_iter().map(|t| t.join().unwrap()).collect()
                    });
                    let of = |i: usize| {
                        let has = |rank: usize| i >= 16 || touched[rank % 2].contains(&(i / 2));
                        (0..ranks).filter(|&rank| has(rank)).map(|rank| (i * (rank + 1)) as f32).sum::<f32>()
                    };
                    let norm = (0..19).map(|i| f64::from(of(i)).powi(2)).sum::<f64>().sqrt();
                    for (found, reduced) in all {
                        assert!(found.iter().all(|&(i, sum)| sum == of(i)), "{hosts:?} {found:?}");
                        assert_eq!(reduced, Reduced { values: counted, norm });
                    }
                }
            }
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
