//! Writing files so that a reader never sees half of one: aside, synced, renamed, directory synced.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::aside;

/// Replaces `path` with `content`, all or nothing, and makes sure that it is on disk when this returns.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    let aside = aside::file(path);
    let written = (|| {
        let mut file = File::create(&aside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        sync_dir(parent)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&aside);
    }
    written
}

/// Opens a file that is there to be locked, and makes it if need be.
pub fn open_to_lock(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

/// [`write_atomically`] of a value's indented JSON.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    write_atomically(path, &text)
}

/// Reads a JSON file; `None` where there is no file. Content of another shape is an error of kind `InvalidData`.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Makes a directory's entries durable (renames and new names are only on disk after this).
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
