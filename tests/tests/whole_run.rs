//! A whole recipe from the first file to the results table, the same recipe again, and again with other data.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use bam_tests::{Recipe, Run, Snapshot, Step, Workplace};

const STAGES: [&str; 7] =
    ["logits", "prepare", "student", "teacher-cola", "teacher-mood", "teacher-stsb", "teacher-warmth"];
const METRICS: [(&str, &str); 4] =
    [("cola", "matthews"), ("stsb", "spearman"), ("mood", "accuracy"), ("warmth", "pearson")];

fn mean_loss(run: &Run, stage: &str, last: bool) -> f64 {
    let losses: Vec<f64> = run.steps(stage).iter().map(|s| s.loss).collect();
    let part = if last { &losses[losses.len() - 10..] } else { &losses[..10] };
    part.iter().sum::<f64>() / part.len() as f64
}

/// What a finished run of the recipe below has to have left.
fn check_products(run: &Run, stdout: &str) {
    assert_eq!(run.stages(), STAGES);
    for (task, metric) in METRICS {
        let row = stdout.lines().find(|l| l.trim_start().starts_with(task)).unwrap_or_default();
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert!(cells.len() == 5 && cells[1] == metric, "row of {task}: '{row}' in {stdout}");
        for stage in ["student", &format!("teacher-{task}")] {
            let dev = run.json(&format!("stages/{stage}/dev.json"));
            let score = &dev[task]["metrics"][metric];
            assert_eq!(dev[task]["examples"], 60, "{dev}");
            // A teacher has seen a quarter of the examples, and may not have learnt much.
            let least = if stage == "student" { 0.4 } else { -1.0 };
            assert!(score.as_f64().is_none_or(|s| s > least && s <= 1.0), "{stage} reached {metric} {score} on {task}");
            assert!(stage != "student" || score.is_number(), "{dev}");
            let column = if stage == "student" { "single-to-multi" } else { "single" };
            assert_eq!(&run.json("report.json")["tasks"][task][metric][column], score);
            let predictions =
                std::fs::read_to_string(run.stage(stage, &format!("predictions/{task}-dev.tsv"))).unwrap();
            assert_eq!(predictions.lines().count(), 61, "{predictions}");
            for file in ["config.json", "model.safetensors", "vocab.txt"] {
                assert!(run.stage(stage, "model").join(file).is_file(), "{stage} has no model/{file}");
            }
        }
    }
    assert!(stdout.lines().any(|l| l.trim_start().starts_with("average")), "{stdout}");
    let heads = run.json("stages/student/model/config.json")["bam_heads"].clone();
    assert_eq!(heads.as_array().map(Vec::len), Some(4), "{heads}");
    let teacher = run.json("stages/teacher-mood/model/config.json");
    assert_eq!(teacher["architectures"][0], "BertForSequenceClassification");
    assert_eq!(teacher["id2label"]["2"], "positive");
    assert!(run.steps("student").iter().all(|s| s.task_losses.len() <= 4));
}

#[test]
fn a_recipe_runs_from_files_to_table_once_and_notices_changed_data() {
    let place = Workplace::new();
    let mut recipe = Recipe::of(&["cola", "stsb", "mood", "warmth"]);
    recipe.single = "epochs: 4, batch_size: 16, learning_rate: 0.002".into();
    place.recipe("recipe.yaml", &recipe);
    let arguments = ["run", "recipe.yaml", "-n", "2"];

    let first = place.bam(arguments).expect(0);
    let run = Run::new(place.at("runs/tiny"));
    check_products(&run, &first.stdout);
    let steps = run.steps("student");
    assert_eq!(steps.iter().map(|s| s.step).collect::<Vec<_>>(), (0..steps.len() as u64).collect::<Vec<_>>());
    assert_eq!(steps.len(), 960 / 16 * 3);
    assert!(steps[0].lambda < 0.02 && steps[steps.len() - 1].lambda > 0.98, "teacher annealing");
    let (before, after) = (mean_loss(&run, "student", false), mean_loss(&run, "student", true));
    assert!(after < 0.6 * before, "the student's loss went from {before} to {after} only");
    assert!(!run.stage("student", "control.json").exists(), "the control file outlives the run");

    let everything_but_locks = |run: &Run| Snapshot::of(run.path()).without(&["lock", "ending.json"]);
    let made = everything_but_locks(&run);
    let second = place.bam(arguments).expect(0);
    assert_eq!(second.stdout, first.stdout, "the same table again");
    assert_eq!(second.stderr.matches("done before").count(), 7, "{second}");
    made.assert_same(&everything_but_locks(&run));

    let shown = place.bam(["report", "runs/tiny"]).expect(0);
    assert_eq!(shown.stdout, first.stdout);
    made.assert_same(&everything_but_locks(&run));

    place.edit("glue/CoLA/train.tsv", |text| text.replacen("\t1\t", "\t0\t", 1));
    place.bam(arguments).finish().expect_error(3, &["prepare", "other inputs", "source cola", "remove"]);
    made.assert_same(&everything_but_locks(&run));
}

