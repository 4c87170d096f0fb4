//! Recipes as a user writes them: text, with relative paths into a [`Workplace`](crate::Workplace).

use std::fmt::Write as _;

/// A recipe. Sections are the inside of YAML's braces: `epochs: 2, batch_size: 16`.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// `name`.
    pub name: String,
    /// `mode`.
    pub mode: String,
    /// `trials`.
    pub trials: usize,
    /// Entries of `data.tasks`: a GLUE name, or a mapping in braces.
    pub tasks: Vec<String>,
    /// Rest of `model`.
    pub model: String,
    /// Rest of `data`.
    pub data: String,
    /// `train.single`.
    pub single: String,
    /// `train.multi`.
    pub multi: String,
    /// `distill`.
    pub distill: String,
    /// `checkpoint`.
    pub checkpoint: String,
    /// Rest of `cluster`.
    pub cluster: String,
    /// `slurm`.
    pub slurm: String,
}

impl Recipe {
    /// Single→Multi of the named tasks (GLUE's, `mood` or `warmth`), quick and without dropout.
    pub fn of(tasks: &[&str]) -> Recipe {
        Recipe {
            name: "tiny".into(),
            mode: "single-to-multi".into(),
            trials: 1,
            tasks: tasks.iter().map(|t| Recipe::task(t)).collect(),
            model: "max_length: 40, dropout: 0".into(),
            data: String::new(),
            single: "epochs: 2, batch_size: 16, learning_rate: 0.002".into(),
            multi: "epochs: 3, batch_size: 16, learning_rate: 0.002".into(),
            distill: String::new(),
            checkpoint: "every_steps: 20, keep: 2".into(),
            cluster: "processes: 2, deadline: 60".into(),
            slurm: String::new(),
        }
    }

    /// The entry of one task in `data.tasks`.
    pub fn task(name: &str) -> String {
        match name {
            "mood" => "{ name: mood, train: own/mood.tsv, dev_fraction: 0.2, header: false, text: 2, label: 1, \
                       type: classification, labels: [negative, neutral, positive], thresholds: [-1, 1] }"
                .into(),
            "warmth" => "{ name: warmth, train: own/warmth-train.tsv, dev: own/warmth-dev.tsv, text: text, \
                         label: degree, type: regression, range: [-4, 4], metric: pearson }"
                .into(),
            glue => glue.into(),
        }
    }

    /// The recipe as a file's text.
    pub fn text(&self) -> String {
        let mut text = format!("name: {}\nmode: {}\nseed: 5\ntrials: {}\n", self.name, self.mode, self.trials);
        let mut line = |text_of_line: std::fmt::Arguments| writeln!(text, "{text_of_line}").unwrap();
        line(format_args!("model: {{ path: encoder, {} }}", self.model));
        line(format_args!("data:\n  glue: glue"));
        if !self.data.is_empty() {
            line(format_args!("  {}", self.data.replace(", ", "\n  ")));
        }
        line(format_args!("  tasks:"));
        for task in &self.tasks {
            line(format_args!("    - {task}"));
        }
        line(format_args!("train:\n  single: {{ {} }}\n  multi: {{ {} }}", self.single, self.multi));
        line(format_args!("distill: {{ {} }}", self.distill));
        // The same tests on a machine with GPUs.
        line(format_args!("checkpoint: {{ {} }}\ncluster: {{ device: cpu, {} }}", self.checkpoint, self.cluster));
        if !self.slurm.is_empty() {
            line(format_args!("slurm: {{ {} }}", self.slurm));
        }
        text
    }
}
