//! The model card (README.md) that goes with an exported model: what it does, how good it is, how it came about, how it is
//! loaded. What it may be used for is its owner's to say.

use bam_cluster::config::Recipe;
use bam_cluster::plan::{Plan, StageWork, TrainStage};
use bam_cluster::published::PublishedHead;
use bam_cluster::stage_record::TaskScores;
use serde_json::Value;

/// What a card is about.
pub struct ModelCard<'a> {
    /// What was asked for.
    pub recipe: &'a Recipe,
    /// What followed from it.
    pub plan: &'a Plan,
    /// The stage that trained the model.
    pub stage: &'a str,
    /// The model's head.
    pub head: &'a PublishedHead,
    /// Its scores on dev, if they are there.
    pub scores: Option<&'a TaskScores>,
}

impl ModelCard<'_> {
    /// The card, in Markdown with the header that model hubs read.
    ///
    /// # Errors
    /// The recipe is not to be written as YAML.
    pub fn render(&self) -> anyhow::Result<String> {
        let task = &self.head.task;
        let (name, mode) = (&self.recipe.name, self.recipe.mode.title());
        let encoder = self.recipe.model.path.file_name().unwrap_or_default().to_string_lossy();
        let front = "---\nlibrary_name: transformers\npipeline_tag: text-classification\ntags: [bert, multi-task, distillation, \
                     born-again-multi-task]\n# license: yours to choose, within what the encoder's and the data's licences \
                     allow\n---\n";
        let parts = [
            front.to_owned(),
            format!("# {task} ({name})\n\n{encoder}, trained on the task `{task}` by bam, mode {mode}.\n"),
            self.output(),
            self.scores(),
            self.training(),
            self.loading(),
            "## Licence and use\n\nNot said here: it depends on the licences of the encoder and of the training data, and is \
             for the owner of this model to fill in.\n"
                .to_owned(),
            format!("## Recipe\n\n```yaml\n{}```\n", without_places(self.recipe)?),
        ];
        Ok(parts.join("\n"))
    }

    fn output(&self) -> String {
        match self.head.range {
            None => {
                let labels: Vec<String> = self.head.labels.iter().map(|label| format!("`{label}`")).collect();
                format!("It tells apart: {}.\n", labels.join(", "))
            }
            Some([low, high]) => format!("It gives a score from {low} to {high}.\n"),
        }
    }

    fn scores(&self) -> String {
        let Some(scores) = self.scores else { return "## Scores\n\nIt has not been judged on a dev set.\n".to_owned() };
        let row = |(metric, value): (&String, &Option<f64>)| {
            format!("| {metric} | {} |\n", value.map_or("undefined".to_owned(), |v| format!("{v:.4}")))
        };
        let rows: String = scores.metrics.iter().map(row).collect();
        format!("## Scores\n\nOn the dev set ({} examples):\n\n| metric | value |\n|---|---|\n{rows}", scores.examples)
    }

    fn training(&self) -> String {
        let mut text = format!("## Training\n\nStage `{}` of a run with plan `{}`", self.stage, self.plan.hash());
        let train = self.plan.stage(self.stage).and_then(|stage| match &stage.work {
            StageWork::Train(train) => Some(train),
            _ => None,
        });
        match train {
            None => text + ": the best on dev of several models.\n",
            Some(train) => {
                text += ".\n\n";
                text += &how(train).into_iter().map(|line| format!("- {line}\n")).collect::<String>();
                text + "\nMethod: Clark et al., *BAM! Born-Again Multi-Task Networks for Natural Language Understanding*, ACL 2019.\n"
            }
        }
    }

    fn loading(&self) -> String {
        let tasks = self.recipe.tasks();
        let is_pair = tasks.iter().find(|t| t.name == self.head.task).is_some_and(|t| t.source.layout.text_b.is_some());
        let texts = if is_pair { "\"the first text\", \"the second text\"" } else { "\"the text\"" };
        let answer = match (self.head.range, self.head.output) {
            (None, _) => "print(model.config.id2label[output.argmax(-1).item()])".to_owned(),
            (Some([low, high]), output) => {
                let is_linear = matches!(output, Some(bam_cluster::config::RegressionOutput::Linear));
                let unit = if is_linear { "output" } else { "torch.sigmoid(output)" };
                format!("print({low} + ({high} - {low}) * {unit}.item())")
            }
        };
        format!(
            "## How to load it\n\n```python\nimport torch\nfrom transformers import AutoModelForSequenceClassification, \
             AutoTokenizer\n\ntokenizer = AutoTokenizer.from_pretrained(\"path/to/this/directory\")\nmodel = \
             AutoModelForSequenceClassification.from_pretrained(\"path/to/this/directory\").eval()\ntokens = \
             tokenizer({texts}, truncation=True, max_length={}, return_tensors=\"pt\")\nwith torch.no_grad():\n    output \
             = model(**tokens).logits\n{answer}\n```\n",
            self.recipe.model.max_length
        )
    }
}

