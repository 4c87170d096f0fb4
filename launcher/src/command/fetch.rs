//! `bam fetch`: GLUE and encoders from where they are published, on a machine with internet.

use std::path::Path;

use bam_cluster::encoder::Encoder;
use bam_cluster::exit_code;

use crate::cli::{FetchArguments, Fetched, FetchedGlue, FetchedModel};
use crate::fetch::{self, Glue, GlueFolder, Hub};
use crate::shell::quoted;

/// Fetches what is asked for.
pub fn run(arguments: &FetchArguments) -> anyhow::Result<u8> {
    match &arguments.what {
        Fetched::Glue(arguments) => glue(arguments),
        Fetched::Model(arguments) => model(arguments),
    }
}

fn glue(arguments: &FetchedGlue) -> anyhow::Result<u8> {
    let folders = GlueFolder::of(&arguments.task)?;
    let glue = Glue::new(&arguments.from, &arguments.dir);
    for folder in &folders {
        super::print(&format!("{}: {}\n", folder.task, glue.fetch(folder)?))?;
    }
    let directory = quoted(&arguments.dir.display().to_string());
    super::print(&format!("GLUE is in {directory}: -o data.glue={directory}, or data.glue in a recipe\n"))?;
    Ok(exit_code::DONE)
}

fn model(arguments: &FetchedModel) -> anyhow::Result<u8> {
    let name = &arguments.name;
    let snapshot = Hub::of_environment(name)?.fetch(name)?;
    let shape = Encoder::inspect(&snapshot, None, 8)?.config;
    let (layers, width) = (shape.num_hidden_layers, shape.hidden_size);
    let millions = shape.parameters() as f64 / 1e6;
    let directory = arguments.to.as_deref();
    if let Some(directory) = directory {
        fetch::copy_to(&snapshot, directory)?;
    }
    let place = directory.unwrap_or(&snapshot);
    let path = directory.map_or_else(|| name.clone(), |directory: &Path| directory.display().to_string());
    super::print(&format!(
        "{name}: {layers} layers of width {width}, {millions:.1} million parameters\nit is in {}: -o model.path={}, or \
         model.path in a recipe\n",
        place.display(),
        quoted(&path)
    ))?;
    Ok(exit_code::DONE)
}
