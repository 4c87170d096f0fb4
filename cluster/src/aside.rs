//! Names under which files and directories are written before they get their own, and the removal of what a killed process
//! has left under such names.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// How the names of files end that are being written.
const TEMPORARY: &str = ".tmp";
/// How the ends of directories' names begin that are being filled; the number of the start follows.
const DRAFT: &str = "draft-";

/// A file beside `path` that nobody else writes, on whatever host or thread.
pub fn file(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    // Processes of different hosts may have the same number.
    let host = nix::unistd::gethostname().unwrap_or_default();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("file");
    path.with_file_name(format!(".{name}.{}.{}.{count}{TEMPORARY}", host.to_string_lossy(), std::process::id()))
}

/// The directory beside `path` that start number `start` fills.
pub fn directory(path: &Path, start: u64) -> PathBuf {
    path.with_extension(format!("{DRAFT}{start}"))
}

/// Removes what earlier starts have left in `parent` under such names. Only for whoever is about to begin a start of what
/// writes there: a process of an earlier one that still lives fails at what it was writing. What cannot be removed stays; it
/// is in nobody's way.
pub fn sweep(parent: &Path) {
    for path in fs::read_dir(parent).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())) {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let start = path.extension().and_then(|end| end.to_str()?.strip_prefix(DRAFT)?.parse::<u64>().ok());
        if start.is_some() {
            let _ = fs::remove_dir_all(&path);
        } else if name.starts_with('.') && name.ends_with(TEMPORARY) {
            let _ = fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_written_aside_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let (kept, aside) = (at("cola-train.h5"), file(&at("cola-train.h5")));
        assert_ne!(aside, file(&at("cola-train.h5")));
        [&kept, &aside, &at(".hidden"), &at("x.tmp")].iter().for_each(|path| fs::write(path, "x").unwrap());
        let (model, draft) = (at("model"), directory(&at("model"), 7));
        [&model, &draft, &at("model.draft-x")].iter().for_each(|path| fs::create_dir(path).unwrap());
        fs::write(draft.join("model.safetensors"), "half").unwrap();
        sweep(dir.path());
        assert!(!aside.exists() && !draft.exists());
        let left = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 5);
        sweep(&at("nowhere"));
    }
}
