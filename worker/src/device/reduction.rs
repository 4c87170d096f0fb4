//! How the gradients of a global batch's shards become one sum on devices: in buckets, from the last layer on, while the
//! backward pass goes on; or in the fixed tree of `reproducible: world-size`, which gives the same bits for every number of ranks.

use std::collections::BTreeSet;
use std::ops::Range;

use anyhow::Result;
use bam_cluster::comm::Communicator;
use bam_cluster::config::{ReducePrecision, Reproducible};
use tch::{Kind, Tensor};

use super::learner::{Exchange, Together};
use super::parameters::download;
use crate::comm::DeviceReducer;
use crate::comm::nccl::{DeviceTreeSum, Nccl};
use crate::gradient::{Tree, TreeSum};

/// Bytes of float32 gradients that are sent together at least: large enough for the network, small enough to begin early.
const BUCKET: usize = 25 << 20;

/// The sum over all shards of a global batch.
pub(super) struct DeviceReduction {
    tree: Tree,
    own: Range<usize>,
    way: Way,
    /// Rows of the word embeddings, and values of each.
    words: [usize; 2],
}

/// How sums come about.
enum Way {
    Buckets(Buckets),
    Tree { sum: FixedTree, pending: Vec<Tensor> },
}

/// Who adds up what ranks have of the tree.
enum FixedTree {
    Devices(DeviceTreeSum, Nccl),
    Hosts(TreeSum),
}

struct Buckets {
    exchange: Exchange,
    precision: ReducePrecision,
    /// What is sent together, from the end of the flat buffer to the word embeddings.
    ranges: Vec<Range<usize>>,
    /// How many of them were begun in this step.
    begun: usize,
    /// Copies in bfloat16 that are being added up, with their places.
    rounded: Vec<(Tensor, Range<usize>)>,
    /// Words of this rank's batch, then of all ranks'.
    touched: BTreeSet<u32>,
}

impl DeviceReduction {
    /// For the ranks that train together a model of so many parameters that begins with `words` rows of so many values.
    /// `cuts`, descending: where the flat buffer may be cut.
    pub fn new(together: Together, parameters: usize, words: [usize; 2], cuts: &[usize]) -> Self {
        let Together { world, reproducible, virtual_shards, exchange, reduce_precision: precision } = together;
        let (rank, ranks) = (world.rank(), world.size());
        let (tree, way) = match reproducible {
            Reproducible::Processes => {
                let ranges = buckets(parameters, words[0] * words[1], cuts);
                let buckets =
                    Buckets { exchange, precision, ranges, begun: 0, rounded: vec![], touched: BTreeSet::new() };
                (Tree::over(ranks), Way::Buckets(buckets))
            }
            Reproducible::WorldSize => {
                let tree = Tree::over(virtual_shards);
                let sum = match exchange {
                    Exchange::Nccl(nccl) => FixedTree::Devices(DeviceTreeSum::new(tree, ranks), nccl),
                    Exchange::Staged(_) => FixedTree::Hosts(TreeSum::new(tree, ranks)),
                };
                (tree, Way::Tree { sum, pending: vec![] })
            }
        };
        DeviceReduction { tree, own: tree.shards_of(rank, ranks), way, words }
    }

    /// How many shards a global batch is cut into.
    pub fn shards(&self) -> usize {
        self.tree.shards()
    }

    /// Those of this rank.
    pub fn own(&self) -> Range<usize> {
        self.own.clone()
    }

    /// The words of a micro-batch of this rank.
    pub fn touch(&mut self, words: impl Iterator<Item = u32>) {
        if let Way::Buckets(buckets) = &mut self.way {
            buckets.touched.extend(words);
        }
    }

    /// The gradients from `start` on are complete on this rank.
    ///
    /// # Errors
    /// A sum cannot come about.
    pub fn complete_from(&mut self, gradients: &Tensor, start: usize) -> Result<()> {
        match &mut self.way {
            Way::Buckets(buckets) => buckets.begin_from(gradients, start),
            Way::Tree { .. } => Ok(()),
        }
    }

