//! Values of a recipe that change nothing in its mode: no mistake, and perhaps not what their author thinks.

use super::schema::{Annealing, Breadth, Distill, Recipe, Sampling, SamplingMethod};
use super::train::{LayerwiseDecay, RateScaling, TrainSettings};

impl Recipe {
    /// A sentence on each value that is not the default and has no effect.
    pub fn without_effect(&self) -> Vec<String> {
        let mut found = vec![];
        let mut idle = |key: &str, why: String| found.push(format!("{key} has no effect: {why}"));
        let mode = serde_json::to_value(self.mode).ok().and_then(|name| name.as_str().map(str::to_owned));
        let mode = format!("mode '{}'", mode.unwrap_or_default());
        if self.mode.teachers().is_none() {
            for key in said(&self.distill) {
                idle(&format!("distill.{key}"), format!("{mode} has no teachers"));
            }
        } else if self.distill.annealing == Annealing::None {
            let why = "with 'annealing: none' the student learns from gold labels alone; mode 'single' and 'multi' do so \
                       without the work of training teachers";
            idle("what teachers say", why.to_owned());
        }
        let has_single = self.mode.trains(Breadth::Single);
        if !has_single && self.train.single.search.is_some() {
            idle("train.single.search", format!("{mode} trains no model of one task"));
        }
        let has_multi = self.mode.trains(Breadth::Multi);
        let is_sampled = self.sampling != Sampling::default();
        if !has_multi && is_sampled {
            idle("sampling", format!("{mode} trains no model of several tasks"));
        } else if is_sampled && self.sampling.method == SamplingMethod::Uniform {
            if self.sampling.exponent != Sampling::default().exponent {
                idle("sampling.exponent", "'method: uniform' draws all tasks alike".to_owned());
            }
        }
        if let LayerwiseDecay::ByTask(factors) = &self.train.multi.layerwise_decay
            && self.data.tasks.len() > 1
        {
            let names: Vec<&str> = factors.keys().map(String::as_str).filter(|name| *name != "default").collect();
            if has_multi && !names.is_empty() {
                let why = "a model of several tasks has one factor for all, 'default'".to_owned();
                idle(&format!("train.multi.layerwise_decay of {}", names.join(", ")), why);
            }
        }
        let trained = [("single", &self.train.single, has_single), ("multi", &self.train.multi, has_multi)];
        for (kind, settings, _) in
            trained.into_iter().filter(|(_, settings, is_trained)| *is_trained && is_unscaled(settings))
        {
            let why = format!("'rate_scaling: none' leaves the rate as it is for batches of {}", settings.batch_size);
            idle(&format!("train.{kind}.rate_batch_size"), why);
        }
        found
    }
}

/// The keys of `distill` that are not the default, but for `teachers`, which are refused where they have no effect.
fn said(distill: &Distill) -> Vec<&'static str> {
    let usual = Distill::default();
    let all = [
        ("annealing", distill.annealing != usual.annealing),
        ("lambda", distill.constant != usual.constant),
        ("temperature", distill.temperature != usual.temperature),
        ("ensemble", distill.ensemble != usual.ensemble),
        ("share_teachers", distill.share_teachers != usual.share_teachers),
    ];
    all.into_iter().filter(|(_, is_said)| *is_said).map(|(key, _)| key).collect()
}

/// Whether a rate is said to be meant for batches of another size, and does not follow it.
fn is_unscaled(settings: &TrainSettings) -> bool {
    settings.rate_scaling == RateScaling::None && settings.rate_batch_size != settings.batch_size
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(more: &str) -> Vec<String> {
        let text = format!("name: x\nmodel: {{ path: m }}\ndata: {{ glue: g, tasks: [cola, rte] }}\n{more}\n");
        serde_norway::from_str::<Recipe>(&text).unwrap().without_effect()
    }

    #[test]
    fn what_has_no_effect_in_a_mode_is_named() {
        for (more, keys) in [
            ("mode: multi\ndistill: { ensemble: 2, temperature: 2 }", vec!["distill.temperature", "distill.ensemble"]),
            (
                "mode: single\ndistill: { annealing: constant, lambda: 0.5, share_teachers: true }",
                vec!["distill.annealing", "distill.lambda", "distill.share_teachers"],
            ),
            ("mode: multi\ntrain: { single: { search: { learning_rate: [1.0e-5] } } }", vec!["train.single.search"]),
            ("mode: single-to-single\nsampling: { method: multiples }", vec!["sampling"]),
            ("mode: multi\nsampling: { method: uniform, exponent: 1 }", vec!["sampling.exponent"]),
            (
                "train: { multi: { layerwise_decay: { rte: 1.0, default: 0.9 } } }",
                vec!["train.multi.layerwise_decay of rte"],
            ),
            ("distill: { annealing: none }", vec!["what teachers say"]),
            ("train: { multi: { rate_batch_size: 512 } }", vec!["train.multi.rate_batch_size"]),
        ] {
            let said = found(more);
            let named: Vec<&str> = said.iter().map(|s| s.split(" has no effect: ").next().unwrap()).collect();
            assert_eq!(named, keys, "{more}");
        }
    }

    #[test]
    fn what_has_an_effect_is_not() {
        for more in [
            "",
            "mode: multi",
            "mode: single\ntrain: { single: { search: { learning_rate: [1.0e-5] }, layerwise_decay: { rte: 1.0 } } }",
            "sampling: { method: uniform }\ndistill: { ensemble: 2, temperature: 2 }",
            "mode: multi\nsampling: { exponent: 1 }\ntrain: { multi: { layerwise_decay: { default: 0.8 } } }",
            "train: { multi: { batch_size: 512, rate_batch_size: 128, rate_scaling: square-root } }",
        ] {
            assert_eq!(found(more), Vec::<String>::new(), "{more}");
        }
    }
}
