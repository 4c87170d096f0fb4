//! A directory of one test's own, with an encoder, tasks and recipes in it, where `bam` is run.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use tempfile::TempDir;

use crate::bam::Bam;
use crate::encoder::write_encoder;
use crate::programs::{program, write_program};
use crate::recipe::Recipe;
use crate::tasks::write_tasks;

const TEMPORARY: &str = "tmp";

/// The directory. It vanishes at the end, unless the test failed.
#[derive(Debug)]
pub struct Workplace {
    path: PathBuf,
    /// None for one that outlives its test.
    temporary: Option<TempDir>,
}

impl Default for Workplace {
    fn default() -> Self {
        Workplace::new()
    }
}

impl Workplace {
    /// A new one with `encoder/`, `glue/` and `own/` in it.
    pub fn new() -> Workplace {
        let temporary = tempfile::Builder::new().prefix("bam-test-").tempdir().unwrap();
        let path = fs::canonicalize(temporary.path()).unwrap();
        let place = Workplace { path, temporary: Some(temporary) };
        place.fill();
        place
    }

    /// One that several tests of a program share; it is made anew whenever the program starts.
    pub fn shared(name: &str) -> Workplace {
        let own = std::env::current_exe().unwrap();
        let path = own.ancestors().nth(3).unwrap_or(Path::new("/tmp")).join("tmp").join(format!("bam-test-{name}"));
        if path.exists() {
            fs::remove_dir_all(&path).unwrap();
        }
        fs::create_dir_all(&path).unwrap();
        let place = Workplace { path: fs::canonicalize(path).unwrap(), temporary: None };
        place.fill();
        place
    }

    fn fill(&self) {
        fs::create_dir(self.at(TEMPORARY)).unwrap();
        write_encoder(&self.at("encoder"));
        write_tasks(&self.at("glue"), &self.at("own"));
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path in it.
    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a recipe to the file `name`.
    pub fn recipe(&self, name: &str, recipe: &Recipe) -> PathBuf {
        self.write(name, &recipe.text())
    }

    /// Writes a file.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.at(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// Changes a file of text.
    pub fn edit(&self, name: &str, change: impl FnOnce(String) -> String) {
        let path = self.at(name);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, change(text)).unwrap();
    }

    /// A program to be run as `BAM_WORKER` that first does `script`, and then what the worker does.
    pub fn worker_with(&self, name: &str, script: &str) -> PathBuf {
        let worker = program("bam-worker");
        let path = self.at(name);
        write_program(&path, &format!("#!/bin/bash\n{script}\nexec '{}' \"$@\"\n", worker.display()));
        path
    }

    /// Batch jobs' `slurm.prologue` for a worker that fails in one stage for as long as the file `spoilt` is there, which
    /// is made.
    pub fn spoil(&self, stage: &str) -> String {
        let spoilt = self.write("spoilt", "");
        let script = format!("[[ \"$* \" != *'--stage {stage} '* || ! -e '{}' ]] || exit 9", spoilt.display());
        format!("prologue: ['export BAM_WORKER={}']", self.worker_with("failing-worker", &script).display())
    }

    /// `bam` with these arguments, to be run in the directory. What a killed MPI leaves behind is left in there, too.
    pub fn bam<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Bam {
        let temporary = self.at(TEMPORARY);
        Bam::new(&self.path, arguments)
            .env("TMPDIR", &temporary)
            .env("OMPI_MCA_btl_vader_backing_directory", &temporary)
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        if let Some(temporary) = self.temporary.take_if(|_| thread::panicking()) {
            println!("the files of this test are kept in {}", temporary.keep().display());
        }
    }
}
