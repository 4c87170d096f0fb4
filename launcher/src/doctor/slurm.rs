//! Slurm: is it there, and does it take what the recipe's section asks for?

use std::process::{Command, Stdio};

use bam_cluster::config::{SlurmSection, slurm_seconds};

use super::{Finding, Verdict};
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
    /// Of its largest kind of nodes: cores, MB of memory, GPUs.
    cores: usize,
    memory: u64,
    gpus: usize,
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
    match said("sinfo", &["--noheader", "--format=%P|%a|%l|%D|%c|%m|%G"]) {
        Ok(text) => {
            let all = partitions(&text);
            findings.extend(partition(&all, section));
            // Jobs that ask for something else, where that is wrong.
            let own = section.jobs.keys().filter_map(|job| {
                let finding = partition(&all, &section.of_job(job))?;
                (finding.verdict == Verdict::Problem)
                    .then(|| Finding { said: format!("job '{job}': {}", finding.said), ..finding })
            });
            findings.extend(own);
        }
        Err(words) => findings.push(Finding::problem(
            ABOUT,
            format!("sinfo does not answer: {words}"),
            "the controller may be away; ask the site",
        )),
    }
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
        // `64+` where not all have as many.
        let mut number =
            || words.next().and_then(|word| word.trim_end_matches('+').parse::<u64>().ok()).unwrap_or_default();
        let (cores, memory) = (number() as usize, number());
        let gpus = words.next().map_or(0, gpus_of);
        let (bare, is_default) = name.strip_suffix('*').map_or((name, false), |bare| (bare, true));
        match all.iter_mut().find(|partition| partition.name == bare) {
            Some(known) => {
                known.nodes += nodes;
                known.cores = known.cores.max(cores);
                known.memory = known.memory.max(memory);
                known.gpus = known.gpus.max(gpus);
            }
            None => all.push(Partition {
                name: bare.to_owned(),
                is_default,
                is_up: up == "up",
                limit: slurm_seconds(limit),
                nodes,
                cores,
                memory,
                gpus,
            }),
        }
    }
    all
}

/// The GPUs of generic resources: `gpu:h100:8(S:0-1),nvme:1` has 8.
fn gpus_of(resources: &str) -> usize {
    let count = |part: &str| {
        let bare = part.strip_prefix("gpu")?.split('(').next()?;
        bare.rsplit(':').next()?.parse::<usize>().ok()
    };
    resources.split(',').filter_map(count).sum()
}

/// Megabytes, as Slurm reads `64G`; none if it is not understood.
fn megabytes(text: &str) -> Option<u64> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit.to_ascii_uppercase().trim_end_matches('B') {
        "" | "M" => 1,
        "G" => 1024,
        "T" => 1024 * 1024,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// What a job asks of each node, and a partition's largest nodes do not have. A partition of which nothing is known has all.
fn too_much(section: &SlurmSection, partition: &Partition) -> Option<String> {
    let Partition { name, cores, memory, gpus, .. } = partition;
    let asked = section.gpus_per_node.unwrap_or_default();
    if asked > *gpus && *cores > 0 {
        return Some(format!("slurm.gpus_per_node asks for {asked}, a node of partition '{name}' has {gpus}"));
    }
    let threads = section.cpus_per_task.unwrap_or_default() * asked.max(1);
    if threads > *cores && *cores > 0 {
        return Some(format!(
            "slurm.cpus_per_task asks for {threads} cores on a node, one of partition '{name}' has {cores}"
        ));
    }
    let text = section.memory.as_deref().unwrap_or_default();
    let wanted = megabytes(text).unwrap_or_default();
    let has = *memory as f64 / 1024.0;
    (wanted > *memory && *memory > 0)
        .then(|| format!("slurm.memory asks for {text}, a node of partition '{name}' has {has:.0}G"))
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
    if let Some(said) = too_much(section, chosen) {
        return Some(Finding::problem(ABOUT, said, "ask for less, or choose another partition"));
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

    const TEXT: &str = "short*|up|2:00:00|3|32|64000|(null)\nshort*|up|2:00:00|1|16+|128000+|(null)\n\
                        long|up|7-00:00:00|2|64|256000|gpu:h100:8(S:0-1),nvme:1\nold|down|infinite|9|4|8000|(null)\n";

    fn with(partition: Option<&str>, nodes: usize, time: Option<&str>) -> Finding {
        let (partition, time) = (partition.map(str::to_owned), time.map(str::to_owned));
        let section = SlurmSection { partition, nodes, time, ..SlurmSection::default() };
        super::partition(&partitions(TEXT), &section).unwrap()
    }

    #[test]
    fn partitions_are_counted_whole() {
        let all = partitions(TEXT);
        assert_eq!(all.len(), 3);
        let short = Partition {
            name: "short".into(),
            is_default: true,
            is_up: true,
            limit: Some(7200),
            nodes: 4,
            cores: 32,
            memory: 128_000,
            gpus: 0,
        };
        assert_eq!((&all[0], all[1].gpus), (&short, 8));
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

    #[test]
    fn what_a_node_does_not_have_is_a_problem() {
        let all = partitions(TEXT);
        let asked = |section: SlurmSection| partition(&all, &section).unwrap();
        let long = SlurmSection { partition: Some("long".into()), gpus_per_node: Some(8), ..SlurmSection::default() };
        assert_eq!(asked(SlurmSection { cpus_per_task: Some(8), ..long.clone() }).verdict, Verdict::Ok);
        for (section, words) in [
            (SlurmSection { gpus_per_node: Some(9), ..long.clone() }, "asks for 9, a node of partition 'long' has 8"),
            (
                SlurmSection { cpus_per_task: Some(9), ..long.clone() },
                "asks for 72 cores on a node, one of partition 'long' has 64",
            ),
            (
                SlurmSection { memory: Some("300G".into()), ..long },
                "asks for 300G, a node of partition 'long' has 250G",
            ),
        ] {
            let found = asked(section);
            assert!(found.verdict == Verdict::Problem && found.said.contains(words), "{found:?}");
        }
        assert_eq!(["64G", "4000", "1T", "x"].map(megabytes), [Some(65_536), Some(4_000), Some(1_048_576), None]);
    }
}
