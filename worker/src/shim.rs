//! What libtorch has and tch does not wrap, through a few lines of C++ (`shim/shim.cpp`); and libtorch's CUDA half, which no
//! linker would keep, since nothing refers to it.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};
use std::ptr::null_mut;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::Tensor;
use torch_sys::C_tensor;

/// What libtorch says of an operation that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("libtorch: {0}")]
pub struct TorchError(String);

unsafe extern "C" {
    fn bam_free_message(message: *mut c_char);
    fn bam_layer_norm_backward(
        results: *mut *mut C_tensor,
        gradient: *const C_tensor,
        input: *const C_tensor,
        mean: *const C_tensor,
        inverse: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
    ) -> *mut c_char;
    fn bam_flash_attention(
        results: *mut *mut C_tensor,
        query: *const C_tensor,
        key: *const C_tensor,
        value: *const C_tensor,
        query_starts: *const C_tensor,
        key_starts: *const C_tensor,
        longest_query: i64,
        longest_key: i64,
        dropout: f64,
    ) -> *mut c_char;
    fn bam_fused_adamw(
        values: *const *mut C_tensor,
        gradients: *const *mut C_tensor,
        first: *const *mut C_tensor,
        second: *const *mut C_tensor,
        count: i64,
        step: *const C_tensor,
        rate: f64,
        beta1: f64,
        beta2: f64,
        decay: f64,
        epsilon: f64,
        gradient_divisor: *const C_tensor,
    ) -> *mut c_char;
    fn bam_set_deterministic(wanted: bool) -> *mut c_char;
    fn bam_allow_tf32(allowed: bool) -> *mut c_char;
    fn bam_cuda_memory(device: i64, bytes: *mut i64) -> *mut c_char;
    fn bam_cuda_forget_peak(device: i64) -> *mut c_char;
}

/// Loads libtorch's CUDA half, where it and the libraries that it needs are installed; once, and says every time how that went:
/// where it is missing, in the system's words. Has to come before anything that asks libtorch about CUDA, whose first answer
/// stays.
pub fn cuda() -> &'static Result<(), TorchError> {
    static LOADED: OnceLock<Result<(), TorchError>> = OnceLock::new();
    LOADED.get_or_init(load_cuda)
}

fn load_cuda() -> Result<(), TorchError> {
    // SAFETY: libtorch's own library, whose initialisers register its kernels; it is meant to be loaded in this way, and no
    // other thread of this program has begun to use libtorch.
    let loaded = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) };
    match loaded {
        // Its kernels are registered for good: it must not be closed.
        Ok(library) => {
            std::mem::forget(library);
            Ok(())
        }
        Err(error) => Err(TorchError(error.to_string())),
    }
}

/// A function of CUDA's runtime, which libtorch has loaded already if there are GPUs; none if it cannot be found.
fn of_cudart<F: Copy>(symbol: &[u8]) -> Option<F> {
    // SAFETY: CUDA's runtime, whose initialisers are those of a library that is meant to be loaded at run time.
    let library = unsafe { Library::open(Some("libcudart.so.13"), RTLD_NOW) }.ok()?;
    // SAFETY: callers say the type that CUDA's header gives the symbol.
    let function = *unsafe { library.get::<F>(symbol) }.ok()?;
    // The function must not outlive the library.
    std::mem::forget(library);
    Some(function)
}

/// The compute capability, times ten, of the oldest of the GPUs 0 to `gpus`; none if there are none, or it cannot be known.
pub fn least_capability(gpus: usize) -> Option<i64> {
    type GetAttribute = unsafe extern "C" fn(value: *mut i32, attribute: i32, device: i32) -> i32;
    const MAJOR: i32 = 75;
    const MINOR: i32 = 76;
    if gpus == 0 {
        return None;
    }
    let get = of_cudart::<GetAttribute>(b"cudaDeviceGetAttribute\0")?;
    let attribute = |attribute: i32, device: i32| {
        let mut value = 0;
        // SAFETY: `cudaError_t cudaDeviceGetAttribute(int *, cudaDeviceAttr, int)`, whose enumerations are ints. There is room for
        // the value; the function refuses what it does not know.
        (unsafe { get(&mut value, attribute, device) } == 0).then_some(i64::from(value))
    };
    let of = |device: i32| Some(10 * attribute(MAJOR, device)? + attribute(MINOR, device)?);
    (0..gpus as i32).map(of).min().flatten()
}

/// The version of CUDA that the driver supports, as in `13.0`; none if there is no driver, or it cannot be known.
pub fn cuda_driver() -> Option<String> {
    type GetVersion = unsafe extern "C" fn(version: *mut i32) -> i32;
    let get = of_cudart::<GetVersion>(b"cudaDriverGetVersion\0")?;
    let mut version = 0;
    // SAFETY: `cudaError_t cudaDriverGetVersion(int *)`; there is room for the value.
    let is_told = unsafe { get(&mut version) } == 0 && version > 0;
    is_told.then(|| format!("{}.{}", version / 1000, version % 1000 / 10))
}

