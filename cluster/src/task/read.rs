//! Reads a tab-separated file into examples, refusing what the recipe does not describe. Split on tabs only.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;

use super::counted;
use super::header::{self, Position, Positions};
use super::{DataError, FurtherSplit, Kind, Layout, Malformed, Task};
use crate::digest;

/// So much is read in one go, and so many pieces may wait to be hashed.
const CHUNK: usize = 1 << 20;
const CHUNKS_AHEAD: usize = 4;

/// One labelled text, or pair of texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Row number in the file, 0 for the first data row; rows that are skipped keep their number.
    pub id: u64,
    /// The (first) text.
    pub text: String,
    /// The second text of a pair.
    pub text_b: Option<String>,
    /// Class index; for regression the score on the task's own scale. NaN in a split without labels.
    pub label: f32,
}

/// A file's examples and what is known of the file.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// In the order of the file.
    pub examples: Vec<Example>,
    /// Rows left out because they lack a column.
    pub skipped: u64,
    /// Data rows in the file, those left out included.
    pub rows: u64,
    /// SHA-256 of the file.
    pub sha256: String,
}

/// What is known of a file whose examples are not kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Count {
    /// Examples in it.
    pub examples: usize,
    /// Rows left out because they lack a column.
    pub skipped: u64,
    /// How long the examples' texts are.
    pub text: TextSize,
    /// SHA-256 of the file.
    pub sha256: String,
}

impl Count {
    /// Data rows in it, those left out included.
    pub fn rows(&self) -> u64 {
        self.examples as u64 + self.skipped
    }
}

/// How long the texts of examples are, in bytes; both texts of a pair count together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TextSize {
    /// Of all examples.
    pub total: u64,
    /// Of the longest example.
    pub longest: usize,
}

impl TextSize {
    fn add(&mut self, row: &Row) {
        let bytes = row.text.len() + row.text_b.map_or(0, str::len);
        self.total += bytes as u64;
        self.longest = self.longest.max(bytes);
    }
}

/// Reads all examples of the training or dev file of `task`.
///
/// # Errors
/// A missing or empty file, a missing column, a header that is none, an unknown label, a score out of range, text that is
/// not UTF-8, more rows to be left out than to be kept.
pub fn read_table(task: &Task, path: &Path) -> Result<Table, DataError> {
    read(task, path, &task.source.layout)
}

/// Reads and checks the same and keeps nothing of it.
///
/// # Errors
/// As for [`read_table`].
pub fn count_table(task: &Task, path: &Path) -> Result<Count, DataError> {
    scan(task, path, &task.source.layout, |_| ())
}

/// Reads all examples of a further split of `task`, from its file `path`.
///
/// # Errors
/// As for [`read_table`], and a row whose number is not its place, as when rows are missing.
pub fn read_split(task: &Task, split: &FurtherSplit, path: &Path) -> Result<Table, DataError> {
    read(task, path, &counted::layout(task, split, path)?)
}

/// Reads and checks the same and keeps nothing of it.
///
/// # Errors
/// As for [`read_split`].
pub fn count_split(task: &Task, split: &FurtherSplit, path: &Path) -> Result<Count, DataError> {
    scan(task, path, &counted::layout(task, split, path)?, |_| ())
}

fn read(task: &Task, path: &Path, layout: &Layout) -> Result<Table, DataError> {
    let mut examples = vec![];
    let Count { skipped, sha256, .. } = scan(task, path, layout, |row| {
        let (text, text_b) = (row.text.to_owned(), row.text_b.map(str::to_owned));
        examples.push(Example { id: row.id, text, text_b, label: row.label });
    })?;
    let rows = examples.len() as u64 + skipped;
    Ok(Table { examples, skipped, rows, sha256 })
}

/// One example as it stands in the file.
struct Row<'a> {
    id: u64,
    text: &'a str,
    text_b: Option<&'a str>,
    label: f32,
}

