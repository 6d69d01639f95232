//! Rules and derivations for commits, the same for every store implementation.
//!
//! In scope: pure checks and derivations. Out of scope: verifying signatures and proofs (`core`),
//! and durability.

use std::ops::Range;

use barid_core::bulletin::vocabulary::MsgType;
use barid_core::ids::{Digest, FeedId, Member, Undisclosed};
use barid_core::limits::{
    COMMIT_BYTES_MAX, COMMIT_ENTRIES_MAX, COMMIT_NOTES_MAX, ENVELOPE_BYTES_MAX, EQUIVOCATION_BYTES_MAX,
    FILTER_BYTES_MAX, NOTE_BYTES_MAX, PROOF_HASHES_MAX, ROSTER_BYTES_MAX, STORE_NAME_BYTES_MAX, TOPIC_BYTES_MAX,
};
use barid_core::proto;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::references::{IssuerHash, Role};
use super::{Backfill, Columns, Commit, Content, ReferenceKind, SubscriptionRecord};

/// Checks a commit against the sizes of the held feeds (`None`: not held). The error names what
/// does not fit.
pub(super) fn check(commit: &Commit, size_of: impl Fn(&FeedId) -> Option<u64>) -> Result<(), String> {
    let (mut entries, mut bytes) = (0, 0);
    for (place, append) in commit.appends.iter().enumerate() {
        let feed = &append.feed;
        if commit.appends[..place].iter().any(|earlier| earlier.feed == *feed) {
            return Err(format!("{feed} is appended to twice"));
        }
        let size = size_of(feed).unwrap_or(0);
        if append.first != size {
            return Err(format!("{feed}: the append starts at {}, the feed's size is {size}", append.first));
        }
        let end = size + append.entries.len() as u64;
        if append.checkpoint_size < end {
            return Err(format!(
                "{feed}: the checkpoint of size {} is below the new size {end}",
                append.checkpoint_size
            ));
        }
        if append.consistency_proof.len() > PROOF_HASHES_MAX {
            return Err(format!("{feed}: the consistency proof has {} hashes", append.consistency_proof.len()));
        }
        note(&append.checkpoint, "checkpoint")?;
        entries += append.entries.len();
        for (index, entry) in (size..).zip(&append.entries) {
            if let Content::Disclosed { envelope, .. } = &entry.content {
                if envelope.is_empty() || envelope.len() > ENVELOPE_BYTES_MAX {
                    return Err(format!("{feed} {index}: an envelope of {} bytes", envelope.len()));
                }
                bytes += envelope.len();
            }
        }
    }
    for (place, backfill) in commit.backfills.iter().enumerate() {
        let feed = &backfill.feed;
        if commit.backfills[..place].iter().any(|earlier| earlier.feed == *feed) {
            return Err(format!("{feed} is backfilled twice"));
        }
        let size = size_of(feed).unwrap_or(0);
        if !backfill.entries.is_sorted_by(|(a, _), (b, _)| a < b)
            || backfill.entries.last().is_none_or(|(last, _)| *last >= size)
        {
            return Err(format!("{feed}: the backfill does not ascend below the size {size}"));
        }
        entries += backfill.entries.len();
        for (index, entry) in &backfill.entries {
            match &entry.content {
                Content::Disclosed { envelope, .. } if (1..=ENVELOPE_BYTES_MAX).contains(&envelope.len()) => {
                    bytes += envelope.len();
                }
                _ => return Err(format!("{feed} {index}: backfill without content, or too large")),
            }
        }
    }
    entries += commit.priority.len();
    bytes += commit.priority.iter().map(|priority| priority.entry.envelope_bytes()).sum::<usize>();
    if entries > COMMIT_ENTRIES_MAX {
        return Err(format!("{entries} entries, at most {COMMIT_ENTRIES_MAX}"));
    }
    if bytes > COMMIT_BYTES_MAX + ENVELOPE_BYTES_MAX {
        return Err(format!("{bytes} bytes of envelopes"));
    }
    let lists =
        [commit.cosigned.len(), commit.custody.len(), commit.cursors.len(), commit.rosters.len(), commit.crls.len()];
    let subscriptions = commit.subscriptions.iter();
    let filter = |record: &SubscriptionRecord| record.state.as_ref()?.filter.as_ref().map(Bytes::len);
    if let Some(len) = subscriptions.clone().filter_map(filter).find(|len| *len > FILTER_BYTES_MAX) {
        return Err(format!("a filter of {len} bytes, at most {FILTER_BYTES_MAX}"));
    }
    if commit.forks.iter().any(|fork| fork.evidence.is_empty() || fork.evidence.len() > EQUIVOCATION_BYTES_MAX) {
        return Err(format!("evidence of a fork of more than {EQUIVOCATION_BYTES_MAX} bytes, or none"));
    }
    if commit.forks.len().max(subscriptions.len()) > COMMIT_NOTES_MAX || lists.iter().any(|len| *len > COMMIT_NOTES_MAX)
    {
        return Err(format!("more than {COMMIT_NOTES_MAX} notes, cursors or lists of one kind"));
    }
    commit.cosigned.iter().try_for_each(|cosigned| note(&cosigned.note, "cosigned checkpoint"))?;
    commit.custody.iter().try_for_each(|custody| note(&custody.note, "custody note"))?;
    commit.cursors.iter().try_for_each(|cursor| name(&cursor.subscription))?;
    commit.subscriptions.iter().try_for_each(|record| name(&record.subscription))?;
    commit.crls.iter().try_for_each(|crl| name(&crl.authority))?;
    if commit.rosters.iter().any(|roster| roster.note.len() > ROSTER_BYTES_MAX) {
        return Err(format!("a roster of more than {ROSTER_BYTES_MAX} bytes"));
    }
    Ok(())
}

