//! Where the programs under test are, and what else of the repository the tests use.

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The program `name`: in `$BAM_BIN_DIR`, or where cargo puts programs of the profile that this test was built in.
///
/// # Panics
/// It is not there.
pub fn program(name: &str) -> PathBuf {
    let directory = env::var_os("BAM_BIN_DIR").map_or_else(beside_the_tests, PathBuf::from);
    let path = directory.join(name);
    let whole = std::path::absolute(&path).unwrap_or(path);
    assert!(
        whole.is_file(),
        "{} is not there\n  build the programs first: cargo build --release --workspace (BAM_BIN_DIR names another place)",
        whole.display()
    );
    whole
}

/// `target/PROFILE`, of `target/PROFILE/deps/TEST`.
fn beside_the_tests() -> PathBuf {
    let own = env::current_exe().unwrap();
    own.ancestors().nth(2).unwrap_or(Path::new("/")).to_owned()
}

/// The repository's root; `$BAM_REPOSITORY` where these tests were built elsewhere.
pub fn repository() -> PathBuf {
    if let Some(directory) = env::var_os("BAM_REPOSITORY") {
        return directory.into();
    }
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/")).to_owned()
}

/// The Python with h5py and TensorBoard's reader that `make test` sets up, if it is there; else says that `test` is skipped.
pub fn python(test: &str) -> Option<PathBuf> {
    let path = repository().join(".venv-tests/bin/python");
    if path.is_file() {
        return Some(path);
    }
    say_skipped(test, &format!("there is no {}; setup/setup.sh python-tests makes it", path.display()));
    None
}

/// Writes a program in a scripting language, which can be run at once.
///
/// A process that another test starts while the file is open here for writing has it open as well for a moment, in which it
/// cannot be run ("Text file busy"); so somebody else writes it.
pub fn write_program(path: &Path, text: &str) {
    let mut writer = Command::new("sh");
    writer.args(["-c", "cat > \"$0\" && chmod +x \"$0\""]).arg(path).stdin(Stdio::piped());
    let mut writer = writer.spawn().unwrap();
    // Closed when it is dropped.
    writer.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success(), "{} cannot be written", path.display());
}

/// Says that a test is skipped and why, past cargo, which shows only what failed tests print.
pub fn say_skipped(test: &str, why: &str) {
    // In one piece, since tests write at the same time.
    let _ = io::stderr().write_all(format!("\nskipped: {test} ({why})\n").as_bytes());
}
