//! To whom at home an entry may be given, by its header and the rosters held.
//!
//! In scope: the audience as the receiver applies it: by the roster of the header's version only. Out of scope: roles, topics and
//! cursors of subscribers, and what peers may read ([`crate::serve::may_disclose`]).

use crate::bulletin::audience::{agencies_may_read, may_read};
use crate::ids::Member;
use crate::proto;
use crate::roster::RosterChain;

/// Which of this member's subscribers may be given an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Focal points and agencies.
    Everyone,
    /// Focal points only: RED and AMBER+STRICT.
    FocalPoints,
    /// Nobody, until this roster version has been fetched.
    PendingRoster {
        /// The version to fetch.
        roster_version: u64,
    },
    /// Nobody.
    Never(NeverDelivered),
}

/// Why an entry is given to nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeverDelivered {
    /// Its header cannot be decoded.
    Undecodable,
    /// Its header names another member than the feed's owner.
    Misdirected,
    /// Its format or handling is not understood by this version.
    NotUnderstood,
    /// We are not in its audience.
    Excluded,
}

impl Delivery {
    /// Whether focal points may be given it.
    #[must_use]
    pub fn to_focal_points(self) -> bool {
        matches!(self, Self::Everyone | Self::FocalPoints)
    }

    /// Whether agencies may be given it.
    #[must_use]
    pub fn to_agencies(self) -> bool {
        self == Self::Everyone
    }
}

/// Who of `me`'s subscribers may be given an entry of `owner`'s feed whose content is held. `header` is `None` where it cannot be
/// decoded.
#[must_use]
pub fn delivery(owner: &Member, header: Option<&proto::Header>, me: &Member, rosters: &RosterChain) -> Delivery {
    let Some(header) = header else { return Delivery::Never(NeverDelivered::Undecodable) };
    if header.member != owner.as_str() {
        return Delivery::Never(NeverDelivered::Misdirected);
    }
    match eligibility(header, me, rosters) {
        Eligibility::Reader | Eligibility::JoinedLater if agencies_may_read(header) => Delivery::Everyone,
        Eligibility::Reader | Eligibility::JoinedLater => Delivery::FocalPoints,
        Eligibility::NewerRoster { version } => Delivery::PendingRoster { roster_version: version },
        Eligibility::NotUnderstood => Delivery::Never(NeverDelivered::NotUnderstood),
        Eligibility::Excluded => Delivery::Never(NeverDelivered::Excluded),
    }
}

/// How a member stands to a header, by the roster of its version.
pub(super) enum Eligibility {
    /// In the audience.
    Reader,
    /// Not in the audience by any roster that counts.
    Excluded,
    /// Not in the audience by the roster of its version, or that version is older than all held; but by the newest: it joined the exchange
    /// or the working group later. The owner may hand it on.
    JoinedLater,
    /// An empty audience, because this version does not understand who is in it.
    NotUnderstood,
    /// The roster that decides is not held yet.
    NewerRoster {
        /// Its version.
        version: u64,
    },
}

pub(super) fn eligibility(header: &proto::Header, me: &Member, rosters: &RosterChain) -> Eligibility {
    let (version, newest) = (header.roster_version, rosters.newest());
    let then = rosters.at(version);
    if then.is_some_and(|then| may_read(header, me, then)) {
        return Eligibility::Reader;
    }
    // A header that is understood always has its own member in its audience.
    if !header.member.parse().is_ok_and(|owner| may_read(header, &owner, newest)) {
        return Eligibility::NotUnderstood;
    }
    match then {
        None if version > newest.version() => Eligibility::NewerRoster { version },
        // Versions count from 1.
        _ if version == 0 || !may_read(header, me, newest) => Eligibility::Excluded,
        _ => Eligibility::JoinedLater,
    }
}
