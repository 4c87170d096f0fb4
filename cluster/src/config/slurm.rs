//! The section `slurm` of a recipe: what `bam submit` asks Slurm for. Nothing in here changes what is learnt.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::error::{ConfigError, nearest};

/// What to ask Slurm for. What is left out is left to the site's defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SlurmSection {
    /// The job's name. Default: the recipe's.
    pub job_name: Option<String>,
    /// `--partition`; several are separated by commas.
    pub partition: Option<String>,
    /// `--account`: whose budget pays.
    pub account: Option<String>,
    /// `--qos`.
    pub qos: Option<String>,
    /// `--constraint`: features that nodes must have, such as `a100&ib`.
    pub constraint: Option<String>,
    /// `--reservation`.
    pub reservation: Option<String>,
    /// `--nodes`.
    pub nodes: usize,
    /// `--gpus-per-node`.
    pub gpus_per_node: Option<usize>,
    /// `--cpus-per-task`: cores of each rank. Default: `cluster.threads`.
    pub cpus_per_task: Option<usize>,
    /// `--mem`, of each node: `64G`.
    #[serde(deserialize_with = "text_or_number")]
    #[schemars(with = "Option<TextOrNumber>")]
    pub memory: Option<String>,
    /// `--time`: minutes, `hours:minutes:seconds` or `days-hours`.
    #[serde(deserialize_with = "text_or_number")]
    #[schemars(with = "Option<TextOrNumber>")]
    pub time: Option<String>,
    /// Who is told of what.
    pub mail: Option<Mail>,
    /// Modules to load, in this order.
    pub modules: Vec<String>,
    /// Lines of shell that are run before bam, on the first node. One that fails ends the job.
    pub prologue: Vec<String>,
    /// Words that are put before `bam`, such as `[apptainer, exec, --nv, /images/bam.sif]`.
    pub container: Vec<String>,
    /// More options of `sbatch`, each as in a script, without `#SBATCH`: `--exclusive`.
    pub extra: Vec<String>,
    /// How many seconds before its end a job is told to stop at a checkpoint. Slurm looks about twice a minute only.
    pub lead: u64,
    /// How often a job that was stopped is put into the queue again without having got any further.
    pub max_requeues: usize,
    /// How many elements of an array run at the same time. Default: as many as fit.
    pub at_once: Option<usize>,
    /// Training samples a second that one process does, by which the time is estimated. Default: what the run's own steps
    /// took, if there are any.
    pub samples_per_second: Option<f64>,
    /// Other settings for some of a run's jobs, by their names.
    #[schemars(extend("propertyNames" = { "enum": JOB_NAMES }))]
    pub jobs: BTreeMap<String, JobSettings>,
}

/// The jobs that a run may have; `bam submit --dry-run` shows those of a recipe.
pub const JOB_NAMES: [&str; 11] = [
    "prepare",
    "teacher",
    "single",
    "multi",
    "choice",
    "logits",
    "student",
    "fine-tuned",
    "trial",
    "predict",
    "report",
];

/// What one of a run's jobs asks for instead of what the section asks for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JobSettings {
    /// As [`SlurmSection::partition`].
    pub partition: Option<String>,
    /// As [`SlurmSection::account`].
    pub account: Option<String>,
    /// As [`SlurmSection::qos`].
    pub qos: Option<String>,
    /// As [`SlurmSection::constraint`].
    pub constraint: Option<String>,
    /// As [`SlurmSection::reservation`].
    pub reservation: Option<String>,
    /// As [`SlurmSection::gpus_per_node`]; 0: none.
    pub gpus_per_node: Option<usize>,
    /// As [`SlurmSection::cpus_per_task`].
    pub cpus_per_task: Option<usize>,
    /// As [`SlurmSection::memory`].
    #[serde(deserialize_with = "text_or_number")]
    #[schemars(with = "Option<TextOrNumber>")]
    pub memory: Option<String>,
    /// As [`SlurmSection::time`].
    #[serde(deserialize_with = "text_or_number")]
    #[schemars(with = "Option<TextOrNumber>")]
    pub time: Option<String>,
    /// As [`SlurmSection::extra`], instead of all of them.
    pub extra: Option<Vec<String>>,
}

