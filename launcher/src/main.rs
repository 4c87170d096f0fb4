//! The program `bam`: plans a run, starts its workers through MPI, watches them and reports. No libtorch, no MPI.

mod answers;
mod backend;
mod choice;
mod cli;
mod command;
mod command_log;
mod conduct;
mod descriptors;
mod doctor;
mod ending;
mod failure;
mod fetch;
mod forecast;
mod history;
mod model_card;
mod numbers;
mod progress;
mod project;
mod recipe_draft;
mod recipe_reference;
mod rehearsal;
mod report;
mod run_claim;
mod run_lock;
mod shell;
mod slurm;
mod stage_inputs;
mod supervise;
mod tensorboard;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};

fn main() -> ExitCode {
    match run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // A closed terminal must not turn an error into a panic.
            let _ = writeln!(io::stderr(), "error: {}", failure::text(&error));
            ExitCode::from(failure::exit_code(&error))
        }
    }
}

fn run() -> anyhow::Result<u8> {
    match Cli::parse().command {
        Command::Run(arguments) => command::run::run(&arguments),
        Command::Plan(arguments) => command::plan::run(&arguments),
        Command::Report(arguments) => command::report::run(&arguments),
        Command::Predict(arguments) => command::run::predict(arguments),
        Command::Submission(arguments) => command::submission::run(&arguments),
        Command::Export(arguments) => command::export::run(&arguments),
        Command::Rehearse(arguments) => command::rehearse::run(&arguments),
        Command::Submit(arguments) => command::submit::run(&arguments),
        Command::Status(arguments) => command::status::run(&arguments),
        Command::Watch(arguments) => command::watch::run(&arguments),
        Command::Cancel(arguments) => command::cancel::run(&arguments),
        Command::Doctor(arguments) => command::doctor::run(&arguments),
        Command::Completions(arguments) => command::manual::completions(&arguments),
        Command::Man(arguments) => command::manual::pages(&arguments),
        Command::Init(arguments) => command::init::run(&arguments),
        Command::Fetch(arguments) => command::fetch::run(&arguments),
        Command::Schema(arguments) => command::schema::run(&arguments),
    }
}
