//! The collectives: each is given to a stream of its own and waited for with an event.

use std::collections::VecDeque;
use std::mem;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bam_cluster::comm::Activity;
use tch::{Device, Kind, Tensor};

use super::NcclError;
use super::abort::{AbortHandle, END_WITHIN, Shared};
use super::describe::Description;
use super::library::{Comm, Event, Library, Progress, Stream};

/// This rank's end of a communicator among all ranks.
///
/// All ranks start the same operations in the same order. An operation begins, on the device, when torch's stream is through
/// with what it had been given before, and returns before it has begun. Its tensors are contiguous, float32 or bf16; what
/// torch is given next must not touch them before [`wait_on_device`](Self::wait_on_device), and the host must not wait for the
/// device (nor read a value from it) before [`settle`](Self::settle), which alone gives up when a rank is lost.
pub struct Nccl {
    shared: Arc<Shared>,
    lane: Mutex<Lane>,
    rank: usize,
    ranks: usize,
    deadline: Duration,
    activity: Activity,
    about: Description,
}

/// The stream, and what it has been given.
struct Lane {
    stream: Stream,
    /// Where torch's stream was when an operation was started.
    torch: Event,
    /// Operations that were not over when they were last looked at, in order.
    started: VecDeque<Started>,
    /// Events of operations that are over.
    spare: Vec<Event>,
}

struct Started {
    name: &'static str,
    over: Event,
    /// Keeps the memory that the operation uses.
    _tensors: Vec<Tensor>,
}

impl Nccl {
    pub(super) fn new(
        shared: Arc<Shared>,
        (rank, ranks): (usize, usize),
        deadline: Duration,
        activity: Activity,
        about: Description,
    ) -> Result<Nccl, NcclError> {
        let lane = Lane::new(&shared.library).inspect_err(|e| shared.fail(&e.to_string()))?;
        Ok(Nccl { shared, lane: Mutex::new(lane), rank, ranks, deadline, activity, about })
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.ranks
    }

    /// What the log should have of it.
    pub fn describe(&self) -> &Description {
        &self.about
    }

    /// For the thread that watches over this one.
    pub fn abort_handle(&self) -> AbortHandle {
        AbortHandle::of(&self.shared)
    }

    /// Makes `tensor` its sum over all ranks.
    ///
    /// # Errors
    /// NCCL or CUDA refuses, or the communicator was aborted. It is then of no use any more.
    ///
    /// # Panics
    /// The tensor is not what the communicator takes: a mistake in this program.
    pub fn all_reduce_sum(&self, name: &'static str, tensor: &Tensor) -> Result<(), NcclError> {
        self.start(name, &[tensor], |library, comm, stream| library.all_reduce_sum(comm, tensor, stream))
    }

    /// Makes `tensor` that of rank `root`.
    ///
    /// # Errors
    /// As [`all_reduce_sum`](Self::all_reduce_sum).
    ///
    /// # Panics
    /// As [`all_reduce_sum`](Self::all_reduce_sum).
    pub fn broadcast(&self, name: &'static str, root: usize, tensor: &Tensor) -> Result<(), NcclError> {
        assert!(root < self.ranks, "there is no rank {root} of {}", self.ranks);
        self.start(name, &[tensor], |library, comm, stream| library.broadcast(comm, tensor, root, stream))
    }

    /// Puts the `send` of all ranks into `receive`, by rank. `send` may be this rank's part of `receive`.
    ///
    /// # Errors
    /// As [`all_reduce_sum`](Self::all_reduce_sum).
    ///
    /// # Panics
    /// As [`all_reduce_sum`](Self::all_reduce_sum); lengths do not fit.
    pub fn all_gather(&self, name: &'static str, send: &Tensor, receive: &Tensor) -> Result<(), NcclError> {
        assert_eq!(receive.numel(), self.ranks * send.numel(), "each rank's values have their place");
        self.start(name, &[send, receive], |library, comm, stream| library.all_gather(comm, send, receive, stream))
    }

    /// Puts the sum over all ranks of the `rank`-th part of `send` into `receive`, which may be that part itself.
    ///
    /// # Errors
    /// As [`all_reduce_sum`](Self::all_reduce_sum).
    ///
    /// # Panics
    /// As [`all_reduce_sum`](Self::all_reduce_sum); lengths do not fit.
    pub fn reduce_scatter(&self, name: &'static str, send: &Tensor, receive: &Tensor) -> Result<(), NcclError> {
        assert_eq!(send.numel(), self.ranks * receive.numel(), "there is a part for each rank");
        self.start(name, &[send, receive], |library, comm, stream| library.reduce_scatter(comm, send, receive, stream))
    }

