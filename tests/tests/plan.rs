//! `bam plan` says what would run, starts nothing and writes nothing.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::fs;

use bam_tests::{Recipe, Snapshot, Workplace, repository, write_program};

fn cells(text: &str, first: &str) -> Vec<String> {
    let row = text.lines().find(|l| l.split_whitespace().next() == Some(first));
    row.unwrap_or_else(|| panic!("no row of {first} in {text}")).split_whitespace().map(str::to_owned).collect()
}

#[test]
fn a_plan_has_stages_tasks_and_step_counts_and_leaves_no_trace() {
    let place = Workplace::new();
    place.recipe("recipe.yaml", &Recipe::of(&["cola", "stsb", "mood"]));
    // Whoever starts one of these leaves a mark.
    let mark = place.at("mark");
    for name in ["mpirun", "bam-worker"] {
        write_program(&place.at(name), &format!("#!/bin/sh\necho {name} >> {}\n", mark.display()));
    }
    let before = Snapshot::of(place.path());
    let plan = |arguments: &[&str]| {
        let bam = place.bam(["plan", "recipe.yaml"]);
        let bam = bam.env("BAM_MPIRUN", place.at("mpirun")).env("BAM_WORKER", place.at("bam-worker"));
        arguments.iter().fold(bam.env("PATH", place.path()), |bam, a| bam.arg(a)).expect(0)
    };
    let done = plan(&[]);
    for (stage, steps) in [("teacher-cola", "30"), ("teacher-stsb", "30"), ("teacher-mood", "30"), ("student", "135")] {
        let row = cells(&done.stdout, stage);
        assert!(row.contains(&steps.to_owned()), "{stage} should have {steps} steps: {row:?}");
    }
    for stage in ["prepare", "logits"] {
        cells(&done.stdout, stage);
    }
    for task in ["cola", "stsb", "mood"] {
        let row = cells(&done.stdout, task);
        assert!(row.ends_with(&["240".to_owned(), "60".to_owned()]), "{row:?}");
    }
    let other = plan(&["-n", "4", "-o", "train.multi.epochs=10", "-o", "mode=multi"]);
    assert!(cells(&other.stdout, "multi").contains(&"450".to_owned()), "{other}");
    assert!(!other.stdout.contains("teacher-cola"), "{other}");
    assert!(!other.stdout.contains("same bits"), "{other}");
    let same = plan(&["-o", "reproducible=world-size", "-o", "virtual_shards=16"]);
    assert!(same.stdout.contains("the same bits on 1 to 16 processes"), "{same}");
    before.assert_same(&Snapshot::of(place.path()));
    assert!(!mark.exists());
}

#[test]
fn a_cluster_elsewhere_is_rehearsed_with_what_it_would_refuse() {
    let place = Workplace::new();
    place.recipe("recipe.yaml", &Recipe::of(&["cola", "stsb"]));
    let plan = |arguments: &[&str], code| {
        let bam = place.bam(["plan", "recipe.yaml", "--nodes", "2", "--gpus-per-node", "4"]);
        arguments.iter().fold(bam, |bam, a| bam.arg(a)).expect(code)
    };
    let done = plan(&[], 0);
    for words in
        ["processes 8 on 2 nodes with 4 GPUs each", "teacher-cola, 1 more", "teacher [0–1]   prepare", "time  unknown"]
    {
        assert!(done.stdout.contains(words), "'{words}' is not in {done}");
    }
    // 240 examples, 3 epochs, on 8 processes.
    let done = plan(&["--samples-per-second", "10"], 0);
    assert!(done.stdout.contains("~18 s"), "{done}");
    let done = plan(&["--json", "-n", "48"], 2);
    let json: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    let problem = json["problems"][0].as_str().unwrap();
    assert!(problem.contains("'student': a batch of 16 examples cannot be shared by 48"), "{problem}");
    // Teachers have no more ranks than have four examples each.
    let most = |training: usize| &json["trainings"][training]["share"]["most"];
    assert_eq!((&json["layout"]["nodes"], most(0), most(2)), (&2.into(), &4.into(), &1.into()), "{json}");
    // With fewer processes, all is well; the recipe itself says 2.
    plan(&["-n", "16", "-o", "cluster.single_processes=8"], 0);
    let unsaid: serde_json::Value = serde_json::from_str(&plan(&["--json", "-n", "16"], 0).stdout).unwrap();
    assert_eq!((&unsaid["trainings"][0]["ranks"], &unsaid["trainings"][0]["share"]["most"]), (&4.into(), &4.into()));
    let training = &json["stages"][1]["training"];
    assert_eq!((&training["steps"], &training["draws"][0]["epochs"]), (&30.into(), &2.0.into()), "{training}");
    assert!(json["disk"]["checkpoints"].as_f64().unwrap() > json["disk"]["models"].as_f64().unwrap());
    let fixed = plan(&["-o", "reproducible=world-size", "-o", "virtual_shards=4"], 2);
    assert!(fixed.stdout.contains("PROBLEM: reproducible: world-size allows at most 4 processes"), "{fixed}");
}