impl SlurmSection {
    /// The settings of one of the run's jobs. Its number of GPUs is only there if the recipe gives it for this job.
    pub fn of_job(&self, job: &str) -> SlurmSection {
        let Some(own) = self.jobs.get(job).cloned() else { return self.clone() };
        let all = self.clone();
        SlurmSection {
            partition: own.partition.or(all.partition),
            account: own.account.or(all.account),
            qos: own.qos.or(all.qos),
            constraint: own.constraint.or(all.constraint),
            reservation: own.reservation.or(all.reservation),
            cpus_per_task: own.cpus_per_task.or(all.cpus_per_task),
            memory: own.memory.or(all.memory),
            time: own.time.or(all.time),
            extra: own.extra.unwrap_or(all.extra),
            ..all
        }
    }

    /// How long a job may take, in seconds; none without a limit.
    pub fn seconds(&self) -> Option<u64> {
        self.time.as_deref().and_then(seconds)
    }
}

/// Who is told of what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mail {
    /// An address, or a name that the site knows.
    pub user: String,
    /// As `--mail-type` has them.
    #[serde(default = "default_mail_types")]
    pub types: Vec<String>,
}

fn default_mail_types() -> Vec<String> {
    ["END", "FAIL"].map(str::to_owned).to_vec()
}

impl Default for SlurmSection {
    fn default() -> Self {
        SlurmSection {
            job_name: None,
            partition: None,
            account: None,
            qos: None,
            constraint: None,
            reservation: None,
            nodes: 1,
            gpus_per_node: None,
            cpus_per_task: None,
            memory: None,
            time: None,
            mail: None,
            modules: vec![],
            prologue: vec![],
            container: vec![],
            extra: vec![],
            lead: 120,
            max_requeues: 5,
            at_once: None,
            samples_per_second: None,
            jobs: BTreeMap::new(),
        }
    }
}

/// `time: 60` and `memory: 4000` are numbers to YAML.
fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<TextOrNumber>::deserialize(deserializer)?.map(|value| match value {
        TextOrNumber::Number(n) => n.to_string(),
        TextOrNumber::Text(text) => text,
    }))
}

/// A value as it is written.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a text or a whole number")]
#[schemars(inline)]
enum TextOrNumber {
    Number(u64),
    Text(String),
}

/// Characters besides letters, digits, `-`, `_` and `.` that a value may hold. None of them ends a line or a word of
/// `#SBATCH`, which no shell reads.
const IN_LISTS: &str = ",+:@/=";
const IN_CONSTRAINTS: &str = ",+:@/=&|*()[]!";
const IN_MODULES: &str = "/+:@=";

/// Options that bam sets itself, by sbatch's long and short names, and how to say what they say.
const TAKEN: [(&str, &str, &str); 24] = [
    ("--signal", "", "slurm.lead says how early"),
    ("--requeue", "", "bam sets it"),
    ("--no-requeue", "", "bam needs to be put into the queue again"),
    ("--open-mode", "", "bam sets it"),
    ("--output", "-o", "it is logs/slurm-JOB.out in the run's directory"),
    ("--error", "-e", "it goes where the output goes"),
    ("--chdir", "-D", "it is where 'bam submit' was run"),
    ("--ntasks", "-n", "use -n or cluster.processes"),
    ("--ntasks-per-node", "", "use -n or cluster.processes, and slurm.nodes"),
    ("--nodes", "-N", "use slurm.nodes"),
    ("--gpus-per-node", "", "use slurm.gpus_per_node"),
    ("--cpus-per-task", "-c", "use slurm.cpus_per_task"),
    ("--mem", "", "use slurm.memory"),
    ("--time", "-t", "use slurm.time"),
    ("--partition", "-p", "use slurm.partition"),
    ("--account", "-A", "use slurm.account"),
    ("--job-name", "-J", "use slurm.job_name"),
    ("--array", "-a", "bam makes arrays where they help, and slurm.at_once limits them"),
    ("--dependency", "-d", "bam sets it"),
    ("--kill-on-invalid-dep", "", "bam sets it"),
    ("--wrap", "", "the script is bam's"),
    ("--test-only", "", "use --dry-run"),
    ("--parsable", "", "bam sets it"),
    ("--wait", "-W", "'bam status' says how far the job is"),
];

