//! A rank's end of the control channel: orders in, events and heartbeats out, and the watchdog that ends a rank which
//! is stuck in a collective or has lost its launcher.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use bam_cluster::comm::Activity;
use bam_cluster::exit_code;
use bam_cluster::protocol::{ControlFile, Failure, FromRank, Heartbeat, Hello, ToRank, channel};

use crate::comm::MpiWorld;

/// The connection to the launcher. Clones share it.
#[derive(Clone)]
pub struct Control {
    sender: Arc<Mutex<channel::Sender>>,
    stop: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
}

const HEARTBEAT: Duration = Duration::from_secs(1);
const CONNECT_WITHIN: Duration = Duration::from_secs(30);

impl Control {
    /// Connects, says who this rank is and begins to listen. Orders come out of the receiver.
    ///
    /// # Errors
    /// The launcher cannot be reached, or whoever answers is not the launcher.
    pub fn connect(file: &ControlFile, rank: usize, world_size: usize) -> Result<(Control, Receiver<ToRank>)> {
        let (sender, receiver) = channel::connect(&file.addresses, &file.secret, CONNECT_WITHIN)
            .context("the launcher cannot be reached")?;
        let control = Control { sender: Arc::new(Mutex::new(sender)), stop: Arc::default(), over: Arc::default() };
        control.send(&FromRank::Hello(Hello {
            incarnation: file.incarnation,
            rank,
            world_size,
            host: host_name(),
            pid: process::id(),
        }))?;
        let (orders, received) = mpsc::channel();
        let listener = control.clone();
        thread::spawn(move || listener.listen(receiver, &orders));
        Ok((control, received))
    }

    /// Tells the launcher something.
    ///
    /// # Errors
    /// The launcher is gone.
    pub fn send(&self, message: &FromRank) -> Result<()> {
        let mut sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        sender.send(message).context("the launcher is gone")
    }

    /// Whether the launcher wants a stop at the next step.
    pub fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// From now on the launcher may hang up.
    pub fn finish(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Starts the heartbeat of this rank, and the watchdog over its collectives.
    pub fn start_heartbeat(&self, activity: Activity, deadline: Duration) {
        let control = self.clone();
        thread::spawn(move || {
            while !control.over.load(Ordering::Relaxed) {
                control.beat(&activity, deadline);
                thread::sleep(HEARTBEAT);
            }
        });
    }

    fn beat(&self, activity: &Activity, deadline: Duration) {
        let now = activity.snapshot();
        let beat = Heartbeat {
            phase: now.phase.to_owned(),
            step: now.step,
            collective: now.collective.map(|(name, time)| (name.to_owned(), time.as_secs_f64())),
            sequence: now.sequence,
        };
        // If the launcher is gone, the listener knows and ends this rank.
        let _ = self.send(&FromRank::Heartbeat(beat));
        if let Some((name, time)) = now.collective.filter(|(_, time)| *time > deadline) {
            let message = format!("was in collective '{name}' for {} s, longer than cluster.deadline", time.as_secs());
            self.fail(exit_code::FAILURE, message);
        }
    }

    /// Tells the launcher why this rank cannot go on, and ends all ranks.
    pub fn fail(&self, exit_code: u8, message: String) -> ! {
        eprintln!("error: {message}");
        let _ = self.send(&FromRank::Failed(Failure { exit_code, message }));
        MpiWorld::abort(exit_code)
    }

    fn listen(&self, mut receiver: channel::Receiver, orders: &Sender<ToRank>) {
        while let Ok(Some(order)) = receiver.receive::<ToRank>() {
            if order == ToRank::Stop {
                self.stop.store(true, Ordering::Relaxed);
            }
            if orders.send(order).is_err() {
                return;
            }
        }
        if !self.over.load(Ordering::Relaxed) {
            eprintln!("error: the launcher is gone; this rank ends, the run goes on from its last checkpoint");
            MpiWorld::abort(exit_code::FAILURE)
        }
    }
}

fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok());
    name.unwrap_or_else(|| "unknown host".to_owned())
}
