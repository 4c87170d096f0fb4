//! A stop never shows: whatever was killed, stopped or damaged, the same command goes on, and ends with the same bytes
//! as a run that was never disturbed.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use bam_tests::{Bam, Process, Recipe, Run, Running, Workplace, repository, say_skipped, tree};
use nix::sys::signal::Signal;

/// Optimizer steps of one teacher and of the student.
const TEACHER_STEPS: usize = 45;
const STUDENT_STEPS: usize = 120;

/// A run that was never disturbed; the others are compared with it.
struct Undisturbed {
    place: Workplace,
    run: Run,
}

fn undisturbed() -> &'static Undisturbed {
    static ONCE: OnceLock<Undisturbed> = OnceLock::new();
    ONCE.get_or_init(|| {
        let place = Workplace::shared("recovery");
        let mut recipe = Recipe::of(&["cola", "warmth"]);
        // Dropout has to be the same after a resume, too.
        recipe.model = "max_length: 40".into();
        recipe.single = "epochs: 3, batch_size: 16, learning_rate: 0.001".into();
        recipe.multi = "epochs: 4, batch_size: 16, learning_rate: 0.001".into();
        recipe.checkpoint = "every_steps: 3, keep: 2".into();
        place.recipe("recipe.yaml", &recipe);
        let run = Run::new(place.at("runs/undisturbed"));
        command(&place, &run).expect(0);
        assert_eq!((run.steps("teacher-cola").len(), run.steps("student").len()), (TEACHER_STEPS, STUDENT_STEPS));
        Undisturbed { place, run }
    })
}

fn command(place: &Workplace, run: &Run) -> Bam {
    place.bam(["run", "recipe.yaml", "-n", "2", "--run-dir", run.path().to_str().unwrap()])
}

impl Undisturbed {
    /// A run directory of the same recipe in which nothing was done yet.
    fn fresh(&self, name: &str) -> Run {
        Run::new(self.place.at("runs").join(name))
    }

    /// One in which only the student is missing.
    fn without_student(&self, name: &str) -> Run {
        let run = self.run.copy_to(&self.place.at("runs").join(name));
        fs::remove_dir_all(run.at("stages/student")).unwrap();
        fs::remove_file(run.at("report.json")).unwrap();
        run
    }

    fn start(&self, run: &Run) -> Running {
        command(&self.place, run).start()
    }

    /// Runs to the end, and proves that nothing shows of what happened before.
    fn finish(&self, run: &Run) {
        command(&self.place, run).expect(0);
        self.assert_same(run);
    }

    fn assert_same(&self, run: &Run) {
        for stage in ["teacher-cola", "teacher-warmth", "student"] {
            assert_eq!(run.steps(stage), self.run.steps(stage), "metrics of {stage}");
            assert_eq!(run.receipt(stage), self.run.receipt(stage), "receipt of {stage}");
            assert_eq!(run.weights_sha256(stage), self.run.weights_sha256(stage), "weights of {stage}");
            let scores = |run: &Run| run.json(&format!("stages/{stage}/dev.json"));
            assert_eq!(scores(run), scores(&self.run), "scores of {stage}");
        }
        assert_eq!(run.half_written(), Vec::<PathBuf>::new());
    }
}

/// Waits until a stage has done so many steps, and its ranks are there: an earlier start may have done the steps.
fn wait_for_steps(running: &mut Running, run: &Run, stage: &str, steps: usize) {
    running.ranks(2);
    running.wait_until(&format!("step {steps} of {stage}"), || run.steps(stage).len() >= steps);
}

