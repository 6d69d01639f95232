//! Subscribers of a node whose store is restored from a copy, lost and filled again while
//! publishing goes on. Seeded rounds, each with all kinds of readers. No reader misses a bulletin,
//! and no offset changes its meaning for a reader without a reset.
// The test's counts are small.
#![allow(clippy::cast_possible_truncation)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use barid_core::bulletin::Priority;
use barid_core::envelope;
use barid_core::feed::checkpoint::{Checkpoint, sign};
use barid_core::feed::tree::CompactRange;
use barid_core::follow::{VerifiedBackfill, VerifiedBackfills, VerifiedContent, VerifiedEntry, VerifiedPriority};
use barid_core::ids::{Digest, FeedId, Undisclosed};
use barid_core::proto;
use barid_core::proto::subscribe_request::Start;
use barid_core::proto::subscribe_response::Event;
use bytes::Bytes;

use super::cursors::reason;
use super::world::{EXCHANGE, POLICE, Subscriber, World, careless, draft, feed, feed_key, member, until};
use crate::committer::BackfillWork;
use crate::store::disk::{DiskOptions, DiskStore};
use crate::store::{Content, OpenError, Store};

/// Rounds, unless `BARID_HISTORIES_ROUNDS` sets another number.
const ROUNDS: u64 = 20;
const STEPS: u64 = 60;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound.max(1)
    }
}

/// A reader and its state.
struct Reader {
    /// How it resumes: with its last cursor, with its name too, or with its name alone.
    named: bool,
    with_cursor: bool,
    name: String,
    stream: Option<Subscriber>,
    cursor: Bytes,
    /// The entry that each offset means to it.
    meaning: BTreeMap<u64, (String, u64)>,
    seen: BTreeSet<(String, u64)>,
    scanned_to: u64,
}

impl Reader {
    fn new(name: &str, named: bool, with_cursor: bool) -> Self {
        Self {
            named,
            with_cursor,
            name: name.into(),
            stream: None,
            cursor: Bytes::new(),
            meaning: BTreeMap::new(),
            seen: BTreeSet::new(),
            scanned_to: 0,
        }
    }

    async fn open(&mut self, world: &World) {
        let start = self.named.then(|| Start::Subscription(self.name.clone()));
        let cursor = if self.with_cursor { self.cursor.clone() } else { Bytes::new() };
        let begin = |begin: &str| begin.to_owned();
        let first = self.cursor.is_empty();
        let request = proto::SubscribeRequest {
            start: start.clone(),
            begin: if first { begin("beginning") } else { String::new() },
            cursor,
            ..Default::default()
        };
        self.stream = Some(match world.subscribe(POLICE, request).await {
            Ok(stream) => stream,
            Err(status) => {
                // Its name is no longer valid, so it begins anew.
                assert!(!self.with_cursor && reason(&status) == "UNKNOWN_SUBSCRIPTION", "{}: {status:?}", self.name);
                self.meaning.clear();
                let request = proto::SubscribeRequest { start, begin: begin("beginning"), ..Default::default() };
                world.subscribe(POLICE, request).await.unwrap()
            }
        });
        let mut response = self.next().await;
        if let Some(Event::Reset(reset)) = &response.event {
            assert!(self.with_cursor && reset.offset <= reset.cursor_offset, "{reset:?}");
            self.meaning.retain(|offset, _| *offset <= reset.offset);
            response = self.next().await;
        }
        let Some(Event::Position(position)) = response.event else { panic!("{response:?}") };
        self.scanned_to = position;
    }

    async fn next(&mut self) -> proto::SubscribeResponse {
        let response = self.stream.as_mut().unwrap().response().await.unwrap().unwrap();
        self.cursor = response.cursor.clone();
        response
    }

