//! What became of a bulletin: from what refers to it to its state.
//!
//! In scope: reading the index of references in bounded steps. Out of scope: which updates, cancellations and answers count (`core`).

use barid_core::bulletin::Reference;
use barid_core::bulletin::state::{Position, Standing, Successor, acknowledges};
use barid_core::bulletin::times::Time;
use barid_core::names::Digest;
use barid_core::proto;
use bytes::Bytes;
use uuid::Uuid;

use super::Api;
use super::caller::Caller;
use super::publish::now_unix_ms;
use crate::store::{Content, Entry, Location, ReadError, Refers};

/// Updates and cancellations that are looked at for one bulletin: an hourly update for eleven years. Only its own publisher can make more.
const SUCCESSORS_MAX: usize = 100_000;
/// Answers that are looked at for one bulletin: anyone may send these, and reading them must stay a matter of milliseconds.
const ANSWERS_MAX: usize = 4_000;
/// Acknowledgements that are told: they fit a message beside the largest envelope.
const ACKNOWLEDGED_MAX: usize = 1_000;
/// References read at once.
const STEP: usize = 512;

impl Api {
    /// The state of a bulletin, by what has arrived here and the caller may read. Blocks.
    pub(super) fn state(&self, caller: &Caller, entry: &Entry) -> Result<proto::State, ReadError> {
        let Content::Disclosed { header: Some(original), .. } = &entry.content else {
            return Ok(proto::State::default());
        };
        let mut standing = Standing::default();
        let all_successors = self.referring(entry, &original.id, Refers::Succeeds, SUCCESSORS_MAX, |other| {
            if let Content::Disclosed { envelope, .. } = &other.content
                && self.may_deliver(caller, &other)
            {
                let position = Position { epoch: other.feed.epoch, index: other.index };
                Successor::of(original, &entry.digest, envelope, position).into_iter().for_each(|it| standing.add(it));
            }
            true
        })?;
        let mut acknowledged_by = Vec::new();
        let all_answers = self.referring(entry, &original.id, Refers::Answers, ANSWERS_MAX, |other| {
            if let Content::Disclosed { header: Some(header), .. } = &other.content
                && acknowledges(header, original, &entry.digest)
                && self.may_deliver(caller, &other)
            {
                if acknowledged_by.len() == ACKNOWLEDGED_MAX {
                    return false;
                }
                acknowledged_by.push(reference(&header.member, &header.id, &other.digest));
            }
            true
        })?;
        let expires = original.expires.as_ref().and_then(Time::from_proto);
        let state = standing.state(expires, Time::from_unix_ms(now_unix_ms()));
        Ok(proto::State {
            state: state.word().into(),
            by: state.by().map(Reference::to_proto),
            acknowledged_by,
            partial: !(all_successors && all_answers),
        })
    }

    /// Visits what refers to a bulletin in one way, in the order of arrival, until `visit` has enough or `max` were read; whether that
    /// was all.
    fn referring(
        &self,
        entry: &Entry,
        id: &str,
        how: Refers,
        max: usize,
        mut visit: impl FnMut(Entry) -> bool,
    ) -> Result<bool, ReadError> {
        let Ok(id) = Uuid::try_parse(id) else { return Ok(true) };
        let (mut after, mut left) = (0, max);
        loop {
            let count = STEP.min(left);
            let step = self.store().referring(&entry.feed.member, id, how, after, count + 1)?;
            for Location { arrival, .. } in step.iter().take(count) {
                // By its arrival: its feed may not have reached it.
                let held = self.store().arrivals(*arrival, 1, usize::MAX)?;
                if !held.into_iter().next().is_none_or(&mut visit) {
                    return Ok(false);
                }
                after = *arrival;
            }
            left -= count;
            if step.len() <= count {
                return Ok(true);
            }
            if left == 0 {
                return Ok(false);
            }
        }
    }
}

fn reference(member: &str, id: &str, digest: &Digest) -> proto::Reference {
    proto::Reference { member: member.into(), id: id.into(), digest: Bytes::copy_from_slice(&digest.0) }
}
