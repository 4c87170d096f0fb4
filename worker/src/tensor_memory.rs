//! A tensor's memory as a slice, for MPI and for the optimizer's one pass.

#![allow(unsafe_code)]

use tch::{Device, Kind, Tensor};

/// The elements of a contiguous float32 tensor on the CPU, to change in place.
///
/// # Panics
/// The tensor is something else: a mistake in this program.
pub fn floats_mut(tensor: &mut Tensor) -> &mut [f32] {
    check(tensor);
    // SAFETY: the tensor is contiguous float32 CPU memory of `numel` elements (checked above) and stays alive as long
    // as the borrow. The exclusive borrow of the handle keeps callers from taking two slices through one handle; other
    // handles to this storage (parameters are views of one buffer) are used by this thread alone, never meanwhile.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), tensor.numel()) }
}

/// The elements of a contiguous float32 tensor on the CPU.
///
/// # Panics
/// As [`floats_mut`].
pub fn floats(tensor: &Tensor) -> &[f32] {
    check(tensor);
    // SAFETY: as above; no operation on this storage runs while the slice is in use, because all of them are issued by
    // the thread that holds it.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<f32>(), tensor.numel()) }
}

fn check(tensor: &Tensor) {
    let fits = tensor.device() == Device::Cpu && tensor.kind() == Kind::Float && tensor.is_contiguous();
    assert!(fits, "expected a contiguous float32 tensor on the CPU, got {tensor:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_shares_its_memory() {
        let mut whole = Tensor::zeros([4], (Kind::Float, Device::Cpu));
        let half = whole.narrow(0, 2, 2);
        floats_mut(&mut whole)[3] = 7.0;
        assert_eq!(floats(&half), [0.0, 7.0]);
    }
}
