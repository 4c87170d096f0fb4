//! What the tests of the two programs need: a tiny encoder, tiny tasks, recipes, a way to start `bam` and to kill it,
//! and readers of what it leaves behind. Knows the programs and their files, not their insides.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed: there is nobody to hand an error to")]

mod bam;
mod browser;
mod encoder;
mod fake_hub;
mod fake_slurm;
mod lab;
mod measure;
mod process_tree;
mod programs;
mod recipe;
mod run;
mod server;
mod snapshot;
mod stream;
mod tasks;
mod trial;
mod workplace;

pub use bam::{Bam, Finished, Running};
pub use browser::{Browser, Picture, Scheme};
pub use encoder::{Shape, keep_tokenizer_json_alone, write_encoder, write_encoder_of};
pub use fake_hub::{COMMIT, FakeHub};
pub use fake_slurm::FakeSlurm;
pub use lab::Lab;
pub use measure::{median, peak_of_ranks_mib};
pub use process_tree::{Process, freeze, kill_all, tree};
pub use programs::{program, python, repository, say_skipped, write_program};
pub use recipe::Recipe;
pub use run::{Run, Step};
pub use server::{Answer, Request, Server};
pub use snapshot::{Snapshot, sha256};
pub use stream::Stream;
pub use tasks::{FEW_ROWS, ROWS, write_all_of_glue, write_tasks};
pub use trial::{
    BASE, FirstSteps, LARGE, MINILM, Machine, TRAININGS, Text, Training, Trial, bench_directory, workshop, write_random,
};
pub use workplace::Workplace;
