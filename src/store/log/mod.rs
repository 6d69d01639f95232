//! The commit log: what is true. Preallocated segments of checksummed, chained records, one `fdatasync` each.
//!
//! In scope: appending, reading back by position, and on opening finding the end. Out of scope: what the records mean.
//! After a failed write or sync nothing more is appended: the page cache may look good when the disk is not, so only opening the
//! log anew, which writes the last record again before it is believed, tells what is durable.

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

pub(super) use self::record::{AppendRecord, Position, Record, Slot};
use self::record::{FRAME_BYTES, Frame, Salt};
pub(super) use self::repair::{LogDamage, LogDamageKind, LogInspection, inspect, write_repair};
pub(super) use self::scan::{Resume, read, verify};
pub(super) use self::segment::sync_dir;
use self::segment::{HEADER_BYTES, Header, Preparer};
pub(super) use self::tail_hint::{TailHint, TailHintFile};
use super::{FsyncHistogram, OpenError, ReadError};

/// Slices in one `pwritev`: Linux takes 1,024.
const SLICES_MAX: usize = 1_024;
/// Files kept open for reading.
const OPEN_FILES_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not zero");
/// Heads kept decoded, at most [`CACHED_HEAD_BYTES_MAX`] each: neighbours are read together.
const CACHED_HEADS_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not zero");
/// A head beyond this (with a roster in it) is not kept.
const CACHED_HEAD_BYTES_MAX: usize = 128 << 10;

