//! Custody notes by way of a member that is linked to both sides: an owner sees who has its bulletins although a line is down.
//!
//! In scope: whom an owner asks and when again, what a relay passes on, what a holder answers. Out of scope: verifying notes (`note_verifier`), signing
//! them (the committer), and which entries may be spoken of before whom (`core::serve::readable_by_both`).
//!
//! A custody note tells who may read what, and that is nobody's business but the owner's. So what passes a relay speaks only of entries that
//! the relay may read itself; of the others the holder speaks when the line is back. It is asked for, not sent: an owner that has a line to
//! everybody causes no traffic, and a relay keeps nothing.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use barid_core::bulletin::audience::Directory;
use barid_core::ids::{FeedId, Member};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::serve::readable_by_both;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::note_verifier::IncomingNote;
use super::send_queue::SendQueue;
use super::{ExchangeState, backoff};
use crate::store::{Content, ReadError};

/// How often it is looked who has reached entries without a word of its custody, while a line is down.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Shortest and longest pause before relays are asked again about one holder that did not answer.
const REQUEST_BACKOFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// A relay passes on so much between two members: what comes sooner is passed over, and asked for again.
const FORWARD_INTERVAL: Duration = Duration::from_millis(250);
/// Notes in one answer, and bytes of them.
const NOTES_MAX: usize = 64;
const NOTES_BYTES_MAX: usize = 64 << 10;
/// Entries, and bytes of envelopes, that are looked at for one answer.
const SCANNED_MAX: (usize, usize) = (1_024, 1 << 20);

// The owner.

/// How far each holder without a link has answered by way of each relay, and when one is asked about it again.
#[derive(Default)]
pub(crate) struct RelayProgress {
    by_holder: Mutex<BTreeMap<Member, HolderProgress>>,
    progressed: Notify,
}

#[derive(Default)]
struct HolderProgress {
    /// By relay: one may pass on less than another, or nothing.
    scanned_to: BTreeMap<Member, u64>,
    attempt: u32,
    retry_at: Option<Instant>,
}

impl RelayProgress {
    /// Which relay to ask about `holder`, whose notes reach to `attested` and whose cosignature to `cosigned`, and from where; `None`: none now.
    fn next(
        &self,
        holder: &Member,
        relays: &[Member],
        attested: u64,
        cosigned: u64,
        now: Instant,
    ) -> Option<(Member, u64)> {
        let mut relay_progress = self.by_holder.lock();
        let holder_progress = relay_progress.entry(holder.clone()).or_default();
        if holder_progress.retry_at.is_some_and(|retry_at| retry_at > now) {
            return None;
        }
        let from = |relay: &Member| holder_progress.scanned_to.get(relay).copied().unwrap_or(0).max(attested);
        let behind: Vec<&Member> = relays.iter().filter(|relay| from(relay) < cosigned).collect();
        let relay = behind.get(holder_progress.attempt as usize % behind.len().max(1))?;
        let next = ((*relay).clone(), from(relay));
        holder_progress.retry_at = Some(now + backoff(REQUEST_BACKOFF, holder_progress.attempt));
        holder_progress.attempt = holder_progress.attempt.saturating_add(1);
        Some(next)
    }

    /// What `holder` said by way of `relay` of entries before `scanned_to` is kept.
    pub(crate) fn progressed(&self, holder: &Member, relay: &Member, scanned_to: u64) {
        let mut relay_progress = self.by_holder.lock();
        let holder_progress = relay_progress.entry(holder.clone()).or_default();
        let before = holder_progress.scanned_to.entry(relay.clone()).or_default();
        if scanned_to > *before {
            *before = scanned_to;
            (holder_progress.attempt, holder_progress.retry_at) = (0, None);
            self.progressed.notify_one();
        }
    }
}

