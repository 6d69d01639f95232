//! The provider: entries as held and a reader in, what that reader may be shown out.
//!
//! In scope: need-to-know. Out of scope: cursors, batching and proofs (the node's links). A reader that may not read an entry gets
//! its digest and learns nothing else: not the header, not whether the topic was one it asked for.

use bytes::{Bytes, BytesMut};

use crate::bulletin::TopicFilter;
use crate::bulletin::audience::may_read;
use crate::names::{Digest, Member, Undisclosed};
use crate::proto;
use crate::roster::RosterChain;

/// What the provider holds of an entry.
#[derive(Clone, Copy, Debug)]
pub enum Held<'a> {
    /// All of it.
    Disclosed {
        /// Exact bytes.
        envelope: &'a Bytes,
        /// Its header; `None` if it cannot be decoded.
        header: Option<&'a proto::Header>,
    },
    /// The digest, for a reason.
    Undisclosed(Undisclosed),
}

/// Items for consecutive entries. `filters` are the topics that the reader asked for; none: every topic.
pub fn items<'a>(
    entries: impl IntoIterator<Item = (Digest, Held<'a>)>,
    reader: &Member,
    filters: &[TopicFilter],
    rosters: &RosterChain,
) -> Vec<proto::Item> {
    let mut items = Vec::new();
    let mut run: Option<(BytesMut, Undisclosed)> = None;
    for (digest, held) in entries {
        match show(held, reader, filters, rosters) {
            Ok(envelope) => {
                items.extend(run.take().map(finish));
                items.push(proto::Item { item: Some(proto::item::Item::Envelope(envelope.clone())) });
            }
            Err(reason) => match &mut run {
                Some((digests, same)) if *same == reason => digests.extend_from_slice(&digest.0),
                _ => {
                    items.extend(run.take().map(finish));
                    run = Some((BytesMut::from(&digest.0[..]), reason));
                }
            },
        }
    }
    items.extend(run.map(finish));
    items
}

/// Whether `reader` may be shown a bulletin: it is in the audience by the roster of the header's version and by the newest one.
#[must_use]
pub fn may_disclose(header: &proto::Header, reader: &Member, rosters: &RosterChain) -> bool {
    let newest = rosters.newest();
    let then = rosters.at(header.roster_version);
    then.is_some_and(|then| may_read(header, reader, then))
        && (header.roster_version == newest.version() || may_read(header, reader, newest))
}

fn show<'a>(
    held: Held<'a>,
    reader: &Member,
    filters: &[TopicFilter],
    rosters: &RosterChain,
) -> Result<&'a Bytes, Undisclosed> {
    match held {
        // Why *we* were not shown it is not the reader's business; that it was erased is.
        Held::Undisclosed(Undisclosed::Purged) => Err(Undisclosed::Purged),
        Held::Undisclosed(_) => Err(Undisclosed::NotHeld),
        Held::Disclosed { envelope, header: Some(header) } if may_disclose(header, reader, rosters) => {
            let asked = filters.is_empty() || filters.iter().any(|filter| filter.matches_header(&header.topic));
            if asked { Ok(envelope) } else { Err(Undisclosed::Unfollowed) }
        }
        Held::Disclosed { .. } => Err(Undisclosed::Withheld),
    }
}

fn finish((digests, reason): (BytesMut, Undisclosed)) -> proto::Item {
    let run = proto::DigestRun { digests: digests.freeze(), reason: reason.word().into() };
    proto::Item { item: Some(proto::item::Item::Digests(run)) }
}
