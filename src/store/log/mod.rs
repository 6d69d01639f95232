//! The commit log, the authoritative data of the store: preallocated segments of checksummed,
//! chained records, with one `fdatasync` per record.
//!
//! In scope: appending, reading by position, and finding the end when the log is opened. Out of
//! scope: the meaning of the records.
//!
//! After a failed write or sync nothing more is appended: the page cache may look good when the
//! disk is not. Only reopening the log shows what is durable: it writes the last record again
//! before using it.

mod bit_flip;
pub(super) mod record;
mod repair;
#[cfg(test)]
mod repair_tests;
mod scan;
pub(super) mod segment;
mod tail_hint;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, IoSlice};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use barid_core::ids::{ExchangeName, Hash, Member};
use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;

use self::record::{FRAME_BYTES, Frame, Salt};
pub(super) use self::record::{Position, Record, RecordEntries, Slot};
pub(super) use self::repair::{LogDamage, LogDamageKind, LogInspection, inspect, write_repair};
pub(super) use self::scan::{Resume, read, verify};
pub(super) use self::segment::sync_dir;
use self::segment::{HEADER_BYTES, Header, Preparer};
pub(super) use self::tail_hint::{TailHint, TailHintFile};
use super::{FsyncHistogram, OpenError, ReadError};

/// Slices in one `pwritev`; the limit of Linux is 1,024.
const SLICES_MAX: usize = 1_024;
/// Files kept open for reading.
const OPEN_FILES_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not zero");
/// Decoded heads in the cache, at most [`CACHED_HEAD_BYTES_MAX`] each: neighbouring entries are
/// read together.
const CACHED_HEADS_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not zero");
/// A larger head (with a roster in it) is not cached.
const CACHED_HEAD_BYTES_MAX: usize = 128 << 10;

/// The owner of a log, and its use of the disk.
#[derive(Clone, Debug)]
pub(super) struct LogOptions {
    pub(super) member: Member,
    pub(super) exchange: ExchangeName,
    /// Largest segment; a record that does not fit gets a larger one.
    pub(super) segment_bytes_max: u64,
    /// Free bytes that an append must leave.
    pub(super) reserve_bytes: u64,
}

/// Why nothing was appended.
#[derive(Debug)]
pub(super) enum AppendError {
    /// Not enough free space; a later attempt may succeed.
    Full { available_bytes: u64 },
    /// The log must be opened again.
    Failed(io::Error),
}

/// The writing half of the log.
pub(super) struct Log {
    dir: PathBuf,
    options: LogOptions,
    preparer: Preparer,
    salt: Salt,
    current: Option<Current>,
    tail: Tail,
    written_bytes: u64,
    /// Length of the last record for which no segment could be created.
    needed_len: Option<u64>,
    /// Time and result of the last check of the free bytes.
    space: Option<(Instant, u64)>,
    fsyncs: FsyncHistogram,
    #[cfg(test)]
    pub(super) fail_next_sync: bool,
    /// Bytes after which the next write finds no space.
    #[cfg(test)]
    pub(super) full_after: Option<usize>,
}

/// How long a check of the free bytes is valid. It is used only while they exceed the bytes to
/// leave free by at least [`SPACE_MARGIN_BYTES`].
const SPACE_CACHE_TTL: Duration = Duration::from_millis(50);
const SPACE_MARGIN_BYTES: u64 = 64 << 20;

/// Shortest segment created when the disk is nearly full.
const SHORT_SEGMENT_BYTES: u64 = 1 << 20;

/// The segment being written.
struct Current {
    number: u32,
    file: Arc<File>,
    /// Where the next record begins.
    byte_offset: u64,
    capacity: u64,
    /// One past the bytes left behind by a write that found no space; `byte_offset` or less if
    /// there are none.
    dirty_end: u64,
}

/// The end of the log: what the next record follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tail {
    pub(super) seq: u64,
    pub(super) hash: Hash,
    pub(super) end_offset: u64,
}

