//! The numbered points of the commit protocol: between any two of them a process may die, and nothing is lost.

/// A point that a commit passes, in the order of their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CommitPoint {
    /// The draft's directory is made.
    Drafted = 1,
    /// The first of the draft's tensor files is written.
    ModelWritten,
    /// All of its tensor files are written.
    OptimizerWritten,
    /// `state.json` is there, too.
    StateWritten,
    /// The files are synced and the manifest names them.
    ManifestWritten,
    /// The draft's directory is synced.
    DraftSynced,
    /// No newer start of the stage exists.
    FenceChecked,
    /// The draft has become the checkpoint.
    Renamed,
    /// The directory of checkpoints is synced.
    Synced,
    /// `LATEST` names the checkpoint.
    LatestWritten,
    /// The checkpoints that are too many have lost their names.
    SurplusHidden,
    /// They are removed.
    SurplusRemoved,
}

impl CommitPoint {
    /// All of them, in order.
    pub const ALL: [CommitPoint; 12] = [
        CommitPoint::Drafted,
        CommitPoint::ModelWritten,
        CommitPoint::OptimizerWritten,
        CommitPoint::StateWritten,
        CommitPoint::ManifestWritten,
        CommitPoint::DraftSynced,
        CommitPoint::FenceChecked,
        CommitPoint::Renamed,
        CommitPoint::Synced,
        CommitPoint::LatestWritten,
        CommitPoint::SurplusHidden,
        CommitPoint::SurplusRemoved,
    ];

    /// Its number, from 1.
    pub fn number(self) -> u32 {
        self as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_places_in_the_list() {
        let numbers: Vec<u32> = CommitPoint::ALL.iter().map(|p| p.number()).collect();
        assert_eq!(numbers, (1..=CommitPoint::ALL.len() as u32).collect::<Vec<_>>());
    }
}