/// Refuses values that would break out of their line or word, or that Slurm would not see.
pub(super) fn check(slurm: &SlurmSection) -> Result<(), ConfigError> {
    check_settings(slurm)?;
    check_count("at_once", slurm.at_once)?;
    require(slurm.samples_per_second.is_none_or(|n| n.is_finite() && n > 0.0), "samples_per_second", || {
        "must be above 0".to_owned()
    })?;
    for (name, own) in &slurm.jobs {
        let in_job = |error| match error {
            ConfigError::Invalid { key, problem } => {
                let key = key.replacen("slurm.", &format!("slurm.jobs.{name}."), 1);
                ConfigError::Invalid { key, problem }
            }
            other => other,
        };
        require(JOB_NAMES.contains(&name.as_str()), &format!("jobs.{name}"), || {
            let hint = nearest(name, JOB_NAMES).map(|near| format!("did you mean '{near}'? ")).unwrap_or_default();
            format!("is not one of a run's jobs; {hint}there are {}", JOB_NAMES.join(", "))
        })?;
        check_count("gpus_per_node", own.gpus_per_node.filter(|n| *n > 0)).map_err(in_job)?;
        check_settings(&slurm.of_job(name)).map_err(in_job)?;
    }
    Ok(())
}

fn check_settings(slurm: &SlurmSection) -> Result<(), ConfigError> {
    let optional = [
        ("job_name", &slurm.job_name, ""),
        ("partition", &slurm.partition, IN_LISTS),
        ("account", &slurm.account, IN_LISTS),
        ("qos", &slurm.qos, IN_LISTS),
        ("constraint", &slurm.constraint, IN_CONSTRAINTS),
        ("reservation", &slurm.reservation, IN_LISTS),
    ];
    for (key, value, more) in optional {
        if let Some(value) = value {
            check_word(key, value, more)?;
        }
    }
    for (i, module) in slurm.modules.iter().enumerate() {
        check_word(&format!("modules[{i}]"), module, IN_MODULES)?;
    }
    check_count("nodes", Some(slurm.nodes))?;
    check_count("gpus_per_node", slurm.gpus_per_node)?;
    check_count("cpus_per_task", slurm.cpus_per_task)?;
    if let Some(memory) = &slurm.memory {
        let digits = memory.strip_suffix(['K', 'M', 'G', 'T', 'k', 'm', 'g', 't']).unwrap_or(memory);
        require(is_number(digits), "memory", || format!("'{memory}' is no size; write 64G (or MB: 64000)"))?;
    }
    if let Some(time) = &slurm.time {
        require(is_time(time), "time", || {
            format!("'{time}' is no time; write minutes (90), hours:minutes:seconds (36:00:00) or days-hours (2-12)")
        })?;
    }
    if let Some(mail) = &slurm.mail {
        check_word("mail.user", &mail.user, IN_LISTS)?;
        require(!mail.types.is_empty(), "mail.types", || "name at least one, or leave it out".to_owned())?;
        for (i, kind) in mail.types.iter().enumerate() {
            check_word(&format!("mail.types[{i}]"), kind, "")?;
        }
    }
    for (i, line) in slurm.prologue.iter().enumerate() {
        check_prologue(&format!("prologue[{i}]"), line)?;
    }
    for (i, word) in slurm.container.iter().enumerate() {
        let key = format!("container[{i}]");
        require(!word.is_empty() && !word.chars().any(char::is_control), &key, || {
            "is empty or holds a control character; write one word an entry".to_owned()
        })?;
    }
    for (i, option) in slurm.extra.iter().enumerate() {
        check_extra(&format!("extra[{i}]"), option)?;
    }
    require((1..=65_535).contains(&slurm.lead), "lead", || "must be 1 to 65535 seconds".to_owned())?;
    require(slurm.seconds().is_none_or(|seconds| seconds > slurm.lead), "time", || {
        format!("leaves no time before the signal that comes {} s before its end (slurm.lead)", slurm.lead)
    })
}

