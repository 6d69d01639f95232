//! Decides which local subscribers may receive an entry, by its header and the rosters held.
//!
//! In scope: the audience as the receiver applies it. The roster of the header's version decides; a
//! member that joined later and holds the content is judged by the newest roster. Out of scope:
//! roles, topics and cursors of subscribers, and what peers may read
//! ([`crate::serve::may_disclose`]).

use crate::bulletin::audience::{agencies_may_read, may_read};
use crate::ids::Member;
use crate::proto;
use crate::roster::RosterChain;

/// Which of this member's subscribers may receive an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Focal points and agencies.
    Everyone,
    /// Focal points only: RED and AMBER+STRICT.
    FocalPoints,
    /// No subscriber, until this roster version has been fetched.
    PendingRoster {
        /// The version to fetch.
        roster_version: u64,
    },
    /// No subscriber, ever.
    Never(NeverDelivered),
}

/// Why an entry is never delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeverDelivered {
    /// Its header cannot be decoded.
    Undecodable,
    /// Its header names another member than the feed's owner.
    Misdirected,
    /// This version does not understand its format or handling.
    NotUnderstood,
    /// This member is not in its audience.
    Excluded,
}

impl Delivery {
    /// Returns whether focal points may receive it.
    #[must_use]
    pub fn to_focal_points(self) -> bool {
        matches!(self, Self::Everyone | Self::FocalPoints)
    }

    /// Returns whether agencies may receive it.
    #[must_use]
    pub fn to_agencies(self) -> bool {
        self == Self::Everyone
    }
}

/// Returns which of `me`'s subscribers may receive an entry of `owner`'s feed whose content is
/// held. `header` is `None` if it cannot be decoded.
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

/// Relation of a member to the audience of a header.
pub(super) enum Eligibility {
    /// In the audience under the roster of the header's version.
    Reader,
    /// Not in the audience under any roster that counts.
    Excluded,
    /// In the audience only under the newest roster; the roster of the header's version excludes
    /// the member, or is older than all rosters held. The member joined the exchange or the working
    /// group later. The owner may pass the entry on.
    JoinedLater,
    /// The audience is empty, because this version does not understand it.
    NotUnderstood,
    /// The deciding roster is not held yet.
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
    // The audience of a header that is understood always includes its own member.
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
