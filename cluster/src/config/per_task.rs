//! A setting that may differ from task to task.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One value, or one for each task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "PerTask_{T}")]
pub enum PerTask<T> {
    /// The same for all.
    All(T),
    /// By task name; `default` for the rest, and for a model of several tasks.
    ByTask(BTreeMap<String, T>),
}

impl<T: Copy> PerTask<T> {
    /// The value for a model that learns `tasks`, if there is one.
    pub fn of<S: AsRef<str>>(&self, tasks: &[S]) -> Option<T> {
        match self {
            PerTask::All(value) => Some(*value),
            PerTask::ByTask(values) => {
                let own = if let [only] = tasks { values.get(only.as_ref()) } else { None };
                own.or_else(|| values.get("default")).copied()
            }
        }
    }

    /// All values, each with the task that it is for, if it is for one.
    pub fn said(&self) -> Vec<(Option<&str>, T)> {
        match self {
            PerTask::All(value) => vec![(None, *value)],
            PerTask::ByTask(values) => values.iter().map(|(task, value)| (Some(task.as_str()), *value)).collect(),
        }
    }
}
