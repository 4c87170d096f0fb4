//! What a person sees while stages run: a bar for each on a terminal, a line now and then elsewhere. All of it on stderr.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::figures::Figures;

/// How often a line of a stage's progress is printed where there is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// The screen; one for a whole run, whose stages may run side by side.
#[derive(Debug)]
pub struct Screen(Mutex<Display>);

#[derive(Debug)]
enum Display {
    /// A bar for each running stage.
    Terminal(MultiProgress, HashMap<String, ProgressBar>),
    /// When the last line of each stage's progress was printed.
    Plain(HashMap<String, Instant>),
}

impl Screen {
    /// On a terminal if stderr is one.
    pub fn new() -> Screen {
        let display = if io::stderr().is_terminal() {
            Display::Terminal(MultiProgress::with_draw_target(ProgressDrawTarget::stderr()), HashMap::new())
        } else {
            Display::Plain(HashMap::new())
        };
        Screen(Mutex::new(display))
    }

    /// Prints a line, above the bars if there are any.
    pub fn line(&self, text: &str) {
        print(&self.display(), text);
    }

    /// Shows how far a running stage has come.
    pub fn show(&self, stage: &str, figures: &Figures) {
        let mut display = self.display();
        match &mut *display {
            Display::Terminal(all, bars) => {
                let bar = bars.entry(stage.to_owned()).or_insert_with(|| all.add(new_bar(stage)));
                bar.set_length(figures.total());
                bar.set_position(figures.done());
                bar.set_message(figures.details());
            }
            Display::Plain(last) => {
                let last = last.entry(stage.to_owned()).or_insert_with(Instant::now);
                if last.elapsed() >= PLAIN_EVERY {
                    *last = Instant::now();
                    let text = format!("{stage}: {}/{} {}", figures.done(), figures.total(), figures.details());
                    print(&display, &text);
                }
            }
        }
    }

    /// Takes a stage's bar away.
    pub fn end_stage(&self, stage: &str) {
        match &mut *self.display() {
            Display::Terminal(all, bars) => {
                if let Some(bar) = bars.remove(stage) {
                    bar.finish_and_clear();
                    all.remove(&bar);
                }
            }
            Display::Plain(last) => drop(last.remove(stage)),
        }
    }

    fn display(&self) -> MutexGuard<'_, Display> {
        // Whoever panicked while printing has left nothing half-done that matters.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn print(display: &Display, text: &str) {
    // Nobody may be there to read it any more; that must not end a run.
    let print = || drop(writeln!(io::stderr(), "{text}"));
    match display {
        Display::Terminal(all, _) => all.suspend(print),
        Display::Plain(_) => print(),
    }
}

fn new_bar(stage: &str) -> ProgressBar {
    let bar = ProgressBar::no_length();
    // The template is a constant; were it wrong, the plain bar would do.
    if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:12}] {pos}/{len} {wide_msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(stage.to_owned());
    bar
}
