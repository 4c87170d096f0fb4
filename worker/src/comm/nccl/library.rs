//! NCCL and the CUDA runtime behind names that are safe to call: handles that are ended once, results as errors in their
//! library's words.

#![allow(unsafe_code)]

use std::env;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::ops::Range;
use std::ptr;
use std::sync::Arc;

use tch::{Kind, Tensor};

use super::NcclError;
use super::functions::*;

/// A version of NCCL, as it counts them: 22809 is 2.28.9.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub i32);

/// The first whose communicators are made, used and aborted without blocking.
const OLDEST: Version = Version(21800);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        // Up to 2.8 there was less room for the minor number.
        let major = if self.0 < 10_000 { 1000 } else { 10_000 };
        write!(f, "{}.{}.{}", self.0 / major, self.0 % major / 100, self.0 % 100)
    }
}

/// NCCL and the CUDA runtime.
pub struct Library {
    nccl: NcclFunctions,
    cuda: CudaFunctions,
    version: Version,
    file: String,
}

/// Whether NCCL is done with a call, which it goes on with in a thread of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Done,
    InProgress,
}

/// A communicator of NCCL. Whoever has it must end it.
pub(super) struct Comm(Handle);

// SAFETY: NCCL looks its communicators up by address, from any thread, one at a time; `Shared` keeps this one in a lock.
unsafe impl Send for Comm {}

/// A stream that does not wait for the default stream, nor that for it.
pub(super) struct Stream {
    handle: Handle,
    library: Arc<Library>,
}

/// A place in the work of a stream.
pub(super) struct Event {
    handle: Handle,
    library: Arc<Library>,
}

// SAFETY: CUDA's streams may be used by all threads of a process at any time.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Send for Event {}

impl Library {
    /// NCCL and the CUDA runtime of this process, which torch has loaded where it sees GPUs; `BAM_NCCL` and `BAM_CUDART` name
    /// other files.
    ///
    /// # Errors
    /// A library is missing, lacks a function or is too old.
    pub fn find() -> Result<Arc<Library>, NcclError> {
        let named = |variable| env::var_os(variable).map(|name| name.to_string_lossy().into_owned());
        Library::load(named("BAM_NCCL").as_deref(), named("BAM_CUDART").as_deref())
    }