impl Default for Tail {
    fn default() -> Self {
        Self { seq: 0, hash: Hash([0; 32]), end_offset: 1 }
    }
}

impl Log {
    /// Opens the log in `dir`, or creates one. `replay` receives every record after `resume`, with
    /// its body.
    ///
    /// # Errors
    /// See [`OpenError`]. Errors of `replay` are returned unchanged.
    pub(super) fn open(
        dir: &Path,
        options: LogOptions,
        reader: &LogReader,
        resume: Option<&Resume>,
        replay: &mut dyn FnMut(Position, Record, Bytes) -> Result<(), OpenError>,
    ) -> Result<Self, OpenError> {
        segment::remove_unfinished(dir)?;
        let salt = reader.salt;
        let mut found = scan::scan(dir, &options, resume, replay)?;
        if let Some(torn) = found.torn
            && reader.correct_bits_at(torn)
        {
            let last = found.end.and_then(|end| end.last);
            let resume = last.map(|(position, _)| Resume { position, seq: found.tail.seq, hash: found.tail.hash });
            found = scan::scan(dir, &options, resume.as_ref(), replay)?;
        }
        // Confirmed records are never cut.
        if let Some(hint) = tail_hint::read(dir, &salt)
            && (hint.seq > found.tail.seq || hint.seq == found.tail.seq && hint.hash != found.tail.hash)
        {
            let (seq, last) = (hint.seq, found.tail.seq);
            return Err(OpenError::Damaged(format!(
                "commit {seq} was confirmed, and commit {last} is the last intact one"
            )));
        }
        if let Some(position) = found.torn {
            tracing::warn!(%position, "a torn record at the end of the commit log was cut");
        }
        let current = match found.end {
            Some(end) => {
                let file = Arc::new(segment::open(dir, end.segment)?);
                let capacity = scan::finalize_tail(dir, &file, &end, &options)?;
                Some(Current { number: end.segment, file, byte_offset: end.byte_offset, capacity, dirty_end: 0 })
            }
            None => None,
        };
        let preparer = Preparer::start(dir)?;
        Ok(Self {
            dir: dir.to_path_buf(),
            options,
            preparer,
            salt,
            current,
            tail: found.tail,
            written_bytes: found.written_bytes,
            needed_len: None,
            space: None,
            fsyncs: FsyncHistogram::default(),
            #[cfg(test)]
            fail_next_sync: false,
            #[cfg(test)]
            full_after: None,
        })
    }

    /// Returns what the next record follows.
    pub(super) fn tail(&self) -> Tail {
        self.tail
    }

    /// Returns the bytes of records and headers.
    pub(super) fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Returns the sync durations of records.
    pub(super) fn fsync_histogram(&self) -> FsyncHistogram {
        self.fsyncs.clone()
    }

    /// Returns the bytes that may still be written on the disk of the log.
    pub(super) fn available_bytes(&self) -> io::Result<u64> {
        available_bytes(&self.dir)
    }

    /// Returns the bytes that may still be written; a recent value if it is well above
    /// `reserve_bytes`, otherwise the current one.
    fn cached_available_bytes(&mut self, reserve_bytes: u64) -> io::Result<u64> {
        if let Some((at, bytes)) = self.space
            && at.elapsed() < SPACE_CACHE_TTL
            && bytes >= reserve_bytes.saturating_add(SPACE_MARGIN_BYTES)
        {
            return Ok(bytes);
        }
        let bytes = self.available_bytes()?;
        self.space = Some((Instant::now(), bytes));
        Ok(bytes)
    }

    /// Checks whether a record can be appended that leaves `reserve_bytes` free. Creates a segment
    /// if one was missing.
    pub(super) fn check_capacity(&mut self, reserve_bytes: u64) -> Result<(), AppendError> {
        let available_bytes = self.available_bytes().map_err(AppendError::Failed)?;
        if available_bytes < reserve_bytes {
            return Err(AppendError::Full { available_bytes });
        }
        self.needed_len.map_or(Ok(()), |len| self.ensure_capacity(len, reserve_bytes))
    }

