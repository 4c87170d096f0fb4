//! Bad input costs nothing: one error that says what, where and what to do, the right exit code, and nothing touched.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use bam_tests::{Bam, Finished, Recipe, Run, Snapshot, Workplace, program};

fn small() -> Recipe {
    let mut recipe = Recipe::of(&["cola", "stsb"]);
    recipe.single = "epochs: 1, batch_size: 16".into();
    recipe.multi = "epochs: 1, batch_size: 16".into();
    recipe
}

/// A workplace with the recipe in `recipe.yaml`, in which `change` makes one thing wrong.
fn wrong(change: impl FnOnce(&Workplace)) -> Workplace {
    let place = Workplace::new();
    place.recipe("recipe.yaml", &small());
    change(&place);
    place
}

/// Runs the recipe: it has to be refused, without a trace.
fn refused(place: &Workplace, more: &[&str], code: i32, parts: &[&str]) -> Finished {
    let before = Snapshot::of(place.path());
    let bam = more.iter().fold(place.bam(["run", "recipe.yaml"]), |bam, argument| bam.arg(argument));
    let done = bam.finish().expect_error(code, parts);
    before.assert_same(&Snapshot::of(place.path()));
    assert_eq!(done.stdout, "");
    done
}

/// The number of the first line of the recipe with `part` in it.
fn line_of(place: &Workplace, part: &str) -> String {
    let text = fs::read_to_string(place.at("recipe.yaml")).unwrap();
    let number = text.lines().position(|l| l.contains(part)).unwrap() + 1;
    format!("line {number} column ")
}

#[test]
fn a_misspelt_key_is_refused_with_its_place_and_the_nearest_name() {
    let place = wrong(|p| p.edit("recipe.yaml", |text| text.replace("multi: { epochs", "multi: { epoch")));
    let line = line_of(&place, "multi: {");
    refused(&place, &[], 2, &["recipe.yaml", "unknown field `epoch`", &line, "did you mean 'epochs'?"]);
    let section = wrong(|p| p.edit("recipe.yaml", |text| text.replace("checkpoint:", "checkpoints:")));
    let line = line_of(&section, "checkpoints");
    refused(&section, &[], 2, &["unknown field `checkpoints`", &line, "did you mean 'checkpoint'?"]);
}

#[test]
fn a_value_of_the_wrong_type_is_refused_with_its_place() {
    let place = wrong(|p| p.edit("recipe.yaml", |text| text.replace("multi: { epochs: 1", "multi: { epochs: many")));
    let line = line_of(&place, "multi: {");
    refused(&place, &[], 2, &["recipe.yaml", "epochs", "many", &line]);
    let place = wrong(|p| p.edit("recipe.yaml", |text| text.replace("mode: single-to-multi", "mode: single-to-mutli")));
    refused(&place, &[], 2, &["single-to-mutli", "line 2 column ", "did you mean 'single-to-multi'?"]);
    let place = wrong(|p| p.edit("recipe.yaml", |text| text.replace("checkpoint: {", "checkpoint: [")));
    let line = line_of(&place, "checkpoint");
    refused(&place, &[], 2, &["recipe.yaml", line.trim_end_matches("column ")]);
    let place = wrong(|p| p.edit("recipe.yaml", |text| text + "seed: 6\n"));
    refused(&place, &[], 2, &["recipe.yaml", "duplicate", "seed"]);
}

