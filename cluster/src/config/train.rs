//! The section `train` of a recipe: epochs, batches, rates and optimizers of each kind of training.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::json_schema;
use super::per_task::PerTask;
use super::schema::Breadth;

/// Settings of the kinds of training. They go by how many tasks a model learns, not by whether it teaches or learns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "TrainSectionInput")]
#[serde(deny_unknown_fields)]
#[schemars(!from, default)]
pub struct TrainSection {
    /// Models of one task: 3 epochs, batch 32, learning rate 5e-5 unless said otherwise.
    pub single: TrainSettings,
    /// Models of all tasks: 6 epochs, batch 128, learning rate 1e-4 unless said otherwise.
    pub multi: TrainSettings,
    /// If it is there (`fine_tune: {}` will do): the model of all tasks is trained on, on each task by itself. 3 epochs,
    /// batch 32, learning rate 1e-5 unless said otherwise.
    pub fine_tune: Option<TrainSettings>,
}

impl TrainSection {
    /// The settings of models of this breadth.
    pub fn of(&self, breadth: Breadth) -> &TrainSettings {
        match breadth {
            Breadth::Single => &self.single,
            Breadth::Multi => &self.multi,
        }
    }
}

impl Default for TrainSection {
    fn default() -> Self {
        TrainSectionInput::default().into()
    }
}

/// One training run's settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = json_schema::train_settings)]
pub struct TrainSettings {
    /// Passes over the data (for several tasks: the sum of their examples is one pass).
    pub epochs: u64,
    /// Examples of a global batch, over all processes.
    pub batch_size: usize,
    /// A rank computes at most this many examples at once and adds up gradients; null: its whole share of the batch.
    pub micro_batch_size: Option<usize>,
    /// Peak learning rate, of batches of `rate_batch_size` examples.
    pub learning_rate: f64,
    /// How the learning rate follows a batch of another size.
    pub rate_scaling: RateScaling,
    /// The batch size that `learning_rate` is meant for.
    pub rate_batch_size: usize,
    /// Factor between the rates of neighbouring layers; one number, or one for each task and `default`.
    pub layerwise_decay: PerTask<f64>,
    /// Share of the steps during which the learning rate rises.
    pub warmup: f64,
    /// Decoupled weight decay; LayerNorm and biases are spared.
    pub weight_decay: f64,
    /// Largest global norm of a gradient; null: gradients are left as they are.
    pub clip_norm: Option<f64>,
    /// How gradients become steps.
    pub optimizer: OptimizerKind,
    /// Mean over the global batch, or sum as in the reference implementation.
    pub loss_reduction: LossReduction,
    /// Settings to try, for models of one task: each task's model is trained with every combination, and the one that is
    /// best on dev counts, as BERT and BAM did it.
    pub search: Option<Search>,
}

/// Settings to try; an empty list leaves the setting as it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Search {
    /// Peak learning rates.
    pub learning_rate: Vec<f64>,
    /// Factors between the rates of neighbouring layers.
    pub layerwise_decay: Vec<f64>,
}

impl TrainSettings {
    /// How many trainings the search asks for.
    pub fn combinations(&self) -> u64 {
        let lengths = self.search.iter().flat_map(|s| [s.learning_rate.len(), s.layerwise_decay.len()]);
        lengths.fold(1, |product, n| product.saturating_mul(n.max(1) as u64))
    }

    /// The settings of every training that the search asks for; these alone without a search.
    pub fn candidates(&self) -> Vec<TrainSettings> {
        let Some(search) = &self.search else { return vec![self.clone()] };
        let without = TrainSettings { search: None, ..self.clone() };
        let mut all = vec![without];
        if !search.learning_rate.is_empty() {
            let with = |s: &TrainSettings, rate: f64| TrainSettings { learning_rate: rate, ..s.clone() };
            all = all.iter().flat_map(|s| search.learning_rate.iter().map(|r| with(s, *r))).collect();
        }
        if !search.layerwise_decay.is_empty() {
            let with = |s: &TrainSettings, factor| TrainSettings { layerwise_decay: PerTask::All(factor), ..s.clone() };
            all = all.iter().flat_map(|s| search.layerwise_decay.iter().map(|f| with(s, *f))).collect();
        }
        all
    }

    /// The layer-wise factor of a model that learns `tasks`.
    pub fn factor(&self, tasks: &[String]) -> f64 {
        self.layerwise_decay.of(tasks).unwrap_or(DEFAULT_LAYERWISE_DECAY)
    }

    /// Peak learning rate of these batches.
    pub fn peak_rate(&self) -> f64 {
        let times = self.batch_size as f64 / self.rate_batch_size as f64;
        match self.rate_scaling {
            RateScaling::None => self.learning_rate,
            RateScaling::SquareRoot => self.learning_rate * times.sqrt(),
            RateScaling::Linear => self.learning_rate * times,
        }
    }
}

/// How the learning rate follows the batch size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RateScaling {
    /// Not at all.
    #[default]
    None,
    /// By the square root, as BAM's own settings for 32 and 128 examples do and as LAMB is used.
    SquareRoot,
    /// In proportion (Goyal et al. 2017).
    Linear,
}

/// How gradients become steps. All have decoupled weight decay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam without bias correction, as BERT and BAM were trained; with it, it is `adamw`.
    #[default]
    #[serde(rename = "bert-adam")]
    BertAdam,
    /// Adam with bias correction, which small tasks are more stable with.
    AdamW,
    /// For batches of thousands of examples: each tensor's step is in proportion to its own length. It corrects its
    /// moments' bias, as published.
    Lamb,
}

/// How the losses of a global batch become one number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LossReduction {
    /// Divided by the global batch size.
    #[default]
    Mean,
    /// Not divided.
    Sum,
}

