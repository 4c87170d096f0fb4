//! Dropout whose masks are a function of seed, step, example and place, and of nothing else: not of the number of ranks, nor
//! of micro-batches. A mask is never stored. Who needs it again, in the backward pass, computes it again: a few
//! operations a value, against ten nanoseconds for a value of a sequential generator.

use bam_cluster::digest;
use multiversion::multiversion;

/// The stream of one training step.
#[derive(Debug, Clone, Copy)]
pub struct StepSeed(u64);

/// What an example's masks in one step follow from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropoutKey(u64);

/// What follows from an example's key for one row of values.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowKey([u32; 2]);

/// Where in the model a mask is for. The same for all examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Site {
    Embeddings,
    /// Attention weights of a layer; rows are heads.
    Attention(usize),
    /// The projection of what a layer has attended to; rows are tokens.
    Projection(usize),
    /// The output of a layer's feed-forward network; rows are tokens.
    FeedForward(usize),
    Pooler,
}

/// Values whose masks are made at once: each random number decides on two, one with each half.
const AT_ONCE: usize = 32;
const LANES: usize = AT_ONCE / 2;

impl StepSeed {
    /// The stream of step number `step` of the training with this seed.
    pub fn new(seed: u64, step: u64) -> Self {
        StepSeed(digest::seed_u64(&["dropout", &seed.to_string(), &step.to_string()]))
    }

    /// The key of the example at this place in the step's global batch.
    pub fn example(self, place: usize) -> DropoutKey {
        DropoutKey(mix(self.0.wrapping_add(place as u64)))
    }
}

impl DropoutKey {
    /// A seed for a generator of libtorch's, where masks come from there.
    pub fn seed(self) -> i64 {
        self.0.cast_signed()
    }

    pub(super) fn row(self, site: Site, row: usize) -> RowKey {
        let site = match site {
            Site::Embeddings => 0,
            Site::Pooler => 1,
            Site::Attention(layer) => 2 + 3 * layer,
            Site::Projection(layer) => 3 + 3 * layer,
            Site::FeedForward(layer) => 4 + 3 * layer,
        };
        let bits = mix(self.0 ^ ((site as u64) << 40) ^ row as u64);
        RowKey([bits as u32, (bits >> 32) as u32])
    }
}

/// A bijection whose every output bit depends on every input bit (the finaliser of Steele, Lea and Flood's SplitMix64, 2014).
fn mix(bits: u64) -> u64 {
    let x = bits.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// How often values are dropped: a multiple of 2⁻¹⁶, and the factor that keeps the mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rate {
    threshold: u32,
    scale: f32,
}

impl Rate {
    /// The rate nearest to `probability`; none if nothing is dropped.
    pub fn new(probability: f64) -> Option<Rate> {
        const STEPS: f64 = 65_536.0;
        let threshold = (probability * STEPS).round().clamp(0.0, STEPS - 1.0);
        (threshold > 0.0).then_some(Rate { threshold: threshold as u32, scale: (STEPS / (STEPS - threshold)) as f32 })
    }
}

