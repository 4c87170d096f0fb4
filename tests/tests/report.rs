//! What is reported of runs, in every form, and read again by those it is for: programs, TensorBoard, a browser.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use bam_cluster::metrics::value;
use bam_cluster::task::Metric;
use bam_tests::{Browser, Recipe, Run, Scheme, Workplace, python, repository};
use serde_json::Value;

/// Two trials of a recipe with text in it that a page must not take for its own. A rank of the first student is killed
/// between two checkpoints, so that steps are done again.
struct Trials {
    place: Workplace,
    run: Run,
    stdout: String,
}

const NASTY: &str = "</pre><script>alert(1)</script>";

fn trials() -> &'static Trials {
    static ONCE: OnceLock<Trials> = OnceLock::new();
    ONCE.get_or_init(|| {
        let place = Workplace::shared("report");
        let mut recipe = Recipe::of(&["cola", "stsb"]);
        recipe.trials = 2;
        recipe.tasks.push(Recipe::task("mood").replace("neutral", &format!("\"{NASTY}\"")));
        recipe.multi = "epochs: 2, batch_size: 16, learning_rate: 0.002".into();
        recipe.cluster = "processes: 1".into();
        place.recipe("recipe.yaml", &recipe);
        let done = place.bam(["run", "recipe.yaml", "--inject", "student:kill:0:step-31"]).expect(0);
        Trials { run: Run::new(place.at("runs/tiny")), stdout: done.stdout, place }
    })
}

fn report(arguments: &[&str]) -> String {
    trials().place.bam([&["report"], arguments].concat()).expect(0).stdout
}

fn page() -> PathBuf {
    trials().run.at("report.html")
}

#[test]
fn programs_get_json_and_csv() {
    let Trials { run, .. } = trials();
    let all: Value = serde_json::from_str(&report(&["runs/tiny", "--json", "--tests", "--published"])).unwrap();
    assert_eq!(all["runs"], Value::Array(vec![run.json("report.json")]));
    assert_eq!(all["published"]["table_1"][4]["models"], "Single→Multi");
    let tests = all["tests"].as_array().unwrap();
    let average = tests.iter().find(|test| test["task"].is_null()).unwrap();
    assert_eq!(
        (&average["tested"]["models"], &average["against"]["models"]),
        (&"single-to-multi".into(), &"single".into())
    );
    assert!(average["p_holm"].as_f64().unwrap() >= average["p"].as_f64().unwrap());
    assert!(serde_json::from_str::<Value>(&report(&["runs/tiny", "--format", "json"])).unwrap()["tests"].is_null());

    let csv = report(&["runs/tiny", "--format", "csv"]);
    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some("run,models,trial,member,stage,task,split,metric,score,examples,collapsed"));
    // Two kinds of models, two trials; one metric of two tasks and two of the third.
    assert_eq!(
        lines.clone().filter(|line| line.contains(",dev,") && !line.contains("average")).count(),
        2 * 2 * 4,
        "{csv}"
    );
    let average = &all["runs"][0]["average"]["single-to-multi"];
    let line = csv.lines().find_map(|line| line.strip_prefix("tiny,single-to-multi,,,,,dev,average,"));
    assert_eq!(&line.unwrap().trim_end_matches(',').parse::<f64>().unwrap(), average);
    let row: Vec<&str> = lines
        .find(|line| line.contains("single-to-multi,2,1,student@2,stsb,dev,spearman"))
        .unwrap()
        .split(',')
        .collect();
    assert_eq!(run.json("stages/student@2/dev.json")["stsb"]["metrics"]["spearman"], row[8].parse::<f64>().unwrap());
}

