//! Tree heads: what has changed at this node since it last sent them to one peer.
//!
//! In scope: checkpoints, cosignatures, revocation lists and the roster version to send, and their
//! bounds. Out of scope: when to send them (`sender`).

use std::collections::BTreeMap;

use barid_core::ids::{FeedId, Member};
use barid_core::proto;
use bytes::Bytes;

use super::{ExchangeState, TREE_HEADS_BYTES_MAX, TREE_HEADS_CRL_BYTES_MAX, TREE_HEADS_CRLS_MAX, TREE_HEADS_NOTES_MAX};
use crate::store::ReadError;

/// What was last sent to one peer.
#[derive(Default)]
pub(crate) struct SentHeads {
    any: bool,
    /// Size of the checkpoint, and entries held.
    checkpoints: BTreeMap<FeedId, (u64, u64)>,
    cosigned: BTreeMap<(FeedId, Member), u64>,
    roster: u64,
    /// Newest roster that the peer is known to hold.
    peer_roster: u64,
    crls: BTreeMap<String, Bytes>,
    /// Version of our lists and of the peer's roster when lists were last sent.
    crls_state: Option<(u64, u64)>,
    crls_incomplete: bool,
    /// Whether something did not fit.
    pub(crate) incomplete: bool,
}

impl SentHeads {
    /// Returns what has not been sent to `peer` yet; `None` if nothing. The first call always
    /// returns a message, even an empty one: it shows the peer that this node holds none of its
    /// entries. Blocks.
    pub(crate) fn next(
        &mut self,
        shared: &ExchangeState,
        peer: &Member,
    ) -> Result<Option<proto::TreeHeads>, ReadError> {
        let mut capacity = FrameCapacity { notes: TREE_HEADS_NOTES_MAX, bytes: TREE_HEADS_BYTES_MAX };
        self.incomplete = false;
        let peer_roster = shared.peers.roster_version(peer);
        if peer_roster != self.peer_roster {
            // With its earlier roster the peer may not have known the key of a feed or a cosigner.
            self.checkpoints.clear();
            self.cosigned.clear();
            self.peer_roster = peer_roster;
        }
        let mut heads = Vec::new();
        for state in shared.store().feeds() {
            let mut head = proto::TreeHead::default();
            let feed = state.feed;
            let (size, held) = (state.checkpoint_size, state.compact_range.size());
            if self.checkpoints.get(&feed) != Some(&(size, held)) {
                if capacity.try_reserve(&state.checkpoint) {
                    self.checkpoints.insert(feed.clone(), (size, held));
                    head.checkpoint = state.checkpoint;
                    head.held = (held < size).then_some(held);
                } else {
                    self.incomplete = true;
                }
            }
            for note in shared.store().cosigned_newest(&feed)? {
                let key = (feed.clone(), note.cosigner);
                let sent = self.cosigned.get(&key);
                // The peer's own cosignatures are sent once per link: it may have lost them.
                if sent == Some(&note.size) || sent.is_some() && key.1 == *peer {
                    continue;
                }
                if capacity.try_reserve(&note.note) {
                    self.cosigned.insert(key, note.size);
                    head.cosigned.push(note.note);
                } else {
                    self.incomplete = true;
                }
            }
            if !head.checkpoint.is_empty() || !head.cosigned.is_empty() {
                heads.push(head);
            }
        }
        let roster_version = shared.options.rosters.load().newest().version();
        let crls = self.new_crls(shared, peer);
        let unchanged = self.any && heads.is_empty() && crls.is_empty() && roster_version == self.roster;
        self.any = true;
        self.roster = roster_version;
        Ok((!unchanged).then_some(proto::TreeHeads { heads, roster_version, crls }))
    }

    /// Returns the revocation lists that the peer lacks, as many as fit beside the notes. All are
    /// sent again once the peer holds a newer roster: with the earlier one it may not have known an
    /// authority.
    fn new_crls(&mut self, shared: &ExchangeState, peer: &Member) -> Vec<Bytes> {
        let state = (*shared.options.revocations.watch().borrow(), shared.peers.roster_version(peer));
        if self.crls_state == Some(state) && !self.crls_incomplete {
            return Vec::new();
        }
        if self.crls_state.is_none_or(|(_, roster)| roster != state.1) {
            self.crls.clear();
        }
        let (mut all, mut capacity, mut crls) = (true, TREE_HEADS_CRL_BYTES_MAX, Vec::new());
        for (name, der) in shared.options.revocations.held() {
            if self.crls.get(&name) == Some(&der) {
                continue;
            }
            if der.len() > TREE_HEADS_CRL_BYTES_MAX {
                tracing::error!(authority = name, bytes = der.len(), "a CRL is too large for a frame");
            } else if der.len() > capacity || crls.len() == TREE_HEADS_CRLS_MAX {
                all = false;
            } else {
                capacity -= der.len();
                self.crls.insert(name, der.clone());
                crls.push(der);
            }
        }
        self.crls_state = Some(state);
        self.incomplete |= !all;
        self.crls_incomplete = !all;
        crls
    }
}

struct FrameCapacity {
    notes: usize,
    bytes: usize,
}

impl FrameCapacity {
    fn try_reserve(&mut self, note: &Bytes) -> bool {
        let fits = self.notes > 0 && self.bytes >= note.len();
        if fits {
            self.notes -= 1;
            self.bytes -= note.len();
        }
        fits
    }
}
