//! Bulletin states: from the references to a bulletin its state, and from its own references
//! headlines.
//!
//! In scope: reading references in bounded steps and with bounded work. Out of scope: which
//! updates, cancellations and acknowledgements count (`core`).
//!
//! Most bulletins have no references, which the store reports at nearly no cost. For the others a
//! cache remembers the result, so that only new references are read. A bulletin and the bulletins
//! that change its state have the same topic, handling and roster version, so a caller that may
//! read one may see the other.

use std::num::NonZeroUsize;

use barid_core::bulletin::state::{Position, SuccessionState, Successor, acknowledges};
use barid_core::bulletin::times::Time;
use barid_core::bulletin::{BulletinId, Reference};
use barid_core::envelope;
use barid_core::ids::{Digest, Member};
use barid_core::limits::{HEADLINE_CHARS_MAX, NAME_BYTES_MAX, REFERENCES_MAX, TEXTS_MAX};
use barid_core::proto;
use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use uuid::Uuid;

use super::Api;
use super::caller::Caller;
use crate::clock;
use crate::store::{Content, Entry, Location, ReadError, ReferenceKind};

/// Acknowledgements in one response. They fit a message beside the largest envelope. Each feed with
/// acknowledgements gets an equal share.
const ACKNOWLEDGED_MAX: usize = 1_000;
/// References read at once.
const STEP: usize = 512;
/// References of one bulletin that are looked up for a reader. Updates, cancellations and
/// acknowledgements usually have one.
const REFERENCED_MAX: usize = REFERENCES_MAX;
/// Bulletins whose successors are cached, some 400 bytes each. It suffices for the bulletins of a
/// page and of live streams.
const CACHED_MAX: NonZeroUsize = NonZeroUsize::new(4_096).expect("more than none");
/// Envelope bytes that count as one more entry read.
const UNIT_BYTES: usize = 16 << 10;

/// Budget of entries that may be read for one response, beyond the requested bulletins. Publishers
/// decide how many references their bulletins get. A partial result is marked as such, and what was
/// read is cached, so that the next response gets further.
#[derive(Debug)]
pub(super) struct Work {
    left: usize,
    exhausted: bool,
}

impl Work {
    /// For one bulletin requested by id: an hourly update for eleven years.
    pub(super) const ONE: usize = 100_000;
    /// For a page of history: a fraction of a second.
    pub(super) const PAGE: usize = 20_000;
    /// For one page of events to a subscriber: some tens of milliseconds.
    pub(super) const EVENT_PAGE: usize = 2_000;
    /// For events that are sent from memory, without a blocking thread. If they need more, they are
    /// read again on a blocking thread.
    pub(super) const NONE: usize = 0;

    pub(super) fn new(units: usize) -> Self {
        Self { left: units, exhausted: false }
    }

    /// Returns whether a read was skipped for lack of budget.
    pub(super) fn is_exhausted(&self) -> bool {
        self.exhausted
    }

    /// Returns whether one more entry may be read. Records it if not.
    fn may_read(&mut self) -> bool {
        self.exhausted |= self.left == 0;
        self.left > 0
    }

    fn spend(&mut self, entry: &Entry) {
        let bytes = if let Content::Disclosed { envelope, .. } = &entry.content { envelope.len() } else { 0 };
        self.left = self.left.saturating_sub(1 + bytes / UNIT_BYTES);
    }
}

/// Cache of the successors of bulletins, by digest. All calls share it.
pub struct StateCache {
    found: Mutex<LruCache<Digest, Found>>,
}

impl Default for StateCache {
    fn default() -> Self {
        Self { found: Mutex::new(LruCache::new(CACHED_MAX)) }
    }
}

/// Successors of one bulletin among the entries up to offset `after`.
#[derive(Clone, Debug, Default)]
struct Found {
    successors: SuccessionState,
    after: u64,
    /// An entry that refers to it cannot be read.
    damaged: bool,
    /// Some references were not read.
    more: bool,
}

impl StateCache {
    fn get(&self, digest: &Digest) -> Found {
        self.found.lock().get(digest).cloned().unwrap_or_default()
    }

