//! Where a file's columns are, as its first line shows; and whether that line is a header if it is said to be one.

use std::path::Path;

use super::read::is_like_a_label;
use super::{Column, DataError, Layout, Task, glue};

/// Columns as positions in a row.
pub(super) struct Positions {
    pub text: Position,
    pub text_b: Option<Position>,
    pub label: Option<Position>,
    pub index: Option<Position>,
}

#[derive(Clone, Copy)]
pub(super) enum Position {
    FromStart(usize),
    /// 1 is the last.
    FromEnd(usize),
}

impl Position {
    /// The field at this position, if the row is long enough.
    pub fn of<'a>(self, fields: &[&'a str]) -> Option<&'a str> {
        fields.get(self.place(fields.len())?).copied()
    }

    /// Counted from 0, in a row of so many fields.
    fn place(self, fields: usize) -> Option<usize> {
        match self {
            Position::FromStart(i) => (i < fields).then_some(i),
            Position::FromEnd(i) => fields.checked_sub(i),
        }
    }
}

/// The positions of a layout's columns in a file whose first line this is.
///
/// # Errors
/// A column is missing or cannot be meant, or the line is not the header that it should be.
pub(super) fn positions(task: &Task, layout: &Layout, path: &Path, first: &str) -> Result<Positions, DataError> {
    let fields: Vec<&str> = first.split('\t').collect();
    let names = if layout.header { &fields[..] } else { &[] };
    let position = |column: &Column| match column {
        Column::Index(i) if *i >= 0 => Ok(Position::FromStart(*i as usize)),
        Column::Index(i) => Ok(Position::FromEnd(i.unsigned_abs() as usize)),
        Column::Name(name) => of_name(name, names).map_err(|is_twice| {
            let (task, path) = (task.name.clone(), path.to_owned());
            let (column, header) = (name.clone(), names.join(", "));
            if is_twice {
                DataError::TwoColumns { task, path, column, header }
            } else {
                DataError::NoColumn { task, path, column, header }
            }
        }),
    };
    let positions = Positions {
        text: position(&layout.text)?,
        text_b: layout.text_b.as_ref().map(position).transpose()?,
        label: layout.label.as_ref().map(position).transpose()?,
        index: layout.index.as_ref().map(position).transpose()?,
    };
    let fault = shared(task, &positions, fields.len())
        .or_else(|| example(task, layout, &positions, names))
        .or_else(|| misnamed(task, &positions, names));
    match fault {
        Some((problem, remedy)) => Err(DataError::Line { path: path.to_owned(), line: 1, problem, remedy }),
        None => Ok(positions),
    }
}

/// Where the name is in a header. The error says whether it is there twice.
fn of_name(name: &str, header: &[&str]) -> Result<Position, bool> {
    let mut places = header.iter().enumerate().filter(|(_, n)| **n == name).map(|(place, _)| place);
    match (places.next(), places.next()) {
        (Some(place), None) => Ok(Position::FromStart(place)),
        (place, _) => Err(place.is_some()),
    }
}

/// What is wrong, and what to do.
type Fault = Option<(String, String)>;

/// One column that is to be two things, counted from either end or from one and by its name.
fn shared(task: &Task, positions: &Positions, fields: usize) -> Fault {
    let columns = [("text", Some(positions.text)), ("text_b", positions.text_b), ("label", positions.label)];
    let places: Vec<(&str, usize)> =
        columns.into_iter().filter_map(|(what, position)| Some((what, position?.place(fields)?))).collect();
    let (other, what) = places.iter().enumerate().find_map(|(i, (what, place))| {
        let (other, _) = places[..i].iter().find(|(_, other)| other == place)?;
        Some((other, what))
    })?;
    Some((
        format!("{other} and {what} of task '{}' are the same column of the {fields} that are here", task.name),
        "correct the columns in the recipe, or the row; fields are separated by tabs".to_owned(),
    ))
}

/// A header that has a label where the labels are. One in which a column was found by its name is one.
fn example(task: &Task, layout: &Layout, positions: &Positions, header: &[&str]) -> Fault {
    let columns = [Some(&layout.text), layout.text_b.as_ref(), layout.label.as_ref()];
    if columns.into_iter().flatten().any(|column| matches!(column, Column::Name(_))) {
        return None;
    }
    let label = positions.label?.of(header).filter(|field| is_like_a_label(&task.kind, field))?.trim();
    let remedy = if glue::is_official(task) {
        "fetch the file again; GLUE's begins with the names of its columns".to_owned()
    } else {
        format!("say header: false for task '{}'; if it is a header, give its columns by their names", task.name)
    };
    Some((format!("this looks like an example, not like a header (its label is '{label}')"), remedy))
}

