//! `bam completions` and `bam man`: the command line's own description, for shells and for `man`.

use std::fs;

use anyhow::Context;
use bam_cluster::exit_code;
use clap::CommandFactory;

use crate::cli::{Cli, CompletionsArguments, ManArguments};

/// Prints a shell's completions.
pub fn completions(arguments: &CompletionsArguments) -> anyhow::Result<u8> {
    let mut script = vec![];
    clap_complete::generate(arguments.shell, &mut Cli::command(), "bam", &mut script);
    super::print(&String::from_utf8(script).context("the completions are no text")?)?;
    Ok(exit_code::DONE)
}

/// Writes the manual's pages: `bam.1`, `bam-run.1` and so on.
pub fn pages(arguments: &ManArguments) -> anyhow::Result<u8> {
    let directory = &arguments.directory;
    let written = fs::create_dir_all(directory).and_then(|()| clap_mangen::generate_to(Cli::command(), directory));
    written.with_context(|| directory.display().to_string())?;
    Ok(exit_code::DONE)
}

#[cfg(test)]
mod tests {
    use clap_complete::Shell;

    use super::*;

    #[test]
    fn every_command_has_a_page_and_is_completed() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("man1");
        pages(&ManArguments { directory: directory.clone() }).unwrap();
        let mut script = vec![];
        clap_complete::generate(Shell::Bash, &mut Cli::command(), "bam", &mut script);
        let script = String::from_utf8(script).unwrap();
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            let page = fs::read_to_string(directory.join(format!("bam-{name}.1"))).unwrap();
            assert!(page.contains(".SH SYNOPSIS"), "{name}: {page}");
            assert!(
                script.contains(&format!("bam__subcmd__{name}")) || script.contains(&format!("bam__{name}")),
                "{name}"
            );
        }
        let page = fs::read_to_string(directory.join("bam.1")).unwrap();
        assert!(page.contains("Born\\-Again"), "{page}");
    }
}
