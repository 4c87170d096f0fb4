//! How work is cut into parts, one or more for each rank: by cost, so that no rank waits long for another.

/// What a sequence of `length` tokens costs in a model of width `hidden`, in units that all sequences share: in each layer
/// 24·length·hidden² operations of dense products, whose inner layer is four times as wide, and 4·length²·hidden of attention.
pub fn sequence_cost(length: usize, hidden: usize) -> u64 {
    (length * (6 * hidden + length)) as u64
}

/// Assigns items to `parts` so that the sums of their costs are close: each item, dearest first, goes to the part
/// that has least so far (longest processing time first). Returns each part's items in ascending order. With at
/// least as many items as parts, every part gets one.
pub fn slice_by_cost(costs: &[u64], parts: usize) -> Vec<Vec<usize>> {
    let mut dearest_first: Vec<usize> = (0..costs.len()).collect();
    dearest_first.sort_by_key(|&i| (std::cmp::Reverse(costs[i]), i));
    let mut slices: Vec<(u64, Vec<usize>)> = vec![(0, Vec::new()); parts];
    for i in dearest_first {
        // Ties go to the part with fewer items, then to the first: the same everywhere.
        if let Some(least) = slices.iter_mut().min_by_key(|(cost, items)| (*cost, items.len())) {
            least.0 += costs[i];
            least.1.push(i);
        }
    }
    let ascending = |(_, mut items): (u64, Vec<usize>)| {
        items.sort_unstable();
        items
    };
    slices.into_iter().map(ascending).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_item_has_one_rank_and_every_rank_an_item(
            costs in proptest::collection::vec(1u64..129, 1..80), ranks in 1usize..9,
        ) {
            let slices = slice_by_cost(&costs, ranks);
            let mut all: Vec<usize> = slices.iter().flatten().copied().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..costs.len()).collect::<Vec<_>>());
            if costs.len() >= ranks {
                prop_assert!(slices.iter().all(|s| !s.is_empty()));
            }
        }

        #[test]
        fn no_rank_carries_more_than_its_share_and_one_item(
            costs in proptest::collection::vec(1u64..129, 1..80), ranks in 1usize..9,
        ) {
            let mean = costs.iter().sum::<u64>() as f64 / ranks as f64;
            let largest = costs.iter().max().copied().unwrap_or(0) as f64;
            for slice in slice_by_cost(&costs, ranks) {
                prop_assert!(slice.iter().map(|&i| costs[i]).sum::<u64>() as f64 <= mean + largest);
            }
        }
    }
}
