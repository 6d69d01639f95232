//! Disk space of a node: which received content is committed, and the model's rules about it.
//!
//! In scope: a disk of bounded size, core's tiers and shares as the node's committer applies them,
//! and what must hold after each commit ([`Seen`], [`World::check_room`]), derived from byte counts
//! alone. Out of scope: members that test the limits (`floods`).

use std::collections::{BTreeMap, BTreeSet};

use barid_core::bulletin::{Priority, header_priority};
use barid_core::follow::VerifiedBatch;
use barid_core::ids::{FeedId, Member};
use barid_core::quota::{ContentSource, SHARE_PERCENT, Shares, Tier, WINDOW_MS, WriteKind};

use crate::Mutation;
use crate::model::Place;
use crate::node::{Committed, Content, Node, Work};
use crate::world::World;

/// A day of the shares, in units of time: short, so that a run covers several.
pub(crate) const DAY: u64 = 400;
/// Preallocation of the log: a tier ends while this much of it is left, so that one commit always
/// fits.
pub(crate) const AHEAD_BYTES: u64 = 16 << 10;
/// Bytes of an entry without its content.
const DIGEST_BYTES: u64 = 32;
/// Bytes that operators add beyond what is missing.
const SPARE_BYTES: u64 = 64 << 10;
/// Urgent Actual entries may exceed a share by one part in this many; a relay has this many shares.
const PRIORITY_PART: u128 = 8;
const RELAY_SHARES: u64 = 2;

/// A disk, and the reserved part of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    pub(crate) disk_bytes: u64,
    pub(crate) reserve_bytes: u64,
}

/// The live state of a node's disk space; unused if the disk is unbounded.
pub(crate) struct Quota {
    pub(crate) tier: Tier,
    pub(crate) shares: Shares,
    pub(crate) seen: Seen,
    /// Peer and feed pairs that are not requested for now.
    pub(crate) barred: BTreeSet<(usize, FeedId)>,
    /// Entries whose content was dropped on arrival.
    pub(crate) left_out: BTreeSet<Place>,
}

impl Default for Quota {
    fn default() -> Self {
        Self {
            tier: Tier::All,
            shares: Shares::new(SHARE_PERCENT),
            seen: Seen::default(),
            barred: BTreeSet::new(),
            left_out: BTreeSet::new(),
        }
    }
}

/// What the model saw members add to a node since it started.
#[derive(Default)]
pub(crate) struct Seen {
    at: u64,
    /// Bytes free above the reserve: the maximum so far, and at the last check.
    most: u64,
    last: u64,
    owners: BTreeMap<Member, Received>,
    senders: BTreeMap<Member, Received>,
}

#[derive(Default)]
struct Received {
    all: u64,
    /// The part that has not decayed yet, times [`DAY`].
    fresh: u128,
}

impl Seen {
    fn look(&mut self, above: u64, now: u64) {
        let passed = u128::from(now - self.at);
        (self.at, self.last, self.most) = (now, above, self.most.max(above));
        for (accounts, shares) in [(&mut self.owners, 1), (&mut self.senders, RELAY_SHARES)] {
            let back = u128::from(share(self.most, shares)) * passed;
            accounts.values_mut().for_each(|received| received.fresh = received.fresh.saturating_sub(back));
        }
    }

    /// Records accepted content. Returns the violation if a member has exceeded its share.
    fn accepted(&mut self, source: ContentSource<'_>, bytes: u64, actual: bool) -> Option<String> {
        let mut fault = None;
        let both = [(&mut self.owners, source.owner, 1), (&mut self.senders, source.sender_member, RELAY_SHARES)];
        for (accounts, member, shares) in both {
            let received = accounts.entry(member.clone()).or_default();
            received.all += bytes;
            received.fresh += u128::from(bytes) * u128::from(DAY);
            let most = u128::from(share(self.most, shares)) * u128::from(DAY);
            let most = if actual { most + most / PRIORITY_PART } else { most };
            if received.fresh > most {
                fault = Some(format!("{member} exceeded its share of the disk"));
            }
        }
        fault
    }