#[test]
fn a_plan_warns_of_what_has_no_effect_and_of_what_fills_a_memory() {
    let place = Workplace::new();
    place.recipe("recipe.yaml", &Recipe::of(&["cola", "rte"]));
    let plan = |overrides: &[&str]| {
        let bam = place.bam(["plan", "recipe.yaml", "-n", "1"]);
        overrides.iter().fold(bam, |bam, o| bam.arg("-o").arg(o)).expect(0).stdout
    };
    assert!(!plan(&[]).contains("warning: "));
    let idle = plan(&["mode=multi", "distill.ensemble=2"]);
    assert!(idle.contains("warning: distill.ensemble has no effect: this mode has no teachers"), "{idle}");
    let large = plan(&["train.multi.batch_size=4194304"]);
    assert!(large.contains("'student': with 4,194,304 examples at once, a rank on CPUs needs up to "), "{large}");
    assert!(large.contains("train.multi.micro_batch_size"), "{large}");
    assert!(!plan(&["train.multi.batch_size=4194304", "train.multi.micro_batch_size=32"]).contains("warning: "));
    // A test file with other rows than GLUE's, whose server would refuse the answers.
    let short = plan(&["predict=[test]"]);
    assert!(short.contains("warning: task 'rte': test has 60 rows, and GLUE's has 3,000"), "{short}");
}

/// With a small encoder and small files: the recipes' own are not here.
#[test]
fn every_recipe_for_glue_passes() {
    let place = Workplace::new();
    let stand_ins =
        ["data.glue=glue", "data.tasks=[cola, mrpc, stsb, rte]", "model.path=encoder", "model.max_length=64"];
    let recipes: Vec<_> = fs::read_dir(repository().join("configs/glue")).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(recipes.len() >= 20, "{recipes:?}");
    for recipe in recipes {
        let name = recipe.file_stem().unwrap().to_str().unwrap();
        let bam = place.bam(["plan", recipe.to_str().unwrap()]);
        let plan = stand_ins.iter().fold(bam, |bam, o| bam.arg("-o").arg(o)).expect(0);
        assert!(plan.stdout.starts_with(&format!("{name} (")), "the recipe's name is not its file's: {plan}");
        let comment = fs::read_to_string(&recipe).unwrap();
        assert!(comment.starts_with("# ") && comment.contains("paper"), "{name} does not say what it stands for");
    }
}

#[test]
fn help_and_version_are_there() {
    let place = Workplace::new();
    let help = place.bam(["--help"]).expect(0);
    for part in ["run", "plan", "report", "export", "Exit codes", "75"] {
        assert!(help.stdout.contains(part), "{part} is not in {help}");
    }
    for command in ["run", "plan", "report", "export"] {
        assert!(place.bam([command, "--help"]).expect(0).stdout.contains("Usage:"));
    }
    assert!(place.bam(["--version"]).expect(0).stdout.starts_with("bam "));
}
