//! `bam submit`: the whole of a recipe as one batch job of Slurm, submitted when everything that can be known to be wrong
//! with it has been looked for.

use std::env;
use std::fs::{self, File};
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, bail};
use bam_cluster::config::Recipe;
use bam_cluster::exit_code;
use bam_cluster::files;
use bam_cluster::run_dir::RunDir;

use crate::backend::Programs;
use crate::cli::SubmitArguments;
use crate::project::Project;
use crate::run_claim;
use crate::run_lock::{self, LockError};
use crate::shell::quoted;
use crate::slurm::{BatchScript, JobRecord, Phase, Slurm, check_syntax};

/// Submits, or shows what would be submitted.
pub fn run(arguments: &SubmitArguments) -> anyhow::Result<u8> {
    // Everything up to the directories only looks, so that bad input changes nothing.
    let asked = Project::recipe(&arguments.recipe, None)?.slurm;
    let processes = asked.nodes.saturating_mul(asked.gpus_per_node.unwrap_or(1));
    let project = Project::load_for(&arguments.recipe, Some(processes))?;
    let recipe = &project.recipe;
    let run = RunDir::new(super::directory_or_default(arguments.run_dir.as_deref(), &recipe.name)?);
    let here = env::current_dir().context("cannot tell the current directory")?;
    let bam = env::current_exe().context("cannot tell where bam is")?;
    let script = BatchScript { recipe, run: &run, directory: &here, bam: &bam }.render()?;
    check_syntax(&script)?;
    run_claim::check(&run, recipe)?;
    if arguments.dry_run {
        super::print(&script)?;
        return Ok(exit_code::DONE);
    }
    let sets_up_more = !(recipe.slurm.modules.is_empty() && recipe.slurm.prologue.is_empty());
    if !sets_up_more && recipe.slurm.container.is_empty() {
        Programs::look_for(&recipe.cluster)?;
    }
    check_nobody_works(&run)?;
    let answer = Slurm.test(&script)?;
    for warning in &project.warnings {
        super::tell(&format!("warning: {warning}"));
    }
    super::tell(&answer);
    submit(&run, recipe, &script, &here)
}

/// Nothing may be at work in the run directory, and no job may be about to be.
fn check_nobody_works(run: &RunDir) -> anyhow::Result<()> {
    let record = JobRecord::read(run).with_context(|| unreadable(run))?;
    if let Some(record) = record
        && let Some(job) = Slurm.job(&record)?
        && job.phase() != Phase::Ended
    {
        let directory = run.path().display();
        bail!(
            "job {} of this run, submitted {}, is still {}\n  wait for it ('bam status {directory}'), or stop it at a \
             checkpoint ('bam cancel {directory}')",
            record.job,
            record.submitted,
            job.state
        );
    }
    match run_lock::holder(run)? {
        Some(holder) => Err(LockError::Held { directory: run.path().to_owned(), holder }.into()),
        None => Ok(()),
    }
}

/// What to do about a record that cannot be read.
fn unreadable(run: &RunDir) -> String {
    format!("{}; if no job of this run is there any more (squeue), remove the file", run.job().display())
}

/// Writes script and recipe, and submits them, while nobody else does.
fn submit(run: &RunDir, recipe: &Recipe, script: &str, here: &Path) -> anyhow::Result<u8> {
    let (slurm, output) = (run.slurm(), run.job_output());
    // Slurm does not make the directory of a job's output; without it, the job ends without a word.
    for directory in [slurm.as_path()].into_iter().chain(output.parent()) {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let lock = run.submit_lock();
    let file = File::options().write(true).create(true).truncate(false).open(&lock);
    let file = file.with_context(|| lock.display().to_string())?;
    file.try_lock().with_context(|| format!("{}: another 'bam submit' of this run is under way", lock.display()))?;
    // Somebody may have been faster.
    check_nobody_works(run)?;
    // The job runs what was checked, whatever becomes of the recipe while it waits.
    let yaml = serde_norway::to_string(recipe).context("cannot write the recipe as YAML")?;
    let yaml = format!("# The recipe as it was submitted, with all defaults and overrides, written by bam.\n{yaml}");
    let path = run.job_script();
    for (path, content) in [(&run.job_recipe(), yaml.as_bytes()), (&path, script.as_bytes())] {
        files::write_atomically(path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if run.cancelled().exists() {
        fs::remove_file(run.cancelled()).with_context(|| run.cancelled().display().to_string())?;
    }
    let submitted = Slurm.submit(&path)?;
    let job = submitted.job;
    let record = JobRecord {
        job,
        cluster: submitted.cluster,
        submitted: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        directory: here.display().to_string(),
        command: env::args().map(|word| quoted(&word)).collect::<Vec<_>>().join(" "),
    };
    record.write(run).with_context(|| {
        format!("job {job} was submitted, but {} cannot be written: 'bam status' will not know it", run.job().display())
    })?;
    let directory = quoted(&run.path().display().to_string());
    super::print(&format!(
        "job {job} submitted\n  script: {}\n  output: {}\n  how far it is: bam status {directory}\n  to stop it: bam cancel \
         {directory}\n",
        path.display(),
        output.with_file_name(format!("slurm-{job}.out")).display(),
    ))?;
    Ok(exit_code::DONE)
}