    /// Keeps the result that reached the higher offset. It includes everything that a concurrent
    /// call with a lower offset found.
    fn put(&self, digest: Digest, found: &Found) {
        let mut held = self.found.lock();
        if held.get(&digest).is_none_or(|held| held.after <= found.after) {
            held.put(digest, found.clone());
        }
    }
}

impl Api {
    /// Returns the current states of bulletins, in their order, from the entries in this store.
    /// Blocks.
    pub(super) fn states(&self, entries: &[Entry], work: &mut Work) -> Result<Vec<proto::State>, ReadError> {
        let mut states = Vec::with_capacity(entries.len());
        for of_member in entries.chunk_by(|a, b| a.feed.member == b.feed.member) {
            let Some(first) = of_member.first() else { continue };
            let ids: Vec<Uuid> = of_member.iter().map(|entry| id_of(entry).unwrap_or_default()).collect();
            let superseded = self.store().superseded(&first.feed.member, &ids)?;
            for ((entry, id), superseded) in of_member.iter().zip(ids).zip(superseded) {
                let found = if superseded { self.found(entry, id, work)? } else { Found::default() };
                states.push(state_of(entry, &found));
            }
        }
        Ok(states)
    }

    /// Returns the state of a bulletin, with the acknowledgements that the caller may read. Blocks.
    pub(super) fn state(&self, caller: &Caller, entry: &Entry) -> Result<proto::State, ReadError> {
        let mut work = Work::new(Work::ONE);
        let state = self.states(std::slice::from_ref(entry), &mut work)?.into_iter().next();
        let mut state = state.unwrap_or_default();
        let (Content::Disclosed { header: Some(original), .. }, Some(id)) = (&entry.content, id_of(entry)) else {
            return Ok(state);
        };
        let acks = self.store().acks(&entry.feed.member, id, ACKNOWLEDGED_MAX)?;
        let feeds = acks.issuers.chunk_by(|a, b| a.first.feed == b.first.feed).count();
        let share = ACKNOWLEDGED_MAX / feeds.max(1);
        for of_feed in acks.issuers.chunk_by(|a, b| a.first.feed == b.first.feed) {
            // The newest acknowledgement of every person comes before the first of any.
            let newest = of_feed.iter().map(|person| &person.newest);
            let first = of_feed.iter().filter(|person| person.first != person.newest).map(|it| &it.first);
            for location in newest.chain(first).take(share) {
                let Some(other) = self.other(location, &mut work)? else { continue };
                if let Content::Disclosed { header: Some(header), .. } = &other.content
                    && acknowledges(header, original, &entry.digest)
                    && self.may_deliver(caller, &other)
                {
                    let digest = Bytes::copy_from_slice(&other.digest.0);
                    let by = proto::Reference { member: header.member.clone(), id: header.id.clone(), digest };
                    state.acknowledged_by.push(clipped(&by));
                }
            }
        }
        state.acknowledgements = acks.count;
        state.partial |= !acks.whole || work.is_exhausted();
        Ok(state)
    }

    /// Returns the bulletins that an entry refers to, as far as they are visible to the caller.
    /// Blocks.
    pub(super) fn referenced(
        &self,
        caller: &Caller,
        entry: &Entry,
        work: &mut Work,
    ) -> Result<Vec<proto::Referenced>, ReadError> {
        let Content::Disclosed { header: Some(header), .. } = &entry.content else { return Ok(Vec::new()) };
        let mut referenced = Vec::new();
        for reference in header.references.iter().take(REFERENCED_MAX) {
            let mut about = proto::Referenced { reference: Some(clipped(reference)), ..Default::default() };
            let name = reference.member.parse::<Member>().ok().zip(reference.id.parse::<BulletinId>().ok());
            if let Some((member, id)) = name.filter(|_| work.may_read())
                && let Some(location) = self.store().find(&member, id.uuid())?
                && let Some(other) = self.other(&location, work)?
                && reference.digest == other.digest.0[..]
                && self.may_deliver(caller, &other)
                && let Content::Disclosed { envelope, header: Some(original) } = &other.content
            {
                let position = Position { epoch: entry.feed.epoch, index: entry.index };
                about.held = true;
                about.changes_state =
                    Successor::from_header(original, &other.digest, header, &entry.digest, position).is_some();
                about.headlines = headlines(envelope);
                about.state = self.states(std::slice::from_ref(&other), work)?.into_iter().next();
                // An earlier cancellation by another bulletin is final.
                let ended = about.state.as_ref().filter(|state| state.state == "cancelled");
                let by_this =
                    |state: &proto::State| state.by.as_ref().is_some_and(|by| by.digest == entry.digest.0[..]);
                about.changes_state &= ended.is_none_or(by_this);
            }
            referenced.push(about);
        }
        Ok(referenced)
    }

