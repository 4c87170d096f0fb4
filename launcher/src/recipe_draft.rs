//! The text of a new recipe, with comments that teach it, and what can be guessed of a task from its file: pure functions.

use std::collections::BTreeSet;

use bam_cluster::config::Mode;

/// What a new recipe says.
#[derive(Debug, Clone)]
pub struct Draft {
    /// Of the run.
    pub name: String,
    /// Who teaches whom.
    pub mode: Mode,
    /// A directory, or a name on Hugging Face's hub.
    pub encoder: String,
    /// Most tokens of an input.
    pub max_length: usize,
    /// The directory with GLUE's folders.
    pub glue: String,
    /// GLUE tasks.
    pub tasks: Vec<String>,
    /// Tasks of one's own.
    pub own: Vec<OwnDraft>,
    /// Ranks.
    pub processes: usize,
    /// Slurm's partition.
    pub partition: Option<String>,
    /// How long a job may take.
    pub time: Option<String>,
}

/// A task of one's own, guessed from its file.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnDraft {
    /// After the file.
    pub name: String,
    /// Its path in the recipe.
    pub train: String,
    header: bool,
    text: String,
    text_b: Option<String>,
    label: String,
    target: Target,
}

#[derive(Debug, Clone, PartialEq)]
enum Target {
    Classes(Vec<String>),
    Score([f64; 2]),
}

/// Names that columns often have, in lower case.
const TEXTS: [&str; 9] =
    ["text", "sentence", "sentence1", "premise", "question", "question1", "review", "comment", "content"];
const SECOND_TEXTS: [&str; 5] = ["text_b", "sentence2", "hypothesis", "question2", "response"];
const LABELS: [&str; 9] =
    ["label", "gold_label", "class", "score", "rating", "target", "gold", "sentiment", "is_duplicate"];
/// More different numbers than this are scores, not classes.
const MOST_NUMBERED_CLASSES: usize = 20;
/// More different words than this are no labels.
const MOST_CLASSES: usize = 200;
/// Where comments begin.
const MARGIN: usize = 32;

impl OwnDraft {
    /// Guesses what the columns of a file are. `train`: its path as it is to stand in the recipe.
    ///
    /// # Errors
    /// It has no columns that could be text and label.
    pub fn guess(name: &str, train: &str, content: &str) -> Result<OwnDraft, String> {
        let rows: Vec<Vec<&str>> = content.lines().map(|line| line.split('\t').collect()).collect();
        let [first, rest @ ..] = &rows[..] else { return Err("is empty".to_owned()) };
        if rest.is_empty() || first.len() < 2 {
            return Err("has no two rows of tab-separated columns (a text and a label at least)".to_owned());
        }
        let names: Vec<String> = first.iter().map(|cell| cell.to_lowercase()).collect();
        let named = |known: &[&str]| known.iter().find_map(|name| names.iter().position(|n| n == name));
        let values =
            |column: usize| -> BTreeSet<&str> { rest.iter().filter_map(|row| row.get(column).copied()).collect() };
        let length = |column: usize| rest.iter().filter_map(|row| row.get(column)).map(|c| c.len()).sum::<usize>();
        let text = named(&TEXTS).or_else(|| (0..first.len()).max_by_key(|&c| length(c))).unwrap_or(0);
        let text_b = named(&SECOND_TEXTS);
        let others = (0..first.len()).filter(|&c| c != text && Some(c) != text_b);
        // A header adds one to all of them.
        let different = |column: usize| rows.iter().filter_map(|row| row.get(column)).collect::<BTreeSet<_>>().len();
        let fewest = others.filter(|&c| values(c).len() > 1).min_by_key(|&c| different(c));
        let label = named(&LABELS).or(fewest).ok_or("has no column beside the text that could be the label")?;
        let mut labels = values(label);
        let header = named(&TEXTS).is_some() || named(&LABELS).is_some() || is_name(first[label], &labels);
        if !header {
            labels.insert(first[label]);
        }
        let column = |c: usize| if header { first[c].to_owned() } else { c.to_string() };
        Ok(OwnDraft {
            name: name.to_owned(),
            train: train.to_owned(),
            header,
            text: column(text),
            text_b: text_b.map(column),
            label: column(label),
            target: Target::guess(&labels)?,
        })
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!("    - name: {}", scalar(&self.name)),
            noted(
                &format!("      train: {}", scalar(&self.train)),
                "tab-separated; guessed from it, please look through:",
            ),
            noted("      dev_fraction: 0.1", "this share of its rows is for dev; or dev: FILE.tsv"),
        ];
        if !self.header {
            lines.push(noted("      header: false", "columns are numbered from 0"));
        }
        // A column without a name is a number.
        let column = |name: &str| if self.header { scalar(name) } else { name.to_owned() };
        lines.push(format!("      text: {}", column(&self.text)));
        lines.extend(self.text_b.as_ref().map(|b| format!("      text_b: {}", column(b))));
        lines.push(format!("      label: {}", column(&self.label)));
        match &self.target {
            Target::Classes(labels) => {
                let labels: Vec<String> = labels.iter().map(|label| scalar(label)).collect();
                lines.push("      type: classification".to_owned());
                lines.push(format!("      labels: [{}]", labels.join(", ")));
            }
            Target::Score([min, max]) => {
                lines.push("      type: regression".to_owned());
                lines.push(noted(&format!("      range: [{min}, {max}]"), "smallest and largest score"));
            }
        }
        lines
    }
}

