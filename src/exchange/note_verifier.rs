//! Verifies signed notes from a peer with the roster's keys, and persists them in order:
//! cosignatures, custody notes, checkpoints in tree heads.
//!
//! In scope: verifying them in groups outside the receiver's task, comparing each with the tree
//! held here, detecting equivocation and own feeds that need recovery. Out of scope: creating
//! attestations (`committer::attestations`).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use barid_core::feed::checkpoint::{Checkpoint, SignedCheckpoint};
use barid_core::feed::cosignature::{parse_heartbeat, verify_cosigned, verify_heartbeat};
use barid_core::feed::custody::CustodyNote;
use barid_core::feed::note::Note;
use barid_core::feed::tree::root_at;
use barid_core::ids::{FeedId, Hash, Member};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::roster::Roster;
use bytes::Bytes;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};

use super::cancellation::CancellationToken;
use super::custody::{Accepted, Verdict};
use super::equivocation::{self, Comparison};
use super::send_queue::SendQueue;
use super::{ExchangeState, NOTE_QUEUE_MAX, RESENT_BYTES_MAX};
use crate::committer::{Attestations, Records};
use crate::low_priority;
use crate::store::{Cosigned, CustodyRecord, FeedTree, ForkRecord, ReadError};
use crate::telemetry::AuditEvent;
use crate::telemetry::alarms::Alarm;

/// Groups of up to this many notes are verified at normal priority, since a publisher may wait for
/// them.
const FOREGROUND_NOTES_MAX: usize = 64;

/// A signed statement that is not verified yet.
pub(crate) enum IncomingNote {
    /// A checkpoint cosigned by the peer itself.
    Cosigned(Bytes),
    /// A cosigned checkpoint that the peer relays; its signature lines name the cosigner.
    RelayedCosigned(Bytes),
    /// A custody note on our feed.
    Custody(Bytes),
    /// Relayed custody notes on our feed, and the index up to which their holder has scanned it.
    RelayedCustody { holder: Member, notes: Vec<Bytes>, scanned_to: u64 },
    /// The newest checkpoint that the peer holds of a feed, and the number of entries it holds, if
    /// fewer.
    Checkpoint(Bytes, Option<u64>),
    /// A heartbeat.
    Heartbeat(proto::Cosigned),
    /// How the peer's copy of a feed relates to ours.
    Consistency(Box<proto::Consistency>),
    /// The peer has sent all of its tree heads.
    HeadsComplete,
}

