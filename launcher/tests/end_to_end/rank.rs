//! A rank that speaks the protocol, computes nothing, and misbehaves on request (environment variables `FAKE_…`).

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::process::exit;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bam_cluster::files;
use bam_cluster::plan::{Plan, StageWork};
use bam_cluster::protocol::{
    CheckpointReport, ControlFile, Failure, FromRank, Heartbeat, Hello, Outcome, StepReport, ToRank, TrainOrder,
    channel,
};
use bam_cluster::run_dir::RunDir;
use bam_cluster::stage_record::{Scores, TaskScores};

/// Not a test, unless the stand-in for `mpirun` starts it as a rank.
#[test]
fn plays_a_rank() {
    let Ok(rank) = env::var("FAKE_RANK") else { return };
    let mut rank = Rank::join(rank.parse().unwrap());
    println!("fake rank {} of {}", rank.rank, rank.stage);
    rank.heartbeat();
    if rank.rank == 1 && env::var("FAKE_FAILURE").is_ok_and(|stage| stage == rank.stage) {
        rank.say(&FromRank::Failed(Failure {
            exit_code: 3,
            message: "the logits are damaged".into(),
            is_lasting: true,
        }));
        exit(3);
    }
    if rank.rank == 0 {
        rank.lead();
    }
    exit(0);
}

struct Rank {
    rank: usize,
    run: RunDir,
    stage: String,
    orders: mpsc::Receiver<ToRank>,
    sender: channel::Sender,
}

impl Rank {
    fn join(rank: usize) -> Rank {
        let run = RunDir::new(env::var("FAKE_RUN").unwrap());
        let stage = env::var("FAKE_STAGE").unwrap();
        let control: ControlFile = files::read_json(&run.control(&stage)).unwrap().unwrap();
        let within = Duration::from_secs(30);
        let (sender, mut receiver) = channel::connect(&control.addresses, &control.secret, within).unwrap();
        let (heard, orders) = mpsc::channel();
        thread::spawn(move || {
            while let Ok(Some(order)) = receiver.receive()
                && heard.send(order).is_ok()
            {}
        });
        let mut joined = Rank { rank, run, stage, orders, sender };
        joined.say(&FromRank::Hello(Hello {
            incarnation: control.incarnation,
            rank,
            world_size: env::var("FAKE_SIZE").unwrap().parse().unwrap(),
            host: "toy-host".into(),
            pid: std::process::id(),
            device: "none".into(),
        }));
        joined
    }

    fn say(&mut self, message: &FromRank) {
        self.sender.send(message).unwrap();
    }

    /// What the launcher says next. Without a launcher there is nothing to live for.
    fn listen(&mut self) -> ToRank {
        self.orders.recv().unwrap_or_else(|_| exit(1))
    }

    fn heartbeat(&mut self) {
        self.say(&FromRank::Heartbeat(Heartbeat {
            phase: "playing".into(),
            step: None,
            collective: None,
            idle: 0.0,
            memory: None,
        }));
    }

    fn lead(&mut self) {
        let ToRank::Begin(begin) = self.listen() else { panic!("not begun") };
        let plan: Plan = files::read_json(&self.run.plan()).unwrap().unwrap();
        assert_eq!(begin.plan, plan.hash());
        let outputs = match &plan.stage(&self.stage).unwrap().work {
            StageWork::Prepare => self.touch(
                plan.tasks
                    .iter()
                    .flat_map(|t| ["train", "dev"].map(|s| (format!("{}-{s}", t.task), self.run.data(&t.task, s)))),
            ),
            StageWork::Logits(logits) => self.touch(
                logits
                    .teachers
                    .iter()
                    .map(|t| (t.logits_key(), self.run.logits(&t.name, &t.task).join("manifest.json"))),
            ),
            StageWork::Choose(_) => panic!("no ranks are started for this"),
            StageWork::Predict(predict) => self
                .touch(predict.questions.iter().map(|q| (q.key(), self.run.predictions(&q.stage, &q.task, &q.split)))),
            StageWork::Train(train) => match self.train() {
                Outcome::Finished { .. } => self.publish(&train.tasks),
                stopped => return self.say(&FromRank::Done(stopped)),
            },
        };
        self.say(&FromRank::Done(Outcome::Finished { outputs }));
    }

