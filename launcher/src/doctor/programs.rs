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
    let findings = vec![worker(&programs, &asked(&programs.worker)), starter(&programs)];
    let is_usable = findings.iter().all(|finding| finding.verdict != super::Verdict::Problem);
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
    let said = version.map(|answer| String::from_utf8_lossy(&answer.stdout).into_owned()).unwrap_or_default();
    if let (Starter::Mpirun(_), Some(other)) = (&programs.starter, other_mpi(&said)) {
        let remedy =
            "name Open MPI's mpirun (BAM_MPIRUN, or a module of the site's); bam starts ranks with its options alone";
        return Finding::problem(ABOUT, format!("{} is {other}'s", path.display()), remedy);
    }
    let version = said.lines().next().filter(|line| !line.is_empty());
    let version = version.unwrap_or(programs.starter.name());
    Finding::ok(ABOUT, format!("{version}: {} ({})", path.display(), programs.why))
}

/// Whose mpirun it is, if it is not Open MPI's, from what it says of its version.
fn other_mpi(version: &str) -> Option<&'static str> {
    let lower = version.to_lowercase();
    // Intel's is built on MPICH's, too.
    [("intel(r) mpi", "Intel MPI"), ("mvapich", "MVAPICH"), ("hydra", "MPICH"), ("mpich", "MPICH")]
        .into_iter()
        .find(|(mark, _)| lower.contains(mark))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mpirun_of_another_mpi_is_known() {
        assert_eq!(other_mpi("HYDRA build details:\n    Version:  4.0.2\n"), Some("MPICH"));
        let intel = "Intel(R) MPI Library for Linux* OS, Version 2021.9 Build 20230307 (id: d82b3071db)";
        assert_eq!(other_mpi(intel), Some("Intel MPI"));
        assert_eq!(other_mpi("mpirun (Open MPI) 4.1.4\n\nReport bugs to http://www.open-mpi.org"), None);
    }
}
