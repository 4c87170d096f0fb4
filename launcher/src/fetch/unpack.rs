//! The tables of one folder out of a zip that came from the internet, and nothing else of it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use zip::ZipArchive;

use super::{FetchError, io_error};

/// Files in an archive. GLUE's have some dozens.
const MOST_FILES: usize = 1_000;
/// Bytes of all tables of a folder. MNLI's are a tenth of it.
const LARGEST: u64 = 4 << 30;

/// Writes the files `FOLDER/NAME.tsv` of an archive to `target`, which is made.
///
/// # Errors
/// The archive is damaged, wants to write elsewhere, is far too large, or has no such file.
pub fn tables(archive: &Path, folder: &str, target: &Path) -> Result<(), FetchError> {
    let refuse = |problem: String| FetchError::Content { path: archive.to_owned(), problem };
    let damaged =
        |e: &dyn std::fmt::Display| refuse(format!("is no zip that can be read: {e}\n  remove it and try again"));
    let file = File::open(archive).map_err(io_error(archive))?;
    let mut zip = ZipArchive::new(file).map_err(|e| damaged(&e))?;
    if zip.len() > MOST_FILES {
        return Err(refuse(format!("has {} files; GLUE's archives have fewer than {MOST_FILES}", zip.len())));
    }
    fs::create_dir_all(target).map_err(io_error(target))?;
    let (mut left, mut found) = (LARGEST, 0);
    for i in 0..zip.len() {
        let entry = zip.by_index(i).map_err(|e| damaged(&e))?;
        let Some(path) = entry.enclosed_name() else {
            return Err(refuse(format!("has a file '{}', which would be written elsewhere", entry.name())));
        };
        let Some(name) = path.strip_prefix(folder).ok().filter(|_| entry.is_file()) else { continue };
        // Only what is right in the folder: below are the sources that GLUE was made from.
        if name.components().count() != 1 || name.extension().is_none_or(|e| e != "tsv") {
            continue;
        }
        let to = target.join(name);
        let mut written = File::create(&to).map_err(io_error(&to))?;
        // The size that the archive states is the archive's word alone.
        let n = io::copy(&mut entry.take(left + 1), &mut written).map_err(|e| damaged(&e))?;
        left = left
            .checked_sub(n)
            .ok_or_else(|| refuse(format!("holds more than {} GiB: it is not GLUE's", LARGEST >> 30)))?;
        written.sync_all().map_err(io_error(&to))?;
        found += 1;
    }
    if found == 0 {
        return Err(refuse(format!("has no files {folder}/….tsv: it is not GLUE's")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use zip::ZipWriter;
    use zip::write::FileOptions;

    use super::*;

    /// Unpacks an archive of these files; returns the names of what was written, or what was wrong.
    fn unpacked(files: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let place = tempfile::tempdir().unwrap();
        let mut zip = ZipWriter::new(Cursor::new(vec![]));
        for (name, text) in files {
            zip.start_file(*name, FileOptions::default()).unwrap();
            zip.write_all(text.as_bytes()).unwrap();
        }
        fs::write(place.path().join("a.zip"), zip.finish().unwrap().into_inner()).unwrap();
        let target = place.path().join("target");
        tables(&place.path().join("a.zip"), "CoLA", &target).map_err(|e| e.to_string())?;
        let here: Vec<_> = fs::read_dir(place.path()).unwrap().collect();
        assert_eq!(here.len(), 2, "{here:?}");
        let mut names: Vec<String> =
            fs::read_dir(target).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        Ok(names)
    }

    #[test]
    fn the_tables_of_the_folder_come_out_and_nothing_else() {
        let files = [
            ("CoLA/train.tsv", "a"),
            ("CoLA/dev.tsv", "b"),
            ("CoLA/original/raw/x.tsv", "c"),
            ("CoLA/README", "d"),
            ("RTE/train.tsv", "e"),
            ("__MACOSX/CoLA/._train.tsv", "f"),
        ];
        assert_eq!(unpacked(&files).unwrap(), ["dev.tsv", "train.tsv"]);
        assert!(unpacked(&files[4..]).unwrap_err().contains("has no files CoLA/"));
    }

    #[test]
    fn an_archive_that_would_write_elsewhere_is_refused() {
        for name in ["../x.tsv", "CoLA/../../x.tsv", "/tmp/x.tsv"] {
            let message = unpacked(&[("CoLA/train.tsv", "a"), (name, "b")]).unwrap_err();
            assert!(message.contains("would be written elsewhere"), "{name}: {message}");
        }
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let archive = place.path().join("a.zip");
        fs::write(&archive, "<html>Please log in</html>").unwrap();
        let message = tables(&archive, "CoLA", &place.path().join("t")).unwrap_err().to_string();
        assert!(message.contains("is no zip that can be read"), "{message}");
    }
}
