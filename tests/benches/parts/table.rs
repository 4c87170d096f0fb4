//! The benchmark's results: a line each as they come, with their targets, and all of them as JSON at the end.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

/// What a figure has to be.
#[derive(Clone, Copy)]
pub enum Target {
    /// It is for information.
    None,
    /// Not more than this.
    AtMost(f64),
    /// Not less than this.
    AtLeast(f64),
}

/// All results so far.
#[derive(Default)]
pub struct Table {
    results: Map<String, Value>,
    part: String,
    missed: usize,
}

impl Table {
    /// Begins a part.
    pub fn part(&mut self, name: &str) {
        println!("\n{name}");
        self.part = name.to_owned();
    }

    /// A result of the current part. The unit follows the value.
    pub fn row(&mut self, name: &str, value: f64, unit: &str, target: Target) {
        let met = match target {
            Target::None => None,
            Target::AtMost(limit) => Some((value <= limit, limit)),
            Target::AtLeast(limit) => Some((value >= limit, limit)),
        };
        let verdict = met.map_or(String::new(), |(met, limit)| {
            format!("   {} its target of {limit} {unit}", if met { "within" } else { "MISSES" })
        });
        println!("{name:<56} {:>12} {unit}{verdict}", figure(value));
        self.missed += usize::from(met.is_some_and(|(met, _)| !met));
        let target = met.map(|(_, limit)| limit);
        self.note(name, json!({ "value": value, "unit": unit, "target": target, "met": met.map(|(met, _)| met) }));
    }

    /// A line that says why there is no result.
    pub fn skipped(&mut self, what: &str, why: &str) {
        println!("skipped: {what} ({why})");
        self.note(what, json!({ "skipped": why }));
    }

    fn note(&mut self, name: &str, value: Value) {
        let part = self.results.entry(self.part.clone()).or_insert_with(|| json!({}));
        part[name] = value;
    }

    /// Writes the results; how many targets were missed.
    pub fn finish(self, path: &Path) -> usize {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, serde_json::to_vec_pretty(&self.results).unwrap()).unwrap();
        println!("\n{}", path.display());
        self.missed
    }
}

/// Whole numbers as they are, others with three digits or more.
fn figure(value: f64) -> String {
    let decimals = match value {
        whole if whole.fract() == 0.0 => 0,
        large if large >= 100.0 => 0,
        middle if middle >= 10.0 => 1,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

/// The middle one.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
