//! Custody notes by way of a member that is linked to both sides: an owner sees who has its bulletins although a line is down.
//!
//! In scope: whom an owner asks and when again, what a relay passes on, what a holder answers. Out of scope: verifying notes (`answers`), signing
//! them (the committer), and which entries may be spoken of before whom (`core::provide::readable_by_both`).
//!
//! A custody note tells who may read what, and that is nobody's business but the owner's. So what passes a relay speaks only of entries that
//! the relay may read itself; of the others the holder speaks when the line is back. It is asked for, not sent: an owner that has a line to
//! everybody causes no traffic, and a relay keeps nothing.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use barid_core::bulletin::audience::Directory;
use barid_core::names::{FeedId, Member};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::provide::readable_by_both;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::answers::Signed;
use super::outbox::Outbox;
use super::{Shared, backoff};
use crate::store::{Content, ReadError};

/// How often it is looked who has reached entries without a word of its custody, while a line is down.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Shortest and longest pause before relays are asked again about one holder that did not answer.
const ASK_BACKOFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// A relay passes on so much between two members: what comes sooner is passed over, and asked for again.
const PASS_EVERY: Duration = Duration::from_millis(250);
/// Notes in one answer, and bytes of them.
const NOTES_MAX: usize = 64;
const NOTES_BYTES_MAX: usize = 64 << 10;
/// Entries, and bytes of envelopes, that are looked at for one answer.
const LOOKED_AT_MAX: (usize, usize) = (1_024, 1 << 20);

// The owner.

/// How far each holder without a link has answered by way of each relay, and when one is asked about it again.
#[derive(Default)]
pub(crate) struct Ways {
    by_holder: Mutex<BTreeMap<Member, Way>>,
    answered: Notify,
}

#[derive(Default)]
struct Way {
    /// By relay: one may pass on less than another, or nothing.
    through: BTreeMap<Member, u64>,
    attempt: u32,
    due: Option<Instant>,
}

impl Ways {
    /// Which relay to ask about `holder`, whose notes reach to `spoken` and whose cosignature to `cosigned`, and from where; `None`: none now.
    fn next(
        &self,
        holder: &Member,
        relays: &[Member],
        spoken: u64,
        cosigned: u64,
        now: Instant,
    ) -> Option<(Member, u64)> {
        let mut ways = self.by_holder.lock();
        let way = ways.entry(holder.clone()).or_default();
        if way.due.is_some_and(|due| due > now) {
            return None;
        }
        let from = |relay: &Member| way.through.get(relay).copied().unwrap_or(0).max(spoken);
        let behind: Vec<&Member> = relays.iter().filter(|relay| from(relay) < cosigned).collect();
        let relay = behind.get(way.attempt as usize % behind.len().max(1))?;
        let next = ((*relay).clone(), from(relay));
        way.due = Some(now + backoff(ASK_BACKOFF, way.attempt));
        way.attempt = way.attempt.saturating_add(1);
        Some(next)
    }

    /// What `holder` said by way of `relay` of entries before `through` is kept.
    pub(crate) fn answered(&self, holder: &Member, relay: &Member, through: u64) {
        let mut ways = self.by_holder.lock();
        let way = ways.entry(holder.clone()).or_default();
        let before = way.through.entry(relay.clone()).or_default();
        if through > *before {
            *before = through;
            (way.attempt, way.due) = (0, None);
            self.answered.notify_one();
        }
    }
}