/// Whose log, and how it uses the disk.
#[derive(Clone, Debug)]
pub(super) struct LogOptions {
    pub(super) member: Member,
    pub(super) exchange: ExchangeName,
    /// Largest segment; a record that does not fit gets a larger one.
    pub(super) segment_bytes_max: u64,
    /// Free space below which nothing is appended.
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

/// The writing end.
pub(super) struct Log {
    dir: PathBuf,
    options: LogOptions,
    preparer: Preparer,
    salt: Salt,
    current: Option<Current>,
    tail: Tail,
    written_bytes: u64,
    /// Length of a record for which no segment could be had when it was last asked for.
    needed_len: Option<u64>,
    /// When it was last looked how much may still be written on the disk, and how much it was.
    space: Option<(Instant, u64)>,
    fsyncs: FsyncHistogram,
    #[cfg(test)]
    pub(super) fail_next_sync: bool,
    /// The next write finds no space after so many bytes.
    #[cfg(test)]
    pub(super) full_after: Option<usize>,
}

/// How long it is known what may still be written on a disk, where it is [`SPACE_MARGIN_BYTES`] more than what is to be left free.
const SPACE_CACHE_TTL: Duration = Duration::from_millis(50);
const SPACE_MARGIN_BYTES: u64 = 64 << 20;

/// Shortest segment that is made where the disk is nearly full.
const SHORT_SEGMENT_BYTES: u64 = 1 << 20;

/// The segment that is written to.
struct Current {
    number: u32,
    file: Arc<File>,
    /// Where the next record goes.
    byte_offset: u64,
    capacity: u64,
    /// One past what a write left behind that found no space; `byte_offset` or less if there is nothing of that.
    dirty_end: u64,
}

/// What the next record follows.
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
    /// Opens the log in `dir`, or begins one. `replay` is given every record after `resume`, with its body.
    ///
    /// # Errors
    /// See [`OpenError`]. What `replay` returns is passed on.
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
        // What was confirmed is not cut.
        if let Some(hint) = tail_hint::read(dir, &salt)
            && (hint.seq > found.tail.seq || hint.seq == found.tail.seq && hint.hash != found.tail.hash)
        {
            let (seq, last) = (hint.seq, found.tail.seq);
            return Err(OpenError::Damaged(format!(
                "commit {seq} was confirmed, and commit {last} is the last that is whole"
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

    /// What the next record follows.
    pub(super) fn tail(&self) -> Tail {
        self.tail
    }

    /// Bytes of records and headers.
    pub(super) fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// How long the syncs of records took.
    pub(super) fn fsync_histogram(&self) -> FsyncHistogram {
        self.fsyncs.clone()
    }

    /// Bytes that may still be written on the disk of the log.
    pub(super) fn available_bytes(&self) -> io::Result<u64> {
        available_bytes(&self.dir)
    }

    /// Bytes that may still be written: as they are now where it is a near thing, else as they were a moment ago.
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

    /// Whether a record can be appended, with `reserve_bytes` left free: the space, and a segment if one was lacking.
    pub(super) fn check_capacity(&mut self, reserve_bytes: u64) -> Result<(), AppendError> {
        let available_bytes = self.available_bytes().map_err(AppendError::Failed)?;
        if available_bytes < reserve_bytes {
            return Err(AppendError::Full { available_bytes });
        }
        self.needed_len.map_or(Ok(()), |len| self.ensure_capacity(len, reserve_bytes))
    }

    /// Appends a record and syncs it, leaving `reserve_bytes` of the disk free. Returns where it begins and how long it is.
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
            // File systems that write elsewhere (btrfs, zfs) need room for this. What was written in part is written over.
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

    /// Goes on to a new segment if `len` bytes do not fit the current one.
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
            // No record is in what could not be made: nothing is lost by it, and it is made anew.
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
            // Only the last segment may end in something else than zeros.
            segment::zero(&current.file, current.byte_offset, current.dirty_end)?;
        }
        let number = self.current.as_ref().map_or(1, |current| current.number + 1);
        let nominal = segment::nominal_bytes(number, self.options.segment_bytes_max);
        // A shorter one where the usual one does not fit beside the reserve: what is left is for what may use it.
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

/// Whether a log was begun in `dir`. One that cannot be looked into may be.
pub(super) fn is_initialized(dir: &Path) -> bool {
    match segment::list(dir) {
        Ok(segments) => !segments.is_empty(),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// Bytes that an unprivileged process may still write on the file system of `dir`.
pub(super) fn available_bytes(dir: &Path) -> io::Result<u64> {
    let space = rustix::fs::statvfs(dir)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

fn random_salt() -> Result<Salt, OpenError> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(io::Error::other)?;
    Ok(salt)
}

/// The reading end: any record by its position, from any thread.
pub(super) struct LogReader {
    dir: PathBuf,
    salt: Salt,
    files: Mutex<LruCache<u32, Arc<File>>>,
    /// The first damage that was met, for the operators.
    damage: Mutex<Option<String>>,
    /// Bits that were put right.
    corrected: AtomicU64,
    heads: Mutex<LruCache<Position, Arc<Record>>>,
}

impl LogReader {
    /// The log in `dir`, which may be empty.
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

    /// Tells this log from any other.
    pub(super) fn salt(&self) -> Salt {
        self.salt
    }

    /// The record at a position, without its envelopes.
    ///
    /// # Errors
    /// [`ReadError::Damaged`] if what lies there is not what was written.
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

    /// Something of a record's body is damaged: an error that names it.
    pub(super) fn damaged(&self, position: Position, what: &str) -> ReadError {
        let what = format!("commit log, {position}: {what}");
        self.record_damage(&what);
        ReadError::Damaged(what)
    }

    /// The first damage that was met since the log was opened.
    pub(super) fn damage(&self) -> Option<String> {
        self.damage.lock().clone()
    }

    /// Bits that were put right since the log was opened.
    pub(super) fn corrected(&self) -> u64 {
        self.corrected.load(Ordering::Relaxed)
    }

    /// So many more were.
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

    /// Puts flipped bits right in the envelopes of the record at a position, where their digests prove what they were. Whether there were
    /// any.
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
                tracing::warn!(file = %path.display(), %error, "a damaged record could not be looked at");
                false
            }
        }
    }

    /// Part of a record's body.
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
