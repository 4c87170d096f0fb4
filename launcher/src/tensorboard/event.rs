//! The part of TensorBoard's `Event` that bam writes, as `event.proto` and `summary.proto` number its fields.

use prost::{Message, Oneof};

/// What every file begins with; from this version on, readers heed [`Event::start`].
const FILE_VERSION: &str = "brain.Event:2";
/// `SessionLog.SessionStatus.START`.
const START: i32 = 1;

/// One event.
#[derive(Clone, PartialEq, Message)]
pub struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    pub wall_time: f64,
    /// Optimizer step.
    #[prost(int64, tag = "2")]
    pub step: i64,
    /// What it is about.
    #[prost(oneof = "What", tags = "3, 5, 7")]
    pub what: Option<What>,
}

/// What an event is about.
#[derive(Clone, PartialEq, Oneof)]
pub enum What {
    /// The first event of a file.
    #[prost(string, tag = "3")]
    FileVersion(String),
    /// Scalars of one step.
    #[prost(message, tag = "5")]
    Summary(Summary),
    /// A start.
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

/// Scalars of one step.
#[derive(Clone, PartialEq, Message)]
pub struct Summary {
    /// Each with its tag.
    #[prost(message, repeated, tag = "1")]
    pub values: Vec<Scalar>,
}

/// One scalar.
#[derive(Clone, PartialEq, Message)]
pub struct Scalar {
    /// Its name; what stands before the slash names a group of charts.
    #[prost(string, tag = "1")]
    pub tag: String,
    /// Its value. A `oneof` in the original, where even a 0 has to be written.
    #[prost(float, optional, tag = "2")]
    pub simple_value: Option<f32>,
}

/// What becomes of a session.
#[derive(Clone, PartialEq, Message)]
pub struct SessionLog {
    /// `START` alone.
    #[prost(int32, tag = "1")]
    pub status: i32,
}

impl Event {
    /// The first event of a file.
    pub fn file_version(wall_time: f64) -> Event {
        Event { wall_time, step: 0, what: Some(What::FileVersion(FILE_VERSION.to_owned())) }
    }

    /// A start that goes on at `step`: what earlier files say of it and of later steps counts no longer.
    pub fn start(wall_time: f64, step: u64) -> Event {
        let log = SessionLog { status: START };
        Event { wall_time, step: step.cast_signed(), what: Some(What::SessionLog(log)) }
    }

    /// Scalars of a step.
    pub fn scalars(wall_time: f64, step: u64, scalars: impl IntoIterator<Item = (String, f64)>) -> Event {
        let value = |(tag, value): (String, f64)| Scalar { tag, simple_value: Some(value as f32) };
        let summary = Summary { values: scalars.into_iter().map(value).collect() };
        Event { wall_time, step: step.cast_signed(), what: Some(What::Summary(summary)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes as TensorBoard's own protocol buffers write them.
    #[test]
    fn events_are_coded_as_tensorboard_codes_them() {
        let scalars = Event::scalars(1.5, 7, [("loss".to_owned(), 0.0)]).encode_to_vec();
        let expected = b"\x09\0\0\0\0\0\0\xf8\x3f\x10\x07\x2a\x0d\x0a\x0b\x0a\x04loss\x15\0\0\0\0";
        assert_eq!(scalars, expected);
        let start = Event::start(1.5, 7).encode_to_vec();
        assert_eq!(start, b"\x09\0\0\0\0\0\0\xf8\x3f\x10\x07\x3a\x02\x08\x01");
        let version = Event::file_version(1.5).encode_to_vec();
        assert_eq!(version, b"\x09\0\0\0\0\0\0\xf8\x3f\x1a\x0dbrain.Event:2");
    }
}
