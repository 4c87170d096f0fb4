//! The metrics against scikit-learn's and SciPy's, on ten thousand random cases. The Python that `make test` sets up
//! computes theirs; without it the test skips and says so.

// Helpers of the test fail as the test does.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use bam_cluster::metrics::value;
use bam_cluster::task::Metric;
use serde::Deserialize;

const TOLERANCE: f64 = 1e-12;

#[derive(Deserialize)]
struct Case {
    labels: Vec<f32>,
    predictions: Vec<f32>,
    figures: BTreeMap<String, Option<f64>>,
}

#[test]
fn all_metrics_are_those_of_scikit_learn_and_scipy() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = here.join("../.venv-tests/bin/python");
    if !python.is_file() {
        // Past cargo, which shows only what failed tests print.
        let text =
            "\nskipped: cluster/tests/metrics.rs (there is no .venv-tests; setup/setup.sh python-tests makes it)\n";
        let _ = std::io::stderr().write_all(text.as_bytes());
        return;
    }
    let output = Command::new(python).arg(here.join("tests/metrics_by_scikit_learn.py")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let cases: Vec<Case> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(cases.len(), 10_000);
    let (mut undefined, mut compared) = (0, 0);
    for case in &cases {
        for (name, expected) in &case.figures {
            let metric = match name.as_str() {
                "accuracy" => Metric::Accuracy,
                "f1" => Metric::F1,
                "matthews" => Metric::Matthews,
                "mse" => Metric::Mse,
                "pearson" => Metric::Pearson,
                "spearman" => Metric::Spearman,
                other => panic!("no metric '{other}'"),
            };
            match (value(metric, &case.predictions, &case.labels), expected) {
                (None, None) => undefined += 1,
                (Some(found), Some(expected)) if (found - expected).abs() < TOLERANCE => compared += 1,
                (found, expected) => {
                    panic!("{name} is {found:?}, not {expected:?}, of {:?} and {:?}", case.predictions, case.labels)
                }
            }
        }
    }
    assert!(undefined > 100 && compared > 20_000, "{undefined} undefined, {compared} compared");
}
