//! Everything trained several times with different seeds, ensembles of teachers, and what a report says of them.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use bam_tests::{Recipe, Run, Workplace};

fn line<'a>(text: &'a str, start: &str) -> &'a str {
    text.lines().find(|l| l.trim_start().starts_with(start)).unwrap_or_else(|| panic!("no line '{start}' in {text}"))
}

#[test]
fn trials_are_medians_and_more_of_them_go_on_from_those_that_are_there() {
    let place = Workplace::new();
    let mut recipe = Recipe::of(&["cola", "stsb"]);
    recipe.trials = 2;
    recipe.distill = "ensemble: 2".into();
    recipe.single = "epochs: 1, batch_size: 16, learning_rate: 0.002".into();
    recipe.multi = "epochs: 2, batch_size: 16, learning_rate: 0.002".into();
    recipe.cluster = "processes: 1".into();
    place.recipe("recipe.yaml", &recipe);
    let done = place.bam(["run", "recipe.yaml"]).expect(0);
    let run = Run::new(place.at("runs/tiny"));
    let of_trial = |end: &str| {
        let names = ["logits", "student", "teacher-cola", "teacher-cola.2", "teacher-stsb", "teacher-stsb.2"];
        names.map(|n| format!("{n}{end}")).to_vec()
    };
    let mut expected = [of_trial(""), of_trial("@2"), vec!["prepare".to_owned()]].concat();
    expected.sort_unstable();
    assert_eq!(run.stages(), expected);
    assert!(done.stdout.contains("different seeds: Single 4, Single→Multi 2"), "{done}");
    assert!(line(&done.stdout, "stsb").contains(" ["), "{done}");
    let report = run.json("report.json");
    let samples = report["samples"]["stsb"]["spearman"]["single-to-multi"].as_array().unwrap();
    let samples: Vec<f64> = samples.iter().map(|s| s.as_f64().unwrap()).collect();
    assert_ne!(samples[0], samples[1]);
    let median = report["tasks"]["stsb"]["spearman"]["single-to-multi"].as_f64().unwrap();
    assert!((median - (samples[0] + samples[1]) / 2.0).abs() < 1e-12);

    // The second trial is a run with the next seed.
    let next = Recipe { name: "next".into(), trials: 1, ..recipe.clone() };
    place.write("next.yaml", &next.text().replace("seed: 5", "seed: 6"));
    place.bam(["run", "next.yaml"]).expect(0);
    let next = Run::new(place.at("runs/next"));
    assert_eq!(next.weights_sha256("student"), run.weights_sha256("student@2"));
    assert_ne!(next.weights_sha256("student"), run.weights_sha256("student"));

    let more = place.bam(["run", "recipe.yaml", "-o", "trials=3"]).expect(0);
    assert_eq!(more.stderr.matches("done before").count() + more.stdout.matches("done before").count(), 13, "{more}");
    assert!(run.is_done("student@3") && !run.stages().contains(&"student@4".to_owned()));

    // Whoever does not say otherwise means the first trial.
    for (to, more) in [("a", &[][..]), ("b", &["--stage", "student"])] {
        place.bam([&["export", "runs/tiny", "--to", to], more].concat()).expect(0);
    }
    let exported = |to: &str| std::fs::read(place.at(to).join("cola/model.safetensors")).unwrap();
    assert_eq!(exported("a"), exported("b"));

    let both = place.bam(["report", "runs/tiny", "runs/next", "--tests", "--published"]).expect(0).stdout;
    assert!(line(&both, "Single→Multi (tiny)").contains("3") && both.contains("Single→Multi (next)"), "{both}");
    assert!(line(&both, "Single→Multi, published").contains("61.8"), "{both}");
    for test in
        ["cola: Single→Multi (tiny) against Single (next)", "average: Single→Multi (tiny) against Single (tiny)"]
    {
        line(&both, test);
    }
    assert!(both.contains("after Holm"), "{both}");
}

#[test]
fn trials_may_share_their_teachers() {
    let place = Workplace::new();
    let mut recipe = Recipe::of(&["cola"]);
    recipe.trials = 2;
    recipe.distill = "share_teachers: true".into();
    recipe.single = "epochs: 1, batch_size: 16".into();
    recipe.multi = "epochs: 1, batch_size: 16".into();
    recipe.cluster = "processes: 1".into();
    place.recipe("recipe.yaml", &recipe);
    place.bam(["run", "recipe.yaml"]).expect(0);
    let run = Run::new(place.at("runs/tiny"));
    assert_eq!(run.stages(), ["logits", "prepare", "student", "student@2", "teacher-cola"]);
    assert_ne!(run.weights_sha256("student"), run.weights_sha256("student@2"));
}

#[test]
fn a_search_keeps_the_best_of_each_task() {
    let place = Workplace::new();
    let mut recipe = Recipe::of(&["cola", "warmth"]);
    recipe.mode = "single-to-multi".into();
    // With the first rate nothing is learnt.
    recipe.single =
        "epochs: 2, batch_size: 16, layerwise_decay: 1.0, search: { learning_rate: [1.0e-9, 0.002] }".into();
    recipe.multi = "epochs: 1, batch_size: 16".into();
    recipe.cluster = "processes: 1".into();
    place.recipe("recipe.yaml", &recipe);
    let done = place.bam(["run", "recipe.yaml"]).expect(0);
    let run = Run::new(place.at("runs/tiny"));
    for task in ["cola", "warmth"] {
        let choice = run.json(&format!("stages/teacher-{task}/choice.json"));
        let scores: Vec<f64> =
            choice["candidates"].as_array().unwrap().iter().map(|c| c["score"].as_f64().unwrap_or(-1.0)).collect();
        let best = if scores[1] > scores[0] { 2 } else { 1 };
        let chosen = format!("teacher-{task}+{best}");
        assert_eq!(choice["chosen"], chosen.as_str());
        assert_eq!(run.weights_sha256(&format!("teacher-{task}")), run.weights_sha256(&chosen));
        assert!(run.at(format!("logits/teacher-{task}/{task}/manifest.json")).is_file());
        assert_eq!(line(&done.stdout, task).split_whitespace().count(), 5, "{done}");
    }
    assert!(format!("{done}").contains("are the best of 2 on dev; dev: warmth pearson"), "{done}");
    let again = place.bam(["run", "recipe.yaml"]).expect(0);
    assert_eq!(again.stdout.matches("done before").count() + again.stderr.matches("done before").count(), 9, "{again}");
    recipe.multi = "epochs: 1, search: { learning_rate: [0.1] }".into();
    place.recipe("wrong.yaml", &recipe);
    place.bam(["plan", "wrong.yaml"]).finish().expect_error(2, &["train.multi.search", "train.single.search"]);
}
