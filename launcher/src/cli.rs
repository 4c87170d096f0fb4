//! The command line: what a user may say, and the help that tells them.

use std::path::PathBuf;

use bam_cluster::fault::Fault;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::fetch::GLUE_URL;
use crate::supervise::Verbosity;

const EXAMPLES: &str = "\
Examples:
  bam plan configs/demo.yaml              what would run
  bam run configs/demo.yaml -n 2          run it as two processes
  bam run configs/demo.yaml -n 2          the same again: go on where it stopped
  bam run configs/demo.yaml -o seed=2 -o name=demo-2
  bam report runs/demo                    the results again
  bam report runs/a runs/b --tests        several runs in one table, with tests
  bam report runs/demo --format html      how they came about, as a page: runs/demo/report.html
  bam report runs/a runs/b --format latex rows for a paper (table, json, csv, latex, html)
  bam predict configs/glue-small.yaml && bam submission runs/glue-small
                                          answers to GLUE's test sets, as its server takes them
  bam export runs/demo                    the student as one model per task, for transformers
  bam rehearse configs/demo.yaml -n 2     kills, hangs, damage: does it survive here?
  bam submit configs/demo.yaml -n 2 -o slurm.time=8:00:00
                                          the same as batch jobs of Slurm (--dry-run shows the scripts)
  bam status runs/demo                    queued, running, done? how far?
  bam watch runs/demo                     the same, live, until the run ends
  bam doctor -n 2                         programs, ranks, machine, files, Slurm: will it work here?
  bam fetch glue && bam fetch model bert-base-uncased
                                          what a run of GLUE needs, on a machine with internet
  bam init                                a few questions, and a recipe with comments

Exit codes:
  0    done
  1    failed
  2    the command line or the recipe is wrong
  3    a data file or the encoder is missing or bad
  75   stopped at a checkpoint: run the same command to go on
  130  killed by a second Ctrl-C

Environment:
  BAM_MPIRUN  the mpirun to start the workers with, if not the one on PATH (see cluster.launcher)
  BAM_WORKER  the worker program, if not the bam-worker beside bam
  BAM_LOG     how much the workers log: error, warn, info (default), debug, trace
  HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN
              Hugging Face's hub, its cache here, a mirror, a token: as its own tools have them";

/// Trains BERT on several tasks at once by Born-Again Multi-task distillation, on any number of processes.
#[derive(Debug, Parser)]
#[command(name = "bam", version, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Do everything that a recipe asks for, continuing where an earlier run stopped
    Run(RunArguments),
    /// Show what would run and what it takes: stages, steps, schedules, memory, disk, time; here or on a cluster elsewhere
    Plan(PlanArguments),
    /// Show the results of a run again
    Report(ReportArguments),
    /// Ask the last models of a run about whole splits (train first what is not trained yet)
    Predict(PredictArguments),
    /// Pack a run's answers to GLUE's test sets as GLUE's server takes them
    Submission(SubmissionArguments),
    /// Take a model of several tasks apart into one for each, which Hugging Face's tools open
    Export(ExportArguments),
    /// Run a recipe, cut down, through every kind of trouble: does it end with the same weights on this machine?
    Rehearse(RehearseArguments),
    /// Do everything that a recipe asks for in batch jobs of Slurm, which go on by themselves when their time is up
    Submit(SubmitArguments),
    /// Say how far a run is, and what becomes of its batch jobs
    Status(StatusArguments),
    /// Look on while a run gets on, from any terminal that sees its directory, until it ends
    Watch(RunDirArguments),
    /// Stop a run's batch jobs at a checkpoint, and take those that wait out of the queue
    Cancel(RunDirArguments),
    /// Look at everything that a run needs on this machine, and say what to do about what is wrong
    Doctor(DoctorArguments),
    /// Print what a shell needs to complete bam's commands and options
    Completions(CompletionsArguments),
    /// Write manual pages, one for each command
    Man(ManArguments),
    /// Ask a few questions and write a recipe for this machine and your tasks
    Init(InitArguments),
    /// Fetch GLUE or an encoder, on a machine with internet
    Fetch(FetchArguments),
    /// Print the JSON Schema of recipes, for editors, or the list of all keys
    Schema(SchemaArguments),
}