    /// Checks rejected content. Returns the violation if both members were within their shares.
    fn rejected(&self, source: ContentSource<'_>, bytes: u64) -> Option<String> {
        let within = |accounts: &BTreeMap<Member, Received>, member, shares| {
            accounts.get(member).map_or(0, |received| received.all) + bytes <= share(self.last, shares)
        };
        let both = within(&self.owners, source.owner, 1) && within(&self.senders, source.sender_member, RELAY_SHARES);
        both.then(|| format!("content of {} within its share was dropped", source.owner))
    }
}

fn share(room: u64, shares: u64) -> u64 {
    room * u64::from(SHARE_PERCENT) * shares / 100
}

/// Bytes held.
#[derive(Clone, Copy, Default)]
struct Used {
    own: u64,
    /// Content of others.
    content: u64,
    digests: u64,
}

impl Used {
    fn of(node: &Node) -> Self {
        let mut used = Self::default();
        for (feed, _, entry) in crate::check::held(node) {
            let content = match &entry.content {
                Content::Disclosed { envelope, .. } => envelope.len() as u64,
                Content::Undisclosed(_) => 0,
            };
            if feed.member == node.me {
                used.own += content + DIGEST_BYTES;
            } else {
                used.content += content;
                used.digests += DIGEST_BYTES;
            }
        }
        used
    }

    fn all(self) -> u64 {
        self.own + self.content + self.digests
    }
}

/// Returns the tier at this amount of free space.
fn tier_at(free: u64, bound: Bound, before: Tier) -> Tier {
    let mut tier = Tier::at(free, bound.reserve_bytes, before);
    while tier > Tier::Notes && free < tier.leaves_free(bound.reserve_bytes) + AHEAD_BYTES {
        tier = tier.below();
    }
    tier
}

/// Returns the kind of a work item, whether it is about this member's own feeds, and the bytes that
/// it needs.
fn demand(me: &Member, work: &Work) -> (WriteKind, bool, u64) {
    match work {
        Work::Publish(envelope, header, _) => {
            let priority = header.as_deref().and_then(header_priority);
            (WriteKind::Publish(priority), true, envelope.len() as u64 + DIGEST_BYTES)
        }
        Work::Name(envelope, _) => (WriteKind::Publish(None), true, envelope.len() as u64 + DIGEST_BYTES),
        Work::Batch(batch, ..) => {
            let bytes = batch.envelope_bytes() as u64 + DIGEST_BYTES * batch.entries.len() as u64;
            (WriteKind::Append, batch.feed.member == *me, bytes)
        }
        Work::Backfill(backfills, ..) => {
            (WriteKind::Content, backfills.feed.member == *me, backfills.envelope_bytes() as u64)
        }
        Work::PriorityEntry(priority) => {
            let bytes = priority.envelope().map_or(0, |envelope| envelope.len() as u64) + DIGEST_BYTES;
            (WriteKind::Content, priority.feed.member == *me, bytes)
        }
        Work::Roster(_) | Work::Acknowledge(_) | Work::Fork(..) => (WriteKind::Notes, true, 0),
    }
}

impl Node {
    /// Returns the free bytes of a bounded disk.
    pub(crate) fn free(&self) -> Option<(Bound, u64)> {
        self.bound.map(|bound| (bound, bound.disk_bytes.saturating_sub(Used::of(self).all())))
    }