    /// Appends a record and syncs it, leaving `reserve_bytes` of the disk free. Returns its
    /// position and length.
    pub(super) fn append(
        &mut self,
        head: &[u8],
        bodies: &[&[u8]],
        next: Tail,
        reserve_bytes: u64,
    ) -> Result<(Position, u64), AppendError> {
        let available_bytes = self.cached_available_bytes(reserve_bytes).map_err(AppendError::Failed)?;
        if available_bytes < reserve_bytes {
            return Err(AppendError::Full { available_bytes });
        }
        let body_len = bodies.iter().map(|body| body.len() as u64).sum();
        let frame = Frame::encode(&self.salt, head, body_len);
        let exact = (FRAME_BYTES + head.len()) as u64 + body_len;
        let len = exact.next_multiple_of(record::ALIGNMENT);
        self.ensure_capacity(len, reserve_bytes)?;
        let current = self.current.as_mut().ok_or_else(|| AppendError::Failed(io::Error::other("no segment")))?;
        let position =
            Position { segment: current.number, byte_offset: u32::try_from(current.byte_offset).unwrap_or(u32::MAX) };
        let mut slices = Vec::with_capacity(bodies.len() + 2);
        slices.push(IoSlice::new(&frame));
        slices.push(IoSlice::new(head));
        slices.extend(bodies.iter().map(|body| IoSlice::new(body)));
        #[cfg(test)]
        let written = match self.full_after.take() {
            Some(bytes) => {
                let record = slices.iter().flat_map(|slice| slice.iter().copied()).take(bytes).collect::<Vec<u8>>();
                current.file.write_all_at(&record, current.byte_offset).and(Err(io::ErrorKind::StorageFull.into()))
            }
            None => write_all_vectored(&current.file, &mut slices, current.byte_offset),
        };
        #[cfg(not(test))]
        let written = write_all_vectored(&current.file, &mut slices, current.byte_offset);
        if let Err(error) = written {
            // Copy-on-write file systems (btrfs, zfs) need space for this. A partial write is
            // overwritten.
            return Err(match error.kind() {
                io::ErrorKind::StorageFull => {
                    current.dirty_end = current.dirty_end.max(current.byte_offset + len);
                    AppendError::Full { available_bytes }
                }
                _ => AppendError::Failed(error),
            });
        }
        #[cfg(test)]
        if std::mem::take(&mut self.fail_next_sync) {
            return Err(AppendError::Failed(io::Error::other("exercise: the sync failed")));
        }
        let begun = Instant::now();
        rustix::fs::fdatasync(&current.file).map_err(|error| AppendError::Failed(error.into()))?;
        self.fsyncs.add(begun.elapsed());
        current.byte_offset += len;
        let half = current.byte_offset > current.capacity / 2;
        let number = current.number;
        self.written_bytes += len;
        self.tail = next;
        if half {
            let nominal = segment::nominal_bytes(number + 1, self.options.segment_bytes_max);
            self.preparer.order(nominal, self.options.reserve_bytes);
        }
        Ok((position, len))
    }

