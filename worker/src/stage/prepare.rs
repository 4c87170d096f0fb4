//! Tokenises every task once; tasks are dealt out to the ranks. Before that, the first rank looks at all weights that later
//! stages will read, so that none of them is refused when others have been trained already.

use anyhow::{Result, ensure};
use bam_cluster::digest::short;
use bam_cluster::encoder::Head;
use bam_cluster::protocol::{FromRank, Outcome};
use bam_cluster::stage_record::Sums;
use bam_cluster::task::read_examples;
use bam_cluster::teacher::TaskModel;

use crate::data::{Progress, Tokenizer, prepare_task};
use crate::session::Session;
use crate::weights::WeightStore;

pub(super) fn run(session: &Session) -> Result<Outcome> {
    if session.is_first() {
        session.activity.phase("looking at weights");
        check_weights(session)?;
    }
    session.activity.phase("tokenising");
    let recipe = &session.recipe;
    let (rank, size) = (session.world.rank(), session.world.size());
    let tokenizer = Tokenizer::open(&session.encoder, session.recipe.model.truncation)?;
    let vocabulary = session.encoder.vocabulary_sha256()?;
    let mut made = Sums::new();
    for task in session.tasks.iter().skip(rank).step_by(size) {
        let examples = read_examples(task, recipe.seed, &recipe.data.selection())?;
        let (now, was) = (&examples.source_sha256, session.input(&format!("source {}", task.name))?);
        ensure!(
            now == was,
            "the files of task '{}' changed while the run was starting (from {} to {}); run again",
            task.name,
            short(was),
            short(now)
        );
        let total = (examples.train.len() + examples.dev.len()) as u64;
        // The launcher's absence is noticed elsewhere.
        let progress = |progress: Progress| match progress {
            Progress::Tokenised(done) => {
                session.activity.progress();
                let _ = session.tell(&FromRank::Progress { done: done as u64, total });
            }
            Progress::Written => session.faults.wrote(),
        };
        let max_length = recipe.model.max_length;
        made.extend(prepare_task(task, &examples, &tokenizer, max_length, &vocabulary, &session.run, progress)?);
        if session.control.stop_requested() {
            break;
        }
    }
    let all = session.world.all_gather("prepared files", &serde_json::to_vec(&made)?)?;
    let mut outputs = Sums::new();
    for one in &all {
        outputs.extend(serde_json::from_slice::<Sums>(one)?);
    }
    let complete = outputs.len() == 2 * session.tasks.len();
    Ok(if complete { Outcome::Finished { outputs } } else { Outcome::Stopped { step: 0 } })
}

/// Looks at the weights of the encoder and of every given teacher. The launcher has seen what safetensors say of themselves;
/// what is in a pickle, and whether the numbers are finite, only the worker knows.
fn check_weights(session: &Session) -> Result<()> {
    let (recipe, encoder) = (&session.recipe, &session.encoder);
    let store = WeightStore::open(&encoder.weights)?;
    store.check_finite(&encoder.tensors(store.headers())?)?;
    // One model in memory is enough.
    drop(store);
    for task in &session.tasks {
        for teacher in recipe.distill.teachers.get(&task.name).into_iter().flat_map(|given| &given.0) {
            session.activity.progress();
            let found = TaskModel::inspect(teacher, task, encoder, recipe.model.max_length)?.encoder;
            let store = WeightStore::open(&found.weights)?;
            store.check_finite(&found.model_tensors(store.headers(), Head::of(task))?)?;
        }
    }
    Ok(())
}
