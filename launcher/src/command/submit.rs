//! `bam submit`: a recipe as jobs of Slurm, submitted when everything that can be known to be wrong with them has been looked
//! for.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};
use bam_cluster::config::Recipe;
use bam_cluster::exit_code;
use bam_cluster::files;
use bam_cluster::run_dir::RunDir;

use crate::backend::Programs;
use crate::cli::SubmitArguments;
use crate::progress;
use crate::project::Project;
use crate::run_claim;
use crate::run_lock;
use crate::shell::quoted;
use crate::slurm::estimate;
use crate::slurm::{
    After, BatchScript, ChainJob, Element, Phase, Slurm, Submission, SubmittedElement, SubmittedJob, chain,
    check_syntax,
};

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
    let jobs = if arguments.one_job {
        vec![ChainJob::whole(&recipe.cluster)]
    } else {
        chain(&project.plan, &recipe.cluster, |stage| run.done(stage).exists())
    };
    let render = |job: ChainJob| {
        let script = BatchScript { recipe, run: &run, directory: &here, bam: &bam, job: &job }.render()?;
        check_syntax(&script)?;
        Ok((job, script))
    };
    let scripts: Vec<(ChainJob, String)> = jobs.into_iter().map(render).collect::<anyhow::Result<_>>()?;
    run_claim::check(&run, recipe)?;
    if scripts.is_empty() {
        let directory = quoted(&run.path().display().to_string());
        super::print(&format!("all stages are complete, there is nothing to submit: bam report {directory}\n"))?;
        return Ok(exit_code::DONE);
    }
    if arguments.dry_run {
        super::print(&shown(&run, &scripts))?;
        return Ok(exit_code::DONE);
    }
    let sets_up_more = !(recipe.slurm.modules.is_empty() && recipe.slurm.prologue.is_empty());
    if !sets_up_more && recipe.slurm.container.is_empty() {
        Programs::look_for(&recipe.cluster)?;
    }
    check_nobody_works(&run)?;
    for warning in &project.warnings {
        super::tell(&format!("warning: {warning}"));
    }
    for (_, script) in &scripts {
        super::tell(&Slurm.test(script)?);
    }
    let stages = progress::stages(&run, &project.plan);
    for (job, _) in &scripts {
        let seconds = estimate::seconds(job, &project.plan, recipe, &stages);
        if let Some(note) = seconds.and_then(|seconds| estimate::note(job, seconds, recipe)) {
            super::tell(&note);
        }
    }
    submit(&run, recipe, &scripts, &here)
}

/// The scripts as they would be submitted; of a single one, nothing else, so that it can be kept and used.
fn shown(run: &RunDir, scripts: &[(ChainJob, String)]) -> String {
    if let [(_, script)] = scripts {
        return script.clone();
    }
    let one = |(job, script): &(ChainJob, String)| {
        let after = after(job, |name| Some(name.to_uppercase()));
        let after = after.map(|after| format!(", --dependency={after}")).unwrap_or_default();
        format!("##### {}{after}\n{script}", run.job_script(&job.name).display())
    };
    scripts.iter().map(one).collect::<Vec<_>>().join("\n")
}

/// What a job waits for, with each job called as `called` has it.
fn after(job: &ChainJob, called: impl Fn(&str) -> Option<String>) -> Option<After> {
    let jobs: Vec<String> = job.after.iter().filter_map(|name| called(name)).collect();
    match (jobs.is_empty(), job.is_report()) {
        (true, _) => None,
        (false, true) => Some(After::End(jobs)),
        (false, false) => Some(After::Success(jobs)),
    }
}

/// Nothing may be at work in the run directory, and no job may be about to be.
fn check_nobody_works(run: &RunDir) -> anyhow::Result<()> {
    let submission = Submission::read(run).with_context(|| unreadable(run))?;
    for (submission, job) in submission.iter().flat_map(|s| s.jobs.iter().map(move |job| (s, job))) {
        let known = Slurm.jobs(run, submission, job)?;
        if let Some(open) = known.iter().find(|job| job.phase() != Phase::Ended) {
            let directory = run.path().display();
            bail!(
                "job {} of this run, submitted {}, is still {}\n  wait for it ('bam status {directory}'), or stop it at a \
                 checkpoint ('bam cancel {directory}')",
                job.id,
                submission.submitted,
                open.state
            );
        }
    }
    Ok(run_lock::check_free(run)?)
}

/// What to do about a record that cannot be read.
fn unreadable(run: &RunDir) -> String {
    format!("{}; if no job of this run is there any more (squeue), remove the file", run.jobs().display())
}

