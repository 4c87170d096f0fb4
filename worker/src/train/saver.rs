//! Checkpoints beside the training: what is to be saved is copied at once, and a thread writes and commits the copy while
//! steps go on. At most one is under way.

use std::borrow::Cow;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use anyhow::{Result, anyhow};
use bam_cluster::checkpoint::{CheckpointError, CommitPoint, State, Store};
use bam_cluster::exit_code;
use bam_cluster::fault::Point;
use bam_cluster::protocol::{CheckpointReport, FromRank};

use super::learner::{Learner, Tensors};
use crate::control::Control;
use crate::fault::Faults;
use crate::model::ParameterSpec;
use crate::session::Session;
use crate::snapshot::{write_moments, write_values};
use crate::telemetry;

/// The tensor files of a checkpoint.
pub const FILES: [&str; 2] = [MODEL, OPTIMIZER];
/// The parameters.
pub const MODEL: &str = "model.safetensors";
/// The optimizer's moments.
pub const OPTIMIZER: &str = "optimizer.safetensors";

/// The rank that writes.
const FIRST: usize = 0;

/// Writes one model's checkpoints.
pub struct Saver {
    writer: Writer,
    /// Whether training goes on while a checkpoint is written.
    is_asynchronous: bool,
    /// Room for the next copy; none before the first one, and while it is being written.
    room: Option<Frozen>,
    under_way: Option<JoinHandle<Result<Frozen>>>,
}

/// What the writing thread needs to know.
#[derive(Clone)]
struct Writer {
    store: Store,
    shape: Arc<Shape>,
    control: Control,
    faults: Faults,
    /// The stage's log.
    log: PathBuf,
}

struct Shape {
    specs: Vec<ParameterSpec>,
    ranges: Vec<Range<usize>>,
}

/// What a checkpoint holds, flat: parameters, first and second moments.
type Slices<'a> = [&'a [f32]; 3];

/// A copy of all that, as it was at one moment. Kept for the next checkpoint, since fresh memory costs more than the copy; the
/// first one makes room for it, and a run without checkpoints needs none.
#[derive(Default)]
struct Frozen([Vec<f32>; 3]);

impl Frozen {
    fn freeze(&mut self, tensors: Tensors) {
        for (room, values) in self.0.iter_mut().zip(tensors) {
            match values {
                Cow::Borrowed(values) => {
                    room.clear();
                    room.extend_from_slice(values);
                }
                // A copy already, of a device's memory.
                Cow::Owned(values) => *room = values,
            }
        }
    }
}

impl Saver {
    /// For the checkpoints in `store`.
    pub fn new(session: &Session, store: Store, specs: &[ParameterSpec], ranges: &[Range<usize>]) -> Saver {
        let shape = Arc::new(Shape { specs: specs.to_vec(), ranges: ranges.to_vec() });
        let (control, faults) = (session.control.clone(), session.faults.clone());
        let writer = Writer { store, shape, control, faults, log: session.run.log(&session.stage.name) };
        // Only the first rank writes.
        let is_asynchronous = session.recipe.checkpoint.asynchronous && session.is_first();
        Saver { writer, is_asynchronous, room: None, under_way: None }
    }

    /// Takes a copy and begins to write it, after the one before is on disk; or, if the recipe wants that, writes what is
    /// there without a copy.
    ///
    /// # Errors
    /// The one before, or this one if it is not asynchronous, could not be written.
    pub fn save(&mut self, state: State, learner: &mut dyn Learner) -> Result<()> {
        let began = Instant::now();
        self.settle()?;
        let tensors = learner.tensors();
        if !self.is_asynchronous {
            return self.writer.write(&state, tensors.each_ref().map(|values| &values[..]), began, None);
        }
        let mut frozen = self.room.take().unwrap_or_default();
        frozen.freeze(tensors);
        let stall = began.elapsed().as_secs_f64();
        let writer = self.writer.clone();
        self.under_way = Some(thread::spawn(move || {
            let written = writer.write(&state, frozen.0.each_ref().map(|values| &values[..]), began, Some(stall));
            // Whatever fails for an orphan fails because it is one: a newer start has removed its draft, for example.
            let written = written.map_err(|error| writer.store.check_fence().err().map_or(error, Into::into));
            if let Err(error) = &written
                && telemetry::note_orphan(&writer.log, FIRST, error)
            {
                // Steps would wait for ranks that are gone, and nobody would hear of this.
                writer.control.fail(exit_code::FAILURE, format!("{error:#}"), false);
            }
            written.map(|()| frozen)
        }));
        Ok(())
    }

    /// Waits until the checkpoint that is under way, if there is one, is on disk.
    ///
    /// # Errors
    /// It could not be written.
    pub fn settle(&mut self) -> Result<()> {
        if let Some(writing) = self.under_way.take() {
            self.room = Some(writing.join().map_err(|_| anyhow!("the thread that writes checkpoints panicked"))??);
        }
        Ok(())
    }

    /// Looks whether the checkpoint under way has failed, without waiting for it.
    ///
    /// # Errors
    /// It could not be written.
    pub fn look(&mut self) -> Result<()> {
        if self.under_way.as_ref().is_some_and(JoinHandle::is_finished) { self.settle() } else { Ok(()) }
    }
}

impl Writer {
    /// Writes, syncs and commits; tells the launcher. `stall`: for how long training stood still; none: until the end.
    fn write(&self, state: &State, tensors: Slices, began: Instant, stall: Option<f64>) -> Result<()> {
        let passed = |point: CommitPoint| {
            self.faults.reach(Point::Commit { step: state.step, point: point.number() });
        };
        let Shape { specs, ranges } = &*self.shape;
        let draft = self.store.draft()?;
        passed(CommitPoint::Drafted);
        let io = |name: &str| {
            let path = draft.file(name);
            |source| CheckpointError::Io { path, source }
        };
        let [values, first, second] = tensors;
        write_values(&draft.file(MODEL), specs, ranges, values, false).map_err(io(MODEL))?;
        passed(CommitPoint::ModelWritten);
        write_moments(&draft.file(OPTIMIZER), specs, ranges, (first, second)).map_err(io(OPTIMIZER))?;
        passed(CommitPoint::OptimizerWritten);
        self.store.commit(draft, state, passed)?;
        let seconds = began.elapsed().as_secs_f64();
        let receipt = state.receipt.as_str().to_owned();
        let report = CheckpointReport { step: state.step, receipt, stall: stall.unwrap_or(seconds), seconds };
        self.control.send(&FromRank::Checkpoint(report))
    }
}
