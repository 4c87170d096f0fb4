//! File descriptors: a connection to each rank takes one, and shells often allow a process no more than 1,024.

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::supervise::STRANGERS;

/// Besides connections, a running stage has a log, pipes, a listener and the like.
const A_STAGE: usize = 32;
/// What the program itself has open.
const OWN: usize = 64;

/// A run has more ranks than this program may keep connections.
#[derive(Debug, thiserror::Error)]
pub enum DescriptorError {
    /// The limit that only an administrator can raise is too low.
    #[error(
        "bam keeps a connection to each of {processes} processes, for which it needs {needed} file descriptors, but this \
         system allows it {hard}\n  have the hard limit raised ('ulimit -Hn' shows it; LimitNOFILE of the service, or nofile \
         in /etc/security/limits.conf), or use fewer processes (-n)"
    )]
    TooFew {
        /// Ranks.
        processes: usize,
        /// Descriptors for all of them.
        needed: u64,
        /// The hard limit.
        hard: u64,
    },
    /// The system says neither yes nor no.
    #[error("the limit on file descriptors cannot be read or raised: {0}")]
    System(#[from] Errno),
}

/// Makes sure that a run on so many ranks, with at most so many stages at a time, does not run out of file descriptors: raises
/// this program's own limit as far as needed and no further, since what it starts inherits the limit, and some programs close
/// all descriptors that there may be.
///
/// # Errors
/// The system does not allow as many as are needed.
pub fn make_room(processes: usize, stages: usize) -> Result<(), DescriptorError> {
    let needed = needed(processes, stages);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if needed > hard {
        return Err(DescriptorError::TooFew { processes, needed, hard });
    }
    if needed > soft {
        setrlimit(Resource::RLIMIT_NOFILE, needed, hard)?;
    }
    Ok(())
}

/// For so many stages, with so many ranks together.
fn needed(processes: usize, stages: usize) -> u64 {
    (processes + stages.max(1) * (STRANGERS + A_STAGE) + OWN) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_side_by_side_have_strangers_each() {
        assert_eq!(needed(1, 1), 1 + 96 + 64);
        assert_eq!(needed(1024, 0), 1024 + 96 + 64);
        assert_eq!(needed(1024, 8), 1024 + 8 * 96 + 64);
    }

    #[test]
    fn more_ranks_than_descriptors_are_refused() {
        let (before, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let processes = usize::try_from(hard).unwrap();
        let refused = make_room(processes, 1).unwrap_err();
        assert!(matches!(refused, DescriptorError::TooFew { .. }), "{refused}");
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (before, hard));
    }
}
