//! What a person sees while stages run: a bar on a terminal, a line now and then elsewhere. All of it on stderr.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::figures::Figures;

/// How often a line of progress is printed where there is no terminal.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// The screen; one for a whole run.
#[derive(Debug)]
pub struct Screen {
    display: Display,
}

#[derive(Debug)]
enum Display {
    Terminal(Option<ProgressBar>),
    /// When the last line of progress was printed.
    Plain(Instant),
}

impl Screen {
    /// On a terminal if stderr is one.
    pub fn new() -> Screen {
        let terminal = io::stderr().is_terminal();
        Screen { display: if terminal { Display::Terminal(None) } else { Display::Plain(Instant::now()) } }
    }

    /// Prints a line, above the bar if there is one.
    pub fn line(&self, text: &str) {
        // Nobody may be there to read it any more; that must not end a run.
        let print = || drop(writeln!(io::stderr(), "{text}"));
        match &self.display {
            Display::Terminal(Some(bar)) => bar.suspend(print),
            _ => print(),
        }
    }

    /// Shows how far the running stage has come.
    pub fn show(&mut self, stage: &str, figures: &Figures) {
        match &mut self.display {
            Display::Terminal(bar) => {
                let bar = bar.get_or_insert_with(|| new_bar(stage));
                bar.set_length(figures.total());
                bar.set_position(figures.done());
                bar.set_message(figures.details());
            }
            Display::Plain(last) if last.elapsed() >= PLAIN_EVERY => {
                *last = Instant::now();
                self.line(&format!("{stage}: {}/{} {}", figures.done(), figures.total(), figures.details()));
            }
            Display::Plain(_) => {}
        }
    }

    /// Takes the bar away.
    pub fn end_stage(&mut self) {
        if let Display::Terminal(bar) = &mut self.display
            && let Some(bar) = bar.take()
        {
            bar.finish_and_clear();
        }
    }
}

fn new_bar(stage: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    // The template is a constant; were it wrong, the plain bar would do.
    if let Ok(style) = ProgressStyle::with_template("{prefix} [{bar:12}] {pos}/{len} {wide_msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(stage.to_owned());
    bar
}
