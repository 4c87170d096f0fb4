//! Slurm: is it there, and does it take what the recipe's section asks for?

use std::process::{Command, Stdio};

use bam_cluster::config::{SlurmSection, slurm_seconds};

use super::Finding;
use crate::slurm::Allocation;

const ABOUT: &str = "Slurm";

/// A partition, as `sinfo` lists it.
#[derive(Debug, PartialEq, Eq)]
struct Partition {
    name: String,
    is_default: bool,
    is_up: bool,
    /// Longest job in seconds; none: no limit.
    limit: Option<u64>,
    nodes: usize,
}

/// Looks at it.
pub fn look(section: &SlurmSection) -> Vec<Finding> {
    let Ok(version) = said("sinfo", &["--version"]) else {
        return vec![Finding::ok(ABOUT, "is not here (no sinfo on PATH): runs are started by bam run")];
    };
    let mut findings = vec![Finding::ok(ABOUT, version.trim().to_owned())];
    findings.extend(Allocation::of_this_process().map(|job| {
        let tasks = job.tasks.map_or(String::new(), |tasks| format!(", {tasks} tasks"));
        Finding::ok(ABOUT, format!("this is job {}: {} nodes{tasks}", job.name(), job.nodes))
    }));
    // %P ends with a star for the default.
    match said("sinfo", &["--noheader", "--format=%P|%a|%l|%D"]) {
        Ok(text) => findings.extend(partition(&partitions(&text), section)),
        Err(words) => findings.push(Finding::problem(
            ABOUT,
            format!("sinfo does not answer: {words}"),
            "the controller may be away; ask the site",
        )),
    }
    findings.push(match said("srun", &["--mpi=list"]) {
        Ok(text) if text.contains("pmix") => Finding::ok(ABOUT, "srun knows PMIx: it can start ranks as mpirun does"),
        _ => Finding::warning(
            ABOUT,
            "srun knows no PMIx",
            "ranks on several nodes need an mpirun that was built with Slurm's support",
        ),
    });
    findings
}

/// What a command prints.
fn said(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
    // Old versions of srun print their list on stderr.
    let [text, words] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    if output.status.success() { Ok(text + &words) } else { Err(words.trim().to_owned()) }
}

/// The lines of `sinfo`: one for each partition and state of nodes.
fn partitions(text: &str) -> Vec<Partition> {
    let mut all: Vec<Partition> = vec![];
    for line in text.lines() {
        let mut words = line.split('|').map(str::trim);
        let (Some(name), Some(up), Some(limit), Some(nodes)) = (words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        let Ok(nodes) = nodes.parse::<usize>() else { continue };
        let (bare, is_default) = name.strip_suffix('*').map_or((name, false), |bare| (bare, true));
        match all.iter_mut().find(|partition| partition.name == bare) {
            Some(partition) => partition.nodes += nodes,
            None => all.push(Partition {
                name: bare.to_owned(),
                is_default,
                is_up: up == "up",
                limit: slurm_seconds(limit),
                nodes,
            }),
        }
    }
    all
}

/// The partition that jobs would go to, against what they ask for.
fn partition(all: &[Partition], section: &SlurmSection) -> Option<Finding> {
    let names = || all.iter().map(|partition| partition.name.as_str()).collect::<Vec<_>>().join(", ");
    let chosen = match &section.partition {
        // Several may be named, of which Slurm takes the one where the job starts first.
        Some(wanted) => all.iter().find(|partition| wanted.split(',').any(|name| name == partition.name)),
        None => all.iter().find(|partition| partition.is_default),
    };
    let Some(chosen) = chosen else {
        let said = match &section.partition {
            Some(wanted) => format!("there is no partition '{wanted}'"),
            None => "there is no default partition".to_owned(),
        };
        return Some(Finding::problem(ABOUT, said, format!("slurm.partition takes one of {}", names())));
    };
    let Partition { name, limit, nodes, .. } = chosen;
    if !chosen.is_up {
        let said = format!("partition '{name}' is down");
        return Some(Finding::problem(ABOUT, said, format!("wait, or choose another one of {}", names())));
    }
    if section.nodes > *nodes {
        let said = format!("slurm.nodes asks for {} nodes, partition '{name}' has {nodes}", section.nodes);
        return Some(Finding::problem(ABOUT, said, "ask for fewer, or choose another partition"));
    }
    if let (Some(asked), Some(limit)) = (section.seconds(), limit)
        && asked > *limit
    {
        let time = section.time.as_deref().unwrap_or_default();
        let said = format!("slurm.time asks for {time}, partition '{name}' allows {:.1} hours", *limit as f64 / 3600.0);
        let remedy = "ask for less: a job whose time is up stops at a checkpoint and goes on by itself";
        return Some(Finding::problem(ABOUT, said, remedy));
    }
    let limit =
        limit.map_or("without a limit".to_owned(), |limit| format!("of up to {:.1} hours", limit as f64 / 3600.0));
    Some(Finding::ok(ABOUT, format!("partition '{name}': {nodes} nodes, jobs {limit}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    const TEXT: &str = "short*|up|2:00:00|3\nshort*|up|2:00:00|1\nlong|up|7-00:00:00|2\nold|down|infinite|9\n";

    fn with(partition: Option<&str>, nodes: usize, time: Option<&str>) -> Finding {
        let (partition, time) = (partition.map(str::to_owned), time.map(str::to_owned));
        let section = SlurmSection { partition, nodes, time, ..SlurmSection::default() };
        super::partition(&partitions(TEXT), &section).unwrap()
    }

    #[test]
    fn partitions_are_counted_whole() {
        let all = partitions(TEXT);
        assert_eq!(all.len(), 3);
        let short = Partition { name: "short".into(), is_default: true, is_up: true, limit: Some(7200), nodes: 4 };
        assert_eq!(all[0], short);
        assert_eq!((all[1].limit, all[2].limit, all[2].is_up), (Some(604_800), None, false));
    }

    #[test]
    fn what_a_partition_does_not_allow_is_a_problem() {
        assert_eq!(with(None, 4, Some("1:30:00")).said, "partition 'short': 4 nodes, jobs of up to 2.0 hours");
        assert_eq!(with(Some("nowhere,long"), 2, Some("3-0")).verdict, Verdict::Ok);
        for (partition, nodes, time, words) in [
            (Some("tall"), 1, None, "no partition 'tall'"),
            (Some("old"), 1, None, "'old' is down"),
            (None, 5, None, "5 nodes, partition 'short' has 4"),
            (None, 1, Some("2:00:01"), "allows 2.0 hours"),
        ] {
            let found = with(partition, nodes, time);
            assert!(found.verdict == Verdict::Problem && found.said.contains(words), "{found:?}");
        }
    }
}