    /// Sends `send[to[r]]` to every rank r, and puts what rank r sends to this one into `receive[from[r]]`. Ranges to send may
    /// overlap; those to receive may not, and are as long as what the other rank sends.
    ///
    /// # Errors
    /// As [`all_reduce_sum`](Self::all_reduce_sum).
    ///
    /// # Panics
    /// As [`all_reduce_sum`](Self::all_reduce_sum); there is not a range for each rank, or it is not within its tensor.
    pub fn all_to_all(
        &self,
        name: &'static str,
        (send, to): (&Tensor, &[Range<usize>]),
        (receive, from): (&Tensor, &[Range<usize>]),
    ) -> Result<(), NcclError> {
        for (tensor, ranges) in [(send, to), (receive, from)] {
            let within = |range: &Range<usize>| range.start <= range.end && range.end <= tensor.numel();
            assert!(ranges.len() == self.ranks && ranges.iter().all(within), "{ranges:?} of {}", tensor.numel());
        }
        self.start(name, &[send, receive], |library, comm, stream| {
            library.all_to_all(comm, (send, to), (receive, from), stream)
        })
    }

    /// Makes torch's stream wait for all operations started so far. The host does not wait.
    ///
    /// # Errors
    /// As [`all_reduce_sum`](Self::all_reduce_sum).
    pub fn wait_on_device(&self) -> Result<(), NcclError> {
        let lane = self.lane();
        let last = lane.started.back();
        self.shared.usable(last.map_or("none", |operation| operation.name))?;
        let Some(last) = last else { return Ok(()) };
        let library = &self.shared.library;
        let waits = library.set_device(self.shared.device).and_then(|()| library.default_stream_waits(&last.over));
        self.or_fail(waits)
    }

    /// Waits on the host until all operations started so far are over. Errors name the first of them that is not.
    ///
    /// # Errors
    /// NCCL or CUDA has found out that it cannot end, the deadline passed, or another thread aborted the communicator, which
    /// is of no use any more.
    pub fn settle(&self, name: &'static str) -> Result<(), NcclError> {
        let _in_collective = self.activity.enter(name);
        let mut pause = Pause::new(self.deadline);
        let settled = loop {
            let first = match self.first_unfinished() {
                Ok(None) => break self.shared.usable(name),
                Ok(Some(first)) => first,
                Err(e) => break Err(e),
            };
            let state = self.shared.with(first, |library, comm| library.state(comm));
            if let Err(e) = state {
                break Err(in_collective(e, first));
            }
            if let Some(waited) = pause.is_too_long() {
                break Err(NcclError::Deadline { name: first, waited });
            }
        };
        self.or_fail(settled)
    }

