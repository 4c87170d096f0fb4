//! Ctrl-C and SIGTERM: counted, so that the first one asks and the second one insists. A failed stage asks, too.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// One request may come as several signals: `timeout` and batch systems signal a program and then its whole group.
/// Nobody presses Ctrl-C twice within this time.
const ONE_REQUEST: Duration = Duration::from_millis(100);

/// How often somebody has asked this program to end, and whether it wants to by itself.
#[derive(Debug, Clone, Default)]
pub struct Interrupts {
    signals: Arc<AtomicUsize>,
    failed: Arc<AtomicBool>,
}

impl Interrupts {
    /// From now on signals do not end the program; they are counted.
    ///
    /// # Errors
    /// The system refuses.
    pub fn listen() -> io::Result<Interrupts> {
        let interrupts = Interrupts::default();
        let count = interrupts.signals.clone();
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        thread::spawn(move || {
            let mut last: Option<Instant> = None;
            for _ in signals.forever() {
                if last.is_none_or(|at| at.elapsed() > ONE_REQUEST) {
                    count.fetch_add(1, Ordering::SeqCst);
                    last = Some(Instant::now());
                }
            }
        });
        Ok(interrupts)
    }

    /// How many so far.
    pub fn count(&self) -> usize {
        self.signals.load(Ordering::SeqCst)
    }

    /// Notes that a stage failed: the others are to stop at their next step.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::SeqCst);
    }

    /// Whether everything is to stop at its next step.
    pub fn is_stop_wanted(&self) -> bool {
        self.count() > 0 || self.failed.load(Ordering::SeqCst)
    }
}