    /// Makes files; their names with sums.
    fn touch(&self, files: impl Iterator<Item = (String, std::path::PathBuf)>) -> BTreeMap<String, String> {
        let make = |(name, path): (String, std::path::PathBuf)| {
            files::write_atomically(&path, b"x").unwrap();
            (name, "0f".repeat(32))
        };
        files.map(make).collect()
    }

    fn checkpoint(&self) -> std::path::PathBuf {
        self.run.stage(&self.stage).join("fake-checkpoint")
    }

    fn train(&mut self) -> Outcome {
        let saved = fs::read_to_string(self.checkpoint()).unwrap_or_else(|_| "0".into());
        let mut done: u64 = saved.parse().unwrap();
        if done > 0 {
            self.say(&FromRank::Note { message: format!("resumed at step {done}") });
        }
        self.say(&FromRank::Ready { next_step: done });
        loop {
            match self.listen() {
                ToRank::Train(order) => {
                    let stopped;
                    (done, stopped) = self.obey(&order);
                    if stopped {
                        return Outcome::Stopped { step: done };
                    }
                }
                // Between two orders.
                ToRank::Stop if is_deaf() => {}
                ToRank::Stop => {
                    self.commit(done);
                    return Outcome::Stopped { step: done };
                }
                ToRank::Finish => return Outcome::Finished { outputs: BTreeMap::new() },
                other => panic!("{other:?}"),
            }
        }
    }

    /// Does the steps of an order; how many steps are done then, and whether it was stopped.
    fn obey(&mut self, order: &TrainOrder) -> (u64, bool) {
        let pause = env::var("FAKE_STEP_MS").map_or(0, |ms| ms.parse().unwrap());
        for step in order.first_step..order.end_step {
            thread::sleep(Duration::from_millis(pause));
            println!("step {step}");
            self.say(&FromRank::Step(report(step)));
            let stop = step + 1 < order.end_step && self.stop_requested();
            if stop || order.commit_at.contains(&(step + 1)) {
                self.commit(step + 1);
            }
            if stop {
                return (step + 1, true);
            }
        }
        (order.end_step, false)
    }

    fn commit(&mut self, step: u64) {
        files::write_atomically(&self.checkpoint(), step.to_string().as_bytes()).unwrap();
        let report = CheckpointReport { step, receipt: "ab".into(), stall: 0.0, seconds: 0.0 };
        self.say(&FromRank::Checkpoint(report));
    }

    /// Looks whether the launcher has said anything during an order, which can only be "stop".
    fn stop_requested(&mut self) -> bool {
        if is_deaf() {
            return false;
        }
        self.orders.try_recv() == Ok(ToRank::Stop)
    }

    fn publish(&self, tasks: &[String]) -> BTreeMap<String, String> {
        let accuracy = if self.stage == "student" { 0.8 } else { 0.7 };
        let metrics = BTreeMap::from([("accuracy".to_owned(), Some(accuracy))]);
        let score = TaskScores { metrics, examples: 4, classes_predicted: Some(2), spread: None };
        let scores: Scores = tasks.iter().map(|t| (t.clone(), score.clone())).collect();
        files::write_json(&self.run.scores(&self.stage), &scores).unwrap();
        let model = self.run.model(&self.stage).join("model.safetensors");
        self.touch(std::iter::once(("model".to_owned(), model)))
    }
}

/// Whether a request to stop is ignored.
fn is_deaf() -> bool {
    env::var("FAKE_DEAF").is_ok()
}

fn report(step: u64) -> StepReport {
    StepReport {
        step,
        loss: 0.5,
        task_losses: BTreeMap::new(),
        lambda: 0.5,
        learning_rate: 1e-4,
        gradient_norm: 1.0,
        examples: 4,
        tokens: 20,
        seconds: 0.1,
        phases: Default::default(),
        bytes_reduced: 0,
        utilisation: 0.5,
        device_memory: None,
    }
}