/// Whether a cell names its column: it is none of the labels below it, which are no numbers where it is none.
fn is_name(cell: &str, labels: &BTreeSet<&str>) -> bool {
    let is_number = |text: &str| text.parse::<f64>().is_ok();
    !labels.contains(cell) && !is_number(cell) && labels.iter().all(|label| is_number(label))
}

impl Target {
    fn guess(labels: &BTreeSet<&str>) -> Result<Target, String> {
        let numbers: Option<Vec<f64>> = labels.iter().map(|l| l.parse().ok().filter(|n: &f64| n.is_finite())).collect();
        match numbers {
            Some(numbers) if numbers.len() > MOST_NUMBERED_CLASSES || numbers.iter().any(|n| n.fract() != 0.0) => {
                let ends = [f64::INFINITY, f64::NEG_INFINITY];
                Ok(Target::Score(numbers.iter().fold(ends, |[min, max], n| [min.min(*n), max.max(*n)])))
            }
            _ if labels.len() > MOST_CLASSES => {
                Err(format!("has {} different labels; is there a column of labels or of scores?", labels.len()))
            }
            _ => Ok(Target::Classes(labels.iter().map(|label| (*label).to_owned()).collect())),
        }
    }
}

impl Draft {
    /// The recipe's text. `file`: how its file is called.
    pub fn render(&self, file: &str) -> String {
        let mut lines = vec![
            "# Written by `bam init`; `bam schema --markdown` lists every key there is.".to_owned(),
            format!("#   bam plan {file}      what would run"),
            format!("#   bam run {file}       run it here; the same again goes on where it stopped"),
        ];
        if self.has_slurm() {
            lines.push(format!("#   bam submit {file}    run it as jobs of Slurm"));
        }
        let mode = serde_norway::to_string(&self.mode).unwrap_or_default();
        lines.extend([
            String::new(),
            noted(&format!("name: {}", scalar(&self.name)), "the run's directory is runs/NAME"),
            noted(&format!("mode: {}", mode.trim()), about(self.mode)),
            "seed: 1".to_owned(),
            noted("# trials: 5", "everything five times, for medians and tests"),
            String::new(),
            "model:".to_owned(),
            noted(&format!("  path: {}", scalar(&self.encoder)), "a directory, or a name (bam fetch model NAME)"),
            noted(&format!("  max_length: {}", self.max_length), "tokens; longer texts are cut"),
            String::new(),
            "data:".to_owned(),
        ]);
        if !self.tasks.is_empty() {
            lines.push(noted(&format!("  glue: {}", scalar(&self.glue)), "bam fetch glue brings it"));
        }
        lines.push("  tasks:".to_owned());
        lines.extend(self.tasks.iter().map(|task| format!("    - {task}")));
        lines.extend(self.own.iter().flat_map(OwnDraft::lines));
        lines.extend(
            [
                "",
                "train:",
                "  # models of one task",
                "  single: { epochs: 3, batch_size: 32, learning_rate: 5.0e-5, layerwise_decay: 0.9 }",
                "  # models of all tasks",
                "  multi: { epochs: 6, batch_size: 128, learning_rate: 1.0e-4, layerwise_decay: 0.9 }",
                "",
                "checkpoint: { every_steps: 500, keep: 3 }",
                "",
                "cluster:",
            ]
            .map(str::to_owned),
        );
        lines.push(noted(&format!("  processes: {}", self.processes), "ranks; -n says otherwise"));
        lines.extend(self.slurm());
        lines.join("\n") + "\n"
    }

