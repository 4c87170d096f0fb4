//! What a rehearsal does to a run: a pure function of the plan and the number of processes.

use bam_cluster::checkpoint::CommitPoint;
use bam_cluster::fault::{Act, Fault, Point};
use bam_cluster::plan::{Plan, StageWork, TrainStage};

/// One piece of trouble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    /// For people.
    pub title: String,
    /// The stage that is disturbed.
    pub stage: String,
    /// What is done to it.
    pub trouble: Trouble,
    /// What has to be the same in the end.
    pub proof: Proof,
}

/// What is done to a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// A rank fails by itself; `bam` has to notice and go on.
    Inject(Fault),
    /// `bam` is killed after so many steps, and started again.
    KillLauncher {
        /// Steps done.
        step: u64,
    },
    /// SIGUSR1 after so many steps, as when a batch job's time is up; then it is started again.
    Signal {
        /// Steps done.
        step: u64,
    },
    /// The same, and before it is started again, the newest checkpoint is damaged.
    Damage {
        /// Steps done.
        step: u64,
    },
    /// The same, and it is started again with another number of processes.
    Resize {
        /// Steps done.
        step: u64,
        /// That number.
        to: usize,
    },
}

/// What has to be the same as in the run that nothing happened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// All weights, bit for bit, and all receipts.
    Weights,
    /// All receipts: the same examples in the same order.
    Receipts,
}

/// How much is rehearsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Each kind of trouble.
    Kinds,
    /// And a kill at every point of the commit protocol.
    EveryPoint,
}

/// What is rehearsed of `plan` on so many processes. `is_exact`: another number of processes gives the same bits.
pub fn scenarios(plan: &Plan, processes: usize, every_steps: u64, is_exact: bool, extent: Extent) -> Vec<Scenario> {
    let Some((stage, train)) = last_training(plan) else { return vec![] };
    let total = train.schedule.total_steps;
    let middle = total / 2;
    let mut all = vec![];
    let mut add = |title: String, trouble: Trouble, proof: Proof| {
        all.push(Scenario { title, stage: stage.to_owned(), trouble, proof });
    };
    let fault = |act, rank, at| Trouble::Inject(Fault { stage: stage.to_owned(), act, rank, at });
    for rank in 0..processes {
        add(
            format!("rank {rank} is killed in step {middle}"),
            fault(Act::Kill, rank, Point::Step(middle)),
            Proof::Weights,
        );
    }
    let last = processes - 1;
    add(
        format!("rank {last} is killed before its part of the update of step {middle}"),
        fault(Act::Kill, last, Point::Update(middle)),
        Proof::Weights,
    );
    add(
        format!("rank {last} is stopped (SIGSTOP) in step {middle}"),
        fault(Act::Stop, last, Point::Step(middle)),
        Proof::Weights,
    );
    add(format!("rank {last} hangs in step {middle}"), fault(Act::Hang, last, Point::Step(middle)), Proof::Weights);
    let commit = every_steps * (middle / every_steps).max(1);
    for point in CommitPoint::ALL {
        if extent == Extent::EveryPoint || IN_SHORT.contains(&point) {
            let at = Point::Commit { step: commit, point: point.number() };
            let title =
                format!("rank 0 is killed in the commit of step {commit}, point {} ({point:?})", point.number());
            add(title, fault(Act::Kill, 0, at), Proof::Weights);
        }
    }
    add(format!("bam itself is killed after step {middle}"), Trouble::KillLauncher { step: middle }, Proof::Weights);
    add(format!("SIGUSR1 after step {middle}, run again"), Trouble::Signal { step: middle }, Proof::Weights);
    add(
        format!("the newest checkpoint is damaged after step {middle}, run again"),
        Trouble::Damage { step: middle },
        Proof::Weights,
    );
    let to = if processes > 1 { processes - 1 } else { 2 };
    add(
        format!("run again on {to} instead of {processes} after step {middle}"),
        Trouble::Resize { step: middle, to },
        if is_exact { Proof::Weights } else { Proof::Receipts },
    );
    if let Some(logits) = plan.stages.iter().find(|stage| matches!(stage.work, StageWork::Logits(_))) {
        let stage = logits.name.clone();
        let title = format!("rank 0 is killed after its first shard of {stage}");
        let fault = Fault { stage: stage.clone(), act: Act::Kill, rank: 0, at: Point::Written(1) };
        all.push(Scenario { title, stage, trouble: Trouble::Inject(fault), proof: Proof::Weights });
    }
    all
}

/// The points that stand for the others: before, at and after the moment that counts.
const IN_SHORT: [CommitPoint; 3] =
    [CommitPoint::OptimizerWritten, CommitPoint::FenceChecked, CommitPoint::LatestWritten];

/// The last model that is trained.
fn last_training(plan: &Plan) -> Option<(&str, &TrainStage)> {
    plan.stages.iter().rev().find_map(|stage| match &stage.work {
        StageWork::Train(train) => Some((stage.name.as_str(), train)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use bam_cluster::config::Recipe;
    use bam_cluster::plan::TaskSize;

    use super::*;

    fn plan() -> Plan {
        let text = "name: x\nmodel: { path: m }\ndata: { glue: g, tasks: [rte] }\n\
                    train: { multi: { epochs: 2, batch_size: 10 } }\n";
        let recipe: Recipe = serde_norway::from_str(text).unwrap();
        let size = TaskSize { task: "rte".into(), train: 100, dev: 5, further: Default::default() };
        Plan::derive(&recipe, &[size])
    }

    #[test]
    fn every_rank_is_killed_and_every_kind_of_trouble_comes() {
        let all = scenarios(&plan(), 2, 5, false, Extent::Kinds);
        assert_eq!(all.iter().filter(|s| s.stage != "student").count(), 1);
        let injected = |s: &Scenario| match &s.trouble {
            Trouble::Inject(fault) => Some(fault.to_string()),
            _ => None,
        };
        let faults: Vec<String> = all.iter().filter_map(injected).collect();
        assert_eq!(
            faults,
            [
                "student:kill:0:step-10",
                "student:kill:1:step-10",
                "student:kill:1:update-10",
                "student:stop:1:step-10",
                "student:hang:1:step-10",
                "student:kill:0:commit-10.3",
                "student:kill:0:commit-10.7",
                "student:kill:0:commit-10.10",
                "logits:kill:0:written-1"
            ]
        );
        let resized: Vec<&Scenario> = all.iter().filter(|s| s.proof == Proof::Receipts).collect();
        assert_eq!(resized.len(), 1);
        assert_eq!(resized[0].trouble, Trouble::Resize { step: 10, to: 1 });
    }

    #[test]
    fn an_exact_recipe_has_to_prove_more_and_every_point_is_more() {
        let all = scenarios(&plan(), 1, 5, true, Extent::EveryPoint);
        assert!(all.iter().all(|s| s.proof == Proof::Weights));
        assert_eq!(all.iter().filter(|s| s.title.contains("commit")).count(), CommitPoint::ALL.len());
        assert!(all.iter().any(|s| s.trouble == Trouble::Resize { step: 10, to: 2 }));
    }
}
