//! `bam init`: a few questions, and then a commented recipe that `bam plan` takes.

use std::env;
use std::fmt::Display;
use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, anyhow};
use bam_cluster::config::{self, ConfigError, Mode};
use bam_cluster::encoder::{Encoder, EncoderConfig};
use bam_cluster::exit_code;
use bam_cluster::hub_cache::{HubCache, is_model_name};
use bam_cluster::task::GLUE_NAMES;

use crate::cli::{InitArguments, RecipeArguments};
use crate::failure;
use crate::project::Project;
use crate::recipe_draft::{Draft, OwnDraft};
use crate::shell::quoted;

const ENCODER: &str = "bert-base-uncased";
const MAX_LENGTH: usize = 128;
/// GLUE's tasks that BERT and BAM are trained on; WNLI is not.
const TASKS: &str = "cola,sst2,mrpc,stsb,qqp,mnli,qnli,rte";

/// Asks, writes the recipe, and says what is still lacking.
pub fn run(arguments: &InitArguments) -> anyhow::Result<u8> {
    let path = &arguments.recipe;
    if path.exists() {
        return Err(wrong("RECIPE", format!("{} is there already; name another file", path.display())));
    }
    let questions = Questions { are_asked: !arguments.yes && io::stdin().is_terminal() };
    let draft = draft(arguments, &questions)?;
    let file = quoted(&path.display().to_string());
    write(path, &draft.render(&file))?;
    super::print(&format!("{file} is written. Next:\n{}", next_steps(path, &file, &draft)))?;
    Ok(exit_code::DONE)
}

fn draft(arguments: &InitArguments, questions: &Questions) -> anyhow::Result<Draft> {
    let path = &arguments.recipe;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let name = arguments.name.clone().unwrap_or(stem);
    let encoder =
        questions.text("encoder: a directory, or a name on Hugging Face's hub", &arguments.encoder, ENCODER)?;
    let own = match &arguments.own[..] {
        [] => {
            let files = questions.text("tasks of your own: their .tsv files, separated by commas", &None, "")?;
            list(&files).into_iter().map(PathBuf::from).collect()
        }
        files => files.to_vec(),
    };
    let asked = (!arguments.task.is_empty()).then(|| arguments.task.join(","));
    let usual = if own.is_empty() { TASKS } else { "" };
    let tasks = list(&questions.text("GLUE tasks, separated by commas", &asked, usual)?);
    if let Some(unknown) = tasks.iter().find(|task| !GLUE_NAMES.contains(&task.as_str())) {
        return Err(wrong("--task", format!("GLUE has no task '{unknown}'; there are {}", GLUE_NAMES.join(", "))));
    }
    let glue = arguments.glue.as_ref().map(|dir| dir.display().to_string());
    let glue =
        if tasks.is_empty() { String::new() } else { questions.text("directory of GLUE's folders", &glue, "glue")? };
    let mode: String = questions.text(
        "mode: single, multi, single-to-single, multi-to-multi, single-to-multi",
        &arguments.mode,
        "single-to-multi",
    )?;
    let mode: Mode = serde_norway::from_str(&mode).map_err(|e| wrong("--mode", e.to_string()))?;
    let processes = questions.ask("processes", arguments.processes, 2)?;
    let has_slurm = is_on_path("sbatch");
    let slurm = |question: &str, said: &Option<String>| {
        let answer = if has_slurm { questions.text(question, said, "")? } else { said.clone().unwrap_or_default() };
        anyhow::Ok(Some(answer).filter(|answer| !answer.is_empty()))
    };
    let partition = slurm("Slurm's partition (nothing: the site's default)", &arguments.partition)?;
    let time = slurm("time of one job, such as 12:00:00 (nothing: the site's default)", &arguments.time)?;
    let max_length = shape_of(&encoder).map_or(MAX_LENGTH, |shape| shape.max_position_embeddings.min(MAX_LENGTH));
    Ok(Draft {
        name,
        mode,
        encoder: if Path::new(&encoder).exists() { from_recipe(path, &encoder)? } else { encoder },
        max_length,
        glue: from_recipe(path, &glue)?,
        tasks,
        own: own.iter().map(|file| own_task(path, file)).collect::<anyhow::Result<_>>()?,
        processes,
        partition,
        time,
    })
}

fn own_task(recipe: &Path, file: &Path) -> anyhow::Result<OwnDraft> {
    let refuse = |problem: String| wrong("--own", format!("{}: {problem}", file.display()));
    let content = fs::read_to_string(file).map_err(|e| refuse(e.to_string()))?;
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let name: String =
        stem.trim_end_matches("-train").chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
    let train = from_recipe(recipe, &file.display().to_string())?;
    OwnDraft::guess(&name.to_lowercase(), &train, &content).map_err(refuse)
}