/// A recipe and changes to it.
#[derive(Debug, Clone, Args)]
pub struct RecipeArguments {
    /// The recipe, a YAML file
    pub config: PathBuf,
    /// Number of processes (cluster.processes) [default: in a batch job, its number of tasks]
    #[arg(short = 'n', long = "processes", value_name = "N")]
    pub processes: Option<usize>,
    /// Hosts to start ranks on, for example n1:2,n2:2 (cluster.hosts)
    #[arg(long, value_name = "HOST[:RANKS]", value_delimiter = ',')]
    pub hosts: Vec<String>,
    /// Change one value of the recipe, for example train.multi.epochs=3; may be repeated
    #[arg(short = 'o', long = "override", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

impl RecipeArguments {
    /// All changes to the recipe, the later ones stronger.
    pub fn changes(&self) -> Vec<String> {
        let hosts: Vec<String> = self.hosts.iter().map(|host| format!("'{host}'")).collect();
        let hosts = (!hosts.is_empty()).then(|| format!("cluster.hosts=[{}]", hosts.join(", ")));
        let processes = self.processes.map(|n| format!("cluster.processes={n}"));
        self.overrides.iter().cloned().chain(hosts).chain(processes).collect()
    }
}

/// `bam completions`.
#[derive(Debug, Args)]
pub struct CompletionsArguments {
    /// The shell; for example: bam completions bash > ~/.local/share/bash-completion/completions/bam
    pub shell: Shell,
}

/// `bam man`.
#[derive(Debug, Args)]
pub struct ManArguments {
    /// The directory, for example ~/.local/share/man/man1
    pub directory: PathBuf,
}

/// `bam doctor`.
#[derive(Debug, Args)]
pub struct DoctorArguments {
    /// A recipe that is to run here: its processes, hosts and jobs are looked at
    pub config: Option<PathBuf>,
    /// Number of processes (cluster.processes) [default: the recipe's, the batch job's, or 2]
    #[arg(short = 'n', long = "processes", value_name = "N")]
    pub processes: Option<usize>,
    /// Hosts to start ranks on, for example n1:2,n2:2 (cluster.hosts)
    #[arg(long, value_name = "HOST[:RANKS]", value_delimiter = ',')]
    pub hosts: Vec<String>,
    /// Change one value of the recipe; may be repeated
    #[arg(short = 'o', long = "override", value_name = "KEY=VALUE", requires = "config")]
    pub overrides: Vec<String>,
    /// The directory that runs are to be written in
    #[arg(long, value_name = "DIR", default_value = "runs")]
    pub dir: PathBuf,
    /// Print JSON instead of lines for people
    #[arg(long)]
    pub json: bool,
}

/// `bam plan`.
#[derive(Debug, Args)]
pub struct PlanArguments {
    /// What to plan.
    #[command(flatten)]
    pub recipe: RecipeArguments,
    /// Plan for so many hosts, wherever they are
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub nodes: Option<usize>,
    /// Plan for so many GPUs in each host, with a process for each
    #[arg(long, value_name = "N", requires = "nodes", value_parser = at_least_one)]
    pub gpus_per_node: Option<usize>,
    /// Estimate time from so many training examples a second of one process [default: what steps of this run, or of another
    /// one beside it with the same encoder, have taken; or the recipe's slurm.samples_per_second]
    #[arg(long, value_name = "N", value_parser = positive, allow_negative_numbers = true)]
    pub samples_per_second: Option<f64>,
    /// Where the run is or will be [default: runs/NAME]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Print JSON instead of tables (docs/json.md)
    #[arg(long)]
    pub json: bool,
}

/// `bam run`.
#[derive(Debug, Args)]
pub struct RunArguments {
    /// What to run.
    #[command(flatten)]
    pub recipe: RecipeArguments,
    /// Where everything is written [default: runs/NAME]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Do these stages only, beside other starts of the same run that do others; what they are made from must be there.
    /// 'report' is the table
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    pub stages: Vec<String>,
    /// Let a rank fail once, for example student:kill:1:step-12 (as `bam rehearse` does)
    #[arg(long, value_name = "FAILURE", hide_short_help = true)]
    pub inject: Vec<Fault>,
    /// How much is said.
    #[command(flatten)]
    pub verbosity: VerbosityArguments,
}

/// How much is said while something runs.
#[derive(Debug, Clone, Copy, Args)]
pub struct VerbosityArguments {
    /// Say nothing but warnings, errors and results
    #[arg(short, long)]
    pub quiet: bool,
    /// Say also what goes into the logs of stages: commands, checkpoints
    #[arg(short, long, conflicts_with = "quiet")]
    pub verbose: bool,
}

impl VerbosityArguments {
    /// The level that they stand for.
    pub fn chosen(self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (false, true) => Verbosity::Verbose,
            (false, false) => Verbosity::Normal,
        }
    }
}

