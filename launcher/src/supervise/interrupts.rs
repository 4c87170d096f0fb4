//! Wishes for an end: Ctrl-C and SIGTERM, of which the first asks and the second insists; SIGUSR1, by which schedulers say
//! that time is nearly up; and a stage that failed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

/// One request may come as several signals: `timeout` and batch systems signal a program and then its whole group.
/// Nobody presses Ctrl-C twice within this time.
const ONE_REQUEST: Duration = Duration::from_millis(100);

/// How often somebody has asked this program to end, and whether it wants to by itself.
#[derive(Debug, Clone, Default)]
pub struct Interrupts {
    signals: Arc<AtomicUsize>,
    time_is_up: Arc<AtomicBool>,
    failed: Arc<AtomicBool>,
}

/// Why everything is to stop at its next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Ctrl-C or SIGTERM.
    Signal,
    /// SIGUSR1.
    TimeIsUp,
    /// Another stage failed.
    Failure,
}

impl Interrupts {
    /// From now on signals do not end the program; they are counted.
    ///
    /// # Errors
    /// The system refuses.
    pub fn listen() -> io::Result<Interrupts> {
        let interrupts = Interrupts::default();
        let (count, time_is_up) = (interrupts.signals.clone(), interrupts.time_is_up.clone());
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1])?;
        thread::spawn(move || {
            let mut last: Option<Instant> = None;
            for signal in signals.forever() {
                if signal == SIGUSR1 {
                    time_is_up.store(true, Ordering::SeqCst);
                } else if last.is_none_or(|at| at.elapsed() > ONE_REQUEST) {
                    count.fetch_add(1, Ordering::SeqCst);
                    last = Some(Instant::now());
                }
            }
        });
        Ok(interrupts)
    }

    /// How often somebody has pressed Ctrl-C or sent SIGTERM.
    pub fn count(&self) -> usize {
        self.signals.load(Ordering::SeqCst)
    }

    /// Notes that a stage failed: the others are to stop at their next step.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::SeqCst);
    }

    /// Whether everything is to stop at its next step, and why.
    pub fn wish(&self) -> Option<Wish> {
        if self.count() > 0 {
            Some(Wish::Signal)
        } else if self.time_is_up.load(Ordering::SeqCst) {
            Some(Wish::TimeIsUp)
        } else {
            self.failed.load(Ordering::SeqCst).then_some(Wish::Failure)
        }
    }
}