/// A file of GLUE whose header is another's: it has a column's name where GLUE has another column.
fn misnamed(task: &Task, positions: &Positions, header: &[&str]) -> Fault {
    if positions.label.is_none() || !glue::is_official(task) {
        return None;
    }
    let columns = [Some(positions.text), positions.text_b, positions.label];
    let of_header = columns.map(|position| position.and_then(|p| p.of(header)).unwrap_or_default().trim());
    let (found, expected) = glue::misnamed(&task.name, of_header)?;
    Some((
        format!("a column is called '{found}' where GLUE's file of task '{}' has '{expected}'", task.name),
        "fetch the file again; it may be another task's, or its columns may have been moved".to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::super::{Dev, Kind, Malformed, Metric, Source, glue_task, read_table};
    use super::*;

    fn index(i: i64) -> Column {
        Column::Index(i)
    }

    fn name(name: &str) -> Column {
        Column::Name(name.to_owned())
    }

    fn classes(thresholds: Vec<f64>) -> Kind {
        Kind::Classification { labels: vec!["no".into(), "yes".into()], thresholds }
    }

    /// How many examples a task of one's own has in this file.
    fn own(content: &str, header: bool, kind: Kind, text: Column, label: Column) -> Result<usize, String> {
        let (text_b, label, malformed) = (None, Some(label), Malformed::Refuse);
        let layout = Layout { header, text, text_b, label, index: None, malformed };
        let source = Source { train: "t.tsv".into(), dev: Dev::Fraction(0.5), layout, further: vec![] };
        let metrics = vec![Metric::Accuracy];
        read(&Task { name: "mine".into(), kind, metrics, unordered: false, source }, content)
    }

    fn read(task: &Task, content: &str) -> Result<usize, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        read_table(task, file.path()).map(|table| table.examples.len()).map_err(|e| e.to_string())
    }

    #[test]
    fn an_example_is_no_header() {
        let score = Kind::Regression { min: 0.0, max: 5.0 };
        for (content, kind, label) in [
            ("a\tyes\nb\tno\n", classes(vec![]), "yes"),
            ("\u{feff}a\t yes\r\nb\tno\r\n", classes(vec![]), "yes"),
            ("a\t0.5\nb\t1\n", classes(vec![1.0]), "0.5"),
            ("a\t0.5\nb\t1\n", score.clone(), "0.5"),
            ("a\t7\nb\t1\n", score.clone(), "7"),
        ] {
            let message = own(content, true, kind, index(0), index(-1)).unwrap_err();
            let expected = format!("line 1: this looks like an example, not like a header (its label is '{label}')");
            assert!(message.contains(&expected) && message.contains("header: false"), "{message}");
        }
        assert_eq!(own("a\tyes\nb\tno\n", false, classes(vec![]), index(0), index(1)), Ok(2));
        for (content, kind) in [
            ("text\tlabel\nb\tno\n", classes(vec![])),
            ("text\tnan\nb\t1\n", classes(vec![1.0])),
            ("text\tscore\nb\t1\n", score),
        ] {
            assert_eq!(own(content, true, kind, index(0), index(1)), Ok(1), "{content}");
        }
        // A header in which a name was found is one, whatever the column of labels is called.
        assert_eq!(own("text\tyes\nb\tno\n", true, classes(vec![]), index(0), name("yes")), Ok(1));
    }

    #[test]
    fn columns_that_cannot_be_meant_are_refused() {
        let rows = "text\tlabel\nb\tno\n";
        for (header, text, label) in
            [(true, index(0), index(-2)), (true, index(1), name("label")), (false, index(-1), index(1))]
        {
            let message = own(rows, header, classes(vec![]), text, label).unwrap_err();
            assert!(
                message.contains("line 1: text and label of task 'mine' are the same column of the 2"),
                "{message}"
            );
        }
        let message = own("a\ta\tlabel\nx\ty\tno\n", true, classes(vec![]), name("a"), name("label")).unwrap_err();
        assert!(message.contains("a column is called 'a', and so is another one: a, a, label"), "{message}");
    }

    #[test]
    fn a_file_of_glue_has_its_own_header() {
        let rte = glue_task("rte", Path::new("glue")).unwrap();
        let row = "0\ta\tb\tentailment\n";
        // A copy may have names that GLUE does not know.
        for header in ["index\tsentence1\tsentence2\tlabel\n", "index\ts1\ts2\tlabel\n"] {
            assert_eq!(read(&rte, &format!("{header}{row}")), Ok(1), "{header}");
        }
        let message = read(&rte, &row.repeat(2)).unwrap_err();
        assert!(message.contains("like an example") && message.contains("fetch the file again"), "{message}");
        for (header, found, expected) in [
            ("index\tquestion\tsentence\tlabel\n", "question", "sentence1"),
            ("index\tsentence1\tsentence1\tlabel\n", "sentence1", "sentence2"),
        ] {
            let message = read(&rte, &format!("{header}{row}")).unwrap_err();
            let words = format!("a column is called '{found}' where GLUE's file of task 'rte' has '{expected}'");
            assert!(message.contains(&words), "{message}");
        }
    }
}