fn require(condition: bool, key: &str, problem: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if condition { Ok(()) } else { Err(ConfigError::Invalid { key: format!("slurm.{key}"), problem: problem() }) }
}

fn check_word(key: &str, value: &str, more: &str) -> Result<(), ConfigError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c) || more.contains(c);
    let good = !value.is_empty() && !value.starts_with('-') && value.chars().all(allowed);
    require(good, key, || {
        let also = more.chars().map(|c| format!(" {c}")).collect::<String>();
        format!("{value:?} must be one word of letters, digits and - _ .{also}, and not begin with '-'")
    })
}

fn check_count(key: &str, count: Option<usize>) -> Result<(), ConfigError> {
    require(count.is_none_or(|n| (1..=65_536).contains(&n)), key, || "must be at least 1 and at most 65536".to_owned())
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.len() <= 12 && text.bytes().all(|b| b.is_ascii_digit())
}

/// As `sbatch --time` takes it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S, or no limit.
fn is_time(text: &str) -> bool {
    if ["UNLIMITED", "INFINITE"].contains(&text) {
        return true;
    }
    let (days, rest) = text.split_once('-').map_or((None, text), |(days, rest)| (Some(days), rest));
    days.is_none_or(is_number) && rest.split(':').count() <= 3 && rest.split(':').all(is_number)
}