    /// The same from these files, where they are named.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub fn load(nccl: Option<&str>, cuda: Option<&str>) -> Result<Arc<Library>, NcclError> {
        let names = |given: Option<&str>, usual: &[&str]| match given {
            Some(name) => vec![name.to_owned()],
            None => usual.iter().map(|&name| name.to_owned()).collect(),
        };
        let nccl = Loaded::open("NCCL", "BAM_NCCL", names(nccl, &["libnccl.so.2"]))?;
        let cuda = names(cuda, &["libcudart.so.13", "libcudart.so.12"]);
        let cuda = Loaded::open("the CUDA runtime", "BAM_CUDART", cuda)?;
        // SAFETY: the signature of nccl.h.
        let get_version: unsafe extern "C" fn(*mut c_int) -> c_int = unsafe { nccl.symbol("ncclGetVersion")? };
        let mut version = 0;
        // SAFETY: writes a number to where it is told.
        unsafe { get_version(&raw mut version) };
        // First of all, since older ones lack functions.
        if Version(version) < OLDEST {
            return Err(NcclError::TooOld { file: nccl.file, found: Version(version), oldest: OLDEST });
        }
        let functions = NcclFunctions::find(&nccl)?;
        let cuda = CudaFunctions::find(&cuda)?;
        Ok(Arc::new(Library { nccl: functions, cuda, version: Version(version), file: nccl.file }))
    }

    /// NCCL's version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The name by which NCCL was loaded.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// Makes this GPU the calling thread's.
    pub(super) fn set_device(&self, device: i32) -> Result<(), NcclError> {
        // SAFETY: takes a number; one that is no GPU's is an error.
        self.cuda("cudaSetDevice", unsafe { (self.cuda.cudaSetDevice)(device) })
    }

    /// By which a GPU is known on its host, whatever number a process gives it.
    pub(super) fn bus_id(&self, device: i32) -> Result<String, NcclError> {
        let mut id = [0u8; 32];
        // SAFETY: writes no more than the given number of bytes, the last of which is zero.
        let result = unsafe { (self.cuda.cudaDeviceGetPCIBusId)(id.as_mut_ptr().cast(), id.len() as c_int, device) };
        self.cuda("cudaDeviceGetPCIBusId", result)?;
        Ok(CStr::from_bytes_until_nul(&id).unwrap_or_default().to_string_lossy().into_owned())
    }

    /// A new id, by which ranks find the one that asked for it.
    pub(super) fn unique_id(&self) -> Result<UniqueId, NcclError> {
        let mut id = RawUniqueId([0; 128]);
        // SAFETY: writes an id to where it is told.
        self.done("ncclGetUniqueId", unsafe { (self.nccl.ncclGetUniqueId)(&raw mut id) })?;
        Ok(id.0)
    }

    /// Begins to make a communicator on the calling thread's GPU, which is ready as soon as its [`state`](Self::state) says so.
    pub(super) fn init(&self, ranks: usize, id: UniqueId, rank: usize) -> Result<Comm, NcclError> {
        let mut comm = ptr::null_mut();
        let mut config = Config {
            size: size_of::<Config>(),
            magic: MAGIC,
            version: OLDEST.0.cast_unsigned(),
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: ptr::null(),
            split_share: UNDEFINED,
        };
        // SAFETY: writes a handle to where it is told, and copies the configuration, which is as long as it says.
        let result = unsafe {
            let init = self.nccl.ncclCommInitRankConfig;
            init(&raw mut comm, ranks as c_int, RawUniqueId(id), rank as c_int, &raw mut config)
        };
        self.nccl("ncclCommInitRankConfig", result)?;
        Ok(Comm(comm))
    }

    /// How far the last call on this communicator is, or what has befallen it since.
    pub(super) fn state(&self, comm: &Comm) -> Result<Progress, NcclError> {
        let mut state = NCCL_SUCCESS;
        // SAFETY: whoever has a `Comm` has not ended it; writes a number to where it is told.
        self.done("ncclCommGetAsyncError", unsafe { (self.nccl.ncclCommGetAsyncError)(comm.0, &raw mut state) })?;
        self.nccl("NCCL", state)
    }

    /// Ends a communicator and all that it does.
    pub(super) fn abort(&self, comm: Comm) -> Result<(), NcclError> {
        // SAFETY: nobody else has it, and nobody will.
        self.done("ncclCommAbort", unsafe { (self.nccl.ncclCommAbort)(comm.0) })
    }

    /// Ends a communicator that has nothing to do.
    pub(super) fn destroy(&self, comm: Comm) -> Result<(), NcclError> {
        // SAFETY: nobody else has it, and nobody will.
        self.done("ncclCommDestroy", unsafe { (self.nccl.ncclCommDestroy)(comm.0) })
    }

    // Of all collectives: tensors are contiguous and as long as the checks in `Nccl` say, and `Nccl` keeps their memory until
    // the stream is through with it.

    pub(super) fn all_reduce_sum(&self, comm: &Comm, tensor: &Tensor, stream: &Stream) -> Result<Progress, NcclError> {
        let (at, count, kind) = (tensor.data_ptr(), tensor.numel(), data_type(tensor));
        // SAFETY: reads and writes the tensor's memory, see above.
        let result = unsafe { (self.nccl.ncclAllReduce)(at, at, count, kind, NCCL_SUM, comm.0, stream.handle) };
        self.nccl("ncclAllReduce", result)
    }

    pub(super) fn reduce_scatter(
        &self,
        comm: &Comm,
        send: &Tensor,
        receive: &Tensor,
        stream: &Stream,
    ) -> Result<Progress, NcclError> {
        let (count, kind) = (receive.numel(), data_type(receive));
        // SAFETY: reads `count` values for each rank of one tensor, writes so many of the other, see above.
        let result = unsafe {
            let call = self.nccl.ncclReduceScatter;
            call(send.data_ptr(), receive.data_ptr(), count, kind, NCCL_SUM, comm.0, stream.handle)
        };
        self.nccl("ncclReduceScatter", result)
    }

    pub(super) fn all_gather(
        &self,
        comm: &Comm,
        send: &Tensor,
        receive: &Tensor,
        stream: &Stream,
    ) -> Result<Progress, NcclError> {
        let (count, kind) = (send.numel(), data_type(send));
        // SAFETY: reads `count` values of one tensor, writes so many for each rank of the other, see above.
        let result = unsafe {
            (self.nccl.ncclAllGather)(send.data_ptr(), receive.data_ptr(), count, kind, comm.0, stream.handle)
        };
        self.nccl("ncclAllGather", result)
    }

    pub(super) fn broadcast(
        &self,
        comm: &Comm,
        tensor: &Tensor,
        root: usize,
        stream: &Stream,
    ) -> Result<Progress, NcclError> {
        let (at, count, kind) = (tensor.data_ptr(), tensor.numel(), data_type(tensor));
        // SAFETY: reads or writes the tensor's memory, see above.
        let result = unsafe { (self.nccl.ncclBroadcast)(at, at, count, kind, root as c_int, comm.0, stream.handle) };
        self.nccl("ncclBroadcast", result)
    }

    /// Sends `send[to[r]]` to each rank r and receives `receive[from[r]]` from it, all at once. Both are of one kind.
    pub(super) fn all_to_all(
        &self,
        comm: &Comm,
        (send, to): (&Tensor, &[Range<usize>]),
        (receive, from): (&Tensor, &[Range<usize>]),
        stream: &Stream,
    ) -> Result<Progress, NcclError> {
        let kind = data_type(send);
        let place = |tensor: &Tensor, part: &Range<usize>| {
            tensor.data_ptr().cast::<u8>().wrapping_add(part.start * tensor.kind().elt_size_in_bytes()).cast::<c_void>()
        };
        // SAFETY: the calls until the group ends only take note.
        self.done("ncclGroupStart", unsafe { (self.nccl.ncclGroupStart)() })?;
        let mut noted = Ok(Progress::Done);
        for (peer, part) in to.iter().enumerate().filter(|(_, part)| !part.is_empty()) {
            let (at, count, peer) = (place(send, part), part.len(), peer as c_int);
            // SAFETY: reads a range of the tensor's memory, see above.
            let result = unsafe { (self.nccl.ncclSend)(at, count, kind, peer, comm.0, stream.handle) };
            noted = noted.and_then(|_| self.nccl("ncclSend", result));
        }
        for (peer, part) in from.iter().enumerate().filter(|(_, part)| !part.is_empty()) {
            let (at, count, peer) = (place(receive, part), part.len(), peer as c_int);
            // SAFETY: writes a range of the tensor's memory, see above.
            let result = unsafe { (self.nccl.ncclRecv)(at, count, kind, peer, comm.0, stream.handle) };
            noted = noted.and_then(|_| self.nccl("ncclRecv", result));
        }
        // SAFETY: ends the group that was begun above, also where a call in it failed.
        let ended = self.nccl("ncclGroupEnd", unsafe { (self.nccl.ncclGroupEnd)() });
        noted.and(ended)
    }

    /// Makes the default stream wait for what came before an event.
    pub(super) fn default_stream_waits(&self, event: &Event) -> Result<(), NcclError> {
        // SAFETY: the event lives as long as the borrow; CUDA takes note of it as it is now.
        let result = unsafe { (self.cuda.cudaStreamWaitEvent)(DEFAULT_STREAM, event.handle, 0) };
        self.cuda("cudaStreamWaitEvent", result)
    }

    fn done(&self, function: &'static str, result: c_int) -> Result<(), NcclError> {
        self.nccl(function, result).map(|_| ())
    }

    fn nccl(&self, function: &'static str, result: c_int) -> Result<Progress, NcclError> {
        match result {
            NCCL_SUCCESS => Ok(Progress::Done),
            NCCL_IN_PROGRESS => Ok(Progress::InProgress),
            _ => {
                // SAFETY: both return text that stays, for any number and without a communicator.
                let (words, detail) = unsafe {
                    (text((self.nccl.ncclGetErrorString)(result)), text((self.nccl.ncclGetLastError)(ptr::null_mut())))
                };
                Err(NcclError::Call { function, words, detail })
            }
        }
    }

    fn cuda(&self, function: &'static str, code: c_int) -> Result<(), NcclError> {
        if code == CUDA_SUCCESS {
            return Ok(());
        }
        // SAFETY: returns text that stays, for any number.
        let words = unsafe { text((self.cuda.cudaGetErrorString)(code)) };
        Err(NcclError::Cuda { function, words, code })
    }
}

