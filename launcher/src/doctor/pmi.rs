//! PMI, by which ranks that something has started find one another: what Open MPI has of it, and what Slurm's srun has.

use std::path::Path;
use std::process::{Command, Stdio};

use super::Finding;
use crate::backend::{Programs, Starter};

const ABOUT: &str = "PMI";

/// Looks at both.
pub fn look(programs: Option<&Programs>) -> Vec<Finding> {
    let mut findings = vec![];
    if let Some(Starter::Mpirun(mpirun)) = programs.map(|programs| &programs.starter) {
        findings.extend(said(&mpirun.with_file_name("ompi_info"), "--parsable").map(|text| open_mpi(&text)));
    }
    findings.extend(said(Path::new("srun"), "--mpi=list").map(|text| srun(&text)));
    findings
}

/// What a command prints, on stdout or, as old versions of srun do, on stderr.
fn said(program: &Path, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).stdin(Stdio::null()).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    output.status.success().then(|| String::from_utf8_lossy(&text).into_owned())
}

/// From `ompi_info --parsable`: `mca:pmix:ext3x:version:…`, `mca:plm:slurm:version:…`.
fn open_mpi(text: &str) -> Finding {
    let components = |framework: &str| {
        let mark = format!("mca:{framework}:");
        let names = text.lines().filter_map(|line| line.strip_prefix(&mark)?.split(':').next());
        let mut names: Vec<&str> = names.collect();
        names.dedup();
        names
    };
    let pmix = components("pmix");
    // From version 5 on, PMIx is a library beside it.
    let pmix = if pmix.is_empty() { "of its own library".to_owned() } else { pmix.join(", ") };
    let mut starts = components("plm");
    starts.retain(|name| *name != "isolated");
    let starts =
        if starts.is_empty() { String::new() } else { format!("; starts its daemons by {}", starts.join(", ")) };
    Finding::ok(ABOUT, format!("Open MPI's PMIx: {pmix}{starts}"))
}

/// From `srun --mpi=list`.
fn srun(text: &str) -> Finding {
    let words = text.split(|c: char| c.is_whitespace() || c == ',' || c == ':');
    let mut kinds: Vec<&str> =
        words.filter(|word| ["pmi", "none", "cray", "openmpi"].iter().any(|kind| word.starts_with(kind))).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let said = format!("srun's plug-ins: {}", kinds.join(", "));
    if kinds.iter().any(|kind| kind.starts_with("pmix")) {
        return Finding::ok(ABOUT, said);
    }
    let remedy = "ranks on several nodes need an mpirun that was built with Slurm's support, or a Slurm with PMIx";
    Finding::warning(ABOUT, format!("{said}; PMIx is not among them"), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn open_mpi_says_what_it_was_built_with() {
        let text = "mca:pmix:ext3x:version:mca:2.1.0\nmca:pmix:isolated:version:mca:2.1.0\nmca:plm:isolated:version:x\n\
                    mca:plm:rsh:version:x\nmca:plm:slurm:version:x\n";
        assert_eq!(open_mpi(text).said, "Open MPI's PMIx: ext3x, isolated; starts its daemons by rsh, slurm");
        assert_eq!(open_mpi("mca:btl:tcp\n").said, "Open MPI's PMIx: of its own library");
    }

    #[test]
    fn an_srun_without_pmix_is_a_warning() {
        let new = "MPI plugin types are...\n\tpmix\n\tnone\n\tpmi2\nspecific pmix plugin versions available: pmix_v4";
        assert_eq!(srun(new).said, "srun's plug-ins: none, pmi2, pmix, pmix_v4");
        let old = srun("MPI plugin types are...\n\tnone\n\tpmi2\n\tcray_shasta\n");
        assert!(
            old.verdict == Verdict::Warning && old.said.contains("cray_shasta, none, pmi2; PMIx is not"),
            "{old:?}"
        );
    }
}
