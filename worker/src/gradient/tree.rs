//! The fixed tree in which the gradients of virtual shards are added up: whoever adds, and wherever, each addition has
//! the same two operands, so that the sum has the same bits for every number of ranks.
//!
//! The tree's leaves are the shards. A node covers neighbouring shards and splits them in the middle; its value is that
//! of its left half plus that of its right half. A rank that has some neighbouring shards adds up the largest nodes that
//! lie within them, and whoever has these nodes of all ranks adds up the rest.

use std::ops::Range;

/// The tree over so many shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tree {
    shards: usize,
}

impl Tree {
    /// The tree over `shards` shards, at least one.
    pub fn over(shards: usize) -> Self {
        Tree { shards }
    }

    /// Number of shards.
    pub fn shards(self) -> usize {
        self.shards
    }

    /// The shards of one rank: neighbours, and as many as others have, or one more. With at least as many shards as ranks,
    /// every rank has one.
    pub fn shards_of(self, rank: usize, ranks: usize) -> Range<usize> {
        rank * self.shards / ranks..(rank + 1) * self.shards / ranks
    }

    /// The largest nodes that lie within these shards and cover them all, in order.
    pub fn nodes_within(self, shards: &Range<usize>) -> Vec<Range<usize>> {
        let mut nodes = vec![];
        add_nodes(0..self.shards, shards, &mut nodes);
        nodes
    }

    /// How many nodes of more than one shard end with shard `last` and begin no earlier than shard `first`. When shards
    /// are added up from `first` on, so many additions become possible with `last`.
    pub fn nodes_completed(self, first: usize, last: usize) -> usize {
        let (mut node, mut completed) = (0..self.shards, 0);
        while node.len() > 1 {
            completed += usize::from(node.end == last + 1 && node.start >= first);
            let (left, right) = halves(&node);
            node = if left.contains(&last) { left } else { right };
        }
        completed
    }

    /// Where the nodes of each of so many ranks are in the order of all, and the additions that make the sum of them.
    pub fn shared_by(self, ranks: usize) -> (Vec<Range<usize>>, Vec<(usize, usize)>) {
        let (mut nodes, mut places) = (vec![], vec![]);
        for rank in 0..ranks {
            let first = nodes.len();
            nodes.extend(self.nodes_within(&self.shards_of(rank, ranks)));
            places.push(first..nodes.len());
        }
        (places, self.additions(&nodes))
    }

    /// The additions that make the sum of all shards from these nodes, which follow one another and cover them all: each
    /// `(into, what)` adds the value of the second to that of the first. The sum is in the first node's place.
    pub fn additions(self, nodes: &[Range<usize>]) -> Vec<(usize, usize)> {
        let mut additions = vec![];
        add_additions(&(0..self.shards), nodes, &mut additions);
        additions
    }
}

fn halves(node: &Range<usize>) -> (Range<usize>, Range<usize>) {
    let middle = node.start.midpoint(node.end);
    (node.start..middle, middle..node.end)
}

fn add_nodes(node: Range<usize>, within: &Range<usize>, nodes: &mut Vec<Range<usize>>) {
    if within.start <= node.start && node.end <= within.end {
        nodes.push(node);
    } else if node.start < within.end && within.start < node.end {
        let (left, right) = halves(&node);
        add_nodes(left, within, nodes);
        add_nodes(right, within, nodes);
    }
}

/// Returns the place in which the node's value is then.
fn add_additions(node: &Range<usize>, nodes: &[Range<usize>], additions: &mut Vec<(usize, usize)>) -> usize {
    if let Some(place) = nodes.iter().position(|n| n == node) {
        return place;
    }
    let (left, right) = halves(node);
    let into = add_additions(&left, nodes, additions);
    let what = add_additions(&right, nodes, additions);
    additions.push((into, what));
    into
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The sum as a formula, the way the tree defines it.
    fn formula(node: Range<usize>) -> String {
        if node.len() == 1 {
            return node.start.to_string();
        }
        let (left, right) = halves(&node);
        format!("({}+{})", formula(left), formula(right))
    }

    /// The sum as a formula, the way so many ranks come to it.
    fn formula_of_ranks(tree: Tree, ranks: usize) -> String {
        let (mut nodes, mut values) = (vec![], vec![]);
        for rank in 0..ranks {
            let shards = tree.shards_of(rank, ranks);
            let mut own: Vec<String> = vec![];
            for shard in shards.clone() {
                let mut value = shard.to_string();
                for _ in 0..tree.nodes_completed(shards.start, shard) {
                    value = format!("({}+{value})", own.pop().unwrap());
                }
                own.push(value);
            }
            let within = tree.nodes_within(&shards);
            let expected: Vec<String> = within.iter().cloned().map(formula).collect();
            assert_eq!(own, expected, "rank {rank} of {ranks}");
            nodes.extend(within);
            values.extend(own);
        }
        for (into, what) in tree.additions(&nodes) {
            assert!(into < what);
            values[into] = format!("({}+{})", values[into], values[what]);
        }
        values.swap_remove(0)
    }

    proptest! {
        #[test]
        fn any_number_of_ranks_makes_the_same_additions(shards in 1usize..40, share in 0.0f64..1.0) {
            let ranks = 1 + (share * shards as f64) as usize;
            prop_assert_eq!(formula_of_ranks(Tree::over(shards), ranks), formula(0..shards));
        }

        #[test]
        fn every_rank_has_its_part(shards in 1usize..100, share in 0.0f64..1.0) {
            let ranks = 1 + (share * shards as f64) as usize;
            let parts: Vec<Range<usize>> = (0..ranks).map(|r| Tree::over(shards).shards_of(r, ranks)).collect();
            prop_assert_eq!((parts[0].start, parts[ranks - 1].end), (0, shards));
            prop_assert!(parts.windows(2).all(|p| p[0].end == p[1].start));
            let (least, most) = (shards / ranks, shards.div_ceil(ranks));
            prop_assert!(parts.iter().all(|p| (least..=most).contains(&p.len())));
        }
    }

    #[test]
    fn powers_of_two_need_one_node_a_rank() {
        for (shards, ranks) in [(8, 1), (8, 2), (8, 4), (8, 8), (64, 16)] {
            let tree = Tree::over(shards);
            assert!((0..ranks).all(|r| tree.nodes_within(&tree.shards_of(r, ranks)).len() == 1), "{shards}, {ranks}");
        }
        assert_eq!(Tree::over(8).nodes_within(&(2..5)), [2..4, 4..5]);
        assert_eq!(formula_of_ranks(Tree::over(5), 2), "((0+1)+(2+(3+4)))");
    }
}
