//! Heads: what changed at this node since it last told one peer.

use std::collections::BTreeMap;

use barid_core::names::{FeedId, Member};
use barid_core::proto;
use bytes::Bytes;

use super::{HEADS_BYTES_MAX, HEADS_LISTS_BYTES_MAX, HEADS_LISTS_MAX, HEADS_NOTES_MAX, Shared};
use crate::store::ReadError;

/// What one peer was told last.
#[derive(Default)]
pub(crate) struct Told {
    any: bool,
    /// Size of the checkpoint, and entries held.
    checkpoints: BTreeMap<FeedId, (u64, u64)>,
    cosigned: BTreeMap<(FeedId, Member), u64>,
    roster: u64,
    /// Newest roster that the peer is known to hold.
    peer_roster: u64,
    lists: BTreeMap<String, Bytes>,
    /// Version of our lists and of the peer's roster when lists were told last.
    lists_state: Option<(u64, u64)>,
    lists_left: bool,
    /// Not everything fitted.
    pub(crate) more: bool,
}

impl Told {
    /// What `peer` has not been told yet; `None` if that is nothing. The first time there is always something: a peer that holds
    /// nothing of ours says so by it. Blocks.
    pub(crate) fn next(&mut self, shared: &Shared, peer: &Member) -> Result<Option<proto::Heads>, ReadError> {
        let mut room = Room { notes: HEADS_NOTES_MAX, bytes: HEADS_BYTES_MAX };
        self.more = false;
        let peer_roster = shared.peers.roster_version(peer);
        if peer_roster != self.peer_roster {
            // With the one before it may not have known a feed's key, or a cosigner's.
            self.checkpoints.clear();
            self.cosigned.clear();
            self.peer_roster = peer_roster;
        }
        let mut heads = Vec::new();
        for state in shared.store().feeds() {
            let mut head = proto::Head::default();
            let feed = state.feed;
            let (size, held) = (state.checkpoint_size, state.frontier.size());
            if self.checkpoints.get(&feed) != Some(&(size, held)) {
                if room.takes(&state.checkpoint) {
                    self.checkpoints.insert(feed.clone(), (size, held));
                    head.checkpoint = state.checkpoint;
                    head.held = (held < size).then_some(held);
                } else {
                    self.more = true;
                }
            }
            for note in shared.store().cosigned_newest(&feed)? {
                let key = (feed.clone(), note.cosigner);
                let told = self.cosigned.get(&key);
                // Its own words a peer is told once on each link: it may have lost them.
                if told == Some(&note.size) || told.is_some() && key.1 == *peer {
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
        let crls = self.new_lists(shared, peer);
        let unchanged = self.any && heads.is_empty() && crls.is_empty() && roster_version == self.roster;
        self.any = true;
        self.roster = roster_version;
        Ok((!unchanged).then_some(proto::Heads { heads, roster_version, crls }))
    }

    /// Revocation lists that the peer lacks, as many as fit beside the notes. All are told again once the peer holds a newer roster:
    /// with the one before it may not have known an authority.
    fn new_lists(&mut self, shared: &Shared, peer: &Member) -> Vec<Bytes> {
        let state = (*shared.options.revocations.watch().borrow(), shared.peers.roster_version(peer));
        if self.lists_state == Some(state) && !self.lists_left {
            return Vec::new();
        }
        if self.lists_state.is_none_or(|(_, roster)| roster != state.1) {
            self.lists.clear();
        }
        let (mut all, mut room, mut lists) = (true, HEADS_LISTS_BYTES_MAX, Vec::new());
        for (name, der) in shared.options.revocations.held() {
            if self.lists.get(&name) == Some(&der) {
                continue;
            }
            if der.len() > HEADS_LISTS_BYTES_MAX {
                tracing::error!(authority = name, bytes = der.len(), "a revocation list fits no frame");
            } else if der.len() > room || lists.len() == HEADS_LISTS_MAX {
                all = false;
            } else {
                room -= der.len();
                self.lists.insert(name, der.clone());
                lists.push(der);
            }
        }
        self.lists_state = Some(state);
        self.more |= !all;
        self.lists_left = !all;
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
