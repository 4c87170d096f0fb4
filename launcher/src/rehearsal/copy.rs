//! Run directories of a rehearsal: made from another one without copying what is large, and damaged.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use bam_cluster::plan::Plan;
use bam_cluster::run_dir::RunDir;

/// Files from this size on are linked. bam replaces files and never writes into them; only small ones are appended to.
const LARGE: u64 = 1 << 16;

/// Makes `to` what `from` was before `stage` and everything that comes after it.
///
/// # Errors
/// A file cannot be copied.
pub fn before_stage(plan: &Plan, from: &RunDir, to: &RunDir, stage: &str) -> anyhow::Result<()> {
    let later = plan.stages.iter().skip_while(|s| s.name != stage).map(|s| from.stage(&s.name));
    let mut left_out: Vec<PathBuf> = later.collect();
    left_out.extend([from.report(), from.lock()]);
    copy(from.path(), to.path(), &left_out).with_context(|| format!("cannot copy {}", from.path().display()))
}

fn copy(from: &Path, to: &Path, left_out: &[PathBuf]) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let source = entry?.path();
        let Some(name) = source.file_name().filter(|_| !left_out.contains(&source)) else { continue };
        let target = to.join(name);
        let about = fs::metadata(&source)?;
        if about.is_dir() {
            copy(&source, &target, left_out)?;
        } else if about.len() < LARGE
            || name.to_string_lossy().ends_with(".jsonl")
            || fs::hard_link(&source, &target).is_err()
        {
            fs::copy(&source, &target)?;
        }
    }
    Ok(())
}

/// The newest checkpoint in a stage's directory of checkpoints.
///
/// # Errors
/// There is none.
pub fn newest_checkpoint(checkpoints: &Path) -> anyhow::Result<PathBuf> {
    let path = checkpoints.join("LATEST");
    let latest = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(checkpoints.join(latest.trim()))
}

/// Cuts the newest checkpoint's largest file in half, as a power cut on a careless file system would.
///
/// # Errors
/// There is no checkpoint, or the file system refuses.
pub fn damage_newest_checkpoint(checkpoints: &Path) -> anyhow::Result<()> {
    let path = newest_checkpoint(checkpoints)?.join("model.safetensors");
    let cut = || {
        let file = File::options().write(true).open(&path)?;
        file.set_len(file.metadata()?.len() / 2)
    };
    cut().with_context(|| path.display().to_string())
}