/// A path as it has to stand in the recipe, where paths are relative to the recipe's directory.
fn from_recipe(recipe: &Path, path: &str) -> anyhow::Result<String> {
    let is_here = recipe.parent().is_none_or(|parent| parent.as_os_str().is_empty());
    if is_here || path.is_empty() {
        return Ok(path.to_owned());
    }
    Ok(std::path::absolute(path).with_context(|| path.to_owned())?.display().to_string())
}

/// The encoder's shape, if it is on this machine.
fn shape_of(encoder: &str) -> Option<EncoderConfig> {
    let directory = Path::new(encoder);
    let found = if directory.exists() || !is_model_name(encoder) {
        directory.to_owned()
    } else {
        HubCache::of_this_user()?.find(encoder)?
    };
    Some(Encoder::inspect(&found, None, 8).ok()?.config)
}

/// Writes the recipe where there is none, if it is one that bam takes.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let about = || path.display().to_string();
    let mut file = tempfile::Builder::new().suffix(".yaml").tempfile_in(parent).with_context(about)?;
    file.write_all(text.as_bytes()).with_context(about)?;
    // What was answered may make no sense; the key says which answer.
    config::load(file.path(), &[]).map_err(|error| match error {
        error @ ConfigError::Invalid { .. } => anyhow!(error),
        error => anyhow!(error).context("the answers make no recipe"),
    })?;
    let written = file.persist_noclobber(path).with_context(about)?;
    use std::os::unix::fs::PermissionsExt;
    written.set_permissions(fs::Permissions::from_mode(0o644)).with_context(about)
}

/// What to type next: `bam plan`, if everything is here, else what brings it.
fn next_steps(path: &Path, file: &str, draft: &Draft) -> String {
    let arguments = RecipeArguments { config: path.to_owned(), processes: None, hosts: vec![], overrides: vec![] };
    let mut steps = vec![];
    let is_lacking = Project::load(&arguments).err();
    if shape_of(&draft.encoder).is_none() && is_model_name(&draft.encoder) {
        steps.push(format!("bam fetch model {}", quoted(&draft.encoder)));
    }
    if !draft.tasks.is_empty() && !Path::new(&draft.glue).exists() {
        steps.push(format!("bam fetch glue --dir {} --task {}", quoted(&draft.glue), draft.tasks.join(",")));
    }
    let mut text = String::new();
    if let Some(error) = is_lacking.filter(|_| steps.is_empty()) {
        text = format!("  something is wrong still: {}\n", failure::text(&error));
    }
    steps.push(format!("bam plan {file}"));
    let is_slurm = draft.partition.is_some() || draft.time.is_some();
    steps.push(format!("bam {} {file}", if is_slurm { "submit" } else { "run" }));
    text + &steps.iter().map(|step| format!("  {step}\n")).collect::<String>()
}

/// What a person is asked, who may just press Enter.
struct Questions {
    are_asked: bool,
}

impl Questions {
    fn text(&self, question: &str, said: &Option<String>, usual: &str) -> anyhow::Result<String> {
        self.ask(question, said.clone(), usual.to_owned())
    }

    /// What the command line says, or else what is answered, or else what is usual.
    fn ask<T: FromStr<Err: Display> + Display>(&self, question: &str, said: Option<T>, usual: T) -> anyhow::Result<T> {
        if let Some(said) = said {
            return Ok(said);
        }
        if !self.are_asked {
            return Ok(usual);
        }
        let hint = usual.to_string();
        let hint = if hint.is_empty() { hint } else { format!(" [{hint}]") };
        loop {
            match answer(&format!("{question}{hint}: "))?.as_str() {
                "" => return Ok(usual),
                answer => match answer.parse() {
                    Ok(value) => return Ok(value),
                    Err(e) => super::tell(&format!("'{answer}': {e}")),
                },
            }
        }
    }
}

/// A line that a person types.
fn answer(prompt: &str) -> anyhow::Result<String> {
    let mut terminal = io::stderr();
    write!(terminal, "{prompt}").and_then(|()| terminal.flush()).context("cannot ask")?;
    let mut line = String::new();
    if io::stdin().lock().read_line(&mut line).context("cannot read the answer")? == 0 {
        return Err(anyhow!("the questions were not answered to their end; nothing is written"));
    }
    Ok(line.trim().to_owned())
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(str::to_owned).collect()
}

fn is_on_path(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|directory| directory.join(program).is_file()))
}

fn wrong(key: &str, problem: String) -> anyhow::Error {
    ConfigError::Invalid { key: key.to_owned(), problem }.into()
}
