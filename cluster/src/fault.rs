//! Trouble on purpose: what `bam rehearse` lets a rank do, and at which point of its work.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One failure. As text `STAGE:ACT:RANK:POINT`, for example `student:kill:1:step-12` or `student:kill:0:commit-20.9`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// In which stage.
    pub stage: String,
    /// What the rank does.
    pub act: Act,
    /// Which rank.
    pub rank: usize,
    /// When it does it.
    pub at: Point,
}

/// What a rank does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// It kills itself (SIGKILL).
    Kill,
    /// It stops itself (SIGSTOP): it says nothing any more, but is there.
    Stop,
    /// It goes on beating and does not get on: it never comes to the next collective.
    Hang,
    /// It waits for a wish to stop (a few seconds at most), then goes on. However short a step is, a signal then comes in it.
    Wait,
}

/// A point of a rank's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Point {
    /// The gradients of this step are ready and not yet reduced.
    Step(u64),
    /// They are reduced, and this rank has not yet updated its share of the model; others of its host may have.
    Update(u64),
    /// The rank has written so many files of its stage's products, or given so many directories of them their names.
    Written(u64),
    /// A point of the commit of a checkpoint, by its number (see `CommitPoint`).
    Commit {
        /// Optimizer steps in the checkpoint.
        step: u64,
        /// From 1.
        point: u32,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let act = match self.act {
            Act::Kill => "kill",
            Act::Stop => "stop",
            Act::Hang => "hang",
            Act::Wait => "wait",
        };
        write!(f, "{}:{act}:{}:", self.stage, self.rank)?;
        match self.at {
            Point::Step(step) => write!(f, "step-{step}"),
            Point::Update(step) => write!(f, "update-{step}"),
            Point::Written(files) => write!(f, "written-{files}"),
            Point::Commit { step, point } => write!(f, "commit-{step}.{point}"),
        }
    }
}

/// A text that is no fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no failure; expected STAGE:kill|stop|hang|wait:RANK:step-N, update-N, written-N or commit-N.POINT, as in \
     student:kill:1:step-12"
)]
pub struct NoFault(String);

impl FromStr for Fault {
    type Err = NoFault;

    fn from_str(text: &str) -> Result<Fault, NoFault> {
        parse(text).ok_or_else(|| NoFault(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Fault> {
    let mut parts = text.split(':');
    let (stage, act, rank, at) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let act = match act {
        "kill" => Act::Kill,
        "stop" => Act::Stop,
        "hang" => Act::Hang,
        "wait" => Act::Wait,
        _ => return None,
    };
    let at = match at.split_once('-')? {
        ("step", step) => Point::Step(step.parse().ok()?),
        ("update", step) => Point::Update(step.parse().ok()?),
        ("written", files) => Point::Written(files.parse().ok()?),
        ("commit", commit) => {
            let (step, point) = commit.split_once('.')?;
            Point::Commit { step: step.parse().ok()?, point: point.parse().ok()? }
        }
        _ => return None,
    };
    let is_whole = parts.next().is_none() && !stage.is_empty();
    is_whole.then_some(Fault { stage: stage.to_owned(), act, rank: rank.parse().ok()?, at })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for text in [
            "student:kill:1:step-12",
            "teacher-rte@2:stop:0:step-0",
            "student:hang:3:commit-20.9",
            "student:kill:3:update-7",
            "logits:kill:1:written-2",
            "multi:wait:0:step-12",
        ] {
            assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "student:kill:1",
            "student:eat:1:step-2",
            ":kill:1:step-2",
            "s:kill:x:step-2",
            "s:kill:1:commit-2",
            "s:kill:1:steps-2",
        ] {
            assert!(text.parse::<Fault>().is_err(), "{text}");
        }
    }
}
