//! A recipe as a chain of jobs and arrays on a real Slurm, where one can be set up: it ends with the weights of one run, and
//! what fails keeps nothing else waiting.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use bam_tests::{Bam, Lab, Recipe, Run, Workplace};

/// Long enough for a machine that does much else.
const DEADLINE: Duration = Duration::from_secs(180);

struct Cluster {
    lab: Lab,
    place: Workplace,
}

impl Cluster {
    fn bam(&self, words: &[&str]) -> Bam {
        self.lab.bam(self.place.path(), words).within(DEADLINE)
    }

    fn status(&self, run: &Run) -> String {
        self.bam(&["status", run.path().to_str().unwrap()]).expect(0).stdout
    }

    /// The number of one of the jobs that were submitted last.
    fn number(&self, run: &Run, name: &str) -> u64 {
        let submission = run.json("slurm/jobs.json");
        let job = submission["jobs"].as_array().unwrap().iter().find(|job| job["name"] == name);
        job.unwrap()["id"].as_u64().unwrap()
    }

    /// What Slurm says of a job or an element, in one word.
    fn state(&self, job: &str) -> String {
        let text = self.lab.on("ctl", &["scontrol", "--oneliner", "show", "job", job]);
        let value = text.split_whitespace().find_map(|word| word.strip_prefix("JobState="));
        value.unwrap_or_else(|| panic!("{text}")).to_owned()
    }

    /// Waits until nothing of a run waits or runs.
    fn wait_for_end(&self, run: &Run) -> String {
        wait("the jobs' ends", || {
            let said = self.status(run);
            let jobs: Vec<&str> =
                said.lines().filter(|line| line.starts_with("job ") && line.contains("): ")).collect();
            !jobs.is_empty() && jobs.iter().all(|line| line.contains(": ended"))
        });
        self.status(run)
    }

    fn output(&self, run: &Run, job: &str) -> String {
        fs::read_to_string(run.at(format!("logs/slurm-{job}.out"))).unwrap_or_default()
    }
}

fn wait(what: &str, mut happened: impl FnMut() -> bool) {
    let since = Instant::now();
    while !happened() {
        assert!(since.elapsed() < DEADLINE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(300));
    }
}

/// Two teachers on a node each, and a student on both.
fn recipe() -> Recipe {
    let mut recipe = Recipe::of(&["cola", "warmth"]);
    recipe.single = "epochs: 40, batch_size: 16, learning_rate: 0.002".into();
    recipe.cluster = "processes: 2, single_processes: 1, deadline: 60, max_restarts: 0".into();
    recipe
}

#[test]
fn a_chain_of_jobs_does_what_one_run_does() {
    let place = Workplace::new();
    let Some(lab) = Lab::of_slurm("a_chain_of_jobs_does_what_one_run_does", &place.at("lab"), 2) else { return };
    let cluster = Cluster { lab, place };
    a_teacher_fails_and_another_makes_room(&cluster);
    a_trial_fails(&cluster);
}

fn a_teacher_fails_and_another_makes_room(cluster: &Cluster) {
    let mut recipe = recipe();
    recipe.slurm = format!("nodes: 2, time: 10, {}", cluster.place.spoil("teacher-warmth"));
    cluster.place.recipe("recipe.yaml", &recipe);
    let (run, whole) = (Run::new(cluster.place.at("runs/tiny")), Run::new(cluster.place.at("runs/whole")));
    let since = Instant::now();
    cluster.bam(&["submit", "recipe.yaml"]).expect(0);
    let teachers = cluster.number(&run, "teacher");
    wait("a teacher", || run.steps("teacher-cola").len() > 12);
    // Its time is up, and nobody else's.
    cluster.lab.on("ctl", &["scancel", "--signal=USR1", "--batch", &format!("{teachers}_0")]);
    wait("the queue", || cluster.output(&run, &format!("{teachers}_0")).contains("back into the queue"));
    let said = cluster.wait_for_end(&run);
    println!("a chain of five jobs with a failing teacher: {:.1} s", since.elapsed().as_secs_f64());
    let number = |name| cluster.number(&run, name);
    let (logits, report) = (number("logits"), number("report"));
    for part in [
        format!("job {teachers}_0 (teacher-cola): ended "),
        "COMPLETED; put into the queue again once".to_owned(),
        format!("job {teachers}_1 (teacher-warmth): ended "),
        format!("job {logits} (logits): ended "),
        "CANCELLED".to_owned(),
        "FAILED, exit code 1".to_owned(),
        "stage 'teacher-warmth': ".to_owned(),
        "to go on: cd ".to_owned(),
    ] {
        assert!(said.contains(&part), "{part}: {said}");
    }
    assert_eq!(cluster.state(&logits.to_string()), "CANCELLED");
    let table = cluster.output(&run, &report.to_string());
    assert!(table.contains("not complete: teacher-warmth, logits, student"), "{table}");

    fs::remove_file(cluster.place.at("spoilt")).unwrap();
    let again = cluster.bam(&["submit", "recipe.yaml"]).expect(0);
    assert!(again.stdout.contains("4 jobs submitted") && again.stdout.contains("teacher  array of 1"), "{again}");
    let said = cluster.wait_for_end(&run);
    assert!(said.contains("done: bam report"), "{said}");
    cluster.bam(&["run", "recipe.yaml", "--run-dir", "runs/whole"]).expect(0);
    for stage in ["teacher-cola", "teacher-warmth", "student"] {
        assert_eq!(run.weights_sha256(stage), whole.weights_sha256(stage), "{stage}");
        assert_eq!(run.receipt(stage), whole.receipt(stage), "{stage}");
    }
}

fn a_trial_fails(cluster: &Cluster) {
    let mut recipe = Recipe::of(&["cola"]);
    recipe.name = "trials".into();
    recipe.mode = "multi".into();
    recipe.trials = 3;
    recipe.multi = "epochs: 120, batch_size: 16, learning_rate: 0.002".into();
    recipe.cluster = "processes: 1, deadline: 60, max_restarts: 0".into();
    recipe.slurm = format!("time: 10, at_once: 2, {}", cluster.place.spoil("multi@2"));
    cluster.place.recipe("trials.yaml", &recipe);
    let run = Run::new(cluster.place.at("runs/trials"));
    cluster.bam(&["submit", "trials.yaml"]).expect(0);
    // What runs stops at a checkpoint, what waits is gone, and what is submitted again goes on.
    wait("a trial", || run.steps("multi").len() > 12);
    let done = cluster.bam(&["cancel", "runs/trials"]).expect(0);
    assert!(done.stdout.contains("was told to stop") && done.stdout.contains("is out of the queue"), "{done}");
    let said = cluster.wait_for_end(&run);
    assert!(said.contains(": cancelled") && !run.is_done("multi@3"), "{said}");
    let kept = run.receipt("multi").0;
    assert!(kept > 0);
    let short = ["submit", "trials.yaml", "-o", "slurm.time=20"];
    cluster.bam(&short).expect(0);
    let said = cluster.wait_for_end(&run);
    assert!(run.is_done("multi") && run.is_done("multi@3") && !run.is_done("multi@2"), "{said}");
    let report = cluster.output(&run, &cluster.number(&run, "report").to_string());
    assert!(report.contains("not complete: multi@2") && report.contains("medians and [lowest–highest]"), "{report}");
}
