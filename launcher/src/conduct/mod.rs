//! Takes a run's stages to their ends: those that are done are left alone, the others run as soon as what they need is
//! there and ranks are free.

mod schedule;
mod summary;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use bam_cluster::aside;
use bam_cluster::checkpoint::Fence;
use bam_cluster::exit_code;
use bam_cluster::fault::Fault;
use bam_cluster::plan::{ChooseStage, Stage, StageWork};
use bam_cluster::protocol::Begin;
use bam_cluster::run_dir::RunDir;
use bam_cluster::stage_record::{self, RecordError, StageRecord, Standing, Sums};

use crate::answers;
use crate::backend::{self, Programs, Seats};
use crate::choice;
use crate::forecast::Remaining;
use crate::project::Project;
use crate::run_lock::RunLock;
use crate::shell::quoted;
use crate::stage_inputs::{self, StageInputs};
use crate::supervise::{self, Decision, End, Finding, History, Interrupts, Screen, StageJob, Verbosity, Verdict};
use schedule::Schedule;

pub use schedule::{duration, side_by_side};
pub use summary::summary;

/// Who takes the stages to their ends.
pub struct Conductor<'a> {
    project: &'a Project,
    programs: Programs,
    run: RunDir,
    lock: &'a RunLock,
    /// The stages to take to their ends; none: all.
    only: Option<BTreeSet<String>>,
    /// Failures to rehearse.
    faults: Vec<Fault>,
    interrupts: Interrupts,
    screen: Screen,
}

/// How a stage ended.
struct Ending<'a> {
    stage: &'a Stage,
    made_from: Sums,
    seconds: f64,
    end: anyhow::Result<End>,
}

/// A stage that failed for good.
#[derive(Debug, thiserror::Error)]
#[error("stage '{stage}': {text}\n  log: {log}")]
pub struct StageFailed {
    stage: String,
    /// What happened and what to do.
    text: String,
    /// For scripts.
    pub exit_code: u8,
    /// Where all ranks' lines are.
    log: PathBuf,
}

/// A stage that was asked for and could not be started.
#[derive(Debug, thiserror::Error)]
#[error(
    "stage '{stage}' is made from what '{need}' makes, which is not complete; run that first ('bam status {directory}' \
     says how far it is)"
)]
pub struct NeedMissing {
    stage: String,
    need: String,
    directory: String,
}

/// What happened, what happens next, and the guilty rank's last lines.
fn joined(verdict: &Verdict, next: &str) -> String {
    let Finding { what, last_lines, .. } = &verdict.finding;
    let mut text = what.clone();
    if !next.is_empty() {
        // What ranks say themselves may have several lines.
        text += if what.contains('\n') { "\n  " } else { "; " };
        text += next;
    }
    if !last_lines.is_empty() {
        text += "\n  last lines:";
        text += last_lines;
    }
    text
}

impl<'a> Conductor<'a> {
    /// `lock` is on the run, or on the stages that are named.
    pub fn new(
        project: &'a Project,
        programs: Programs,
        run: RunDir,
        lock: &'a RunLock,
        only: Option<BTreeSet<String>>,
        interrupts: Interrupts,
        verbosity: Verbosity,
    ) -> Self {
        let Project { recipe, plan, lengths, encoder, .. } = project;
        let remaining = Remaining::new(plan.clone(), recipe.cluster.clone(), lengths.clone(), encoder.config.clone());
        // A part of a run is over when others may still have much to do.
        let remaining = only.is_none().then_some(remaining);
        let screen = Screen::new(verbosity, remaining);
        Conductor { project, programs, run, lock, only, faults: vec![], interrupts, screen }
    }

    /// With failures to rehearse.
    #[must_use]
    pub fn with_faults(self, faults: Vec<Fault>) -> Self {
        Conductor { faults, ..self }
    }

    /// Where the run is.
    pub fn run_dir(&self) -> &RunDir {
        &self.run
    }

