//! The batch script of one of a run's jobs, as a text that people can read: rendered from recipe and paths alone.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bam_cluster::config::Recipe;
use bam_cluster::exit_code::STOPPED_AT_CHECKPOINT;
use bam_cluster::run_dir::RunDir;

use super::chain::{ALL, ChainJob, Ranks};
use crate::shell::quoted;

/// Everything that the script follows from.
#[derive(Debug)]
pub struct BatchScript<'a> {
    /// The recipe, with as many processes as the job is to have.
    pub recipe: &'a Recipe,
    /// Where the run is.
    pub run: &'a RunDir,
    /// Where `bam submit` was run.
    pub directory: &'a Path,
    /// The program.
    pub bam: &'a Path,
    /// Which of the run's jobs it is.
    pub job: &'a ChainJob,
}

/// What a job asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Resources {
    nodes: usize,
    tasks: usize,
    gpus_per_node: Option<usize>,
}

/// A script that cannot be made, or that is none.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// A path cannot be written into it.
    #[error("{path:?} cannot be named in a batch script: {problem}; use another path")]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        problem: &'static str,
    },
    /// There are more nodes than ranks.
    #[error(
        "slurm.nodes: {nodes} nodes have nothing to do for {processes} processes; use more of them (-n) or fewer nodes"
    )]
    Idle {
        /// Nodes asked for.
        nodes: usize,
        /// Ranks.
        processes: usize,
    },
    /// Hosts and a batch job exclude one another.
    #[error("cluster.hosts: a batch job has the nodes that Slurm gives it; leave it out, or use 'bam run'")]
    Hosts,
    /// The shell does not understand it.
    #[error("the batch script is no sound script, most likely for a line of slurm.prologue: {words}")]
    Shell {
        /// What bash says.
        words: String,
    },
    /// There is no bash to look at it.
    #[error("bash: {source}\n  a batch script is run by it")]
    NoBash {
        /// Why.
        source: io::Error,
    },
}

