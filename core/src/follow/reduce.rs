//! Reduces entries of a batch to digests if there is no capacity for their content.
//!
//! In scope: which content is dropped. The digests remain, so the feed continues. Out of scope: how
//! much capacity there is ([`crate::quota`]), and requesting the dropped content later
//! ([`crate::backfill`]).

use super::{VerifiedBatch, VerifiedContent, VerifiedEntry};
use crate::bulletin::{Priority, header_priority};
use crate::ids::Undisclosed;

impl VerifiedBatch {
    /// Replaces content that is not admitted with its digest, and returns the indices, ascending.
    ///
    /// `admits` is called once with the total bytes of the batch. If it returns false, it is called
    /// again for each entry that is urgent and Actual; the other entries are reduced. Content that
    /// is already `held` needs no capacity.
    pub fn reduce(
        &mut self,
        held: impl Fn(u64) -> bool,
        admits: impl FnMut(usize, Option<Priority>) -> bool,
    ) -> Vec<u64> {
        let entries = (self.first..).zip(&mut self.entries);
        reduce(entries.filter(|(index, entry)| !held(*index) && entry.envelope_bytes() > 0).collect(), admits)
    }
}

fn reduce(new: Vec<(u64, &mut VerifiedEntry)>, mut admits: impl FnMut(usize, Option<Priority>) -> bool) -> Vec<u64> {
    let all = new.iter().map(|(_, entry)| entry.envelope_bytes()).sum();
    if new.is_empty() || admits(all, None) {
        return Vec::new();
    }
    let mut reduced = Vec::new();
    for (index, entry) in new {
        let priority = entry.priority().filter(|priority| *priority == Priority::Actual);
        if priority.is_none() || !admits(entry.envelope_bytes(), priority) {
            (entry.content, entry.pending_roster) = (VerifiedContent::Undisclosed(Undisclosed::NotHeld), None);
            reduced.push(index);
        }
    }
    reduced
}

impl VerifiedEntry {
    pub(super) fn envelope_bytes(&self) -> usize {
        match &self.content {
            VerifiedContent::Disclosed { envelope, .. } => envelope.len(),
            VerifiedContent::Undisclosed(_) => 0,
        }
    }

    fn priority(&self) -> Option<Priority> {
        match &self.content {
            VerifiedContent::Disclosed { header: Some(header), .. } => header_priority(header),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::*;
    use crate::{envelope, proto};

    /// Returns an entry of this many bytes.
    fn entry(bytes: usize, header: Option<proto::Header>) -> VerifiedEntry {
        let content = match header {
            _ if bytes == 0 => VerifiedContent::Undisclosed(Undisclosed::Withheld),
            header => VerifiedContent::Disclosed { envelope: vec![7; bytes].into(), header: header.map(Arc::new) },
        };
        VerifiedEntry { digest: envelope::digest(&Bytes::from(vec![7; bytes])), content, pending_roster: Some(2) }
    }

    fn alert(status: &str) -> Option<proto::Header> {
        let (status, urgency) = (status.to_owned(), "Immediate".to_owned());
        Some(proto::Header { status, urgency, ..proto::Header::default() })
    }

    fn trace(entries: &mut [VerifiedEntry], mut admits: impl FnMut(usize, Option<Priority>) -> bool) -> Vec<String> {
        let mut trace = Vec::new();
        let new = (7..).zip(entries.iter_mut()).filter(|(_, entry)| entry.envelope_bytes() > 0).collect();
        let reduced = reduce(new, |bytes, priority| {
            trace.push(format!("{bytes} {priority:?}"));
            admits(bytes, priority)
        });
        trace.push(format!("{reduced:?}"));
        trace
    }

    #[test]
    fn reduced_batch_retains_digests_and_admits_priority_content_singly() {
        let mut entries = [entry(10, None), entry(0, None), entry(20, alert("Actual")), entry(30, alert("Exercise"))];
        let digests = entries.each_ref().map(|entry| entry.digest);
        let trace = trace(&mut entries, |_, priority| priority.is_some());
        assert_eq!(trace, ["60 None", "20 Some(Actual)", "[7, 10]"]);
        assert_eq!(entries.each_ref().map(|entry| entry.digest), digests, "the log is the same");
        let reason = |entry: &VerifiedEntry| match entry.content {
            VerifiedContent::Undisclosed(reason) => Some((reason, entry.pending_roster)),
            VerifiedContent::Disclosed { .. } => None,
        };
        let left = Some((Undisclosed::NotHeld, None));
        let withheld = Some((Undisclosed::Withheld, Some(2)));
        assert_eq!(entries.each_ref().map(reason), [left, withheld, None, left]);
    }

    #[test]
    fn batch_admitted_whole_is_checked_once() {
        assert_eq!(trace(&mut [entry(10, None), entry(20, alert("Actual"))], |_, _| true), ["30 None", "[]"]);
        assert_eq!(trace(&mut [entry(0, None)], |_, _| false), ["[]"]);
    }
}
