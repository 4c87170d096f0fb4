//! Memory that several processes of one host see: a file without a name, which the system removes with the last of them.

#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Memory of this process that others may map.
pub struct SharedMemory {
    file: File,
    floats: usize,
}

/// Where other processes find it, and how they know that it is the right one: process numbers mean something else in another
/// container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    process: u32,
    descriptor: i32,
    device: u64,
    inode: u64,
}

impl SharedMemory {
    /// So many float32 values, all zero. They take up memory only once they are touched.
    ///
    /// # Errors
    /// The system refuses.
    pub fn create(floats: usize) -> io::Result<SharedMemory> {
        let file = File::from(memfd_create(c"bam training", MFdFlags::MFD_CLOEXEC)?);
        file.set_len((floats * size_of::<f32>()) as u64)?;
        Ok(SharedMemory { file, floats })
    }

    /// For other processes.
    ///
    /// # Errors
    /// The system refuses.
    pub fn address(&self) -> io::Result<Address> {
        let about = self.file.metadata()?;
        Ok(Address {
            process: std::process::id(),
            descriptor: self.file.as_raw_fd(),
            device: about.dev(),
            inode: about.ino(),
        })
    }

    /// The memory of another process, or of this one.
    ///
    /// # Errors
    /// It cannot be seen from here.
    pub fn open(address: &Address, floats: usize) -> io::Result<SharedMemory> {
        let path = format!("/proc/{}/fd/{}", address.process, address.descriptor);
        let is_it = |about: fs::Metadata| (about.dev(), about.ino()) == (address.device, address.inode);
        // Looks first: to open whatever else has that number might do something.
        if !is_it(fs::metadata(&path)?) {
            return Err(io::Error::other(format!("{path} is something else")));
        }
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        if !is_it(file.metadata()?) {
            return Err(io::Error::other(format!("{path} has become something else")));
        }
        Ok(SharedMemory { file, floats })
    }

    /// The values as a tensor, which all who map them change for one another. They stay until the process ends.
    ///
    /// # Errors
    /// The system refuses.
    pub fn map(&self) -> io::Result<Tensor> {
        let bytes = NonZeroUsize::new(self.floats * size_of::<f32>()).ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, of a file that nobody makes shorter, at an address that the system chooses: no other
        // memory of this process changes.
        let address = unsafe { mmap(None, bytes, access, MapFlags::MAP_SHARED, &self.file, 0)? };
        // SAFETY: the mapping is as long as the tensor, aligned to a page, filled with valid float32 values whatever its
        // bytes are, and is never unmapped. Processes take turns in changing it, as `Host` says.
        Ok(unsafe {
            Tensor::from_blob(
                address.as_ptr().cast_const().cast(),
                &[self.floats as i64],
                &[1],
                Kind::Float,
                Device::Cpu,
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor_memory::{floats, floats_mut};

    #[test]
    fn what_one_writes_the_other_sees() {
        let own = SharedMemory::create(5000).unwrap();
        let address = own.address().unwrap();
        let other = SharedMemory::open(&address, 5000).unwrap();
        let (mut a, b) = (own.map().unwrap(), other.map().unwrap());
        assert_eq!(floats(&b), [0.0; 5000]);
        floats_mut(&mut a)[4999] = 7.0;
        assert_eq!(floats(&b)[4999], 7.0);
        // Also when the one who made it has closed it.
        drop(own);
        floats_mut(&mut a)[0] = 8.0;
        assert_eq!(floats(&b)[0], 8.0);
    }

    #[test]
    fn something_else_of_that_number_is_not_taken() {
        let own = SharedMemory::create(10).unwrap();
        let address = own.address().unwrap();
        let wrong = Address { inode: address.inode + 1, ..address.clone() };
        assert!(SharedMemory::open(&wrong, 10).is_err());
        let gone = Address { descriptor: 100_000, ..address };
        assert!(SharedMemory::open(&gone, 10).is_err());
    }
}
