//! Finds out what can start ranks in a job of Slurm, by trying.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use bam_cluster::config::ClusterSection;
use nix::sys::signal::Signal;

use super::{Launch, Process, ProcessEvent, mpirun};

/// A node that takes longer to start a program is of no use, either.
const TRY_FOR: Duration = Duration::from_secs(30);

/// How many of a failed command's last lines are quoted.
const QUOTED: usize = 3;

/// Starts something on each of the job's nodes through `mpirun`.
///
/// # Errors
/// It cannot; the text says what was tried, and what happened.
pub(super) fn mpirun_reaches(mpirun: &Path, cluster: &ClusterSection, nodes: u32) -> Result<(), String> {
    let lines = output(&mpirun::trial(mpirun, cluster, nodes))?;
    let names: BTreeSet<&str> = lines.iter().map(String::as_str).collect();
    if names.len() == nodes as usize {
        return Ok(());
    }
    let names: Vec<&str> = names.into_iter().take(QUOTED).collect();
    Err(format!(
        "{} started nothing on all {nodes} nodes of the job; it printed {}",
        mpirun.display(),
        names.join(", ")
    ))
}

/// The value of `srun --mpi` for PMIx: the plain name, which stands for the newest version, or else the newest version.
///
/// # Errors
/// There is none; the text says what was tried, and what happened.
pub(super) fn pmix_of(srun: &Path) -> Result<String, String> {
    let launch = Launch {
        program: srun.to_owned(),
        arguments: vec!["--mpi=list".into()],
        environment: vec![],
        without: &[],
        kill: Signal::SIGKILL,
    };
    let lines = output(&launch)?;
    choose_pmix(&lines).ok_or_else(|| format!("{} knows no pmix: {}", launch.command_line(), lines.join(", ")))
}

fn choose_pmix(lines: &[String]) -> Option<String> {
    // `specific pmix plugin versions available: pmix_v3,pmix_v4`
    let listed = lines.iter().map(|line| line.split_once("available:").map_or(line.as_str(), |(_, list)| list));
    let words = listed.flat_map(|line| line.split(|c: char| c.is_whitespace() || c == ','));
    let kinds: Vec<&str> = words.filter(|word| *word == "pmix" || word.starts_with("pmix_v")).collect();
    let version = |kind: &str| kind.strip_prefix("pmix_v").and_then(|n| n.parse::<u32>().ok());
    let plain = kinds.iter().find(|kind| **kind == "pmix");
    plain.or_else(|| kinds.iter().max_by_key(|kind| version(kind))).map(|kind| (*kind).to_owned())
}

/// What a command prints, on stdout and stderr, if it ends well and in time.
///
/// # Errors
/// It does not; the text says what happened, with its last lines.
pub fn output(launch: &Launch) -> Result<Vec<String>, String> {
    let (sender, events) = mpsc::channel();
    let command = launch.command_line();
    let process = Process::spawn(launch, move |event| drop(sender.send(event)));
    // Killed when it is dropped.
    let _process = process.map_err(|e| format!("{command} cannot be started: {e}"))?;
    let since = Instant::now();
    let mut lines: Vec<String> = vec![];
    loop {
        match events.recv_timeout(TRY_FOR.saturating_sub(since.elapsed())) {
            Ok(ProcessEvent::Line(line)) if line.trim().is_empty() => {}
            Ok(ProcessEvent::Line(line)) => lines.push(line.trim().to_owned()),
            Ok(ProcessEvent::Ended(status)) if status.success() => return Ok(lines),
            Ok(ProcessEvent::Ended(status)) => {
                let said = lines[lines.len().saturating_sub(QUOTED)..].join("; ");
                return Err(format!("{command} failed ({status}): {said}"));
            }
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!("{command} did not end within {} s", TRY_FOR.as_secs()));
            }
            Err(RecvTimeoutError::Disconnected) => return Err(format!("{command} vanished")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn pmix(text: &str) -> Option<String> {
        choose_pmix(&text.lines().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn pmix_is_found_in_the_lists_of_old_and_new_slurm() {
        // 22.05 and newer.
        let new = "MPI plugin types are...\n\tpmix\n\tnone\n\tpmi2\nspecific pmix plugin versions available: pmix_v4";
        assert_eq!(pmix(new).as_deref(), Some("pmix"));
        // Before, with srun's name before each line.
        let old = "srun: MPI types are...\nsrun: none\nsrun: pmix_v3\nsrun: pmix_v10\nsrun: pmi2";
        assert_eq!(pmix(old).as_deref(), Some("pmix_v10"));
        assert_eq!(pmix("specific pmix plugin versions available: pmix_v3,pmix_v4").as_deref(), Some("pmix_v4"));
        assert_eq!(pmix("MPI plugin types are...\n\tnone\n\tpmi2\n\tcray_shasta"), None);
    }

    fn script(body: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        // A process that another test starts while the file is open here for writing has it open as well for a moment, in
        // which it cannot be run ("Text file busy"): somebody else writes it.
        let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod +x \"$0\"";
        let written = Command::new("sh").args(["-c", write]).arg(&path).arg(body).status().unwrap();
        assert!(written.success());
        (dir, path)
    }

    #[test]
    fn an_mpirun_has_to_reach_all_nodes() {
        let cluster = ClusterSection::default();
        let (_dir, both) = script("echo n1; echo n2");
        assert_eq!(mpirun_reaches(&both, &cluster, 2), Ok(()));
        // One without Slurm's support starts everything on its own host.
        let (_dir, alone) = script("echo n1; echo n1");
        let told = mpirun_reaches(&alone, &cluster, 2).unwrap_err();
        assert!(told.contains("all 2 nodes") && told.ends_with("it printed n1"), "{told}");
        let (_dir, broken) = script("echo no such plugin >&2; exit 3");
        let told = mpirun_reaches(&broken, &cluster, 2).unwrap_err();
        assert!(told.contains("(exit status: 3): no such plugin"), "{told}");
    }

    #[test]
    fn an_srun_without_pmix_is_quoted() {
        let (_dir, srun) = script("echo MPI plugin types are... none");
        let told = pmix_of(&srun).unwrap_err();
        assert!(told.contains("--mpi=list knows no pmix: MPI plugin types are... none"), "{told}");
    }
}
