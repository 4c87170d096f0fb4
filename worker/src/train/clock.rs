//! Where a step's time goes: sums for the metrics, and a trace of the first steps for those who ask for one.

use std::time::Instant;

use anyhow::{Context, Result};
use bam_cluster::comm::Activity;
use bam_cluster::files;
use bam_cluster::protocol::Phases;
use serde_json::{Value, json};

use crate::session::Session;

/// The parts of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Drawing the batch and putting it together.
    Data,
    /// A forward pass.
    Forward,
    /// A backward pass.
    Backward,
    /// For the slowest rank.
    Waiting,
    /// Of gradients.
    Reduction,
    /// Clipping and updating.
    Optimizer,
}

/// Measures the steps of one training on one rank.
pub struct Clock {
    activity: Activity,
    step: u64,
    phases: Phases,
    trace: Option<Trace>,
}

/// What this rank did in the first steps.
struct Trace {
    /// The moment from which all ranks count: that at which they began together.
    origin: Instant,
    steps_left: u64,
    events: Vec<Event>,
}

struct Event {
    part: Part,
    step: u64,
    from: Instant,
    to: Instant,
}

impl Part {
    /// As people read it.
    fn name(self) -> &'static str {
        match self {
            Part::Data => "data",
            Part::Forward => "forward",
            Part::Backward => "backward",
            Part::Waiting => "waiting for the slowest rank",
            Part::Reduction => "reduction",
            Part::Optimizer => "optimizer",
        }
    }

    fn of(self, phases: &mut Phases) -> &mut f64 {
        match self {
            Part::Data => &mut phases.data,
            Part::Forward => &mut phases.forward,
            Part::Backward => &mut phases.backward,
            Part::Waiting => &mut phases.waiting,
            Part::Reduction => &mut phases.reduction,
            Part::Optimizer => &mut phases.optimizer,
        }
    }
}

impl Clock {
    /// A clock that keeps no trace.
    pub fn untraced(activity: Activity) -> Clock {
        Clock { activity, step: 0, phases: Phases::default(), trace: None }
    }

    /// A clock for a training that is about to begin on all ranks.
    ///
    /// # Errors
    /// The ranks, which wait for one another if there is to be a trace, did not come.
    pub fn new(session: &Session) -> Result<Clock> {
        let steps_left = session.recipe.cluster.trace_steps;
        let mut clock = Clock::untraced(session.activity.clone());
        if steps_left > 0 {
            session.world.barrier("begin of the trace")?;
            clock.trace = Some(Trace { origin: Instant::now(), steps_left, events: vec![] });
        }
        Ok(clock)
    }

    /// Begins a step.
    pub fn begin(&mut self, step: u64) {
        self.step = step;
        self.phases = Phases::default();
        self.activity.step(step);
    }

    /// Says that the rank gets on with the part of the step that it is in.
    pub fn progress(&self) {
        self.activity.progress();
    }

    /// Does a part of the step.
    pub fn time<T>(&mut self, part: Part, work: impl FnOnce() -> T) -> T {
        self.activity.phase(part.name());
        let from = Instant::now();
        let done = work();
        self.add(part, from, Instant::now());
        done
    }

    /// Takes in a part of the step that somebody else has measured.
    pub fn add(&mut self, part: Part, from: Instant, to: Instant) {
        *part.of(&mut self.phases) += (to - from).as_secs_f64();
        if let Some(trace) = &mut self.trace {
            trace.events.push(Event { part, step: self.step, from, to });
        }
    }

    /// The step's parts. After the last step of a trace, which is the same on all ranks, it is written.
    ///
    /// # Errors
    /// A collective did not come about, or the trace cannot be written.
    pub fn end(&mut self, session: &Session) -> Result<Phases> {
        self.activity.phase("between steps");
        if let Some(trace) = &mut self.trace {
            trace.steps_left -= 1;
            if trace.steps_left == 0 {
                self.finish(session)?;
            }
        }
        Ok(self.phases)
    }

    /// Writes the trace, if there is one and it is not written yet.
    ///
    /// # Errors
    /// As [`end`](Self::end).
    pub fn finish(&mut self, session: &Session) -> Result<()> {
        self.trace.take().map_or(Ok(()), |trace| trace.write(session))
    }
}

impl Trace {
    /// Writes what all ranks did into one file, in the format of Chrome's tracing, which Perfetto reads.
    fn write(&self, session: &Session) -> Result<()> {
        let own = serde_json::to_vec(&self.events(session.world.rank()))?;
        let mut all: Vec<Value> = vec![];
        for events in session.world.all_gather("trace", &own)? {
            all.append(&mut serde_json::from_slice::<Vec<Value>>(&events)?);
        }
        if session.is_first() {
            let path = session.run.trace(&session.stage.name);
            let trace = json!({ "traceEvents": all, "displayTimeUnit": "ms" });
            files::write_json(&path, &trace).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    fn events(&self, rank: usize) -> Vec<Value> {
        let name =
            json!({ "name": "process_name", "ph": "M", "pid": rank, "args": { "name": format!("rank {rank}") } });
        let microseconds = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1e6;
        let event = |e: &Event| {
            let (start, length) = (microseconds(self.origin, e.from), microseconds(e.from, e.to));
            let step = json!({ "step": e.step });
            json!({ "name": e.part.name(), "ph": "X", "ts": start, "dur": length, "pid": rank, "tid": 0, "args": step })
        };
        [name].into_iter().chain(self.events.iter().map(event)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;
    use std::time::Duration;

    use super::*;

    #[test]
    fn parts_add_up_and_are_traced_by_rank() {
        let trace = Trace { origin: Instant::now(), steps_left: 9, events: vec![] };
        let activity = Activity::default();
        let mut clock = Clock { activity: activity.clone(), step: 0, phases: Phases::default(), trace: Some(trace) };
        clock.begin(7);
        for _ in 0..2 {
            clock.time(Part::Data, || sleep(Duration::from_millis(5)));
        }
        assert_eq!(activity.snapshot().phase, "data");
        clock.time(Part::Optimizer, || ());
        assert!(clock.phases.data >= 0.01 && clock.phases.forward == 0.0);
        let events = clock.trace.as_ref().unwrap().events(3);
        assert_eq!(events[0]["args"]["name"], "rank 3");
        let of = |i: usize| (events[i]["name"].as_str().unwrap(), events[i]["ts"].as_f64().unwrap());
        assert_eq!((of(1).0, of(3).0, &events[1]["args"]["step"]), ("data", "optimizer", &json!(7)));
        assert!(of(1).1 + 5_000.0 <= of(2).1 && events[1]["dur"].as_f64().unwrap() >= 5_000.0);
        clock.trace = None;
        clock.begin(8);
        assert_eq!(clock.phases, Phases::default());
    }
}