/// What `sbatch --time` understands by a time, in seconds; none for no limit.
pub fn seconds(text: &str) -> Option<u64> {
    let (days, rest) = text.split_once('-').map_or((None, text), |(days, rest)| (Some(days), rest));
    let numbers: Vec<u64> = rest.split(':').map(|n| n.parse().ok()).collect::<Option<_>>()?;
    let [hours, minutes, seconds] = match (days, &numbers[..]) {
        (Some(_), [h]) => [*h, 0, 0],
        (Some(_), [h, m]) => [*h, *m, 0],
        (None, [m]) => [0, *m, 0],
        (None, [m, s]) => [0, *m, *s],
        (_, [h, m, s]) => [*h, *m, *s],
        _ => return None,
    };
    let days: u64 = days.map_or(Some(0), |days| days.parse().ok())?;
    Some(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
}

/// Whether a line is a directive, or was most likely meant to be one: `# SBATCH`, `#sbatch`, `#SBTACH`.
fn looks_like_a_directive(line: &str) -> bool {
    let Some(comment) = line.trim_start().strip_prefix('#') else { return false };
    let word = comment.trim_start_matches([' ', '\t', '#']).split_whitespace().next().unwrap_or_default();
    let word = word.to_ascii_uppercase();
    word.starts_with('S') && strsim::damerau_levenshtein(&word, "SBATCH") <= 1
}

fn check_prologue(key: &str, line: &str) -> Result<(), ConfigError> {
    require(!line.chars().any(|c| c.is_control() && c != '\t'), key, || {
        "is more than a line of text; write one entry a line".to_owned()
    })?;
    require(!looks_like_a_directive(line), key, || {
        format!(
            "'{line}' comes after the first command, where Slurm reads no directives; put the option into slurm.extra"
        )
    })?;
    let backslashes = line.chars().rev().take_while(|c| *c == '\\').count();
    require(backslashes.is_multiple_of(2), key, || {
        "ends with a backslash, which would swallow the next line".to_owned()
    })
}

fn check_extra(key: &str, option: &str) -> Result<(), ConfigError> {
    require(!looks_like_a_directive(option), key, || {
        format!("write the option alone, as in '--exclusive': '{option}' would be read as a comment")
    })?;
    require(option.starts_with('-') && option.len() > 1, key, || {
        format!("'{option}' is no option; write it as in '--exclusive'")
    })?;
    // sbatch takes what is in quotes as one word; without them a space begins another option, and '#' a comment.
    let has_odd = option.chars().any(|c| c.is_control() || c == '\\' || c == '\'' || c == '#');
    require(!has_odd && option.matches('"').count().is_multiple_of(2), key, || {
        format!("{option:?}: no control characters, backslashes, ' or #, and \" in pairs")
    })?;
    let mut in_quotes = false;
    let mut words = vec![String::new()];
    for c in option.chars() {
        match c {
            '"' => in_quotes = !in_quotes,
            ' ' if !in_quotes => words.push(String::new()),
            c => words.last_mut().into_iter().for_each(|word| word.push(c)),
        }
    }
    for word in &words {
        let name = word.split('=').next().unwrap_or_default();
        let taken = TAKEN.iter().find(|(long, short, _)| {
            name == *long || (!short.is_empty() && !word.starts_with("--") && word.starts_with(short))
        });
        if let Some((long, _, instead)) = taken {
            return require(false, key, || format!("{long} cannot be given here: {instead}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(yaml: &str) -> Result<(), String> {
        let section: SlurmSection = serde_norway::from_str(yaml).map_err(|e| e.to_string())?;
        check(&section).map_err(|e| e.to_string())
    }

    #[test]
    fn what_people_write_is_accepted() {
        for yaml in [
            "{}",
            "{ partition: 'gpu,long', account: p_1.x, qos: high, constraint: 'a100&(ib|opa)', reservation: c-1 }",
            "{ nodes: 4, gpus_per_node: 8, cpus_per_task: 6, memory: 64G, time: 90 }",
            "{ memory: 64000, time: 1:30:00 }",
            "{ time: 2-12:00 }",
            "{ mail: { user: a.b@c.de } }",
            "{ at_once: 4, samples_per_second: 900.5, jobs: { report: { gpus_per_node: 0, memory: 4G, extra: [] } } }",
            "{ modules: [gcc/12.2, openmpi/4.1.4+cuda], prologue: ['export A=\"b c\"', 'ulimit -s 8192  # SBATCH'] }",
            "{ container: [apptainer, exec, /my images/bam.sif], extra: [--exclusive, '--comment=\"two words\"', '-x n7'] }",
        ] {
            assert_eq!(checked(yaml), Ok(()), "{yaml}");
        }
    }

    #[test]
    fn nothing_breaks_out_of_its_line_or_word() {
        for (yaml, part) in [
            ("{ partition: \"gpu\\n#SBATCH --uid=0\" }", "slurm.partition: \"gpu\\n#SBATCH"),
            ("{ partition: 'gpu --uid=0' }", "one word"),
            ("{ account: '' }", "slurm.account"),
            ("{ account: -x }", "not begin with '-'"),
            ("{ qos: 'a\"b' }", "slurm.qos"),
            ("{ constraint: 'a#b' }", "slurm.constraint"),
            ("{ job_name: 'a b' }", "slurm.job_name"),
            ("{ modules: ['gcc; rm -rf x'] }", "slurm.modules[0]"),
            ("{ modules: ['$(x)'] }", "slurm.modules[0]"),
            (
                "{ jobs: { techer: { time: 5 } } }",
                "slurm.jobs.techer: is not one of a run's jobs; did you mean 'teacher'?",
            ),
            ("{ jobs: { teacher: { partition: 'a b' } } }", "slurm.jobs.teacher.partition"),
            ("{ jobs: { teacher: { nodes: 2 } } }", "unknown field `nodes`"),
            ("{ time: 2 }", "slurm.time: leaves no time before the signal"),
            ("{ at_once: 0 }", "slurm.at_once"),
            ("{ samples_per_second: 0 }", "slurm.samples_per_second"),
            ("{ memory: 64 GB }", "no size; write 64G"),
            ("{ time: tomorrow }", "no time; write minutes"),
            ("{ time: '1:2:3:4' }", "no time"),
            ("{ time: [1] }", "a text or a whole number"),
            ("{ nodes: 0 }", "slurm.nodes: must be at least 1"),
            ("{ lead: 0 }", "slurm.lead"),
            ("{ mail: { user: 'x y' } }", "slurm.mail.user"),
            ("{ mail: { user: x, types: ['END,FAIL'] } }", "slurm.mail.types[0]"),
            ("{ prologue: [\"a\\nb\"] }", "one entry a line"),
            ("{ prologue: ['a \\'] }", "swallow the next line"),
            ("{ container: [\"a\\nb\"] }", "slurm.container[0]"),
            ("{ extra: ['--comment=\"x'] }", "in pairs"),
            ("{ extra: ['--comment=x # y'] }", "slurm.extra[0]"),
            ("{ extra: [exclusive] }", "is no option"),
            ("{ nodess: 1 }", "unknown field `nodess`"),
        ] {
            let message = checked(yaml).unwrap_err();
            assert!(message.contains(part), "{yaml}: {message}");
        }
    }

    #[test]
    fn times_are_read_as_sbatch_reads_them() {
        for (text, expected) in [
            ("90", Some(5_400)),
            ("90:30", Some(5_430)),
            ("1:30:00", Some(5_400)),
            ("2-12", Some(216_000)),
            ("1-2:30", Some(95_400)),
            ("1-2:30:01", Some(95_401)),
            ("UNLIMITED", None),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }

    #[test]
    fn a_job_has_its_own_settings_and_the_sections_others() {
        let yaml =
            "{ partition: gpu, time: 600, extra: [--exclusive], jobs: { report: { partition: cpu, extra: [] } } }";
        let section: SlurmSection = serde_norway::from_str(yaml).unwrap();
        let report = section.of_job("report");
        assert_eq!((report.partition.as_deref(), report.time.as_deref()), (Some("cpu"), Some("600")));
        assert!(report.extra.is_empty());
        assert_eq!(section.of_job("student").partition.as_deref(), Some("gpu"));
    }

    #[test]
    fn directives_that_slurm_would_not_see_are_refused() {
        for line in ["#SBATCH --time=1", "  #SBATCH --time=1", "# SBATCH --time=1", "#sbatch -t 1", "##SBATHC -t 1"] {
            let yaml = serde_norway::to_string(&serde_json::json!({ "prologue": [line] })).unwrap();
            let message = checked(&yaml).unwrap_err();
            assert!(
                message.contains("slurm.prologue[0]") && message.contains("put the option into slurm.extra"),
                "{message}"
            );
            let yaml = serde_norway::to_string(&serde_json::json!({ "extra": [line] })).unwrap();
            assert!(checked(&yaml).unwrap_err().contains("write the option alone"), "{line}");
        }
        assert_eq!(checked("{ prologue: ['# a batch of settings', 'export SBATCH_X=1'] }"), Ok(()));
    }

    #[test]
    fn options_that_bam_sets_are_not_taken_twice() {
        for (option, part) in [
            ("--signal=USR1@10", "slurm.lead"),
            ("--array=1-3", "slurm.at_once"),
            ("-d afterok:7", "bam sets it"),
            ("-n4", "cluster.processes"),
            ("-N 2", "slurm.nodes"),
            ("--exclusive --output=x", "--output cannot be given here"),
            ("--time 5", "use slurm.time"),
        ] {
            let message = checked(&format!("{{ extra: ['{option}'] }}")).unwrap_err();
            assert!(message.contains(part), "{option}: {message}");
        }
        assert_eq!(checked("{ extra: [--mem-per-cpu=1G, --nodelist=n1] }"), Ok(()));
    }
}
