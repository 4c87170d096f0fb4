//! A rank's end of the control channel: orders in, events and heartbeats out, and the watchdog that ends a rank which
//! is stuck in a collective or has lost its launcher.

use std::fs;
use std::io;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use bam_cluster::comm::Activity;
use bam_cluster::exit_code;
use bam_cluster::protocol::{ControlFile, Failure, FromRank, Heartbeat, Hello, LastCollective, ToRank, channel};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;

use crate::comm::MpiWorld;
use crate::comm::nccl::AbortHandle;

/// The connection to the launcher. Clones share it.
#[derive(Clone)]
pub struct Control {
    sender: Arc<Mutex<channel::Sender>>,
    stop: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
    /// What is to be aborted before this rank ends: GPUs would go on waiting for other ranks.
    nccl: Arc<Mutex<Option<AbortHandle>>>,
}

const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long after the deadline a rank that the launcher has not ended ends itself.
pub const LAST_WORD: Duration = Duration::from_secs(10);
const CONNECT_WITHIN: Duration = Duration::from_secs(30);

impl Control {
    /// Connects, says who this rank is and begins to listen. Orders come out of the receiver.
    ///
    /// # Errors
    /// The launcher cannot be reached, or whoever answers is not the launcher.
    pub fn connect(file: &ControlFile, rank: usize, world_size: usize) -> Result<(Control, Receiver<ToRank>)> {
        let (sender, receiver) = channel::connect(&file.addresses, &file.secret, CONNECT_WITHIN)
            .context("the launcher cannot be reached")?;
        let control = Control {
            sender: Arc::new(Mutex::new(sender)),
            stop: Arc::default(),
            over: Arc::default(),
            nccl: Arc::default(),
        };
        control.send(&FromRank::Hello(Hello {
            incarnation: file.incarnation,
            rank,
            world_size,
            host: host_name(),
            pid: process::id(),
            device: "cpu".to_owned(),
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

    /// From now on a signal that asks this rank to end (Slurm sends one to every process when time is up) is a wish for a
    /// stop at the next step, which all ranks then agree on.
    ///
    /// # Errors
    /// The system refuses.
    pub fn listen_to_signals(&self) -> io::Result<()> {
        for signal in [SIGTERM, SIGINT, SIGUSR1] {
            flag::register(signal, self.stop.clone())?;
        }
        Ok(())
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
        let collective = now.collective.map(|name| LastCollective {
            name: name.to_owned(),
            sequence: now.sequence,
            waiting: now.waiting.map(|time| time.as_secs_f64()),
        });
        let (idle, memory) = (now.idle.as_secs_f64(), memory_in_use());
        let beat = Heartbeat { phase: now.phase.to_owned(), step: now.step, collective, idle, memory };
        // If the launcher is gone, the listener knows and ends this rank.
        let _ = self.send(&FromRank::Heartbeat(beat));
        // The launcher sees the other ranks, too, and knows better whose fault it is: it comes first.
        if let (Some(name), Some(time)) = (now.collective, now.waiting.filter(|t| *t > deadline + LAST_WORD)) {
            let message = format!("was in collective '{name}' for {} s, longer than cluster.deadline", time.as_secs());
            self.fail(exit_code::FAILURE, message, false);
        }
    }

    /// Tells the launcher why this rank cannot go on, and ends all ranks.
    /// `is_lasting`: going on from the last checkpoint would end in the same way.
    pub fn fail(&self, exit_code: u8, message: String, is_lasting: bool) -> ! {
        eprintln!("error: {message}");
        let _ = self.send(&FromRank::Failed(Failure { exit_code, message: message.clone(), is_lasting }));
        let nccl = self.nccl.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(nccl) = nccl {
            nccl.abort(&message);
        }
        MpiWorld::abort(exit_code)
    }

    /// From now on this NCCL communicator is aborted before the rank ends by failing.
    pub fn abort_first(&self, nccl: AbortHandle) {
        *self.nccl.lock().unwrap_or_else(PoisonError::into_inner) = Some(nccl);
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

/// Bytes of this process in memory, where the system tells.
fn memory_in_use() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// This machine's name.
pub fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok());
    name.unwrap_or_else(|| "unknown host".to_owned())
}
