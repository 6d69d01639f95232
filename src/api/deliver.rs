//! Who here is shown what, and with which flags.
//!
//! In scope: roles, working groups and audience for one entry, and the entry as callers see it. Out of scope: what a caller asks for
//! (`filter`).

use barid_core::bulletin::{audience, kinds};
use barid_core::envelope;
use barid_core::follow::{Delivery, delivery};
use barid_core::proto;
use bytes::Bytes;
use uuid::Uuid;

use super::Api;
use super::caller::Caller;
use crate::store::{Content, DamagedEntry, Entry, ReadError};

/// Why an entry is not shown to a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hidden {
    /// Its working group is not one of the caller's.
    WorkingGroup,
    /// RED and AMBER+STRICT are for focal points.
    Agency,
    /// Nobody here may read it, or its content is not held.
    Audience,
    /// Who may read it is not known until this roster version has been fetched.
    NotYet {
        /// The version.
        roster_version: u64,
    },
}

impl Hidden {
    /// Stable word for records.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::WorkingGroup => "WORKING_GROUP",
            Self::Agency => "AGENCY",
            Self::Audience => "AUDIENCE",
            Self::NotYet { .. } => "ROSTER_NOT_FETCHED",
        }
    }
}

impl Api {
    /// Whether a caller may be given an entry.
    pub(super) fn may_deliver(&self, caller: &Caller, entry: &Entry) -> bool {
        self.hidden(caller, entry).is_none()
    }

    /// Why a caller may not be given an entry; `None`: it may.
    pub(super) fn hidden(&self, caller: &Caller, entry: &Entry) -> Option<Hidden> {
        let Content::Disclosed { header: Some(header), .. } = &entry.content else { return Some(Hidden::Audience) };
        if !caller.reads(&header.kind, &header.topic) {
            return Some(Hidden::WorkingGroup);
        }
        match self.given(entry, header) {
            Delivery::Everyone => None,
            Delivery::FocalPoints => (!caller.is_focal_point()).then_some(Hidden::Agency),
            Delivery::NotYet { roster_version } => Some(Hidden::NotYet { roster_version }),
            Delivery::Never(_) => Some(Hidden::Audience),
        }
    }

    /// To whom here an entry with this header may be given.
    pub(super) fn given(&self, entry: &Entry, header: &proto::Header) -> Delivery {
        if entry.feed.member == *self.me() {
            return own_delivery(header);
        }
        delivery(&entry.feed.member, Some(header), self.me(), &self.rosters.load())
    }

    /// An entry as it is shown to callers. Blocks: whether its id is another bulletin's is asked of the store.
    pub(super) fn delivery_of(&self, entry: Entry) -> Result<proto::Delivery, ReadError> {
        let flags = self.flags(&entry)?;
        let Entry { feed, index, digest, content, arrival } = entry;
        let envelope = match content {
            Content::Disclosed { envelope, .. } => envelope,
            Content::Undisclosed(_) => Bytes::new(),
        };
        Ok(proto::Delivery {
            arrival: arrival.unwrap_or(0),
            feed: feed.to_string(),
            index,
            digest: Bytes::copy_from_slice(&digest.0),
            envelope,
            flags,
        })
    }

    fn flags(&self, entry: &Entry) -> Result<Vec<String>, ReadError> {
        let mut flags = Vec::new();
        let Content::Disclosed { envelope, header: Some(header) } = &entry.content else { return Ok(flags) };
        // What this node encoded itself needs no second look.
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

/// A damaged entry as it is shown to callers: that it is there, and nothing of it.
pub(super) fn damaged_of(damaged: DamagedEntry) -> proto::DamagedEntry {
    let (feed, index) = damaged.entry.map(|(feed, index, _)| (feed.to_string(), index)).unwrap_or_default();
    proto::DamagedEntry { arrival: damaged.arrival, feed, index }
}

/// The owner is in the audience of what it published; agencies only see what agencies may.
fn own_delivery(header: &proto::Header) -> Delivery {
    if audience::agencies_may_read(header) { Delivery::Everyone } else { Delivery::FocalPoints }
}