pub(super) fn note(bytes: &[u8], what: &str) -> Result<(), String> {
    if bytes.is_empty() || bytes.len() > NOTE_BYTES_MAX {
        return Err(format!("a {what} of {} bytes, at most {NOTE_BYTES_MAX}", bytes.len()));
    }
    Ok(())
}

fn name(text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > STORE_NAME_BYTES_MAX {
        return Err(format!("a name of {} bytes, 1 to {STORE_NAME_BYTES_MAX} are allowed", text.len()));
    }
    Ok(())
}

/// Returns the id by which an entry of `feed` is found; `None` if its header has none, or names
/// another member than the feed's owner.
pub(super) fn id_of(feed: &FeedId, header: Option<&proto::Header>) -> Option<Uuid> {
    let header = header.filter(|header| header.member == feed.member.as_str())?;
    Uuid::try_parse(&header.id).ok().filter(|id| !id.is_nil())
}

/// Returns the bulletins that an entry of `feed` refers to, each once. They are few, because a
/// header is bounded in bytes.
pub(super) fn references(feed: &FeedId, header: Option<&proto::Header>) -> Vec<(Member, Uuid, Role)> {
    let Some(header) = header.filter(|header| !header.references.is_empty() && header.member == feed.member.as_str())
    else {
        return Vec::new();
    };
    let msg_type = MsgType::read(&header.msg_type);
    let issuer = Sha256::digest(&header.issuer);
    let issuer_hash = IssuerHash(u64::from_be_bytes(std::array::from_fn(|byte| issuer[byte])));
    let read = |reference: &proto::Reference| {
        let (member, id) = (reference.member.parse::<Member>().ok()?, Uuid::try_parse(&reference.id).ok()?);
        let kind = match msg_type {
            Some(MsgType::Update | MsgType::Cancel) if member == feed.member => Role::Other(ReferenceKind::Supersedes),
            Some(MsgType::Ack) => Role::Ack(issuer_hash),
            _ => Role::Other(ReferenceKind::Mentions),
        };
        Some((member, id, kind))
    };
    let mut found: Vec<_> = header.references.iter().filter_map(read).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Returns the columns of a header.
pub(super) fn columns_of(header: Option<&proto::Header>) -> Columns {
    let Some(header) = header else { return Columns::default() };
    Columns {
        member: clip(&header.member).into(),
        topic: clip(&header.topic).into(),
        kind: clip(&header.kind).into(),
        severity: clip(&header.severity).into(),
        sent_at_unix_ms: sent_at_unix_ms(header),
    }
}

/// Returns `header.sent_at` in unix ms; 0 if absent.
pub(super) fn sent_at_unix_ms(header: &proto::Header) -> i64 {
    let ms = |seconds: i64, nanos: i32| seconds.saturating_mul(1_000).saturating_add(i64::from(nanos) / 1_000_000);
    header.sent_at.as_ref().map_or(0, |time| ms(time.seconds, time.nanos))
}

/// Compares a custody note with the earlier ones of its holder, the newest of which ends at
/// `newest_end`.
pub(super) fn custody_order(newest_end: Option<u64>, range: &Range<u64>) -> CustodyOrder {
    // A note that leaves a gap is about out-of-order entries, or overtook an earlier note.
    let joins = range.start <= newest_end.unwrap_or(0);
    CustodyOrder {
        newest: joins && newest_end.is_none_or(|end| range.end >= end),
        late: newest_end.is_some_and(|end| range.end <= end),
    }
}

/// The place of a custody note among the earlier ones of its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CustodyOrder {
    /// It joins them and does not end before the newest of them.
    pub(super) newest: bool,
    /// It does not end after all of them.
    pub(super) late: bool,
}

/// Returns the beginning of a column, so that a foreign header fits any block; valid columns are
/// shorter.
pub(super) fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(TOPIC_BYTES_MAX)]
}

/// A run of a feed's entries held as digests only: first index, one past the last, reason.
pub(super) type UndisclosedRun = (u64, u64, Undisclosed);

/// Checks a backfill against the missing content of its entries.
pub(super) fn check_backfill(backfill: &Backfill, missing: &[Option<(Digest, Undisclosed)>]) -> Result<(), String> {
    for ((index, entry), missing) in backfill.entries.iter().zip(missing) {
        if missing.as_ref().is_none_or(|(digest, _)| *digest != entry.digest) {
            return Err(format!("{} {index}: no entry with this digest is held", backfill.feed));
        }
    }
    Ok(())
}

/// Returns the parts of a run that remain when its entry `index` is held in full.
pub(super) fn split_run((start, end, reason): UndisclosedRun, index: u64) -> impl Iterator<Item = UndisclosedRun> {
    [(start, index, reason), (index + 1, end, reason)].into_iter().filter(|(start, end, _)| start < end)
}

/// Adds entry `index`, held only as a digest for `reason`, to ascending runs.
pub(super) fn extend_runs(runs: &mut Vec<UndisclosedRun>, index: u64, reason: Undisclosed) {
    match runs.last_mut() {
        Some((_, end, last)) if *end == index && *last == reason => *end += 1,
        _ => runs.push((index, index + 1, reason)),
    }
}
