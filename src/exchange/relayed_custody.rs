//! Requests custody notes through a member that is linked to both sides, so that an owner learns
//! which members hold its bulletins although a line is down.
//!
//! In scope: which relay an owner asks about which holder and when again, what a relay forwards,
//! how a holder responds. Out of scope: verifying notes (`note_verifier`), signing them
//! (`committer`), and which entries may appear in a note that a relay reads
//! (`core::serve::readable_by_both`).
//!
//! A custody note shows who may read what, which only the owner may learn. A relayed note therefore
//! covers only entries that the relay may read itself; the holder attests the others when the
//! direct link is back. Notes are requested, not pushed: an owner that is linked to every member
//! causes no traffic, and a relay stores nothing.

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

/// How often to look for holders that have cosigned entries without a custody note, while a line is
/// down.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Shortest and longest delay before relays are asked again about a holder that did not respond.
const REQUEST_BACKOFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// Shortest interval between two frames that a relay forwards to one member. Earlier frames are
/// dropped, and requested again.
const FORWARD_INTERVAL: Duration = Duration::from_millis(250);
/// Notes in one response, and bytes of them.
const NOTES_MAX: usize = 64;
const NOTES_BYTES_MAX: usize = 64 << 10;
/// Entries, and bytes of envelopes, that are scanned for one response.
const SCANNED_MAX: (usize, usize) = (1_024, 1 << 20);

// Owner.

/// How far each holder without a link has responded through each relay, and when to ask about it
/// again.
#[derive(Default)]
pub(crate) struct RelayProgress {
    by_holder: Mutex<BTreeMap<Member, HolderProgress>>,
    progressed: Notify,
}

#[derive(Default)]
struct HolderProgress {
    /// By relay: one may forward less than another, or nothing.
    scanned_to: BTreeMap<Member, u64>,
    attempt: u32,
    retry_at: Option<Instant>,
}

impl RelayProgress {
    /// Chooses the relay to ask about `holder`, and from which index. `attested` is where its
    /// custody notes end, `cosigned` the size it has cosigned. `None` if no relay is to be asked
    /// now.
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

    /// Records that the notes of `holder` through `relay` on entries before `scanned_to` are
    /// persisted.
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

/// Requests through relays, one after the other, the custody notes of members that hold our entries
/// and have no link to us. Never ends.
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
            Ok(Err(error)) => tracing::error!(%error, "the holders of this member's entries cannot be read"),
            // A panic, which has been reported.
            Err(_) => return,
        }
        // The rest is requested as soon as a relay forwards it.
        tokio::time::sleep(FORWARD_INTERVAL + FORWARD_INTERVAL / 4).await;
        let _ = tokio::time::timeout(CHECK_INTERVAL, shared.relay_progress.progressed.notified()).await;
    }
}

/// Returns the members without a link, and those with one.
fn members(shared: &ExchangeState) -> (Vec<Member>, Vec<Member>) {
    let rosters = shared.options.rosters.load();
    let others = rosters.newest().members().filter(|code| **code != shared.me).cloned();
    others.partition(|code| !shared.peers.linked(code))
}

/// Returns the requests to send now: relay, holder, and first index. Blocks.
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

/// Forwards and answers requests that arrive over one link.
pub(crate) struct CustodyForwarder {
    /// One response is made at a time.
    response_slot: Arc<Semaphore>,
    /// When a frame was last forwarded to each member.
    forwarded_at: BTreeMap<Member, Instant>,
}

impl CustodyForwarder {
    pub(crate) fn new() -> Self {
        Self { response_slot: Arc::new(Semaphore::new(1)), forwarded_at: BTreeMap::new() }
    }