/// Asks relays, one after the other, for the custody notes of those that hold our entries and have no link to us. Never ends.
pub(crate) async fn request_custody(shared: Arc<ExchangeState>) {
    let mut links = shared.peers.watch();
    loop {
        links.mark_unchanged();
        let (unlinked, relays) = members(&shared);
        if unlinked.is_empty() || relays.is_empty() {
            if links.changed().await.is_err() {
                return;
            }
            continue;
        }
        let planning = Arc::clone(&shared);
        let planned = tokio::task::spawn_blocking(move || requests(&planning, &unlinked, &relays)).await;
        match planned {
            Ok(Ok(requests)) => {
                for (relay, holder, from) in requests {
                    let (feed, holder) = (shared.own_feed().to_string(), holder.to_string());
                    let request = proto::RelayedCustodyRequest { feed, holder, from };
                    shared.peers.send(&relay, Frame::RelayedCustodyRequest(request));
                }
            }
            Ok(Err(error)) => tracing::error!(%error, "who holds this member's entries cannot be read"),
            // A panic, which has been reported.
            Err(_) => return,
        }
        // What is left is asked for as soon as a relay passes it on.
        tokio::time::sleep(FORWARD_INTERVAL + FORWARD_INTERVAL / 4).await;
        let _ = tokio::time::timeout(CHECK_INTERVAL, shared.relay_progress.progressed.notified()).await;
    }
}

/// The members without a link, and those with one.
fn members(shared: &ExchangeState) -> (Vec<Member>, Vec<Member>) {
    let rosters = shared.options.rosters.load();
    let others = rosters.newest().members().filter(|code| **code != shared.me).cloned();
    others.partition(|code| !shared.peers.linked(code))
}

/// Which relay to ask now, about which holder, and from which index on. Blocks.
fn requests(
    shared: &ExchangeState,
    unlinked: &[Member],
    relays: &[Member],
) -> Result<Vec<(Member, Member, u64)>, ReadError> {
    let (store, feed) = (shared.store(), shared.own_feed());
    let cosigned: BTreeMap<Member, u64> =
        store.cosigned_newest(feed)?.into_iter().map(|note| (note.cosigner, note.size)).collect();
    let attested: BTreeMap<Member, u64> =
        store.custody_newest(feed)?.into_iter().map(|note| (note.holder, note.range.end)).collect();
    let size = |sizes: &BTreeMap<Member, u64>, member: &Member| sizes.get(member).copied().unwrap_or(0);
    let now = Instant::now();
    let next = |member: &Member| {
        let (relay, from) =
            shared.relay_progress.next(member, relays, size(&attested, member), size(&cosigned, member), now)?;
        Some((relay, member.clone(), from))
    };
    Ok(unlinked.iter().filter_map(next).collect())
}

// Relay and holder.

/// One link's part in it.
pub(crate) struct CustodyForwarder {
    /// One answer is made at a time.
    response_slot: Arc<Semaphore>,
    /// When something was last passed on to a member.
    forwarded_at: BTreeMap<Member, Instant>,
}

impl CustodyForwarder {
    pub(crate) fn new() -> Self {
        Self { response_slot: Arc::new(Semaphore::new(1)), forwarded_at: BTreeMap::new() }
    }

    /// Takes a request of `peer`: an owner's, to be passed on, or one that a relay passes on, to be answered. What is not as it must be is said.
    pub(crate) fn handle_request(
        &mut self,
        shared: &Arc<ExchangeState>,
        peer: &Member,
        send_queue: &Arc<SendQueue>,
        request: proto::RelayedCustodyRequest,
    ) -> Result<(), &'static str> {
        let feed: FeedId = request.feed.parse().map_err(|_| "the feed's name")?;
        let holder: Member = request.holder.parse().map_err(|_| "the holder's code")?;
        if holder == shared.me {
            if feed.member != *peer {
                self.respond(shared, peer, send_queue, feed, request.from);
            }
        } else if feed.member == *peer && holder != *peer {
            self.forward(shared, &holder, Frame::RelayedCustodyRequest(request));
        } else {
            return Err("a feed of the sender");
        }
        Ok(())
    }

    /// Takes notes of `peer`: a holder's, to be passed on, or those that a relay passes on to their owner, to be verified.
    pub(crate) fn handle_notes(
        &mut self,
        shared: &ExchangeState,
        peer: &Member,
        message: proto::RelayedCustody,
    ) -> Result<Option<IncomingNote>, &'static str> {
        let feed: FeedId = message.feed.parse().map_err(|_| "the feed's name")?;
        let holder: Member = message.holder.parse().map_err(|_| "the holder's code")?;
        if message.notes.len() > NOTES_MAX || message.notes.iter().map(Bytes::len).sum::<usize>() > NOTES_BYTES_MAX {
            return Err("so many custody notes in one frame");
        }
        if feed == *shared.own_feed() {
            return Ok(Some(IncomingNote::RelayedCustody {
                holder,
                notes: message.notes,
                scanned_to: message.scanned_to,
            }));
        }
        if holder != *peer {
            return Err("the sender as the holder");
        }
        self.forward(shared, &feed.member, Frame::RelayedCustody(message));
        Ok(None)
    }

    /// Passes something on to a member, if it is linked. Neither side can fill the other's line by it.
    fn forward(&mut self, shared: &ExchangeState, to: &Member, frame: Frame) {
        let now = Instant::now();
        let soon = self.forwarded_at.get(to).is_some_and(|last| now.duration_since(*last) < FORWARD_INTERVAL);
        if !soon && shared.peers.linked(to) {
            self.forwarded_at.insert(to.clone(), now);
            shared.peers.send(to, frame);
        }
    }

    fn respond(
        &self,
        shared: &Arc<ExchangeState>,
        relay: &Member,
        send_queue: &Arc<SendQueue>,
        feed: FeedId,
        from: u64,
    ) {
        let Ok(permit) = Arc::clone(&self.response_slot).try_acquire_owned() else { return };
        let (shared, relay, send_queue) = (Arc::clone(shared), relay.clone(), Arc::clone(send_queue));
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            match custody_for_relay(&shared, &relay, &feed, from) {
                Ok(Some((notes, scanned_to))) => {
                    let (feed, holder) = (feed.to_string(), shared.me.to_string());
                    send_queue.push(Frame::RelayedCustody(proto::RelayedCustody { feed, holder, notes, scanned_to }));
                }
                Ok(None) => {}
                Err(error) => tracing::error!(%feed, %error, "what is held of a feed cannot be read for its owner"),
            }
        });
    }
}

