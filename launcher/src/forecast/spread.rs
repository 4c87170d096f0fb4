//! How a stage's batches are spread over ranks, and what its ranks send one another.

use bam_cluster::config::Reproducible;
use serde::Serialize;

/// The machines of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Layout {
    /// Hosts.
    pub nodes: usize,
    /// Ranks on all of them.
    pub processes: usize,
    /// GPUs of each host, one for a rank; none: ranks compute on CPUs.
    pub gpus_per_node: Option<usize>,
}

/// What of each batch is one rank's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Share {
    /// Examples of the rank that has fewest.
    pub fewest: usize,
    /// Examples of the rank that has most.
    pub most: usize,
    /// Forward and backward passes for them.
    pub micro_batches: usize,
    /// Examples of the largest of those.
    pub micro_batch: usize,
}

impl Layout {
    /// Ranks on each host.
    pub fn ranks_on_a_node(&self) -> usize {
        self.processes.div_ceil(self.nodes.max(1)).max(1)
    }

    /// Hosts of a stage with so many ranks.
    pub fn nodes_of(&self, ranks: usize) -> usize {
        ranks.div_ceil(self.ranks_on_a_node()).max(1)
    }

    /// Bytes that a rank sends in each step to have gradients of so many bytes added up with those of all other ranks.
    ///
    /// GPUs do it in a ring of all n ranks: 2(n−1)/n of the bytes. CPU ranks read one another's gradients within a host; each of a
    /// host's L ranks exchanges its share, 1/L, with those of the other H hosts: 2(H−1)/H of it.
    pub fn bytes_sent(&self, gradient: f64, ranks: usize) -> f64 {
        let ring = |n: usize| 2.0 * (n as f64 - 1.0) / n as f64;
        match self.gpus_per_node {
            Some(_) => ring(ranks) * gradient,
            None => ring(self.nodes_of(ranks)) * gradient / ranks.min(self.ranks_on_a_node()) as f64,
        }
    }
}

impl Share {
    /// A rank's share of a batch. A batch is cut into a shard for each rank or, with `reproducible: world-size`, into
    /// `virtual_shards`; micro-batches do not reach beyond a shard.
    pub fn of(
        batch: usize,
        ranks: usize,
        reproducible: Reproducible,
        virtual_shards: usize,
        micro: Option<usize>,
    ) -> Share {
        let shards = match reproducible {
            Reproducible::Processes => ranks,
            Reproducible::WorldSize => virtual_shards,
        };
        let (shards, ranks) = (shards.max(1), ranks.max(1));
        let largest = batch.div_ceil(shards);
        let micro_batch = micro.unwrap_or(largest).min(largest).max(1);
        let most_shards = shards.div_ceil(ranks);
        Share {
            fewest: (shards / ranks) * (batch / shards),
            most: (most_shards * largest).min(batch),
            micro_batches: most_shards * largest.div_ceil(micro_batch).max(1),
            micro_batch,
        }
    }

    /// How much of the ranks' time is spent waiting for those that have more examples, as a share.
    pub fn waiting(&self, batch: usize, ranks: usize) -> f64 {
        1.0 - batch as f64 / (self.most.max(1) * ranks.max(1)) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_go_round_in_a_ring() {
        let gpus = Layout { nodes: 16, processes: 128, gpus_per_node: Some(8) };
        assert_eq!(gpus.bytes_sent(128.0, 128), 254.0);
        assert_eq!(gpus.bytes_sent(128.0, 1), 0.0);
        let cores = Layout { nodes: 4, processes: 8, gpus_per_node: None };
        // Half of it, to three other hosts and back.
        assert_eq!(cores.bytes_sent(128.0, 8), 96.0);
        assert_eq!((cores.bytes_sent(128.0, 2), cores.nodes_of(2), cores.nodes_of(3)), (0.0, 1, 2));
    }

    #[test]
    fn shares_are_as_even_as_they_can_be() {
        let of = |batch, ranks, micro| {
            let s = Share::of(batch, ranks, Reproducible::Processes, 8, micro);
            (s.fewest, s.most, s.micro_batches, s.micro_batch)
        };
        assert_eq!(of(128, 2, None), (64, 64, 1, 64));
        assert_eq!(of(128, 48, None), (2, 3, 1, 3));
        assert_eq!(of(128, 2, Some(24)), (64, 64, 3, 24));
        assert_eq!(of(32, 128, None), (0, 1, 1, 1));
        let fixed = Share::of(128, 3, Reproducible::WorldSize, 8, Some(10));
        assert_eq!((fixed.fewest, fixed.most, fixed.micro_batches, fixed.micro_batch), (32, 48, 6, 10));
        assert_eq!(fixed.waiting(128, 3), 1.0 - 128.0 / 144.0);
    }
}
