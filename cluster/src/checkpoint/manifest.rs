//! The manifest of a directory: which files it holds, how long they are and their sums. A reader trusts nothing else.

use std::fs::File;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{digest, files};

const FORMAT_VERSION: u32 = 1;

/// Content of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format_version: u32,
    files: Vec<ManifestEntry>,
}

/// One file that the manifest vouches for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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

    /// Reads a directory's manifest and compares every file with it; it has to vouch for all of `names`. The error says
    /// what is wrong.
    pub fn verify(directory: &Path, names: &[&str]) -> Result<Manifest, String> {
        let manifest: Manifest = match files::read_json(&directory.join(Self::NAME)) {
            Ok(Some(manifest)) => manifest,
            Ok(None) => return Err("has no manifest".to_owned()),
            Err(e) => return Err(format!("its manifest cannot be read: {e}")),
        };
        if manifest.format_version != FORMAT_VERSION {
            return Err(format!("format version {} is not known here", manifest.format_version));
        }
        if let Some(missing) = names.iter().find(|name| manifest.files.iter().all(|entry| entry.name != **name)) {
            return Err(format!("its manifest does not name {missing}"));
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
        Ok(manifest)
    }
}