const DEFAULT_LAYERWISE_DECAY: f64 = 0.9;

/// [`TrainSection`] as written: everything may be left out.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TrainSectionInput {
    single: TrainSettingsInput,
    multi: TrainSettingsInput,
    fine_tune: Option<TrainSettingsInput>,
}

/// [`TrainSettings`] as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TrainSettingsInput {
    epochs: Option<u64>,
    batch_size: Option<usize>,
    micro_batch_size: Option<usize>,
    learning_rate: Option<f64>,
    rate_scaling: Option<RateScaling>,
    rate_batch_size: Option<usize>,
    layerwise_decay: Option<PerTask<f64>>,
    warmup: Option<f64>,
    weight_decay: Option<f64>,
    #[serde(deserialize_with = "said")]
    clip_norm: Option<Option<f64>>,
    optimizer: Option<OptimizerKind>,
    loss_reduction: Option<LossReduction>,
    search: Option<Search>,
}

/// Tells a null that is written from a key that is not.
fn said<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<f64>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl TrainSettingsInput {
    fn or(self, epochs: u64, batch_size: usize, learning_rate: f64) -> TrainSettings {
        TrainSettings {
            epochs: self.epochs.unwrap_or(epochs),
            batch_size: self.batch_size.unwrap_or(batch_size),
            micro_batch_size: self.micro_batch_size,
            learning_rate: self.learning_rate.unwrap_or(learning_rate),
            rate_scaling: self.rate_scaling.unwrap_or_default(),
            rate_batch_size: self.rate_batch_size.unwrap_or(batch_size),
            layerwise_decay: self.layerwise_decay.unwrap_or(PerTask::All(DEFAULT_LAYERWISE_DECAY)),
            warmup: self.warmup.unwrap_or(0.1),
            weight_decay: self.weight_decay.unwrap_or(0.01),
            clip_norm: self.clip_norm.unwrap_or(Some(1.0)),
            optimizer: self.optimizer.unwrap_or_default(),
            loss_reduction: self.loss_reduction.unwrap_or_default(),
            search: self.search,
        }
    }
}

/// What an empty section of each kind becomes, as JSON.
pub(super) fn defaults_by_kind() -> [(&'static str, Value); 3] {
    let fine_tune = Some(TrainSettingsInput::default());
    let train = TrainSection::from(TrainSectionInput { fine_tune, ..TrainSectionInput::default() });
    // Into memory, and with text for keys.
    let json = |settings: Option<&TrainSettings>| {
        serde_json::to_value(settings).unwrap_or_else(|e| unreachable!("not serialisable as JSON: {e}"))
    };
    [
        ("single", json(Some(&train.single))),
        ("multi", json(Some(&train.multi))),
        ("fine_tune", json(train.fine_tune.as_ref())),
    ]
}

impl From<TrainSectionInput> for TrainSection {
    fn from(input: TrainSectionInput) -> Self {
        TrainSection {
            single: input.single.or(3, 32, 5e-5),
            multi: input.multi.or(6, 128, 1e-4),
            fine_tune: input.fine_tune.map(|settings| settings.or(3, 32, 1e-5)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_has_its_own_factor_and_a_model_of_several_the_default() {
        let decay: PerTask<f64> = serde_norway::from_str("{ rte: 1.0, cola: 0.8, default: 0.95 }").unwrap();
        let of = |decay: &PerTask<f64>, tasks: &[&str]| {
            let settings = TrainSettings { layerwise_decay: decay.clone(), ..TrainSection::default().single };
            settings.factor(&tasks.iter().map(|task| (*task).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!([of(&decay, &["rte"]), of(&decay, &["cola"]), of(&decay, &["mnli"])], [1.0, 0.8, 0.95]);
        assert_eq!(of(&decay, &["rte", "cola"]), 0.95);
        let without: PerTask<f64> = serde_norway::from_str("{ rte: 1.0 }").unwrap();
        assert_eq!([of(&without, &["rte"]), of(&without, &["cola"])], [1.0, 0.9]);
        assert_eq!(of(&PerTask::All(0.7), &["rte"]), 0.7);
    }

    #[test]
    fn clipping_is_switched_off_by_null_alone() {
        let clip = |text: &str| serde_norway::from_str::<TrainSection>(text).unwrap().multi.clip_norm;
        let all = ["{}", "multi: { clip_norm: 2 }", "multi: { clip_norm: null }", "multi: { clip_norm: ~ }"].map(clip);
        assert_eq!(all, [Some(1.0), Some(2.0), None, None]);
        let off = serde_norway::from_str::<TrainSection>("multi: { clip_norm: null }").unwrap();
        let again: TrainSection = serde_norway::from_str(&serde_norway::to_string(&off).unwrap()).unwrap();
        assert_eq!(again, off);
    }

    #[test]
    fn a_search_tries_every_combination() {
        let read = |text: &str| serde_norway::from_str::<TrainSection>(text).unwrap().single.candidates();
        assert_eq!(read("{}").len(), 1);
        let tried: Vec<(f64, PerTask<f64>, bool)> =
            read("single: { search: { learning_rate: [5.0e-5, 3.0e-5], layerwise_decay: [1.0, 0.9] } }")
                .into_iter()
                .map(|s| (s.learning_rate, s.layerwise_decay, s.search.is_none()))
                .collect();
        let all = PerTask::All;
        let expected = [(5e-5, all(1.0), true), (5e-5, all(0.9), true), (3e-5, all(1.0), true), (3e-5, all(0.9), true)];
        assert_eq!(tried, expected);
        assert_eq!(read("single: { search: { learning_rate: [2.0e-5] } }")[0].layerwise_decay, all(0.9));
    }
}