/// The mask of a row: 0 for values that are dropped, 1/(1−p) for others.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub(super) fn mask(key: RowKey, rate: Rate, mask: &mut [f32]) {
    let RowKey([start, twist]) = key;
    let value = |random: u32| if random >= rate.threshold { rate.scale } else { 0.0 };
    let block = |number: usize| {
        let mut values = [0f32; AT_ONCE];
        let (low, high) = values.split_at_mut(LANES);
        let first = start.wrapping_add((number * LANES) as u32);
        for (lane, (low, high)) in low.iter_mut().zip(high).enumerate() {
            // Wellons' "lowbias32" with the second half of the key in its middle.
            let x = first.wrapping_add(lane as u32);
            let x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D) ^ twist;
            let x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
            let x = x ^ (x >> 16);
            *low = value(x & 0xFFFF);
            *high = value(x >> 16);
        }
        values
    };
    let (blocks, rest) = mask.as_chunks_mut::<AT_ONCE>();
    let count = blocks.len();
    for (number, values) in blocks.iter_mut().enumerate() {
        *values = block(number);
    }
    if !rest.is_empty() {
        rest.copy_from_slice(&block(count)[..rest.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(key: RowKey, probability: f64, length: usize) -> Vec<f32> {
        let mut values = vec![f32::NAN; length];
        mask(key, Rate::new(probability).unwrap(), &mut values);
        values
    }

    fn row(step: u64, place: usize, site: Site, row: usize) -> RowKey {
        StepSeed::new(1, step).example(place).row(site, row)
    }

    #[test]
    fn a_mask_depends_on_everything_and_on_nothing_else() {
        let keys = [
            row(0, 0, Site::Embeddings, 0),
            row(1, 0, Site::Embeddings, 0),
            row(0, 1, Site::Embeddings, 0),
            row(0, 0, Site::Embeddings, 1),
            row(0, 0, Site::Pooler, 0),
            row(0, 0, Site::Attention(0), 0),
            row(0, 0, Site::Projection(0), 0),
            row(0, 0, Site::FeedForward(0), 0),
            row(0, 0, Site::Attention(1), 0),
        ];
        let masks: Vec<Vec<f32>> = keys.iter().map(|key| of(*key, 0.5, 200)).collect();
        for (i, one) in masks.iter().enumerate() {
            assert!(masks[i + 1..].iter().all(|other| other != one));
        }
        assert_eq!(masks[0], of(row(0, 0, Site::Embeddings, 0), 0.5, 200));
        // A shorter row is the beginning of a longer one but for the last values.
        assert_eq!(masks[0][..64], of(keys[0], 0.5, 70)[..64]);
    }

    #[test]
    fn values_are_dropped_at_the_rate_and_independently() {
        let (rows, width) = (2_000, 384);
        for probability in [0.1, 0.3] {
            let masks: Vec<Vec<f32>> =
                (0..rows).map(|r| of(row(3, r / 40, Site::Projection(2), r % 40), probability, width)).collect();
            let dropped = |mask: &[f32]| mask.iter().filter(|v| **v == 0.0).count() as f64;
            let all: f64 = masks.iter().map(|m| dropped(m)).sum();
            let n = (rows * width) as f64;
            // Four standard deviations.
            let near = |found: f64, p: f64, n: f64| (found / n - p).abs() < 4.0 * (p * (1.0 - p) / n).sqrt() + 1e-5;
            assert!(near(all, probability, n), "{}", all / n);
            for column in 0..width {
                let of_column = masks.iter().filter(|m| m[column] == 0.0).count() as f64;
                // One of 384 may be beyond four.
                assert!((of_column / rows as f64 - probability).abs() < 0.055, "column {column}");
            }
            // Neighbours, halves of one random number, and rows next to each other.
            for (down, right) in [(0, 1), (0, LANES), (0, AT_ONCE), (1, 0), (40, 0)] {
                let both = |r: usize| {
                    let (here, there) = (&masks[r], &masks[r + down]);
                    (0..width - right).filter(|&c| here[c] == 0.0 && there[c + right] == 0.0).count() as f64
                };
                let pairs = ((rows - down) * (width - right)) as f64;
                let found: f64 = (0..rows - down).map(both).sum();
                assert!(near(found, probability * probability, pairs), "{down} {right}: {}", found / pairs);
            }
            let mean: f64 = masks.iter().flatten().map(|v| f64::from(*v)).sum::<f64>() / n;
            assert!((mean - 1.0).abs() < 3e-3, "{mean}");
        }
    }

    #[test]
    fn a_rate_of_zero_is_none() {
        assert_eq!(Rate::new(0.0), None);
        assert_eq!(Rate::new(0.1), Some(Rate { threshold: 6554, scale: 65_536.0 / 58_982.0 }));
    }
}
