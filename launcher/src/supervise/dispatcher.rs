//! The one owner of a running stage's state: takes events one by one, gives orders, and asks for the verdict.

use std::collections::HashMap;
use std::io;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::Context;
use bam_cluster::checkpoint;
use bam_cluster::config::Recipe;
use bam_cluster::files;
use bam_cluster::plan::{Stage, StageWork};
use bam_cluster::protocol::{Begin, CheckpointReport, FromRank, StepReport, ToRank, channel};
use bam_cluster::run_dir::RunDir;
use bam_cluster::stage_record::Sums;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::control::ControlServer;
use super::event::{ConnectionId, Event};
use super::evidence::Evidence;
use super::figures::Figures;
use super::grace::{self, Measured};
use super::host;
use super::interrupts::{Interrupts, Wish};
use super::orders::{OrderBook, orders};
use super::refusals::Refusals;
use super::screen::Screen;
use super::srun_output;
use super::stage_log::StageLog;
use super::starter_output::Words;
use super::verdict::{Judgement, Verdict, judge};
use crate::backend::{self, Duty, Launch, Process, ProcessEvent, Programs, Scratch, Seats, Start, Starter};
use crate::tensorboard::EventFile;

/// How often time itself is looked at, and what is known is judged: thousands of heartbeats a second are each worth a note,
/// not a look at all ranks.
const TICK: Duration = Duration::from_millis(100);
/// Time in which this program did not run (Ctrl-Z, a laptop asleep) is not held against the ranks.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A rank that was not heard of for so long has missed a heartbeat.
const QUIET: Duration = Duration::from_secs(2);
/// How long the starter may take to end its ranks when asked to.
const TERMINATE_WITHIN: Duration = Duration::from_secs(5);

/// One stage to run.
#[derive(Debug)]
pub struct StageJob<'a> {
    /// The stage.
    pub stage: &'a Stage,
    /// Its run.
    pub run: &'a RunDir,
    /// How it is spread, and when checkpoints are due.
    pub recipe: &'a Recipe,
    /// What is started.
    pub programs: &'a Programs,
    /// Where its ranks are.
    pub seats: &'a Seats,
    /// What the ranks check before they begin.
    pub begin: Begin,
    /// Which start of the stage this is.
    pub incarnation: u64,
    /// Optimizer steps in the newest checkpoint, if an earlier start has told.
    pub checkpoint: Option<u64>,
}

/// How a start of a stage ended.
#[derive(Debug)]
pub enum End {
    /// Complete; what it made.
    Finished(Sums),
    /// Stopped at a checkpoint, as asked.
    Stopped {
        /// Optimizer steps in the checkpoint.
        step: u64,
    },
    /// Killed, as asked a second time.
    Killed,
    /// Failed.
    Failed(Verdict),
}

/// Starts a stage's ranks and stays with them to the end. `failed` hears of a failure at once, before what still runs is
/// ended, and says what is to be announced.
///
/// # Errors
/// The ranks cannot be started.
pub fn supervise(
    job: &StageJob,
    screen: &Screen,
    interrupts: &Interrupts,
    failed: impl FnOnce(&Verdict) -> Option<String>,
) -> anyhow::Result<End> {
    let scratch = Scratch::new().context("cannot make a temporary directory")?;
    let cluster = &job.recipe.cluster;
    let (run, stage, incarnation) = (job.run, job.stage, job.incarnation);
    let start = Start { cluster, duty: Duty::Stage(run, stage), seats: job.seats, scratch: &scratch };
    let launch = Launch::new(job.programs, &start);
    let log_path = run.log(&stage.name);
    let mut log = StageLog::open(&log_path, incarnation, &launch.command_line())
        .with_context(|| format!("cannot write {}", log_path.display()))?;
    let starter = &job.programs.starter;
    log.launcher(&format!("{} starts the ranks: {}", starter.name(), job.programs.why));
    screen.detail(&format!("{}: start {incarnation}: {}", stage.name, launch.command_line()));
    let (sender, inbox) = mpsc::channel();
    let ranks = start.ranks();
    let control = run.control(&stage.name);
    let reach = backend::reach(job.programs, cluster);
    let server = ControlServer::open(control.clone(), incarnation, &job.seats.places, reach, ranks, sender.clone())
        .with_context(|| format!("cannot open the control channel ({})", control.display()))?;
    let process = Process::spawn(&launch, move |event| drop(sender.send(Event::Starter(event))))
        .with_context(|| format!("cannot start {}", launch.program.display()))?;
    screen.show(&stage.name, &Figures::default());
    let mut dispatcher = Dispatcher {
        job,
        inbox,
        process,
        evidence: Evidence {
            starter: starter.name(),
            checkpoint: job.checkpoint,
            ..Evidence::new(ranks, Duration::from_secs(cluster.deadline))
        },
        words: Words::of(starter),
        connections: HashMap::new(),
        refusals: Refusals::default(),
        order_book: None,
        stop_sent: false,
        stop_announced: false,
        figures: Figures::default(),
        events: None,
        screen,
        log,
        measured: Measured { step: 0.0, checkpoint: 0.0 },
        shortage_announced: false,
        out_of_memory_kills_before: host::out_of_memory_kills(),
        here: backend::host_name(),
        clock: Duration::ZERO,
        last_look: Instant::now(),
        judge_at: Duration::ZERO,
    };
    let end = dispatcher.watch(interrupts);
    match &end {
        End::Failed(verdict) => {
            if let Some(text) = failed(verdict) {
                dispatcher.warn(&text);
            }
        }
        End::Finished(_) => dispatcher.note_scores(),
        End::Stopped { .. } | End::Killed => {}
    }
    dispatcher.close();
    drop(server);
    Ok(end)
}

