//! A disk that is full: on a file system with room for none, one, two … pages more, every file of a checkpoint, of prepared
//! data, of logits and of metrics is written whole, or it is an error that says so and what was there before is untouched.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::cell::RefCell;
use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use bam_cluster::checkpoint::{Fence, State, Store};
use bam_cluster::files;
use bam_cluster::plan::{Receipt, Schedule};
use bam_cluster::protocol::StepReport;
use bam_cluster::run_dir::RunDir;
use bam_cluster::teacher::Provenance;
use bam_worker::data::{TokenFile, TokenSet};
use bam_worker::model::{Init, ParameterSpec, Parameters};
use bam_worker::shard::write_shard;
use bam_worker::snapshot::{write_moments, write_values};
use bam_worker::telemetry::Metrics;

const PAGE: u64 = 4096;
/// No file here needs so many pages.
const PAGES: u64 = 40;
/// Names the directory where the small file system is, in the process that has one.
const DISK: &str = "BAM_TEST_SMALL_DISK";

/// A file system of half a mebibyte.
struct Disk {
    directory: PathBuf,
}

impl Disk {
    /// Runs this very test again in a name space with such a file system; there, and only there, it is returned.
    fn of(test: &str) -> Option<Disk> {
        if let Some(directory) = env::var_os(DISK) {
            return Some(Disk { directory: directory.into() });
        }
        let directory = tempfile::tempdir().unwrap();
        let unshare = |script: &str| {
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]).arg(directory.path());
            command
        };
        let mount = "mount -t tmpfs -o size=512k tmpfs \"$1\"";
        if !unshare(mount).output().is_ok_and(|tried| tried.status.success()) {
            println!("skipped: {test} (unshare --mount is not allowed here)");
            return None;
        }
        let mut again = unshare(&format!("{mount} && shift && exec \"$@\""));
        again.arg(env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]).env(DISK, directory.path());
        let done = again.output().unwrap();
        let said = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&done.stderr));
        None
    }

    /// Fills it up to so many free pages.
    fn leave(&self, pages: u64) {
        let path = self.directory.join("ballast");
        let mut ballast = File::create(&path).unwrap();
        while ballast.write_all(&[0; PAGE as usize]).is_ok() {}
        let length = ballast.metadata().unwrap().len();
        ballast.set_len(length.saturating_sub(pages * PAGE)).unwrap();
    }

    /// With each number of free pages, tries to write something, until there is room enough; `check` hears whether it was
    /// written. It has to fail at first, and to say why.
    fn fill_up(&self, mut write: impl FnMut() -> Result<(), String>, mut check: impl FnMut(bool)) {
        let mut failures = 0;
        for pages in 0..PAGES {
            self.leave(pages);
            let written = write();
            self.leave(PAGES);
            check(written.is_ok());
            match written {
                Ok(()) => break,
                Err(said) => assert!(said.contains("No space left on device"), "with {pages} pages: {said}"),
            }
            failures += 1;
        }
        assert!((1..PAGES).contains(&failures), "{failures} failures");
        println!("failed with room for 0 to {} pages", failures - 1);
    }

    /// Nothing but the ballast and what is named.
    fn assert_holds(&self, directory: &Path, names: &[&str]) {
        let mut found: Vec<String> =
            fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        found.retain(|name| name != "ballast");
        found.sort_unstable();
        assert_eq!(found, names);
    }
}

#[test]
fn a_checkpoint() {
    let Some(disk) = Disk::of("a_checkpoint") else { return };
    let run = RunDir::new(&disk.directory);
    // A stage that fails is started again.
    let start = || Store::new(run.checkpoints("s"), &["m", "o"], 1, Fence::advance(&run, "s").unwrap());
    let store = RefCell::new(start());
    let spec = ParameterSpec { name: "w".into(), shape: vec![3000], depth: 0, init: Init::Zero };
    let mut parameters = Parameters::new(vec![spec]);
    let (specs, ranges) = (parameters.specs().to_vec(), parameters.ranges().to_vec());
    let mut save = |step: u64| {
        let schedule = Schedule { total_steps: 100, warmup_steps: 10, base_rate: 1e-4, constant_lambda: None };
        let (receipt, inputs) = (Receipt::empty(), String::new());
        let state = State { step, receipt, schedule, inputs, incarnation: 1, world_size: 2 };
        let store = store.borrow();
        let draft = store.draft().map_err(|e| e.to_string())?;
        let values = parameters.values_mut();
        write_values(&draft.file("m"), &specs, &ranges, values, false).map_err(|e| e.to_string())?;
        write_moments(&draft.file("o"), &specs, &ranges, (values, values)).map_err(|e| e.to_string())?;
        store.commit(draft, &state, |_| {}).map(|_| ()).map_err(|e| e.to_string())
    };
    save(10).unwrap();
    disk.fill_up(
        || save(20),
        |is_written| {
            let (found, damaged) = store.borrow().newest_good().unwrap();
            let step = found.unwrap().state.step;
            // What is full when LATEST is written may be a checkpoint all the same.
            assert!(damaged.is_empty() && (step == 20 || step == 10 && !is_written), "step {step}");
            if !is_written {
                store.replace(start());
            }
        },
    );
    let newest = store.borrow().newest_good().unwrap().0.unwrap().path;
    disk.assert_holds(&run.checkpoints("s"), &["LATEST", newest.file_name().unwrap().to_str().unwrap()]);
}

