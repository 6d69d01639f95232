//! Benchmarks of the store on this machine, for `barid bench`.
//!
//! In scope: the disk store alone: commits of many entries, commits of one entry, reading back, and
//! the commit log by itself. Out of scope: signing and network. Results are printed as `name value
//! unit`, one per line.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use barid_core::ids::{Digest, FeedId};
use barid_core::limits::COMMIT_ENTRIES_MAX;
use barid_core::proto;
use bytes::Bytes;
use prost::Message as _;
use sha2::Digest as _;
use uuid::{Builder, Uuid};

use super::disk::{DiskOptions, DiskStore};
use super::log::{Log, LogReader, Tail, record};
use super::{Append, Commit, CommitError, Content, NewEntry, OpenError, ReadError, Store};

/// Amounts of work.
#[derive(Clone, Debug)]
pub struct BenchOptions {
    /// Total entries in large commits.
    pub entries: u64,
    /// Length of an envelope in bytes.
    pub envelope_bytes: usize,
    /// Number of commits of one entry.
    pub single_commits: u64,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self { entries: 200 * COMMIT_ENTRIES_MAX as u64, envelope_bytes: 1_024, single_commits: 5_000 }
    }
}

/// Why a benchmark failed.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The store could not be opened.
    #[error("the store for measuring could not be opened")]
    Open(#[from] OpenError),
    /// A commit was rejected.
    #[error("a commit was rejected")]
    Commit(#[from] CommitError),
    /// Something could not be read back.
    #[error("something could not be read back")]
    Read(#[from] ReadError),
    /// Results could not be printed, or files could not be written.
    #[error("files could not be written")]
    Io(#[from] io::Error),
}

/// Runs the benchmarks in the empty folder `dir`, and prints results to `out`.
///
/// # Errors
/// See [`BenchError`].
pub fn run(dir: &Path, options: &BenchOptions, out: &mut dyn Write) -> Result<(), BenchError> {
    let feed: FeedId = "x-bench.bench.example/feed/1".parse().map_err(io::Error::other)?;
    let disk = DiskOptions::new(feed.member.clone(), feed.exchange.clone());
    log_only(&dir.join("log-alone"), &disk, &feed, options, out)?;
    let store = DiskStore::open(&dir.join("store"), &disk)?;
    let mut generator = EntryGenerator::new(&feed, options.envelope_bytes);
    batch_commits(&store, &mut generator, options, out)?;
    one_entry_commits(&store, &mut generator, options, out)?;
    reads(&store, &feed, out)?;
    let size = generator.next;
    let bytes = store.disk_bytes();
    metric(out, "store.disk.log", per(bytes.log as f64, size), "bytes/entry")?;
    metric(out, "store.disk.index", per(bytes.index_db as f64, size), "bytes/entry")?;
    let started = Instant::now();
    drop(store);
    metric(out, "store.close", ms(started.elapsed()), "ms")?;
    let started = Instant::now();
    drop(DiskStore::open(&dir.join("store"), &disk)?);
    metric(out, "store.reopen", ms(started.elapsed()), "ms")?;
    std::fs::remove_dir_all(dir.join("store").join("db"))?;
    let started = Instant::now();
    drop(DiskStore::open(&dir.join("store"), &disk)?);
    metric(out, "store.rebuild_index.rate", rate(size, started.elapsed()), "entries/s")
}

fn batch_commits(
    store: &DiskStore,
    generator: &mut EntryGenerator,
    options: &BenchOptions,
    out: &mut dyn Write,
) -> Result<(), BenchError> {
    let (mut spent, mut find_time, mut times) = (Duration::ZERO, Duration::ZERO, Vec::new());
    let mut made = 0;
    let begun = Instant::now();
    let mut preparing = Duration::ZERO;
    while made < options.entries {
        let started = Instant::now();
        let commit = generator.commit(COMMIT_ENTRIES_MAX);
        preparing += started.elapsed();
        let started = Instant::now();
        for id in generator.newest.iter().take(COMMIT_ENTRIES_MAX) {
            store.find(&generator.feed.member, *id)?;
        }
        find_time += started.elapsed();
        let started = Instant::now();
        store.commit(commit, store.seq())?;
        spent += started.elapsed();
        times.push(started.elapsed());
        made += COMMIT_ENTRIES_MAX as u64;
    }
    store.apply_index();
    let applied = begun.elapsed() - preparing - find_time;
    metric(out, "store.group_1024.commit.rate", rate(made, spent), "entries/s")?;
    metric(out, "store.group_1024.commit.p50", ms(percentile(&mut times, 50)), "ms")?;
    metric(out, "store.group_1024.commit.p99", ms(percentile(&mut times, 99)), "ms")?;
    metric(out, "store.group_1024.applied.rate", rate(made, applied), "entries/s")?;
    metric(out, "store.find_new_id", micros(find_time) / made as f64, "us")?;
    metric(out, "store.resident", status_mib(std::process::id(), "VmRSS:"), "MiB")
}

fn one_entry_commits(
    store: &DiskStore,
    generator: &mut EntryGenerator,
    options: &BenchOptions,
    out: &mut dyn Write,
) -> Result<(), BenchError> {
    let mut times = Vec::new();
    for _ in 0..options.single_commits {
        let commit = generator.commit(1);
        let started = Instant::now();
        store.commit(commit, store.seq())?;
        times.push(started.elapsed());
    }
    store.apply_index();
    let spent = times.iter().sum();
    metric(out, "store.single.commit.rate", rate(options.single_commits, spent), "commits/s")?;
    metric(out, "store.single.commit.p50", micros(percentile(&mut times, 50)), "us")?;
    metric(out, "store.single.commit.p99", micros(percentile(&mut times, 99)), "us")
}

fn reads(store: &DiskStore, feed: &FeedId, out: &mut dyn Write) -> Result<(), BenchError> {
    let started = Instant::now();
    let mut next = 0;
    loop {
        let entries = store.entries(feed, next, COMMIT_ENTRIES_MAX, 1 << 20)?;
        if entries.is_empty() {
            break;
        }
        next += entries.len() as u64;
    }
    metric(out, "store.read.rate", rate(next, started.elapsed()), "entries/s")?;
    let (mut held, mut at) = (Vec::new(), 0);
    while at < next {
        held.extend(store.entries(feed, at, 1, 0)?);
        at += (next / 1_000).max(1);
    }
    let started = Instant::now();
    for entry in &held {
        if let Content::Disclosed { header: Some(header), .. } = &entry.content
            && let Ok(id) = Uuid::try_parse(&header.id)
        {
            store.find(&feed.member, id)?;
        }
    }
    metric(out, "store.find_old_id", micros(started.elapsed()) / held.len().max(1) as f64, "us")?;
    metric(out, "store.resident_after_reading", status_mib(std::process::id(), "VmRSS:"), "MiB")
}

fn log_only(
    dir: &Path,
    disk: &DiskOptions,
    feed: &FeedId,
    options: &BenchOptions,
    out: &mut dyn Write,
) -> Result<(), BenchError> {
    let log_options = disk.log();
    let reader = LogReader::open(dir, &log_options)?;
    let mut log = Log::open(dir, log_options, &reader, None, &mut |_, _, _| Ok(()))?;
    let mut generator = EntryGenerator::new(feed, options.envelope_bytes);
    for (name, entries, total) in
        [("group_1024", COMMIT_ENTRIES_MAX, options.entries), ("single", 1, options.single_commits)]
    {
        let (mut times, mut made) = (Vec::new(), 0);
        while made < total {
            let commit = generator.commit(entries);
            let tail = log.tail();
            let started = Instant::now();
            let head = record::encode_head(&commit, tail.seq + 1, &tail.hash, tail.end_offset);
            let bodies: Vec<&[u8]> =
                commit.appends.iter().flat_map(|append| &append.entries).filter_map(envelope).collect();
            let next = Tail {
                seq: tail.seq + 1,
                hash: record::head_hash(&head),
                end_offset: tail.end_offset + bodies.len() as u64,
            };
            log.append(&head, &bodies, next, 0).map_err(|error| io::Error::other(format!("{error:?}")))?;
            times.push(started.elapsed());
            made += entries as u64;
        }
        metric(out, &format!("store.log_only.{name}.rate"), rate(made, times.iter().sum()), "entries/s")?;
        metric(out, &format!("store.log_only.{name}.p50"), micros(percentile(&mut times, 50)), "us")?;
        metric(out, &format!("store.log_only.{name}.p99"), micros(percentile(&mut times, 99)), "us")?;
    }
    drop(log);
    Ok(std::fs::remove_dir_all(dir)?)
}

fn envelope(entry: &NewEntry) -> Option<&[u8]> {
    match &entry.content {
        Content::Disclosed { envelope, .. } => Some(envelope),
        Content::Undisclosed(_) => None,
    }
}

/// Generates exercise bulletins of one feed with ids as clients make them.
struct EntryGenerator {
    feed: FeedId,
    envelope_bytes: usize,
    next: u64,
    newest: VecDeque<Uuid>,
}

impl EntryGenerator {
    fn new(feed: &FeedId, envelope_bytes: usize) -> Self {
        Self { feed: feed.clone(), envelope_bytes, next: 0, newest: VecDeque::new() }
    }

    fn commit(&mut self, count: usize) -> Commit {
        self.newest.clear();
        let first = self.next;
        let entries = (0..count).map(|_| self.entry()).collect();
        let append = Append {
            feed: self.feed.clone(),
            first,
            entries,
            checkpoint: Bytes::from_static(&[b'c'; 300]),
            checkpoint_size: self.next,
            consistency_proof: Vec::new(),
        };
        Commit { appends: vec![append], ..Commit::default() }
    }

    fn entry(&mut self) -> NewEntry {
        let number = self.next;
        self.next += 1;
        // 40,000 a second, nearly in order of time.
        let random: [u8; 10] = std::array::from_fn(|place| (mixed(number) >> (place % 8 * 8)).to_le_bytes()[0]);
        let id = Builder::from_unix_timestamp_millis(1_700_000_000_000 + number / 40 + mixed(number) % 3, &random)
            .into_uuid();
        self.newest.push_back(id);
        let header = proto::Header {
            format: 1,
            kind: "seizure-report".into(),
            id: id.to_string(),
            member: self.feed.member.to_string(),
            issuer: "customs-hq".into(),
            topic: ["customs.seizures", "customs.declarations", "security.documents"]
                [usize::from(id.as_bytes()[15] % 3)]
            .into(),
            status: "Exercise".into(),
            msg_type: "Alert".into(),
            handling: Some(proto::Handling { tlp: "TLP:GREEN".into(), ..proto::Handling::default() }),
            urgency: "Expected".into(),
            severity: "Minor".into(),
            roster_version: 1,
            ..proto::Header::default()
        };
        let encoded: Bytes = header.encode_to_vec().into();
        let rest = self.envelope_bytes.saturating_sub(encoded.len() + 50).max(8);
        let payload: Vec<u8> =
            (0..rest.div_ceil(8) as u64).flat_map(|block| mixed(number << 16 | block).to_le_bytes()).collect();
        let envelope = proto::Envelope {
            header: encoded,
            payload_type: "barid.body/1".into(),
            payload: payload.into(),
            salt: Bytes::copy_from_slice(id.as_bytes()),
            ..proto::Envelope::default()
        };
        let envelope: Bytes = envelope.encode_to_vec().into();
        let digest = Digest(sha2::Sha256::digest(&envelope).into());
        NewEntry { digest, content: Content::Disclosed { envelope, header: Some(Arc::new(header)) } }
    }
}

/// Incompressible bits from a number: splitmix64.
pub(crate) fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn metric(out: &mut dyn Write, name: &str, value: f64, unit: &str) -> Result<(), BenchError> {
    let digits = if value >= 1_000.0 { 0 } else { 2 };
    Ok(writeln!(out, "{name} {value:.digits$} {unit}")?)
}

/// Returns a rate per second.
pub(crate) fn rate(count: u64, spent: Duration) -> f64 {
    count as f64 / spent.as_secs_f64().max(1e-9)
}

/// Returns the average per item.
pub(crate) fn per(total: f64, count: u64) -> f64 {
    total / count.max(1) as f64
}

/// Converts a duration to milliseconds.
pub(crate) fn ms(spent: Duration) -> f64 {
    spent.as_secs_f64() * 1e3
}

fn micros(spent: Duration) -> f64 {
    spent.as_secs_f64() * 1e6
}

/// Returns the smallest time that `percent` of all times do not exceed, or zero if there are none.
/// Sorts `times`.
pub(crate) fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times.get(times.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default()
}

/// Returns a field of a process's status in MiB; 0 if it cannot be read.
pub(crate) fn status_mib(pid: u32, name: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_prints_every_metric() -> Result<(), BenchError> {
        let dir = tempfile::tempdir()?;
        let mut out = Vec::new();
        let options = BenchOptions { entries: 2_048, envelope_bytes: 600, single_commits: 5 };
        run(dir.path(), &options, &mut out)?;
        let text = String::from_utf8_lossy(&out);
        assert!(text.lines().count() > 15 && text.lines().all(|line| line.split(' ').count() == 3), "{text}");
        Ok(())
    }

    /// `cargo test --release --lib -- --ignored --nocapture store::bench`
    #[test]
    #[ignore = "measures; run it in a release build on a quiet machine"]
    fn measure() -> Result<(), BenchError> {
        let dir = tempfile::tempdir()?;
        run(dir.path(), &BenchOptions::default(), &mut io::stdout().lock())
    }
}
