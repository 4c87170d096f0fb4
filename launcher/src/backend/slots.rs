//! Which ranks of a run are where: stages that run side by side have slots of their own, and with them nodes, cores and
//! GPUs.

use std::collections::BTreeSet;

/// Slots for a run's ranks, node by node, and which of them are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots {
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    slots: usize,
    taken: BTreeSet<usize>,
}

/// The slots of one stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seats {
    /// Its first node, counted from 0.
    pub first: usize,
    /// How many of its ranks are on this node and on each that follows.
    pub ranks: Vec<usize>,
    /// How many nodes there are.
    pub of: usize,
    /// Which slots of its node it has, counted from 0, if other stages may have the others; empty: all slots of its nodes.
    pub places: Vec<usize>,
}

impl Seats {
    /// How many ranks it has.
    pub fn count(&self) -> usize {
        self.ranks.iter().sum()
    }

    /// Whether it has all nodes.
    pub fn is_everywhere(&self) -> bool {
        self.ranks.len() == self.of && self.places.is_empty()
    }

    /// Its first node, if it has not all of them.
    pub fn first_of_some(&self) -> Option<usize> {
        (self.ranks.len() < self.of).then_some(self.first)
    }
}

impl Slots {
    /// On nodes with so many slots each.
    pub fn on(nodes: impl IntoIterator<Item = usize>) -> Slots {
        let node = |slots| Node { slots, taken: BTreeSet::new() };
        Slots { nodes: nodes.into_iter().map(node).collect() }
    }

    /// For so many ranks, evenly on so many nodes.
    pub fn even(nodes: usize, ranks: usize) -> Slots {
        let nodes = nodes.max(1);
        Slots::on(std::iter::repeat_n(ranks.div_ceil(nodes).max(1), nodes))
    }

    /// Where so many ranks are that have everything to themselves: from the first node on.
    pub fn all(&self, ranks: usize) -> Seats {
        let (on, _) = spread(&self.nodes, ranks);
        Seats { first: 0, ranks: on, of: self.nodes.len(), places: vec![] }
    }

    /// Free slots for so many ranks, if there are any.
    ///
    /// They are on one node if they fit on one: of those that have room on the one with the least, so that whole nodes stay
    /// free. More ranks have nodes for themselves, one after the other.
    pub fn find(&self, ranks: usize) -> Option<Seats> {
        let of = self.nodes.len();
        if ranks == 0 {
            return Some(Seats { first: 0, ranks: vec![], of, places: vec![] });
        }
        if self.nodes.iter().any(|node| node.slots >= ranks) {
            let room = |node: &Node| node.slots - node.taken.len();
            let with_room = (0..of).filter(|&n| room(&self.nodes[n]) >= ranks);
            let first = with_room.min_by_key(|&n| room(&self.nodes[n]))?;
            let node = &self.nodes[first];
            let free = (0..node.slots).filter(|slot| !node.taken.contains(slot));
            let places = if ranks == node.slots { vec![] } else { free.take(ranks).collect() };
            return Some(Seats { first, ranks: vec![ranks], of, places });
        }
        let whole = |first: usize| {
            let (on, left) = spread(self.nodes[first..].iter().take_while(|node| node.taken.is_empty()), ranks);
            (left == 0).then_some(Seats { first, ranks: on, of, places: vec![] })
        };
        (0..of).find_map(whole)
    }

    /// These are a stage's from now on.
    pub fn take(&mut self, seats: &Seats) {
        for (node, slots) in self.slots_of(seats) {
            self.nodes[node].taken.extend(slots);
        }
    }

    /// The stage that had these has ended.
    pub fn give_back(&mut self, seats: &Seats) {
        for (node, slots) in self.slots_of(seats) {
            self.nodes[node].taken.retain(|slot| !slots.contains(slot));
        }
    }

    /// Nodes, and the slots of each.
    fn slots_of(&self, seats: &Seats) -> Vec<(usize, Vec<usize>)> {
        let nodes = seats.first..seats.first + seats.ranks.len();
        let of_node = |node: usize| match &seats.places[..] {
            [] => (0..self.nodes[node].slots).collect(),
            places => places.to_vec(),
        };
        nodes.map(|node| (node, of_node(node))).collect()
    }
}