/// Reads and checks a whole file, row by row. Another thread hashes what is read meanwhile.
fn scan(task: &Task, path: &Path, layout: &Layout, mut visit: impl FnMut(Row)) -> Result<Count, DataError> {
    let unreadable = |source| DataError::Unreadable { task: task.name.clone(), path: path.to_owned(), source };
    let mut chunks = Chunks { file: File::open(path).map_err(unreadable)?, rest: vec![] };
    let mut rows =
        Rows { task, path, layout, positions: None, lines: 0, examples: 0, skipped: 0, text: TextSize::default() };
    let sha256 = thread::scope(|scope| {
        let (sender, read) = mpsc::sync_channel::<Arc<Vec<u8>>>(CHUNKS_AHEAD);
        let hash = move || digest::of_parts(read.iter());
        let hash = thread::Builder::new().spawn_scoped(scope, hash).map_err(unreadable)?;
        while let Some(chunk) = chunks.next().map_err(unreadable)? {
            let chunk = Arc::new(chunk);
            // It listens to the end.
            let _ = sender.send(chunk.clone());
            rows.read(&chunk, &mut visit)?;
        }
        drop(sender);
        Ok(hash.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    let Rows { examples, skipped, text, .. } = rows;
    let count = Count { examples, skipped, text, sha256 };
    let rows = count.rows();
    if rows == 0 {
        return Err(DataError::Empty { task: task.name.clone(), path: path.to_owned() });
    }
    if skipped > rows / 2 {
        return Err(DataError::Malformed { task: task.name.clone(), path: path.to_owned(), skipped, rows });
    }
    Ok(count)
}

/// A file in pieces that end with a line, so that memory is needed for a few of them alone.
struct Chunks {
    file: File,
    /// The beginning of a line whose end was not read yet.
    rest: Vec<u8>,
}

impl Chunks {
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut chunk = Vec::with_capacity(CHUNK + self.rest.len());
        chunk.append(&mut self.rest);
        loop {
            let before = chunk.len();
            if (&self.file).take(CHUNK as u64).read_to_end(&mut chunk)? == 0 {
                return Ok((!chunk.is_empty()).then_some(chunk));
            }
            if let Some(end) = memchr::memrchr(b'\n', &chunk[before..]) {
                self.rest.extend_from_slice(&chunk[before + end + 1..]);
                chunk.truncate(before + end + 1);
                return Ok(Some(chunk));
            }
        }
    }
}

/// A file that is read from its first line to its last.
struct Rows<'a> {
    task: &'a Task,
    path: &'a Path,
    layout: &'a Layout,
    /// Known from the first line on.
    positions: Option<Positions>,
    lines: usize,
    examples: usize,
    skipped: u64,
    text: TextSize,
}

impl Rows<'_> {
    /// Takes in the next lines.
    fn read(&mut self, lines: &[u8], visit: &mut impl FnMut(Row)) -> Result<(), DataError> {
        let text = std::str::from_utf8(lines).map_err(|e| DataError::Line {
            path: self.path.to_owned(),
            line: self.lines + memchr::memchr_iter(b'\n', &lines[..e.valid_up_to()]).count() + 1,
            problem: "the text is not UTF-8".to_owned(),
            remedy: "convert the file to UTF-8".to_owned(),
        })?;
        let text = if self.lines == 0 { text.strip_prefix('\u{feff}').unwrap_or(text) } else { text };
        let mut fields = vec![];
        for line in split(text.strip_suffix('\n').unwrap_or(text), b'\n') {
            let line = line.strip_suffix('\r').unwrap_or(line);
            self.lines += 1;
            let positions = match &self.positions {
                Some(positions) => positions,
                None => {
                    let found = header::positions(self.task, self.layout, self.path, line)?;
                    let positions = self.positions.insert(found);
                    if self.layout.header {
                        continue;
                    }
                    positions
                }
            };
            if line.is_empty() {
                continue;
            }
            fields.clear();
            fields.extend(split(line, b'\t'));
            let id = self.examples as u64 + self.skipped;
            let row = row(self.task, self.layout.malformed, positions, id, &fields);
            match row.map_err(|fault| fault.at(self.task, self.path, self.lines))? {
                Some(row) => {
                    self.examples += 1;
                    self.text.add(&row);
                    visit(row);
                }
                None => self.skipped += 1,
            }
        }
        Ok(())
    }
}

/// The parts of a text between separators of one byte.
fn split(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let ends = memchr::memchr_iter(separator, text.as_bytes()).chain([text.len()]);
    let mut start = 0;
    ends.map(move |end| {
        let part = &text[start..end];
        start = end + 1;
        part
    })
}

/// What is wrong with one row, before it is known where it stands.
enum Fault {
    Columns { found: usize },
    Label(String),
    NotANumber(String),
    OutOfRange { value: f64, min: f64, max: f64 },
    Index { found: String, place: u64 },
}

