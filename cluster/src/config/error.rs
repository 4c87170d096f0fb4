//! What can be wrong with a recipe, said so that its author can mend it.

use std::io;
use std::path::PathBuf;

/// A recipe that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there or cannot be read.
    #[error("{path}: {source}\n  {remedy}")]
    Unreadable {
        /// The recipe.
        path: PathBuf,
        /// Why.
        source: io::Error,
        /// What to give instead.
        remedy: String,
    },
    /// The text is not YAML, or not a recipe: a misspelt key, a wrong type.
    #[error("{path}: {message}{}", hint.as_ref().map(|h| format!("\n  did you mean '{h}'?")).unwrap_or_default())]
    Malformed {
        /// The recipe.
        path: PathBuf,
        /// What is wrong, with key path, line and column.
        message: String,
        /// The known name that looks most like the unknown one.
        hint: Option<String>,
    },
    /// An override on the command line is not of the form `a.b=c`, or leads nowhere.
    #[error("-o {text}: {problem}{}", hint.as_ref().map(|h| format!("\n  did you mean '{h}'?")).unwrap_or_default())]
    Override {
        /// As given.
        text: String,
        /// What is wrong.
        problem: String,
        /// The known name that looks most like the unknown one.
        hint: Option<String>,
    },
    /// A value is of the right type and makes no sense.
    #[error("{key}: {problem}")]
    Invalid {
        /// The key's path in the recipe.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}

/// The name among `known` that looks most like `unknown`, in whatever case, if any looks like it.
pub fn nearest<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let unknown = unknown.to_lowercase();
    known
        .into_iter()
        .map(|k| (strsim::jaro_winkler(&unknown, &k.to_lowercase()), k))
        .filter(|(similarity, _)| *similarity > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k.to_owned())
}

/// serde's message in words of a recipe, without those of Rust.
pub(super) fn plain(message: &str) -> String {
    let words = [
        ("expected u64", "expected a whole number, 0 or more"),
        ("expected usize", "expected a whole number, 0 or more"),
        ("expected f64", "expected a number"),
        ("expected a sequence", "expected a list"),
        ("expected a boolean", "expected true or false"),
        ("invalid type: string", "this is text,"),
        ("invalid type: integer", "this is the number"),
        ("invalid type: floating point", "this is the number"),
        ("invalid type: boolean", "this is"),
        ("invalid type: map", "this is a section,"),
        ("invalid type: sequence", "this is a list,"),
        ("invalid type: unit value", "there is no value,"),
    ];
    let mut text = words.iter().fold(message.to_owned(), |text, (rust, plain)| text.replace(rust, plain));
    if let Some(start) = text.find("expected struct ") {
        let end = text[start..].find(" at line").map_or(text.len(), |end| start + end);
        text.replace_range(start..end, "expected a section with keys of its own");
    }
    text
}

/// The nearest known name, from serde's message `unknown field `x`, expected one of `a`, `b``.
pub(super) fn hint(message: &str) -> Option<String> {
    let start = message.find("unknown field").or_else(|| message.find("unknown variant"))?;
    let mut names = message[start..].split('`').skip(1).step_by(2);
    let unknown = names.next()?;
    nearest(unknown, names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_is_the_nearest_known_name() {
        let message = "train: unknown field `techers`, expected `teachers` or `student` at line 3 column 2";
        assert_eq!(hint(message).as_deref(), Some("teachers"));
        assert_eq!(hint("unknown field `zzz`, expected `teachers` or `student`"), None);
        assert_eq!(hint("invalid type: string"), None);
        let said =
            plain("train.multi: invalid type: string \"x\", expected struct TrainSettingsInput at line 3 column 2");
        assert_eq!(
            said,
            "train.multi: this is text, \"x\", expected a section with keys of its own at line 3 column 2"
        );
        assert_eq!(nearest("CoLA", ["cola", "rte"]).as_deref(), Some("cola"));
    }
}