/// Why a note is not persisted.
#[derive(Debug, thiserror::Error)]
enum NoteFault {
    #[error("{0}")]
    Invalid(String),
    #[error("it is about {0}, which is not this node's feed")]
    ForeignFeed(FeedId),
    #[error("the root at size {0} differs from the tree held here")]
    RootMismatch(u64),
    /// After a lost store: the note may be honest, and is sent again on the next link.
    #[error("it covers {0} entries of this node's feed, but fewer are held here")]
    NotHeldLocally(u64),
    #[error("its holder exceeds the rate for notes that add little: {0} bytes")]
    OverBudget(usize),
    #[error("the store cannot be read: {0}")]
    Store(#[from] ReadError),
}

fn invalid(error: impl std::fmt::Display) -> NoteFault {
    NoteFault::Invalid(error.to_string())
}

/// Verifies and persists the notes that the receiver queues, until the receiver ends.
pub(crate) async fn verify_and_persist(
    shared: Arc<ExchangeState>,
    peer: Member,
    mut queue: mpsc::Receiver<IncomingNote>,
    cancellation: CancellationToken,
) {
    let mut group = Vec::new();
    // A note was not persisted. The peer's heads then do not count as received until the next link
    // sends them again.
    let mut missed = false;
    while queue.recv_many(&mut group, NOTE_QUEUE_MAX).await > 0 {
        let notes = std::mem::take(&mut group);
        let verifier = Verifier {
            shared: Arc::clone(&shared),
            peer: peer.clone(),
            found: RefCell::default(),
            scanned: RefCell::default(),
            accepted: Accepted::default(),
            cancellation: cancellation.clone(),
            roster: shared.options.rosters.load().newest_shared(),
        };
        let many = notes.len() > FOREGROUND_NOTES_MAX;
        let verify = move || verifier.verify_all(notes);
        // Ended only by a panic, which has been reported.
        let verified = if many { low_priority::run(verify).await } else { tokio::task::spawn_blocking(verify).await };
        let Ok(Verified { new_records, scanned, heads_received }) = verified else {
            missed = true;
            continue;
        };
        let finish = || {
            scanned
                .iter()
                .for_each(|(holder, scanned_to)| shared.relay_progress.progressed(holder, &peer, *scanned_to));
            // Our own cosignatures that the peer returned are persisted now, so code that waits for
            // its heads may rely on them.
            if heads_received && !missed {
                shared.self_recovery.heads_received(&peer);
                shared.options.committer.peer_heads_received();
            }
        };
        if new_records.cosigned.is_empty() && new_records.custody.is_empty() && new_records.forks.is_empty() {
            finish();
            continue;
        }
        let (cosigned, custody) = (new_records.cosigned.clone(), new_records.custody.clone());
        match shared.options.committer.persist(new_records).await {
            Ok(()) => {
                cosigned
                    .iter()
                    .filter(|note| note.feed == *shared.own_feed())
                    .for_each(|note| shared.peers.cosigned(note));
                custody
                    .iter()
                    .filter(|note| note.feed == *shared.own_feed())
                    .for_each(|note| shared.peers.custody(note));
                finish();
            }
            // The peer sends its newest attestations again on the next link.
            Err(failure) => {
                missed = true;
                tracing::warn!(%peer, %failure, "attestations could not be persisted");
            }
        }
    }
}

/// Sends `peer` this node's attestations of its feeds, until the link ends. Cosignatures of other
/// members' feeds are sent with `TreeHeads`. Custody notes are sent only to the owner; if it has no
/// link, through a relay (`relayed_custody`).
pub(crate) async fn send_attestations(
    peer: Member,
    send_queue: Arc<SendQueue>,
    mut receiver: broadcast::Receiver<Arc<Attestations>>,
) {
    loop {
        match receiver.recv().await {
            Ok(attestations) if attestations.feed.member == peer => {
                if let Some(note) = attestations.cosigned.clone() {
                    send_queue.push(Frame::Cosigned(proto::Cosigned { note, ..proto::Cosigned::default() }));
                }
                for note in attestations.custody.iter().cloned() {
                    send_queue.push(Frame::Custody(proto::Custody { note }));
                }
            }
            Ok(_) => {}
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(%peer, missed, "attestations are sent again on the next link");
            }
            Err(RecvError::Closed) => return,
        }
    }
}

struct Verifier {
    shared: Arc<ExchangeState>,
    peer: Member,
    found: RefCell<Vec<ForkRecord>>,
    /// Holders whose notes were relayed, and the index up to which each has scanned.
    scanned: RefCell<Vec<(Member, u64)>>,
    /// Custody notes of this group that will be persisted.
    accepted: Accepted,
    /// Set when the link has ended: nobody waits for the remaining notes.
    cancellation: CancellationToken,
    roster: Arc<Roster>,
}

/// The result of a verified group.
struct Verified {
    new_records: Records,
    /// As [`Verifier::scanned`].
    scanned: Vec<(Member, u64)>,
    /// Whether the peer has sent all of its tree heads.
    heads_received: bool,
}

impl Verifier {
    fn verify_all(&self, notes: Vec<IncomingNote>) -> Verified {
        let (mut new_records, mut heads_received) = (Records::default(), false);
        // Of several cosignatures by one member on one feed the newest implies the others.
        let mut cosigned: BTreeMap<(FeedId, Member), (u64, Bytes)> = BTreeMap::new();
        for note in notes {
            if self.cancellation.is_cancelled() {
                break;
            }
            let result = match note {
                IncomingNote::Cosigned(note) => self.newest_of(note, Some(&self.peer), &mut cosigned),
                IncomingNote::RelayedCosigned(note) => self.newest_of(note, None, &mut cosigned),
                IncomingNote::Custody(note) => self
                    .read_custody(note, &self.peer)
                    .and_then(|record| self.persisted(record))
                    .map(|record| new_records.custody.extend(record)),
                IncomingNote::RelayedCustody { holder, notes, scanned_to } => {
                    self.relayed(&holder, notes, scanned_to).map(|records| new_records.custody.extend(records))
                }
                IncomingNote::Checkpoint(note, held) => self.checkpoint(&note, held),
                IncomingNote::Heartbeat(heartbeat) => self.heartbeat(&heartbeat),
                IncomingNote::Consistency(response) => self.consistency(&response),
                IncomingNote::HeadsComplete => {
                    heads_received = true;
                    Ok(())
                }
            };
            self.report(result);
        }
        for ((feed, cosigner), (_, note)) in cosigned {
            if self.cancellation.is_cancelled() {
                break;
            }
            match self.cosigned(&feed, &cosigner, note) {
                Ok(record) => new_records.cosigned.extend(record),
                fault => self.report(fault.map(|_| ())),
            }
        }
        new_records.forks = self.found.take();
        Verified { new_records, scanned: self.scanned.take(), heads_received }
    }

