//! The names of checkpoints: of which step, and which start of the stage owns it. No two starts own a name, so that none
//! writes or removes what another one relies on, however long it was held up.

use std::fmt;
use std::fs;
use std::path::Path;

/// A checkpoint's name, `step-00000030-start-7`. Ordered by step; of two of one step the newer start's comes later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    /// Optimizer steps in it.
    pub step: u64,
    /// The start that made it or took it over; 0 for one of before starts were in names.
    pub start: u64,
}

const STEP: &str = "step-";
const START: &str = "-start-";

impl Name {
    /// None for anything but a checkpoint's name.
    pub fn parse(text: &str) -> Option<Name> {
        let (step, start) = text.strip_prefix(STEP)?.split_once(START).unwrap_or((text.strip_prefix(STEP)?, "0"));
        Some(Name { step: step.parse().ok()?, start: start.parse().ok()? })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.start {
            0 => write!(f, "{STEP}{:08}", self.step),
            start => write!(f, "{STEP}{:08}{START}{start}", self.step),
        }
    }
}

/// The step of the newest checkpoint in a stage's directory of checkpoints, for those who only look: whether it is whole
/// is not asked.
pub fn newest_step(directory: &Path) -> Option<u64> {
    let names = fs::read_dir(directory).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| Name::parse(&name)).max().map(|name| name.step)
}

/// The checkpoints to remove, of these: all but the newest `keep` up to the one just committed, which is good and always
/// kept.
pub(super) fn too_many(names: &[Name], committed: Name, keep: usize) -> Vec<Name> {
    let mut past: Vec<Name> = names.iter().copied().filter(|name| *name < committed).collect();
    past.sort_unstable();
    past.truncate((past.len() + 1).saturating_sub(keep.max(1)));
    past
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(of: &[(u64, u64)]) -> Vec<Name> {
        of.iter().map(|&(step, start)| Name { step, start }).collect()
    }

    #[test]
    fn text_and_back() {
        for text in ["step-00000030-start-7", "step-00000030", "step-1000000000-start-18446744073709551615"] {
            assert_eq!(Name::parse(text).unwrap().to_string(), text);
        }
        for text in ["step-", "step-x", "step-3-start-", "step-3-start-x", ".draft-3", "damaged-step-00000003-start-1"]
        {
            assert_eq!(Name::parse(text), None, "{text}");
        }
        assert!(names(&[(9, 8), (10, 1), (10, 2)]).is_sorted());
    }

    #[test]
    fn retention_keeps_the_committed_one_and_leaves_later_ones_alone() {
        let all = names(&[(1, 1), (2, 1), (3, 2)]);
        assert_eq!(too_many(&all, all[2], 2), all[..1]);
        assert!(too_many(&all, all[2], 3).is_empty());
        assert_eq!(too_many(&names(&[(1, 1), (9, 1), (2, 1), (3, 2)]), all[2], 1), all[..2]);
        assert_eq!(too_many(&all, all[2], 0), all[..2]);
        assert!(too_many(&all[2..], all[2], 1).is_empty());
        // One of the same step that an earlier start made is older.
        assert_eq!(too_many(&names(&[(3, 1), (3, 2), (3, 3)]), Name { step: 3, start: 2 }, 1), names(&[(3, 1)]));
    }
}