impl Fault {
    fn at(self, task: &Task, path: &Path, line: usize) -> DataError {
        let name = &task.name;
        let (problem, remedy) = match self {
            Fault::Columns { found } => (
                format!("a column that task '{name}' needs is missing (the row has {found})"),
                "correct the columns in the recipe, or the row; fields are separated by tabs".to_owned(),
            ),
            Fault::Index { found, place } => (
                format!("row {place} of task '{name}' has the number {found}: rows are missing or out of order"),
                "fetch the file again; every row has to be answered under its own number".to_owned(),
            ),
            Fault::Label(label) => (
                format!("unknown label '{label}' for task '{name}'"),
                match &task.kind {
                    Kind::Classification { labels, .. } => format!("known labels: {}", labels.join(", ")),
                    Kind::Regression { .. } => "a number is expected".to_owned(),
                },
            ),
            Fault::NotANumber(text) => (
                format!("'{text}' is not a number, as the label of task '{name}' has to be"),
                "correct the row, or the label column in the recipe".to_owned(),
            ),
            Fault::OutOfRange { value, min, max } => (
                format!("score {value} of task '{name}' is outside its range {min} to {max}"),
                "correct the row, or the range in the recipe".to_owned(),
            ),
        };
        DataError::Line { path: path.to_owned(), line, problem, remedy }
    }
}

/// One row as an example; `None` if it lacks columns and such rows are skipped.
fn row<'a>(
    task: &Task,
    malformed: Malformed,
    positions: &Positions,
    id: u64,
    fields: &[&'a str],
) -> Result<Option<Row<'a>>, Fault> {
    let of = |position: Option<Position>| position.map(|p| p.of(fields));
    let (text_b, label, index) = (of(positions.text_b), of(positions.label), of(positions.index));
    let complete = ![text_b, label, index].contains(&Some(None));
    let (Some(text), true) = (positions.text.of(fields), complete) else {
        return match malformed {
            Malformed::Skip => Ok(None),
            Malformed::Refuse => Err(Fault::Columns { found: fields.len() }),
        };
    };
    if let Some(index) = index.flatten()
        && index.trim().parse() != Ok(id)
    {
        return Err(Fault::Index { found: index.trim().to_owned(), place: id });
    }
    let label = label.flatten().map_or(Ok(f32::NAN), |l| parse_label(&task.kind, l.trim()))?;
    Ok(Some(Row { id, text, text_b: text_b.flatten(), label }))
}

/// Whether a field may well be a label: a class, or a number where one is expected, in its range or not.
pub(super) fn is_like_a_label(kind: &Kind, field: &str) -> bool {
    matches!(parse_label(kind, field.trim()), Ok(_) | Err(Fault::OutOfRange { .. }))
}

