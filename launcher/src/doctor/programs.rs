//! The programs: are they there, do they start, are they of one build?

use std::io;
use std::process::{Command, Output, Stdio};

use bam_cluster::config::ClusterSection;

use super::Finding;
use crate::backend::{Programs, Starter};

const ABOUT: &str = "programs";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Looks at them; also returns them, if they can be used.
pub fn look(cluster: &ClusterSection) -> (Option<Programs>, Vec<Finding>) {
    let programs = match Programs::find(cluster) {
        Ok(programs) => programs,
        Err(error) => return (None, vec![Finding::of_error(ABOUT, &error.to_string())]),
    };
    let worker = worker(&programs, &asked(&programs.worker));
    let is_usable = worker.verdict != super::Verdict::Problem;
    let findings = vec![worker, starter(&programs)];
    (is_usable.then_some(programs), findings)
}

fn asked(program: &std::path::Path) -> io::Result<Output> {
    Command::new(program).arg("--version").stdin(Stdio::null()).output()
}

fn worker(programs: &Programs, answer: &io::Result<Output>) -> Finding {
    let path = programs.worker.display();
    let remedy = "build both programs anew (make setup), or load the modules of the libraries that it was built with";
    match answer {
        Ok(answer) if answer.status.success() => {
            let said = String::from_utf8_lossy(&answer.stdout);
            match said.split_whitespace().last() {
                Some(VERSION) => Finding::ok(ABOUT, format!("bam {VERSION}, with {path}")),
                other => {
                    let said = format!("bam is {VERSION}, {path} is {}", other.unwrap_or("of no version"));
                    Finding::problem(ABOUT, said, "let both be of one build (BAM_WORKER names the worker)")
                }
            }
        }
        // A library that is missing is the loader's to name.
        Ok(answer) => {
            let words = String::from_utf8_lossy(&answer.stderr);
            Finding::problem(ABOUT, format!("{path} does not start: {}", words.trim()), remedy)
        }
        Err(error) => Finding::problem(ABOUT, format!("{path} does not start: {error}"), remedy),
    }
}

fn starter(programs: &Programs) -> Finding {
    let path = match &programs.starter {
        Starter::Mpirun(path) => path,
        Starter::Srun(srun) => &srun.program,
    };
    let version = asked(path).ok().filter(|answer| answer.status.success());
    let version = version.map(|answer| String::from_utf8_lossy(&answer.stdout).lines().next().unwrap_or("").to_owned());
    let version = version.filter(|line| !line.is_empty()).unwrap_or_else(|| programs.starter.name().to_owned());
    Finding::ok(ABOUT, format!("{version}: {} ({})", path.display(), programs.why))
}