impl BatchScript<'_> {
    /// The script.
    ///
    /// # Errors
    /// The recipe does not fit a batch job, or a path cannot be written into a script.
    pub fn render(&self) -> Result<String, ScriptError> {
        let which = if self.job.name == ALL { String::new() } else { format!(" '{}'", self.job.name) };
        let mut text = format!(
            "#!/bin/bash\n\
             # The batch job{which} of the run '{name}', written by bam {version}. To change it, change the recipe and\n\
             # submit it again with 'bam submit'.\n#\n",
            name = self.recipe.name,
            version = env!("CARGO_PKG_VERSION"),
        );
        text += &self.directives()?;
        text += &self.preparation()?;
        text += &self.work()?;
        text += ENDING;
        Ok(text)
    }

    /// What is asked of Slurm.
    fn directives(&self) -> Result<String, ScriptError> {
        let (slurm, cluster) = (self.recipe.slurm.of_job(&self.job.name), &self.recipe.cluster);
        if !cluster.hosts.is_empty() {
            return Err(ScriptError::Hosts);
        }
        let Resources { nodes, tasks, gpus_per_node } = self.resources()?;
        let mut lines = vec![];
        let mut option = |name: &str, value: Option<String>| {
            lines.extend(value.map(|value| format!("#SBATCH --{name}={value}")));
        };
        let name = slurm.job_name.clone().unwrap_or_else(|| self.recipe.name.clone());
        option("job-name", Some(if self.job.name == ALL { name } else { format!("{name}-{}", self.job.name) }));
        option("array", self.array());
        option("partition", slurm.partition.clone());
        option("account", slurm.account.clone());
        option("qos", slurm.qos.clone());
        option("constraint", slurm.constraint.clone());
        option("reservation", slurm.reservation.clone());
        option("nodes", Some(nodes.to_string()));
        option("ntasks", Some(tasks.to_string()));
        let is_even = nodes > 1 && tasks.is_multiple_of(nodes);
        option("ntasks-per-node", is_even.then(|| (tasks / nodes).to_string()));
        option("cpus-per-task", Some(slurm.cpus_per_task.unwrap_or(cluster.threads).to_string()));
        option("gpus-per-node", gpus_per_node.map(|n| n.to_string()));
        option("mem", slurm.memory.clone());
        option("time", slurm.time.clone());
        option("mail-user", slurm.mail.as_ref().map(|mail| mail.user.clone()));
        option("mail-type", slurm.mail.as_ref().map(|mail| mail.types.join(",")));
        option("chdir", Some(in_directive(self.directory)?));
        let mut text = lines.join("\n");
        text += "\n# The output of all starts of the job, one after the other.\n";
        // '%' begins a field in the name of an output.
        let directory = in_directive(self.run.path())?.replace('%', "%%");
        let name = self.run.job_output(if self.job.is_array { "%A_%a" } else { "%j" });
        let name = name.strip_prefix(self.run.path()).unwrap_or(&name).display().to_string();
        text += &match directory.strip_suffix('"') {
            Some(open) => format!("#SBATCH --output={open}/{name}\"\n"),
            None => format!("#SBATCH --output={directory}/{name}\n"),
        };
        text += "#SBATCH --open-mode=append\n";
        text += "# So many seconds before its end the job is told, so that it stops at a checkpoint and is put into the queue again.\n";
        text += &format!("#SBATCH --signal=B:USR1@{}\n#SBATCH --requeue\n", slurm.lead);
        if !slurm.extra.is_empty() {
            text += "# What else the recipe asks for (slurm.extra).\n";
            text.extend(slurm.extra.iter().map(|option| format!("#SBATCH {option}\n")));
        }
        Ok(text)
    }

    /// The elements to submit, and how many may run at once.
    fn array(&self) -> Option<String> {
        let numbers: Vec<String> = self.job.elements.iter().map(|element| element.index.to_string()).collect();
        let limit = self.recipe.slurm.at_once.map(|n| format!("%{n}")).unwrap_or_default();
        self.job.is_array.then(|| numbers.join(",") + &limit)
    }

    /// As much of what the recipe gives the whole run as the job has ranks for.
    fn resources(&self) -> Result<Resources, ScriptError> {
        let (slurm, processes) = (&self.recipe.slurm, self.recipe.cluster.processes);
        let nodes = slurm.nodes;
        if processes < nodes {
            return Err(ScriptError::Idle { nodes, processes });
        }
        let room = processes.div_ceil(nodes);
        let gpus = |of_job: Option<usize>| match slurm.jobs.get(&self.job.name).and_then(|own| own.gpus_per_node) {
            Some(own) => Some(own).filter(|n| *n > 0),
            None => of_job,
        };
        let without = |tasks| Resources { nodes: 1, tasks, gpus_per_node: gpus(None) };
        Ok(match self.job.ranks {
            Ranks::OneNode => without(room),
            Ranks::One => without(1),
            Ranks::Computing(tasks) => {
                let nodes = tasks.div_ceil(room).min(nodes);
                // The ranks of one node share its GPUs evenly.
                let share = slurm.gpus_per_node.map(|n| (n * tasks.min(room)).div_ceil(room));
                Resources { nodes, tasks, gpus_per_node: gpus(share) }
            }
        })
    }

    /// Signals, modules and the recipe's own lines.
    fn preparation(&self) -> Result<String, ScriptError> {
        let slurm = &self.recipe.slurm;
        let job = if self.job.is_array { ELEMENT_NAME } else { JOB_NAME };
        let mut text = format!("\nrun={}\n{job}{SIGNALS}", in_shell(self.run.path())?);
        if !slurm.modules.is_empty() {
            text += MODULES;
            text.extend(slurm.modules.iter().map(|module| format!("module load {} || exit\n", quoted(module))));
        }
        if !slurm.prologue.is_empty() {
            text += "\n# The recipe's own lines (slurm.prologue); one that fails ends the job.\nset -e\n";
            text.extend(slurm.prologue.iter().map(|line| format!("{line}\n")));
            text += "set +e\n";
        }
        Ok(text)
    }

    /// The run itself.
    fn work(&self) -> Result<String, ScriptError> {
        let slurm = &self.recipe.slurm;
        let mut words: Vec<String> = slurm.container.iter().map(|word| quoted(word)).collect();
        words.extend([in_shell(self.bam)?, "run".to_owned(), in_shell(&self.run.job_recipe())?]);
        words.extend(["--run-dir".to_owned(), "\"$run\"".to_owned()]);
        let tasks = self.resources()?.tasks;
        words.extend(["-n".to_owned(), tasks.to_string()]);
        if self.recipe.cluster.most_single_processes().is_some_and(|most| most > tasks) {
            words.extend(["-o".to_owned(), format!("cluster.single_processes={tasks}")]);
        }
        words.extend(["-o".to_owned(), format!("checkpoint.lead={}", slurm.lead)]);
        let (stages, choice) = match &self.job.elements[..] {
            _ if self.job.is_array => (Some("\"$stages\"".to_owned()), self.choice()),
            [only] => (Some(quoted(&only.stages.join(","))), String::new()),
            _ => (None, String::new()),
        };
        words.extend(stages.into_iter().flat_map(|stages| ["--stages".to_owned(), stages]));
        Ok(format!(
            "{choice}{BEFORE_WORK}{} &\nbam=$!\n{AFTER_START}[ \"$status\" -eq {STOPPED_AT_CHECKPOINT} ] || exit \"$status\"\n",
            words.join(" ")
        ))
    }

    /// Which stages are whose in an array.
    fn choice(&self) -> String {
        let mut text = "\n# What each element of the array does.\ncase $SLURM_ARRAY_TASK_ID in\n".to_owned();
        for element in &self.job.elements {
            text += &format!("{}) stages={} ;;\n", element.index, quoted(&element.stages.join(",")));
        }
        text + "*) say 'there is no such element'; exit 1 ;;\nesac\n"
    }
}