#[test]
fn papers_get_rows_and_terminals_what_they_had() {
    let Trials { stdout, place, .. } = trials();
    assert_eq!(&report(&["runs/tiny"]), stdout);
    let latex = report(&["runs/tiny", "--format", "latex", "--tests", "--published"]);
    let line = |start: &str| latex.lines().find(|l| l.starts_with(start)).unwrap_or_else(|| panic!("{latex}"));
    assert_eq!(line("Model"), "Model & Avg. & CoLA & STS-B & mood \\\\");
    assert!(line("Single$\\to$Multi &").contains("\\scriptsize["), "{latex}");
    assert_eq!(line("Single$\\to$Multi (published)").matches('&').count(), 4);
    assert!(
        latex.contains("\\begin{tabular}{@{}lrrrr@{}}\n\\toprule") && latex.ends_with("\\bottomrule\n\\end{tabular}\n")
    );

    let ablated = ablation();
    let both = report(&["runs/tiny", ablated, "--format", "latex", "--to", "table.tex"]);
    assert_eq!(
        (both.as_str(), fs::read_to_string(place.at("table.tex")).unwrap().matches("(tiny) & ").count()),
        ("", 2)
    );
    place.bam(["report", "runs/tiny", ablated, "runs/../runs/tiny"]).finish().expect_error(2, &["is there twice"]);
    let page = ["report", "runs/tiny", ablated, "--format", "html"];
    place.bam(page).finish().expect_error(2, &["--to report.html"]);
    assert_eq!(report(&[&page[1..], &["--to", "both.html"]].concat()), "both.html\n");
    let both = fs::read_to_string(place.at("both.html")).unwrap();
    assert!(both.matches("<article>").count() == 2 && both.contains("Kinds of models"), "{both}");
    place.bam(["report", "runs/tiny", "--format", "csv", "--tests"]).finish().expect_error(2, &["CSV"]);
    place.bam(["report", "runs"]).finish().expect_error(2, &["is not the directory of a run"]);
}

/// What a report needs of the two trials' run, under another name: as an ablation whose second student is not there yet and
/// whose first teacher of STS-B has collapsed.
fn ablation() -> &'static str {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        let Trials { place, run, .. } = trials();
        let at = place.at("runs/ablated");
        for file in ["config.yaml", "plan.json"] {
            fs::create_dir_all(&at).unwrap();
            fs::copy(run.at(file), at.join(file)).unwrap();
        }
        for stage in run.stages().iter().filter(|stage| *stage != "student@2") {
            fs::create_dir_all(at.join("stages").join(stage)).unwrap();
            for file in ["done.json", "dev.json"].iter().filter(|file| run.stage(stage, file).exists()) {
                fs::copy(run.stage(stage, file), at.join("stages").join(stage).join(file)).unwrap();
            }
        }
        place.edit("runs/ablated/config.yaml", |text| {
            let name = text.replacen("name: tiny", "name: ablated", 1);
            assert!(name != text && name.contains("layerwise_decay: 0.9"), "{text}");
            name.replace("layerwise_decay: 0.9", "layerwise_decay: 1.0")
        });
        place.edit("runs/ablated/stages/teacher-stsb/dev.json", |text| {
            let mut scores: Value = serde_json::from_str(&text).unwrap();
            scores["stsb"]["metrics"] = serde_json::json!({ "pearson": null, "spearman": null });
            scores["stsb"]["spread"] = 0.0.into();
            scores.to_string()
        });
    });
    "runs/ablated"
}

#[test]
fn several_runs_say_what_is_missing_what_has_collapsed_and_what_an_ablation_costs() {
    let ablated = ablation();
    let of_both = |more: &[&str]| report(&[&["runs/tiny", ablated], more].concat());
    let text = of_both(&["--published"]);
    let collapsed =
        "ablated: 'teacher-stsb' has collapsed on 'stsb': it predicts nearly the same value for every dev example";
    for words in [collapsed, "ablated: not complete: student@2", "Multi, then fine-tuned"] {
        assert!(text.contains(words), "'{words}' is not in {text}");
    }
    let line =
        |start: &str| text.lines().find(|l| l.trim_start().starts_with(start)).unwrap_or_else(|| panic!("{text}"));
    assert!(line("Single→Multi (ablated)").contains(" 1 of 2 "), "{text}");
    let change = line("Single→Multi (ablated), without layer-wise learning rates");
    assert!(change.contains("-0.3"), "{change}");

    let json: Value = serde_json::from_str(&of_both(&["--json"])).unwrap();
    let averages = [0, 1].map(|run: usize| json["runs"][run]["average"]["single-to-multi"].as_f64().unwrap());
    let found = json["changes"][0]["average"].as_f64().unwrap();
    assert!((found - (averages[1] - averages[0])).abs() < 1e-12, "{found}");
    assert_eq!(json["changes"][0]["what"], "no-layerwise-rates");
    assert_eq!(json["runs"][1]["samples"]["stsb"]["spearman"]["single"][0], 0.0);
    assert_eq!(json["runs"][1]["seeds"]["single-to-multi"], serde_json::json!({ "judged": 1, "planned": 2 }));

    let latex = of_both(&["--format", "latex"]);
    assert!(latex.contains(&format!("% {collapsed}\n")) && latex.contains("% ablated: not complete"), "{latex}");
    let csv = of_both(&["--format", "csv"]);
    for line in ["ablated,single,1,1,teacher-stsb,stsb,dev,spearman,0.0,60,true", "student@2,cola,dev,matthews,,,"] {
        assert!(csv.lines().any(|l| l.ends_with(line)), "no '{line}' in {csv}");
    }
    of_both(&["--format", "html", "--to", "ablated.html"]);
    let page = fs::read_to_string(trials().place.at("ablated.html")).unwrap();
    for words in [collapsed, "Not complete: student@2", "1 of 2", "without layer-wise learning rates"] {
        assert!(page.contains(words), "'{words}' is not in the page");
    }
}

