//! Segment files of the commit log: `<number>.log`, filled with zeros before use.
//!
//! In scope: naming, preallocating and opening segments, and their header block. Out of scope:
//! records.
//!
//! Rewriting a block that was written before needs no sync of metadata, which halves the time of an
//! `fdatasync`; a block that is only reserved does not have this property. So a separate thread
//! fills the next segment with zeros while the current one is in use. A segment gets its name only
//! when its header is durable.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use barid_core::ids::{ExchangeName, Hash, Member};

use super::record::Salt;

/// Length of the header block; the first record follows.
pub(in crate::store) const HEADER_BYTES: u64 = HEADER_LEN as u64;
/// The same, for buffers.
pub(in crate::store) const HEADER_LEN: usize = 4_096;
/// First bytes of every segment.
const MAGIC: [u8; 8] = *b"BARIDLOG";
/// Version of the log that this program writes, and the newest that it reads.
pub(in crate::store) const VERSION: u32 = 1;
/// Length of the first segment. Each further one is twice as long, up to the largest, so that a
/// small node uses little disk.
const SEGMENT_BYTES_MIN: u64 = 4 << 20;
/// Zeros written at a time.
const ZEROS_BYTES: usize = 1 << 20;
/// Name of the segment that is being prepared.
const NEXT: &str = "next.tmp";

/// Header block of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) struct Header {
    /// Number of the segment, from 1.
    pub(in crate::store) number: u32,
    /// Number of its first commit.
    pub(in crate::store) first_seq: u64,
    /// Hash of the head before its first commit.
    pub(in crate::store) previous: Hash,
    /// The log's salt.
    pub(in crate::store) salt: Salt,
    /// The node's member.
    pub(in crate::store) member: Member,
    /// Its exchange.
    pub(in crate::store) exchange: ExchangeName,
}

/// Why a header block could not be decoded.
#[derive(Debug)]
pub(in crate::store) enum HeaderError {
    /// Written by a newer version.
    Newer(u32),
    /// The block is damaged.
    Damaged(&'static str),
}

impl Header {
    /// Encodes the block.
    pub(in crate::store) fn encode(&self) -> Vec<u8> {
        let mut rest = Vec::with_capacity(512);
        rest.extend(self.number.to_le_bytes());
        rest.extend(self.first_seq.to_le_bytes());
        rest.extend(self.previous.0);
        rest.extend(self.salt);
        for name in [self.member.as_str(), self.exchange.as_str()] {
            rest.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
            rest.extend(name.as_bytes());
        }
        let fixed = MAGIC.len() + 8;
        rest.resize(HEADER_LEN - fixed, 0);
        let mut block = Vec::from(MAGIC);
        block.extend(VERSION.to_le_bytes());
        block.extend(crc32c::crc32c(&rest).to_le_bytes());
        block.extend(rest);
        block
    }

    /// Decodes a block.
    pub(in crate::store) fn decode(block: &[u8]) -> Result<Self, HeaderError> {
        let damaged = HeaderError::Damaged;
        let (magic, block) = block.split_first_chunk::<8>().ok_or(damaged("short"))?;
        if *magic != MAGIC {
            return Err(damaged("not a commit log"));
        }
        let (version, block) = block.split_first_chunk::<4>().ok_or(damaged("short"))?;
        let version = u32::from_le_bytes(*version);
        if version > VERSION {
            return Err(HeaderError::Newer(version));
        }
        let (checksum, block) = block.split_first_chunk::<4>().ok_or(damaged("short"))?;
        if crc32c::crc32c(block) != u32::from_le_bytes(*checksum) {
            return Err(damaged("checksum of the header block"));
        }
        let (number, block) = block.split_first_chunk::<4>().ok_or(damaged("short"))?;
        let (first_seq, block) = block.split_first_chunk::<8>().ok_or(damaged("short"))?;
        let (previous, block) = block.split_first_chunk::<32>().ok_or(damaged("short"))?;
        let (salt, block) = block.split_first_chunk::<16>().ok_or(damaged("short"))?;
        let (member, block) = text(block).ok_or(damaged("member"))?;
        let (exchange, _) = text(block).ok_or(damaged("exchange"))?;
        Ok(Self {
            number: u32::from_le_bytes(*number),
            first_seq: u64::from_le_bytes(*first_seq),
            previous: Hash(*previous),
            salt: *salt,
            member: member.parse().map_err(|_| damaged("member"))?,
            exchange: exchange.parse().map_err(|_| damaged("exchange"))?,
        })
    }
}

fn text(block: &[u8]) -> Option<(&str, &[u8])> {
    let (len, block) = block.split_first()?;
    let (text, block) = block.split_at_checked(usize::from(*len))?;
    Some((std::str::from_utf8(text).ok()?, block))
}

/// Returns the path of a segment.
pub(in crate::store) fn path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{number:010}.log"))
}