    /// Whether this much content of `owner`'s feeds is admitted over the link of `sender_member`.
    pub(crate) fn admits(
        &mut self,
        (owner, sender_member): (&Member, &Member),
        bytes: usize,
        priority: Option<Priority>,
        mutation: Option<Mutation>,
        done: &mut Committed,
    ) -> bool {
        if self.bound.is_none() || *owner == self.me || bytes == 0 {
            return true;
        }
        let (quota, bytes) = (&mut self.live.quota, bytes as u64);
        let source = ContentSource { me: &self.me, owner, sender_member };
        let charged = match mutation {
            Some(Mutation::RelayForNothing) => ContentSource { sender_member: owner, ..source },
            _ => source,
        };
        let by_relay =
            quota.shares.left(owner, owner, priority == Some(Priority::Actual)).is_some_and(|left| left >= bytes);
        let admits = quota.shares.admit(quota.tier, charged, bytes, priority) || mutation == Some(Mutation::NoShares);
        if admits {
            if sender_member != owner {
                done.reached.push("disk space: content accepted from a relay");
            }
            done.faults.extend(quota.seen.accepted(source, bytes, priority == Some(Priority::Actual)));
        } else if quota.tier == Tier::All {
            done.reached.push(match by_relay {
                true => "disk space: content dropped, the relay's share",
                false => "disk space: content dropped, the owner's share",
            });
            done.faults.extend(quota.seen.rejected(source, bytes));
        } else {
            done.reached.push("disk space: content dropped, low tier");
        }
        admits
    }

    /// Replaces content of a batch that is not admitted by digests. Returns whether there is any.
    pub(crate) fn reduce(
        &mut self,
        batch: &mut VerifiedBatch,
        mutation: Option<Mutation>,
        done: &mut Committed,
    ) -> bool {
        let (feed, feed_sender) = (batch.feed.clone(), batch.feed_sender.clone());
        let members = (&feed.member, &feed_sender);
        let held: BTreeSet<u64> = self.disk.ahead_of(&feed).map(|(index, _)| index).collect();
        let reduced = batch
            .reduce(|index| held.contains(&index), |bytes, class| self.admits(members, bytes, class, mutation, done));
        if reduced.is_empty() {
            return false;
        }
        self.reduced(members, reduced.len() as u64, mutation);
        self.live.quota.left_out.extend(reduced.into_iter().map(|index| (feed.clone(), index)));
        true
    }

    /// Records that this many entries of a batch were committed as digests, or that a backfill was
    /// not admitted.
    pub(crate) fn reduced(
        &mut self,
        (owner, sender_member): (&Member, &Member),
        entries: u64,
        mutation: Option<Mutation>,
    ) {
        let quota = &mut self.live.quota;
        let sender_member = if mutation == Some(Mutation::RelayForNothing) { owner } else { sender_member };
        if quota.tier == Tier::All {
            quota.shares.reduced(owner, sender_member, entries);
        }
    }
}

impl World {
    /// Updates the tier and the shares from the free space.
    pub(crate) fn look_for_room(&mut self, node: usize) {
        let now = self.now;
        let Some((bound, free)) = self.nodes[node].free() else { return };
        let quota = &mut self.nodes[node].live.quota;
        let above = free.saturating_sub(Tier::All.leaves_free(bound.reserve_bytes));
        quota.shares.update(above, now * (WINDOW_MS / DAY));
        quota.seen.look(above, now);
        let before = quota.tier;
        quota.tier = tier_at(free, bound, before);
        if quota.tier < before {
            let tier = quota.tier;
            self.count(tier_label(tier));
        }
    }

    /// Returns the waiting work for which there is space, and rejects the rest.
    pub(crate) fn with_room(&mut self, node: usize, work: Vec<Work>) -> Vec<Work> {
        self.look_for_room(node);
        let Some((bound, mut free)) = self.nodes[node].free() else { return work };
        let mut fits = Vec::with_capacity(work.len());
        for work in work {
            let here = &mut self.nodes[node];
            let (want, own, bytes) = demand(&here.me, &work);
            let late = self.mutation == Some(Mutation::PriorityLikeAny) && matches!(want, WriteKind::Publish(_));
            let needed = if late { Tier::Own } else { Tier::needed(want, own) };
            let tier = here.live.quota.tier;
            if tier >= needed || self.mutation == Some(Mutation::NoTiers) {
                if tier < Tier::Own && matches!(want, WriteKind::Publish(_)) {
                    self.count("disk space: own urgent entry in the reserve");
                }
                free = free.saturating_sub(bytes);
                self.nodes[node].live.quota.tier = tier_at(free, bound, tier);
                fits.push(work);
            } else {
                self.has_no_room(node, &work, want, (bound, free));
                self.reject_work(node, work);
            }
        }
        fits
    }