    fn report(&self, result: Result<(), NoteFault>) {
        match result {
            Ok(()) => {}
            Err(fault @ NoteFault::NotHeldLocally(_)) => {
                tracing::debug!(peer = %self.peer, %fault, "a note is ignored");
            }
            Err(fault) => {
                let reason = if matches!(fault, NoteFault::OverBudget(_)) { "rate-limited" } else { "bad-note" };
                let event =
                    AuditEvent { event: "note-rejected", reason, actor: &self.peer, resource: &"", detail: &fault };
                self.shared.record(&self.peer, &event);
            }
        }
    }

    fn newest_of(
        &self,
        note: Bytes,
        by: Option<&Member>,
        newest: &mut BTreeMap<(FeedId, Member), (u64, Bytes)>,
    ) -> Result<(), NoteFault> {
        let parsed = Note::parse(&note).map_err(invalid)?;
        let Checkpoint { feed, size, .. } = Checkpoint::parse_text(&parsed.text).map_err(invalid)?;
        let cosigner = match by {
            Some(member) => member.clone(),
            None => cosigner_of(&parsed, &self.roster).ok_or_else(|| invalid("no member of the roster cosigned it"))?,
        };
        // Our cosignatures of our own feeds are held here. Those of other feeds are accepted: peers
        // return them after the store was lost.
        if cosigner == self.shared.me && feed.member == self.shared.me {
            return Ok(());
        }
        let entry = newest.entry((feed, cosigner)).or_insert_with(|| (size, note.clone()));
        if entry.0 < size {
            *entry = (size, note);
        }
        Ok(())
    }

    fn cosigned(&self, feed: &FeedId, cosigner: &Member, note: Bytes) -> Result<Option<Cosigned>, NoteFault> {
        let parsed = Note::parse(&note).map_err(invalid)?;
        let size = Checkpoint::parse_text(&parsed.text).map_err(invalid)?.size;
        let held = self.shared.store().cosigned_newest(feed)?;
        if held.iter().any(|other| other.cosigner == *cosigner && other.size >= size) {
            return Ok(None);
        }
        let mirrors = self.roster.mirror_keys(cosigner, &parsed.signatures);
        let (signed, time) = verify_cosigned(&note, &self.roster.feed_keys(feed), &mirrors).map_err(invalid)?;
        self.compare(&signed)?;
        Ok(Some(Cosigned { feed: feed.clone(), cosigner: cosigner.clone(), size, time, note }))
    }

    /// Verifies relayed custody notes; those that add nothing are dropped.
    fn relayed(&self, holder: &Member, notes: Vec<Bytes>, scanned_to: u64) -> Result<Vec<CustodyRecord>, NoteFault> {
        if self.roster.member(holder).is_none() {
            return Err(invalid(format_args!("{holder} is not a member of the roster")));
        }
        let newest = self.shared.store().custody_newest(self.shared.own_feed())?;
        let attested_to = newest.into_iter().find(|note| note.holder == *holder).map_or(0, |note| note.range.end);
        let mut records = Vec::new();
        for note in notes {
            let record = self.read_custody(note, holder)?;
            // Notes on backfilled entries are accepted only from the holder itself: their times
            // decide which of them are requested next.
            if record.feed == *self.shared.own_feed() && record.range.end > attested_to {
                records.extend(self.persisted(record)?);
            }
        }
        let size = self.shared.store().feed(self.shared.own_feed()).map_or(0, |state| state.compact_range.size());
        self.scanned.borrow_mut().push((holder.clone(), scanned_to.min(size)));
        Ok(records)
    }