    /// Reads until it has caught up, or at most `max` events.
    async fn read(&mut self, world: &World, max: u64) {
        if self.stream.is_none() {
            self.open(world).await;
        }
        let end = world.store.end_offset() - 1;
        for _ in 0..max {
            if self.scanned_to >= end {
                break;
            }
            match self.next().await.event.unwrap() {
                Event::Delivery(delivery) => {
                    let entry = (delivery.feed, delivery.index);
                    let previous = self.meaning.insert(delivery.offset, entry.clone());
                    assert!(
                        previous.is_none_or(|previous| previous == entry),
                        "{}: #{} was another",
                        self.name,
                        delivery.offset
                    );
                    self.seen.insert(entry);
                    self.scanned_to = self.scanned_to.max(delivery.offset);
                }
                Event::Position(position) => self.scanned_to = self.scanned_to.max(position),
                other => panic!("{}: {other:?}", self.name),
            }
        }
        if self.scanned_to >= end {
            // It has seen every entry up to the offset that it scanned to.
            let held = world.store.entries_from(1, usize::MAX, usize::MAX).unwrap();
            let missed = held.iter().find(|entry| !self.seen.contains(&(entry.feed.to_string(), entry.index)));
            assert!(missed.is_none(), "{} has missed {:?}", self.name, missed.map(|entry| (&entry.feed, entry.index)));
        }
    }

    async fn acknowledge(&self, world: &World) {
        if self.named && self.stream.is_some() {
            world.acknowledge(POLICE, &self.name, &self.cursor).await.unwrap();
        }
    }
}

/// One node, and the entries of its exchange.
struct Round {
    random: Random,
    folder: tempfile::TempDir,
    options: DiskOptions,
    world: Option<World>,
    epoch: u32,
    copy: Option<u32>,
    /// All entries that were ever published, by feed. Peers have those of this node.
    logs: BTreeMap<FeedId, Vec<Bytes>>,
    published: u64,
    readers: Vec<Reader>,
}

impl Round {
    async fn start(seed: u64) -> Self {
        let mut random = Random(seed);
        // A small tail cache, so that disk and index database are read too.
        let tail_cache_bytes = [0, 4 << 10, 32 << 20][random.below(3) as usize];
        let options = DiskOptions {
            reserve_bytes: 0,
            tail_cache_bytes,
            ..DiskOptions::new(member("ma"), EXCHANGE.parse().unwrap())
        };
        let readers = vec![
            Reader::new("live", false, true),
            Reader::new("reconnecting", false, true),
            Reader::new("named", true, true),
            Reader::new("forgetful", true, false),
        ];
        let logs = BTreeMap::from([(feed("tn", 1), Vec::new()), (feed("ly", 1), Vec::new())]);
        let folder = tempfile::tempdir().unwrap();
        let (world, copy) = (None, None);
        let mut round = Self { random, folder, options, world, epoch: 1, copy, logs, published: 0, readers };
        round.open().await;
        round
    }

    fn world(&self) -> &World {
        self.world.as_ref().unwrap()
    }

    fn data(&self) -> std::path::PathBuf {
        self.folder.path().join("data")
    }

    async fn open(&mut self) {
        let store: Arc<dyn Store> = Arc::new(self.open_store().await);
        let high_water_mark = self.folder.path().join(format!("mark-{}", self.epoch));
        self.world = Some(World::with_high_water_mark(store, self.epoch, high_water_mark).await);
        self.logs.entry(feed("ma", self.epoch)).or_default();
    }

    /// Stops the node and cuts the streams.
    async fn close(&mut self) {
        self.readers.iter_mut().for_each(|reader| reader.stream = None);
        let Some(world) = self.world.take() else { return };
        world.stop.send_replace(true);
        world.committer.stop().await;
        drop(world);
        drop(self.open_store().await);
    }

    /// Opens the store once its previous owner has closed it.
    async fn open_store(&self) -> DiskStore {
        let store = std::cell::OnceCell::new();
        until("the store is closed", || match DiskStore::open(&self.data(), &self.options) {
            Ok(opened) => store.set(opened).is_ok(),
            Err(OpenError::Locked(_)) => false,
            Err(error) => panic!("{error}"),
        })
        .await;
        store.into_inner().unwrap()
    }