    fn has_slurm(&self) -> bool {
        self.partition.is_some() || self.time.is_some()
    }

    fn slurm(&self) -> Vec<String> {
        if !self.has_slurm() {
            return vec![];
        }
        let mut lines = vec![String::new(), "slurm:".to_owned()];
        lines.extend(self.partition.iter().map(|name| format!("  partition: {}", scalar(name))));
        let note = "of one job; bam puts jobs back into the queue until all is done";
        lines.extend(self.time.iter().map(|time| noted(&format!("  time: {}", scalar(time)), note)));
        lines.push(noted("  nodes: 1", "see docs/recipe.md for gpus_per_node, account, modules, container"));
        lines
    }
}

fn about(mode: Mode) -> &'static str {
    match mode {
        Mode::Single => "one model per task, no teachers",
        Mode::Multi => "one model of all tasks, no teachers",
        Mode::SingleToSingle => "one model per task, taught by one of the same task",
        Mode::MultiToMulti => "one model of all tasks, taught by one of all tasks",
        Mode::SingleToMulti => "one teacher per task, then one student of all tasks",
    }
}

/// A line with a comment.
fn noted(line: &str, note: &str) -> String {
    format!("{line:width$} # {note}", width = MARGIN - 1)
}

/// A text as YAML has it: plain where no reader could take it for something else.
fn scalar(text: &str) -> String {
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
    let is_taken = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&&*text.to_lowercase());
    if is_plain && !is_taken { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(content: &str) -> OwnDraft {
        OwnDraft::guess("own", "own.tsv", content).unwrap()
    }

    #[test]
    fn columns_are_known_by_their_names() {
        let own = guess("id\tsentence1\tsentence2\tlabel\n1\ta b\tc d\tyes\n2\te f\tg h\tno\n");
        assert_eq!((own.header, own.text.as_str(), own.text_b.as_deref()), (true, "sentence1", Some("sentence2")));
        assert_eq!(own.target, Target::Classes(vec!["no".into(), "yes".into()]));
        assert!(own.lines().contains(&r#"      labels: ["no", "yes"]"#.to_owned()), "{:?}", own.lines());
    }

    #[test]
    fn columns_without_names_are_known_by_what_is_in_them() {
        let own = guess("1\t0.5\tthe film is good\n2\t-1.25\tthe film is not so good\n3\t0.5\tno\n");
        assert_eq!((own.header, own.text.as_str(), own.label.as_str()), (false, "2", "1"));
        assert_eq!(own.target, Target::Score([-1.25, 0.5]));
        let own = guess("words\tstars\nfine indeed\t5\nbad, very bad\t1\n");
        assert_eq!((own.header, own.text.as_str(), own.label.as_str()), (true, "words", "stars"));
        assert_eq!(own.target, Target::Classes(vec!["1".into(), "5".into()]));
    }

    #[test]
    fn what_is_no_table_is_refused() {
        for (content, part) in
            [("", "is empty"), ("a\nb\n", "no two rows"), ("text\tx\na\t1\nb\t1\n", "could be the label")]
        {
            let message = OwnDraft::guess("own", "own.tsv", content).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
    }

    #[test]
    fn no_reader_takes_a_text_for_something_else() {
        for text in ["plain", "a/b.tsv", "0", "no", "12:00:00", "a: b", "#", "", "é", "- x", "\"", "a\\b"] {
            let read: serde_norway::Value = serde_norway::from_str(&scalar(text)).unwrap();
            assert_eq!(read, serde_norway::Value::String(text.to_owned()), "{}", scalar(text));
        }
    }
}
