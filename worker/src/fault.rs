//! Fails, or waits, where `bam rehearse` asked for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bam_cluster::fault::{Act, Fault, Point};
use bam_cluster::protocol::FromRank;
use nix::sys::signal::{Signal, raise};

use crate::control::Control;

/// How long a rank waits for a wish to stop.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// One rank's failures. None, unless the run is a rehearsal.
#[derive(Clone)]
pub struct Faults {
    own: Arc<Vec<Fault>>,
    written: Arc<AtomicU64>,
    control: Control,
}

impl Faults {
    /// Those of `rank`; the launcher hears of each before it comes.
    pub fn of_rank(all: &[Fault], rank: usize, control: Control) -> Faults {
        Faults {
            own: Arc::new(all.iter().filter(|f| f.rank == rank).cloned().collect()),
            written: Arc::default(),
            control,
        }
    }

    /// Says that the rank has written one more file of its stage's products, or given a directory of them its name.
    pub fn wrote(&self) {
        self.reach(Point::Written(self.written.fetch_add(1, Ordering::Relaxed) + 1));
    }

    /// Says that the rank has come to a point. If it is to fail there, this does not return, or only after somebody has
    /// woken the process up.
    pub fn reach(&self, point: Point) {
        for fault in self.own.iter().filter(|f| f.at == point) {
            let _ = self.control.send(&FromRank::Note { message: format!("rehearsal: {fault}") });
            match fault.act {
                Act::Kill => _ = raise(Signal::SIGKILL),
                Act::Stop => _ = raise(Signal::SIGSTOP),
                Act::Hang => loop {
                    thread::sleep(Duration::from_secs(3600));
                },
                Act::Wait => self.wait_for_a_stop(),
            }
        }
    }

    fn wait_for_a_stop(&self) {
        let since = Instant::now();
        while !self.control.stop_requested() && since.elapsed() < LONGEST_WAIT {
            thread::sleep(Duration::from_millis(2));
        }
    }
}