#[test]
fn the_other_modes_run_too() {
    let place = Workplace::new();
    let mut recipe = Recipe::of(&["mrpc", "rte"]);
    recipe.single = "epochs: 1, batch_size: 16".into();
    recipe.multi = "epochs: 1, batch_size: 16, micro_batch_size: 5, loss_reduction: sum, optimizer: lamb".into();
    recipe.model = "max_length: 24, layers: 1".into();
    place.recipe("recipe.yaml", &recipe);
    let single_and_tuned = "train.fine_tune={ epochs: 1, batch_size: 16, learning_rate: 0.0001 }";
    for (mode, more, stages, columns) in [
        ("single", "seed=5", vec!["prepare", "single-mrpc", "single-rte"], vec!["Single"]),
        ("multi", "seed=5", vec!["multi", "prepare"], vec!["Multi"]),
        (
            "single-to-single",
            "seed=5",
            vec!["logits", "prepare", "student-mrpc", "student-rte", "teacher-mrpc", "teacher-rte"],
            vec!["Single", "Single→Single", "Difference"],
        ),
        (
            "multi-to-multi",
            single_and_tuned,
            vec!["fine-tuned-mrpc", "fine-tuned-rte", "logits", "prepare", "student", "teacher"],
            vec!["Multi", "Multi→Multi", "Fine-tuned", "Difference"],
        ),
    ] {
        let (mode_setting, directory) = (format!("mode={mode}"), format!("runs/{mode}"));
        let arguments = ["run", "recipe.yaml", "-n", "1", "-o", &mode_setting, "-o", more, "--run-dir", &directory];
        let done = place.bam(arguments).expect(0);
        let run = Run::new(place.at(directory));
        assert_eq!(run.stages(), stages);
        let header = done.stdout.lines().find(|l| l.trim_start().starts_with("Task")).unwrap_or_default();
        assert_eq!(header.split_whitespace().collect::<Vec<_>>(), [vec!["Task", "Metric"], columns].concat());
        assert!(done.stdout.contains("mrpc") && done.stdout.contains("f1") && done.stdout.contains("rte"), "{done}");
        for stage in stages.iter().filter(|s| s.starts_with("student") || s.starts_with("fine-tuned")) {
            let first = &run.steps(stage)[0];
            let lambda = if stage.starts_with("student") { 0.0 } else { 1.0 };
            assert_eq!(first.lambda, lambda, "{stage} of {mode}");
        }
    }
}

/// Every switch at another place than usual, and what can be seen of it from outside.
#[test]
fn switches_reach_the_training() {
    let place = Workplace::new();
    let mut recipe = Recipe::of(&["cola", "stsb"]);
    recipe.model += ", regression_output: linear";
    recipe.data = "double_unordered: true".into();
    recipe.single = "epochs: 2, batch_size: 16, learning_rate: 0.002".into();
    recipe.multi = "epochs: 1, batch_size: 16, learning_rate: 0.002, clip_norm: null".into();
    recipe.distill = "annealing: constant, lambda: 0, temperature: 1.0e6".into();
    recipe.cluster = "processes: 1".into();
    place.recipe("recipe.yaml", &recipe);
    place.bam(["run", "recipe.yaml", "-o", "sampling.method=multiples"]).expect(0);
    let run = Run::new(place.at("runs/tiny"));

    // A linear head begins at 0, a sigmoid's in the middle, where no score is further off than a half.
    let first = run.steps("teacher-stsb")[0].loss;
    assert!(first > 0.25, "the first loss of a linear head on scores between 0 and 1 is {first}");
    // The teacher has answered each pair both ways round.
    assert_eq!(run.json("logits/teacher-stsb/stsb/manifest.json")["examples"], 480);
    assert_eq!(run.json("logits/teacher-cola/cola/manifest.json")["examples"], 240);

    let steps = run.steps("student");
    assert_eq!(steps.len(), (240 + 480) / 16);
    assert!(steps.iter().all(|s| s.lambda == 0.0));
    // So hot a teacher calls all classes alike, and nobody comes nearer to that than ln 2.
    let of_cola: Vec<f64> = steps.iter().filter_map(|s| s.task_losses.get("cola").copied()).collect();
    assert!(of_cola.len() > 30 && of_cola.iter().all(|loss| *loss > 2f64.ln() - 1e-4), "{of_cola:?}");
    // Weights ∝ n^0.75/n of 240 and 480 examples, 1 on the mean.
    let ratio = 2f64.powf(0.25);
    let weights = [2.0 * ratio / (1.0 + ratio), 2.0 / (1.0 + ratio)];
    let sums = |step: &Step, [cola, stsb]: [f64; 2]| {
        let of = |task: &str| step.task_losses.get(task).copied().unwrap_or_default();
        let all = (0..=16).map(|n| f64::from(n) * cola * of("cola") + f64::from(16 - n) * stsb * of("stsb"));
        all.map(|sum| (sum / 16.0 - step.loss).abs()).fold(f64::MAX, f64::min)
    };
    let worst = steps.iter().map(|s| sums(s, weights)).fold(0.0, f64::max);
    assert!(worst < 1e-5, "a loss is {worst} off the weighted sum of its tasks' losses");
    let unweighted = steps.iter().filter(|s| sums(s, [1.0, 1.0]) < 1e-5).count();
    assert!(unweighted < steps.len() / 4, "{unweighted} losses are sums without weights");
}

#[test]
fn fine_tuning_begins_where_the_model_of_all_tasks_ended() {
    let place = Workplace::new();
    let mut recipe = Recipe::of(&["cola", "mood"]);
    recipe.mode = "multi".into();
    place.recipe("recipe.yaml", &recipe);
    // A rate so small that nothing is learnt: the model that comes out is the one that went in.
    let tune = "train.fine_tune={ epochs: 1, batch_size: 16, learning_rate: 1.0e-30 }";
    place.bam(["run", "recipe.yaml", "-o", tune]).expect(0);
    let run = Run::new(place.at("runs/tiny"));
    let before = run.json("stages/multi/dev.json");
    for task in ["cola", "mood"] {
        assert_eq!(run.json(&format!("stages/fine-tuned-{task}/dev.json"))[task], before[task], "{task}");
        let config = run.json(&format!("stages/fine-tuned-{task}/model/config.json"));
        assert_eq!(config["architectures"][0], "BertForSequenceClassification");
    }
}
