//! From a bulletin to the entries that refer to it, as the store on disk finds them: in the view, and in memory what the view lacks.
//!
//! In scope: merging the two. Out of scope: which of these entries count (`core`).

use std::collections::{BTreeMap, BTreeSet};

use barid_core::names::{FeedId, Member};
use uuid::Uuid;

use super::disk::DiskStore;
use super::keys::FeedNumber;
use super::load::dangling;
use super::state::State;
use super::view::answers::{self, Answer};
use super::view::references::Referrer;
use super::{Location, ReadError, Refers};

/// Persons of one feed whose answers to one bulletin are looked at, and counted. A member that makes up more hides only its own people's.
pub(super) const PERSONS_SCANNED_MAX: usize = 256;

/// Who answered, among the people of one member: 64 bits of the SHA-256 of `header.issuer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Person(pub(super) u64);

/// How an entry is found by what it refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Role {
    /// An Ack, by who gave it.
    Answer(Person),
    /// Anything else.
    Other(Refers),
}

/// The Acks that refer to one bulletin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// Those who answered, by feed and by when they did first.
    pub persons: Vec<Answered>,
    /// How many Acks there are, those of persons left out included.
    pub count: u64,
    /// Whether all of them were counted.
    pub whole: bool,
}

/// What one person answered. One that answered once has the same first and newest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The first answer that arrived.
    pub first: Location,
    /// The newest one.
    pub newest: Location,
}

impl Answers {
    /// Of answers by feed and person, of each feed at most `persons_max`.
    pub(super) fn of(
        answers: impl Iterator<Item = ((FeedId, Person), Answer)>,
        persons_max: usize,
        whole: bool,
    ) -> Self {
        let mut found = Self { whole, ..Self::default() };
        let mut in_feed: BTreeMap<FeedId, usize> = BTreeMap::new();
        for ((feed, _), Answer { first, newest, count }) in answers {
            found.count = found.count.saturating_add(count);
            let persons = in_feed.entry(feed.clone()).or_default();
            *persons += 1;
            if *persons <= persons_max {
                let location = |(arrival, index)| Location { feed: feed.clone(), index, arrival };
                found.persons.push(Answered { first: location(first), newest: location(newest) });
            }
        }
        found.persons.sort_by(|a, b| (&a.first.feed, a.first.arrival).cmp(&(&b.first.feed, b.first.arrival)));
        found
    }
}

impl DiskStore {
    pub(super) fn read_referring(
        &self,
        member: &Member,
        id: Uuid,
        how: Refers,
        after: u64,
        max: usize,
    ) -> Result<Vec<Location>, ReadError> {
        // Read before the view is: what moves from here to there meanwhile is found twice, never not at all.
        let pending: Vec<Referrer> = {
            let state = self.shared().state.read();
            let newer = pending(&state, member, Role::Other(how)).filter(|(to, at)| *to == id && at.arrival > after);
            newer.map(|(_, at)| at).collect()
        };
        let mut found = self.shared().view().referring(member, id, how, after, max)?;
        found.extend(pending);
        found.sort_unstable();
        found.dedup();
        found.truncate(max);
        let state = self.shared().state.read();
        let location =
            |at: Referrer| Ok(Location { feed: feed_of(&state, at.feed)?, index: at.index, arrival: at.arrival });
        found.into_iter().map(location).collect()
    }

    pub(super) fn read_succeeded(&self, member: &Member, ids: &[Uuid]) -> Result<Vec<bool>, ReadError> {
        let (wanted, mut found): (BTreeSet<Uuid>, BTreeSet<Uuid>) = {
            let state = self.shared().state.read();
            let Some(largest) = state.succeeded.get(member) else { return Ok(vec![false; ids.len()]) };
            let wanted: BTreeSet<Uuid> = ids.iter().copied().filter(|id| id <= largest).collect();
            if wanted.is_empty() {
                return Ok(vec![false; ids.len()]);
            }
            let pending = pending(&state, member, Role::Other(Refers::Succeeds)).map(|(to, _)| to);
            let found = pending.filter(|id| wanted.contains(id)).collect();
            (wanted, found)
        };
        let ascending: Vec<Uuid> = wanted.into_iter().collect();
        found.extend(self.shared().view().succeeded(member, &ascending)?);
        Ok(ids.iter().map(|id| found.contains(id)).collect())
    }

    pub(super) fn read_answers(&self, member: &Member, id: Uuid, persons_max: usize) -> Result<Answers, ReadError> {
        let pending: Vec<(Person, Referrer)> = {
            let state = self.shared().state.read();
            let answers = state.pending_references.iter().filter_map(|(_, (of, to, role), at)| match role {
                Role::Answer(person) if of == member && *to == id => Some((*person, *at)),
                _ => None,
            });
            answers.collect()
        };
        let (held, whole) = self.shared().view().answers(member, id, PERSONS_SCANNED_MAX)?;
        let mut all: BTreeMap<(FeedNumber, Person), Answer> =
            held.into_iter().map(|(feed, person, answer)| ((feed, person), answer)).collect();
        for (person, at) in pending {
            let answer = answers::add(all.get(&(at.feed, person)).copied(), &at);
            all.insert((at.feed, person), answer);
        }
        let state = self.shared().state.read();
        let named = |((feed, person), answer)| Ok(((feed_of(&state, feed)?, person), answer));
        let named: Vec<_> = all.into_iter().map(named).collect::<Result<_, ReadError>>()?;
        Ok(Answers::of(named.into_iter(), persons_max, whole))
    }
}

/// What refers in one way to bulletins of a member and has not come to the view yet.
fn pending<'a>(state: &'a State, member: &'a Member, role: Role) -> impl Iterator<Item = (Uuid, Referrer)> + 'a {
    let all = state.pending_references.iter();
    all.filter(move |(_, (of, _, how), _)| of == member && *how == role).map(|(_, (_, id, _), at)| (*id, *at))
}

fn feed_of(state: &State, feed: FeedNumber) -> Result<FeedId, ReadError> {
    state.book(feed).map(|book| book.feed.clone()).ok_or_else(|| dangling("feed"))
}