const JOB_NAME: &str = "job=$SLURM_JOB_ID\n";

/// `SLURM_JOB_ID` is a number of the element's own, which for one of them is also that of the whole array.
const ELEMENT_NAME: &str = "job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID\n";

const SIGNALS: &str = r#"
# Slurm's signals come to this script, which passes them on: for either, bam stops at a checkpoint.
bam=''
signals=''
pass_on() {
    signals="$signals $1"
    interrupted=yes
    [ -z "$bam" ] || kill -s "$1" "$bam" 2>/dev/null
}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM
say() { printf '=== job %s, start %s, %s: %s\n' "$job" "${SLURM_RESTART_COUNT:-0}" "$(date +%FT%T)" "$1"; }

if [ -e "$run/slurm/cancelled" ]; then
    say 'cancelled'
    exit 75
fi
"#;

const MODULES: &str = r"
# Modules; where a batch shell does not know them, they are where their packages put them.
if ! type module >/dev/null 2>&1; then
    for file in /etc/profile.d/lmod.sh /etc/profile.d/modules.sh /etc/profile.d/z00_lmod.sh; do
        [ -r $file ] && . $file && break
    done
fi
";

const BEFORE_WORK: &str = r#"
if [ -n "$signals" ]; then
    say 'the time was up before bam was started'
    exit 1
fi
say "on ${SLURM_JOB_NODELIST:-$(hostname)}"
"#;

const AFTER_START: &str = r#"# One that came just before bam had its number.
for signal in $signals; do
    kill -s "$signal" "$bam"
done
# A signal ends 'wait' before bam ends.
interrupted=yes
while [ -n "$interrupted" ]; do
    interrupted=''
    wait "$bam"
    status=$?
done

# 75: bam has stopped at a checkpoint. Anything else is the end of the job, good or bad.
"#;

const ENDING: &str = r#"if [ -e "$run/slurm/cancelled" ]; then
    say 'stopped at a checkpoint, cancelled'
    exit 75
fi
# TERM is from somebody who ends the job, unless its time is up, or it is to make room for another and still runs.
case $signals in
*TERM*)
    case "$(squeue --noheader --jobs="$job" --format='%T %r')" in
    'RUNNING '* | *' TimeLimit') ;;
    *)
        say 'stopped at a checkpoint, ended from outside'
        exit 75
        ;;
    esac
    ;;
esac
# Slurm may have given this node up, and have started the job elsewhere.
restarts=$(scontrol --oneliner show job "$job" | grep -o ' Restarts=[0-9]*')
if [ -n "$restarts" ] && [ "${restarts#*=}" != "${SLURM_RESTART_COUNT:-0}" ]; then
    say 'a later start has taken over'
    exit 75
fi
say 'stopped at a checkpoint, back into the queue'
for pause in 1 2 5 10 0; do
    # Slurm ends this script soon after.
    scontrol requeue "$job" && exit 75
    sleep "$pause"
done
say 'could not be put into the queue again; submit the run again to go on'
exit 75
"#;