impl Stream {
    pub(super) fn new(library: &Arc<Library>) -> Result<Stream, NcclError> {
        let mut handle = ptr::null_mut();
        // SAFETY: writes a handle to where it is told.
        let result = unsafe { (library.cuda.cudaStreamCreateWithFlags)(&raw mut handle, STREAM_NON_BLOCKING) };
        library.cuda("cudaStreamCreateWithFlags", result)?;
        Ok(Stream { handle, library: library.clone() })
    }

    /// Makes this stream wait for what came before an event.
    pub(super) fn wait(&self, event: &Event) -> Result<(), NcclError> {
        // SAFETY: both live as long as the borrows; CUDA takes note of the event as it is now.
        let result = unsafe { (self.library.cuda.cudaStreamWaitEvent)(self.handle, event.handle, 0) };
        self.library.cuda("cudaStreamWaitEvent", result)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: nobody else has the handle. CUDA keeps the stream until its work is done.
        unsafe { (self.library.cuda.cudaStreamDestroy)(self.handle) };
    }
}

impl Event {
    pub(super) fn new(library: &Arc<Library>) -> Result<Event, NcclError> {
        let mut handle = ptr::null_mut();
        // SAFETY: writes a handle to where it is told.
        let result = unsafe { (library.cuda.cudaEventCreateWithFlags)(&raw mut handle, EVENT_DISABLE_TIMING) };
        library.cuda("cudaEventCreateWithFlags", result)?;
        Ok(Event { handle, library: library.clone() })
    }

