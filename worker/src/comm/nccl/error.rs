//! What can go wrong with NCCL, in words that say what to do.

use std::time::Duration;

use bam_cluster::comm::CommError;

use super::Version;

/// NCCL, or the CUDA runtime beneath it, did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NcclError {
    /// A library cannot be loaded.
    #[error(
        "{library} cannot be loaded (tried {}): {reason}. Install it where the dynamic linker finds it, or name the file in \
         {variable}", tried.join(", ")
    )]
    LibraryMissing {
        /// Which one.
        library: &'static str,
        /// The names that were tried.
        tried: Vec<String>,
        /// The environment variable that names another file.
        variable: &'static str,
        /// The dynamic linker's words.
        reason: String,
    },
    /// A library lacks a function.
    #[error("{file} has no function {symbol} ({reason}): it is damaged, or not the library that it is taken for")]
    SymbolMissing {
        /// The library.
        file: String,
        /// The function.
        symbol: &'static str,
        /// The dynamic linker's words.
        reason: String,
    },
    /// A library is from before it could be used without blocking.
    #[error("{file} is NCCL {found}; bam needs {oldest} or newer")]
    TooOld {
        /// The library.
        file: String,
        /// Its version.
        found: Version,
        /// The oldest that will do.
        oldest: Version,
    },
    /// NCCL refused a call.
    #[error("{function} failed: {words}{}", in_detail(detail))]
    Call {
        /// What was called.
        function: &'static str,
        /// What NCCL says of its result.
        words: String,
        /// What NCCL noted last; may be empty.
        detail: String,
    },
    /// CUDA refused a call, or a kernel before it failed.
    #[error("{function} failed: {words} (CUDA error {code})")]
    Cuda {
        /// What was called.
        function: &'static str,
        /// What CUDA says of its result.
        words: String,
        /// CUDA's number for it.
        code: i32,
    },
    /// Ranks of one communicator have different libraries.
    #[error(
        "rank {rank} on {host} has NCCL {found} and rank 0 has {expected}: all ranks need the same; see which libnccl.so.2 \
         each host has, and what BAM_NCCL and LD_LIBRARY_PATH say there"
    )]
    VersionsDiffer {
        /// The rank that differs from rank 0.
        rank: usize,
        /// Where it is.
        host: String,
        /// Its version.
        found: Version,
        /// Rank 0's.
        expected: Version,
    },
    /// Two ranks would share a GPU, which NCCL does not allow.
    #[error(
        "ranks {} and {} are both on GPU {gpu} of {host}, and NCCL wants one for each rank: start no more ranks on a host \
         than it has GPUs, and see that CUDA_VISIBLE_DEVICES (or Slurm's --gpus-per-task) leaves each rank one of its own",
        ranks[0], ranks[1]
    )]
    SameGpu {
        /// The two.
        ranks: [usize; 2],
        /// Where they are.
        host: String,
        /// The GPU's PCI bus id.
        gpu: String,
    },
    /// Some ranks cannot take part, so none does.
    #[error("{step} failed on {} of {size} ranks: {}", ranks.len(), one_after_another(ranks))]
    NotEverywhere {
        /// What the ranks did.
        step: &'static str,
        /// How many there are.
        size: usize,
        /// Those on which it failed.
        ranks: Vec<RankTrouble>,
    },
    /// Ranks did not find one another in time.
    #[error(
        "NCCL was not ready after {waited:.1?}: ranks do not reach one another over the network that NCCL chose; NCCL_DEBUG=INFO \
         says which, NCCL_SOCKET_IFNAME names another"
    )]
    InitDeadline {
        /// For how long.
        waited: Duration,
    },
    /// A collective did not end in time.
    #[error("NCCL collective '{name}' was given up after {waited:.1?}: some rank has not come, or its link is dead")]
    Deadline {
        /// Which collective.
        name: &'static str,
        /// For how long.
        waited: Duration,
    },
    /// NCCL found out that a collective cannot end.
    #[error("NCCL collective '{name}' failed: {words}{}", in_detail(detail))]
    Asynchronous {
        /// The first collective that has not ended.
        name: &'static str,
        /// What NCCL says of it.
        words: String,
        /// What NCCL noted last; may be empty.
        detail: String,
    },
    /// The communicator was aborted earlier, or by another thread.
    #[error("NCCL collective '{name}' cannot be: the communicator was aborted, because {reason}")]
    Aborted {
        /// Which collective.
        name: &'static str,
        /// Why.
        reason: String,
    },
    /// The ranks did not meet on the host.
    #[error(transparent)]
    Host(#[from] CommError),
}

/// What keeps a rank from taking part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankTrouble {
    /// The rank.
    pub rank: usize,
    /// Where it is.
    pub host: String,
    /// Its own words.
    pub trouble: String,
}

fn in_detail(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}

fn one_after_another(ranks: &[RankTrouble]) -> String {
    let one = |r: &RankTrouble| format!("rank {} on {}: {}", r.rank, r.host, r.trouble);
    ranks.iter().map(one).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_where_and_what_to_do() {
        let missing = NcclError::LibraryMissing {
            library: "NCCL",
            tried: vec!["libnccl.so.2".to_owned()],
            variable: "BAM_NCCL",
            reason: "no such file".to_owned(),
        };
        let told = "NCCL cannot be loaded (tried libnccl.so.2): no such file. Install it where the dynamic linker finds it, or \
                    name the file in BAM_NCCL";
        assert_eq!(missing.to_string(), told);
        let trouble = |rank, host: &str| RankTrouble { rank, host: host.to_owned(), trouble: missing.to_string() };
        let ranks = vec![trouble(1, "a"), trouble(3, "b")];
        let error = NcclError::NotEverywhere { step: "loading NCCL", size: 4, ranks }.to_string();
        assert!(error.starts_with("loading NCCL failed on 2 of 4 ranks: rank 1 on a: NCCL cannot"), "{error}");
        assert!(error.contains("; rank 3 on b: "), "{error}");
        let words = "unhandled system error".to_owned();
        let call = NcclError::Call { function: "ncclGetUniqueId", words, detail: String::new() };
        assert_eq!(call.to_string(), "ncclGetUniqueId failed: unhandled system error");
    }
}