    /// Starts a new segment if `len` bytes do not fit the current one.
    fn ensure_capacity(&mut self, len: u64, reserve_bytes: u64) -> Result<(), AppendError> {
        if self.current.as_ref().is_some_and(|current| current.byte_offset + len <= current.capacity) {
            self.needed_len = None;
            return Ok(());
        }
        self.needed_len = Some(len);
        let made = self.next_segment(len, reserve_bytes);
        match made {
            Ok(()) => {
                self.needed_len = None;
                Ok(())
            }
            // No record is lost with a segment that could not be created; it is tried again.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                Err(AppendError::Full { available_bytes: self.available_bytes().map_err(AppendError::Failed)? })
            }
            Err(error) => Err(AppendError::Failed(error)),
        }
    }

    fn next_segment(&mut self, len: u64, reserve_bytes: u64) -> io::Result<()> {
        if let Some(current) = &self.current
            && current.dirty_end > current.byte_offset
        {
            // Only the last segment may end in anything but zeros.
            segment::zero(&current.file, current.byte_offset, current.dirty_end)?;
        }
        let number = self.current.as_ref().map_or(1, |current| current.number + 1);
        let nominal = segment::nominal_bytes(number, self.options.segment_bytes_max);
        // Use a shorter segment if the usual one does not fit beside the reserve, so that the space
        // left can still be used.
        let free = self.available_bytes()?.saturating_sub(reserve_bytes) / SHORT_SEGMENT_BYTES * SHORT_SEGMENT_BYTES;
        let nominal = nominal.min(free.max(SHORT_SEGMENT_BYTES));
        let (file, capacity) = self.preparer.wait_ready(HEADER_BYTES + len, nominal, reserve_bytes)?;
        let header = Header {
            number,
            first_seq: self.tail.seq + 1,
            previous: self.tail.hash,
            salt: self.salt,
            member: self.options.member.clone(),
            exchange: self.options.exchange.clone(),
        };
        segment::name(&self.dir, &file, &header)?;
        self.written_bytes += HEADER_BYTES;
        self.current =
            Some(Current { number, file: Arc::new(file), byte_offset: HEADER_BYTES, capacity, dirty_end: 0 });
        Ok(())
    }
}