/// Asks relays, one after the other, for the custody notes of those that hold our entries and have no link to us. Never ends.
pub(crate) async fn ask(shared: Arc<Shared>) {
    let mut links = shared.peers.watch();
    loop {
        links.mark_unchanged();
        let (away, relays) = members(&shared);
        if away.is_empty() || relays.is_empty() {
            if links.changed().await.is_err() {
                return;
            }
            continue;
        }
        let looking = Arc::clone(&shared);
        let asked = tokio::task::spawn_blocking(move || wanted(&looking, &away, &relays)).await;
        match asked {
            Ok(Ok(wanted)) => {
                for (relay, holder, from) in wanted {
                    let (feed, holder) = (shared.own_feed().to_string(), holder.to_string());
                    let request = proto::RelayedCustodyRequest { feed, holder, from };
                    shared.peers.tell(&relay, Frame::RelayedCustodyRequest(request));
                }
            }
            Ok(Err(error)) => tracing::error!(%error, "who holds this member's entries cannot be read"),
            // A panic, which has been reported.
            Err(_) => return,
        }
        // What is left is asked for as soon as a relay passes it on.
        tokio::time::sleep(PASS_EVERY + PASS_EVERY / 4).await;
        let _ = tokio::time::timeout(LOOK_EVERY, shared.ways.answered.notified()).await;
    }
}

/// The members without a link, and those with one.
fn members(shared: &Shared) -> (Vec<Member>, Vec<Member>) {
    let rosters = shared.options.rosters.load();
    let others = rosters.newest().members().filter(|code| **code != shared.me).cloned();
    others.partition(|code| !shared.peers.linked(code))
}

/// Which relay to ask now, about which holder, and from which index on. Blocks.
fn wanted(shared: &Shared, away: &[Member], relays: &[Member]) -> Result<Vec<(Member, Member, u64)>, ReadError> {
    let (store, feed) = (shared.store(), shared.own_feed());
    let cosigned: BTreeMap<Member, u64> =
        store.cosigned_newest(feed)?.into_iter().map(|note| (note.cosigner, note.size)).collect();
    let spoken: BTreeMap<Member, u64> =
        store.custody_newest(feed)?.into_iter().map(|note| (note.holder, note.range.end)).collect();
    let size = |sizes: &BTreeMap<Member, u64>, member: &Member| sizes.get(member).copied().unwrap_or(0);
    let now = Instant::now();
    let next = |member: &Member| {
        let (relay, from) = shared.ways.next(member, relays, size(&spoken, member), size(&cosigned, member), now)?;
        Some((relay, member.clone(), from))
    };
    Ok(away.iter().filter_map(next).collect())
}

// Relay and holder.

/// One link's part in it.
pub(crate) struct Passing {
    /// One answer is made at a time.
    answering: Arc<Semaphore>,
    /// When something was last passed on to a member.
    passed: BTreeMap<Member, Instant>,
}

impl Passing {
    pub(crate) fn new() -> Self {
        Self { answering: Arc::new(Semaphore::new(1)), passed: BTreeMap::new() }
    }

    /// Takes a request of `peer`: an owner's, to be passed on, or one that a relay passes on, to be answered. What is not as it must be is said.
    pub(crate) fn requested(
        &mut self,
        shared: &Arc<Shared>,
        peer: &Member,
        outbox: &Arc<Outbox>,
        request: proto::RelayedCustodyRequest,
    ) -> Result<(), &'static str> {
        let feed: FeedId = request.feed.parse().map_err(|_| "the feed's name")?;
        let holder: Member = request.holder.parse().map_err(|_| "the holder's code")?;
        if holder == shared.me {
            if feed.member != *peer {
                self.answer(shared, peer, outbox, feed, request.from);
            }
        } else if feed.member == *peer && holder != *peer {
            self.pass(shared, &holder, Frame::RelayedCustodyRequest(request));
        } else {
            return Err("a feed of the sender");
        }
        Ok(())
    }

    /// Takes notes of `peer`: a holder's, to be passed on, or those that a relay passes on to their owner, to be verified.
    pub(crate) fn said(
        &mut self,
        shared: &Shared,
        peer: &Member,
        message: proto::RelayedCustody,
    ) -> Result<Option<Signed>, &'static str> {
        let feed: FeedId = message.feed.parse().map_err(|_| "the feed's name")?;
        let holder: Member = message.holder.parse().map_err(|_| "the holder's code")?;
        if message.notes.len() > NOTES_MAX || message.notes.iter().map(Bytes::len).sum::<usize>() > NOTES_BYTES_MAX {
            return Err("so many custody notes in one frame");
        }
        if feed == *shared.own_feed() {
            return Ok(Some(Signed::RelayedCustody { holder, notes: message.notes, through: message.through }));
        }
        if holder != *peer {
            return Err("the sender as the holder");
        }
        self.pass(shared, &feed.member, Frame::RelayedCustody(message));
        Ok(None)
    }

    /// Passes something on to a member, if it is linked. Neither side can fill the other's line by it.
    fn pass(&mut self, shared: &Shared, to: &Member, frame: Frame) {
        let now = Instant::now();
        let soon = self.passed.get(to).is_some_and(|last| now.duration_since(*last) < PASS_EVERY);
        if !soon && shared.peers.linked(to) {
            self.passed.insert(to.clone(), now);
            shared.peers.tell(to, frame);
        }
    }

    fn answer(&self, shared: &Arc<Shared>, relay: &Member, outbox: &Arc<Outbox>, feed: FeedId, from: u64) {
        let Ok(turn) = Arc::clone(&self.answering).try_acquire_owned() else { return };
        let (shared, relay, outbox) = (Arc::clone(shared), relay.clone(), Arc::clone(outbox));
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            match spoken(&shared, &relay, &feed, from) {
                Ok(Some((notes, through))) => {
                    let (feed, holder) = (feed.to_string(), shared.me.to_string());
                    outbox.push(Frame::RelayedCustody(proto::RelayedCustody { feed, holder, notes, through }));
                }
                Ok(None) => {}
                Err(error) => tracing::error!(%feed, %error, "what is held of a feed cannot be read for its owner"),
            }
        });
    }
}