/// What this node says before `relay` of a feed from an index on, and up to where it has looked; `None`: nothing. Blocks.
fn custody_for_relay(
    shared: &ExchangeState,
    relay: &Member,
    feed: &FeedId,
    from: u64,
) -> Result<Option<(Vec<Bytes>, u64)>, ReadError> {
    let store = shared.store();
    let entries = store.entries(feed, from, SCANNED_MAX.0, SCANNED_MAX.1)?;
    let Some(last) = entries.last() else { return Ok(None) };
    let end = last.index + 1;
    let rosters = shared.options.rosters.load();
    let held = entries.iter().map(|entry| match &entry.content {
        Content::Disclosed { header: Some(header), .. } => (entry.index, Some(&**header)),
        _ => (entry.index, None),
    });
    let mut ranges: Vec<Range<u64>> = readable_by_both(held, relay, &rosters);
    let scanned_to = ranges.get(NOTES_MAX).map_or(end, |next| next.start);
    ranges.truncate(NOTES_MAX);
    Ok(shared.options.committer.reissue_custody(feed, &ranges).map(|notes| (notes, scanned_to)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relays_are_asked_in_turn_from_where_each_stopped() {
        let member = |code: &str| -> Member { code.parse().expect("a member") };
        let (relay_progress, tn, relays) = (RelayProgress::default(), member("tn"), [member("ly"), member("ma")]);
        let now = Instant::now();
        let next = |attested, cosigned, now| relay_progress.next(&tn, &relays, attested, cosigned, now);
        assert_eq!(next(5, 5, now), None, "its notes reach as far as its cosignature");
        assert_eq!(next(5, 8, now), Some((member("ly"), 5)));
        assert_eq!(next(5, 8, now), None);
        let later = now + REQUEST_BACKOFF.0;
        assert_eq!(next(5, 8, later), Some((member("ma"), 5)), "the first one said nothing");
        relay_progress.progressed(&tn, &relays[0], 7);
        assert_eq!(next(5, 8, later), Some((member("ly"), 7)), "it answered in part: the rest at once");
        relay_progress.progressed(&tn, &relays[0], 8);
        assert_eq!(
            next(5, 8, later),
            Some((member("ma"), 5)),
            "another one may pass on more, whatever the first one says"
        );
        relay_progress.progressed(&tn, &relays[1], 8);
        assert_eq!(next(5, 8, later + REQUEST_BACKOFF.1), None);
        assert_eq!(next(9, 12, later + REQUEST_BACKOFF.1), Some((member("ly"), 9)), "a line has been back meanwhile");
        assert_eq!(relay_progress.next(&tn, &[], 0, 12, later + 2 * REQUEST_BACKOFF.1), None);
    }
}
