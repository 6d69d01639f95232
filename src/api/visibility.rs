//! Visibility: which entries a caller may receive, and with which flags.
//!
//! In scope: roles, working groups and audience of one entry, and the entry as it is delivered. Out
//! of scope: what a caller asks for (`filter`).

use std::cell::Cell;

use barid_core::bulletin::{BulletinId, audience, kinds};
use barid_core::envelope;
use barid_core::follow::{Delivery, delivery};
use barid_core::ids::Member;
use barid_core::proto;
use barid_core::roster::RosterChain;
use bytes::Bytes;
use tonic::Status;
use uuid::Uuid;

use super::Api;
use super::bulletin_state::Work;
use super::caller::Caller;
use crate::store::{Columns, Content, DamagedEntry, Entry, ReadError};
use crate::telemetry::alarms::Alarm;

/// Why an entry is not visible to a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotVisible {
    /// Its working group is not one of the caller's.
    WorkingGroup,
    /// It is RED or AMBER+STRICT, which only focal points read.
    Agency,
    /// This member is not in its audience, or its content is missing here.
    Audience,
    /// Its audience is unknown until its roster version has been fetched.
    PendingRoster,
}

impl NotVisible {
    /// Stable code for audit records.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::WorkingGroup => "WORKING_GROUP",
            Self::Agency => "AGENCY",
            Self::Audience => "AUDIENCE",
            Self::PendingRoster => "ROSTER_NOT_FETCHED",
        }
    }
}

impl Api {
    /// Returns whether an entry is visible to a caller.
    pub(super) fn may_deliver(&self, caller: &Caller, entry: &Entry) -> bool {
        self.not_visible(caller, entry).is_none()
    }

    /// Returns why an entry is not visible to a caller; `None` if it is visible.
    pub(super) fn not_visible(&self, caller: &Caller, entry: &Entry) -> Option<NotVisible> {
        self.not_visible_by(caller, entry, &self.rosters.load())
    }

    /// Like [`Self::not_visible`], by the given rosters.
    pub(super) fn not_visible_by(&self, caller: &Caller, entry: &Entry, rosters: &RosterChain) -> Option<NotVisible> {
        let Content::Disclosed { header: Some(header), .. } = &entry.content else { return Some(NotVisible::Audience) };
        if !caller.reads(&header.kind, &header.topic) {
            return Some(NotVisible::WorkingGroup);
        }
        match self.local_audience_by(entry, header, rosters) {
            Delivery::Everyone => None,
            Delivery::FocalPoints => (!caller.is_focal_point()).then_some(NotVisible::Agency),
            Delivery::PendingRoster { roster_version: version } => {
                // Entries received before the node started raise this alarm too.
                self.alarms.raise_uncounted(Alarm::RosterMissing { member: entry.feed.member.clone(), version });
                Some(NotVisible::PendingRoster)
            }
            Delivery::Never(_) => Some(NotVisible::Audience),
        }
    }

    /// Returns who at this member may receive an entry with this header.
    pub(super) fn local_audience(&self, entry: &Entry, header: &proto::Header) -> Delivery {
        self.local_audience_by(entry, header, &self.rosters.load())
    }

    fn local_audience_by(&self, entry: &Entry, header: &proto::Header, rosters: &RosterChain) -> Delivery {
        if entry.feed.member == *self.me() {
            return own_delivery(header);
        }
        delivery(&entry.feed.member, Some(header), self.me(), rosters)
    }