#[test]
fn overrides_are_checked_as_strictly() {
    let place = wrong(|_| {});
    for (text, parts) in [
        ("train.multi.epochs", vec!["-o train.multi.epochs", "KEY=VALUE"]),
        ("train.multi.epoch=2", vec!["-o train.multi.epoch=2: ", "unknown field `epoch`", "did you mean 'epochs'?"]),
        ("train.multi.epochs=many", vec!["train.multi.epochs", "many"]),
        ("train.multi.epochs=0", vec!["train.multi.epochs", "at least 1"]),
        ("data.tasks.5=rte", vec!["data.tasks.5=rte", "not an entry of a list of 2"]),
        ("data.tasks.1=colla", vec!["no GLUE task 'colla'", "did you mean 'cola'?"]),
        ("data.tasks.1=cola", vec!["two tasks are named 'cola'"]),
        ("distill.lambda=0.5", vec!["distill.lambda", "annealing: constant"]),
        ("model.max_length=512", vec!["max_length is 512", "at most 64"]),
    ] {
        let code = if text.starts_with("model") { 3 } else { 2 };
        refused(&place, &["-o", text], code, &parts);
    }
    refused(&place, &["-n", "17"], 2, &["batch_size", "a batch of 16 examples cannot be shared by 17 processes", "-n"]);
    let wide = "a batch of 16 examples cannot be shared by 17 virtual shards; use fewer virtual_shards";
    let by_shards = ["-o", "reproducible=world-size"];
    refused(&place, &[&by_shards[..], &["-o", "virtual_shards=17"]].concat(), 2, &["batch_size", wide]);
    let shared = "8 virtual shards cannot be shared by 9 processes; use fewer processes (-n)";
    refused(&place, &[&by_shards[..], &["-n", "9"]].concat(), 2, &["cluster.processes", shared]);
    refused(&place, &["-o", "virtual_shards=0"], 2, &["virtual_shards", "at least 1"]);
    refused(&place, &["-n", "0"], 2, &["processes", "at least 1"]);
}

#[test]
fn a_command_line_that_makes_no_sense_is_a_usage_error() {
    let place = wrong(|_| {});
    for arguments in [vec!["run"], vec!["trian", "recipe.yaml"], vec!["run", "recipe.yaml", "--processes", "two"]] {
        place.bam(arguments).finish().expect_error(2, &["--help"]);
    }
    place.bam(["run", "nowhere.yaml"]).finish().expect_error(2, &["nowhere.yaml", "give the path of a recipe"]);
    place.bam(["plan", "nowhere.yaml"]).finish().expect_error(2, &["nowhere.yaml"]);
    place.bam(["trian", "recipe.yaml"]).finish().expect_error(2, &["unrecognized subcommand 'trian'"]);
    place.bam(["statsu", "runs/tiny"]).finish().expect_error(2, &["a similar subcommand exists: 'status'"]);
    place.bam(["plan", "recipe.yml"]).finish().expect_error(2, &["did you mean recipe.yaml?"]);
    let stages = ["run", "recipe.yaml", "--stages", "techer-cola"];
    place.bam(stages).finish().expect_error(2, &["no stage 'techer-cola'", "did you mean 'teacher-cola'?"]);
    let split = ["predict", "recipe.yaml", "--split", "tset"];
    place.bam(split).finish().expect_error(2, &["invalid value 'tset'", "a similar value exists: 'test'"]);
    place.bam(["plan", "recipe.yaml", "--gpus-per-node", "8"]).finish().expect_error(2, &["--nodes"]);
    let teacher = ["plan", "recipe.yaml", "-o", "distill.teachers={CoLA: encoder}"];
    place.bam(teacher).finish().expect_error(2, &["is no task of this recipe (cola, stsb); did you mean 'cola'?"]);
    place.bam(["report", "own"]).finish().expect_error(2, &["own", "not the directory of a run"]);
}

#[test]
fn missing_and_empty_files_are_named_with_their_task() {
    let place = wrong(|p| fs::remove_file(p.at("glue/CoLA/train.tsv")).unwrap());
    refused(&place, &[], 3, &["glue/CoLA/train.tsv", "task 'cola'", "data.glue"]);
    let place = wrong(|p| fs::remove_dir_all(p.at("glue")).unwrap());
    refused(&place, &[], 3, &["glue/CoLA/train.tsv", "task 'cola'"]);
    let place = wrong(|p| drop(p.write("glue/CoLA/dev.tsv", "")));
    refused(&place, &[], 3, &["glue/CoLA/dev.tsv", "no examples", "task 'cola'"]);
    let header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n";
    let place = wrong(|p| drop(p.write("glue/STS-B/train.tsv", header)));
    refused(&place, &[], 3, &["glue/STS-B/train.tsv", "no examples", "task 'stsb'"]);
}