    fn first_unfinished(&self) -> Result<Option<&'static str>, NcclError> {
        let mut lane = self.lane();
        lane.drop_finished()?;
        Ok(lane.started.front().map(|operation| operation.name))
    }

    /// Gives an operation to the stream, behind all that torch's stream has been given.
    fn start(
        &self,
        name: &'static str,
        tensors: &[&Tensor],
        call: impl Fn(&Library, &Comm, &Stream) -> Result<Progress, NcclError>,
    ) -> Result<(), NcclError> {
        tensors.iter().for_each(|tensor| self.check(tensor, tensors[0].kind()));
        let kept: Vec<Tensor> = tensors.iter().map(|tensor| tensor.shallow_clone()).collect();
        let _in_collective = self.activity.enter(name);
        let mut lane = self.lane();
        self.shared.usable(name)?;
        let given = lane.begin(&self.shared).and_then(|()| {
            let progress = self.shared.with(name, |library, comm| call(library, comm, &lane.stream))?;
            self.until_given(name, progress)?;
            lane.end(&self.shared.library)
        });
        let given = match given {
            Ok(over) => {
                lane.started.push_back(Started { name, over, _tensors: kept });
                Ok(())
            }
            Err(e) => {
                // NCCL may have got it, and the device may still write there.
                mem::forget(kept);
                Err(e)
            }
        };
        drop(lane);
        self.or_fail(given)
    }

    /// NCCL gives an operation to the stream in a thread of its own, and takes no other before it has.
    fn until_given(&self, name: &'static str, mut progress: Progress) -> Result<(), NcclError> {
        let mut pause = Pause::new(self.deadline);
        while progress == Progress::InProgress {
            if let Some(waited) = pause.is_too_long() {
                return Err(NcclError::Deadline { name, waited });
            }
            let state = self.shared.with(name, |library, comm| library.state(comm));
            progress = state.map_err(|e| in_collective(e, name))?;
        }
        Ok(())
    }

    /// What has failed once is not to be relied on, and other ranks should not wait for it.
    fn or_fail<T>(&self, outcome: Result<T, NcclError>) -> Result<T, NcclError> {
        if let Err(e) = &outcome {
            self.shared.fail(&e.to_string());
        }
        outcome
    }

    fn check(&self, tensor: &Tensor, kind: Kind) {
        let is_here = match tensor.device() {
            Device::Cuda(device) => i32::try_from(device) == Ok(self.shared.device),
            // What stands in for NCCL in tests works on the host's memory.
            Device::Cpu => true,
            _ => false,
        };
        let fits = matches!(kind, Kind::Float | Kind::BFloat16) && tensor.kind() == kind && tensor.is_contiguous();
        let device = self.shared.device;
        assert!(is_here && fits, "expected contiguous {kind:?} (float32 or bf16) on device {device}, got {tensor:?}");
    }

    // A thread that panicked left a list that is as good as before.
    fn lane(&self) -> MutexGuard<'_, Lane> {
        self.lane.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    fn new(library: &Arc<Library>) -> Result<Lane, NcclError> {
        let (stream, torch) = (Stream::new(library)?, Event::new(library)?);
        Ok(Lane { stream, torch, started: VecDeque::new(), spare: vec![] })
    }

    /// What comes next waits for what torch's stream has been given.
    fn begin(&mut self, shared: &Shared) -> Result<(), NcclError> {
        // The default stream is that of the thread's current device, which torch may have changed.
        shared.library.set_device(shared.device)?;
        self.drop_finished()?;
        self.torch.record(None)?;
        self.stream.wait(&self.torch)
    }

    /// The end of what the stream has been given.
    fn end(&mut self, library: &Arc<Library>) -> Result<Event, NcclError> {
        let over = self.spare.pop().map_or_else(|| Event::new(library), Ok)?;
        over.record(Some(&self.stream))?;
        Ok(over)
    }

    fn drop_finished(&mut self) -> Result<(), NcclError> {
        while let Some(first) = self.started.front() {
            if !first.over.is_over()? {
                break;
            }
            self.spare.extend(self.started.pop_front().map(|operation| operation.over));
        }
        Ok(())
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        if matches!(self.first_unfinished(), Ok(None)) && self.shared.usable("end").is_ok() {
            self.shared.finish();
            return;
        }
        // NCCL would wait for operations to end before it ends itself, and they need not.
        self.shared.fail("it was dropped while operations were under way");
        let mut pause = Pause::new(END_WITHIN);
        while !matches!(self.first_unfinished(), Ok(None)) {
            if pause.is_too_long().is_some() {
                // The device may still write there.
                mem::forget(mem::take(&mut self.lane().started));
                return;
            }
        }
    }
}

/// NCCL's words on the state of a communicator, as those on a collective.
fn in_collective(error: NcclError, name: &'static str) -> NcclError {
    match error {
        NcclError::Call { words, detail, .. } => NcclError::Asynchronous { name, words, detail },
        other => other,
    }
}

/// Short sleeps between two looks at something that another thread or the device does, until a deadline.
pub(super) struct Pause {
    since: Instant,
    deadline: Duration,
    next: Duration,
}

const SHORTEST: Duration = Duration::from_micros(20);
/// Short against a training step.
const LONGEST: Duration = Duration::from_micros(500);

impl Pause {
    pub(super) fn new(deadline: Duration) -> Self {
        Pause { since: Instant::now(), deadline, next: SHORTEST }
    }

    /// Sleeps. Returns for how long it has waited if that is longer than the deadline.
    pub(super) fn is_too_long(&mut self) -> Option<Duration> {
        let waited = self.since.elapsed();
        if waited > self.deadline {
            return Some(waited);
        }
        thread::sleep(self.next);
        self.next = (2 * self.next).min(LONGEST);
        None
    }
}
