//! Values of a recipe that change nothing in its mode: no mistake, and perhaps not what their author thinks.

use super::per_task::PerTask;
use super::schema::{Annealing, Breadth, Distill, Recipe, Sampling, SamplingMethod};
use super::train::{RateScaling, TrainSection};

impl Recipe {
    /// A sentence on each value that is not the default and has no effect.
    pub fn without_effect(&self) -> Vec<String> {
        [distill(self), training(self), sampling(self).into_iter().collect()].concat()
    }
}

fn idle(key: &str, why: &str) -> String {
    format!("{key} has no effect: {why}")
}

/// `teachers` are refused where they have no effect.
fn distill(recipe: &Recipe) -> Vec<String> {
    let (said, usual) = (&recipe.distill, Distill::default());
    let all = [
        ("annealing", said.annealing != usual.annealing),
        ("lambda", said.constant != usual.constant),
        ("temperature", said.temperature != usual.temperature),
        ("ensemble", said.ensemble != usual.ensemble),
        ("share_teachers", said.share_teachers != usual.share_teachers),
    ];
    let unusual = all.into_iter().filter(|(_, is_unusual)| *is_unusual).map(|(key, _)| key);
    let said_in_vain = |key: &str, why: &str| idle(&format!("distill.{key}"), why);
    if recipe.mode.teachers().is_none() {
        return unusual.map(|key| said_in_vain(key, "this mode has no teachers")).collect();
    }
    let why = "with 'annealing: none' the student learns from gold labels alone, as in mode 'single' or 'multi', which \
               train no teachers for it";
    let unheard = (said.annealing == Annealing::None).then(|| idle("what teachers say", why));
    let of_training = unusual.filter(|key| ["ensemble", "share_teachers"].contains(key) && all_are_given(recipe));
    unheard.into_iter().chain(of_training.map(|key| said_in_vain(key, ALL_GIVEN))).collect()
}

const ALL_GIVEN: &str = "every task's teachers are given, and none is trained";

/// Whether the recipe trains no teachers, although its mode has some.
fn all_are_given(recipe: &Recipe) -> bool {
    recipe.data.tasks.iter().all(|task| recipe.distill.teachers.contains_key(task.name()))
}

fn training(recipe: &Recipe) -> Vec<String> {
    let (train, mode, usual) = (&recipe.train, recipe.mode, TrainSection::default());
    let mut found = vec![];
    if !mode.trains(Breadth::Single) && train.single.search.is_some() {
        found.push(idle("train.single.search", "this mode trains no model of one task"));
    }
    let trains_teachers_alone = mode.students() == Breadth::Multi && mode.trains(Breadth::Single);
    if trains_teachers_alone && train.single.search.is_some() && all_are_given(recipe) {
        found.push(idle("train.single.search", ALL_GIVEN));
    }
    if let (true, Some(search)) = (mode.trains(Breadth::Single), &train.single.search) {
        let (said, usual) = (&train.single, &usual.single);
        for (key, is_replaced) in [
            ("learning_rate", !search.learning_rate.is_empty() && said.learning_rate != usual.learning_rate),
            ("layerwise_decay", !search.layerwise_decay.is_empty() && said.layerwise_decay != usual.layerwise_decay),
        ] {
            let why = format!("train.single.search.{key} is tried in its place");
            found.extend(is_replaced.then(|| idle(&format!("train.single.{key}"), &why)));
        }
    }
    if let PerTask::ByTask(factors) = &train.multi.layerwise_decay {
        let names: Vec<&str> = factors.keys().map(String::as_str).filter(|name| *name != "default").collect();
        if mode.trains(Breadth::Multi) && recipe.data.tasks.len() > 1 && !names.is_empty() {
            let key = format!("train.multi.layerwise_decay of {}", names.join(", "));
            found.push(idle(&key, "a model of several tasks has one factor for all, 'default'"));
        }
    }
    for (key, breadth) in [("train.single", Breadth::Single), ("train.multi", Breadth::Multi)] {
        let (said, usual) = (train.of(breadth), usual.of(breadth));
        let is_unscaled = said.rate_scaling == RateScaling::None && said.rate_batch_size != usual.rate_batch_size;
        if mode.trains(breadth) && is_unscaled {
            let why = "with 'rate_scaling: none' the learning rate is the same for batches of any size";
            found.push(idle(&format!("{key}.rate_batch_size"), why));
        }
    }
    found
}

fn sampling(recipe: &Recipe) -> Option<String> {
    let (said, usual) = (&recipe.sampling, Sampling::default());
    if !recipe.mode.trains(Breadth::Multi) {
        return (*said != usual).then(|| idle("sampling", "this mode trains no model of several tasks"));
    }
    let is_uniform = said.method == SamplingMethod::Uniform;
    (is_uniform && said.exponent != usual.exponent)
        .then(|| idle("sampling.exponent", "'method: uniform' draws all tasks alike"))
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
            (
                "distill: { ensemble: 2, share_teachers: true, teachers: { cola: /a, rte: /b } }\n\
                 train: { single: { search: { learning_rate: [1.0e-5] } } }",
                vec!["distill.ensemble", "distill.share_teachers", "train.single.search"],
            ),
            (
                "train: { single: { learning_rate: 1.0e-5, layerwise_decay: { rte: 1.0 }, search: { layerwise_decay: [0.9, 1.0] } } }",
                vec!["train.single.layerwise_decay"],
            ),
            (
                "train: { single: { learning_rate: 1.0e-5, search: { learning_rate: [2.0e-5] } } }",
                vec!["train.single.learning_rate"],
            ),
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
            "distill: { ensemble: 2, teachers: { cola: /a } }",
            "mode: multi\nsampling: { exponent: 1 }\ntrain: { multi: { layerwise_decay: { default: 0.8 } } }",
            "train: { multi: { batch_size: 512, rate_batch_size: 256, rate_scaling: square-root } }",
            "train: { multi: { batch_size: 64 } }",
        ] {
            assert_eq!(found(more), Vec::<String>::new(), "{more}");
        }
    }
}
