//! Parts of the store in memory: references between bulletins, and bounded pages.

use std::collections::{BTreeMap, HashMap};

use barid_core::ids::{FeedId, Member};
use barid_core::proto;
use uuid::Uuid;

use super::super::index_db::acks::{self, AckSummary};
use super::super::index_db::references::Referrer;
use super::super::references::{IssuerHash, Role};
use super::super::{Content, Entry, Location, ReferenceKind, validate};

/// References to bulletins.
#[derive(Default)]
pub(super) struct References {
    pub(super) others: HashMap<(Member, Uuid, ReferenceKind), Vec<Location>>,
    pub(super) acks: HashMap<(Member, Uuid), BTreeMap<(FeedId, IssuerHash), AckSummary>>,
}

impl References {
    pub(super) fn add(&mut self, at: &Location, header: Option<&proto::Header>) {
        for (member, id, role) in validate::references(&at.feed, header) {
            match role {
                Role::Other(kind) => self.others.entry((member, id, kind)).or_default().push(at.clone()),
                Role::Ack(issuer_hash) => {
                    let acks = self.acks.entry((member, id)).or_default();
                    let referrer = Referrer { offset: at.offset, index: at.index, feed: 0 };
                    let ack = acks::add(acks.get(&(at.feed.clone(), issuer_hash)).copied(), &referrer);
                    acks.insert((at.feed.clone(), issuer_hash), ack);
                }
            }
        }
    }
}

/// Collects entries until a bound is reached, but at least one.
pub(super) fn first_page(entries: impl Iterator<Item = Entry>, entries_max: usize, bytes_max: usize) -> Vec<Entry> {
    let mut bytes = 0;
    let mut page = Vec::new();
    for entry in entries {
        let size = match &entry.content {
            Content::Disclosed { envelope, .. } => envelope.len(),
            Content::Undisclosed(_) => 0,
        };
        if !page.is_empty() && (page.len() >= entries_max || bytes + size > bytes_max) {
            break;
        }
        bytes += size;
        page.push(entry);
    }
    page
}
