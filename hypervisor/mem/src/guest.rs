//! Guest memory, copied in and out through checked accessors. Never a Rust reference into it.
//!
//! A copy checks every page first and touches memory only if all are allowed: it is done whole or not at all (another vCPU of
//! the guest may change its own page tables meanwhile; then the copy is of what was checked).

use alloc::vec::Vec;

use crate::{
    Ept, FrameStore, Gpa, GuestRead, Gva, Hpa, MemoryType, PagingState, Permissions, WalkFault,
    walk,
};

/// Host-physical memory by plain copies.
pub trait HostMemory {
    /// Copies out of memory.
    fn read(&self, address: Hpa, buffer: &mut [u8]);
    /// Copies words out of memory, each of them by one access. The address is a multiple of 8.
    fn read_words(&self, address: Hpa, words: &mut [u64]);
    /// Copies into memory.
    fn write(&self, address: Hpa, bytes: &[u8]);
}

/// Why a copy was refused. Nothing was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestMemoryError {
    /// No RAM there, or not allowed.
    Physical {
        /// The first such address of the range.
        gpa: Gpa,
    },
    /// The guest's page tables do not map it.
    Virtual {
        /// The address.
        gva: Gva,
        /// Why.
        fault: WalkFault,
    },
    /// The guest's page tables map it read-only.
    ReadOnly {
        /// The address.
        gva: Gva,
    },
    /// The range goes beyond the last address.
    OutOfRange,
}

/// One guest's memory.
#[derive(Debug)]
pub struct GuestMemory<'a, S, H> {
    ept: &'a Ept,
    store: &'a S,
    host: &'a H,
}

/// Pieces of a range, each inside one page: host address and length.
type Pieces = Vec<(Hpa, usize)>;

const PAGE: u64 = 4096;

impl<'a, S: FrameStore, H: HostMemory> GuestMemory<'a, S, H> {
    /// The memory that `ept` shows.
    #[must_use]
    pub fn new(ept: &'a Ept, store: &'a S, host: &'a H) -> GuestMemory<'a, S, H> {
        GuestMemory { ept, store, host }
    }

    fn host_address(&self, gpa: Gpa, needed: Permissions) -> Result<Hpa, GuestMemoryError> {
        self.ept
            .translate(self.store, gpa)
            // Device registers are no memory: reading them may have effects that a guest could make us cause.
            .filter(|found| {
                found.permissions.contains(needed) && found.memory_type == MemoryType::WriteBack
            })
            .map(|found| found.hpa)
            .ok_or(GuestMemoryError::Physical { gpa })
    }

    /// Cuts a range at page boundaries and translates each piece by `translate`, given its start.
    fn pieces(
        start: u64,
        bytes: usize,
        mut translate: impl FnMut(u64) -> Result<Hpa, GuestMemoryError>,
    ) -> Result<Pieces, GuestMemoryError> {
        let mut pieces = Pieces::new();
        let mut done = 0;
        while done < bytes {
            let address = start
                .checked_add(done as u64)
                .ok_or(GuestMemoryError::OutOfRange)?;
            let length = ((PAGE - address % PAGE) as usize).min(bytes - done);
            pieces.push((translate(address)?, length));
            done += length;
        }
        Ok(pieces)
    }

    fn copy_out(&self, pieces: &Pieces, buffer: &mut [u8]) {
        let mut rest = buffer;
        for (address, length) in pieces {
            let (now, later) = rest.split_at_mut(*length);
            self.host.read(*address, now);
            rest = later;
        }
    }

    fn copy_in(&self, pieces: &Pieces, bytes: &[u8]) {
        let mut rest = bytes;
        for (address, length) in pieces {
            let (now, later) = rest.split_at(*length);
            self.host.write(*address, now);
            rest = later;
        }
    }

    /// Copies out of guest-physical memory.
    ///
    /// # Errors
    /// [`GuestMemoryError`].
    pub fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), GuestMemoryError> {
        let pieces = Self::pieces(gpa.get(), buffer.len(), |address| {
            self.host_address(Gpa::new(address), Permissions::READ)
        })?;
        self.copy_out(&pieces, buffer);
        Ok(())
    }

    /// Copies into guest-physical memory that the guest itself may write.
    ///
    /// # Errors
    /// [`GuestMemoryError`].
    pub fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), GuestMemoryError> {
        let pieces = Self::pieces(gpa.get(), bytes.len(), |address| {
            self.host_address(Gpa::new(address), Permissions::WRITE)
        })?;
        self.copy_in(&pieces, bytes);
        Ok(())
    }

    /// Copies from a guest-virtual address.
    ///
    /// # Errors
    /// [`GuestMemoryError`].
    pub fn read_virtual(
        &self,
        paging: &PagingState,
        gva: Gva,
        buffer: &mut [u8],
    ) -> Result<(), GuestMemoryError> {
        let pieces = Self::pieces(gva.get(), buffer.len(), |address| {
            let gva = Gva::new(address);
            let found = walk(paging, self, gva)
                .map_err(|fault| GuestMemoryError::Virtual { gva, fault })?;
            self.host_address(found.gpa, Permissions::READ)
        })?;
        self.copy_out(&pieces, buffer);
        Ok(())
    }

    /// Copies to a guest-virtual address that the guest may write.
    ///
    /// # Errors
    /// [`GuestMemoryError`].
    pub fn write_virtual(
        &self,
        paging: &PagingState,
        gva: Gva,
        bytes: &[u8],
    ) -> Result<(), GuestMemoryError> {
        let pieces = Self::pieces(gva.get(), bytes.len(), |address| {
            let gva = Gva::new(address);
            let found = walk(paging, self, gva)
                .map_err(|fault| GuestMemoryError::Virtual { gva, fault })?;
            if !found.writable {
                return Err(GuestMemoryError::ReadOnly { gva });
            }
            self.host_address(found.gpa, Permissions::WRITE)
        })?;
        self.copy_in(&pieces, bytes);
        Ok(())
    }
}

impl<S: FrameStore, H: HostMemory> GuestRead for GuestMemory<'_, S, H> {
    fn read_u64(&self, gpa: Gpa) -> Option<u64> {
        if !gpa.is_aligned(8) {
            return None;
        }
        let address = self.host_address(gpa, Permissions::READ).ok()?;
        let mut word = [0; 8];
        self.host.read(address, &mut word);
        Some(u64::from_le_bytes(word))
    }

    fn read_words(&self, gpa: Gpa, words: &mut [u64]) -> Option<()> {
        let bytes = words.len() as u64 * 8;
        if !gpa.is_aligned(8) || gpa.get() % PAGE + bytes > PAGE {
            return None;
        }
        let address = self.host_address(gpa, Permissions::READ).ok()?;
        self.host.read_words(address, words);
        Some(())
    }
}