fn write_all_vectored(file: &File, mut slices: &mut [IoSlice<'_>], mut byte_offset: u64) -> io::Result<()> {
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        let count = slices.len().min(SLICES_MAX);
        match rustix::io::pwritev(file, &slices[..count], byte_offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                byte_offset += written as u64;
                IoSlice::advance_slices(&mut slices, written);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Returns whether a log was begun in `dir`. A folder that cannot be read counts as one.
pub(super) fn is_initialized(dir: &Path) -> bool {
    match segment::list(dir) {
        Ok(segments) => !segments.is_empty(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// Returns the bytes that an unprivileged process may still write on the file system of `dir`.
pub(super) fn available_bytes(dir: &Path) -> io::Result<u64> {
    let space = rustix::fs::statvfs(dir)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

fn random_salt() -> Result<Salt, OpenError> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(io::Error::other)?;
    Ok(salt)
}

/// The reading half of the log: reads any record by its position, from any thread.
pub(super) struct LogReader {
    dir: PathBuf,
    salt: Salt,
    files: Mutex<LruCache<u32, Arc<File>>>,
    /// The first damage found, for operators.
    damage: Mutex<Option<String>>,
    /// Number of corrected bits.
    corrected: AtomicU64,
    heads: Mutex<LruCache<Position, Arc<Record>>>,
}

impl LogReader {
    /// Opens the log in `dir`, which may be empty.
    ///
    /// # Errors
    /// If the log is another node's or a newer version's.
    pub(super) fn open(dir: &Path, options: &LogOptions) -> Result<Self, OpenError> {
        std::fs::create_dir_all(dir)?;
        let salt = match scan::salt(dir, options)? {
            Some(salt) => salt,
            None => random_salt()?,
        };
        Ok(Self {
            dir: dir.to_path_buf(),
            salt,
            files: Mutex::new(LruCache::new(OPEN_FILES_MAX)),
            damage: Mutex::default(),
            corrected: AtomicU64::new(0),
            heads: Mutex::new(LruCache::new(CACHED_HEADS_MAX)),
        })
    }

    fn file(&self, segment: u32) -> Result<Arc<File>, ReadError> {
        if let Some(file) = self.files.lock().get(&segment) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(File::open(segment::path(&self.dir, segment)).map_err(ReadError::Io)?);
        self.files.lock().put(segment, Arc::clone(&file));
        Ok(file)
    }

    /// Returns the salt, which identifies this log.
    pub(super) fn salt(&self) -> Salt {
        self.salt
    }

    /// Returns the record at a position, without its envelopes.
    ///
    /// # Errors
    /// [`ReadError::Damaged`] if the record there is damaged.
    pub(super) fn record(&self, position: Position) -> Result<Arc<Record>, ReadError> {
        if let Some(record) = self.heads.lock().get(&position) {
            return Ok(Arc::clone(record));
        }
        let file = self.file(position.segment)?;
        let read = read_record(&file, &self.salt, position);
        if let Err(ReadError::Damaged(what)) = &read {
            self.record_damage(what);
        }
        let record = Arc::new(read?);
        if record.head_len <= CACHED_HEAD_BYTES_MAX {
            self.heads.lock().put(position, Arc::clone(&record));
        }
        Ok(record)
    }

    /// Records damage of a record's body, and returns the error that names it.
    pub(super) fn damaged(&self, position: Position, what: &str) -> ReadError {
        let what = format!("commit log, {position}: {what}");
        self.record_damage(&what);
        ReadError::Damaged(what)
    }

    /// Returns the first damage found since the log was opened.
    pub(super) fn damage(&self) -> Option<String> {
        self.damage.lock().clone()
    }

    /// Returns the number of bits corrected since the log was opened.
    pub(super) fn corrected(&self) -> u64 {
        self.corrected.load(Ordering::Relaxed)
    }

    /// Adds to the number of corrected bits.
    pub(super) fn count_corrected(&self, bits: usize) {
        self.corrected.fetch_add(bits as u64, Ordering::Relaxed);
    }

    fn record_damage(&self, what: &str) {
        let mut damage = self.damage.lock();
        if damage.is_none() {
            tracing::error!(what, "the commit log is damaged: stop the node and run `barid repair`");
            *damage = Some(what.to_owned());
        }
    }

    /// Corrects flipped bits in the envelopes of the record at a position if their digests prove
    /// the right value. Returns whether there were any.
    pub(super) fn correct_bits_at(&self, position: Position) -> bool {
        let path = segment::path(&self.dir, position.segment);
        let correct = || {
            let file = segment::open(&self.dir, position.segment).map_err(ReadError::Io)?;
            let record = read_record(&file, &self.salt, position)?;
            repair::correct_bits(&file, position, &record).map_err(ReadError::Io)
        };
        match correct() {
            Ok(corrected) => {
                self.count_corrected(corrected.len());
                for byte in &corrected {
                    tracing::warn!(file = %path.display(), byte, "a flipped bit of the commit log was corrected");
                }
                !corrected.is_empty()
            }
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "a damaged record could not be read for correction");
                false
            }
        }
    }

    /// Returns a part of a record's body.
    pub(super) fn body(
        &self,
        position: Position,
        record: &Record,
        range: std::ops::Range<usize>,
    ) -> Result<Bytes, ReadError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let file = self.file(position.segment)?;
        let mut bytes = vec![0; range.len()];
        let byte_offset = u64::from(position.byte_offset) + (record.body_start + range.start) as u64;
        let read = file.read_exact_at(&mut bytes, byte_offset).map_err(|error| short(error, position));
        if let Err(ReadError::Damaged(what)) = &read {
            self.record_damage(what);
        }
        read?;
        Ok(bytes.into())
    }
}

fn short(error: io::Error, position: Position) -> ReadError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ReadError::Damaged(format!("the commit log ends within {position}")),
        _ => ReadError::Io(error),
    }
}

fn read_record(file: &File, salt: &Salt, position: Position) -> Result<Record, ReadError> {
    let damaged = |what: &str| ReadError::Damaged(format!("commit log, {position}: {what}"));
    let mut bytes = [0; FRAME_BYTES];
    file.read_exact_at(&mut bytes, u64::from(position.byte_offset)).map_err(|error| short(error, position))?;
    let frame = Frame::decode(&bytes).ok_or_else(|| damaged("no record begins here"))?;
    let mut head = vec![0; frame.head_len];
    file.read_exact_at(&mut head, u64::from(position.byte_offset) + FRAME_BYTES as u64)
        .map_err(|error| short(error, position))?;
    if !frame.matches(salt, &bytes, &head) {
        return Err(damaged("the head's checksum does not match"));
    }
    Record::decode(head.into(), &frame).map_err(|what| damaged(&what))
}