#[test]
fn answers_are_written_so_that_scores_can_be_computed_again() {
    let Trials { run, .. } = trials();
    let text = fs::read_to_string(run.stage("student", "predictions/stsb-dev.tsv")).unwrap();
    let row = |line: &str| -> (f32, f32) {
        let fields: Vec<&str> = line.split('\t').collect();
        (fields[1].parse().unwrap(), fields[2].parse().unwrap())
    };
    let (answers, gold): (Vec<f32>, Vec<f32>) = text.lines().skip(1).map(row).unzip();
    let scores = &run.json("stages/student/dev.json")["stsb"]["metrics"];
    assert_eq!(scores["pearson"], value(Metric::Pearson, &answers, &gold).unwrap());
    assert_eq!(scores["spearman"], value(Metric::Spearman, &answers, &gold).unwrap());
}

#[test]
fn an_exported_model_has_a_card() {
    let Trials { place, run, .. } = trials();
    place.bam(["export", "runs/tiny", "--to", "exported"]).expect(0);
    let card = fs::read_to_string(place.at("exported/mood/README.md")).unwrap();
    let accuracy = run.json("stages/student/dev.json")["mood"]["metrics"]["accuracy"].as_f64().unwrap();
    for words in [
        "library_name: transformers",
        &format!("| accuracy | {accuracy:.4} |"),
        "taught by teacher-cola, teacher-stsb, teacher-mood",
        "AutoModelForSequenceClassification.from_pretrained",
        "max_length=40",
    ] {
        assert!(card.contains(words), "'{words}' is not in {card}");
    }
}

#[test]
fn a_page_tells_everything_and_needs_nothing() {
    let Trials { run, .. } = trials();
    let text = fs::read_to_string(page()).unwrap();
    for words in [
        "Results on dev",
        "More than chance?",
        "student, trial 1",
        "Loss by task",
        "weight of the gold labels",
        "Learning rate",
        "Examples drawn in",
        "Where a step&#39;s time goes",
        "One start more than there are stages",
        "was killed by signal 9",
        "run recipe.yaml --inject student:kill:0:step-31",
        "&lt;/pre&gt;&lt;script&gt;alert(1)",
        run.json("stages/student/done.json")["outputs"]["model"].as_str().unwrap(),
    ] {
        let plain = words.replace("&#39;", "'");
        assert!(text.contains(words) || text.contains(&plain), "'{words}' is not in {text}");
    }
    for foreign in ["<script", "src=", "href=", "@import", "url("] {
        assert!(!text.contains(foreign), "{foreign}");
    }
    // Made again from the directory, it is the same.
    assert_eq!(report(&["runs/tiny", "--format", "html"]), "runs/tiny/report.html\n");
    assert_eq!(fs::read_to_string(page()).unwrap(), text);
}

