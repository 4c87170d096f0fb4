//! The manifest of a directory: which files it holds, how long they are and their sums. A reader trusts nothing else.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{digest, files};

const FORMAT_VERSION: u32 = 1;

/// Content of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format_version: u32,
    files: Vec<ManifestEntry>,
}

/// One file that the manifest vouches for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestEntry {
    /// File name within the directory.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// SHA-256.
    pub sha256: String,
}

impl Manifest {
    const NAME: &str = "manifest.json";

    /// Syncs the named files of `directory` and writes a manifest of them.
    ///
    /// # Errors
    /// A file is missing or cannot be synced.
    pub fn write(directory: &Path, names: &[&str]) -> io::Result<Manifest> {
        let entry = |name: &&str| {
            let path = directory.join(name);
            let file = File::open(&path)?;
            file.sync_all()?;
            Ok(ManifestEntry {
                name: (*name).to_owned(),
                bytes: file.metadata()?.len(),
                sha256: digest::of_file(&path)?,
            })
        };
        let entries: io::Result<Vec<_>> = names.iter().map(entry).collect();
        let manifest = Manifest { format_version: FORMAT_VERSION, files: entries? };
        files::write_json(&directory.join(Self::NAME), &manifest)?;
        Ok(manifest)
    }

    /// Reads a directory's manifest and compares every file with it. The error says what is wrong.
    pub fn verify(directory: &Path) -> Result<Manifest, String> {
        let manifest: Manifest = match files::read_json(&directory.join(Self::NAME)) {
            Ok(Some(manifest)) => manifest,
            Ok(None) => return Err("has no manifest".to_owned()),
            Err(e) => return Err(format!("its manifest cannot be read: {e}")),
        };
        if manifest.format_version != FORMAT_VERSION {
            return Err(format!("format version {} is not known here", manifest.format_version));
        }
        for entry in &manifest.files {
            if Path::new(&entry.name).file_name() != Some(entry.name.as_ref()) {
                return Err("its manifest names a file outside its own directory".to_owned());
            }
            let path = directory.join(&entry.name);
            let bytes = path.metadata().map_err(|e| format!("{}: {e}", entry.name))?.len();
            if bytes != entry.bytes {
                return Err(format!("{} has {bytes} bytes instead of {}", entry.name, entry.bytes));
            }
            if digest::of_file(&path).map_err(|e| format!("{}: {e}", entry.name))? != entry.sha256 {
                return Err(format!("{} is damaged: its SHA-256 is not that of the manifest", entry.name));
            }
        }
        manifest.check_nothing_else_is_in(directory)?;
        Ok(manifest)
    }

    /// Refuses a file that nobody vouches for. Hidden ones are those of file systems and of unfinished writes.
    fn check_nothing_else_is_in(&self, directory: &Path) -> Result<(), String> {
        let entries = fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        for entry in entries.map_err(|e| e.to_string())? {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_known = name == Self::NAME || name.starts_with('.') || self.files.iter().any(|f| f.name == name);
            if !is_known {
                return Err(format!("{name} is not named by its manifest"));
            }
        }
        Ok(())
    }
}