    /// Puts it behind what a stream has been given so far; none: the default stream.
    pub(super) fn record(&self, stream: Option<&Stream>) -> Result<(), NcclError> {
        let stream = stream.map_or(DEFAULT_STREAM, |stream| stream.handle);
        // SAFETY: both live as long as the borrows.
        self.library.cuda("cudaEventRecord", unsafe { (self.library.cuda.cudaEventRecord)(self.handle, stream) })
    }

    /// Whether all before it is done.
    pub(super) fn is_over(&self) -> Result<bool, NcclError> {
        // SAFETY: the event lives as long as the borrow.
        let result = unsafe { (self.library.cuda.cudaEventQuery)(self.handle) };
        if result == CUDA_NOT_READY {
            // CUDA notes this as an error, and torch would take it for that of its next kernel.
            // SAFETY: takes the note away.
            unsafe { (self.library.cuda.cudaGetLastError)() };
            return Ok(false);
        }
        self.library.cuda("cudaEventQuery", result).map(|()| true)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: nobody else has the handle. CUDA keeps the event for as long as a stream waits for it.
        unsafe { (self.library.cuda.cudaEventDestroy)(self.handle) };
    }
}

fn data_type(tensor: &Tensor) -> c_int {
    match tensor.kind() {
        Kind::Float => NCCL_FLOAT32,
        Kind::BFloat16 => NCCL_BFLOAT16,
        other => panic!("expected a tensor of float32 or bf16, got {other:?}"),
    }
}

/// # Safety
/// The address is null, or that of text which ends with zero.
unsafe fn text(at: *const c_char) -> String {
    if at.is_null() {
        return String::new();
    }
    // SAFETY: the caller's.
    unsafe { CStr::from_ptr(at) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_people_write_them() {
        let texts = [22809, 21800, 21005, 2804].map(|code| Version(code).to_string());
        assert_eq!(texts, ["2.28.9", "2.18.0", "2.10.5", "2.8.4"]);
    }
}
