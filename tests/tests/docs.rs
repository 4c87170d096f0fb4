//! Every command in the documentation is run as it stands there, where the tests' tiny files can stand for the real ones; the others
//! are at least commands that bam knows. And every sentence that the guide explains is one that the programs say.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::fs;
use std::path::Path;

use bam_tests::{Recipe, Workplace, repository};

const PAGES: [&str; 2] = ["docs/guide.md", "README.md"];

/// The commands of a page's code blocks, without comments.
fn commands(page: &str) -> Vec<String> {
    let text = fs::read_to_string(repository().join(page)).unwrap();
    let mut is_code = false;
    let mut found = vec![];
    for line in text.lines() {
        if line.starts_with("```") {
            is_code = !is_code;
        } else if is_code && line.starts_with("bam ") {
            found.push(line.split(" #").next().unwrap().trim().to_owned());
        }
    }
    found
}

/// Commands that do something here, in seconds; others reach for Slurm, the internet or the whole machine.
const RUN: [&str; 9] = ["run", "plan", "report", "status", "export", "predict", "init", "schema", "completions"];

/// Whether a command can be run in the workplace: what it reads is there.
fn is_for_real(place: &Workplace, words: &[String]) -> bool {
    let is_path = |word: &&String| word.ends_with(".yaml") || word.starts_with("runs/");
    let all_there = || words.iter().filter(is_path).all(|word| place.at(word).exists());
    match words[0].as_str() {
        "init" => true,
        // All of GLUE takes minutes even when it is tiny.
        "predict" => words[1].starts_with("configs/") && all_there(),
        command => (RUN.contains(&command) || words.iter().any(|word| word == "--dry-run")) && all_there(),
    }
}

/// As a shell would split it (the pages quote nothing), with the workplace's GLUE, and with few processes.
fn words(command: &str) -> Vec<String> {
    assert!(!command.contains(['\'', '"', '$', '|', '>', '\\', ';']), "this test reads no shell: {command}");
    let mut words: Vec<String> =
        command.split_whitespace().skip(1).map(|word| word.replace("/path/to/glue", "glue")).collect();
    if let ("run", Some(n)) = (words[0].as_str(), words.iter().position(|word| word == "-n")) {
        words[n + 1] = "2".to_owned();
    }
    words
}

/// The GLUE folders that a workplace does not have, and the model that the guide fetches.
fn complete(place: &Workplace) {
    let write = |path: &str, header: &str, row: &dyn Fn(usize) -> String| {
        let rows: String = (0..40).map(|i| row(i) + "\n").collect();
        fs::create_dir_all(place.at(path).parent().unwrap()).unwrap();
        place.write(path, &format!("{header}\n{rows}"));
    };
    for split in ["train", "dev"] {
        write(&format!("glue/SST-2/{split}.tsv"), "sentence\tlabel", &|i| format!("a good film\t{}", i % 2));
        let header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate";
        write(&format!("glue/QQP/{split}.tsv"), header, &|i| format!("{i}\t1\t2\twho is it\twho was it\t{}", i % 2));
        let header = "index\tquestion\tsentence\tlabel";
        let label = |i: usize| ["entailment", "not_entailment"][i % 2];
        write(&format!("glue/QNLI/{split}.tsv"), header, &|i| format!("{i}\twho is it\tit is he\t{}", label(i)));
        let name = if split == "dev" { "dev_matched" } else { split };
        let header = "index\tb\tc\td\te\tf\tg\th\tsentence1\tsentence2\tgold_label";
        let label = |i: usize| ["contradiction", "entailment", "neutral"][i % 3];
        let row = |i: usize| format!("{i}\t-\t-\t-\t-\t-\t-\t-\tit is he\tit is she\t{}", label(i));
        write(&format!("glue/MNLI/{name}.tsv"), header, &row);
    }
    let model = place.at("hf/hub/models--bert-large-uncased");
    fs::create_dir_all(model.join("refs")).unwrap();
    fs::create_dir_all(model.join("snapshots")).unwrap();
    fs::write(model.join("refs/main"), "0123").unwrap();
    std::os::unix::fs::symlink(place.at("encoder"), model.join("snapshots/0123")).unwrap();
}

