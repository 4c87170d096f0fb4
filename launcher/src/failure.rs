//! How an error leaves the program: its text for people, its exit code for scripts.

use bam_cluster::config::ConfigError;
use bam_cluster::encoder::{EncoderError, WeightsError};
use bam_cluster::exit_code;
use bam_cluster::stage_record::RecordError;
use bam_cluster::task::DataError;
use bam_cluster::teacher::LogitsError;

use crate::command::export::ExportError;
use crate::command::report::ReportError;
use crate::command::run::NoSuchStage;
use crate::command::submission::SubmissionError;
use crate::conduct::StageFailed;
use crate::fetch::FetchError;
use crate::report::NotARun;
use crate::run_claim::OtherRecipe;
use crate::slurm::ScriptError;
use crate::stage_inputs::MissingProduct;

/// The error and its causes in one line, each said once: many of our errors already quote their cause.
pub fn text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// The exit code that goes with an error.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(code_of_cause).unwrap_or(exit_code::FAILURE)
}

fn code_of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if let Some(failed) = cause.downcast_ref::<StageFailed>() {
        return Some(failed.exit_code);
    }
    if cause.is::<ConfigError>()
        || cause.is::<OtherRecipe>()
        || cause.is::<NotARun>()
        || cause.is::<NoSuchStage>()
        || cause.is::<ReportError>()
    {
        return Some(exit_code::USAGE);
    }
    if let Some(error) = cause.downcast_ref::<ScriptError>() {
        return Some(match error {
            ScriptError::NoBash { .. } => exit_code::FAILURE,
            _ => exit_code::USAGE,
        });
    }
    if let Some(error) = cause.downcast_ref::<ExportError>() {
        return Some(match error {
            ExportError::Stage { .. } | ExportError::InTheWay { .. } => exit_code::USAGE,
            ExportError::Model { .. } => exit_code::BAD_DATA,
        });
    }
    if let Some(error) = cause.downcast_ref::<SubmissionError>() {
        return Some(match error {
            SubmissionError::Trial { .. } => exit_code::USAGE,
            SubmissionError::Missing { .. } | SubmissionError::Answers { .. } | SubmissionError::Rows { .. } => {
                exit_code::BAD_DATA
            }
        });
    }
    if let Some(error) = cause.downcast_ref::<FetchError>() {
        return Some(match error {
            error if error.is_usage() => exit_code::USAGE,
            error if error.is_bad_data() => exit_code::BAD_DATA,
            _ => exit_code::FAILURE,
        });
    }
    let bad_data = cause.is::<DataError>()
        || cause.is::<EncoderError>()
        || cause.is::<WeightsError>()
        || cause.is::<LogitsError>()
        || cause.is::<MissingProduct>()
        || matches!(cause.downcast_ref(), Some(RecordError::Changed { .. }));
    bad_data.then_some(exit_code::BAD_DATA)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    fn missing() -> EncoderError {
        EncoderError { path: "m".into(), problem: "gone".into() }
    }

    #[test]
    fn a_cause_that_is_quoted_is_not_said_again() {
        let io = std::io::Error::other("disk full");
        let quoted: anyhow::Result<()> = Err(RecordError::Io { path: "x".into(), source: io }.into());
        let error = quoted.context("cannot begin").unwrap_err();
        assert_eq!(text(&error), "cannot begin: x: disk full");
    }

    #[test]
    fn the_exit_code_is_found_under_context() {
        let error = Err::<(), _>(missing()).context("looking at the encoder").unwrap_err();
        assert_eq!(exit_code(&error), exit_code::BAD_DATA);
        assert_eq!(exit_code(&anyhow::anyhow!("x")), exit_code::FAILURE);
    }
}
