//! What a person sees while stages run: a bar for each and one for the run on a terminal, a line now and then elsewhere. All of
//! it on stderr.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bam_cluster::protocol::StepReport;
use console::{Term, style};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::bar::{stage_line, with_as_many};
use super::figures::Figures;
use crate::forecast::Remaining;
use crate::numbers::brief;

/// Where there is no terminal, a stage's progress is printed after this share of the time that it has run, but not more often
/// than every ten seconds and not more rarely than every five minutes.
const PLAIN_SHARE: u32 = 20;
const PLAIN_EVERY: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(300)];
/// How long the rest of the run takes is worked out so often.
const LOOK_AHEAD_EVERY: Duration = Duration::from_secs(1);
/// Columns for the names of stages.
const NAMES: usize = 20;

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Warnings, errors and results.
    Quiet,
    /// How stages get on, too.
    Normal,
    /// What the launcher writes into stages' logs, too.
    Verbose,
}

/// The screen; one for a whole run, whose stages may run side by side.
#[derive(Debug)]
pub struct Screen {
    verbosity: Verbosity,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    display: Display,
    remaining: Option<Remaining>,
    /// When that was last worked out, and what came of it in seconds.
    ahead: Option<(Instant, Option<f64>)>,
}

#[derive(Debug)]
enum Display {
    /// A bar for each running stage, and one for the run below them.
    Terminal { all: MultiProgress, stages: BTreeMap<String, ProgressBar>, run: Option<ProgressBar> },
    /// When each stage's progress was first and last printed.
    Plain(BTreeMap<String, [Instant; 2]>),
}

impl Screen {
    /// On a terminal if stderr is one. `remaining`: what is known of how long the run takes.
    pub fn new(verbosity: Verbosity, remaining: Option<Remaining>) -> Screen {
        let display = if io::stderr().is_terminal() {
            let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
            Display::Terminal { all, stages: BTreeMap::new(), run: None }
        } else {
            Display::Plain(BTreeMap::new())
        };
        Screen { verbosity, inner: Mutex::new(Inner { display, remaining, ahead: None }) }
    }

    /// Prints a line on how the run gets on, above the bars if there are any.
    pub fn line(&self, text: &str) {
        if self.verbosity >= Verbosity::Normal {
            self.inner().print(text);
        }
    }

    /// Prints a line that somebody should read even if nothing else is to be said.
    pub fn warn(&self, text: &str) {
        self.inner().print(&style(text).for_stderr().yellow().to_string());
    }

    /// Prints a line for those who want to know everything.
    pub fn detail(&self, text: &str) {
        if self.verbosity >= Verbosity::Verbose {
            self.inner().print(&style(text).for_stderr().dim().to_string());
        }
    }

    /// Takes in a step of a training, by which the time of the whole run is judged.
    pub fn step(&self, stage: &str, report: &StepReport) {
        if let Some(remaining) = &mut self.inner().remaining {
            remaining.step(stage, report);
        }
    }

    /// A stage is complete.
    pub fn complete(&self, stage: &str) {
        if let Some(remaining) = &mut self.inner().remaining {
            remaining.is_done(stage, 1.0);
        }
    }

    /// Shows how far a running stage has come.
    pub fn show(&self, stage: &str, figures: &Figures) {
        if self.verbosity == Verbosity::Quiet {
            return;
        }
        let inner = &mut *self.inner();
        let ahead = inner.ahead(stage, figures);
        match &mut inner.display {
            Display::Terminal { all, stages, run } => {
                let new = || all.insert(stages_shown(run.as_ref(), stages.len()), new_bar());
                if !stages.contains_key(stage) {
                    let bar = new();
                    stages.insert(stage.to_owned(), bar);
                }
                let run = run.get_or_insert_with(|| all.add(new_bar()));
                let width = usize::from(Term::stderr().size().1);
                let names = stages.keys().map(|name| name.chars().count()).max().unwrap_or_default().min(NAMES);
                if let Some(bar) = stages.get(stage) {
                    bar.set_message(stage_line(stage, figures, names, width));
                }
                let line = format!("{:<names$}", "run");
                run.set_message(style(with_as_many(line, &ahead, width)).for_stderr().dim().to_string());
            }
            Display::Plain(times) => {
                let now = Instant::now();
                let [first, last] = times.entry(stage.to_owned()).or_insert([now, now]);
                let every = (first.elapsed() / PLAIN_SHARE).clamp(PLAIN_EVERY[0], PLAIN_EVERY[1]);
                if last.elapsed() >= every {
                    *last = now;
                    let run = ahead.last().map(|ahead| format!("; run: {ahead}")).unwrap_or_default();
                    inner.print(&format!("{stage}: {}{run}", figures.line()));
                }
            }
        }
    }

    /// Takes a stage's bar away.
    pub fn end_stage(&self, stage: &str) {
        match &mut self.inner().display {
            Display::Terminal { all, stages, run } => {
                let mut gone: Vec<ProgressBar> = stages.remove(stage).into_iter().collect();
                if stages.is_empty() {
                    gone.extend(run.take());
                }
                for bar in gone {
                    bar.finish_and_clear();
                    all.remove(&bar);
                }
            }
            Display::Plain(times) => drop(times.remove(stage)),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Whoever panicked while printing has left nothing half-done that matters.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// How far the run is, and how long the rest takes, as far as that is known.
    fn ahead(&mut self, stage: &str, figures: &Figures) -> Vec<String> {
        let Some(remaining) = &mut self.remaining else { return vec![] };
        if figures.total() > 0 {
            // Until what it made is there, a stage is not complete.
            remaining.is_done(stage, (figures.done() as f64 / figures.total() as f64).min(0.999));
        }
        let is_new = |(at, _): &(Instant, Option<f64>)| at.elapsed() < LOOK_AHEAD_EVERY;
        let known = self.ahead.filter(is_new).unwrap_or_else(|| (Instant::now(), remaining.seconds()));
        self.ahead = Some(known);
        let (done, all) = remaining.stages();
        let left = known.1.map(|seconds| format!("~{} left", brief(seconds)));
        std::iter::once(format!("{done} of {all} stages done")).chain(left).collect()
    }

    fn print(&self, text: &str) {
        // Nobody may be there to read it any more; that must not end a run.
        let print = || drop(writeln!(io::stderr(), "{text}"));
        match &self.display {
            Display::Terminal { all, .. } => all.suspend(print),
            Display::Plain(_) => print(),
        }
    }
}

/// Where the next stage's bar goes: above that of the run.
fn stages_shown(run: Option<&ProgressBar>, stages: usize) -> usize {
    if run.is_some() { stages } else { usize::MAX }
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::no_length();
    // The template is a constant; were it wrong, the plain bar would do.
    if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
        bar.set_style(style);
    }
    bar
}
