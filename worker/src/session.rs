//! One rank's part in one stage: the ranks have found one another and the launcher, and agree on what is to be done.

use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bam_cluster::checkpoint::Fence;
use bam_cluster::comm::{Activity, Communicator};
use bam_cluster::config::{Recipe, load_resolved};
use bam_cluster::encoder::Encoder;
use bam_cluster::plan::{Plan, Stage, StageWork};
use bam_cluster::protocol::{Begin, ControlFile, FromRank, ToRank};
use bam_cluster::run_dir::RunDir;
use bam_cluster::task::Task;
use bam_cluster::{digest, files};
use serde::{Deserialize, Serialize};

use crate::control::Control;
use crate::device::Place;
use crate::fault::Faults;

/// Everything that a stage needs to begin.
pub struct Session {
    /// The other ranks.
    pub world: Box<dyn Communicator>,
    /// The launcher.
    pub control: Control,
    /// What this rank's heartbeat tells.
    pub activity: Activity,
    /// Where the run's files are.
    pub run: RunDir,
    /// The recipe, completed.
    pub recipe: Recipe,
    /// Its tasks in full.
    pub tasks: Vec<Task>,
    /// The encoder to start from.
    pub encoder: Encoder,
    /// The stage to do.
    pub stage: Stage,
    /// Its inputs, as the launcher found them.
    pub begin: Begin,
    /// Keeps an orphan from committing.
    pub fence: Fence,
    /// The failures that this rank rehearses.
    pub faults: Faults,
    /// What this rank computes on.
    pub place: Place,
    /// Whether the stage is the first training of its run.
    pub opens_training: bool,
    orders: Receiver<ToRank>,
}

/// What ranks compare before the first step.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Fingerprint {
    host: String,
    plan: String,
    recipe: String,
    inputs: String,
    worker: String,
}

impl Session {
    /// Meets the launcher and the other ranks.
    ///
    /// # Errors
    /// A file of the run is missing or wrong, there is not the device that the recipe asks for, or ranks differ in what they are
    /// about to do.
    pub fn join(
        world: Box<dyn Communicator>,
        activity: Activity,
        run: RunDir,
        stage: &str,
        control: Control,
        orders: Receiver<ToRank>,
        file: &ControlFile,
    ) -> Result<Session> {
        activity.phase("joining");
        let recipe = load_resolved(&run.recipe())?;
        control.start_heartbeat(activity.clone(), Duration::from_secs(recipe.cluster.deadline));
        let encoder = Encoder::inspect(&recipe.model.path, recipe.model.layers, recipe.model.max_length)?;
        let plan = derive_plan(&run, &recipe)?;
        let Some(work) = plan.stage(stage).cloned() else { bail!("the plan has no stage '{stage}'") };
        // Tokenising needs no GPU, and may well run where there is none.
        let place = match work.work {
            StageWork::Prepare => Place::CPU,
            _ => Place::choose(world.as_ref(), &recipe.cluster, &file.places)?,
        };
        control.send(&FromRank::Device { device: place.name() })?;
        let opens_training =
            plan.stages.iter().find(|stage| stage.is_training()).is_some_and(|first| first.name == stage);
        let fence = Fence::of(&run, stage, file.incarnation);
        let tasks = recipe.tasks();
        let faults = Faults::of_rank(&[], world.rank(), control.clone());
        let mut session = Session {
            world,
            control,
            activity,
            run,
            recipe,
            tasks,
            encoder,
            stage: work,
            begin: Begin { plan: String::new(), inputs: Default::default(), faults: vec![] },
            fence,
            faults,
            place,
            opens_training,
            orders,
        };
        session.begin = match session.next_order()? {
            ToRank::Begin(begin) => begin,
            other => bail!("the launcher's first order is {other:?}"),
        };
        session.faults = Faults::of_rank(&session.begin.faults, session.world.rank(), session.control.clone());
        session.compare(&plan)?;
        Ok(session)
    }

    /// The launcher's next order, the same on every rank.
    ///
    /// # Errors
    /// The launcher is gone.
    pub fn next_order(&self) -> Result<ToRank> {
        let text = if self.is_first() {
            serde_json::to_vec(&self.orders.recv().context("the launcher is gone")?)?
        } else {
            Vec::new()
        };
        let text = self.world.broadcast("order", 0, text)?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Whether this rank speaks for all.
    pub fn is_first(&self) -> bool {
        self.world.rank() == 0
    }

    /// Tells the launcher something, if this rank speaks for all.
    ///
    /// # Errors
    /// The launcher is gone.
    pub fn tell(&self, message: &FromRank) -> Result<()> {
        if self.is_first() { self.control.send(message) } else { Ok(()) }
    }

    /// SHA-256 of an input, as the launcher knows it.
    ///
    /// # Errors
    /// The stage has no such input.
    pub fn input(&self, name: &str) -> Result<&str> {
        let found = self.begin.inputs.get(name);
        found.map(String::as_str).with_context(|| format!("the launcher named no input '{name}' for this stage"))
    }

    /// The task of that name.
    ///
    /// # Errors
    /// The recipe has no such task.
    pub fn task(&self, name: &str) -> Result<&Task> {
        self.tasks.iter().find(|t| t.name == name).with_context(|| format!("the recipe has no task '{name}'"))
    }

    /// Fails, on every rank, if ranks differ in plan, inputs, recipe or program.
    fn compare(&self, plan: &Plan) -> Result<()> {
        let own = plan.hash();
        ensure!(own == self.begin.plan, "this rank derives another plan than the launcher; are both of one build?");
        let program = std::env::current_exe().context("this program's own file")?;
        let mine = Fingerprint {
            host: nix::unistd::gethostname().map(|h| h.to_string_lossy().into_owned()).unwrap_or_default(),
            plan: own,
            recipe: digest::of_file(&self.run.recipe()).context("the recipe")?,
            inputs: digest::of_json(&self.begin.inputs),
            worker: digest::of_file(&program).with_context(|| program.display().to_string())?,
        };
        let all = self.world.all_gather("fingerprints", &serde_json::to_vec(&mine)?)?;
        let all: Vec<Fingerprint> = all.iter().map(|b| serde_json::from_slice(b)).collect::<Result<_, _>>()?;
        for (rank, other) in all.iter().enumerate() {
            for (what, a, b) in [
                ("plan", &all[0].plan, &other.plan),
                ("config.yaml", &all[0].recipe, &other.recipe),
                ("inputs", &all[0].inputs, &other.inputs),
                ("worker program", &all[0].worker, &other.worker),
            ] {
                ensure!(a == b, "rank {rank} on {} has another {what} than rank 0 on {}", other.host, all[0].host);
            }
        }
        Ok(())
    }
}

/// Derives the plan anew, with the sizes that the launcher found.
fn derive_plan(run: &RunDir, recipe: &Recipe) -> Result<Plan> {
    let path: PathBuf = run.plan();
    let context = || path.display().to_string();
    let plan: Option<Plan> = files::read_json(&path).with_context(context)?;
    let sizes = plan.with_context(|| format!("{}: there is no plan here", path.display()))?.tasks;
    Ok(Plan::derive(recipe, &sizes))
}
