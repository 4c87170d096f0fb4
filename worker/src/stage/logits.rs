//! Runs each teacher over the training data of its task. Every rank writes a shard; rank 0 proves that they are
//! complete before it publishes them under their name.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use bam_cluster::config::{GivenTeacher, RegressionOutput};
use bam_cluster::encoder::EncoderError;
use bam_cluster::plan::{LogitsStage, Teacher};
use bam_cluster::protocol::{FromRank, Outcome};
use bam_cluster::stage_record::Sums;
use bam_cluster::task::{Kind, Task};
use bam_cluster::teacher::{FORMAT_VERSION, LogitsManifest, Provenance, Scale, Shard, TaskModel, shard_name};
use bam_cluster::{aside, digest, files};

use super::publish::{check_sum, load};
use super::train::read_tokens;
use crate::data::TokenSet;
use crate::eval::{deal, outputs};
use crate::session::Session;
use crate::shard::{ShardError, read_logits, write_shard};

pub(super) fn run(session: &Session, stage: &LogitsStage) -> Result<Outcome> {
    session.activity.phase("teacher logits");
    let mut sets = Vec::new();
    for teacher in &stage.teachers {
        sets.push(read_tokens(session, &teacher.task, "train")?);
    }
    let mut progress = Progress { done: 0, total: sets.iter().map(|s| s.len() as u64).sum() };
    let mut made = Sums::new();
    for (teacher, set) in stage.teachers.iter().zip(&sets) {
        made.insert(teacher.logits_key(), one_teacher(session, teacher, set, &mut progress)?);
        // All ranks stop at the same teacher, or none does.
        let wish = session.world.broadcast("stop", 0, vec![u8::from(session.control.stop_requested())])?;
        if wish == [1] && made.len() < stage.teachers.len() {
            return Ok(Outcome::Stopped { step: 0 });
        }
    }
    Ok(Outcome::Finished { outputs: made })
}

struct Progress {
    done: u64,
    total: u64,
}

/// Where this teacher's logits on this data come from.
fn provenance(session: &Session, task: &Task, set: &TokenSet, teacher_sha256: &str) -> Result<Provenance> {
    Ok(Provenance {
        task: task.name.clone(),
        label_names: task.kind.output_names(),
        teacher_sha256: teacher_sha256.to_owned(),
        data_sha256: session.input(&format!("data {}-train", task.name))?.to_owned(),
        vocab_sha256: set.vocab_sha256.clone(),
    })
}

/// A teacher's model, and the SHA-256 that its logits carry.
fn find(session: &Session, teacher: &Teacher, task: &Task) -> Result<(TaskModel, String)> {
    let look =
        |given: &GivenTeacher| TaskModel::inspect(given, task, &session.encoder, session.recipe.model.max_length);
    match &teacher.given {
        Some(given) => {
            let found = look(given)?;
            let sum = found.encoder.weights_sha256()?;
            Ok((found, sum))
        }
        None => {
            let directory = session.run.model(&teacher.name);
            let weights = directory.join("model.safetensors");
            let sum = digest::of_file(&weights).with_context(|| weights.display().to_string())?;
            Ok((look(&GivenTeacher { path: directory, labels: None })?, sum))
        }
    }
}

/// A head's outputs as this run's heads would give them: classes in the task's order, scores before `output`.
fn in_the_tasks_terms(raw: &[f32], model: &TaskModel, kind: &Kind, output: RegressionOutput) -> Vec<f32> {
    match *kind {
        Kind::Classification { .. } => {
            raw.chunks(model.columns.len()).flat_map(|row| model.columns.iter().map(|&c| row[c])).collect()
        }
        Kind::Regression { .. } if model.scale == Scale::Unit(output) => raw.to_vec(),
        Kind::Regression { min, max } => raw.iter().map(|&r| before(output, unit(r, model.scale, min, max))).collect(),
    }
}

