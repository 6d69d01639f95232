//! References on the disk store: from a bulletin to the entries that refer to it, in the index
//! database and in memory.
//!
//! In scope: merging the two. Out of scope: which of these entries count (`core`).

use std::collections::{BTreeMap, BTreeSet};

use barid_core::ids::{FeedId, Member};
use uuid::Uuid;

use super::disk::DiskStore;
use super::feed_index::State;
use super::index_db::acks::{self, AckSummary};
use super::index_db::references::Referrer;
use super::keys::FeedNumber;
use super::load::dangling;
use super::{Location, ReadError, ReferenceKind};

/// Issuers of one feed whose Acks to one bulletin are read and counted. A member that makes up more
/// hides only its own Acks.
pub(super) const ISSUERS_SCANNED_MAX: usize = 256;

/// An issuer of Acks among those of one member: 64 bits of the SHA-256 of `header.issuer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct IssuerHash(pub(super) u64);

/// How an entry that refers to a bulletin is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Role {
    /// An Ack, by its issuer.
    Ack(IssuerHash),
    /// Any other reference.
    Other(ReferenceKind),
}

/// The Acks that refer to one bulletin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acks {
    /// The issuers, by feed and by their first Ack.
    pub issuers: Vec<IssuerAcks>,
    /// Number of Acks, including those of issuers that are left out.
    pub count: u64,
    /// Whether all Acks were counted.
    pub whole: bool,
}

/// The Acks of one issuer. After a single Ack, first and newest are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerAcks {
    /// The first Ack by offset.
    pub first: Location,
    /// The newest Ack.
    pub newest: Location,
}

impl Acks {
    /// Collects Acks by feed and issuer, at most `issuers_max` of each feed.
    pub(super) fn of(
        acks: impl Iterator<Item = ((FeedId, IssuerHash), AckSummary)>,
        issuers_max: usize,
        whole: bool,
    ) -> Self {
        let mut found = Self { whole, ..Self::default() };
        let mut in_feed: BTreeMap<FeedId, usize> = BTreeMap::new();
        for ((feed, _), AckSummary { first, newest, count }) in acks {
            found.count = found.count.saturating_add(count);
            let issuers = in_feed.entry(feed.clone()).or_default();
            *issuers += 1;
            if *issuers <= issuers_max {
                let location = |(offset, index)| Location { feed: feed.clone(), index, offset };
                found.issuers.push(IssuerAcks { first: location(first), newest: location(newest) });
            }
        }
        found.issuers.sort_by(|a, b| (&a.first.feed, a.first.offset).cmp(&(&b.first.feed, b.first.offset)));
        found
    }
}

impl DiskStore {
    pub(super) fn read_references_to(
        &self,
        member: &Member,
        id: Uuid,
        kind: ReferenceKind,
        after: u64,
        max: usize,
    ) -> Result<Vec<Location>, ReadError> {
        // Read memory before the index database: a reference applied in between is found twice
        // rather than never.
        let pending: Vec<Referrer> = {
            let state = self.shared().state.read();
            let newer = pending(&state, member, Role::Other(kind)).filter(|(to, at)| *to == id && at.offset > after);
            newer.map(|(_, at)| at).collect()
        };
        let mut found = self.shared().index_db().references_to(member, id, kind, after, max)?;
        found.extend(pending);
        found.sort_unstable();
        found.dedup();
        found.truncate(max);
        let state = self.shared().state.read();
        let location =
            |at: Referrer| Ok(Location { feed: feed_of(&state, at.feed)?, index: at.index, offset: at.offset });
        found.into_iter().map(location).collect()
    }

    pub(super) fn read_superseded(&self, member: &Member, ids: &[Uuid]) -> Result<Vec<bool>, ReadError> {
        let (wanted, mut found): (BTreeSet<Uuid>, BTreeSet<Uuid>) = {
            let state = self.shared().state.read();
            let Some(largest) = state.superseded.get(member) else { return Ok(vec![false; ids.len()]) };
            let wanted: BTreeSet<Uuid> = ids.iter().copied().filter(|id| id <= largest).collect();
            if wanted.is_empty() {
                return Ok(vec![false; ids.len()]);
            }
            let pending = pending(&state, member, Role::Other(ReferenceKind::Supersedes)).map(|(to, _)| to);
            let found = pending.filter(|id| wanted.contains(id)).collect();
            (wanted, found)
        };
        let ascending: Vec<Uuid> = wanted.into_iter().collect();
        found.extend(self.shared().index_db().superseded(member, &ascending)?);
        Ok(ids.iter().map(|id| found.contains(id)).collect())
    }

    pub(super) fn read_acks(&self, member: &Member, id: Uuid, issuers_max: usize) -> Result<Acks, ReadError> {
        let pending: Vec<(IssuerHash, Referrer)> = {
            let state = self.shared().state.read();
            let acks = state.pending_references.iter().filter_map(|(_, (of, to, role), at)| match role {
                Role::Ack(issuer_hash) if of == member && *to == id => Some((*issuer_hash, *at)),
                _ => None,
            });
            acks.collect()
        };
        let (held, whole) = self.shared().index_db().acks(member, id, ISSUERS_SCANNED_MAX)?;
        let mut all: BTreeMap<(FeedNumber, IssuerHash), AckSummary> =
            held.into_iter().map(|(feed, issuer_hash, ack)| ((feed, issuer_hash), ack)).collect();
        for (issuer_hash, at) in pending {
            let ack = acks::add(all.get(&(at.feed, issuer_hash)).copied(), &at);
            all.insert((at.feed, issuer_hash), ack);
        }
        let state = self.shared().state.read();
        let named = |((feed, issuer_hash), ack)| Ok(((feed_of(&state, feed)?, issuer_hash), ack));
        let named: Vec<_> = all.into_iter().map(named).collect::<Result<_, ReadError>>()?;
        Ok(Acks::of(named.into_iter(), issuers_max, whole))
    }
}

/// Returns the references of this kind to bulletins of a member that are not yet applied to the
/// index database.
fn pending<'a>(state: &'a State, member: &'a Member, role: Role) -> impl Iterator<Item = (Uuid, Referrer)> + 'a {
    let all = state.pending_references.iter();
    all.filter(move |(_, (of, _, kind), _)| of == member && *kind == role).map(|(_, (_, id, _), at)| (*id, *at))
}

fn feed_of(state: &State, feed: FeedNumber) -> Result<FeedId, ReadError> {
    state.feed_index(feed).map(|feed_index| feed_index.feed.clone()).ok_or_else(|| dangling("feed"))
}