fn parse_label(kind: &Kind, text: &str) -> Result<f32, Fault> {
    let number = || match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        _ => Err(Fault::NotANumber(text.to_owned())),
    };
    match kind {
        Kind::Classification { labels, thresholds } if thresholds.is_empty() => {
            labels.iter().position(|l| l == text).map(|i| i as f32).ok_or_else(|| Fault::Label(text.to_owned()))
        }
        Kind::Classification { thresholds, .. } => {
            let value = number()?;
            Ok(thresholds.iter().filter(|t| value >= **t).count() as f32)
        }
        Kind::Regression { min, max } => {
            let value = number()?;
            if value < *min || value > *max {
                return Err(Fault::OutOfRange { value, min: *min, max: *max });
            }
            Ok(value as f32)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Column, Dev, Metric, Source};
    use super::*;

    fn task(kind: Kind, layout: Layout) -> Task {
        let source = Source { train: "t.tsv".into(), dev: Dev::Fraction(0.5), layout, further: vec![] };
        Task { name: "t".into(), kind, metrics: vec![Metric::Accuracy], unordered: false, source }
    }

    fn layout(header: bool, text: Column, text_b: Option<Column>, label: Column) -> Layout {
        Layout { header, text, text_b, label: Some(label), index: None, malformed: Malformed::Refuse }
    }

    fn yes_no() -> Kind {
        Kind::Classification { labels: vec!["no".into(), "yes".into()], thresholds: vec![] }
    }

    fn read(task: &Task, content: &str) -> Result<Table, DataError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        read_table(task, file.path())
    }

    #[test]
    fn quotes_byte_order_mark_crlf_and_missing_last_newline_are_harmless() {
        let t = task(yes_no(), layout(true, Column::Name("s".into()), None, Column::Index(-1)));
        let table = read(&t, "\u{feff}s\tl\r\n\"a \tyes\r\nb\tno").unwrap();
        let texts: Vec<_> = table.examples.iter().map(|e| (e.id, e.text.as_str(), e.label)).collect();
        assert_eq!(texts, [(0, "\"a ", 1.0), (1, "b", 0.0)]);
    }

    #[test]
    fn a_skipped_row_keeps_its_number() {
        let mut t = task(yes_no(), layout(false, Column::Index(0), Some(Column::Index(1)), Column::Index(2)));
        t.source.layout.malformed = Malformed::Skip;
        let table = read(&t, "a\tb\tno\nbroken\nc\td\tyes\n").unwrap();
        assert_eq!(table.skipped, 1);
        assert_eq!(table.examples.iter().map(|e| e.id).collect::<Vec<_>>(), [0, 2]);
        // Half of the rows may be broken, and no more.
        assert_eq!(read(&t, "a\tb\tno\nbroken\nbroken\nc\td\tyes\n").unwrap().skipped, 2);
        for (content, expected) in [("a\tb\tno\nbroken\nbroken\n", "2 of 3 rows"), ("broken\n", "1 of 1 rows")] {
            let message = read(&t, content).unwrap_err().to_string();
            assert!(message.contains(expected) && message.contains("fetch the file again"), "{message}");
        }
    }

    #[test]
    fn a_split_without_labels_is_read_if_its_rows_are_all_there() {
        let t = super::super::glue_task("rte", Path::new("g")).unwrap();
        let split = &t.source.further[0];
        let read = |content: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), content).unwrap();
            read_split(&t, split, file.path())
        };
        let table = read("index\tsentence1\tsentence2\n0\ta\tb\n1\tc\td\n").unwrap();
        assert!(table.examples.iter().all(|e| e.label.is_nan() && e.text_b.is_some()) && table.rows == 2);
        let gap = read("index\tsentence1\tsentence2\n0\ta\tb\n2\tc\td\n").unwrap_err().to_string();
        assert!(gap.contains("line 3: row 1 of task 'rte' has the number 2"), "{gap}");
        assert!(read("index\tsentence1\tsentence2\n0\ta\n").unwrap_err().to_string().contains("a column that task"));
    }

    #[test]
    fn a_file_of_many_pieces_is_read_as_one() {
        let t = task(yes_no(), layout(false, Column::Index(0), None, Column::Index(1)));
        // One row is longer than a piece.
        let rows: Vec<String> =
            (0..40_000).map(|i| "é".repeat(if i == 20_000 { CHUNK } else { i % 90 }) + "\tyes").collect();
        let content = rows.join("\n");
        assert!(content.len() > 3 * CHUNK);
        let table = read(&t, &content).unwrap();
        assert_eq!(table.sha256, digest::of_bytes(&content));
        assert!(table.examples.iter().zip(&rows).all(|(e, row)| row.strip_suffix("\tyes") == Some(e.text.as_str())));
        assert_eq!(table.examples.len(), rows.len());
        let message = read(&t, &(content.clone() + "\n\na\tperhaps\n")).unwrap_err().to_string();
        assert!(message.contains("line 40002: unknown label 'perhaps'"), "{message}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [content.as_bytes(), b"\n\xff\tyes"].concat()).unwrap();
        let message = read_table(&t, file.path()).unwrap_err().to_string();
        assert!(message.contains("line 40001: the text is not UTF-8"), "{message}");
    }

    #[test]
    fn thresholds_cut_a_number_into_classes() {
        let kind =
            Kind::Classification { labels: vec!["-".into(), "0".into(), "+".into()], thresholds: vec![-1.0, 1.0] };
        let t = task(kind, layout(false, Column::Index(0), None, Column::Index(1)));
        let table = read(&t, "a\t-2\nb\t0\nc\t1\n").unwrap();
        assert_eq!(table.examples.iter().map(|e| e.label).collect::<Vec<_>>(), [0.0, 1.0, 2.0]);
    }

    #[test]
    fn each_fault_names_its_line() {
        let t = task(yes_no(), layout(false, Column::Index(0), None, Column::Index(1)));
        for (content, expected) in
            [("a\tyes\nb\tmaybe\n", "line 2: unknown label 'maybe'"), ("a\n", "line 1: a column")]
        {
            let message = read(&t, content).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        assert!(matches!(read(&t, "").unwrap_err(), DataError::Empty { .. }));
        let score =
            task(Kind::Regression { min: 0.0, max: 5.0 }, layout(false, Column::Index(0), None, Column::Index(1)));
        assert!(read(&score, "a\t5.1\n").unwrap_err().to_string().contains("outside its range 0 to 5"));
        assert!(read(&score, "a\tnan\n").unwrap_err().to_string().contains("not a number"));
    }
}