    /// Finds a bulletin by member and id, for a caller to whom `not_visible` returns `None`. An
    /// entry that is not visible is recorded and treated as missing. So is a damaged entry that the
    /// caller may not know of.
    pub(super) async fn find_for(
        &self,
        caller: &Caller,
        method: &'static str,
        (member, id): (&Member, BulletinId),
        not_visible: impl Fn(&Entry) -> Option<&'static str>,
    ) -> Result<Option<Entry>, Status> {
        let (owner, reader) = (member.clone(), caller.clone());
        let found = self.reading(move |api| {
            let Some(location) = api.store().find(&owner, id.uuid())? else { return Ok(None) };
            // By offset, not by index: a priority entry may be stored before the entries that
            // precede it in its feed.
            match api.store().entries_from(location.offset, 1, usize::MAX) {
                Err(ReadError::DamagedEntry(_)) if !api.may_know_of(&reader, location.offset) => Ok(None),
                read => Ok(read?.into_iter().next()),
            }
        });
        let Some(entry) = found.await? else { return Ok(None) };
        match not_visible(&entry) {
            Some(reason) => {
                self.record_denied_bulletin(&caller.path, method, reason, (member, id));
                Ok(None)
            }
            None => Ok(Some(entry)),
        }
    }

    /// Returns whether a caller may know of a damaged entry at an offset, by its columns in the
    /// index. The index has no TLP label, so agencies may not.
    fn may_know_of(&self, caller: &Caller, offset: u64) -> bool {
        let known = Cell::new(false);
        let predicate = |columns: &Columns| {
            let reads = caller.is_focal_point() && caller.reads(&columns.kind, &columns.topic);
            known.set(reads || caller.audits(&columns.topic));
            false
        };
        // The predicate rejects every entry, so no entry is read.
        _ = self.store().history(offset + 1, 1, 1, &predicate);
        known.get()
    }

    /// Builds deliveries with their current states for a caller. Blocks: it looks up references to
    /// each entry, its own references and duplicate ids in the store.
    pub(super) fn deliveries(
        &self,
        caller: &Caller,
        entries: Vec<Entry>,
        work: &mut Work,
    ) -> Result<Vec<proto::Delivery>, ReadError> {
        let states = self.states(&entries, work)?;
        let to_delivery = |(entry, state)| self.delivery(caller, entry, state, work);
        entries.into_iter().zip(states).map(to_delivery).collect()
    }

    fn delivery(
        &self,
        caller: &Caller,
        entry: Entry,
        state: proto::State,
        work: &mut Work,
    ) -> Result<proto::Delivery, ReadError> {
        let flags = self.flags(&entry)?;
        let referenced = self.referenced(caller, &entry, work)?;
        let Entry { feed, index, digest, content, offset } = entry;
        let envelope = match content {
            Content::Disclosed { envelope, .. } => envelope,
            Content::Undisclosed(_) => Bytes::new(),
        };
        Ok(proto::Delivery {
            offset: offset.unwrap_or(0),
            feed: feed.to_string(),
            index,
            digest: Bytes::copy_from_slice(&digest.0),
            envelope,
            flags,
            state: Some(state),
            referenced,
        })
    }

    fn flags(&self, entry: &Entry) -> Result<Vec<String>, ReadError> {
        let mut flags = Vec::new();
        let Content::Disclosed { envelope, header: Some(header) } = &entry.content else { return Ok(flags) };
        // This node encoded its own entries, so their bodies decode.
        if entry.feed.member != *self.me() && envelope::body_of(envelope).is_err() {
            flags.push("undecodable-body".to_owned());
        }
        if kinds::find(&header.kind).is_none() {
            flags.push("unknown-kind".to_owned());
        }
        if let Ok(id) = Uuid::try_parse(&header.id)
            && let Some(first) = self.store().find(&entry.feed.member, id)?
            && (first.index, &first.feed) != (entry.index, &entry.feed)
        {
            flags.push("duplicate-id".to_owned());
        }
        Ok(flags)
    }
}

/// Builds the event for a damaged entry: its place, without any content.
pub(super) fn damaged_of(damaged: DamagedEntry) -> proto::DamagedEntry {
    let (feed, index) = damaged.entry.map(|(feed, index, _)| (feed.to_string(), index)).unwrap_or_default();
    proto::DamagedEntry { offset: damaged.offset, feed, index }
}

/// A publisher is in the audience of its own bulletins. Agencies still read only what agencies may.
fn own_delivery(header: &proto::Header) -> Delivery {
    if audience::agencies_may_read(header) { Delivery::Everyone } else { Delivery::FocalPoints }
}
