//! How a communicator ends: once, by whichever thread is first, and without keeping anybody waiting for ever.

use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::NcclError;
use super::library::{Comm, Library};

/// NCCL may wait for other ranks before it returns from an abort, and they need not come: a thread of its own is left with it
/// after so long.
pub(super) const END_WITHIN: Duration = Duration::from_secs(3);

/// What the threads of a rank share of a communicator.
pub(super) struct Shared {
    pub(super) library: Arc<Library>,
    pub(super) device: i32,
    /// None: it was ended.
    comm: Mutex<Option<Comm>>,
    /// Why it is of no use any more.
    failure: Mutex<Option<String>>,
}

/// By which another thread, the watchdog's, ends a communicator whose rank is stuck.
#[derive(Clone)]
pub struct AbortHandle(Arc<Shared>);

impl AbortHandle {
    pub(super) fn of(shared: &Arc<Shared>) -> Self {
        AbortHandle(shared.clone())
    }

    /// Ends all that the communicator does. From now on its operations, also the one that a thread waits for, return
    /// [`NcclError::Aborted`] with this `reason`; that of an earlier abort stays. Returns after a few seconds even where
    /// NCCL does not.
    pub fn abort(&self, reason: &str) {
        self.0.fail(reason);
    }
}

impl Shared {
    pub(super) fn new(library: Arc<Library>, device: i32, comm: Comm) -> Arc<Shared> {
        Arc::new(Shared { library, device, comm: Mutex::new(Some(comm)), failure: Mutex::default() })
    }

    /// Does something with the communicator, which nobody ends meanwhile.
    pub(super) fn with<T>(
        &self,
        name: &'static str,
        call: impl FnOnce(&Library, &Comm) -> Result<T, NcclError>,
    ) -> Result<T, NcclError> {
        self.usable(name)?;
        match &*self.comm() {
            Some(comm) => call(&self.library, comm),
            None => Err(NcclError::Aborted { name, reason: "it is over".to_owned() }),
        }
    }

    /// Fails if the communicator is of no use any more.
    pub(super) fn usable(&self, name: &'static str) -> Result<(), NcclError> {
        match &*self.failure() {
            Some(reason) => Err(NcclError::Aborted { name, reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// Marks the communicator as of no use, and aborts it.
    pub(super) fn fail(self: &Arc<Self>, reason: &str) {
        self.failure().get_or_insert_with(|| reason.to_owned());
        self.end(Library::abort);
    }

    /// Ends a communicator that has nothing to do.
    pub(super) fn finish(self: &Arc<Self>) {
        self.end(Library::destroy);
    }

    /// Whoever takes the communicator ends it. What NCCL says to that changes nothing.
    fn end(self: &Arc<Self>, how: fn(&Library, Comm) -> Result<(), NcclError>) {
        let (ended, end) = mpsc::channel();
        let shared = self.clone();
        let work = move || {
            let taken = shared.comm().take();
            if let Some(comm) = taken {
                let outcome = shared.library.set_device(shared.device).and(how(&shared.library, comm));
                if let Err(e) = outcome {
                    tracing::debug!("NCCL's end: {e}");
                }
            }
            let _ = ended.send(());
        };
        let started = thread::Builder::new().name("NCCL's end".to_owned()).spawn(work);
        if started.is_ok() {
            // Or the thread has not come back, and nobody waits for it any longer.
            let _ = end.recv_timeout(END_WITHIN);
        }
    }

    // What a thread left that panicked is as good as before.
    fn comm(&self) -> MutexGuard<'_, Option<Comm>> {
        self.comm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failure(&self) -> MutexGuard<'_, Option<String>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