/// `bam submit`.
#[derive(Debug, Args)]
pub struct SubmitArguments {
    /// What to run.
    #[command(flatten)]
    pub recipe: RecipeArguments,
    /// Where everything is written; all nodes must see it [default: runs/NAME]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Do everything in one job instead of a chain of them
    #[arg(long)]
    pub one_job: bool,
    /// Print the batch scripts; submit and write nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `bam status`.
#[derive(Debug, Args)]
pub struct StatusArguments {
    /// The run's directory, for example runs/demo
    pub run_dir: PathBuf,
    /// Print JSON instead of lines for people (docs/json.md)
    #[arg(long)]
    pub json: bool,
}

/// `bam watch` and `bam cancel`.
#[derive(Debug, Args)]
pub struct RunDirArguments {
    /// The run's directory, for example runs/demo
    pub run_dir: PathBuf,
}

/// `bam rehearse`.
#[derive(Debug, Args)]
pub struct RehearseArguments {
    /// What to rehearse.
    #[command(flatten)]
    pub recipe: RecipeArguments,
    /// Where the runs are made; what does not survive is kept [default: runs/NAME-rehearsal]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Kill at every point of the commit of a checkpoint, not only at three of them
    #[arg(long)]
    pub every_point: bool,
}

/// `bam predict`.
#[derive(Debug, Args)]
pub struct PredictArguments {
    /// The recipe and where its run is.
    #[command(flatten)]
    pub run: RunArguments,
    /// Which splits: train, dev (with MNLI's mismatched one), test (with AX)
    #[arg(long, value_name = "SPLIT", value_delimiter = ',', default_value = "test", value_parser = ["train", "dev", "test"])]
    pub split: Vec<String>,
}

/// `bam submission`.
#[derive(Debug, Args)]
pub struct SubmissionArguments {
    /// The run's directory, for example runs/glue
    pub run_dir: PathBuf,
    /// The trial whose models answer
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub trial: u64,
    /// Leave out files for which there are no answers, and take answers to test sets with other rows than GLUE's
    #[arg(long)]
    pub partial: bool,
    /// Where the zip is written [default: submission.zip in the run's directory]
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,
}

/// `bam report`.
#[derive(Debug, Args)]
pub struct ReportArguments {
    /// The run's directory, for example runs/demo; of several runs: one table with a line for each kind of models
    #[arg(required = true, value_name = "RUN_DIR")]
    pub run_dirs: Vec<PathBuf>,
    /// Test every kind of models against Single and Multi
    #[arg(long)]
    pub tests: bool,
    /// Show a line for each kind of models, as the paper's tables do, and the paper's own numbers
    #[arg(long)]
    pub published: bool,
    /// What to make of it
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub format: ReportFormat,
    /// Short for --format json
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Where it is written [default: stdout; a page of one run: report.html in its directory]
    #[arg(long, value_name = "FILE")]
    pub to: Option<PathBuf>,
}

/// What `bam report` makes of results.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    /// A table for the terminal
    #[default]
    Table,
    /// Everything, for programs
    Json,
    /// A line for each run, kind of models, trial, task and metric
    Csv,
    /// The paper's table with booktabs; --tests marks what is more than chance
    Latex,
    /// A page with curves, speed, restarts and provenance, complete in itself; it has the tests, too
    Html,
}