/// A score on the 0–1 scale.
fn unit(raw: f32, scale: Scale, min: f64, max: f64) -> f64 {
    let raw = f64::from(raw);
    match scale {
        Scale::Unit(RegressionOutput::Sigmoid) => 1.0 / (1.0 + (-raw).exp()),
        Scale::Unit(RegressionOutput::Linear) => raw,
        Scale::Own => (raw - min) / (max - min),
    }
}

/// What becomes `unit` after `output`. A sigmoid reaches neither 0 nor 1; a teacher that goes beyond comes next to them.
fn before(output: RegressionOutput, unit: f64) -> f32 {
    const NEXT_TO: f64 = 1e-4;
    match output {
        RegressionOutput::Linear => unit as f32,
        RegressionOutput::Sigmoid => {
            let p = unit.clamp(NEXT_TO, 1.0 - NEXT_TO);
            (p / (1.0 - p)).ln() as f32
        }
    }
}

/// Computes and publishes the logits of one teacher; returns the SHA-256 of their manifest.
fn one_teacher(session: &Session, teacher: &Teacher, set: &TokenSet, progress: &mut Progress) -> Result<String> {
    let task = session.task(&teacher.task)?;
    let (found, sum) = find(session, teacher, task)?;
    match &teacher.given {
        None => check_sum(session, &teacher.name, &sum)?,
        Some(given) => ensure!(
            sum == session.input(&given.input_name())?,
            "{}: the teacher was changed while the run was starting; run again",
            given.path.display()
        ),
    }
    let provenance = provenance(session, task, set, &sum)?;
    let model = load(session, &found, task)?;
    let size = session.world.size();
    let mine = deal(set, model.as_ref(), size).swap_remove(session.world.rank());
    // As if all ranks were as far as this one, until the teacher's end is certain.
    let (mut done, end) = (progress.done, progress.done + set.len() as u64);
    let raw = outputs(model.as_ref(), 0, set, &mine, |n| {
        done = end.min(done + (n * size) as u64);
        session.activity.progress();
        session.tell(&FromRank::Progress { done, total: progress.total })
    })?;
    progress.done = end;
    let logits = in_the_tasks_terms(&raw, &found, &task.kind, session.recipe.model.regression_output);
    let ids: Vec<u64> = mine.iter().flatten().map(|&i| set.example_ids[i]).collect();
    publish_shards(session, teacher, set, &provenance, &ids, &logits)
}

fn publish_shards(
    session: &Session,
    teacher: &Teacher,
    set: &TokenSet,
    provenance: &Provenance,
    ids: &[u64],
    logits: &[f32],
) -> Result<String> {
    let (rank, size) = (session.world.rank(), session.world.size());
    let target = session.run.logits(&teacher.name, &teacher.task);
    let aside = aside::directory(&target, session.fence.incarnation());
    fs::create_dir_all(&aside).with_context(|| aside.display().to_string())?;
    let own = write_shard(&aside.join(shard_name(rank, size)), provenance, ids, logits);
    let own = own.map_err(|error| blame(error, teacher))?;
    session.faults.wrote();
    let all = session.world.all_gather("shards", &serde_json::to_vec(&own)?)?;
    let mut sum = String::new();
    if session.is_first() {
        let shards: Vec<Shard> = all.iter().map(|b| serde_json::from_slice(b)).collect::<Result<_, _>>()?;
        let provenance = provenance.clone();
        let manifest = LogitsManifest { format_version: FORMAT_VERSION, provenance, examples: set.len(), shards };
        sum = commit(session, &aside, &target, &manifest, set)?;
    }
    let sum = session.world.broadcast("manifest", 0, sum.into_bytes())?;
    Ok(String::from_utf8(sum)?)
}