    /// Verifies a custody note of `holder` on our feed.
    fn read_custody(&self, note: Bytes, holder: &Member) -> Result<CustodyRecord, NoteFault> {
        let time = CustodyNote::parse_text(&Note::parse(&note).map_err(invalid)?.text).map_err(invalid)?.time;
        let custody = CustodyNote::verify(&note, &self.roster.custody_keys(holder, time)).map_err(invalid)?;
        if custody.feed.member != self.shared.me {
            return Err(NoteFault::ForeignFeed(custody.feed));
        }
        match self.root(&custody.feed, custody.size)? {
            Some(root) if root == custody.root => {}
            Some(_) => return Err(NoteFault::RootMismatch(custody.size)),
            None => return Err(NoteFault::NotHeldLocally(custody.size)),
        }
        Ok(CustodyRecord {
            feed: custody.feed,
            holder: holder.clone(),
            range: custody.range,
            not_held: custody.not_held.into_iter().map(|(range, _)| range).collect(),
            time: custody.time,
            note,
        })
    }

    /// Returns the note if it is to be persisted.
    fn persisted(&self, record: CustodyRecord) -> Result<Option<CustodyRecord>, NoteFault> {
        match self.accepted.evaluate(self.shared.store().as_ref(), &self.shared.custody, &record)? {
            Verdict::Persist => Ok(Some(record)),
            Verdict::Redundant => Ok(None),
            Verdict::OverBudget => Err(NoteFault::OverBudget(record.note.len())),
        }
    }

    fn checkpoint(&self, note: &[u8], held: Option<u64>) -> Result<(), NoteFault> {
        let parsed = Note::parse(note).map_err(invalid)?;
        let feed = Checkpoint::parse_text(&parsed.text).map_err(invalid)?.feed;
        let signed = SignedCheckpoint::verify(note, &self.roster.feed_keys(&feed)).map_err(invalid)?;
        let compared = self.compare(&signed);
        if feed.member == self.shared.me {
            let size = signed.checkpoint.size;
            self.shared.self_recovery.record_replica_size(&self.peer, &feed, held.map_or(size, |held| held.min(size)));
        }
        compared?;
        if feed.member != self.shared.me {
            let size = signed.checkpoint.size;
            self.shared.peers.record_replica_size(&self.peer, &feed, held.map_or(size, |held| held.min(size)));
            self.shared.peers.progress(&feed, signed.checkpoint.size, None);
        }
        Ok(())
    }

    fn heartbeat(&self, heartbeat: &proto::Cosigned) -> Result<(), NoteFault> {
        let feed: FeedId = heartbeat.heartbeat_feed.parse().map_err(invalid)?;
        if feed.member != self.peer {
            return Err(NoteFault::ForeignFeed(feed));
        }
        // A heartbeat for a size that is not held yet proves nothing; one for a held size follows
        // soon.
        let Some(root) = self.root(&feed, heartbeat.heartbeat_size)? else { return Ok(()) };
        let checkpoint = Checkpoint { feed, size: heartbeat.heartbeat_size, root };
        let line = parse_heartbeat(&heartbeat.note).map_err(invalid)?;
        let mirrors = self.roster.mirror_keys(&self.peer, &[line]);
        let time = verify_heartbeat(&heartbeat.note, &checkpoint, &mirrors).map_err(invalid)?;
        self.shared.peers.heartbeat(&self.peer, time);
        Ok(())
    }

    /// Compares a verified checkpoint with the tree held here. Another root means that the feed's
    /// key signed two trees. A larger checkpoint of our own feed means that this node has lost
    /// entries that it signed.
    fn compare(&self, signed: &SignedCheckpoint) -> Result<(), NoteFault> {
        let Checkpoint { feed, size, .. } = &signed.checkpoint;
        let compared = self.shared.compare(signed)?;
        let own = self.shared.own_feed();
        if feed.member == own.member && feed.epoch >= own.epoch && !matches!(compared, Comparison::Consistent) {
            let reason =
                format!("{} holds a valid checkpoint of {feed} at size {size} that this node does not hold", self.peer);
            if self.shared.options.committer.require_recovery(reason.clone()) {
                let alarm = Alarm::OwnFeedBehind { peer: self.peer.clone(), feed: feed.clone(), size: *size };
                self.shared.alarms.raise(alarm);
            }
        }
        match compared {
            Comparison::Consistent => return Ok(()),
            Comparison::Larger if feed.member == own.member => return Err(NoteFault::NotHeldLocally(*size)),
            Comparison::Larger => {
                if feed.member != self.peer {
                    equivocation::compare_later(&self.shared, &self.peer, signed.clone());
                }
                return Ok(());
            }
            Comparison::Forked(Some(evidence)) => {
                self.found.borrow_mut().extend(self.shared.stop_forked(&(*evidence).into(), &self.peer));
            }
            // Our copy is in the middle of a catch-up; the checkpoint is sent again on the next
            // link.
            Comparison::Forked(None) => {
                tracing::error!(
                    %feed,
                    size,
                    peer = %self.peer,
                    "a conflicting checkpoint was received; the fork is not proven yet"
                );
            }
        }
        Err(NoteFault::RootMismatch(*size))
    }

