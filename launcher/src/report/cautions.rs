//! What keeps runs that stand side by side from being compared, wholly or in part.

use bam_cluster::task::Metric;

use super::judged_run::JudgedRun;

/// A sentence on each. `tasks`: those of all runs, with their main metrics.
pub fn of(runs: &[JudgedRun], tasks: &[(String, Metric)]) -> Vec<String> {
    let judged = (1..runs.len()).filter_map(|i| other_examples(&runs[..i], &runs[i]));
    let averages = match tasks.iter().find(|(_, metric)| !metric.is_share()) {
        Some((task, _)) => vec![format!("there are no averages: the main metric of '{task}' is an error")],
        None => runs.iter().filter_map(|run| no_average(run, tasks)).collect(),
    };
    judged.chain(averages).collect()
}

/// That a run was judged on other dev examples than one before it.
fn other_examples(before: &[JudgedRun], run: &JudgedRun) -> Option<String> {
    let (other, tasks) =
        before.iter().map(|other| (other, run.judged_otherwise(other))).find(|(_, t)| !t.is_empty())?;
    Some(format!(
        "{} was judged on other dev examples of {} than {}: their scores cannot be compared",
        run.results.name,
        tasks.join(", "),
        other.results.name
    ))
}

/// That a run lacks tasks which others have.
fn no_average(run: &JudgedRun, tasks: &[(String, Metric)]) -> Option<String> {
    let has = |task: &String| run.results.tasks.iter().any(|(own, _)| own == task);
    let lacking: Vec<&str> = tasks.iter().map(|(task, _)| task).filter(|t| !has(t)).map(String::as_str).collect();
    if lacking.is_empty() {
        return None;
    }
    let (name, all) = (&run.results.name, tasks.len());
    Some(format!("{name} has no average: here it is of {all} tasks, and {name} has not learnt {}", lacking.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::super::comparison::Comparison;
    use super::super::fabricated::{self, everywhere};
    use super::*;

    fn run(at: &std::path::Path, name: &str, tasks: &str, gold: f32) -> JudgedRun {
        let recipe =
            format!("name: {name}\nmode: multi\nmodel: {{ path: /m }}\ndata: {{ glue: /g, tasks: [{tasks}] }}\n");
        let made = fabricated::run(&at.join(name), &recipe, |_, _| Some(everywhere(Some(0.5))));
        fabricated::answer(&made, "multi", "stsb", &[(1.0, gold), (2.0, 3.0)]);
        JudgedRun::collect(made.run, made.recipe, made.plan).unwrap()
    }

    #[test]
    fn runs_that_cannot_be_compared_say_so() {
        let dir = tempfile::tempdir().unwrap();
        let said = |runs: &[JudgedRun]| Comparison::of(runs).cautions;
        let [a, b] = [("a", 4.0), ("b", 4.0)].map(|(name, gold)| run(dir.path(), name, "stsb", gold));
        assert_eq!(said(&[a, b]), Vec::<String>::new());
        let [a, b] = [("a", 4.0), ("b", 5.0)].map(|(name, gold)| run(dir.path(), name, "stsb", gold));
        let other = "b was judged on other dev examples of stsb than a: their scores cannot be compared";
        assert_eq!(said(&[a, b]), [other]);
        let [a, b] = [("a", "stsb"), ("b", "stsb, rte")].map(|(name, tasks)| run(dir.path(), name, tasks, 1.0));
        assert_eq!(said(&[a, b]), ["a has no average: here it is of 2 tasks, and a has not learnt rte"]);
    }
}
