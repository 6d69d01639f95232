//! Rules for entries held ahead of their feeds' order, the same for every store implementation.
//!
//! In scope: checking priority entries, and matching appends with entries held out of order. Out of
//! scope: verifying proofs and signatures (`core`), and where bytes lie.

use std::ops::Range;

use barid_core::bulletin::{Priority, header_priority};
use barid_core::ids::{Digest, FeedId, Undisclosed};
use barid_core::limits::{
    ENVELOPE_BYTES_MAX, PRIORITY_ENTRIES_MAX, PRIORITY_EXPIRES_MS, PRIORITY_OTHERS_MAX, PROOF_HASHES_MAX,
};
use barid_core::proto;

use super::{Commit, Content, validate};

/// Returns whether an entry held since `since_ms` still occupies an out-of-order slot. Slots
/// expire; otherwise a feed that never reaches such entries could never again have entries sent
/// ahead of its order.
pub(super) fn is_unexpired(since_ms: u64, now_ms: u64) -> bool {
    now_ms < since_ms.saturating_add(PRIORITY_EXPIRES_MS)
}

/// Entries of one feed that may occupy an out-of-order slot, of any status. The committer also
/// bounds Actual entries separately.
pub const OUT_OF_ORDER_MAX: usize = PRIORITY_ENTRIES_MAX + PRIORITY_OTHERS_MAX;

/// Read access to the entries held out of order.
pub(super) trait OutOfOrder {
    /// Returns the digest of the entry at an index.
    fn digest(&self, feed: &FeedId, index: u64) -> Option<Digest>;

    /// Returns the indexes that occupy a slot at `now_ms` ([`is_unexpired`]), ascending.
    fn unexpired(&self, feed: &FeedId, now_ms: u64) -> Vec<u64>;

    /// Returns the lowest index in a range.
    fn first_in(&self, feed: &FeedId, range: Range<u64>) -> Option<u64>;
}

/// Checks the priority entries of a commit against the sizes of the held feeds (`None`: not held)
/// and the entries held out of order. The caller counts the bytes. The error names what does not
/// fit.
pub(super) fn check(
    commit: &Commit,
    size_of: impl Fn(&FeedId) -> Option<u64>,
    out_of_order: &impl OutOfOrder,
) -> Result<(), String> {
    for (place, priority) in commit.priority.iter().enumerate() {
        let (feed, index) = (&priority.feed, priority.index);
        let earlier = &commit.priority[..place];
        let appended = commit.appends.iter().find(|append| append.feed == *feed);
        let size = appended.map_or_else(
            || size_of(feed).unwrap_or(0),
            |append| append.first.saturating_add(append.entries.len() as u64),
        );
        if index < size || priority.checkpoint_size <= index {
            let checkpoint = priority.checkpoint_size;
            return Err(format!("{feed} {index}: not between the size {size} and the checkpoint's {checkpoint}"));
        }
        if out_of_order.digest(feed, index).is_some()
            || earlier.iter().any(|other| other.feed == *feed && other.index == index)
        {
            return Err(format!("{feed} {index}: it is held already"));
        }
        if out_of_order.unexpired(feed, commit.time_unix_ms).len()
            + earlier.iter().filter(|other| other.feed == *feed).count()
            >= OUT_OF_ORDER_MAX
        {
            return Err(format!("{feed}: more than {OUT_OF_ORDER_MAX} entries out of order"));
        }
        if priority.proof.len() > PROOF_HASHES_MAX {
            return Err(format!("{feed} {index}: the inclusion proof has {} hashes", priority.proof.len()));
        }
        validate::note(&priority.checkpoint, "checkpoint")?;
        match &priority.entry.content {
            Content::Disclosed { envelope, .. } if (1..=ENVELOPE_BYTES_MAX).contains(&envelope.len()) => {}
            _ => return Err(format!("{feed} {index}: an entry without content, or too large")),
        }
    }
    Ok(())
}

/// Matches appended entries with entries held out of order. Of a matching entry only the digest is
/// appended, because its content is already stored; an entry that the commit displaces makes room
/// for the appended one. Returns an error if a digest differs without being displaced, or if there
/// is nothing to displace.
pub(super) fn match_appends(commit: &mut Commit, out_of_order: &impl OutOfOrder) -> Result<(), String> {
    let mut displaced = 0;
    for append in &mut commit.appends {
        let end = append.first.saturating_add(append.entries.len() as u64);
        let mut next = append.first;
        while let Some(index) = out_of_order.first_in(&append.feed, next..end) {
            let place = usize::try_from(index - append.first).ok();
            if let Some(entry) = place.and_then(|place| append.entries.get_mut(place)) {
                let same = out_of_order.digest(&append.feed, index) == Some(entry.digest);
                let displaces = commit.displaced.iter().any(|(feed, at)| *feed == append.feed && *at == index);
                match (same, displaces) {
                    (true, false) => entry.content = Content::Undisclosed(Undisclosed::NotHeld),
                    (false, true) => displaced += 1,
                    (false, false) => {
                        return Err(format!("{} {index}: a different entry is held out of order", append.feed));
                    }
                    (true, true) => {
                        return Err(format!("{} {index}: the displaced entry equals the appended one", append.feed));
                    }
                }
            }
            next = index.saturating_add(1);
        }
    }
    // Each displaced entry was found, and none is named twice.
    if displaced != commit.displaced.len() {
        return Err("not every displaced entry is held out of order".into());
    }
    Ok(())
}

/// Returns the priority of an entry whose content is held; `None` if it is not urgent.
pub(super) fn of_header(header: Option<&proto::Header>) -> Option<Priority> {
    header.and_then(header_priority)
}