/// Returns the numbers of the segments in a folder, ascending.
pub(in crate::store) fn list(dir: &Path) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number =
            name.to_str().and_then(|name| name.strip_suffix(".log")).and_then(|number| number.parse::<u32>().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Returns the usual length of segment `number`.
pub(in crate::store) fn nominal_bytes(number: u32, max: u64) -> u64 {
    SEGMENT_BYTES_MIN
        .checked_shl(number.saturating_sub(1))
        .filter(|len| *len >= SEGMENT_BYTES_MIN)
        .unwrap_or(max)
        .min(max)
}

/// Opens a segment for reading and writing.
pub(in crate::store) fn open(dir: &Path, number: u32) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path(dir, number))
}

/// Writes zeros from `from` to `to` and syncs. It syncs in pieces, because a concurrent sync waits
/// for everything queued at the disk.
pub(in crate::store) fn zero(file: &File, mut from: u64, to: u64) -> io::Result<()> {
    let zeros = vec![0; ZEROS_BYTES];
    while from < to {
        let len = usize::try_from(to - from).unwrap_or(ZEROS_BYTES).min(ZEROS_BYTES);
        file.write_all_at(&zeros[..len], from)?;
        rustix::fs::fdatasync(file)?;
        from += len as u64;
    }
    file.sync_all()
}

/// Makes the names in a folder durable.
pub(in crate::store) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Writes the header of a prepared file, and gives it its name.
pub(in crate::store) fn name(dir: &Path, file: &File, header: &Header) -> io::Result<()> {
    file.write_all_at(&header.encode(), 0)?;
    file.sync_all()?;
    fs::rename(dir.join(NEXT), path(dir, header.number))?;
    sync_dir(dir)
}

/// The thread that prepares segments, one at a time.
#[derive(Debug)]
pub(in crate::store) struct Preparer {
    /// Length of the segment, and bytes to leave free on the disk.
    orders: Option<SyncSender<(u64, u64)>>,
    ready: Receiver<io::Result<(File, u64)>>,
    ordered: bool,
    thread: Option<thread::JoinHandle<()>>,
}

impl Preparer {
    /// Starts the thread.
    pub(in crate::store) fn start(dir: &Path) -> io::Result<Self> {
        let dir = dir.to_path_buf();
        let (orders, todo) = sync_channel::<(u64, u64)>(1);
        let (done, ready) = sync_channel(1);
        let thread = thread::Builder::new().name("log-prepare".into()).spawn(move || {
            crate::low_priority::lower_priority();
            for (len, reserve_bytes) in todo {
                if done.send(prepare(&dir, len, reserve_bytes).map(|file| (file, len))).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { orders: Some(orders), ready, ordered: false, thread: Some(thread) })
    }

    /// Orders a segment of `len` bytes, unless one is already ordered. It must leave
    /// `reserve_bytes` of the disk free.
    pub(in crate::store) fn order(&mut self, len: u64, reserve_bytes: u64) {
        if !self.ordered
            && let Some(orders) = &self.orders
        {
            self.ordered = orders.try_send((len, reserve_bytes)).is_ok();
        }
    }

    /// Waits for a segment of at least `len` bytes; it is `nominal` bytes long if none was ordered
    /// before.
    pub(in crate::store) fn wait_ready(
        &mut self,
        len: u64,
        nominal: u64,
        reserve_bytes: u64,
    ) -> io::Result<(File, u64)> {
        // An earlier order may have failed for a reason that has passed, or its segment may be too
        // short for this record.
        let mut early = self.ordered;
        loop {
            self.order(nominal.max(len), reserve_bytes);
            let prepared = self.ready.recv().map_err(|_| io::Error::other("the preparing thread has ended"))?;
            self.ordered = false;
            match prepared {
                Ok((file, capacity)) if capacity >= len => return Ok((file, capacity)),
                Err(error) if !early => return Err(error),
                _ => early = false,
            }
        }
    }
}

impl Drop for Preparer {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // The thread may be blocked sending its last result.
            while self.ready.recv().is_ok() {}
            _ = thread.join();
        }
    }
}

fn prepare(dir: &Path, len: u64, reserve_bytes: u64) -> io::Result<File> {
    if super::available_bytes(dir)? < reserve_bytes.saturating_add(len) {
        return Err(io::ErrorKind::StorageFull.into());
    }
    let path = dir.join(NEXT);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    let written = reserve(&file, len).and_then(|()| zero(&file, 0, len));
    if let Err(error) = written {
        _ = fs::remove_file(&path);
        return Err(error);
    }
    Ok(file)
}

/// Reserves one contiguous extent, if the file system can.
fn reserve(file: &File, len: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, len) {
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes a segment that was being prepared when the process ended.
pub(in crate::store) fn remove_unfinished(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(NEXT)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