    /// Takes the gradient of one of this rank's shards, which come in order. All but the last leave `gradients` to the next.
    pub fn take(&mut self, shard: usize, gradients: &Tensor) {
        let Way::Tree { pending, .. } = &mut self.way else { return };
        let mut sum = gradients.shallow_clone();
        for _ in 0..self.tree.nodes_completed(self.own.start, shard) {
            if let Some(left) = pending.pop() {
                sum += left;
            }
        }
        if shard + 1 < self.own.end {
            pending.push(sum.copy());
        }
    }

    /// Finds out which word embeddings have a gradient on any rank.
    ///
    /// # Errors
    /// The collective did not come about.
    pub fn agree(&mut self, world: &dyn Communicator) -> Result<()> {
        let Way::Buckets(buckets) = &mut self.way else { return Ok(()) };
        if world.size() > 1 {
            let own: Vec<u32> = buckets.touched.iter().copied().collect();
            for rows in world.all_gather("words of the batch", bytemuck::cast_slice(&own))? {
                buckets.touched.extend(rows.as_chunks::<4>().0.iter().map(|row| u32::from_ne_bytes(*row)));
            }
        }
        Ok(())
    }

    /// Makes `gradients`, with the tail behind the parameters, the sum over the shards of all ranks. Returns how many values
    /// this rank handed in.
    ///
    /// # Errors
    /// A collective did not come about.
    pub fn finish(&mut self, world: &dyn Communicator, gradients: &Tensor, parameters: usize) -> Result<usize> {
        let [rows, width] = self.words;
        match &mut self.way {
            Way::Buckets(buckets) => {
                let values = buckets.finish(gradients, parameters, rows, width)?;
                Ok(if world.size() > 1 { values } else { 0 })
            }
            Way::Tree { sum, pending } => {
                if world.size() == 1 {
                    return Ok(0);
                }
                let nodes: Vec<Tensor> = pending.drain(..).chain([gradients.shallow_clone()]).collect();
                match sum {
                    FixedTree::Devices(sum, nccl) => {
                        sum.sum(nccl, &nodes)?;
                        nccl.settle("gradients")?;
                    }
                    FixedTree::Hosts(sum) => sum_on_hosts(sum, world, &nodes)?,
                }
                Ok(gradients.numel())
            }
        }
    }

    /// For the log.
    pub fn name(&self) -> String {
        match &self.way {
            Way::Buckets(buckets) => buckets.exchange.reducer().name(),
            Way::Tree { sum: FixedTree::Devices(_, nccl), .. } => format!("{}, in a fixed tree", nccl.name()),
            Way::Tree { sum: FixedTree::Hosts(_), .. } => "MPI, in a fixed tree through the hosts".to_owned(),
        }
    }
}

impl Buckets {
    /// Begins all buckets that lie from `start` on and were not begun yet: the same ones in the same order on every rank.
    fn begin_from(&mut self, gradients: &Tensor, start: usize) -> Result<()> {
        while let Some(range) = self.ranges.get(self.begun).filter(|range| range.start >= start) {
            let part = gradients.narrow(0, range.start as i64, range.len() as i64);
            match self.precision {
                ReducePrecision::Fp32 => self.exchange.reducer().sum("gradients", &part)?,
                ReducePrecision::Bf16 => {
                    let rounded = part.to_kind(Kind::BFloat16);
                    self.exchange.reducer().sum("gradients", &rounded)?;
                    self.rounded.push((rounded, range.clone()));
                }
            }
            self.begun += 1;
        }
        Ok(())
    }

