//! The functions of NCCL and of the CUDA runtime that bam calls, as nccl.h and cuda_runtime_api.h have them, and how they are
//! found in the libraries at run time. Nothing checks a signature: they are this file's to get right.

#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::mem::ManuallyDrop;
use std::ptr;

use super::NcclError;

/// Communicators, streams and events: addresses of what only their library looks into.
pub(super) type Handle = *mut c_void;

/// By which the ranks of a communicator know one another.
pub(super) type UniqueId = [u8; 128];

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct RawUniqueId(pub(super) UniqueId);

/// How a communicator is made, as NCCL 2.18 wrote it down. A newer library sees by `size` and `version` that this one ends
/// here, and takes what it would by itself for all else.
#[repr(C)]
pub(super) struct Config {
    pub(super) size: usize,
    pub(super) magic: c_uint,
    pub(super) version: c_uint,
    pub(super) blocking: c_int,
    pub(super) cga_cluster_size: c_int,
    pub(super) min_ctas: c_int,
    pub(super) max_ctas: c_int,
    pub(super) net_name: *const c_char,
    pub(super) split_share: c_int,
}

const _: () = assert!(size_of::<Config>() == 48 && size_of::<RawUniqueId>() == 128);

/// Tells NCCL that a configuration was filled in on purpose.
pub(super) const MAGIC: c_uint = 0xcafe_beef;
/// Leaves a setting to NCCL, and so to whatever `NCCL_*` the user has set.
pub(super) const UNDEFINED: c_int = c_int::MIN;

pub(super) const NCCL_SUCCESS: c_int = 0;
pub(super) const NCCL_IN_PROGRESS: c_int = 7;
pub(super) const NCCL_FLOAT32: c_int = 7;
pub(super) const NCCL_BFLOAT16: c_int = 9;
pub(super) const NCCL_SUM: c_int = 0;

pub(super) const CUDA_SUCCESS: c_int = 0;
pub(super) const CUDA_NOT_READY: c_int = 600;
pub(super) const STREAM_NON_BLOCKING: c_uint = 1;
pub(super) const EVENT_DISABLE_TIMING: c_uint = 2;
/// The legacy default stream, on which torch works.
pub(super) const DEFAULT_STREAM: Handle = ptr::null_mut();

/// A table of functions, each found by the name of its field.
macro_rules! functions {
    ($table:ident { $($name:ident($($argument:ty),*) -> $result:ty;)* }) => {
        #[allow(non_snake_case)]
        pub(super) struct $table {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl $table {
            pub(super) fn find(file: &Loaded) -> Result<Self, NcclError> {
                // SAFETY: the signatures are those of nccl.h and cuda_runtime_api.h, which neither library changes
                // within the major version that its file is named after.
                Ok(unsafe { $table { $($name: file.symbol(stringify!($name))?,)* } })
            }
        }
    };
}

functions!(NcclFunctions {
    ncclGetUniqueId(*mut RawUniqueId) -> c_int;
    ncclCommInitRankConfig(*mut Handle, c_int, RawUniqueId, c_int, *mut Config) -> c_int;
    ncclAllReduce(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Handle) -> c_int;
    ncclReduceScatter(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Handle) -> c_int;
    ncclAllGather(*const c_void, *mut c_void, usize, c_int, Handle, Handle) -> c_int;
    ncclBroadcast(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Handle) -> c_int;
    ncclSend(*const c_void, usize, c_int, c_int, Handle, Handle) -> c_int;
    ncclRecv(*mut c_void, usize, c_int, c_int, Handle, Handle) -> c_int;
    ncclGroupStart() -> c_int;
    ncclGroupEnd() -> c_int;
    ncclCommGetAsyncError(Handle, *mut c_int) -> c_int;
    ncclCommAbort(Handle) -> c_int;
    ncclCommDestroy(Handle) -> c_int;
    ncclGetErrorString(c_int) -> *const c_char;
    ncclGetLastError(Handle) -> *const c_char;
});

functions!(CudaFunctions {
    cudaSetDevice(c_int) -> c_int;
    cudaDeviceGetPCIBusId(*mut c_char, c_int, c_int) -> c_int;
    cudaStreamCreateWithFlags(*mut Handle, c_uint) -> c_int;
    cudaStreamDestroy(Handle) -> c_int;
    cudaStreamWaitEvent(Handle, Handle, c_uint) -> c_int;
    cudaEventCreateWithFlags(*mut Handle, c_uint) -> c_int;
    cudaEventRecord(Handle, Handle) -> c_int;
    cudaEventQuery(Handle) -> c_int;
    cudaEventDestroy(Handle) -> c_int;
    cudaGetErrorString(c_int) -> *const c_char;
    cudaGetLastError() -> c_int;
});

/// A library that stays for as long as the process: those of NVIDIA have threads that would not survive its going.
pub(super) struct Loaded {
    pub(super) file: String,
    library: ManuallyDrop<libloading::Library>,
}

impl Loaded {
    pub(super) fn open(library: &'static str, variable: &'static str, names: Vec<String>) -> Result<Loaded, NcclError> {
        let mut reason = String::new();
        for name in &names {
            // SAFETY: loading runs the library's initialisers; that of NCCL and the CUDA runtime is done by torch, too.
            match unsafe { libloading::Library::new(name) } {
                Ok(library) => return Ok(Loaded { file: name.clone(), library: ManuallyDrop::new(library) }),
                Err(e) => reason = e.to_string(),
            }
        }
        Err(NcclError::LibraryMissing { library, tried: names, variable, reason })
    }

    /// # Safety
    /// `T` is a pointer to a function with the signature of this one.
    pub(super) unsafe fn symbol<T: Copy>(&self, name: &'static str) -> Result<T, NcclError> {
        // SAFETY: the caller vouches for the signature; the library stays, and so does the function.
        let found = unsafe { self.library.get::<T>(name.as_bytes()) };
        let missing = |e: libloading::Error| NcclError::SymbolMissing {
            file: self.file.clone(),
            symbol: name,
            reason: e.to_string(),
        };
        found.map(|symbol| *symbol).map_err(missing)
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn the_configuration_is_laid_out_as_nccl_reads_it() {
        assert_eq!([offset_of!(Config, magic), offset_of!(Config, version), offset_of!(Config, blocking)], [8, 12, 16]);
        assert_eq!([offset_of!(Config, net_name), offset_of!(Config, split_share)], [32, 40]);
    }
}