    fn consistency(&self, response: &proto::Consistency) -> Result<(), NoteFault> {
        if let Some(evidence) = self.shared.check_consistency(response).map_err(invalid)? {
            self.found.borrow_mut().extend(self.shared.stop_forked(&evidence.into(), &self.peer));
        }
        Ok(())
    }

    /// Returns the root of our copy of a feed at a size; `None` if we hold fewer entries.
    fn root(&self, feed: &FeedId, size: u64) -> Result<Option<Hash>, ReadError> {
        let held = self.shared.store().feed(feed).map(|state| state.compact_range).unwrap_or_default();
        if held.size() == size {
            return Ok(Some(held.root()));
        }
        if held.size() < size {
            return Ok(None);
        }
        let store = self.shared.store().as_ref();
        root_at(&FeedTree { store, feed }, size).map(Some)
    }
}

/// Returns the member whose mirror key is named by a signature line of the note. The signature is
/// not verified here.
fn cosigner_of(note: &Note, roster: &Roster) -> Option<Member> {
    note.signatures.iter().find_map(|line| {
        let (member, exchange) = line.name.strip_suffix("/mirror")?.split_once('.')?;
        let member = member.parse().ok()?;
        (exchange == roster.exchange().as_str() && roster.member(&member).is_some()).then_some(member)
    })
}

/// Returns this node's attestations of the owner's feed: the newest cosigned note, the custody
/// notes that reach beyond `custody_from`, and those on entries backfilled since
/// `backfilled_since`, up to [`RESENT_BYTES_MAX`]. Blocks.
pub(crate) fn attestations_for(
    shared: &ExchangeState,
    feed: &FeedId,
    custody_from: u64,
    backfilled_since: u64,
) -> Result<(Option<Bytes>, Vec<Bytes>), ReadError> {
    let (store, me) = (shared.store(), &shared.me);
    let cosigned = store.cosigned_newest(feed)?.into_iter().find(|note| note.cosigner == *me).map(|note| note.note);
    let after = store.custody_after(feed, me, custody_from, NOTE_QUEUE_MAX)?;
    let mut late = store.custody_late(feed, me, backfilled_since, NOTE_QUEUE_MAX)?;
    late.reverse();
    // These are in the first list already.
    late.retain(|note| note.range.end <= custody_from);
    let mut bytes = 0;
    let fits = |note: &CustodyRecord| {
        bytes += note.note.len();
        bytes <= RESENT_BYTES_MAX
    };
    Ok((cosigned, after.into_iter().chain(late).take_while(fits).map(|note| note.note).collect()))
}

/// Returns, for our feed in force and each earlier epoch, how far a holder's custody notes reach,
/// and the time of its newest note on backfilled entries. Blocks.
pub(crate) fn custody_progress(shared: &ExchangeState, holder: &Member) -> Result<Vec<(FeedId, u64, u64)>, ReadError> {
    let store = shared.store();
    let mut feeds: Vec<FeedId> = store.feeds().into_iter().map(|state| state.feed).collect();
    feeds.retain(|feed| feed.member == shared.me && feed != shared.own_feed());
    feeds.push(shared.own_feed().clone());
    let progress = |feed: FeedId| {
        let newest = store.custody_newest(&feed)?;
        let end = newest.into_iter().find(|note| note.holder == *holder).map_or(0, |note| note.range.end);
        let late = store.custody_late(&feed, holder, 0, 1)?;
        Ok((feed, end, late.first().map_or(0, |note| note.time)))
    };
    feeds.into_iter().map(progress).collect()
}