    /// Checks a rejection: own entries are rejected only where the reserve is used up, and urgent
    /// ones only where nearly all of it is.
    fn has_no_room(&mut self, node: usize, work: &Work, want: WriteKind, (bound, free): (Bound, u64)) {
        self.count("disk space: rejected, low tier");
        let eighths = match want {
            WriteKind::Publish(Some(Priority::Actual)) => 3,
            WriteKind::Publish(_) => 9,
            _ => return,
        };
        let (_, _, bytes) = demand(&self.nodes[node].me, work);
        self.count("disk space: own entry rejected");
        if free > bound.reserve_bytes / 8 * eighths + 8 + AHEAD_BYTES + bytes {
            self.violated(node, "its own entry was rejected, though there is disk space for it");
        }
    }

    /// Checks that the disk is within its bounds, and that entries of others leave the reserve for
    /// own entries.
    pub(crate) fn check_room(&mut self, node: usize) {
        let Some(bound) = self.nodes[node].bound else { return };
        let used = Used::of(&self.nodes[node]);
        let reserve = bound.reserve_bytes;
        for (what, bytes, most) in [
            ("bytes are held, above the size of the disk", used.all(), bound.disk_bytes),
            ("bytes of content of others are held, above their limit", used.content, bound.disk_bytes - 2 * reserve),
            (
                "bytes of others are held, above their limit",
                used.content + used.digests,
                bound.disk_bytes - reserve - reserve / 2,
            ),
        ] {
            if bytes > most {
                self.violated(node, format!("{bytes} {what}, {most}"));
            }
        }
    }

    /// Operators add space for everything that is missing, though the shares do not admit it all at
    /// once.
    pub(crate) fn make_room(&mut self) {
        let mut longest: BTreeMap<&FeedId, &crate::node::Log> = BTreeMap::new();
        for (feed, log) in self.nodes.iter().flat_map(|node| &node.disk.logs) {
            let best = longest.entry(feed).or_insert(log);
            if log.tree.size() > best.tree.size() {
                *best = log;
            }
        }
        let bytes = |digest| self.model.envelopes.get(digest).map_or(0, |envelope| envelope.len() as u64);
        let entries = longest.values().flat_map(|log| &log.entries);
        let all: u64 = entries.map(|entry| bytes(&entry.digest) + DIGEST_BYTES).sum();
        let waiting = self.publishers.len() as u64 * crate::floods::ENTRY_BYTES_MAX;
        for node in &mut self.nodes {
            let used = Used::of(node).all();
            let missing = (all + waiting).saturating_sub(used);
            if let Some(bound) = &mut node.bound {
                let reserved = 2 * bound.reserve_bytes + bound.reserve_bytes / 8 + AHEAD_BYTES;
                let before = bound.disk_bytes;
                bound.disk_bytes = before.max(used + reserved + missing * 5 / 4 + SPARE_BYTES);
                node.live.quota.seen.most += bound.disk_bytes - before;
            }
        }
        self.count("disk space: added by operators");
    }
}

fn tier_label(tier: Tier) -> &'static str {
    match tier {
        Tier::Notes => "disk space: notes only",
        Tier::Priority => "disk space: urgent entries only",
        Tier::Own => "disk space: own entries only",
        Tier::Digests => "disk space: digests only",
        Tier::All => "disk space: unrestricted",
    }
}
