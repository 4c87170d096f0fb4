//! TensorBoard event files, `stages/STAGE/tensorboard/`: what `metrics.jsonl` and `dev.json` say, while it happens. Each
//! start of a stage writes a file of its own, which takes the place of what earlier ones say of the same steps.

mod event;
mod record;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use bam_cluster::protocol::StepReport;
use bam_cluster::stage_record::Scores;
use prost::Message;

use event::Event;
use record::record;

/// The event file of one start.
#[derive(Debug)]
pub struct EventFile(File);

impl EventFile {
    /// Makes the file of a start that goes on at `next_step`.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn create(directory: &Path, host: &str, incarnation: u64, next_step: u64) -> io::Result<EventFile> {
        fs::create_dir_all(directory)?;
        // TensorBoard takes a file for an event file if `tfevents` is in its name, and reads files in the order of their
        // names: that of starts, whatever the clocks of hosts say.
        let name = format!("events.out.tfevents.{incarnation:010}.{host}");
        let now = since_1970().as_secs_f64();
        let mut file = EventFile(File::options().append(true).create(true).open(directory.join(name))?);
        file.add(&Event::file_version(now))?;
        file.add(&Event::start(now, next_step))?;
        Ok(file)
    }

    /// Adds what is known of a step.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn step(&mut self, report: &StepReport) -> io::Result<()> {
        self.add(&Event::scalars(since_1970().as_secs_f64(), report.step, of_step(report)))
    }

    /// Adds a model's scores on dev after so many steps.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn scores(&mut self, steps: u64, scores: &Scores) -> io::Result<()> {
        self.add(&Event::scalars(since_1970().as_secs_f64(), steps, of_scores(scores)))
    }

    /// In one piece, so that readers of a running training see whole events.
    fn add(&mut self, event: &Event) -> io::Result<()> {
        self.0.write_all(&record(&event.encode_to_vec()))
    }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// The scalars of a step. Rates are of this step alone.
fn of_step(report: &StepReport) -> Vec<(String, f64)> {
    let rate = |count: f64| if report.seconds > 0.0 { count / report.seconds } else { 0.0 };
    let own = [
        ("train/loss", report.loss),
        ("train/lambda", report.lambda),
        ("train/learning_rate", report.learning_rate),
        ("train/gradient_norm", report.gradient_norm),
        ("speed/samples_per_second", rate(report.examples as f64)),
        ("speed/tokens_per_second", rate(report.tokens as f64)),
        ("speed/mfu", report.utilisation),
    ];
    let own = own.into_iter().map(|(tag, value)| (tag.to_owned(), value));
    own.chain(report.task_losses.iter().map(|(task, loss)| (format!("loss/{task}"), *loss))).collect()
}

/// The scalars of dev scores; what is undefined is left out.
fn of_scores(scores: &Scores) -> Vec<(String, f64)> {
    let of_task = |task: &String, metrics: &std::collections::BTreeMap<String, Option<f64>>| {
        let defined = metrics.iter().filter_map(|(metric, value)| Some((format!("dev/{task}/{metric}"), (*value)?)));
        defined.collect::<Vec<_>>()
    };
    scores.iter().flat_map(|(task, of)| of_task(task, &of.metrics)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bam_cluster::stage_record::TaskScores;

    use super::event::What;
    use super::*;

    fn report(step: u64) -> StepReport {
        StepReport {
            step,
            loss: 0.5,
            task_losses: BTreeMap::from([("rte".to_owned(), 0.25)]),
            lambda: 0.1,
            learning_rate: 1e-4,
            gradient_norm: 2.0,
            examples: 32,
            tokens: 640,
            seconds: 0.5,
            phases: Default::default(),
            bytes_reduced: 0,
            utilisation: 0.75,
            device_memory: None,
        }
    }

    /// The events of a file, whose checksums are not looked at.
    fn read(path: &Path) -> Vec<Event> {
        let bytes = fs::read(path).unwrap();
        let (mut events, mut rest) = (vec![], &bytes[..]);
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            events.push(Event::decode(&rest[12..12 + length]).unwrap());
            rest = &rest[16 + length..];
        }
        events
    }

    #[test]
    fn a_start_says_where_it_goes_on_and_then_what_happens() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = EventFile::create(dir.path(), "here", 3, 40).unwrap();
        file.step(&report(40)).unwrap();
        let metrics = BTreeMap::from([("accuracy".to_owned(), Some(0.75)), ("f1".to_owned(), None)]);
        let scores = TaskScores { metrics, examples: 9, classes_predicted: Some(2), spread: None };
        file.scores(41, &Scores::from([("rte".to_owned(), scores)])).unwrap();
        let path = fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        assert!(path.to_str().unwrap().ends_with("/events.out.tfevents.0000000003.here"), "{path:?}");
        let events = read(&path);
        assert_eq!(events.iter().map(|e| e.step).collect::<Vec<_>>(), [0, 40, 40, 41]);
        assert!(matches!(&events[1].what, Some(What::SessionLog(log)) if log.status == 1));
        let scalars = |event: &Event| match &event.what {
            Some(What::Summary(summary)) => {
                summary.values.iter().map(|s| (s.tag.clone(), s.simple_value.unwrap())).collect::<BTreeMap<_, _>>()
            }
            other => panic!("{other:?}"),
        };
        let of_step = scalars(&events[2]);
        assert_eq!((of_step["train/loss"], of_step["loss/rte"]), (0.5, 0.25));
        assert_eq!((of_step["speed/samples_per_second"], of_step["speed/tokens_per_second"]), (64.0, 1280.0));
        assert_eq!(scalars(&events[3]), BTreeMap::from([("dev/rte/accuracy".to_owned(), 0.75)]));
    }
}
