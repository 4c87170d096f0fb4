//! Builds the library that stands in for NCCL, and ranks that use it.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bam_cluster::comm::{Activity, Communicator, Threads};
use bam_worker::comm::nccl::{Library, Nccl, NcclError};
use tempfile::TempDir;

/// A stub, compiled to fail in some way.
pub struct Stub {
    folder: TempDir,
}

/// Longer than anything here takes that does not hang.
pub const PATIENCE: Duration = Duration::from_secs(60);

impl Stub {
    pub fn new(defines: &[&str]) -> Stub {
        let stub = Stub { folder: TempDir::new().unwrap() };
        let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/nccl_stub/stub.c");
        let compiled = Command::new("cc")
            .args(["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-pthread"])
            .arg(format!("-DLOG=\"{}\"", stub.folder.path().join("log").display()))
            .args(defines.iter().map(|define| format!("-D{define}")))
            .args([source.as_os_str(), "-o".as_ref(), stub.file().as_ref()])
            .status();
        assert!(compiled.expect("cc, which the build needs, too").success());
        stub
    }

    pub fn file(&self) -> String {
        self.folder.path().join("libnccl-stub.so").to_str().unwrap().to_owned()
    }

    pub fn library(&self) -> Result<Arc<Library>, NcclError> {
        Library::load(Some(&self.file()), Some(&self.file()))
    }

    /// How often something happened.
    pub fn count(&self, line: &str) -> usize {
        self.log().lines().filter(|other| other.starts_with(line)).count()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// What `work` returns on each of so many ranks, which are threads with a GPU each. Afterwards nothing may be left.
    pub fn on_ranks<T: Send>(
        &self,
        ranks: usize,
        deadline: Duration,
        work: impl Fn(&Threads, Result<Nccl, NcclError>) -> T + Sync,
    ) -> Vec<T> {
        let done = threads(ranks, |world| {
            let device = world.rank() as i32;
            let joined = Nccl::join(self.library(), world, device, deadline, Activity::default());
            work(world, joined)
        });
        self.nothing_is_left();
        done
    }

    fn nothing_is_left(&self) {
        assert_eq!(self.log().lines().find(|line| line.starts_with("misuse")), None);
        let ended = self.count("communicator aborted") + self.count("communicator destroyed");
        assert_eq!(self.count("communicator made"), ended);
        assert_eq!(self.count("event made"), self.count("event ended"));
        // A stream's thread ends by itself when it has nothing more to do.
        until(|| self.count("stream made") == self.count("stream ended"));
    }
}

/// What each of so many ranks returns.
pub fn threads<T: Send>(ranks: usize, work: impl Fn(&Threads) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let (work, world) = (&work, Threads::world(ranks, PATIENCE));
        let threads: Vec<_> = world.into_iter().map(|world| scope.spawn(move || work(&world))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

pub fn until(mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < PATIENCE, "waited too long");
        std::thread::sleep(Duration::from_millis(2));
    }
}
