//! What files a directory holds, by their sums: to tell whether anything was touched.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// All files below a directory with their SHA-256; links and directories by what they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<PathBuf, String>);

impl Snapshot {
    /// Looks at everything below `directory`.
    pub fn of(directory: &Path) -> Snapshot {
        let mut files = BTreeMap::new();
        if directory.exists() {
            collect(directory, directory, &mut files);
        }
        Snapshot(files)
    }

    /// Leaves out what is at or below one of these paths.
    #[must_use]
    pub fn without(mut self, paths: &[&str]) -> Snapshot {
        self.0.retain(|path, _| !paths.iter().any(|p| path.starts_with(p)));
        self
    }

    /// Keeps what is at or below one of these paths.
    #[must_use]
    pub fn only(mut self, paths: &[&str]) -> Snapshot {
        self.0.retain(|path, _| paths.iter().any(|p| path.starts_with(p)));
        self
    }

    /// Panics with the names of what differs.
    pub fn assert_same(&self, later: &Snapshot) {
        let names: Vec<&PathBuf> =
            self.0.keys().chain(later.0.keys()).filter(|p| self.0.get(*p) != later.0.get(*p)).collect();
        assert!(names.is_empty(), "these were changed, made or removed: {names:?}");
    }

    /// Panics if something that was there has changed or vanished; new files are no matter.
    pub fn assert_kept(&self, later: &Snapshot) {
        let names: Vec<&PathBuf> =
            self.0.iter().filter(|(p, sum)| later.0.get(*p) != Some(sum)).map(|(p, _)| p).collect();
        assert!(names.is_empty(), "these were changed or removed: {names:?}");
    }
}

fn collect(root: &Path, directory: &Path, files: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let path = entry.path();
        let name = path.strip_prefix(root).unwrap().to_owned();
        if entry.file_type().unwrap().is_dir() {
            files.insert(name, "directory".to_owned());
            collect(root, &path, files);
        } else {
            files.insert(name, sha256(&path));
        }
    }
}

/// SHA-256 of a file, as hexadecimal digits.
///
/// # Panics
/// It cannot be read.
pub fn sha256(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