/// A path in a `#SBATCH` line, which `sbatch` reads with rules of its own.
fn in_directive(path: &Path) -> Result<String, ScriptError> {
    let text = in_script(path)?;
    if text.contains(['"', '\\']) {
        return Err(ScriptError::Path { path: path.to_owned(), problem: "sbatch reads \" and \\ in its own way" });
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,@+=%".contains(c);
    Ok(if text.chars().all(plain) { text.to_owned() } else { format!("\"{text}\"") })
}

fn in_shell(path: &Path) -> Result<String, ScriptError> {
    in_script(path).map(quoted)
}

fn in_script(path: &Path) -> Result<&str, ScriptError> {
    let problem = |problem| ScriptError::Path { path: path.to_owned(), problem };
    let text = path.to_str().ok_or_else(|| problem("it is not UTF-8"))?;
    if text.chars().any(char::is_control) { Err(problem("it holds a control character")) } else { Ok(text) }
}

/// Has bash read a script without running it.
///
/// # Errors
/// Bash finds fault with it. A here-document without an end is a mere warning to bash, and would swallow the rest.
pub fn check_syntax(script: &str) -> Result<(), ScriptError> {
    let no_bash = |source| ScriptError::NoBash { source };
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-n"]).env_remove("BASH_ENV").env("LC_ALL", "C");
    let mut child = bash.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(no_bash)?;
    if let Some(mut pipe) = child.stdin.take() {
        // One that finds fault may not read to the end.
        let _ = pipe.write_all(script.as_bytes());
    }
    let output = child.wait_with_output().map_err(no_bash)?;
    if output.status.success() && output.stderr.is_empty() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).replace("bash: ", "");
    Err(ScriptError::Shell { words: words.trim().lines().collect::<Vec<_>>().join("; ") })
}

#[cfg(test)]
mod tests {
    use super::super::chain::Element;
    use super::*;

    const SMALL: &str = "name: tiny\nmodel: { path: /m }\ndata: { glue: /g, tasks: [cola] }\n";

    fn recipe(more: &str) -> Recipe {
        let recipe: Recipe = serde_norway::from_str(&format!("{SMALL}{more}")).unwrap();
        recipe
    }

    fn rendered(recipe: &Recipe, run: &str) -> Result<String, ScriptError> {
        rendered_job(recipe, run, &ChainJob::whole(&recipe.cluster))
    }

    fn rendered_job(recipe: &Recipe, run: &str, job: &ChainJob) -> Result<String, ScriptError> {
        let (run, directory, bam) = (RunDir::new(run), Path::new("/home/a"), Path::new("/opt/bam/bam"));
        BatchScript { recipe, run: &run, directory, bam, job }.render()
    }

    fn job(name: &str, elements: &[(u64, &str)], is_array: bool, ranks: Ranks) -> ChainJob {
        let element = |(index, stage): &(u64, &str)| Element { index: *index, stages: vec![(*stage).to_owned()] };
        ChainJob { name: name.into(), elements: elements.iter().map(element).collect(), is_array, ranks, after: vec![] }
    }