/// Writes scripts and recipe, and submits them, while nobody else does.
fn submit(run: &RunDir, recipe: &Recipe, scripts: &[(ChainJob, String)], here: &Path) -> anyhow::Result<u8> {
    // Slurm does not make the directory of a job's output; without it, the job ends without a word.
    let output = run.job_output("");
    for directory in [run.slurm().as_path()].into_iter().chain(output.parent()) {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let lock = run.submit_lock();
    let file = files::open_to_lock(&lock).with_context(|| lock.display().to_string())?;
    file.try_lock().with_context(|| format!("{}: another 'bam submit' of this run is under way", lock.display()))?;
    // Somebody may have been faster.
    check_nobody_works(run)?;
    // The jobs run what was checked, whatever becomes of the recipe while they wait.
    let yaml = serde_norway::to_string(recipe).context("cannot write the recipe as YAML")?;
    let yaml = format!("# The recipe as it was submitted, with all defaults and overrides, written by bam.\n{yaml}");
    let script_files = scripts.iter().map(|(job, script)| (run.job_script(&job.name), script.as_bytes()));
    for (path, content) in script_files.chain([(run.job_recipe(), yaml.as_bytes())]) {
        files::write_atomically(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if run.cancelled().exists() {
        fs::remove_file(run.cancelled()).with_context(|| run.cancelled().display().to_string())?;
    }
    let mut submission = Submission {
        submitted: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        directory: here.display().to_string(),
        command: env::args().map(|word| quoted(&word)).collect::<Vec<_>>().join(" "),
        cluster: None,
        jobs: vec![],
    };
    for (job, _) in scripts {
        if let Err(error) = submit_one(run, job, &mut submission) {
            take_back(run, &submission);
            return Err(error);
        }
    }
    super::print(&said(run, &submission))?;
    Ok(exit_code::DONE)
}

/// Submits one job after those before it, and notes it at once.
fn submit_one(run: &RunDir, job: &ChainJob, submission: &mut Submission) -> anyhow::Result<()> {
    let number = |name: &str| submission.jobs.iter().find(|job| job.name == name).map(|job| job.id.to_string());
    let after = after(job, number);
    let submitted = Slurm.submit(&run.job_script(&job.name), after.as_ref())?;
    let element = |element: &Element| SubmittedElement { index: element.index, does: element.does() };
    let elements = if job.is_array { job.elements.iter().map(element).collect() } else { vec![] };
    submission.cluster = submitted.cluster;
    submission.jobs.push(SubmittedJob { name: job.name.clone(), id: submitted.job, elements });
    submission.write(run).with_context(|| format!("cannot write {}", run.jobs().display()))
}

/// A part of a chain is of no use: what was submitted of it is cancelled again.
fn take_back(run: &RunDir, submission: &Submission) {
    for job in submission.jobs.iter().rev() {
        if let Err(error) = Slurm.cancel(submission, job) {
            super::tell(&format!("warning: job {} was submitted and could not be cancelled: {error}", job.id));
            return;
        }
    }
    // Left behind, it says that the jobs have ended.
    let _ = fs::remove_file(run.jobs());
}

/// What a person wants to know now.
fn said(run: &RunDir, submission: &Submission) -> String {
    let directory = quoted(&run.path().display().to_string());
    let more = format!("  how far it is: bam status {directory}\n  to stop it: bam cancel {directory}\n");
    let output = |job: &SubmittedJob| -> PathBuf {
        run.job_output(&if job.elements.is_empty() { job.id.to_string() } else { format!("{}_*", job.id) })
    };
    if let [job] = &submission.jobs[..] {
        let script = run.job_script(&job.name);
        return format!(
            "job {} submitted\n  script: {}\n  output: {}\n{more}",
            job.id,
            script.display(),
            output(job).display()
        );
    }
    let width = submission.jobs.iter().map(|job| job.name.len()).max().unwrap_or_default();
    let line = |job: &SubmittedJob| {
        let array = match job.elements.len() {
            0 => String::new(),
            n => format!("  array of {n}"),
        };
        format!("  {}  {:width$}{array}", job.id, job.name).trim_end().to_owned() + "\n"
    };
    let lines: String = submission.jobs.iter().map(line).collect();
    format!(
        "{} jobs submitted, each after those before it\n{lines}  scripts: {}\n  output: {}\n{more}",
        submission.jobs.len(),
        run.slurm().display(),
        run.job_output("JOB").display()
    )
}