/// Makes a GPU the one that this thread's work goes to where nothing says another; so a rank leaves the others alone.
pub fn use_gpu(device: usize) {
    type SetDevice = unsafe extern "C" fn(device: i32) -> i32;
    if let Some(set) = of_cudart::<SetDevice>(b"cudaSetDevice\0") {
        // SAFETY: `cudaError_t cudaSetDevice(int)`, which refuses what is not there: whoever uses the GPU then hears of it.
        unsafe { set(device as i32) };
    }
}

/// Where on the PCI bus a GPU is, as in `0000:1B:00.0`; none if it cannot be known.
pub fn pci_bus_id(device: usize) -> Option<String> {
    type GetBusId = unsafe extern "C" fn(text: *mut c_char, length: i32, device: i32) -> i32;
    let get = of_cudart::<GetBusId>(b"cudaDeviceGetPCIBusId\0")?;
    let mut text = [0; 32];
    // SAFETY: `cudaError_t cudaDeviceGetPCIBusId(char *, int, int)` writes no more than that, with a 0 at the end.
    if unsafe { get(text.as_mut_ptr(), text.len() as i32, device as i32) } != 0 {
        return None;
    }
    // SAFETY: the text is there now, and ends with a 0.
    Some(unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned())
}

/// The gradients of a LayerNorm's input, weight and bias: `gradient` and `input` are [rows, width], `mean` and `inverse`
/// (1/standard deviation) as the forward pass returned them.
///
/// # Errors
/// libtorch's.
pub fn layer_norm_backward(
    gradient: &Tensor,
    input: &Tensor,
    [mean, inverse]: [&Tensor; 2],
    [weight, bias]: [&Tensor; 2],
) -> Result<[Tensor; 3], TorchError> {
    let mut results = [null_mut(); 3];
    // SAFETY: all handles are of living tensors, and three results are written if nothing is reported.
    check(unsafe {
        bam_layer_norm_backward(
            results.as_mut_ptr(),
            gradient.as_ptr(),
            input.as_ptr(),
            mean.as_ptr(),
            inverse.as_ptr(),
            weight.as_ptr(),
            bias.as_ptr(),
        )
    })?;
    Ok(results.map(take))
}

/// Where sequences begin, and where the last one ends: int32 [sequences + 1]; and the length of the longest.
#[derive(Clone, Copy)]
pub struct Starts<'a> {
    /// On the device.
    pub starts: &'a Tensor,
    /// Rows.
    pub longest: i64,
}

/// softmax(QKᵀ/√d)·V of every sequence by itself, on a GPU, in half precision: `query`, `key` and `value` are
/// [rows, heads, d]. Returns the output, and what the backward pass needs: the log of the softmax's sums, and two tensors that
/// stand for the dropout mask.
///
/// # Errors
/// libtorch's: the device, the type or the shape is none that it has a kernel for.
pub fn flash_attention(
    [query, key, value]: [&Tensor; 3],
    of_query: Starts,
    of_key: Starts,
    dropout: f64,
) -> Result<[Tensor; 4], TorchError> {
    let mut results = [null_mut(); 4];
    // SAFETY: all handles are of living tensors, and four results are written if nothing is reported.
    check(unsafe {
        bam_flash_attention(
            results.as_mut_ptr(),
            query.as_ptr(),
            key.as_ptr(),
            value.as_ptr(),
            of_query.starts.as_ptr(),
            of_key.starts.as_ptr(),
            of_query.longest,
            of_key.longest,
            dropout,
        )
    })?;
    Ok(results.map(take))
}

/// Settings of a step of Adam.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    /// Learning rate.
    pub rate: f64,
    /// Decay of the first and of the second moment.
    pub betas: [f64; 2],
    /// Decoupled weight decay.
    pub decay: f64,
    /// ε.
    pub epsilon: f64,
}

/// Values, gradients, first and second moments of one tensor, all float32 and of the same shape.
pub type AdamTensors<'a> = [&'a Tensor; 4];

