//! GLUE from its official files: an archive a task, but for MRPC, which is put together from SentEval's files and the list of
//! dev examples, as GLUE's own script does it.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use bam_cluster::files;
use bam_cluster::task::{self, Selection, glue_task};

use super::download::{Downloads, Remedies, Sum, Wanted};
use super::{FetchError, io_error, lock, this_host, unpack};
use crate::shell::quoted;

/// Where GLUE's own script takes its files from.
pub const GLUE_URL: &str = "https://dl.fbaipublicfiles.com";
/// Beside the folders, while they are made.
const ASIDE: &str = ".fetch";

/// A folder of GLUE and the files it is made from.
#[derive(Debug, Clone, Copy)]
pub struct GlueFolder {
    /// The task, as recipes name it; `ax` is the diagnostic set, which MNLI's models answer.
    pub task: &'static str,
    /// The folder's name.
    folder: &'static str,
    /// What is fetched.
    files: &'static [Known],
    /// How the folder comes out of it.
    made: Made,
    /// Rows of the train and dev files.
    rows: [usize; 2],
}

/// A file whose sum is known: the same in the records of `datasets` (Hugging Face) and of `tensorflow_datasets`.
#[derive(Debug, Clone, Copy)]
struct Known {
    path: &'static str,
    size: u64,
    sha256: &'static str,
}

#[derive(Debug, Clone, Copy)]
enum Made {
    /// The archive's folder of the same name.
    Unpacked,
    /// Test file, train file and the ids of the pairs that are dev's.
    Mrpc,
    /// The one file, under this name.
    Named(&'static str),
}

const fn archive(task: &'static str, folder: &'static str, files: &'static [Known; 1], rows: [usize; 2]) -> GlueFolder {
    GlueFolder { task, folder, files, made: Made::Unpacked, rows }
}

/// All of GLUE, in the order of its tables.
const FOLDERS: [GlueFolder; 10] = [
    archive(
        "cola",
        "CoLA",
        &[Known {
            path: "glue/data/CoLA.zip",
            size: 376_971,
            sha256: "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff",
        }],
        [8_551, 1_043],
    ),
    archive(
        "sst2",
        "SST-2",
        &[Known {
            path: "glue/data/SST-2.zip",
            size: 7_439_277,
            sha256: "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa",
        }],
        [67_349, 872],
    ),
    GlueFolder {
        task: "mrpc",
        folder: "MRPC",
        files: &[
            Known {
                path: "senteval/senteval_data/msr_paraphrase_train.txt",
                size: 1_047_044,
                sha256: "60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89",
            },
            Known {
                path: "senteval/senteval_data/msr_paraphrase_test.txt",
                size: 441_275,
                sha256: "a04e271090879aaba6423d65b94950c089298587d9c084bf9cd7439bd785f784",
            },
            Known {
                path: "glue/data/mrpc_dev_ids.tsv",
                size: 6_222,
                sha256: "971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7",
            },
        ],
        made: Made::Mrpc,
        rows: [3_668, 408],
    },
    archive(
        "stsb",
        "STS-B",
        &[Known {
            path: "glue/data/STS-B.zip",
            size: 802_872,
            sha256: "e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85",
        }],
        [5_749, 1_500],
    ),
    archive(
        "qqp",
        "QQP",
        &[Known {
            path: "glue/data/QQP-clean.zip",
            size: 41_696_084,
            sha256: "40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0",
        }],
        [363_846, 40_430],
    ),
    archive(
        "mnli",
        "MNLI",
        &[Known {
            path: "glue/data/MNLI.zip",
            size: 312_783_507,
            sha256: "e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633",
        }],
        [392_702, 9_815],
    ),
    archive(
        "qnli",
        "QNLI",
        &[Known {
            path: "glue/data/QNLIv2.zip",
            size: 10_627_589,
            sha256: "e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5",
        }],
        [104_743, 5_463],
    ),
    archive(
        "rte",
        "RTE",
        &[Known {
            path: "glue/data/RTE.zip",
            size: 697_150,
            sha256: "6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee",
        }],
        [2_490, 277],
    ),
    archive(
        "wnli",
        "WNLI",
        &[Known {
            path: "glue/data/WNLI.zip",
            size: 28_999,
            sha256: "ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46",
        }],
        [635, 71],
    ),
    GlueFolder {
        task: "ax",
        folder: "diagnostic",
        files: &[Known {
            path: "glue/data/AX.tsv",
            size: 222_257,
            sha256: "0e13510b1bb14436ff7e2ee82338f0efb0133ecf2e73507a697dc210db3f05fd",
        }],
        made: Made::Named("diagnostic.tsv"),
        rows: [0, 0],
    },
];

impl GlueFolder {
    /// The folders of these tasks; of all without a name.
    ///
    /// # Errors
    /// There is no such task.
    pub fn of(names: &[String]) -> Result<Vec<GlueFolder>, FetchError> {
        if names.is_empty() {
            return Ok(FOLDERS.to_vec());
        }
        let find = |name: &String| {
            FOLDERS.iter().find(|f| f.task == name).copied().ok_or_else(|| {
                let known: Vec<&str> = FOLDERS.iter().map(|f| f.task).collect();
                FetchError::Usage(format!("--task {name}: GLUE has no such task; there are {}", known.join(", ")))
            })
        };
        names.iter().map(find).collect()
    }
}

/// Brings GLUE's folders to a directory.
#[derive(Debug)]
pub struct Glue {
    downloads: Downloads,
    url: String,
    directory: PathBuf,
}

impl Glue {
    /// From this server (as [`GLUE_URL`]) to this directory.
    pub fn new(url: &str, directory: &Path) -> Glue {
        let there = quoted(&directory.display().to_string());
        let whole = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
        let here = quoted(&format!("{}:{}/", this_host(), whole.display()));
        let unreachable = format!(
            "  if this machine has no internet: run 'bam fetch glue --dir {there}' on one that has,\n  \
             and copy what it brings: rsync -a {there}/ {here}\n  \
             HTTPS_PROXY names a proxy, --from a server that has copies of the files"
        );
        let missing = "  look at --from: below it must be glue/data/CoLA.zip and so on".to_owned();
        let denied = "  a proxy or --from may be in the way".to_owned();
        let downloads = Downloads::new(None, Remedies { unreachable, denied, missing });
        Glue { downloads, url: url.trim_end_matches('/').to_owned(), directory: directory.to_owned() }
    }