#[test]
fn a_wrong_row_is_named_with_its_line() {
    for (file, from, to, parts) in [
        ("CoLA/train.tsv", "\t1\t", "\t7\t", ["unknown label '7'", "known labels: 0, 1"]),
        ("CoLA/train.tsv", "ab12\t1\t\t", "ab12\t1\t", ["a column that task 'cola' needs", "tabs"]),
        ("STS-B/dev.tsv", "\t3.000\n", "\t5.200\n", ["score 5.2", "outside its range 0 to 5"]),
        ("STS-B/dev.tsv", "\t3.000\n", "\tthree\n", ["'three' is not a number", "correct the row"]),
    ] {
        let mut line = String::new();
        let place = wrong(|p| {
            p.edit(&format!("glue/{file}"), |text| {
                let row = text[..text.find(from).unwrap()].matches('\n').count() + 1;
                line = format!("{file}, line {row}");
                text.replacen(from, to, 1)
            });
        });
        refused(&place, &[], 3, &[&line, parts[0], parts[1]]);
    }
}

#[test]
fn a_missing_column_of_a_task_of_ones_own_is_named() {
    let place = wrong(|p| {
        drop(p.recipe("recipe.yaml", &Recipe::of(&["warmth"])));
        p.edit("own/warmth-dev.tsv", |text| text.replacen("degree", "degrees", 1));
    });
    let parts = ["warmth-dev.tsv", "no column named 'degree'", "degrees, text, note", "task 'warmth'"];
    refused(&place, &[], 3, &parts);
}

#[test]
fn an_encoder_that_is_not_whole_is_refused() {
    let place = wrong(|p| p.edit("encoder/vocab.txt", |text| text.repeat(2)));
    refused(&place, &[], 3, &["encoder/vocab.txt", "tokens, but the encoder", "from the same model"]);
    let place = wrong(|p| {
        let file = fs::File::options().write(true).open(p.at("encoder/model.safetensors")).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    });
    refused(&place, &[], 3, &["encoder/model.safetensors", "cut short", "again"]);
    let place = wrong(|p| p.edit("encoder/config.json", |text| text.replace("\"gelu\"", "\"relu\"")));
    refused(&place, &[], 3, &["encoder/config.json", "hidden_act is 'relu'"]);
    let place = wrong(|p| fs::remove_dir_all(p.at("encoder")).unwrap());
    refused(&place, &[], 3, &["encoder/config.json", "model.path must be a directory"]);
}

#[test]
fn a_missing_program_is_named() {
    let place = wrong(|_| {});
    fs::create_dir(place.at("bin")).unwrap();
    fs::copy(program("bam"), place.at("bin/bam")).unwrap();
    let before = Snapshot::of(place.path());
    let alone = Bam::of_program(&place.at("bin/bam"), place.path(), ["run", "recipe.yaml"]);
    alone.finish().expect_error(1, &["bin/bam-worker", "BAM_WORKER", "beside bam"]);
    let without_mpi = place.bam(["run", "recipe.yaml"]).env("PATH", place.at("bin"));
    without_mpi.finish().expect_error(1, &["mpirun", "install Open MPI", "BAM_MPIRUN"]);
    before.assert_same(&Snapshot::of(place.path()));
}

#[test]
fn a_worker_of_another_kind_is_reported_with_what_mpirun_says() {
    let place = wrong(|_| {});
    let done = place.bam(["run", "recipe.yaml"]).env("BAM_WORKER", "/bin/false").finish();
    done.expect_error(1, &["stage 'prepare'", "ended", "log: "]);
}

/// A finished run of the recipe, of which tests take copies.
fn finished() -> (&'static Workplace, &'static Run) {
    static ONCE: OnceLock<(Workplace, Run)> = OnceLock::new();
    let (place, run) = ONCE.get_or_init(|| {
        let place = Workplace::shared("bad-input");
        place.recipe("recipe.yaml", &small());
        place.bam(["run", "recipe.yaml"]).expect(0);
        let run = Run::new(place.at("runs/tiny"));
        (place, run)
    });
    (place, run)
}

