//! A model's parameters on one device: float32 values in one flat buffer, a copy of them in the numbers that products are
//! computed in, and gradients in another flat buffer, so that reduction, clipping and the optimizer each make few passes.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::place::{Numbers, Place};
use crate::model::{ParameterSpec, Parameters};
use crate::tensor_memory::floats;

/// Parameters on a device.
pub(super) struct DeviceParameters {
    specs: Vec<ParameterSpec>,
    ranges: Vec<Range<usize>>,
    /// Flat, float32.
    values: Tensor,
    /// The same in `kind`; float32: the same memory.
    computed: Tensor,
    /// Flat, float32, with the tail behind them; empty for a model that is not trained.
    gradients: Tensor,
}

impl DeviceParameters {
    /// A copy of `parameters` at `place`; with a `tail` of so many values behind the gradients if it is to be trained.
    pub fn copy(parameters: &mut Parameters, place: Place, tail: Option<usize>) -> Self {
        let (specs, ranges) = (parameters.specs().to_vec(), parameters.ranges().to_vec());
        let n = parameters.len();
        // At home the values are copied, too: the engine owns its memory.
        let values = Tensor::from_slice(parameters.values_mut()).to_device(place.device);
        let computed = match place.numbers {
            Numbers::Bf16 => values.to_kind(Kind::BFloat16),
            Numbers::Fp32 | Numbers::Tf32 => values.shallow_clone(),
        };
        let length = tail.map_or(0, |tail| n + tail) as i64;
        let gradients = Tensor::zeros([length], (Kind::Float, place.device));
        DeviceParameters { specs, ranges, values, computed, gradients }
    }

    /// What each parameter is.
    pub fn specs(&self) -> &[ParameterSpec] {
        &self.specs
    }

    /// Where each parameter lies in the flat buffers.
    pub fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.values.numel()
    }

    /// What tensors between products hold.
    pub fn kind(&self) -> Kind {
        self.computed.kind()
    }

    /// All values, flat.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// All gradients, flat, without the tail.
    pub fn gradients(&self) -> Tensor {
        self.gradients.narrow(0, 0, self.len() as i64)
    }

    /// All gradients, and the tail behind them.
    pub fn gradients_and_tail(&self) -> &Tensor {
        &self.gradients
    }

    /// Parameter `index` and so many behind it, of the same shape, as one: their rows below one another, in the numbers that
    /// products are computed in.
    pub fn computed(&self, index: usize, further: usize) -> Tensor {
        self.view(&self.computed, index, further)
    }

    /// The same in float32.
    pub fn value(&self, index: usize) -> Tensor {
        self.view(&self.values, index, 0)
    }

    /// The gradient of parameter `index` and so many behind it.
    pub fn gradient(&self, index: usize, further: usize) -> Tensor {
        self.view(&self.gradients, index, further)
    }

    /// Replaces all values.
    pub fn set_values(&mut self, values: &[f32]) {
        self.values.copy_(&Tensor::from_slice(values));
        self.refresh();
    }

    /// Brings what is computed with up to date, after the values have changed.
    pub fn refresh(&mut self) {
        if self.computed.kind() != Kind::Float {
            self.computed.copy_(&self.values);
        }
    }

    /// All values in the host's memory.
    pub fn download(&self) -> Vec<f32> {
        download(&self.values)
    }

    fn view(&self, whole: &Tensor, index: usize, further: usize) -> Tensor {
        let mut shape = self.specs[index].shape.clone();
        shape[0] *= further as i64 + 1;
        let (start, end) = (self.ranges[index].start, self.ranges[index + further].end);
        whole.narrow(0, start as i64, (end - start) as i64).view(&shape[..])
    }
}

/// The values of a contiguous float32 tensor, in the host's memory.
pub(super) fn download(tensor: &Tensor) -> Vec<f32> {
    floats(&tensor.to_device(Device::Cpu)).to_vec()
}