    /// Takes the stages to their ends; returns an exit code if they were stopped before.
    ///
    /// # Errors
    /// A stage fails; the others have been stopped at a checkpoint.
    pub fn run(&self, mut inputs: StageInputs) -> anyhow::Result<Option<u8>> {
        self.screen.line(&format!("run directory: {}", self.run.path().display()));
        if self.only.is_none() {
            // Nobody else writes here while this launcher has the whole run.
            aside::sweep(self.run.path());
        }
        for warning in &self.project.warnings {
            self.screen.warn(&format!("warning: {warning}"));
        }
        let cluster = &self.project.recipe.cluster;
        let slots = backend::slots(&self.programs, cluster);
        let mut schedule = Schedule::new(&self.project.plan.stages, cluster, slots);
        let (sender, endings) = mpsc::channel();
        let mut stopped = None;
        let outcome = thread::scope(|scope| {
            let outcome = self.take_all(scope, &mut schedule, &mut inputs, &sender, &endings, &mut stopped);
            if outcome.is_err() {
                self.interrupts.fail();
            }
            // What still runs stops at its next step; it must not be cut off for another stage's failure.
            while schedule.is_any_running() {
                let Ok(ending) = endings.recv() else { break };
                schedule.end(&ending.stage.name);
                match ending.end {
                    Ok(End::Finished(outputs)) => {
                        self.finished(ending.stage, ending.made_from, outputs, ending.seconds)?
                    }
                    Ok(end) => _ = self.leave(ending.stage, &end),
                    Err(e) => self.screen.warn(&format!("error: {e:#}")),
                }
            }
            outcome
        });
        outcome.map(|()| stopped)
    }

