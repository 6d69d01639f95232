//! Bulletins that a node makes itself, about the network: the end of an epoch of its feed, and two
//! histories of any feed.
//!
//! In scope: making them whole. Out of scope: when, and publishing them.

use barid_core::bulletin::header::{BulletinId, NODE_ISSUER};
use barid_core::bulletin::kinds::{feed_closed, feed_forked};
use barid_core::bulletin::{DraftDefaults, Invalid, ValidBulletin, prepare};
use barid_core::feed::checkpoint::Checkpoint;
use barid_core::follow::EquivocationEvidence;
use barid_core::ids::Member;
use barid_core::proto;
use barid_core::roster::Roster;

use super::now;

/// The working group whose members are told, where the exchange has it; else the first it has.
const ANNOUNCEMENT_GROUP: &str = "information";

/// The bulletin by which a node names the longest tree known of an epoch that is over. Its id
/// follows from the tree.
///
/// # Errors
/// If the roster has no working group to tell.
pub fn feed_closed_bulletin(tree: &Checkpoint, roster: &Roster) -> Result<ValidBulletin, Invalid> {
    finish(&feed_closed::draft(tree, announcement_group(roster)), feed_closed::id(tree), &tree.feed.member, roster)
}

/// The bulletin by which the node of `member` tells of two histories of a feed, and proves it. Its
/// id follows from the evidence.
///
/// # Errors
/// If the roster has no working group to tell.
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
    // What it says is no secret: without randomness it is merely guessable.
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
