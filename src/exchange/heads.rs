//! Heads: what changed at this node since it last told one peer.

use std::collections::BTreeMap;

use barid_core::names::{FeedId, Member};
use barid_core::proto;
use bytes::Bytes;

use super::{HEADS_BYTES_MAX, HEADS_NOTES_MAX, Shared};
use crate::store::ReadError;

/// What one peer was told last.
#[derive(Default)]
pub(crate) struct Told {
    any: bool,
    checkpoints: BTreeMap<FeedId, u64>,
    cosigned: BTreeMap<(FeedId, Member), u64>,
    roster: u64,
    crls: Option<u64>,
    /// Not everything fitted.
    pub(crate) more: bool,
}

impl Told {
    /// What `peer` has not been told yet; `None` if that is nothing. The first time there is always something: a peer that holds
    /// nothing of ours says so by it. Blocks.
    pub(crate) fn next(&mut self, shared: &Shared, peer: &Member) -> Result<Option<proto::Heads>, ReadError> {
        let mut room = Room { notes: HEADS_NOTES_MAX, bytes: HEADS_BYTES_MAX };
        self.more = false;
        let mut heads = Vec::new();
        for state in shared.store().feeds() {
            let mut head = proto::Head::default();
            let feed = state.feed;
            if self.checkpoints.get(&feed) != Some(&state.checkpoint_size) {
                if room.takes(&state.checkpoint) {
                    self.checkpoints.insert(feed.clone(), state.checkpoint_size);
                    head.checkpoint = state.checkpoint;
                } else {
                    self.more = true;
                }
            }
            for note in shared.store().cosigned_newest(&feed)? {
                let key = (feed.clone(), note.cosigner);
                if key.1 == *peer || self.cosigned.get(&key) == Some(&note.size) {
                    continue;
                }
                if room.takes(&note.note) {
                    self.cosigned.insert(key, note.size);
                    head.cosigned.push(note.note);
                } else {
                    self.more = true;
                }
            }
            if !head.checkpoint.is_empty() || !head.cosigned.is_empty() {
                heads.push(head);
            }
        }
        let roster_version = shared.options.rosters.load().newest().version();
        let crls = self.new_crls(shared);
        let unchanged = self.any && heads.is_empty() && crls.is_empty() && roster_version == self.roster;
        self.any = true;
        self.roster = roster_version;
        Ok((!unchanged).then_some(proto::Heads { heads, roster_version, crls }))
    }

    fn new_crls(&mut self, shared: &Shared) -> Vec<Bytes> {
        let version = shared.options.revocations.version();
        if self.crls.replace(version) == Some(version) {
            return Vec::new();
        }
        let mut bytes = 0;
        let mut lists = shared.options.revocations.held();
        // Larger ones than fit beside the notes are for operators to bring.
        lists.retain(|list| {
            bytes += list.len();
            bytes <= HEADS_BYTES_MAX
        });
        lists
    }
}

struct Room {
    notes: usize,
    bytes: usize,
}

impl Room {
    fn takes(&mut self, note: &Bytes) -> bool {
        let fits = self.notes > 0 && self.bytes >= note.len();
        if fits {
            self.notes -= 1;
            self.bytes -= note.len();
        }
        fits
    }
}