/// A workplace in which recipes of the repository's names are tiny.
fn workplace() -> Workplace {
    let place = Workplace::new();
    fs::create_dir_all(place.at("configs/glue")).unwrap();
    let add = |name: &str, tasks: &[&str]| {
        let mut recipe = Recipe::of(tasks);
        recipe.name = Path::new(name).file_stem().unwrap().to_str().unwrap().to_owned();
        recipe.single = "epochs: 1, batch_size: 16".into();
        recipe.multi = "epochs: 1, batch_size: 64".into();
        let text = recipe.text();
        // Recipes are read from below.
        let up = if name.contains("glue/") { "../../" } else { "../" };
        let text = text.replace("path: encoder", &format!("path: {up}encoder"));
        let text = text.replace("glue: glue", &format!("glue: {up}glue")).replace(": own/", &format!(": {up}own/"));
        place.write(&format!("configs/{name}.yaml"), &text);
    };
    add("demo", &["mood", "warmth"]);
    add("glue-small", &["cola", "rte"]);
    for entry in fs::read_dir(repository().join("configs/glue")).unwrap() {
        let name = entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned();
        add(&format!("glue/{name}"), &["cola", "rte"]);
    }
    place
}

#[test]
fn every_command_of_the_documentation_works() {
    let place = workplace();
    complete(&place);
    let (mut run, mut known) = (vec![], vec![]);
    for page in PAGES {
        for command in commands(page) {
            if run.contains(&command) || known.contains(&command) {
                continue;
            }
            // `bam plan A && bam run A` are two.
            for part in command.split(" && ") {
                let words = words(part);
                let bam = |more: &[&str]| {
                    let bam = place.bam(words.iter().map(String::as_str)).env("HF_HOME", place.at("hf"));
                    more.iter().fold(bam, |bam, word| bam.arg(word))
                };
                if is_for_real(&place, &words) {
                    bam(&[]).expect(0);
                    run.push(command.clone());
                } else {
                    // Everything before is read, and refused if it is unknown.
                    bam(&["--help"]).expect(0);
                    known.push(command.clone());
                }
            }
        }
    }
    assert!(run.len() >= 10, "run: {run:#?}\nonly known to bam: {known:#?}");
    println!("run: {run:#?}\nonly known to bam: {known:#?}");
}

/// All Rust sources of the programs, with texts that go over several lines put together.
fn sources() -> String {
    fn collect(directory: &Path, text: &mut String) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, text);
            } else if path.extension().is_some_and(|e| e == "rs") {
                text.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut text = String::new();
    for room in ["cluster/src", "launcher/src", "worker/src"] {
        collect(&repository().join(room), &mut text);
    }
    let mut lines = vec![String::new()];
    for line in text.lines() {
        let last = lines.last_mut().unwrap();
        match last.strip_suffix('\\') {
            Some(begun) => *last = format!("{begun}{}", line.trim_start()),
            None => lines.push(line.to_owned()),
        }
    }
    lines.join("\n")
}

#[test]
fn every_sentence_that_the_guide_explains_is_one_that_bam_says() {
    let guide = fs::read_to_string(repository().join("docs/guide.md")).unwrap();
    let section = guide.split("## When something fails").nth(1).unwrap().split("\n## ").next().unwrap();
    let sources = sources();
    let mut sentences = 0;
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let cell = row.trim_start_matches("| ").split(" | ").next().unwrap();
        for quoted in cell.split('`').skip(1).step_by(2) {
            for part in quoted.split('…').map(str::trim).filter(|part| part.len() > 3) {
                // Numbers are put in by the programs; serde says what it expected.
                let part = part.trim_end_matches(|c: char| c.is_ascii_digit() || c == ' ').trim_end_matches("' in");
                assert!(
                    sources.contains(part) || part.contains("expected"),
                    "the guide explains '{quoted}', of which '{part}' is in no source"
                );
                sentences += 1;
            }
        }
    }
    assert!(sentences > 40, "{sentences}");
}
