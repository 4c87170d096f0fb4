//! `bam-worker`: one rank of one stage. `bam` starts it through MPI; nobody starts it by hand.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bam_cluster::checkpoint::CheckpointError;
use bam_cluster::comm::{Activity, Communicator};
use bam_cluster::config::ConfigError;
use bam_cluster::encoder::EncoderError;
use bam_cluster::exit_code;
use bam_cluster::files;
use bam_cluster::protocol::{ControlFile, FromRank};
use bam_cluster::run_dir::RunDir;
use bam_cluster::task::DataError;
use bam_cluster::teacher::LogitsError;
use bam_worker::comm::MpiWorld;
use bam_worker::control::Control;
use bam_worker::data::{TokenFileError, TokenizeError};
use bam_worker::device::{DeviceError, is_trying};
use bam_worker::eval::NotFinite;
use bam_worker::session::Session;
use bam_worker::shard::ShardError;
use bam_worker::shim;
use bam_worker::train::Diverged;
use bam_worker::weights::WeightsError;
use bam_worker::{probe, telemetry};
use clap::Parser;

/// One rank of one stage of a bam run. `bam run` starts it through MPI.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The run directory.
    #[arg(long, required_unless_present = "probe")]
    run: Option<PathBuf>,
    /// The stage to do.
    #[arg(long, required_unless_present = "probe")]
    stage: Option<String>,
    /// Find out who is there and print it (as `bam doctor` asks)
    #[arg(long, conflicts_with_all = ["run", "stage"])]
    probe: bool,
    /// With --probe: a file to look for.
    #[arg(long, requires = "probe")]
    token: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    telemetry::log_to_stderr();
    // Before anything asks libtorch about CUDA.
    let _ = shim::cuda();
    match (args.run, args.stage) {
        (Some(run), Some(stage)) => work(RunDir::new(run), &stage),
        _ => look_around(args.token.as_deref()),
    }
}

/// What `bam doctor` asks.
fn look_around(token: Option<&Path>) -> ExitCode {
    let Some((world, _universe)) = MpiWorld::join(Activity::default()) else { return refuse(NO_THREADS) };
    tch::set_num_threads(1);
    let found = probe::probe(&world, token).and_then(|found| Ok(serde_json::to_string(&found)?));
    match found {
        Ok(text) if world.rank() == 0 => println!("{text}"),
        Ok(_) => {}
        Err(e) => return refuse(&format!("{e:#}")),
    }
    ExitCode::SUCCESS
}

/// Why MPI is of no use.
const NO_THREADS: &str = "MPI does not grant threads to this program; use an MPI that was built with thread support";

/// One rank of one stage.
fn work(run: RunDir, stage: &str) -> ExitCode {
    let activity = Activity::default();
    let control_path = run.control(stage);
    let file: ControlFile = match files::read_json(&control_path) {
        Ok(Some(file)) => file,
        Ok(None) => return refuse("there is no launcher for this run: start it with `bam run`"),
        Err(e) => return refuse(&format!("{}: {e}", control_path.display())),
    };
    let Some((world, _universe)) = MpiWorld::join(activity.clone()) else {
        return refuse(NO_THREADS);
    };
    let (control, orders) = match Control::connect(&file, world.rank(), world.size()) {
        Ok(connected) => connected,
        Err(e) => {
            eprintln!("error: {e:#}");
            MpiWorld::abort(exit_code::FAILURE)
        }
    };
    abort_on_panic(control.clone());
    if let Err(e) = control.listen_to_signals() {
        control.fail(exit_code::FAILURE, format!("cannot listen for signals: {e}"), false);
    }
    let (log, rank) = (run.log(stage), world.rank());
    let session = Session::join(Box::new(world), activity, run, stage, control.clone(), orders, &file);
    let done = session.and_then(|session| {
        tch::set_num_threads(i32::try_from(session.recipe.cluster.threads)?);
        let outcome = bam_worker::stage::run(&session)?;
        session.world.barrier("end of stage")?;
        control.finish();
        session.tell(&FromRank::Done(outcome))
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            telemetry::note_orphan(&log, rank, &e);
            control.fail(code_of(&e), format!("{e:#}"), is_lasting(&e))
        }
    }
}

fn refuse(message: &str) -> ExitCode {
    eprintln!("error: {message}");
    ExitCode::from(exit_code::FAILURE)
}

/// A panic in one rank would leave the others waiting in MPI for ever: it ends them all, with its words.
fn abort_on_panic(control: Control) {
    std::panic::set_hook(Box::new(move |panic| {
        if is_trying() {
            return;
        }
        control.fail(exit_code::FAILURE, format!("internal error (please report it): {panic}"), false)
    }));
}

/// Whether going on from the last checkpoint would end in the same way: with bad input or a diverged loss it would, with
/// a full disk, a network or a file system that fails it need not.
fn is_lasting(error: &anyhow::Error) -> bool {
    let is_io = error.chain().any(|e| e.is::<std::io::Error>());
    let has_diverged = error.is::<Diverged>()
        || error.is::<NotFinite>()
        || matches!(error.downcast_ref(), Some(ShardError::NotFinite { .. }));
    has_diverged || (code_of(error) != exit_code::FAILURE && !is_io)
}

/// The exit code that an error deserves.
fn code_of(error: &anyhow::Error) -> u8 {
    let any = |test: &dyn Fn(&(dyn std::error::Error + 'static)) -> bool| error.chain().any(test);
    let is_data = |e: &(dyn std::error::Error + 'static)| {
        e.is::<DataError>()
            || e.is::<EncoderError>()
            || e.is::<LogitsError>()
            || e.is::<TokenFileError>()
            || e.is::<TokenizeError>()
            || e.is::<WeightsError>()
            || matches!(e.downcast_ref(), Some(CheckpointError::Damaged { .. }))
    };
    if any(&|e| e.is::<ConfigError>() || e.is::<DeviceError>()) {
        exit_code::USAGE
    } else if any(&is_data) {
        exit_code::BAD_DATA
    } else {
        exit_code::FAILURE
    }
}