    /// Returns the successors of a bulletin, as far as the work budget allows.
    fn found(&self, entry: &Entry, id: Uuid, work: &mut Work) -> Result<Found, ReadError> {
        let Content::Disclosed { header: Some(original), .. } = &entry.content else { return Ok(Found::default()) };
        let mut found = self.states.get(&entry.digest);
        found.more = false;
        'reading: loop {
            let step =
                self.store().references_to(&entry.feed.member, id, ReferenceKind::Supersedes, found.after, STEP)?;
            for location in &step {
                if !work.may_read() {
                    found.more = true;
                    break 'reading;
                }
                match self.other(location, work)? {
                    Some(other) => add(&mut found.successors, original, &entry.digest, &other),
                    None => found.damaged = true,
                }
                found.after = location.offset;
            }
            if step.len() < STEP {
                break;
            }
        }
        self.states.put(entry.digest, &found);
        Ok(found)
    }

    /// Reads an entry by its offset, because a priority entry may be stored before its
    /// predecessors. `None` if it is damaged or the budget is used up; the requested bulletin is
    /// still returned.
    fn other(&self, location: &Location, work: &mut Work) -> Result<Option<Entry>, ReadError> {
        if !work.may_read() {
            return Ok(None);
        }
        match self.store().entries_from(location.offset, 1, 0) {
            Ok(read) => Ok(read.into_iter().next().inspect(|entry| work.spend(entry))),
            Err(ReadError::DamagedEntry(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn id_of(entry: &Entry) -> Option<Uuid> {
    let Content::Disclosed { header: Some(header), .. } = &entry.content else { return None };
    Uuid::try_parse(&header.id).ok()
}

fn add(successors: &mut SuccessionState, original: &proto::Header, digest: &Digest, other: &Entry) {
    let Content::Disclosed { envelope, header: Some(header) } = &other.content else { return };
    let position = Position { epoch: other.feed.epoch, index: other.index };
    if let Some(successor) = Successor::from_header(original, digest, header, &other.digest, position)
        && successors.would_change(&successor)
    {
        successors.add(successor.with_reason(envelope));
    }
}

fn state_of(entry: &Entry, found: &Found) -> proto::State {
    let Content::Disclosed { header: Some(original), .. } = &entry.content else { return proto::State::default() };
    let expires = original.expires.as_ref().map(Time::nearest);
    let state = found.successors.state(expires, Time::from_unix_ms(clock::unix_ms()));
    proto::State {
        state: state.as_str().into(),
        by: state.by().map(Reference::to_proto),
        reason: state.reason().map(|reason| reason.as_str().to_owned()).unwrap_or_default(),
        partial: found.more || found.damaged,
        ..Default::default()
    }
}

fn headlines(envelope: &[u8]) -> Vec<proto::Text> {
    let texts = envelope::body_of(envelope).map(|body| body.texts).unwrap_or_default();
    let headline = |text: proto::Text| proto::Text {
        language: clip(&text.language, NAME_BYTES_MAX),
        headline: clip(&text.headline, HEADLINE_CHARS_MAX),
        ..Default::default()
    };
    texts.into_iter().take(TEXTS_MAX).map(headline).collect()
}

/// Truncates a reference from or to another member's header, whose parts may have any length, to a
/// few hundred bytes.
fn clipped(reference: &proto::Reference) -> proto::Reference {
    let digest = reference.digest.slice(..reference.digest.len().min(NAME_BYTES_MAX));
    proto::Reference {
        member: clip(&reference.member, NAME_BYTES_MAX),
        id: clip(&reference.id, NAME_BYTES_MAX),
        digest,
    }
}

fn clip(text: &str, chars_max: usize) -> String {
    text.chars().take(chars_max).collect()
}