    /// Makes a folder, unless it is there, and has it read as training would read it. Returns what is in it, in words.
    ///
    /// # Errors
    /// Something does not come, or is not GLUE's.
    pub fn fetch(&self, folder: &GlueFolder) -> Result<String, FetchError> {
        let target = self.directory.join(folder.folder);
        if target.exists() {
            return Ok(format!("{}, there already", inspect(folder, &self.directory)?));
        }
        let aside = self.directory.join(ASIDE);
        fs::create_dir_all(&aside).map_err(io_error(&aside))?;
        // One at a time works in there.
        let lock_file = aside.join("lock");
        let held = files::open_to_lock(&lock_file).map_err(io_error(&lock_file))?;
        lock(&held).map_err(io_error(&lock_file))?;
        if target.exists() {
            return self.fetch(folder);
        }
        let mut fetched = vec![];
        for known in folder.files {
            let name = known.path.rsplit('/').next().unwrap_or(known.path);
            let to = aside.join(name);
            let sum = Sum::Sha256(known.sha256.to_owned());
            let url = format!("{}/{}", self.url, known.path);
            self.downloads.fetch(&Wanted { url, name: name.to_owned(), size: known.size, sum }, &to)?;
            fetched.push(to);
        }
        // One level down, so that the folder is found there as it will be.
        let made = aside.join(format!("{}.made", folder.task));
        if made.exists() {
            fs::remove_dir_all(&made).map_err(io_error(&made))?;
        }
        let new = made.join(folder.folder);
        match folder.made {
            Made::Unpacked => unpack::tables(&fetched[0], folder.folder, &new)?,
            Made::Mrpc => make_mrpc(&fetched, &new)?,
            Made::Named(name) => {
                let content = fs::read(&fetched[0]).map_err(io_error(&fetched[0]))?;
                files::write_atomically(&new.join(name), &content).map_err(io_error(&new))?;
            }
        }
        let words = inspect(folder, &made)?;
        fs::rename(&new, &target).map_err(io_error(&target))?;
        files::sync_dir(&self.directory).map_err(io_error(&self.directory))?;
        fs::remove_dir_all(&made).map_err(io_error(&made))?;
        for file in fetched {
            fs::remove_file(&file).map_err(io_error(&file))?;
        }
        // Not if there is something that was cut off.
        let _ = fs::remove_file(&lock_file).and_then(|()| fs::remove_dir(&aside));
        Ok(words)
    }
}

/// Reads a folder as training would, and compares the number of rows with GLUE's.
fn inspect(folder: &GlueFolder, glue: &Path) -> Result<String, FetchError> {
    let path = glue.join(folder.folder);
    let wrong = |problem: String| {
        let problem = format!("{problem}\n  remove the folder, and fetch it again");
        FetchError::Content { path: path.clone(), problem }
    };
    let Some(task) = glue_task(folder.task, glue) else {
        return Ok("answered by MNLI's models".to_owned());
    };
    let selection = Selection { max_train: None, max_dev: None, double_unordered: false };
    let sizes = task::count_examples(&task, &selection).map_err(|e| wrong(e.to_string()))?;
    for (split, found, skipped, rows) in
        [("train", sizes.train, sizes.skipped[0], folder.rows[0]), ("dev", sizes.dev, sizes.skipped[1], folder.rows[1])]
    {
        // Whether rows that lack a column were counted depends on who counted.
        if !(found..=found + skipped as usize).contains(&rows) {
            return Err(wrong(format!("has {found} rows to {split} with; GLUE's has {rows}")));
        }
    }
    Ok(format!("{} train, {} dev", sizes.train, sizes.dev))
}

/// MRPC's folder, from SentEval's train and test files and the ids of the pairs that are dev's.
fn make_mrpc(fetched: &[PathBuf], folder: &Path) -> Result<(), FetchError> {
    let read = |path: &PathBuf| fs::read_to_string(path).map_err(io_error(path));
    let [train, test, ids] = fetched else { unreachable!("MRPC is made from three files") };
    let tables = split_mrpc(&read(train)?, &read(test)?, &read(ids)?)
        .map_err(|problem| FetchError::Content { path: folder.to_owned(), problem })?;
    for (name, table) in ["train.tsv", "dev.tsv", "test.tsv"].into_iter().zip(tables) {
        files::write_atomically(&folder.join(name), table.as_bytes()).map_err(io_error(folder))?;
    }
    Ok(())
}

/// The train, dev and test tables. A pair is dev's if its two ids are in the list.
fn split_mrpc(train: &str, test: &str, ids: &str) -> Result<[String; 3], String> {
    let dev_ids: HashSet<Vec<&str>> = ids.lines().map(|line| line.trim().split('\t').collect()).collect();
    let header = train.trim_start_matches('\u{feff}').lines().next().unwrap_or_default();
    let mut tables = [format!("{header}\n"), format!("{header}\n"), String::new()];
    for (i, row) in train.lines().enumerate().skip(1) {
        let cells: Vec<&str> = row.trim().split('\t').collect();
        let [_, first, second, _, _] = cells[..] else { return Err(format!("row {i} of the train file is no pair")) };
        let is_dev = dev_ids.contains(&vec![first, second]);
        tables[usize::from(is_dev)] += &format!("{}\n", cells.join("\t"));
    }
    tables[2] = "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n".to_owned();
    for (i, row) in test.lines().skip(1).enumerate() {
        let (_, rest) = row.trim().split_once('\t').ok_or_else(|| format!("row {i} of the test file is no pair"))?;
        tables[2] += &format!("{i}\t{rest}\n");
    }
    Ok(tables)
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use bam_cluster::digest;
    use bam_tests::{Answer, Server};
    use zip::ZipWriter;
    use zip::write::FileOptions;

    use super::*;

    /// A folder of a file or several whose sums are those of `contents`, and a server that has them.
    fn served(task: &'static str, folder: &'static str, made: Made, contents: &[Vec<u8>]) -> (GlueFolder, Server) {
        let paths = ["a/first", "b/second", "c/third"];
        let known = |(path, content): (&&'static str, &Vec<u8>)| Known {
            path,
            size: content.len() as u64,
            sha256: digest::of_bytes(content).leak(),
        };
        let files = paths.iter().zip(contents).map(known).collect::<Vec<_>>().leak();
        let contents = contents.to_vec();
        let server = Server::start(move |request, before| {
            let i = paths.iter().position(|path| request.path == format!("/{path}")).unwrap();
            // Cut off once.
            Answer { cut_after: (before == 0).then_some(9), ..Answer::file(&contents[i]) }
        });
        (GlueFolder { task, folder, files, made, rows: [2, 1] }, server)
    }

    #[test]
    fn an_archive_becomes_a_folder_that_training_can_read() {
        let mut zip = ZipWriter::new(Cursor::new(vec![]));
        let head = "index\tsentence1\tsentence2\tlabel\n";
        for (name, rows) in [("train", "0\ta\tb\t1\n1\tc\td\t0\n"), ("dev", "0\te\tf\t1\n")] {
            zip.start_file(format!("WNLI/{name}.tsv"), FileOptions::default()).unwrap();
            zip.write_all(format!("{head}{rows}").as_bytes()).unwrap();
        }
        let archive = zip.finish().unwrap().into_inner();
        let (folder, server) = served("wnli", "WNLI", Made::Unpacked, &[archive]);
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("glue");
        let glue = Glue::new(&server.url(), &directory);
        assert_eq!(glue.fetch(&folder).unwrap(), "2 train, 1 dev");
        let left: Vec<_> = fs::read_dir(&directory).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["WNLI"]);
        assert_eq!(glue.fetch(&folder).unwrap(), "2 train, 1 dev, there already");
        assert_eq!(server.requests().len(), 2, "{:?}", server.requests());
        let other = GlueFolder { rows: [3, 1], ..folder };
        let message = glue.fetch(&other).unwrap_err().to_string();
        assert!(message.contains("has 2 rows to train with; GLUE's has 3"), "{message}");
    }

