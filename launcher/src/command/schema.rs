//! `bam schema`: what a recipe may say, for editors and for people.

use anyhow::Context;
use bam_cluster::{config, exit_code};

use crate::cli::SchemaArguments;
use crate::recipe_reference;

/// Prints it.
pub fn run(arguments: &SchemaArguments) -> anyhow::Result<u8> {
    let schema = config::json_schema();
    let text = if arguments.markdown {
        recipe_reference::markdown(&schema)
    } else {
        serde_json::to_string_pretty(&schema).context("the schema is no JSON")? + "\n"
    };
    super::print(&text)?;
    Ok(exit_code::DONE)
}