#[test]
fn a_run_directory_of_another_recipe_is_left_alone() {
    let (place, run) = finished();
    let before = Snapshot::of(run.path());
    for (text, parts) in [
        ("seed=6", ["seed: 5 there, 6 here", "choose another name"]),
        ("train.multi.epochs=2", ["train.multi.epochs: 1 there, 2 here", "choose another name"]),
        ("seed", ["-o seed", "KEY=VALUE"]),
        ("data.glue=nowhere", ["nowhere/CoLA/train.tsv", "task 'cola'"]),
    ] {
        let code = if text.starts_with("data") { 3 } else { 2 };
        place.bam(["run", "recipe.yaml", "-o", text]).finish().expect_error(code, &parts);
    }
    before.without(&["lock"]).assert_same(&Snapshot::of(run.path()).without(&["lock"]));
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    for byte in &mut bytes[middle..middle + 16] {
        *byte ^= 0xa5;
    }
    fs::write(path, bytes).unwrap();
}

/// Damages one file of a finished run, has the student made anew, and then follows the advice that `bam` gives.
fn damaged(name: &str, file: &str, remove: &[&str], parts: &[&str]) {
    let (place, whole) = finished();
    let run = whole.copy_to(&place.at("runs").join(name));
    fs::remove_dir_all(run.at("stages/student")).unwrap();
    flip(&run.at(file));
    let directory = format!("runs/{name}");
    let arguments = ["run", "recipe.yaml", "--run-dir", &directory];
    let kept = || Snapshot::of(run.path()).without(&["logs", "lock", "incarnation", "ending.json", "stages/student"]);
    let before = kept();
    let advice = place.bam(arguments).finish().expect_error(3, &[&[file, "damaged", "run"], parts].concat());
    before.assert_same(&kept());
    for path in remove {
        let path = run.at(path);
        let line = advice.stderr.lines().find(|l| l.contains("remove")).unwrap_or_default();
        assert!(line.contains(path.to_str().unwrap()), "the advice does not name {}: {advice}", path.display());
        fs::remove_dir_all(path).unwrap();
    }
    place.bam(arguments).expect(0);
    assert_eq!(run.weights_sha256("student"), whole.weights_sha256("student"));
}

#[test]
fn a_damaged_shard_of_logits_is_refused_and_the_advice_helps() {
    damaged("bad-shard", "logits/teacher-cola/cola/shard-00000-of-00002.h5", &["stages/logits"], &["shard"]);
}

#[test]
fn a_damaged_data_file_is_refused_and_the_advice_helps() {
    damaged("bad-data", "data/stsb-train.h5", &["stages/prepare"], &["changed or damaged"]);
}

#[test]
fn a_damaged_or_missing_teacher_is_noticed() {
    let (place, whole) = finished();
    let run = whole.copy_to(&place.at("runs/bad-teacher"));
    fs::remove_dir_all(run.at("stages/student")).unwrap();
    let weights = run.weights("teacher-cola");
    flip(&weights);
    let arguments = ["run", "recipe.yaml", "--run-dir", "runs/bad-teacher"];
    place.bam(arguments).finish().expect_error(3, &["teacher", "remove"]);
    fs::remove_file(&weights).unwrap();
    let missing = ["teacher-cola/model/model.safetensors is missing", "remove", "stages/teacher-cola"];
    place.bam(arguments).finish().expect_error(3, &missing);
    fs::remove_dir_all(run.at("stages/teacher-cola")).unwrap();
    place.bam(arguments).expect(0);
    assert_eq!(run.weights_sha256("student"), whole.weights_sha256("student"));
}

#[test]
fn a_training_that_diverges_names_step_task_and_examples_and_keeps_its_checkpoint() {
    let place = Workplace::new();
    let mut recipe = Recipe::of(&["cola", "mood"]);
    recipe.mode = "multi".into();
    recipe.multi = "epochs: 2, batch_size: 16, learning_rate: 1.0e+30, warmup: 0".into();
    recipe.checkpoint = "every_steps: 1".into();
    place.recipe("recipe.yaml", &recipe);
    let words = ["diverged in step 1:", "not finite for task 'cola', example", "task 'mood', example", "learning rate"];
    place.bam(["run", "recipe.yaml"]).finish().expect_error(1, &words);
    assert_eq!(Run::new(place.at("runs/tiny")).checkpoints("multi").len(), 1);
}
