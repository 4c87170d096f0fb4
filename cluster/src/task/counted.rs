//! Columns of a file that the recipe describes by another one: it counts the training file's columns, and a test file has
//! no gold labels, perhaps not even their column.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use super::{Column, DataError, FurtherSplit, Layout, Task};

/// The layout of a split's own file. Columns that are counted in another file are found by their names, or, without
/// headers, by their places if both files have equally many.
///
/// # Errors
/// A file cannot be read, or it cannot be known which column is meant.
pub(super) fn layout(task: &Task, split: &FurtherSplit, path: &Path) -> Result<Layout, DataError> {
    let Some(counted_in) = &split.counted_in else { return Ok(split.layout.clone()) };
    let (known, own) = (first_row(task, counted_in)?, first_row(task, path)?);
    let has_header = split.layout.header;
    let place = |column: &Column| {
        let found = if has_header { by_name(column, &known, &own) } else { by_place(column, &known, &own) };
        found.map_err(|problem| DataError::OtherColumns {
            task: task.name.clone(),
            path: path.to_owned(),
            counted_in: counted_in.clone(),
            problem,
        })
    };
    Ok(Layout {
        text: place(&split.layout.text)?,
        text_b: split.layout.text_b.as_ref().map(place).transpose()?,
        ..split.layout.clone()
    })
}

/// The fields of a file's first line.
fn first_row(task: &Task, path: &Path) -> Result<Vec<String>, DataError> {
    let unreadable = |source| DataError::Unreadable { task: task.name.clone(), path: path.to_owned(), source };
    let mut line = vec![];
    BufReader::new(File::open(path).map_err(unreadable)?).read_until(b'\n', &mut line).map_err(unreadable)?;
    // Whoever reads the whole file says what is wrong with its text.
    let line = String::from_utf8_lossy(&line);
    let line = line.strip_prefix('\u{feff}').unwrap_or(&line).trim_end_matches(['\r', '\n']);
    Ok(line.split('\t').map(str::to_owned).collect())
}

fn by_name(column: &Column, known: &[String], own: &[String]) -> Result<Column, String> {
    let Column::Index(index) = column else { return Ok(column.clone()) };
    if known == own {
        return Ok(column.clone());
    }
    let name = at(*index, known).ok_or_else(|| format!("column {index} is none of {}", known.join(", ")))?;
    let places = |names: &[String]| names.iter().filter(|n| *n == name).count();
    match (places(known), places(own)) {
        (1, 1) => Ok(Column::Name(name.clone())),
        (_, 0) => Err(format!("column {index} is called '{name}', and this header has {}", own.join(", "))),
        _ => Err(format!("column {index} is called '{name}', and so is another one")),
    }
}

fn by_place(column: &Column, known: &[String], own: &[String]) -> Result<Column, String> {
    let (known, own) = (known.len(), own.len());
    if known == own { Ok(column.clone()) } else { Err(format!("there are {known} columns, and {own} here")) }
}

fn at(index: i64, names: &[String]) -> Option<&String> {
    let place = if index < 0 { index + names.len() as i64 } else { index };
    usize::try_from(place).ok().and_then(|place| names.get(place))
}

#[cfg(test)]
mod tests {
    use super::super::{Dev, Kind, Malformed, Metric, Source, read_split};
    use super::*;

    /// The texts of a test file of a task whose texts and labels are these columns of the training file.
    fn texts(header: bool, train: &str, test: &str, text: i64, text_b: Option<i64>) -> Result<Vec<String>, String> {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("train.tsv"), train).unwrap();
        std::fs::write(at("test.tsv"), test).unwrap();
        let text_b = text_b.map(Column::Index);
        let layout = Layout {
            header,
            text: Column::Index(text),
            text_b,
            label: None,
            index: None,
            malformed: Malformed::Refuse,
        };
        let split = FurtherSplit {
            name: "test".into(),
            files: vec![at("test.tsv")],
            layout: layout.clone(),
            counted_in: Some(at("train.tsv")),
        };
        let kind = Kind::Classification { labels: vec!["no".into(), "yes".into()], thresholds: vec![] };
        let source = Source { train: at("train.tsv"), dev: Dev::Fraction(0.5), layout, further: vec![] };
        let task = Task { name: "t".into(), kind, metrics: vec![Metric::Accuracy], unordered: false, source };
        let table = read_split(&task, &split, &at("test.tsv")).map_err(|e| e.to_string())?;
        Ok(table.examples.into_iter().map(|e| e.text + &e.text_b.unwrap_or_default()).collect())
    }

    #[test]
    fn a_counted_column_is_the_one_of_the_training_files_name() {
        let train = "id\ta\tb\tlabel\n7\tgood\tfine\tyes\n";
        // From either end, with and without the column of labels.
        for (a, b) in [(1, 2), (-3, -2)] {
            for test in ["id\ta\tb\tlabel\n9\tX\tY\t\n", "id\ta\tb\n9\tX\tY\n", "\u{feff}b\tid\ta\r\nY\t9\tX\r\n"] {
                assert_eq!(texts(true, train, test, a, Some(b)).unwrap(), ["XY"], "{test}");
            }
        }
        let message = texts(true, train, "id\ttext\n9\tX\n", -3, None).unwrap_err();
        for words in ["test.tsv: ", "train.tsv", "column -3 is called 'a', and this header has id, text", "test_text"] {
            assert!(message.contains(words), "'{words}' is not in {message}");
        }
        let twice = texts(true, "text\ttext\tlabel\nx\ty\tyes\n", "text\ttext\nX\tY\n", 1, None).unwrap_err();
        assert!(twice.contains("and so is another one"), "{twice}");
    }

    #[test]
    fn without_headers_the_files_have_equally_many_columns() {
        let train = "7\tgood\tyes\n";
        assert_eq!(texts(false, train, "9\tX\t\n", -2, None).unwrap(), ["X"]);
        let message = texts(false, train, "9\tX\n", -2, None).unwrap_err();
        assert!(message.contains("there are 3 columns, and 2 here"), "{message}");
    }
}