/// So many ranks on nodes that they fill one after the other: how many are on each, and how many find no place.
fn spread<'a>(nodes: impl IntoIterator<Item = &'a Node>, ranks: usize) -> (Vec<usize>, usize) {
    let (mut on, mut left) = (vec![], ranks);
    for node in nodes {
        if left == 0 {
            break;
        }
        on.push(left.min(node.slots));
        left -= left.min(node.slots);
    }
    (on, left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn taken(slots: &mut Slots, ranks: usize) -> Option<(usize, Vec<usize>, Vec<usize>)> {
        let seats = slots.find(ranks)?;
        slots.take(&seats);
        Some((seats.first, seats.ranks, seats.places))
    }

    #[test]
    fn eight_models_have_a_gpu_each_and_a_freed_one_is_taken_again() {
        let mut slots = Slots::even(1, 8);
        let seats: Vec<Seats> = (0..8)
            .map(|place| {
                let seats = slots.find(1).unwrap();
                assert_eq!((seats.first, &seats.ranks[..], &seats.places[..]), (0, &[1][..], &[place][..]));
                slots.take(&seats);
                seats
            })
            .collect();
        assert_eq!(slots.find(1), None);
        // Ended out of order.
        slots.give_back(&seats[5]);
        slots.give_back(&seats[2]);
        assert_eq!(taken(&mut slots, 2), Some((0, vec![2], vec![2, 5])));
        assert_eq!(slots.find(1), None);
    }

    #[test]
    fn a_stage_of_all_ranks_waits_for_all_nodes_and_has_them_to_itself() {
        let mut slots = Slots::even(2, 8);
        let one = slots.find(3).unwrap();
        slots.take(&one);
        assert_eq!(slots.find(8), None);
        slots.give_back(&one);
        let all = slots.find(8).unwrap();
        assert!(all.is_everywhere() && all.count() == 8 && all.first_of_some().is_none());
        slots.take(&all);
        assert_eq!(slots.find(1), None);
    }

    #[test]
    fn small_stages_leave_whole_nodes_to_large_ones() {
        let mut slots = Slots::even(4, 16);
        assert_eq!(taken(&mut slots, 1), Some((0, vec![1], vec![0])));
        assert_eq!(taken(&mut slots, 2), Some((0, vec![2], vec![1, 2])));
        assert_eq!(taken(&mut slots, 8), Some((1, vec![4, 4], vec![])));
        assert_eq!(taken(&mut slots, 4), Some((3, vec![4], vec![])));
        assert_eq!((slots.find(2), slots.find(1).unwrap().places), (None, vec![3]));
    }

    #[test]
    fn nodes_may_differ() {
        let mut slots = Slots::on([2, 6, 4]);
        assert_eq!(taken(&mut slots, 8), Some((0, vec![2, 6], vec![])));
        assert_eq!(taken(&mut slots, 3), Some((2, vec![3], vec![0, 1, 2])));
        // More nodes than ranks.
        assert_eq!(Slots::even(4, 2).find(2).unwrap().ranks, [1, 1]);
    }

    proptest! {
        /// Whatever starts and ends in whatever order: nobody shares a slot, and at the end all are free.
        #[test]
        fn no_two_stages_share_a_slot(
            nodes in prop::collection::vec(1usize..6, 1..5),
            starts in prop::collection::vec((1usize..12, any::<prop::sample::Index>()), 1..40),
        ) {
            let total: usize = nodes.iter().sum();
            let mut slots = Slots::on(nodes.clone());
            let mut running: Vec<Seats> = vec![];
            for (ranks, ends) in starts {
                let ranks = ranks.min(total);
                while slots.find(ranks).is_none() {
                    prop_assert!(!running.is_empty(), "{} ranks never fit on {:?}", ranks, nodes);
                    slots.give_back(&running.swap_remove(ends.index(running.len())));
                }
                let seats = slots.find(ranks).unwrap();
                prop_assert_eq!(seats.count(), ranks);
                let taken: Vec<(usize, usize)> = running.iter().flat_map(|r| slots.slots_of(r))
                    .flat_map(|(node, own)| own.into_iter().map(move |slot| (node, slot))).collect();
                for (node, own) in slots.slots_of(&seats) {
                    prop_assert!(own.iter().all(|slot| *slot < nodes[node] && !taken.contains(&(node, *slot))));
                }
                slots.take(&seats);
                running.push(seats);
            }
            running.iter().for_each(|seats| slots.give_back(seats));
            prop_assert_eq!(slots, Slots::on(nodes));
        }
    }
}
