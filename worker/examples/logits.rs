//! Prints what the head of a model says of every example in a file of tokens, before any softmax or sigmoid, for comparison with
//! another implementation (`tests/compare_with_transformers.py`). One line each: the example's id, and the head's outputs in
//! their own order. `MODEL` is any directory that bam reads: a student of many tasks, an export, a teacher of Hugging Face's.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use bam_cluster::encoder::Encoder;
use bam_worker::data::TokenFile;
use bam_worker::eval::{deal, outputs};
use bam_worker::model::{Bert, Head};
use bam_worker::snapshot::read_model;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = || arguments.next().context("usage: logits MODEL TOKENS.h5");
    let (directory, tokens) = (argument()?, argument()?);
    tch::set_num_threads(1);
    let set = TokenFile::read(Path::new(&tokens), None)?;
    let encoder = Encoder::inspect(Path::new(&directory), None, set.max_length)?;
    let head = Head { task: set.task.clone(), outputs: set.label_names.len() };
    let mut model = Bert::new(encoder.config, vec![head]);
    read_model(&encoder.weights, model.parameters_mut())?;
    let batches = deal(&set, &model, 1).concat();
    let raw = outputs(&model, 0, &set, &batches, |_| Ok(()))?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for (&example, logits) in batches.iter().flatten().zip(raw.chunks(set.label_names.len())) {
        let logits: Vec<String> = logits.iter().map(f32::to_string).collect();
        writeln!(out, "{}\t{}", set.example_ids[example], logits.join("\t"))?;
    }
    Ok(out.flush()?)
}