    /// Compares with a file of the expected text; with `BAM_BLESS` set, writes it.
    fn assert_golden(name: &str, script: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/slurm/golden").join(name);
        let script = script.replace(env!("CARGO_PKG_VERSION"), "VERSION");
        if std::env::var_os("BAM_BLESS").is_some() {
            std::fs::write(&path, &script).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap();
        assert_eq!(script, golden, "BAM_BLESS=1 writes {}", path.display());
    }

    #[test]
    fn the_script_of_a_recipe_that_asks_for_nothing() {
        let script = rendered(&recipe(""), "/runs/tiny").unwrap();
        check_syntax(&script).unwrap();
        assert_golden("plain.sh", &script);
    }

    #[test]
    fn the_script_of_a_recipe_that_asks_for_everything() {
        let recipe = recipe(
            "cluster: { processes: 16, threads: 4 }\n\
             slurm:\n  job_name: big\n  partition: gpu\n  account: p1\n  qos: high\n  constraint: a100&ib\n  \
             reservation: course\n  nodes: 2\n  gpus_per_node: 8\n  cpus_per_task: 6\n  memory: 256G\n  \
             time: 1-12:00:00\n  mail: { user: a@b.c, types: [FAIL, TIME_LIMIT_90] }\n  \
             modules: [gcc/12, openmpi/4.1]\n  prologue: ['export UCX_TLS=rc', 'ulimit -l unlimited']\n  \
             container: [apptainer, exec, --nv, /images/my bam.sif]\n  \
             extra: [--exclusive, '--comment=\"two words\"']\n  lead: 300\n",
        );
        let script = rendered(&recipe, "/my runs/100%'s/tiny").unwrap();
        check_syntax(&script).unwrap();
        assert_golden("everything.sh", &script);
    }

    #[test]
    fn the_script_of_an_array() {
        let recipe = recipe(
            "cluster: { processes: 16, single_processes: 2 }\n\
             slurm:\n  nodes: 2\n  gpus_per_node: 8\n  time: 600\n  at_once: 3\n  jobs: { teacher: { time: 90 } }\n",
        );
        let teachers = job("teacher", &[(0, "teacher-cola"), (2, "teacher-rte")], true, Ranks::Computing(2));
        let script = rendered_job(&recipe, "/runs/tiny", &teachers).unwrap();
        check_syntax(&script).unwrap();
        assert_golden("array.sh", &script);
    }

    #[test]
    fn a_job_asks_for_what_its_ranks_need() {
        let asked = |yaml: &str, name: &str, ranks: Ranks| {
            let script = rendered_job(&recipe(yaml), "/r", &job(name, &[(0, "s")], false, ranks)).unwrap();
            let value = |option: &str| {
                let line = script.lines().find_map(|l| l.strip_prefix(&format!("#SBATCH --{option}=")));
                line.unwrap_or("-").to_owned()
            };
            ["nodes", "ntasks", "gpus-per-node"].map(value).join(" ")
        };
        let yaml = "cluster: { processes: 16, single_processes: 2 }\nslurm: { nodes: 2, gpus_per_node: 8 }";
        assert_eq!(asked(yaml, "student", Ranks::Computing(16)), "2 16 8");
        assert_eq!(asked(yaml, "teacher", Ranks::Computing(2)), "1 2 2");
        assert_eq!(asked(yaml, "prepare", Ranks::OneNode), "1 8 -");
        assert_eq!(asked(yaml, "report", Ranks::One), "1 1 -");
        let own = "cluster: { processes: 4 }\nslurm: { gpus_per_node: 8, jobs: { report: { gpus_per_node: 1 }, \
                   predict: { gpus_per_node: 0 } } }";
        assert_eq!(asked(own, "report", Ranks::One), "1 1 1");
        assert_eq!(asked(own, "predict", Ranks::Computing(4)), "1 4 -");
        assert_eq!(asked(own, "teacher", Ranks::Computing(1)), "1 1 2");
        assert_eq!(asked("", "student", Ranks::Computing(1)), "1 1 -");
        let report = rendered_job(&recipe(yaml), "/r", &job("report", &[(0, "report")], false, Ranks::One)).unwrap();
        assert!(report.contains(" -n 1 -o cluster.single_processes=1 "), "{report}");
    }

    #[test]
    fn directives_come_before_the_first_command() {
        let recipe = recipe("slurm: { prologue: ['a=1', 'b=2'], extra: [--exclusive] }");
        let script = rendered(&recipe, "/runs/tiny").unwrap();
        let first = script.lines().position(|l| !l.is_empty() && !l.starts_with('#')).unwrap();
        assert!(script.lines().skip(first).all(|l| !l.trim_start().starts_with("#SBATCH")), "{script}");
        assert!(script.lines().take(first).all(|l| !l.contains("SBATCH") || l.starts_with("#SBATCH --")), "{script}");
    }

    #[test]
    fn what_cannot_be_named_or_makes_no_sense_is_refused() {
        let plain = recipe("");
        for run in ["/a\"b", "/a\\b", "/a\nb"] {
            assert!(matches!(rendered(&plain, run), Err(ScriptError::Path { .. })), "{run:?}");
        }
        let idle = rendered(&recipe("cluster: { processes: 3 }\nslurm: { nodes: 4 }"), "/r").unwrap_err().to_string();
        assert!(idle.contains("4 nodes have nothing to do for 3 processes"), "{idle}");
        let hosts = rendered(&recipe("cluster: { hosts: [n1] }"), "/r");
        assert!(matches!(hosts, Err(ScriptError::Hosts)));
    }

    #[test]
    fn lines_that_swallow_what_follows_are_refused() {
        for line in ["echo 'a", "if true; then", "cat <<END", "f() {", "case x in", "x=$(", "done"] {
            let mut recipe = recipe("");
            recipe.slurm.prologue = vec![line.to_owned()];
            let error = check_syntax(&rendered(&recipe, "/r").unwrap()).unwrap_err();
            assert!(matches!(&error, ScriptError::Shell { words } if words.contains("line")), "{line}: {error}");
        }
    }
}
