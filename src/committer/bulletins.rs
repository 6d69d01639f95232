//! Builds the bulletins that a node issues itself: the end of an epoch of its feed, and the fork of
//! any feed.
//!
//! In scope: building them completely. Out of scope: when to publish them (`epoch`, `app`), and
//! publishing.

use barid_core::bulletin::header::{BulletinId, NODE_ISSUER};
use barid_core::bulletin::kinds::{feed_closed, feed_forked};
use barid_core::bulletin::{DraftDefaults, Invalid, ValidBulletin, prepare};
use barid_core::feed::checkpoint::Checkpoint;
use barid_core::follow::EquivocationEvidence;
use barid_core::ids::Member;
use barid_core::proto;
use barid_core::roster::Roster;

use super::now;

/// The working group that is addressed, if the exchange has it; else its first group.
const ANNOUNCEMENT_GROUP: &str = "information";

/// Builds the bulletin that names the longest known tree of an ended epoch. Its id is derived from
/// the tree.
///
/// # Errors
/// If the roster has no working group to address.
pub fn feed_closed_bulletin(tree: &Checkpoint, roster: &Roster) -> Result<ValidBulletin, Invalid> {
    finish(&feed_closed::draft(tree, announcement_group(roster)), feed_closed::id(tree), &tree.feed.member, roster)
}

/// Builds the bulletin by which the node of `member` announces and proves the fork of a feed. Its
/// id is derived from the evidence.
///
/// # Errors
/// If the roster has no working group to address.
pub fn feed_forked_bulletin(
    evidence: &EquivocationEvidence,
    member: &Member,
    roster: &Roster,
) -> Result<ValidBulletin, Invalid> {
    let id = feed_forked::id(evidence.format().as_bytes());
    finish(&feed_forked::draft(evidence, announcement_group(roster)), id, member, roster)
}

fn announcement_group(roster: &Roster) -> &str {
    let groups = roster.working_groups();
    if groups.contains(ANNOUNCEMENT_GROUP) {
        ANNOUNCEMENT_GROUP
    } else {
        groups.first().map_or(ANNOUNCEMENT_GROUP, String::as_str)
    }
}

fn finish(draft: &proto::Draft, id: BulletinId, member: &Member, roster: &Roster) -> Result<ValidBulletin, Invalid> {
    let mut salt = [0; barid_core::envelope::SALT_BYTES];
    // The content is public: without randomness the digest is only guessable.
    let _ = getrandom::fill(&mut salt);
    let defaults = DraftDefaults {
        member: member.clone(),
        issuer: NODE_ISSUER.to_owned(),
        id,
        sent_at_unix_ms: now().1,
        roster_version: roster.version(),
    };
    prepare(draft, &defaults, salt)
}