    /// Starts stages and hears of their ends until all are done, one fails, or the run is to stop.
    fn take_all<'scope>(
        &'scope self,
        scope: &'scope thread::Scope<'scope, '_>,
        schedule: &mut Schedule<'a>,
        inputs: &mut StageInputs,
        sender: &Sender<Ending<'a>>,
        endings: &Receiver<Ending<'a>>,
        stopped: &mut Option<u8>,
    ) -> anyhow::Result<()> {
        loop {
            while let Some((stage, seats)) = schedule.next() {
                let name = &stage.name;
                let made_from = inputs.of(&self.run, stage)?;
                let is_asked_for = self.only.as_ref().is_none_or(|only| only.contains(name));
                if let Standing::Finished(record) = self.standing(stage, &made_from)? {
                    if is_asked_for {
                        self.screen.line(&format!("{name}: done before"));
                    }
                    inputs.add(name, record.outputs);
                    self.screen.complete(name);
                    schedule.complete(name);
                } else if !is_asked_for {
                    schedule.hold(name);
                } else if stopped.is_some() || self.interrupts.wish().is_some() {
                    if stopped.is_none() {
                        self.screen.warn(&format!("stopped before stage '{name}'; run the same command to go on"));
                        *stopped = Some(exit_code::STOPPED_AT_CHECKPOINT);
                    }
                    schedule.hold(name);
                } else if let StageWork::Choose(work) = &stage.work {
                    let outputs = self.choose(stage, work, &made_from)?;
                    inputs.add(name, outputs.clone());
                    self.finished(stage, made_from, outputs, 0.0)?;
                    schedule.complete(name);
                } else {
                    stage_record::begin(&self.run, name, &made_from)?;
                    self.announce(stage);
                    schedule.start(name, seats.clone());
                    let sender = sender.clone();
                    scope.spawn(move || {
                        let began = Instant::now();
                        let end = self.perform(stage, &seats, &made_from);
                        drop(sender.send(Ending { stage, made_from, seconds: began.elapsed().as_secs_f64(), end }));
                    });
                }
            }
            if !schedule.is_any_running() {
                return match (&stopped, self.left_over(schedule)) {
                    (None, Some(missing)) => Err(missing.into()),
                    _ => Ok(()),
                };
            }
            let ending = endings.recv().context("a stage vanished")?;
            schedule.end(&ending.stage.name);
            match ending.end? {
                End::Finished(outputs) => {
                    inputs.add(&ending.stage.name, outputs.clone());
                    schedule.complete(&ending.stage.name);
                    self.finished(ending.stage, ending.made_from, outputs, ending.seconds)?;
                }
                end => *stopped = Some((*stopped).unwrap_or_default().max(self.leave(ending.stage, &end))),
            }
        }
    }

    /// A stage that was asked for and waits for one that was not.
    fn left_over(&self, schedule: &Schedule) -> Option<NeedMissing> {
        let only = self.only.as_ref()?;
        let (stage, need) = schedule.waiting().find(|(stage, _)| only.contains(*stage))?;
        let directory = quoted(&self.run.path().display().to_string());
        Some(NeedMissing { stage: stage.to_owned(), need: need.to_owned(), directory })
    }

    /// Says that a stage starts.
    fn announce(&self, stage: &Stage) {
        let ranks = stage.ranks(&self.project.recipe.cluster);
        let ranks = if ranks == 1 { "1 process".to_owned() } else { format!("{ranks} processes") };
        let work = match &stage.work {
            StageWork::Train(train) => format!("{} steps on ", train.schedule.total_steps),
            _ => String::new(),
        };
        self.screen.line(&format!("{}: {work}{ranks}", stage.name));
    }

    /// Notes that a stage is complete, and says so.
    fn finished(&self, stage: &Stage, inputs: Sums, outputs: Sums, seconds: f64) -> anyhow::Result<()> {
        if let StageWork::Predict(work) = &stage.work {
            let noted = answers::note(&self.run, &self.project.plan, work, &inputs, &outputs);
            noted.with_context(|| format!("cannot write {}", self.run.answers().display()))?;
        }
        stage_record::finish(&self.run, &stage.name, &StageRecord { inputs, outputs, seconds })?;
        self.screen.complete(&stage.name);
        self.screen.line(&summary(&self.run, &self.project.tasks, stage, seconds)?);
        Ok(())
    }

    /// What is known of a stage, whose products are all there if it is complete.
    fn standing(&self, stage: &Stage, made_from: &Sums) -> anyhow::Result<Standing> {
        let standing = stage_record::standing(&self.run, &stage.name, made_from);
        let products = stage_inputs::check_products(&self.run, &self.project.plan, stage);
        match (&stage.work, standing) {
            // Nothing is made from answers: other questions, or lost answers, are answered anew.
            (StageWork::Predict(_), Err(RecordError::Changed { .. })) => Ok(Standing::Open),
            (StageWork::Predict(work), Ok(Standing::Finished(record))) => {
                let kept = answers::are_kept(&self.run, &self.project.plan, work, &record.inputs, &record.outputs);
                let kept = kept.with_context(|| self.run.answers().display().to_string())?;
                Ok(if kept { Standing::Finished(record) } else { Standing::Open })
            }
            (_, Ok(Standing::Finished(record))) => products.map(|()| Standing::Finished(record)).map_err(Into::into),
            (_, standing) => Ok(standing?),
        }
    }

    /// Chooses between candidates, without any ranks.
    fn choose(&self, stage: &Stage, work: &ChooseStage, made_from: &Sums) -> anyhow::Result<Sums> {
        stage_record::begin(&self.run, &stage.name, made_from)?;
        let task = self.project.tasks.iter().find(|t| work.tasks.contains(&t.name));
        let metric = task.and_then(|t| t.metrics.first()).context("a task without a metric")?;
        choice::choose(&self.run, &self.project.plan, &stage.name, work, *metric)
    }

    /// Starts a stage's ranks and stays with them; starts them again if they fail and that may help.
    fn perform(&self, stage: &Stage, seats: &Seats, made_from: &Sums) -> anyhow::Result<End> {
        let cluster = &self.project.recipe.cluster;
        let (mut history, mut checkpoint) = (History::default(), None);
        let mut faults: Vec<Fault> = self.faults.iter().filter(|f| f.stage == stage.name).cloned().collect();
        loop {
            let begin = Begin {
                plan: self.project.plan.hash(),
                inputs: made_from.clone(),
                // A rehearsed failure comes once.
                faults: std::mem::take(&mut faults),
            };
            let job = StageJob {
                stage,
                run: &self.run,
                recipe: &self.project.recipe,
                programs: &self.programs,
                seats,
                begin,
                incarnation: self.next_incarnation(stage)?,
                checkpoint,
            };
            self.sweep(stage);
            let mut decision = Decision::GiveUp(None);
            let failed = |verdict: &Verdict| {
                decision = history.decide(verdict, cluster.max_restarts);
                if self.interrupts.wish().is_some() {
                    decision = Decision::GiveUp(None);
                }
                match decision {
                    Decision::Restart { pause, number } => Some(self.restart(verdict, pause, number)),
                    Decision::GiveUp(_) => None,
                }
            };
            let verdict = match supervise::supervise(&job, &self.screen, &self.interrupts, failed)? {
                End::Failed(verdict) => verdict,
                end => return Ok(end),
            };
            checkpoint = verdict.checkpoint;
            match decision {
                Decision::Restart { pause, .. } => {
                    self.pause(pause);
                    if let (Some(step), Some(_)) = (checkpoint, self.interrupts.wish()) {
                        return Ok(End::Stopped { step });
                    }
                }
                Decision::GiveUp(why) => return Err(self.failure(stage, verdict, why).into()),
            }
        }
    }

    /// Takes the next number for a start of a stage; from now on, an older start's processes must not write in it.
    fn next_incarnation(&self, stage: &Stage) -> anyhow::Result<u64> {
        self.lock.check()?;
        Ok(Fence::advance(&self.run, &stage.name)?.incarnation())
    }

    /// Removes what earlier starts of a stage have left half-written.
    fn sweep(&self, stage: &Stage) {
        let (run, own) = (&self.run, self.run.stage(&stage.name));
        let mut directories = vec![run.checkpoints(&stage.name), own.join("predictions"), own];
        match &stage.work {
            StageWork::Prepare => directories.push(run.path().join("data")),
            StageWork::Logits(work) => {
                let targets = work.teachers.iter().map(|teacher| run.logits(&teacher.name, &teacher.task));
                directories.extend(targets.filter_map(|target| target.parent().map(Path::to_owned)));
            }
            StageWork::Train(_) | StageWork::Choose(_) | StageWork::Predict(_) => {}
        }
        directories.iter().for_each(|directory| aside::sweep(directory));
    }

    /// What has happened, and that the stage is started again.
    fn restart(&self, verdict: &Verdict, pause: Duration, number: usize) -> String {
        let from = match verdict.checkpoint {
            Some(step) => format!("going on from the checkpoint of step {step}"),
            None => "beginning the stage again".to_owned(),
        };
        let most = self.project.recipe.cluster.max_restarts;
        let next = format!("{from} in {} s (restart {number} of {most})", pause.as_secs());
        joined(verdict, &next)
    }

    /// Waits before a restart, unless somebody wants an end.
    fn pause(&self, pause: Duration) {
        let since = Instant::now();
        while since.elapsed() < pause && self.interrupts.wish().is_none() {
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn failure(&self, stage: &Stage, verdict: Verdict, why: Option<String>) -> StageFailed {
        let again = match verdict.checkpoint {
            _ if verdict.is_lasting => None,
            Some(step) => Some(format!("run the same command to go on from the last checkpoint (step {step})")),
            None => Some("run the same command to begin this stage again".to_owned()),
        };
        let next: Vec<String> = why.into_iter().chain(again).collect();
        StageFailed {
            stage: stage.name.clone(),
            text: joined(&verdict, &next.join("; ")),
            exit_code: verdict.exit_code,
            log: self.run.log(&stage.name),
        }
    }

    /// Says how to go on after a stage that was stopped or killed; returns the exit code.
    fn leave(&self, stage: &Stage, end: &End) -> u8 {
        let name = &stage.name;
        match end {
            End::Stopped { step } => {
                let at = match &stage.work {
                    StageWork::Train(train) => {
                        format!("at step {step} of {}, with a checkpoint", train.schedule.total_steps)
                    }
                    _ => "before the stage was complete".to_owned(),
                };
                self.screen.warn(&format!("{name}: stopped {at}; run the same command to go on"));
                exit_code::STOPPED_AT_CHECKPOINT
            }
            End::Finished(_) | End::Failed(_) | End::Killed => {
                self.screen.warn(&format!("{name}: killed; run the same command to go on from the last checkpoint"));
                exit_code::INTERRUPTED
            }
        }
    }
}
