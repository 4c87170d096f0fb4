//! A world of one rank: every collective is done before it begins.

use super::{CommError, Communicator};

/// The only rank.
pub struct Solo;

impl Communicator for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_gather(&self, _name: &'static str, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        Ok(vec![bytes.to_vec()])
    }

    fn broadcast(&self, _name: &'static str, _root: usize, bytes: Vec<u8>) -> Result<Vec<u8>, CommError> {
        Ok(bytes)
    }

    fn all_reduce_sum(&self, _name: &'static str, _values: &mut [f32]) -> Result<(), CommError> {
        Ok(())
    }
}
