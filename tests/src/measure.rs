//! What the benches measure with.

use crate::process_tree::tree;

/// The median; of an even number the upper one.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The most memory that a rank of the running `bam` of that process number has had in use so far, in MiB.
pub fn peak_of_ranks_mib(bam: i32) -> f64 {
    let ranks = tree(bam).into_iter().filter(|process| process.name == "bam-worker");
    ranks.filter_map(|rank| rank.peak_memory_mib()).fold(0.0, f64::max)
}