/// A whole number above 0.
fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "must be a whole number, at least 1".to_owned())
}

/// A number above 0.
fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|n: &f64| *n > 0.0 && n.is_finite());
    number.ok_or_else(|| "must be a number above 0".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}

/// `bam export`.
#[derive(Debug, Args)]
pub struct ExportArguments {
    /// The run's directory, for example runs/demo
    pub run_dir: PathBuf,
    /// The stage that trained the model [default: the last one of the first trial that trained several tasks]
    #[arg(long, value_name = "STAGE")]
    pub stage: Option<String>,
    /// Where a directory for each task is written [default: export in the run's directory]
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
}

/// `bam fetch`.
#[derive(Debug, Args)]
pub struct FetchArguments {
    /// What to fetch.
    #[command(subcommand)]
    pub what: Fetched,
}

/// What can be fetched.
#[derive(Debug, Subcommand)]
pub enum Fetched {
    /// GLUE's tasks from their official files, checked and unpacked
    Glue(FetchedGlue),
    /// An encoder from Hugging Face's hub, into the hub's own cache
    Model(FetchedModel),
}

/// `bam fetch glue`.
#[derive(Debug, Args)]
pub struct FetchedGlue {
    /// Where GLUE's folders (CoLA, SST-2, …) are made
    #[arg(long, value_name = "DIR", default_value = "glue")]
    pub dir: PathBuf,
    /// Which tasks, for example cola,rte; ax is the diagnostic set [default: all]
    #[arg(long, value_name = "TASK", value_delimiter = ',')]
    pub task: Vec<String>,
    /// The server, or one with copies of its files
    #[arg(long, value_name = "URL", env = "BAM_GLUE_URL", default_value = GLUE_URL)]
    pub from: String,
}

/// `bam fetch model`.
#[derive(Debug, Args)]
pub struct FetchedModel {
    /// The model's name, for example bert-base-uncased, or ORGANISATION/NAME
    pub name: String,
    /// Copy it to a directory of its own, too, to be taken to another machine
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
}

/// `bam schema`.
#[derive(Debug, Args)]
pub struct SchemaArguments {
    /// Print a list of all keys with types, defaults and what they mean, as Markdown
    #[arg(long)]
    pub markdown: bool,
}

/// `bam init`.
#[derive(Debug, Args)]
pub struct InitArguments {
    /// The recipe to write
    #[arg(default_value = "recipe.yaml")]
    pub recipe: PathBuf,
    /// Ask nothing: what no option says has its default (so it is, too, where stdin is no terminal)
    #[arg(short, long)]
    pub yes: bool,
    /// The run's name [default: the file's]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The encoder to start from: a directory, or a name on Hugging Face's hub [default: bert-base-uncased]
    #[arg(long, value_name = "MODEL")]
    pub encoder: Option<String>,
    /// GLUE tasks, for example cola,rte [default: all but WNLI, unless there are tasks of one's own]
    #[arg(long, value_name = "TASK", value_delimiter = ',')]
    pub task: Vec<String>,
    /// The directory of GLUE's folders [default: glue]
    #[arg(long, value_name = "DIR")]
    pub glue: Option<PathBuf>,
    /// A task of one's own: its training file, of tab-separated columns; may be repeated
    #[arg(long, value_name = "FILE.tsv")]
    pub own: Vec<PathBuf>,
    /// Who teaches whom: single, multi, single-to-single, multi-to-multi, single-to-multi [default: single-to-multi]
    #[arg(long, value_name = "MODE")]
    pub mode: Option<String>,
    /// Number of processes [default: 2]
    #[arg(short = 'n', long = "processes", value_name = "N")]
    pub processes: Option<usize>,
    /// Slurm's partition, for bam submit
    #[arg(long, value_name = "NAME")]
    pub partition: Option<String>,
    /// How long a job of Slurm may take, for example 12:00:00
    #[arg(long, value_name = "TIME")]
    pub time: Option<String>,
}