/// One step of Adam with decoupled weight decay, and with its bias corrected for step number `step` (float32, from 1), of
/// tensors that share their settings. Gradients are divided by `divisor` (float32) first.
///
/// # Errors
/// libtorch's.
pub fn fused_adamw(
    tensors: &[AdamTensors],
    step: &Tensor,
    divisor: &Tensor,
    settings: AdamStep,
) -> Result<(), TorchError> {
    let list = |i: usize| tensors.iter().map(|t| t[i].as_ptr().cast_mut()).collect::<Vec<*mut C_tensor>>();
    let [values, gradients, first, second] = [0, 1, 2, 3].map(list);
    let AdamStep { rate, betas: [beta1, beta2], decay, epsilon } = settings;
    // SAFETY: the lists are as long as is said and hold handles of living tensors. Tensors share their memory with all handles
    // to them, so that libtorch may change them through these, as it may through tch's own in-place operations.
    check(unsafe {
        bam_fused_adamw(
            values.as_ptr(),
            gradients.as_ptr(),
            first.as_ptr(),
            second.as_ptr(),
            tensors.len() as i64,
            step.as_ptr(),
            rate,
            beta1,
            beta2,
            decay,
            epsilon,
            divisor.as_ptr(),
        )
    })
}

/// Whether operations that could add up in any order have to do it in the same one every time, as far as libtorch can.
///
/// # Errors
/// libtorch's.
pub fn set_deterministic(wanted: bool) -> Result<(), TorchError> {
    // SAFETY: changes a setting.
    check(unsafe { bam_set_deterministic(wanted) })
}

/// Whether products of float32 matrices on GPUs may round their inputs to TensorFloat-32.
///
/// # Errors
/// libtorch's.
pub fn allow_tf32(allowed: bool) -> Result<(), TorchError> {
    // SAFETY: changes a setting.
    check(unsafe { bam_allow_tf32(allowed) })
}

/// Bytes of a GPU's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaMemory {
    /// The most that tensors have had at one time.
    pub peak: u64,
    /// What libtorch holds, for tensors there are and for those to come.
    pub held: u64,
    /// What nobody holds.
    pub free: u64,
    /// All.
    pub total: u64,
}

/// How the memory of GPU `device` is used.
///
/// # Errors
/// There is no such GPU.
pub fn cuda_memory(device: usize) -> Result<CudaMemory, TorchError> {
    let mut bytes = [0i64; 4];
    // SAFETY: there is room for the four values that are written.
    check(unsafe { bam_cuda_memory(device as i64, bytes.as_mut_ptr()) })?;
    let [peak, held, free, total] = bytes.map(|n| u64::try_from(n).unwrap_or(0));
    Ok(CudaMemory { peak, held, free, total })
}

/// Gives memory that no tensor has back to GPU `device`, and begins to measure the [peak](CudaMemory::peak) anew.
///
/// # Errors
/// There is no such GPU.
pub fn forget_cuda_peak(device: usize) -> Result<(), TorchError> {
    // SAFETY: no tensor's memory is touched.
    check(unsafe { bam_cuda_forget_peak(device as i64) })
}

fn take(handle: *mut C_tensor) -> Tensor {
    // SAFETY: a handle that the shim has just made with `new`, and that nobody else has.
    unsafe { Tensor::from_ptr(handle) }
}

fn check(message: *mut c_char) -> Result<(), TorchError> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: the shim reports a string that ends with 0 and is ours to give back.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    // SAFETY: as above; it is not used any more.
    unsafe { bam_free_message(message) };
    // What follows is where in libtorch it happened.
    Err(TorchError(text.split("\nException raised from").next().unwrap_or_default().to_owned()))
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

    #[test]
    fn a_layer_norm_is_differentiated_as_libtorch_does_it() {
        let leaf = |size: &[i64]| Tensor::randn(size, FLOAT).set_requires_grad(true);
        let (x, weight, bias) = (leaf(&[5, 8]), leaf(&[8]), leaf(&[8]));
        let gradient = Tensor::randn([5, 8], FLOAT);
        let (out, mean, inverse) = x.native_layer_norm([8], Some(&weight), Some(&bias), 1e-12);
        (out * &gradient).sum(Kind::Float).backward();
        let detached = [&weight, &bias].map(Tensor::detach);
        let found = layer_norm_backward(
            &gradient,
            &x.detach(),
            [&mean.detach(), &inverse.detach()],
            [&detached[0], &detached[1]],
        );
        for (found, expected) in found.unwrap().iter().zip([x.grad(), weight.grad(), bias.grad()]) {
            assert!((found - expected).abs().max().double_value(&[]) < 1e-6);
        }
    }

    #[test]
    fn what_libtorch_refuses_is_an_error() {
        let x = Tensor::zeros([4, 2, 8], FLOAT);
        let starts = Tensor::from_slice(&[0i32, 4]);
        let starts = Starts { starts: &starts, longest: 4 };
        let error = flash_attention([&x, &x, &x], starts, starts, 0.0).unwrap_err();
        assert!(error.to_string().contains("_flash_attention_forward"), "{error}");
        assert!(!error.to_string().contains("Exception raised from"), "{error}");
    }
}
