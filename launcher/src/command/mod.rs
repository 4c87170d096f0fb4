//! One file a subcommand; each returns the exit code.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

pub mod cancel;
pub mod doctor;
pub mod export;
pub mod fetch;
pub mod init;
pub mod manual;
pub mod plan;
pub mod rehearse;
pub mod report;
pub mod run;
pub mod schema;
pub mod status;
pub mod submission;
pub mod submit;
pub mod watch;

/// The directory that was asked for, or `runs/NAME`; as it is called from everywhere.
fn directory_or_default(asked: Option<&Path>, name: &str) -> anyhow::Result<PathBuf> {
    let directory = asked.map_or_else(|| Path::new("runs").join(name), Path::to_owned);
    std::path::absolute(&directory).with_context(|| directory.display().to_string())
}

/// Says something to whoever is there to read it.
fn tell(line: &str) {
    // Nobody may be; that must not end anything.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Prints to stdout. A reader that has seen enough (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e).context("cannot write to stdout"),
        _ => Ok(()),
    }
}