/// What this node says before `relay` of a feed from an index on, and up to where it has looked; `None`: nothing. Blocks.
fn spoken(shared: &Shared, relay: &Member, feed: &FeedId, from: u64) -> Result<Option<(Vec<Bytes>, u64)>, ReadError> {
    let store = shared.store();
    let entries = store.entries(feed, from, LOOKED_AT_MAX.0, LOOKED_AT_MAX.1)?;
    let Some(last) = entries.last() else { return Ok(None) };
    let end = last.index + 1;
    let rosters = shared.options.rosters.load();
    let held = entries.iter().map(|entry| match &entry.content {
        Content::Disclosed { header: Some(header), .. } => (entry.index, Some(&**header)),
        _ => (entry.index, None),
    });
    let mut ranges: Vec<Range<u64>> = readable_by_both(held, relay, &rosters);
    let through = ranges.get(NOTES_MAX).map_or(end, |next| next.start);
    ranges.truncate(NOTES_MAX);
    Ok(shared.options.committer.custody_again(feed, &ranges).map(|notes| (notes, through)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relays_are_asked_in_turn_each_as_far_as_it_has_not_answered() {
        let member = |code: &str| -> Member { code.parse().expect("a member") };
        let (ways, tn, relays) = (Ways::default(), member("tn"), [member("ly"), member("ma")]);
        let now = Instant::now();
        let next = |spoken, cosigned, now| ways.next(&tn, &relays, spoken, cosigned, now);
        assert_eq!(next(5, 5, now), None, "its notes reach as far as its cosignature");
        assert_eq!(next(5, 8, now), Some((member("ly"), 5)));
        assert_eq!(next(5, 8, now), None);
        let later = now + ASK_BACKOFF.0;
        assert_eq!(next(5, 8, later), Some((member("ma"), 5)), "the first one said nothing");
        ways.answered(&tn, &relays[0], 7);
        assert_eq!(next(5, 8, later), Some((member("ly"), 7)), "it answered in part: the rest at once");
        ways.answered(&tn, &relays[0], 8);
        assert_eq!(
            next(5, 8, later),
            Some((member("ma"), 5)),
            "another one may pass on more, whatever the first one says"
        );
        ways.answered(&tn, &relays[1], 8);
        assert_eq!(next(5, 8, later + ASK_BACKOFF.1), None);
        assert_eq!(next(9, 12, later + ASK_BACKOFF.1), Some((member("ly"), 9)), "a line has been back meanwhile");
        assert_eq!(ways.next(&tn, &[], 0, 12, later + 2 * ASK_BACKOFF.1), None);
    }
}
