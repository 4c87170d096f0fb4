//! `bam report`: the results of runs, finished or not, from their directories alone.

use std::path::{Path, PathBuf};

use anyhow::Context;
use bam_cluster::config;
use bam_cluster::exit_code;
use bam_cluster::files;
use bam_cluster::plan::Plan;
use bam_cluster::run_dir::RunDir;
use serde_json::{Value, json};

use crate::cli::{ReportArguments, ReportFormat};
use crate::report::{self, Comparison, JudgedRun, NotARun, render_tests};

/// A report that cannot be made as it is asked for.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Nobody has said where the page of several runs belongs.
    #[error("a page on several runs has no place of its own: say where it is written (--to report.html)")]
    NoPlace,
    /// A run would be compared with itself.
    #[error("{directory} is there twice; name each run once")]
    Twice {
        /// As given.
        directory: PathBuf,
    },
    /// Scores are a table of one kind of things.
    #[error("--tests has no place in CSV, which has one score a line; leave it out, or choose another --format")]
    TestsInCsv,
}

/// Makes the report of one run or several.
pub fn run(arguments: &ReportArguments) -> anyhow::Result<u8> {
    refuse_twice(&arguments.run_dirs)?;
    let mut runs: Vec<JudgedRun> = arguments.run_dirs.iter().map(|d| judged(d)).collect::<Result<_, _>>()?;
    tell_apart(&mut runs);
    let ReportArguments { tests, published, to, .. } = arguments;
    let text = match if arguments.json { ReportFormat::Json } else { arguments.format } {
        ReportFormat::Html => {
            let to = match (to, runs.as_slice()) {
                (Some(to), _) => to.clone(),
                (None, [only]) => only.run.report_page(),
                (None, _) => return Err(ReportError::NoPlace.into()),
            };
            write_page(&runs, *published, &to)?;
            super::print(&format!("{}\n", to.display()))?;
            return Ok(exit_code::DONE);
        }
        ReportFormat::Table => table(&runs, *tests, *published)?,
        ReportFormat::Json => serde_json::to_string_pretty(&for_programs(&runs, *tests, *published)?)? + "\n",
        ReportFormat::Csv if *tests => return Err(ReportError::TestsInCsv.into()),
        ReportFormat::Csv => report::csv(&runs, *published)?,
        ReportFormat::Latex => {
            let comparison = Comparison::of(&runs);
            let tests = if *tests { report::tests(&comparison)? } else { vec![] };
            report::latex(&comparison, &tests, *published)
        }
    };
    match to {
        Some(to) => write(to, &text)?,
        None => super::print(&text)?,
    }
    Ok(exit_code::DONE)
}

fn refuse_twice(directories: &[PathBuf]) -> Result<(), ReportError> {
    // One that is not there is another error, with a name of its own.
    let real: Vec<Option<PathBuf>> = directories.iter().map(|directory| directory.canonicalize().ok()).collect();
    let twice = |i: &usize| real[*i].is_some() && real[..*i].contains(&real[*i]);
    match (0..real.len()).find(twice) {
        Some(i) => Err(ReportError::Twice { directory: directories[i].clone() }),
        None => Ok(()),
    }
}

/// Runs of the same name go by their directories.
fn tell_apart(runs: &mut [JudgedRun]) {
    let names: Vec<String> = runs.iter().map(|run| run.results.name.clone()).collect();
    for run in runs {
        if names.iter().filter(|name| **name == run.results.name).count() > 1 {
            run.results.name = run.run.path().display().to_string();
        }
    }
}

/// Writes the page on these runs.
///
/// # Errors
/// Something of the runs cannot be read, or the page cannot be written.
pub(super) fn write_page(runs: &[JudgedRun], with_published: bool, to: &Path) -> anyhow::Result<()> {
    write(to, &report::page(runs, with_published)?)
}

fn write(to: &Path, text: &str) -> anyhow::Result<()> {
    // What is written aside first needs a directory with a name.
    let path = std::path::absolute(to)?;
    files::write_atomically(&path, text.as_bytes()).with_context(|| format!("cannot write {}", to.display()))
}

fn table(runs: &[JudgedRun], with_tests: bool, with_published: bool) -> anyhow::Result<String> {
    let comparison = Comparison::of(runs);
    let mut text = match runs {
        [only] if !with_published => only.results.render(),
        _ => comparison.render(with_published),
    };
    if with_tests {
        text += &render_tests(&report::tests(&comparison)?, &comparison);
    }
    Ok(text)
}

/// `runs`: of each what its `report.json` has; `changes` from one to another; `tests` and `published` if they are asked for.
fn for_programs(runs: &[JudgedRun], with_tests: bool, with_published: bool) -> anyhow::Result<Value> {
    let comparison = Comparison::of(runs);
    let mut value = json!({
        "runs": runs.iter().map(|run| run.results.to_json()).collect::<Vec<_>>(),
        "cautions": comparison.cautions,
        "changes": comparison.changes.iter().map(|c| c.to_json(&comparison, with_published)).collect::<Vec<_>>(),
    });
    if with_tests {
        let tests = report::tests(&comparison)?;
        value["tests"] = tests.iter().map(|test| test.to_json(&comparison)).collect();
    }
    if with_published {
        value["published"] = report::published_json();
    }
    Ok(value)
}

fn judged(directory: &Path) -> anyhow::Result<JudgedRun> {
    let run = RunDir::new(directory);
    let plan = plan_of(&run)?;
    let recipe = config::load_resolved(&run.recipe())?;
    JudgedRun::collect(run, recipe, plan)
}

/// The plan that a run follows.
///
/// # Errors
/// The directory is not a run's, or the plan cannot be read.
pub(super) fn plan_of(run: &RunDir) -> anyhow::Result<Plan> {
    let not_a_run = |missing| NotARun { directory: run.path().to_owned(), missing };
    if !run.recipe().exists() {
        return Err(not_a_run("config.yaml").into());
    }
    let plan: Option<Plan> = files::read_json(&run.plan()).with_context(|| run.plan().display().to_string())?;
    Ok(plan.ok_or_else(|| not_a_run("plan.json"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_named_once_by_whichever_way() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
        std::fs::create_dir(&a).unwrap();
        std::fs::create_dir(&b).unwrap();
        refuse_twice(&[a.clone(), b.clone()]).unwrap();
        let again = b.join("../a");
        let message = refuse_twice(&[a.clone(), b, again]).unwrap_err().to_string();
        assert!(message.ends_with("b/../a is there twice; name each run once"), "{message}");
        // What is not there is said elsewhere.
        let gone = dir.path().join("gone");
        refuse_twice(&[gone.clone(), gone]).unwrap();
    }
}
