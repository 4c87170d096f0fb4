//! Tokenising: the stage `prepare` as users run it, against Hugging Face's fast tokenizer called from Python, in turns, on
//! the same texts and one core each.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bam_tests::{Bam, Run, program, repository};

use super::table::{Table, Target, median};

const TURNS: usize = 3;
/// Rows of the two runs of bam whose difference counts, so that starting costs nothing; Python does the fewer ones.
const FEW: usize = 40_000;
const MANY: usize = 280_000;

/// Measures, if texts and Python are there.
pub fn measure(table: &mut Table) {
    table.part("Tokenising, rows of two texts");
    let directory = tempfile::tempdir().unwrap();
    let encoder = repository().join("assets/all-MiniLM-L6-v2");
    let (few, many) = (directory.path().join("few.tsv"), directory.path().join("many.tsv"));
    let rows = rows();
    write_rows(&few, &rows, FEW);
    write_rows(&many, &rows, MANY);
    let python = peer_python();
    let (mut own, mut peer, mut ratios) = (vec![], vec![], vec![]);
    for _ in 0..TURNS {
        let seconds = prepare(&many, &encoder) - prepare(&few, &encoder);
        own.push((MANY - FEW) as f64 / seconds);
        if let Some(python) = &python {
            peer.push(tokenize(python, &encoder, &few));
            ratios.push(own[own.len() - 1] / peer[peer.len() - 1]);
        }
    }
    table.row("bam: reads, tokenises, writes", median(own), "rows a second", Target::None);
    if ratios.is_empty() {
        let why = "neither BAM_PEER_PYTHON nor .venv-peer/bin/python has transformers";
        return table.skipped("Hugging Face's fast tokenizer, called from Python", why);
    }
    table.row("Hugging Face: tokenises", median(peer), "rows a second", Target::None);
    table.row("bam against Hugging Face", median(ratios), "×", Target::AtLeast(1.5));
}

/// Pairs of texts: Quora's where GLUE is, else the demo's.
fn rows() -> Vec<String> {
    let quora = super::glue().map(|glue| glue.join("QQP/train.tsv")).filter(|path| path.is_file());
    let pair = |a: &str, b: &str| format!("{a}\t{b}");
    match quora {
        Some(path) => {
            let text = fs::read_to_string(path).unwrap();
            let fields = text.lines().skip(1).map(|line| line.split('\t').collect::<Vec<_>>());
            fields.filter(|fields| fields.len() == 6).map(|fields| pair(fields[3], fields[4])).collect()
        }
        None => {
            let text = fs::read_to_string(repository().join("assets/rated-text/product-reviews.tsv")).unwrap();
            let texts: Vec<&str> = text.lines().filter_map(|line| line.split('\t').nth(2)).collect();
            texts.windows(2).map(|two| pair(two[0], two[1])).collect()
        }
    }
}

/// So many rows with labels, beginning again where there are not enough.
fn write_rows(path: &Path, rows: &[String], n: usize) {
    let mut text = String::new();
    rows.iter().cycle().take(n).enumerate().for_each(|(i, row)| writeln!(text, "{row}\t{}", i % 2).unwrap());
    fs::write(path, text).unwrap();
}

/// Seconds that `prepare` takes.
fn prepare(rows: &Path, encoder: &Path) -> f64 {
    let directory = tempfile::tempdir().unwrap();
    let recipe = format!(
        "name: tokens\nmode: multi\nmodel: {{ path: {}, max_length: 128 }}\ndata:\n  tasks:\n    - {{ name: pairs, train: \
         {}, dev_fraction: 0.001, header: false, text: 0, text_b: 1, label: 2, type: classification, labels: ['0', '1'] \
         }}\ncluster: {{ processes: 1 }}\n",
        encoder.display(),
        rows.display()
    );
    fs::write(directory.path().join("recipe.yaml"), recipe).unwrap();
    let bam = program("bam");
    // On one core, like its peer; what bam starts inherits that.
    let words = ["-c", "0", bam.to_str().unwrap(), "run", "recipe.yaml", "--stages", "prepare"];
    Bam::of_program(Path::new("/usr/bin/taskset"), directory.path(), words).expect(0);
    Run::new(directory.path().join("runs/tokens")).json("stages/prepare/done.json")["seconds"].as_f64().unwrap()
}

/// The Python with transformers, if there is one.
fn peer_python() -> Option<PathBuf> {
    let path = env::var_os("BAM_PEER_PYTHON").map_or_else(|| repository().join(".venv-peer/bin/python"), PathBuf::from);
    let has_it = Command::new(&path).args(["-c", "import transformers"]).output().is_ok_and(|o| o.status.success());
    has_it.then_some(path)
}

/// Rows a second of Hugging Face's.
fn tokenize(python: &Path, encoder: &Path, rows: &Path) -> f64 {
    let script = repository().join("tests/bench/tokens.py");
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(python).arg(script).arg(encoder).arg(rows);
    command.env("TOKENIZERS_PARALLELISM", "false").env("RAYON_NUM_THREADS", "1");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}