    async fn step(&mut self) {
        match self.random.below(40) {
            0..8 => self.publish().await,
            8..16 => {
                self.others_publish();
                self.append().await;
            }
            16..19 => self.priority().await,
            19..22 => self.backfill().await,
            22..32 => {
                let (place, max) = (self.random.below(4) as usize, [1, 3, u64::MAX][self.random.below(3) as usize]);
                let mut reader = std::mem::replace(&mut self.readers[place], Reader::new("", false, false));
                reader.read(self.world(), max).await;
                if self.random.below(2) == 0 {
                    reader.acknowledge(self.world()).await;
                }
                self.readers[place] = reader;
            }
            32..35 => {
                let place = 1 + self.random.below(3) as usize;
                self.readers[place].stream = None;
            }
            35 | 36 => self.copy().await,
            37 | 38 => self.restore().await,
            _ => self.lose_store().await,
        }
    }

    async fn publish(&mut self) {
        let receipt = self.world().published(draft(|_| {})).await;
        let own = feed("ma", self.epoch);
        let entry = self.world().store.entries(&own, receipt.index, 1, usize::MAX).unwrap().remove(0);
        let Content::Disclosed { envelope, .. } = entry.content else { panic!("it is held") };
        self.logs.get_mut(&own).unwrap().push(envelope);
    }

    fn size(&self, feed: &FeedId) -> usize {
        self.world().store.feed(feed).map_or(0, |state| state.compact_range.size()) as usize
    }

    /// Returns a feed, other than the current own one, of which the node lacks entries.
    fn lagging(&mut self) -> Option<FeedId> {
        let own = feed("ma", self.epoch);
        let behind = self.logs.iter().filter(|(feed, log)| **feed != own && self.size(feed) < log.len());
        let behind: Vec<FeedId> = behind.map(|(feed, _)| feed.clone()).collect();
        let place = self.random.below(behind.len() as u64) as usize;
        behind.get(place).cloned()
    }

    /// Other members publish.
    fn others_publish(&mut self) {
        for code in ["tn", "ly"] {
            for _ in 0..self.random.below(4) {
                self.published += 1;
                let (n, extreme) = (self.published, self.random.below(3) == 0);
                let envelope = careless(code, 1, |_, header| {
                    header.id = format!("01971f5a-3c00-7a10-8b5e-{n:012x}");
                    header.severity = if extreme { "Extreme".into() } else { header.severity.clone() };
                });
                self.logs.get_mut(&feed(code, 1)).unwrap().push(envelope);
            }
        }
    }

    /// Appends the next entries of a feed, some as digests.
    async fn append(&mut self) {
        let Some(feed) = self.lagging() else { return };
        let size = self.size(&feed);
        let count = (1 + self.random.below(5) as usize).min(self.logs[&feed].len() - size);
        let own = feed.member.as_str() == "ma";
        let mut content = Vec::new();
        let behind = self.logs[&feed][size..size + count].to_vec();
        for envelope in behind {
            let digest = envelope::digest(&envelope);
            let whole = own || self.random.below(3) > 0;
            content.push((
                digest,
                if whole { disclosed(envelope) } else { VerifiedContent::Undisclosed(Undisclosed::NotHeld) },
            ));
        }
        self.world().append_to(feed, content).await;
    }

    /// Stores a priority entry ahead of its feed's order.
    async fn priority(&mut self) {
        let Some(feed) = self.lagging().filter(|feed| feed.member.as_str() != "ma") else { return };
        let (size, log) = (self.size(&feed), self.logs[&feed].clone());
        let index = size + self.random.below((log.len() - size) as u64) as usize;
        let digests: Vec<Digest> = log.iter().map(|envelope| envelope::digest(envelope)).collect();
        let mut compact_range = CompactRange::new();
        digests.iter().for_each(|digest| compact_range.append(digest));
        let checkpoint = Checkpoint { feed: feed.clone(), size: compact_range.size(), root: compact_range.root() };
        let entry =
            VerifiedEntry { digest: digests[index], content: disclosed(log[index].clone()), pending_roster: None };
        let priority = VerifiedPriority {
            checkpoint: sign(&checkpoint, &[feed_key(&feed)]).unwrap(),
            feed_sender: feed.member.clone(),
            feed,
            index: index as u64,
            entry,
            class: Some(Priority::Other),
            proof: Vec::new(),
            findings: Vec::new(),
        };
        self.world().committer.append_priority(priority).await.unwrap().await.unwrap().unwrap();
    }