    fn finish(&mut self, gradients: &Tensor, parameters: usize, rows: usize, width: usize) -> Result<usize> {
        self.begin_from(gradients, 0)?;
        let touched = std::mem::take(&mut self.touched);
        let matrix = gradients.narrow(0, 0, (rows * width) as i64).view([rows as i64, width as i64]);
        // Rows are copied there and back; whoever has most of them had better send the matrix as it is.
        let sparse = (2 * touched.len() <= rows).then(|| {
            let index: Vec<i64> = touched.iter().map(|row| i64::from(*row)).collect();
            let index = Tensor::from_slice(&index).to_device(gradients.device());
            let packed = matrix.index_select(0, &index);
            (index, packed)
        });
        let sent_words = match &sparse {
            Some((_, packed)) => packed,
            None => &matrix,
        };
        self.exchange.reducer().sum("gradients of words", sent_words)?;
        let tail = gradients.narrow(0, parameters as i64, gradients.size()[0] - parameters as i64);
        self.exchange.reducer().sum("losses", &tail)?;
        self.exchange.reducer().wait()?;
        if let Some((index, packed)) = &sparse {
            let _ = matrix.shallow_clone().index_copy_(0, index, packed);
        }
        for (rounded, range) in self.rounded.drain(..) {
            gradients.narrow(0, range.start as i64, range.len() as i64).copy_(&rounded);
        }
        self.exchange.reducer().settle("gradients")?;
        self.begun = 0;
        let dense: usize = self.ranges.iter().map(Range::len).sum();
        Ok(dense + sent_words.numel() + tail.numel())
    }
}

/// Makes the last of `nodes`, which are this rank's, the sum of all ranks' nodes.
fn sum_on_hosts(sum: &mut TreeSum, world: &dyn Communicator, nodes: &[Tensor]) -> Result<()> {
    let mut values: Vec<Vec<f32>> = nodes.iter().map(download).collect();
    let Some(mut own) = values.pop() else { return Ok(()) };
    sum.finish(world, &values, &mut own)?;
    nodes[nodes.len() - 1].shallow_clone().copy_(&Tensor::from_slice(&own));
    Ok(())
}

/// Cuts the flat buffer behind the word embeddings into buckets, the last one first.
fn buckets(parameters: usize, words: usize, cuts: &[usize]) -> Vec<Range<usize>> {
    let mut buckets = vec![];
    let mut end = parameters;
    for &cut in cuts.iter().filter(|&&cut| cut > words) {
        if (end - cut) * size_of::<f32>() >= BUCKET {
            buckets.push(cut..end);
            end = cut;
        }
    }
    if end > words {
        buckets.push(words..end);
    }
    buckets
}

/// The global norm of a flat gradient (of the parameters alone): summed by rows in float32 and over rows in float64, in the
/// same order every time.
pub(super) fn global_norm(gradients: &Tensor) -> Tensor {
    const WIDTH: i64 = 4096;
    let n = gradients.size()[0];
    let whole = n / WIDTH * WIDTH;
    let squares = |t: Tensor, dim: i64| t.norm_scalaropt_dim(2, [dim].as_slice(), false).to_kind(Kind::Double);
    let rows = squares(gradients.narrow(0, 0, whole).view([-1, WIDTH]), 1);
    let rest = squares(gradients.narrow(0, whole, n - whole).view([1, -1]), 1);
    Tensor::cat(&[rows, rest], 0).norm()
}

/// The values of a device tensor that the host needs, in float64.
pub(super) fn read(tensor: &Tensor) -> Vec<f64> {
    let values = tensor.to_kind(Kind::Double).to_device(tch::Device::Cpu).contiguous();
    Vec::try_from(values).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::tensor_memory::floats;

    #[test]
    fn buckets_are_large_enough_and_cover_what_is_behind_the_words() {
        let million = 1_000_000;
        let cuts: Vec<usize> = (1..10).rev().map(|i| i * 4 * million).collect();
        let found = buckets(40 * million, 5 * million, &cuts);
        assert_eq!(
            found,
            [
                32 * million..40 * million,
                24 * million..32 * million,
                16 * million..24 * million,
                8 * million..16 * million,
                5 * million..8 * million
            ]
        );
        assert_eq!(buckets(100, 20, &[60, 20]), vec![20..100]);
    }

    #[test]
    fn the_norm_is_that_of_float64() {
        for n in [5, 4096, 10_000] {
            let x = Tensor::randn([n], (Kind::Float, Device::Cpu));
            let expected: f64 = floats(&x).iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            assert!((global_norm(&x).double_value(&[]) / expected - 1.0).abs() < 1e-6);
        }
    }
}