struct Dispatcher<'a> {
    job: &'a StageJob<'a>,
    inbox: Receiver<Event>,
    process: Process,
    evidence: Evidence,
    words: Words,
    connections: HashMap<ConnectionId, (usize, channel::Sender)>,
    refusals: Refusals,
    order_book: Option<OrderBook>,
    stop_sent: bool,
    stop_announced: bool,
    figures: Figures,
    /// For TensorBoard; none before the first order, and where it cannot be written.
    events: Option<EventFile>,
    screen: &'a Screen,
    log: StageLog,
    measured: Measured,
    shortage_announced: bool,
    out_of_memory_kills_before: u64,
    /// This host's name.
    here: String,
    /// Time since the start in which this program ran.
    clock: Duration,
    last_look: Instant,
    /// When what is known is judged next, if nothing happens that may end the stage.
    judge_at: Duration,
}

/// Whether this is what stages end with, so that it is judged at once.
fn may_end_the_stage(event: &Event) -> bool {
    matches!(
        event,
        Event::Starter(ProcessEvent::Ended(_)) | Event::Said { message: FromRank::Done(_) | FromRank::Failed(_), .. }
    )
}

impl Dispatcher<'_> {
    fn watch(&mut self, interrupts: &Interrupts) -> End {
        loop {
            let event = self.inbox.recv_timeout(TICK);
            self.clock += self.last_look.elapsed().min(LONGEST_PAUSE);
            self.last_look = Instant::now();
            let may_end = event.as_ref().is_ok_and(may_end_the_stage);
            if let Ok(event) = event {
                self.handle(event);
            }
            if interrupts.count() > 1 {
                self.kill_now();
                return End::Killed;
            }
            if !may_end && self.clock < self.judge_at {
                continue;
            }
            self.judge_at = self.clock + TICK;
            if interrupts.wish().is_some() {
                self.ask_to_stop(interrupts);
            }
            self.look_at_processes();
            match judge(&self.evidence, self.clock) {
                None => {}
                Some(Judgement::Finished(outputs)) => return End::Finished(outputs),
                Some(Judgement::Stopped { step }) => return End::Stopped { step },
                Some(Judgement::Failed(mut verdict)) => {
                    // A rank may die after its commit and before its report of it.
                    let checkpoints = self.job.run.checkpoints(&self.job.stage.name);
                    verdict.checkpoint = verdict.checkpoint.max(checkpoint::newest_step(&checkpoints));
                    self.log.launcher(&verdict.finding.what);
                    return End::Failed(verdict);
                }
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Joined { connection, hello, sender } => match self.evidence.join(&hello, self.clock) {
                Ok(()) => {
                    self.connections.insert(connection, (hello.rank, sender));
                    if hello.rank == 0 {
                        self.send(&ToRank::Begin(self.job.begin.clone()));
                    }
                }
                Err(reason) => {
                    sender.hang_up();
                    self.refused(format!("refused a connection: {reason}"));
                }
            },
            Event::Said { connection, message } => {
                if let Some((rank, _)) = self.connections.get(&connection) {
                    self.hear(*rank, message);
                }
            }
            Event::Left { connection } => {
                if let Some((rank, _)) = self.connections.remove(&connection) {
                    self.evidence.ranks[rank].left = Some(self.clock);
                }
            }
            Event::Refused { from, reason } => {
                self.refused(format!("refused a connection from {from}: {reason}"));
            }
            Event::Starter(ProcessEvent::Line(line)) => self.read(&line),
            Event::Starter(ProcessEvent::Ended(status)) => self.evidence.exit = Some((status, self.clock)),
        }
    }

    fn refused(&mut self, refusal: String) {
        if let Some(line) = self.refusals.note(refusal, self.clock) {
            self.log.launcher(&line);
        }
    }

    /// A line on the starter's stdout or stderr.
    fn read(&mut self, line: &str) {
        let line = self.words.untagged(line);
        self.evidence.printed(line.rank, line.text);
        match line.rank {
            Some(rank) => {
                self.log.rank(rank, line.text);
                if let Starter::Srun(srun) = &self.job.programs.starter
                    && srun_output::is_lonely(line.text)
                {
                    // With PMIx, Slurm's side of it may have crashed: that does not last.
                    self.evidence.lonely(rank, !srun.has_pmix(&self.job.recipe.cluster));
                }
            }
            None => {
                self.log.starter(self.evidence.starter, line.text);
                let ends = self.words.read(line.text);
                self.evidence.ended(ends, self.clock);
            }
        }
    }

    /// A message of a rank that joined.
    fn hear(&mut self, rank: usize, message: FromRank) {
        let now = self.clock;
        let known = &mut self.evidence.ranks[rank];
        known.last_heard = now;
        match message {
            FromRank::Heartbeat(beat) => known.heartbeat = Some(beat),
            FromRank::Device { device } => {
                if let Some(identity) = &mut known.identity {
                    identity.device = device;
                }
            }
            FromRank::Failed(failure) => {
                self.log.rank(rank, &failure.message);
                known.failure.get_or_insert((failure, now));
            }
            FromRank::Note { message } => self.announce(&message),
            FromRank::Warning { message } => self.warn(&format!("warning: {message}")),
            // The rest is rank 0's to say.
            _ if rank != 0 => {}
            FromRank::Ready { next_step } => self.ready(next_step),
            FromRank::Step(report) => self.stepped(&report),
            FromRank::Progress { done, total } => {
                self.figures.examples(done, total, now);
                self.screen.show(&self.job.stage.name, &self.figures);
            }
            FromRank::Checkpoint(report) => self.saved(&report),
            FromRank::Done(outcome) => self.evidence.done = Some((outcome, now)),
            FromRank::Hello(_) => {}
        }
    }

    fn ready(&mut self, next_step: u64) {
        let StageWork::Train(train) = &self.job.stage.work else { return };
        let total = train.schedule.total_steps;
        if next_step > 0 {
            self.evidence.checkpoint = Some(next_step);
        }
        self.figures = Figures::of_training(next_step, total);
        self.screen.show(&self.job.stage.name, &self.figures);
        let StageJob { run, stage, incarnation, .. } = self.job;
        let created = EventFile::create(&run.tensorboard(&stage.name), &self.here, *incarnation, next_step);
        self.events = self.heed(created);
        let mut book = OrderBook::new(orders(train, next_step, self.job.recipe.checkpoint.every_steps));
        if !self.stop_sent {
            self.send(&book.next());
        }
        self.order_book = Some(book);
    }

    fn stepped(&mut self, report: &StepReport) {
        let distilled = matches!(&self.job.stage.work, StageWork::Train(train) if !train.teachers.is_empty());
        self.evidence.latest_step = Some(report.step);
        self.measured.step = self.measured.step.max(report.seconds);
        self.screen.step(&self.job.stage.name, report);
        self.figures.step(report, distilled);
        self.screen.show(&self.job.stage.name, &self.figures);
        self.record(|events| events.step(report));
        if self.stop_sent {
            return;
        }
        if let Some(order) = self.order_book.as_mut().and_then(|book| book.after(report.step)) {
            self.send(&order);
        }
    }

    /// Adds something to the event file. One that cannot be written is given up: TensorBoard is no reason to end a run.
    fn record(&mut self, add: impl FnOnce(&mut EventFile) -> io::Result<()>) {
        let Some(mut events) = self.events.take() else { return };
        let added = add(&mut events);
        self.events = self.heed(added).map(|()| events);
    }

    fn heed<T>(&mut self, written: io::Result<T>) -> Option<T> {
        written.map_err(|e| self.announce(&format!("warning: nothing more is written for TensorBoard: {e}"))).ok()
    }

    /// Adds a finished model's scores on dev to the event file.
    fn note_scores(&mut self) {
        let StageWork::Train(train) = &self.job.stage.work else { return };
        let scores = files::read_json(&self.job.run.scores(&self.job.stage.name));
        if let Ok(Some(scores)) = scores {
            self.record(|events| events.scores(train.schedule.total_steps, &scores));
        }
    }

    fn saved(&mut self, report: &CheckpointReport) {
        let CheckpointReport { step, receipt, stall, seconds } = report;
        self.note(&format!(
            "checkpoint at step {step}, receipt of the data order {receipt}; written in {seconds:.3} s, training stood still \
             for {stall:.3} s"
        ));
        self.evidence.checkpoint = Some(*step);
        self.figures.checkpoint(*step);
        self.measured.checkpoint = self.measured.checkpoint.max(*seconds);
        let lead = self.job.recipe.checkpoint.lead.map(Duration::from_secs);
        if let Some(warning) = lead.and_then(|lead| grace::shortage(lead, self.measured))
            && !self.shortage_announced
        {
            self.shortage_announced = true;
            self.warn(&format!("warning: {warning}"));
        }
    }

    /// Asks the kernel about ranks of this host of which nothing was heard lately, or that do not get on.
    fn look_at_processes(&mut self) {
        for rank in &mut self.evidence.ranks {
            let is_quiet = rank.left.is_some() || self.clock.saturating_sub(rank.last_heard) > QUIET;
            let is_idle = rank.heartbeat.as_ref().is_some_and(|beat| beat.idle > QUIET.as_secs_f64());
            rank.process = match &rank.identity {
                Some(who) if (is_quiet || is_idle) && who.host == self.here => host::process_state(who.pid),
                _ => None,
            };
        }
        if self.evidence.exit.is_some() {
            let since_start = host::out_of_memory_kills().saturating_sub(self.out_of_memory_kills_before);
            self.evidence.out_of_memory_kills = since_start;
        }
    }

    /// Says something to the person and to the log.
    fn announce(&mut self, message: &str) {
        self.screen.line(&format!("{}: {message}", self.job.stage.name));
        self.log.announcement(message);
    }

    /// The same, if it must not be missed.
    fn warn(&mut self, message: &str) {
        self.screen.warn(&format!("{}: {message}", self.job.stage.name));
        self.log.announcement(message);
    }

    /// Says something to the log, and to a person who wants to know everything.
    fn note(&mut self, message: &str) {
        self.screen.detail(&format!("{}: {message}", self.job.stage.name));
        self.log.launcher(message);
    }

    /// Asks for a stop at the next step, once, as soon as rank 0 is there to be asked.
    fn ask_to_stop(&mut self, interrupts: &Interrupts) {
        if !self.stop_announced {
            self.stop_announced = true;
            self.announce(match interrupts.wish() {
                Some(Wish::Signal) => "stopping at the next step with a checkpoint; press Ctrl-C again to kill",
                Some(Wish::TimeIsUp) => "stopping at the next step with a checkpoint, as SIGUSR1 asks",
                _ => "stopping at the next step with a checkpoint, since another stage failed",
            });
        }
        if !self.stop_sent && self.connections.values().any(|(rank, _)| *rank == 0) {
            self.stop_sent = true;
            self.send(&ToRank::Stop);
        }
    }

    fn send(&mut self, message: &ToRank) {
        let Some((_, sender)) = self.connections.values_mut().find(|(rank, _)| *rank == 0) else { return };
        // If rank 0 is gone, its connection's end and its starter say so, and better.
        if let Err(e) = sender.send(message) {
            self.log.launcher(&format!("cannot reach rank 0: {e}"));
        }
    }

    /// Ends whatever still runs: asks the starter, which asks the ranks, and insists after a while.
    fn close(&mut self) {
        self.screen.end_stage(&self.job.stage.name);
        if self.evidence.exit.is_none() {
            self.note("ending what still runs");
            self.process.terminate();
            if !self.ends_within(TERMINATE_WITHIN) {
                self.kill_now();
                self.ends_within(TERMINATE_WITHIN);
            }
        }
        // A rank that outlived its starter sees its connection end, and ends.
        for (_, sender) in self.connections.values() {
            sender.hang_up();
        }
        if let Some(line) = self.refusals.count(self.clock) {
            self.log.launcher(&line);
        }
    }

    /// Whether the starter ends in time. What it still prints goes to the log.
    fn ends_within(&mut self, limit: Duration) -> bool {
        let since = Instant::now();
        while self.evidence.exit.is_none() && since.elapsed() < limit {
            match self.inbox.recv_timeout(TICK) {
                Ok(Event::Starter(ProcessEvent::Line(line))) => self.read(&line),
                Ok(Event::Starter(ProcessEvent::Ended(status))) => self.evidence.exit = Some((status, self.clock)),
                _ => {}
            }
        }
        self.evidence.exit.is_some()
    }

    /// Ends everything on this host without asking. Ranks elsewhere see their connection end, and end.
    fn kill_now(&mut self) {
        for (rank, _) in self.connections.values() {
            // Still connected, so that its number is still its own.
            let identity = self.evidence.ranks[*rank].identity.as_ref();
            let pid = identity.filter(|i| i.host == self.here).and_then(|i| i32::try_from(i.pid).ok());
            // 0 and below would mean whole groups of processes.
            if let Some(pid) = pid.filter(|pid| *pid > 1) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        self.process.kill();
    }
}