    /// Handles a request from `peer`: forwards an owner's request to the holder, or answers one
    /// that a relay forwarded.
    ///
    /// # Errors
    /// The malformed part.
    pub(crate) fn handle_request(
        &mut self,
        shared: &Arc<ExchangeState>,
        peer: &Member,
        send_queue: &Arc<SendQueue>,
        request: proto::RelayedCustodyRequest,
    ) -> Result<(), &'static str> {
        let feed: FeedId = request.feed.parse().map_err(|_| "feed name")?;
        let holder: Member = request.holder.parse().map_err(|_| "holder code")?;
        if holder == shared.me {
            if feed.member != *peer {
                self.respond(shared, peer, send_queue, feed, request.from);
            }
        } else if feed.member == *peer && holder != *peer {
            self.forward(shared, &holder, Frame::RelayedCustodyRequest(request));
        } else {
            return Err("feed: not a feed of the sender");
        }
        Ok(())
    }

    /// Handles notes from `peer`: forwards a holder's notes to the owner, or returns those for this
    /// node's feed to be verified.
    ///
    /// # Errors
    /// As [`Self::handle_request`].
    pub(crate) fn handle_notes(
        &mut self,
        shared: &ExchangeState,
        peer: &Member,
        message: proto::RelayedCustody,
    ) -> Result<Option<IncomingNote>, &'static str> {
        let feed: FeedId = message.feed.parse().map_err(|_| "feed name")?;
        let holder: Member = message.holder.parse().map_err(|_| "holder code")?;
        if message.notes.len() > NOTES_MAX || message.notes.iter().map(Bytes::len).sum::<usize>() > NOTES_BYTES_MAX {
            return Err("number of custody notes in one frame");
        }
        if feed == *shared.own_feed() {
            return Ok(Some(IncomingNote::RelayedCustody {
                holder,
                notes: message.notes,
                scanned_to: message.scanned_to,
            }));
        }
        if holder != *peer {
            return Err("holder: not the sender");
        }
        self.forward(shared, &feed.member, Frame::RelayedCustody(message));
        Ok(None)
    }

    /// Forwards a frame to a member, if it is linked and the last one is not too recent: neither
    /// side can fill the other's line this way.
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
                Err(error) => tracing::error!(%feed, %error, "the custody of a feed cannot be read for its owner"),
            }
        });
    }
}

/// Returns the custody notes of a feed from an index on that `relay` may read, and the index up to
/// which it was scanned; `None` if there are none. Blocks.
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
    fn relays_get_requests_in_turn_from_where_each_stopped() {
        let member = |code: &str| -> Member { code.parse().expect("a member") };
        let (relay_progress, tn, relays) = (RelayProgress::default(), member("tn"), [member("ly"), member("ma")]);
        let now = Instant::now();
        let next = |attested, cosigned, now| relay_progress.next(&tn, &relays, attested, cosigned, now);
        assert_eq!(next(5, 5, now), None, "its notes cover all that it has cosigned");
        assert_eq!(next(5, 8, now), Some((member("ly"), 5)));
        assert_eq!(next(5, 8, now), None);
        let later = now + REQUEST_BACKOFF.0;
        assert_eq!(next(5, 8, later), Some((member("ma"), 5)), "the first relay did not respond");
        relay_progress.progressed(&tn, &relays[0], 7);
        assert_eq!(next(5, 8, later), Some((member("ly"), 7)), "it responded in part: the rest is requested at once");
        relay_progress.progressed(&tn, &relays[0], 8);
        assert_eq!(
            next(5, 8, later),
            Some((member("ma"), 5)),
            "another relay may have more, whatever the first one reports"
        );
        relay_progress.progressed(&tn, &relays[1], 8);
        assert_eq!(next(5, 8, later + REQUEST_BACKOFF.1), None);
        assert_eq!(
            next(9, 12, later + REQUEST_BACKOFF.1),
            Some((member("ly"), 9)),
            "a relay has been linked again meanwhile"
        );
        assert_eq!(relay_progress.next(&tn, &[], 0, 12, later + 2 * REQUEST_BACKOFF.1), None);
    }
}