#[test]
fn a_run_that_is_not_complete_has_a_page_too() {
    let place = Workplace::new();
    let mut recipe = Recipe::of(&["cola", "mood"]);
    recipe.cluster = "processes: 1".into();
    recipe.single = "epochs: 1, batch_size: 16".into();
    place.recipe("recipe.yaml", &recipe);
    let page = || {
        place.bam(["report", "runs/tiny", "--format", "html"]).expect(0);
        fs::read_to_string(place.at("runs/tiny/report.html")).unwrap()
    };
    place.bam(["run", "recipe.yaml", "--stages", "prepare"]).expect(0);
    let before = page();
    for words in ["No step has been done yet", "No model has been judged yet", "Not complete: teacher-cola"] {
        assert!(before.contains(words), "'{words}' is not in {before}");
    }
    place.bam(["run", "recipe.yaml", "--stages", "teacher-cola"]).expect(0);
    // As a training leaves it that is at work.
    fs::copy(place.at("runs/tiny/stages/teacher-cola/metrics.jsonl"), place.at("metrics")).unwrap();
    let half = fs::read_to_string(place.at("metrics")).unwrap();
    fs::create_dir_all(place.at("runs/tiny/stages/student")).unwrap();
    fs::write(place.at("runs/tiny/stages/student/metrics.jsonl"), &half[..half.len() * 2 / 3]).unwrap();
    let after = page();
    for words in
        ["Not complete: teacher-mood, logits, student", "Loss by task", "Models of one task", "--stages teacher-cola"]
    {
        assert!(after.contains(words), "'{words}' is not in {after}");
    }
    place.bam(["run", "recipe.yaml", "--stages", "report"]).expect(1);
}

#[test]
fn tensorboard_reads_every_step_once() {
    let test = "tensorboard_reads_every_step_once";
    let Some(python) = python(test) else { return };
    let Trials { run, .. } = trials();
    let directory = run.stage("student", "tensorboard");
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 2, "a file for each start");
    let script = repository().join("tests/read_with_tensorboard.py");
    let output = Command::new(python).arg(script).arg(&directory).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let scalars = |tag: &str| -> Vec<(u64, f32)> {
        let found = all[directory.to_str().unwrap()][tag].as_array().unwrap_or_else(|| panic!("no {tag} in {all}"));
        found.iter().map(|pair| (pair[0].as_u64().unwrap(), pair[1].as_f64().unwrap() as f32)).collect()
    };
    let steps = run.steps("student");
    assert!(steps.len() > 31);
    assert_eq!(scalars("train/loss"), steps.iter().map(|s| (s.step, s.loss as f32)).collect::<Vec<_>>());
    assert_eq!(scalars("train/lambda"), steps.iter().map(|s| (s.step, s.lambda as f32)).collect::<Vec<_>>());
    for tag in [
        "train/learning_rate",
        "train/gradient_norm",
        "speed/samples_per_second",
        "speed/tokens_per_second",
        "speed/mfu",
    ] {
        assert_eq!(scalars(tag).len(), steps.len(), "{tag}");
    }
    let of_cola = steps.iter().filter_map(|s| Some((s.step, *s.task_losses.get("cola")? as f32)));
    assert_eq!(scalars("loss/cola"), of_cola.collect::<Vec<_>>());
    let dev = run.json("stages/student/dev.json")["stsb"]["metrics"]["spearman"].as_f64().unwrap();
    assert_eq!(scalars("dev/stsb/spearman"), [(steps.len() as u64, dev as f32)]);
}

#[test]
fn a_browser_shows_the_page_in_light_and_dark_and_narrow() {
    let Some(browser) = Browser::find("a_browser_shows_the_page_in_light_and_dark_and_narrow") else { return };
    let size = (1100, 1600);
    let [light, dark] = [Scheme::Light, Scheme::Dark].map(|scheme| browser.picture(&page(), size, scheme));
    for picture in [&light, &dark] {
        assert_eq!((picture.width, picture.height), (1100, 1600));
        // Nothing but paper would have one.
        assert!(picture.colours() > 100, "{} colours", picture.colours());
    }
    assert!(light.brightness() > 200.0 && dark.brightness() < 80.0, "{} {}", light.brightness(), dark.brightness());
    // Nothing sticks out where there is little room: wide tables scroll by themselves.
    let measuring = trials().place.at("measuring.html");
    let script = "<script>document.querySelectorAll('details').forEach(d => d.open = true);\
                  const e = document.documentElement; document.title = `${innerWidth} ${e.scrollWidth}`</script></body>";
    fs::write(&measuring, fs::read_to_string(page()).unwrap().replace("</body>", script)).unwrap();
    let document = browser.document(&measuring, (380, 800));
    let title = document.split("<title>").nth(1).unwrap().split("</title>").next().unwrap();
    let widths: Vec<u32> = title.split(' ').map(|n| n.parse().unwrap()).collect();
    assert!(widths[0] <= 500 && widths[1] <= widths[0], "{title}");
}