/// The part of the recipe that decides what is learnt, without where anything lies: cards are for others to read.
fn without_places(recipe: &Recipe) -> anyhow::Result<String> {
    let mut tree = serde_json::to_value(recipe)?;
    if let Some(sections) = tree.as_object_mut() {
        let told = ["mode", "seed", "reproducible", "model", "data", "train", "distill", "sampling"];
        sections.retain(|name, _| told.contains(&name.as_str()));
        for (section, place) in [("model", "path"), ("data", "glue"), ("data", "tasks"), ("distill", "teachers")] {
            sections.get_mut(section).and_then(Value::as_object_mut).and_then(|keys| keys.remove(place));
        }
    }
    Ok(serde_norway::to_string(&tree)?)
}

/// A training in a few lines.
fn how(train: &TrainStage) -> Vec<String> {
    let settings = &train.settings;
    let mut lines = vec![match &train.tasks[..] {
        [only] => format!("learnt `{only}` alone"),
        several => format!("one encoder learnt {} tasks at once: {}", several.len(), several.join(", ")),
    }];
    let mut teachers: Vec<&str> = train.teachers.iter().map(|t| t.name.as_str()).collect();
    teachers.dedup();
    if !teachers.is_empty() {
        let lambda = match train.schedule.constant_lambda {
            None => "rising from 0 to 1 (teacher annealing)".to_owned(),
            Some(lambda) => lambda.to_string(),
        };
        lines.push(format!(
            "taught by {}, temperature {}; weight of the gold labels: {lambda}",
            teachers.join(", "),
            train.temperature
        ));
    }
    lines.extend(train.start.as_ref().map(|start| format!("goes on from the model of `{start}`")));
    lines.push(format!(
        "{} optimizer steps of {} examples, learning rate {} with {} steps of warm-up, layer-wise decay {}, seed {}",
        train.schedule.total_steps,
        settings.batch_size,
        train.schedule.base_rate,
        train.schedule.warmup_steps,
        train.layerwise_decay,
        train.seed
    ));
    lines
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bam_cluster::config::RegressionOutput;
    use bam_cluster::plan::TaskSize;

    use super::*;

    fn card(head: &PublishedHead, stage: &str) -> String {
        let text = "name: x\nmodel: { path: /models/bert }\ndata: { glue: /g, tasks: [mrpc, stsb] }\n";
        let recipe: Recipe = serde_norway::from_str(text).unwrap();
        let size = |task: &str| TaskSize { task: task.into(), train: 90, dev: 9, further: BTreeMap::new() };
        let plan = Plan::derive(&recipe, &[size("mrpc"), size("stsb")]);
        let metrics = BTreeMap::from([("accuracy".to_owned(), Some(0.875)), ("f1".to_owned(), None)]);
        let scores = TaskScores { metrics, examples: 9, classes_predicted: Some(2), spread: None };
        let scores = (head.task == "mrpc").then_some(&scores);
        ModelCard { recipe: &recipe, plan: &plan, stage, head, scores }.render().unwrap()
    }

    #[test]
    fn a_card_says_what_the_model_is_and_how_it_came_about() {
        let head =
            PublishedHead { task: "mrpc".into(), labels: vec!["0".into(), "1".into()], range: None, output: None };
        let card = card(&head, "student");
        for words in [
            "---\nlibrary_name: transformers\n",
            "# mrpc (x)\n\nbert, trained on the task `mrpc` by bam, mode Single→Multi.",
            "It tells apart: `0`, `1`.",
            "On the dev set (9 examples)",
            "| accuracy | 0.8750 |\n| f1 | undefined |",
            "one encoder learnt 2 tasks at once: mrpc, stsb",
            "taught by teacher-mrpc, teacher-stsb, temperature 1; weight of the gold labels: rising from 0 to 1",
            "tokenizer(\"the first text\", \"the second text\", truncation=True, max_length=128",
            "model.config.id2label[",
            "\nmode: single-to-multi\n",
        ] {
            assert!(card.contains(words), "'{words}' is not in {card}");
        }
        // Nobody else's business.
        assert!(!card.contains("/models") && !card.contains("/g\n") && !card.contains("slurm"), "{card}");
    }

    #[test]
    fn a_score_is_scaled_as_it_was_learnt() {
        let labels = vec!["score".into()];
        let output = Some(RegressionOutput::Sigmoid);
        let head = PublishedHead { task: "stsb".into(), labels, range: Some([0.0, 5.0]), output };
        let card = card(&head, "teacher-stsb");
        assert!(card.contains("print(0 + (5 - 0) * torch.sigmoid(output).item())"), "{card}");
        assert!(card.contains("learnt `stsb` alone") && card.contains("It has not been judged"), "{card}");
    }
}