/// No training of this run has made a given teacher's answers what they are: it is that directory which cannot be used.
fn blame(error: ShardError, teacher: &Teacher) -> anyhow::Error {
    let (ShardError::NotFinite { task, id, value }, Some(given)) = (&error, &teacher.given) else {
        return error.into();
    };
    let problem = format!(
        "this teacher of task '{task}' answers example {id} with {value}, although its weights are finite\n  choose another \
         one in distill.teachers.{task}"
    );
    EncoderError { path: given.path.clone(), problem }.into()
}

/// Writes the manifest, reads everything back as a student would, and only then gives the directory its name.
fn commit(session: &Session, aside: &Path, target: &Path, manifest: &LogitsManifest, set: &TokenSet) -> Result<String> {
    let context = || format!("publishing logits to {}", target.display());
    let path = aside.join("manifest.json");
    files::write_json(&path, manifest).with_context(context)?;
    session.faults.wrote();
    read_logits(aside, &manifest.provenance, &set.example_ids)?;
    let sum = digest::of_file(&path).with_context(context)?;
    session.fence.check()?;
    if target.exists() {
        fs::remove_dir_all(target).with_context(context)?;
    }
    fs::rename(aside, target).with_context(context)?;
    session.faults.wrote();
    files::sync_dir(target.parent().unwrap_or(target)).with_context(context)?;
    Ok(sum)
}

/// A teacher's outputs for all of `set`, proved complete and made from what is there now: [examples, outputs].
pub(super) fn read_teacher_logits(
    session: &Session,
    teacher: &Teacher,
    task: &Task,
    set: &TokenSet,
) -> Result<Vec<f32>> {
    let directory = session.run.logits(&teacher.name, &teacher.task);
    let manifest = directory.join("manifest.json");
    let sum = digest::of_file(&manifest).with_context(|| manifest.display().to_string())?;
    ensure!(
        sum == session.input(&format!("logits {}", teacher.logits_key()))?,
        "{}: was changed after the logits were made; remove {} and run again",
        manifest.display(),
        session.run.stage(&teacher.logits).display()
    );
    let (_, teacher_sha256) = find(session, teacher, task)?;
    let expected = provenance(session, task, set, &teacher_sha256)?;
    Ok(read_logits(&directory, &expected, &set.example_ids)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_keep_their_meaning_whatever_they_are_made_of() {
        let (sigmoid, linear) = (RegressionOutput::Sigmoid, RegressionOutput::Linear);
        // 4 of 0–5 is 0.8, and ln 4 before a sigmoid.
        assert!((before(sigmoid, unit(4.0, Scale::Own, 0.0, 5.0)) - 4f32.ln()).abs() < 1e-6);
        assert!((before(linear, unit(4.0, Scale::Own, 0.0, 5.0)) - 0.8).abs() < 1e-6);
        assert!((unit(before(sigmoid, 0.3), Scale::Unit(sigmoid), 0.0, 5.0) - 0.3).abs() < 1e-6);
        assert!(before(sigmoid, unit(5.5, Scale::Own, 0.0, 5.0)).is_finite());
        assert_eq!(unit(0.25, Scale::Unit(linear), 0.0, 5.0), 0.25);
    }

    #[test]
    fn an_answer_that_is_no_number_is_the_fault_of_the_directory_or_of_the_training() {
        let of = |given: Option<GivenTeacher>| {
            let teacher = Teacher { task: "rte".into(), name: "t".into(), logits: "logits".into(), given };
            blame(ShardError::NotFinite { task: "rte".into(), id: 9, value: f32::NAN }, &teacher)
        };
        let given = of(Some(GivenTeacher { path: "/teachers/a".into(), labels: None }));
        assert!(given.is::<EncoderError>());
        assert!(given.to_string().starts_with("/teachers/a: this teacher of task 'rte' answers example 9 with NaN"));
        assert!(!given.to_string().contains("training"), "{given}");
        let own = of(None);
        assert!(own.is::<ShardError>() && own.to_string().contains("its training has diverged"), "{own}");
    }
}
