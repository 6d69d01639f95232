//! What became of bulletins, and what they are about: from what refers to them to their state, and from their references to headlines.
//!
//! In scope: reading references in bounded steps and with bounded work. Out of scope: which updates, cancellations and answers count (`core`).
//!
//! Nothing refers to most bulletins: the store says so for nearly nothing. Of the others what was found is remembered, so that only what is
//! new is looked at again. A bulletin and what changes its state have the same topic, handling and roster version, so whoever may read the
//! one may be told of the other.

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

/// Acknowledgements in one answer: they fit a message beside the largest envelope. Each feed that has some has its share.
const ACKNOWLEDGED_MAX: usize = 1_000;
/// References read at once.
const STEP: usize = 512;
/// References of one bulletin that are looked up for who reads it. Updates, cancellations and answers have one as a rule.
const REFERENCED_MAX: usize = REFERENCES_MAX;
/// Bulletins of which it is remembered what succeeds them, some 400 bytes each: those of a page and of what is live.
const CACHED_MAX: NonZeroUsize = NonZeroUsize::new(4_096).expect("more than none");
/// Bytes of an envelope that count as one more entry read.
const UNIT_BYTES: usize = 16 << 10;

/// How much may be read for one answer beyond the bulletins that are asked for. Publishers decide how much refers to their bulletins; what is
/// left out is marked, and what was read is remembered, so that the next answer comes further.
#[derive(Debug)]
pub(super) struct Work {
    left: usize,
    exhausted: bool,
}

impl Work {
    /// For one bulletin that is asked for by its id: an hourly update for eleven years.
    pub(super) const ONE: usize = 100_000;
    /// For a page of history: a fraction of a second.
    pub(super) const PAGE: usize = 20_000;
    /// For what a subscriber is sent at a time: some tens of milliseconds.
    pub(super) const EVENT_PAGE: usize = 2_000;
    /// For what is sent from memory without a blocking thread: what needs more is read again on one.
    pub(super) const NONE: usize = 0;

    pub(super) fn new(units: usize) -> Self {
        Self { left: units, exhausted: false }
    }

    /// Whether something was left out.
    pub(super) fn is_exhausted(&self) -> bool {
        self.exhausted
    }

    /// Whether one more entry may be read.
    fn may_read(&mut self) -> bool {
        self.exhausted |= self.left == 0;
        self.left > 0
    }

    fn spend(&mut self, entry: &Entry) {
        let bytes = if let Content::Disclosed { envelope, .. } = &entry.content { envelope.len() } else { 0 };
        self.left = self.left.saturating_sub(1 + bytes / UNIT_BYTES);
    }
}

/// What was found of bulletins that something succeeds, by digest. Shared by all calls.
pub struct StateCache {
    found: Mutex<LruCache<Digest, Found>>,
}

impl Default for StateCache {
    fn default() -> Self {
        Self { found: Mutex::new(LruCache::new(CACHED_MAX)) }
    }
}

/// What succeeds one bulletin, by what arrived up to `after`.
#[derive(Clone, Debug, Default)]
struct Found {
    successors: SuccessionState,
    after: u64,
    /// Something that refers to it cannot be read.
    damaged: bool,
    /// There is more than was read.
    more: bool,
}

impl StateCache {
    fn get(&self, digest: &Digest) -> Found {
        self.found.lock().get(digest).cloned().unwrap_or_default()
    }

    /// Of two calls that looked at the same time the one that came further counts: it has seen all that the other has.
    fn put(&self, digest: Digest, found: &Found) {
        let mut held = self.found.lock();
        if held.get(&digest).is_none_or(|held| held.after <= found.after) {
            held.put(digest, found.clone());
        }
    }
}

impl Api {
    /// The states of bulletins now, in their order, by what has arrived here. Blocks.
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

    /// The state of a bulletin, with the acknowledgements that the caller may read. Blocks.
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
            // The newest of everybody, before the first of anybody.
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

    /// What a bulletin is about, as far as it is held here for the caller. Blocks.
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
                // What was cancelled before by something else stays as it is.
                let ended = about.state.as_ref().filter(|state| state.state == "cancelled");
                let by_this =
                    |state: &proto::State| state.by.as_ref().is_some_and(|by| by.digest == entry.digest.0[..]);
                about.changes_state &= ended.is_none_or(by_this);
            }
            referenced.push(about);
        }
        Ok(referenced)
    }

    /// What succeeds a bulletin, as far as the work allows to find out.
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

    /// An entry by its arrival: its feed may not have reached it. `None` if it is damaged; what is asked for is given all the same.
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

/// A reference to or of a foreign header, whose parts may be of any length: at most some hundred bytes of it.
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