/// Fails if one of these is still there after a while.
fn assert_vanish(processes: &[Process], within: Duration) {
    let since = Instant::now();
    while processes.iter().any(Process::is_alive) {
        let alive: Vec<&Process> = processes.iter().filter(|p| p.is_alive()).collect();
        assert!(since.elapsed() < within, "still there after {within:?}: {alive:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn everything_killed_at_six_moments_leaves_no_trace() {
    let reference = undisturbed();
    let run = reference.fresh("killed");
    type Moment = (&'static str, fn(&mut Running, &Run));
    let moments: [Moment; 6] = [
        ("prepare", |running, _| drop(running.ranks(2))),
        ("teacher-cola", |running, run| wait_for_steps(running, run, "teacher-cola", 8)),
        ("logits", |running, run| {
            running.wait_until("the logits stage", || run.is_begun("logits"));
            running.ranks(2);
        }),
        ("student", |running, run| wait_for_steps(running, run, "student", 11)),
        ("student", |running, run| wait_for_steps(running, run, "student", 61)),
        ("student", |running, run| wait_for_steps(running, run, "student", 62)),
    ];
    for (stage, moment) in moments {
        let mut running = reference.start(&run);
        moment(&mut running, &run);
        let killed = running.kill_all();
        assert!(killed.len() >= 4, "bam, mpirun and two ranks: {killed:?}");
        assert_vanish(&killed, Duration::from_secs(10));
        assert!(run.is_begun(stage) && !run.is_done(stage), "{stage} was not what was killed");
    }
    reference.finish(&run);
    // Every start of a stage has had a number of its own: six were killed, and all five stages were completed.
    assert_eq!(fs::read_to_string(run.at("incarnation")).unwrap().trim(), "11");
}

/// Moments that are too short to be hit with certainty: whichever side of them is hit, nothing may show.
#[test]
fn a_kill_while_files_are_being_published_leaves_no_trace() {
    let reference = undisturbed();
    let run = reference.without_student("killed-while-publishing");
    for stage in ["prepare", "logits"] {
        fs::remove_dir_all(run.stage(stage, "")).unwrap();
    }
    for directory in ["data", "logits"] {
        fs::remove_dir_all(run.at(directory)).unwrap();
    }
    let moments: [fn(&Run) -> bool; 4] = [
        |run| run.at("data").exists(),
        |run| run.at("logits").exists(),
        |run| run.steps("student").len() == STUDENT_STEPS,
        |run| run.stage("student", "dev.json").exists(),
    ];
    for moment in moments {
        let mut running = reference.start(&run);
        running.wait_until("the moment", || moment(&run));
        assert_vanish(&running.kill_all(), Duration::from_secs(10));
    }
    reference.finish(&run);
}

/// Between two files of what a stage makes, in every kind of stage.
#[test]
fn a_rank_killed_between_files_leaves_none_half_written() {
    let reference = undisturbed();
    let run = reference.fresh("killed-between-files");
    let faults = [
        "prepare:kill:1:written-1",
        "teacher-cola:kill:0:written-3",
        "teacher-warmth:kill:0:written-4",
        "logits:kill:0:written-2",
        "student:kill:0:written-5",
    ];
    let done =
        faults.iter().fold(command(&reference.place, &run), |bam, fault| bam.arg("--inject").arg(fault)).expect(0);
    assert_eq!(done.stderr.matches("(restart 1 of").count(), faults.len(), "{done}");
    reference.assert_same(&run);
}

#[test]
fn a_recipe_of_your_choice_survives_five_kills() {
    let Some(recipe) = env::var_os("KILL_RECIPE") else {
        let test = "a_recipe_of_your_choice_survives_five_kills";
        say_skipped(test, "set KILL_RECIPE to a recipe, for example configs/demo.yaml");
        return;
    };
    let recipe = repository().join(recipe);
    let place = Workplace::new();
    let hour = Duration::from_secs(3600);
    let command = |directory: &str| place.bam(["run", recipe.to_str().unwrap(), "--run-dir", directory]).within(hour);
    let whole = command("undisturbed").expect(0);
    let (undisturbed, killed) = (Run::new(place.at("undisturbed")), Run::new(place.at("killed")));
    println!("undisturbed: {:.0} s", whole.time.as_secs_f64());
    for i in 1..=5 {
        let running = command("killed").start();
        thread::sleep(whole.time / 6);
        let begun: Vec<String> = killed.stages().into_iter().filter(|s| !killed.is_done(s)).collect();
        let steps: Vec<usize> = begun.iter().map(|s| killed.steps(s).len()).collect();
        println!("kill {i}: in {begun:?} after {steps:?} steps");
        assert_vanish(&running.kill_all(), Duration::from_secs(10));
    }
    command("killed").expect(0);
    for stage in undisturbed.stages().iter().filter(|s| undisturbed.weights(s).exists()) {
        assert_eq!(killed.weights_sha256(stage), undisturbed.weights_sha256(stage), "weights of {stage}");
        assert_eq!(killed.steps(stage), undisturbed.steps(stage), "metrics of {stage}");
    }
}

#[test]
fn a_killed_rank_is_named_and_the_run_goes_on() {
    let reference = undisturbed();
    let run = reference.without_student("rank-killed");
    for victim in ["1", "0"] {
        let mut running = command(&reference.place, &run).arg("-o").arg("cluster.max_restarts=0").start();
        let done = run.steps("student").len();
        wait_for_steps(&mut running, &run, "student", done + 10);
        let ranks = running.ranks(2);
        let rank = ranks.iter().find(|r| r.variable("OMPI_COMM_WORLD_RANK").as_deref() == Some(victim)).unwrap();
        rank.signal(Signal::SIGKILL);
        let since = Instant::now();
        let sentence = format!("rank {victim} ");
        running.finish().expect_error(1, &[&sentence, "killed", "student", "at step", "run the same command"]);
        assert!(since.elapsed() < Duration::from_secs(20), "it took {:?} to notice", since.elapsed());
        assert_vanish(&ranks, Duration::from_secs(5));
    }
    reference.finish(&run);
}

#[test]
fn an_interrupt_stops_at_a_checkpoint_and_the_run_goes_on() {
    let reference = undisturbed();
    let run = reference.fresh("interrupted");
    let moments: [(&str, usize); 3] = [("prepare", 0), ("teacher-warmth", 7), ("student", 50)];
    for (stage, steps) in moments {
        let mut running = reference.start(&run);
        if steps == 0 {
            running.ranks(2);
        } else {
            wait_for_steps(&mut running, &run, stage, steps);
        }
        let processes = tree(running.pid());
        running.signal(Signal::SIGINT);
        let stopped = running.finish().expect(75);
        assert!(stopped.stderr.contains("run the same command to go on"), "{stopped}");
        assert_vanish(&processes, Duration::from_secs(5));
        if steps > 0 {
            let (at, _) = run.receipt(stage);
            assert!(stopped.stderr.contains(&format!("{stage}: stopped at step {at} of")), "{stopped}");
            assert_eq!(run.steps(stage).len() as u64, at, "steps and checkpoint");
            assert!(!run.is_done(stage));
        }
    }
    reference.finish(&run);
}

#[test]
fn a_second_interrupt_ends_at_once_even_a_rank_that_hangs() {
    let reference = undisturbed();
    let run = reference.without_student("interrupted-twice");
    let mut running = reference.start(&run);
    wait_for_steps(&mut running, &run, "student", 10);
    let processes = tree(running.pid());
    // It will never come to the next step, so that a stop in good order cannot come about.
    running.ranks(2)[1].signal(Signal::SIGSTOP);
    running.signal(Signal::SIGINT);
    let mut said = String::new();
    for _ in 0..1000 {
        said = running.stderr();
        if said.contains("again") {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    assert!(said.contains("press Ctrl-C again"), "{said}");
    // At a person's pace: two signals within a tenth of a second count as one request.
    thread::sleep(Duration::from_millis(200));
    running.signal(Signal::SIGINT);
    let since = Instant::now();
    let killed = running.finish().expect(130);
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    assert!(killed.stderr.contains("run the same command"), "{killed}");
    assert_vanish(&processes, Duration::from_secs(5));
    reference.finish(&run);
}

#[test]
fn ranks_do_not_outlive_their_launcher() {
    let reference = undisturbed();
    let run = reference.without_student("launcher-killed");
    let mut running = reference.start(&run);
    wait_for_steps(&mut running, &run, "student", 10);
    running.ranks(2);
    let processes = tree(running.pid());
    running.signal(Signal::SIGKILL);
    assert_eq!(running.finish().signal, Some(9));
    assert_vanish(&processes, Duration::from_secs(10));
    reference.finish(&run);
}

/// Runs the student until it has some checkpoints, and stops it.
fn stopped_student(reference: &Undisturbed, name: &str) -> Run {
    let run = reference.without_student(name);
    let mut running = reference.start(&run);
    wait_for_steps(&mut running, &run, "student", 20);
    running.signal(Signal::SIGINT);
    running.finish().expect(75);
    assert_eq!(run.checkpoints("student").len(), 2, "checkpoint.keep");
    run
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_is_used() {
    let reference = undisturbed();
    type Damage = (&'static str, fn(&Path));
    let damages: [Damage; 2] = [
        ("truncated", |checkpoint| {
            let file = fs::File::options().write(true).open(checkpoint.join("model.safetensors")).unwrap();
            file.set_len(1000).unwrap();
        }),
        ("flipped", |checkpoint| {
            let path = checkpoint.join("optimizer.safetensors");
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x40;
            fs::write(path, bytes).unwrap();
        }),
    ];
    for (name, damage) in damages {
        let run = stopped_student(reference, name);
        let checkpoints = run.checkpoints("student");
        damage(&checkpoints[1]);
        let done = command(&reference.place, &run).expect(0);
        let warning = done.stderr.lines().find(|l| l.contains("warning")).unwrap_or_default();
        let [before, damaged] = [0, 1].map(|i| checkpoints[i].file_name().unwrap().to_str().unwrap().to_owned());
        assert!(warning.contains(&damaged), "no warning names {damaged}: {done}");
        let step: u64 = before.split('-').nth(1).unwrap().parse().unwrap();
        assert!(done.stderr.contains(&format!("step {step} of {STUDENT_STEPS}")), "not from {before}: {done}");
        reference.assert_same(&run);
    }
}

#[test]
fn only_one_bam_works_in_a_run_directory() {
    let reference = undisturbed();
    let run = reference.without_student("contested");
    let mut first = reference.start(&run);
    first.ranks(2);
    let holder = format!("pid {} on", first.pid());
    command(&reference.place, &run).finish().expect_error(1, &["in use by another bam", &holder]);
    first.finish().expect(0);
    reference.assert_same(&run);
}

#[test]
fn another_number_of_processes_may_go_on_and_says_so() {
    let reference = undisturbed();
    let run = stopped_student(reference, "spread");
    let directory = run.path().to_str().unwrap();
    let done = reference.place.bam(["run", "recipe.yaml", "-n", "3", "--run-dir", directory]).expect(0);
    assert!(done.stderr.contains("the checkpoint is of 2 processes"), "{done}");
    assert_eq!(run.receipt("student"), reference.run.receipt("student"), "the same examples in the same order");
}