#[test]
fn logits() {
    let Some(disk) = Disk::of("logits") else { return };
    let provenance = Provenance {
        task: "rte".into(),
        label_names: vec!["a".into(), "b".into()],
        teacher_sha256: "t".into(),
        data_sha256: "d".into(),
        vocab_sha256: "v".into(),
    };
    let path = disk.directory.join("shard.h5");
    let write = |rows: u64| {
        let ids: Vec<u64> = (0..rows).collect();
        write_shard(&path, &provenance, &ids, &vec![0.5; 2 * ids.len()]).map(|_| ()).map_err(|e| e.to_string())
    };
    write(10).unwrap();
    let before = fs::read(&path).unwrap();
    disk.fill_up(
        || write(2000),
        |is_written| {
            assert_eq!(fs::read(&path).unwrap() == before, !is_written);
            disk.assert_holds(&disk.directory, &["shard.h5"]);
        },
    );
}

#[test]
fn prepared_data() {
    let Some(disk) = Disk::of("prepared_data") else { return };
    let set = |examples: usize| TokenSet {
        task: "rte".into(),
        split: "train".into(),
        input_ids: vec![7; 3 * examples],
        token_type_ids: vec![0; 3 * examples],
        offsets: (0..=examples).map(|i| 3 * i).collect(),
        labels: vec![1.0; examples],
        example_ids: (0..examples as u64).collect(),
        label_names: vec!["a".into(), "b".into()],
        max_length: 8,
        source_sha256: "s".into(),
        vocab_sha256: "v".into(),
    };
    let path = disk.directory.join("rte-train.h5");
    let write = |examples: usize| TokenFile::write(&path, &set(examples)).map(|_| ()).map_err(|e| e.to_string());
    write(10).unwrap();
    let before = fs::read(&path).unwrap();
    disk.fill_up(
        || write(1000),
        |is_written| {
            assert_eq!(fs::read(&path).unwrap() == before, !is_written);
            disk.assert_holds(&disk.directory, &["rte-train.h5"]);
        },
    );
}

#[test]
fn what_is_written_as_json() {
    let Some(disk) = Disk::of("what_is_written_as_json") else { return };
    let path = disk.directory.join("done.json");
    files::write_json(&path, &"before").unwrap();
    let large = "x".repeat(3 * PAGE as usize);
    disk.fill_up(
        || files::write_json(&path, &large).map_err(|e| e.to_string()),
        |is_written| {
            let expected = if is_written { &large } else { "before" };
            assert_eq!(files::read_json::<String>(&path).unwrap().as_deref(), Some(expected));
            disk.assert_holds(&disk.directory, &["done.json"]);
        },
    );
}

#[test]
fn metrics() {
    let Some(disk) = Disk::of("metrics") else { return };
    let path = disk.directory.join("metrics.jsonl");
    let report = |step| StepReport {
        step,
        loss: 0.5,
        task_losses: Default::default(),
        lambda: 0.0,
        learning_rate: 0.1,
        gradient_norm: 1.0,
        examples: 1,
        tokens: 1,
        seconds: 0.1,
        phases: Default::default(),
        bytes_reduced: 0,
        utilisation: 0.5,
        device_memory: None,
    };
    let steps = || -> Vec<u64> {
        let text = fs::read_to_string(&path).unwrap();
        text.lines().filter_map(|line| serde_json::from_str::<StepReport>(line).ok()).map(|r| r.step).collect()
    };
    // Some hundred steps, from wherever there was room for the last one, which may be half written.
    let mut metrics = Metrics::open(&path, 0).unwrap();
    disk.leave(2);
    let failed = (0..1000).find_map(|step| metrics.add(&report(step)).err().map(|e| (step, e.to_string())));
    drop(metrics);
    let (step, said) = failed.unwrap();
    assert!(said.contains("No space left on device"), "{said}");
    assert_eq!(steps(), (0..step).collect::<Vec<u64>>());
    assert!(Metrics::open(&path, 5).is_err_and(|e| e.to_string().contains("No space left on device")));
    assert_eq!(steps().len() as u64, step, "what was there is untouched");
    disk.leave(PAGES);
    Metrics::open(&path, step).unwrap().add(&report(step)).unwrap();
    assert_eq!(steps(), (0..=step).collect::<Vec<u64>>());
    disk.assert_holds(&disk.directory, &["metrics.jsonl"]);
}