    #[test]
    fn mrpc_is_put_together_from_its_three_files() {
        let head = "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n";
        let train = format!("{head}1\t10\t11\tshe said \"a\tb\r\n0\t20\t21\tc\td\r\n1\t30\t31\te\tf\r\n");
        let test = format!("{head}1\t40\t41\tg\th\r\n0\t50\t51\ti\tj\r\n");
        let contents = [train.into_bytes(), test.into_bytes(), b"20\t21\n31\t30\n".to_vec()];
        let (folder, server) = served("mrpc", "MRPC", Made::Mrpc, &contents);
        let place = tempfile::tempdir().unwrap();
        assert_eq!(Glue::new(&server.url(), place.path()).fetch(&folder).unwrap(), "2 train, 1 dev");
        let read = |name: &str| fs::read_to_string(place.path().join("MRPC").join(name)).unwrap();
        let head = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n";
        assert_eq!(read("train.tsv"), format!("{head}1\t10\t11\tshe said \"a\tb\n1\t30\t31\te\tf\n"));
        assert_eq!(read("dev.tsv"), format!("{head}0\t20\t21\tc\td\n"));
        let head = "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n";
        assert_eq!(read("test.tsv"), format!("{head}0\t40\t41\tg\th\n1\t50\t51\ti\tj\n"));
    }

    #[test]
    fn the_table_has_every_task_once_with_whole_sums() {
        let known: Vec<&str> = FOLDERS.iter().map(|f| f.task).filter(|task| *task != "ax").collect();
        assert_eq!(known, task::GLUE_NAMES);
        let files: Vec<&Known> = FOLDERS.iter().flat_map(|f| f.files).collect();
        let sums: HashSet<&str> = files.iter().map(|known| known.sha256).collect();
        assert_eq!(sums.len(), files.len());
        assert!(sums.iter().all(|sum| sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit())));
    }
}
