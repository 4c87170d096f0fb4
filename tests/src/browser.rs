//! Chromium without a window: what it makes of a page.

use std::env;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::programs::say_skipped;

/// How the reader's system is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Dark letters on light paper.
    Light,
    /// The other way round.
    Dark,
}

/// A picture of a page: width, height, and red, green and blue of every point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// In points.
    pub width: usize,
    /// In points.
    pub height: usize,
    /// Row by row.
    pub points: Vec<[u8; 3]>,
}

/// The browser.
#[derive(Debug)]
pub struct Browser(PathBuf);

impl Browser {
    /// The Chromium of this machine, if there is one; else says that `test` is skipped.
    pub fn find(test: &str) -> Option<Browser> {
        let path = env::var_os("PATH").unwrap_or_default();
        let directories: Vec<PathBuf> = env::split_paths(&path).collect();
        let names = ["chromium", "chromium-browser", "google-chrome"];
        let all = names.iter().flat_map(|name| directories.iter().map(move |d| d.join(name)));
        let found = all.into_iter().find(|program| program.is_file());
        if found.is_none() {
            say_skipped(test, "there is no chromium; on Debian and Ubuntu: apt-get install chromium");
        }
        found.map(Browser)
    }

    /// What it prints on stdout and stderr.
    fn run(&self, size: (u32, u32), scheme: Scheme, arguments: &[String]) -> (String, String) {
        let profile = tempfile::tempdir().unwrap();
        let mut command = Command::new(&self.0);
        command
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--hide-scrollbars",
            ])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--disable-dev-shm-usage", "--enable-logging=stderr", "--virtual-time-budget=2000"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(format!("--blink-settings=preferredColorScheme={}", i32::from(scheme == Scheme::Light)))
            .arg(format!("--window-size={},{}", size.0, size.1))
            .args(arguments)
            .stdin(Stdio::null());
        let output =
            Command::new("timeout").arg("90").arg(command.get_program()).args(command.get_args()).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{command:?}: {}\n{err}", output.status);
        (out.into_owned(), err.into_owned())
    }

    /// A picture of the page.
    ///
    /// # Panics
    /// The page makes the browser complain.
    pub fn picture(&self, page: &Path, size: (u32, u32), scheme: Scheme) -> Picture {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("picture.png");
        let arguments = [format!("--screenshot={}", target.display()), format!("file://{}", page.display())];
        let (_, said) = self.run(size, scheme, &arguments);
        // What scripts and style sheets are wrong about, and what cannot be loaded.
        assert!(!said.contains("CONSOLE"), "{said}");
        read_png(&target)
    }

    /// The document as scripts have left it.
    pub fn document(&self, page: &Path, size: (u32, u32)) -> String {
        let arguments = ["--dump-dom".to_owned(), format!("file://{}", page.display())];
        self.run(size, Scheme::Light, &arguments).0
    }
}

impl Picture {
    /// Mean of all colours, from 0 (black) to 255 (white).
    pub fn brightness(&self) -> f64 {
        let sum: u64 = self.points.iter().flatten().map(|&c| u64::from(c)).sum();
        sum as f64 / (3 * self.points.len()) as f64
    }

    /// How many different colours there are.
    pub fn colours(&self) -> usize {
        let mut points = self.points.clone();
        points.sort_unstable();
        points.dedup();
        points.len()
    }
}

fn read_png(path: &Path) -> Picture {
    let mut reader = png::Decoder::new(std::io::BufReader::new(File::open(path).unwrap())).read_info().unwrap();
    let mut bytes = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut bytes).unwrap();
    let samples = info.color_type.samples();
    let points = bytes[..info.buffer_size()].chunks_exact(samples).map(|p| [p[0], p[1], p[2]]).collect();
    Picture { width: info.width as usize, height: info.height as usize, points }
}
