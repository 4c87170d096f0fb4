//! Random numbers whose every bit is fixed by this file: data order must not change with a library's version.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::digest;

/// A stream of random numbers, named by what it is for.
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// The stream that `parts` name.
    pub fn named(parts: &[&str]) -> Self {
        Stream(ChaCha8Rng::from_seed(digest::seed(parts)))
    }

    /// Uniform in [0, 1), with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in 0..n by rejection, so that no value is favoured. `n` is at least 1.
    pub fn below(&mut self, n: u64) -> u64 {
        let limit = u64::MAX - u64::MAX % n;
        loop {
            let x = self.0.next_u64();
            if x < limit {
                return x % n;
            }
        }
    }
}

/// The numbers 0..n in an order that `seed` decides (Fisher–Yates).
pub fn shuffled(n: usize, seed: &[&str]) -> Vec<u32> {
    let mut stream = Stream::named(seed);
    let mut order: Vec<u32> = (0..n as u32).collect();
    for i in (1..n).rev() {
        order.swap(i, stream.below(i as u64 + 1) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_a_permutation_fixed_by_its_seed() {
        let order = shuffled(1000, &["a"]);
        assert_eq!(order, shuffled(1000, &["a"]));
        assert_ne!(order, shuffled(1000, &["b"]));
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
    }

    /// Frozen: a change here changes the data order of every run ever made.
    #[test]
    fn the_first_numbers_never_change() {
        assert_eq!(shuffled(8, &["frozen"]), FROZEN);
    }

    const FROZEN: [u32; 8] = [1, 0, 4, 2, 3, 6, 5, 7];
}