    /// Backfills the content of entries held as digests.
    async fn backfill(&mut self) {
        for feed in [feed("tn", 1), feed("ly", 1)] {
            let missing = self.world().store.undisclosed_ranges_from(&feed, 0, 8).unwrap();
            let Some((range, why)) = missing.get(self.random.below(missing.len() as u64) as usize).cloned() else {
                continue;
            };
            let index = range.start;
            self.backfill_one(feed, index, why).await;
        }
    }

    async fn backfill_one(&self, feed: FeedId, index: u64, why: Undisclosed) {
        let envelope = self.logs[&feed][index as usize].clone();
        let VerifiedContent::Disclosed { envelope, header } = disclosed(envelope) else { panic!("it is disclosed") };
        let backfill =
            VerifiedBackfill { index, digest: envelope::digest(&envelope), envelope, header, pending_roster: None };
        let backfills =
            VerifiedBackfills { feed_sender: feed.member.clone(), feed, entries: vec![backfill], findings: Vec::new() };
        let filling = BackfillWork { backfills, not_held: vec![(index..index + 1, why)] };
        self.world().committer.backfill(filling).await.unwrap();
    }

    async fn copy(&mut self) {
        self.close().await;
        let copy = self.folder.path().join("copy");
        _ = std::fs::remove_dir_all(&copy);
        copy_folder(&self.data(), &copy);
        self.copy = Some(self.epoch);
        self.open().await;
    }

    /// Restores the copy, and recovers the node into its next epoch.
    async fn restore(&mut self) {
        if self.copy.is_none() {
            return;
        }
        self.close().await;
        std::fs::remove_dir_all(self.data()).unwrap();
        copy_folder(&self.folder.path().join("copy"), &self.data());
        self.epoch += 1;
        self.open().await;
    }

    /// Loses the store, and recovers the node into its next epoch.
    async fn lose_store(&mut self) {
        self.close().await;
        std::fs::remove_dir_all(self.data()).unwrap();
        self.epoch += 1;
        self.open().await;
    }

    /// Delivers every entry that was ever published, and lets every reader read it.
    async fn heal(&mut self) {
        self.others_publish();
        while self.lagging().is_some() {
            self.append().await;
        }
        for feed in [feed("tn", 1), feed("ly", 1)] {
            while let Some((range, why)) =
                self.world().store.undisclosed_ranges_from(&feed, 0, 1).unwrap().first().cloned()
            {
                self.backfill_one(feed.clone(), range.start, why).await;
            }
        }
        let mut readers = std::mem::take(&mut self.readers);
        for reader in &mut readers {
            reader.read(self.world(), u64::MAX).await;
            for (feed, log) in &self.logs {
                let missed = (0..log.len() as u64).find(|index| !reader.seen.contains(&(feed.to_string(), *index)));
                assert!(missed.is_none(), "{} has never seen {feed} {missed:?}", reader.name);
            }
        }
    }
}

fn disclosed(envelope: Bytes) -> VerifiedContent {
    let header = envelope::header_of(&envelope).ok().map(Arc::new);
    VerifiedContent::Disclosed { envelope, header }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            std::fs::copy(&path, target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_miss_nothing_across_restored_and_lost_stores() {
    let rounds = std::env::var("BARID_HISTORIES_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS);
    let first = std::env::var("BARID_HISTORIES_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    // Regression: with this seed a name had been acknowledged beyond the cursor of another history
    // that came with it.
    for seed in (first..first + rounds).chain([61]) {
        println!("seed {seed}");
        let mut round = Round::start(seed).await;
        for _ in 0..STEPS {
            round.step().await;
        }
        round.heal().await;
        round.close().await;
    }
}
