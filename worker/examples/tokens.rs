//! Prints the tokens of every row of every GLUE file that is there, for comparison with another tokenizer
//! (`tests/compare_tokens.py`). One line each: file, length of the first segment, ids, and the one or two texts.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use bam_cluster::config::Truncation;
use bam_cluster::encoder::Encoder;
use bam_cluster::task::{Dev, GLUE_NAMES, Table, glue_task, read_split, read_table};
use bam_worker::data::Tokenizer;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut argument = || arguments.next().context("usage: tokens ENCODER GLUE MAX_LENGTH");
    let (encoder, glue, max_length) = (argument()?, argument()?, argument()?.parse()?);
    let tokenizer =
        Tokenizer::open(&Encoder::inspect(Path::new(&encoder), None, max_length)?, Truncation::HuggingFace)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for name in GLUE_NAMES {
        let Some(task) = glue_task(name, Path::new(&glue)) else { continue };
        let mut tables: Vec<(&Path, Table)> = vec![];
        let dev = if let Dev::File(dev) = &task.source.dev { Some(dev.as_path()) } else { None };
        for path in [Some(task.source.train.as_path()), dev].into_iter().flatten().filter(|p| p.exists()) {
            tables.push((path, read_table(&task, path)?));
        }
        for split in &task.source.further {
            if let Some(path) = split.file() {
                tables.push((path, read_split(&task, split, path)?));
            }
        }
        for (path, table) in tables {
            for example in table.examples {
                let tokens = tokenizer.encode(&example.text, example.text_b.as_deref(), max_length)?;
                let ids: Vec<String> = tokens.ids.iter().map(i32::to_string).collect();
                let texts = [Some(example.text), example.text_b].into_iter().flatten().collect::<Vec<_>>();
                let fields = [path.display().to_string(), tokens.first_segment.to_string(), ids.join(" ")];
                writeln!(out, "{}\t{}", fields.join("\t"), texts.join("\t"))?;
            }
        }
    }
    Ok(out.flush()?)
}
