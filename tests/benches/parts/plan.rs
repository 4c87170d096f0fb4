//! How soon `bam plan` answers for all of GLUE on 1,024 ranks.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

use bam_tests::{Bam, repository};

use super::table::{Table, Target, median};

const TURNS: usize = 11;
/// Rows of the training files that may be there in part, as GLUE has them.
const WHOLE: [(&str, usize); 2] = [("MNLI", 392_702), ("QNLI", 104_743)];

/// Measures, if GLUE is there.
pub fn measure(table: &mut Table) {
    table.part("bam plan for GLUE's eight tasks on 1,024 ranks");
    let Some(glue) = super::glue() else {
        return table.skipped("bam plan", "set BAM_TEST_GLUE to a directory with CoLA/, SST-2/, …");
    };
    let time = |glue: &Path| median((0..TURNS).map(|_| plan(glue)).collect());
    let (files, bytes) = sizes(&glue);
    table.row(&format!("{files} files of {bytes:.0} MB as they are here"), time(&glue), "s", Target::AtMost(0.1));
    let whole = tempfile::tempdir().unwrap();
    complete(&glue, whole.path());
    let (files, bytes) = sizes(whole.path());
    let name = format!("{files} files of {bytes:.0} MB, all rows (MNLI, QNLI repeated)");
    table.row(&name, time(whole.path()), "s", Target::AtMost(0.5));
}

fn plan(glue: &Path) -> f64 {
    let glue = format!("data.glue={}", glue.display());
    let recipe = "configs/glue/bert-base-single-to-multi.yaml";
    // A batch has an example for each rank; a model of one task is trained by eight of them.
    let more =
        ["model.path=assets/all-MiniLM-L6-v2", "train.multi.batch_size=1024", "cluster.single_processes=8", &glue];
    let more = more.iter().flat_map(|setting| ["-o", setting]);
    let bam = Bam::new(&repository(), ["plan", recipe, "-n", "1024"].into_iter().chain(more));
    let since = Instant::now();
    bam.expect(0);
    since.elapsed().as_secs_f64()
}

/// Number of the train and dev files and their megabytes.
fn sizes(glue: &Path) -> (usize, f64) {
    let tasks = ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE"];
    let files = tasks.iter().flat_map(|task| fs::read_dir(glue.join(task)).unwrap()).map(|entry| entry.unwrap().path());
    let read = files.filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        ["train.tsv", "dev.tsv", "dev_matched.tsv"].contains(&name.as_ref())
    });
    let sizes: Vec<u64> = read.map(|path| fs::metadata(path).unwrap().len()).collect();
    (sizes.len(), sizes.iter().sum::<u64>() as f64 / 1e6)
}

/// The same files, with rows repeated where they are only a part of GLUE's.
fn complete(glue: &Path, target: &Path) {
    for entry in fs::read_dir(glue).unwrap() {
        let entry = entry.unwrap();
        let own = target.join(entry.file_name());
        let Some((_, rows)) = WHOLE.iter().find(|(task, _)| entry.file_name() == *task) else {
            symlink(entry.path(), own).unwrap();
            continue;
        };
        fs::create_dir(&own).unwrap();
        for file in fs::read_dir(entry.path()).unwrap() {
            let file = file.unwrap();
            if file.file_name() == "train.tsv" {
                fs::write(own.join("train.tsv"), repeated(&fs::read_to_string(file.path()).unwrap(), *rows)).unwrap();
            } else {
                symlink(file.path(), own.join(file.file_name())).unwrap();
            }
        }
    }
}

fn repeated(text: &str, rows: usize) -> String {
    let (header, body) = text.split_once('\n').unwrap();
    let mut whole = format!("{header}\n");
    body.lines().cycle().take(rows).for_each(|line| writeln!(whole, "{line}").unwrap());
    whole
}
