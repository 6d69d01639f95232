//! Receipts: an index, a checkpoint, and the inclusion proof of the entry in it.
//!
//! In scope: receipts for entries that were just committed and for earlier entries with the same
//! id. Out of scope: waiting for custody notes of other members (`stored_wait`). All functions read
//! the store and block. A whole group is proven at once, because moving to a blocking thread costs
//! more than a proof.

use std::sync::Arc;

use barid_core::bulletin::{DraftDefaults, ValidBulletin, prepare};
use barid_core::envelope::{self, SALT_BYTES};
use barid_core::feed::tree::inclusion_proof;
use barid_core::ids::{Digest, FeedId};
use barid_core::proto;
use bytes::Bytes;
use tonic::Status;

use super::stored_wait::StoredRequirement;
use super::{Api, errors};
use crate::budgets::Charge;
use crate::committer::{PublishOutcome, PublishedGroup};
use crate::store::{Content, FeedTree, Location, ReadError};

/// The charge for a request of a stream; `None` for a call from inside the program.
pub(super) type RequestCharge = Option<Arc<Charge>>;

/// What remains of a request while its bulletin is committed.
pub(super) struct PendingReceipt {
    /// The caller's request number.
    pub(super) request: u64,
    /// The draft, to compare with an earlier bulletin of the same id.
    pub(super) draft: proto::Draft,
    /// The custody requirement.
    pub(super) requirement: Option<StoredRequirement>,
    /// The charge for the request, until its response is sent.
    pub(super) received: RequestCharge,
    with_checkpoint: bool,
    id: String,
    digest: Digest,
    sent_at: Option<prost_types::Timestamp>,
}

impl PendingReceipt {
    pub(super) fn of(
        request: u64,
        bulletin: &ValidBulletin,
        draft: proto::Draft,
        requirement: Option<StoredRequirement>,
    ) -> Self {
        let header = &bulletin.proto_header;
        let (id, digest, sent_at) = (header.id.clone(), bulletin.digest, header.sent_at);
        Self {
            request,
            draft,
            with_checkpoint: requirement.is_some(),
            requirement,
            received: None,
            id,
            digest,
            sent_at,
        }
    }

    /// Adds the charge of a stream's request.
    pub(super) fn received(self, received: RequestCharge) -> Self {
        Self { received, ..self }
    }

    /// Includes the checkpoint in the receipt, because the receipt is sent alone. Requests with a
    /// custody requirement always include it.
    pub(super) fn with_checkpoint(self) -> Self {
        Self { with_checkpoint: true, ..self }
    }
}

/// A receipt with its parsed feed.
#[derive(Clone, Debug)]
pub(super) struct Receipt {
    /// The receipt for the caller.
    pub(super) receipt: proto::Receipt,
    /// The feed, of this epoch or an older one.
    pub(super) feed: FeedId,
}

/// The checkpoint that an entry is proven against.
struct Head {
    feed: FeedId,
    note: Bytes,
    size: u64,
}

impl Api {
    /// Builds receipts for a committed group, in its order. Blocks.
    pub(super) fn receipts(
        &self,
        issuer: &str,
        pending: &[PendingReceipt],
        group: &PublishedGroup,
    ) -> Vec<Result<Receipt, Status>> {
        let feed = self.committer.feed();
        let checkpoint = &group.checkpoint;
        let head = Head { feed: feed.clone(), note: checkpoint.note.clone(), size: checkpoint.checkpoint.size };
        let tree = FeedTree { store: self.store().as_ref(), feed };
        let receipt = |(pending, outcome): (&PendingReceipt, &PublishOutcome)| match outcome {
            PublishOutcome::New { index, .. } => {
                let mut proven = prove(&tree, &head, *index, &pending.id, &pending.digest, pending.sent_at)?;
                if !pending.with_checkpoint {
                    proven.receipt.checkpoint = Bytes::new();
                }
                Ok(proven)
            }
            PublishOutcome::Duplicate(location) => {
                self.first_receipt(issuer, &pending.draft, &pending.id, location, Some(&head))
            }
            // Another bulletin of the group has the id. It is durable now, and may be the same
            // bulletin.
            PublishOutcome::DuplicateInCommit => match self.held(&pending.id)? {
                Some(location) => self.first_receipt(issuer, &pending.draft, &pending.id, &location, Some(&head)),
                None => Err(Status::internal("internal error of the node")),
            },
        };
        pending.iter().zip(&group.outcomes).map(receipt).collect()
    }

    /// Returns the receipt of a draft that the same issuer published before; `None` if it was not.
    /// Blocks.
    pub(super) fn repeated(&self, issuer: &str, draft: &proto::Draft) -> Result<Option<Receipt>, Status> {
        let id = draft.header.as_ref().map_or("", |header| header.id.as_str());
        let Some(location) = self.held(id)? else { return Ok(None) };
        match self.first_receipt(issuer, draft, id, &location, None) {
            Err(status) if status.code() == tonic::Code::AlreadyExists => Ok(None),
            receipt => receipt.map(Some),
        }
    }

    /// Returns the location of this member's bulletin with an id.
    fn held(&self, id: &str) -> Result<Option<Location>, Status> {
        let Ok(id) = id.parse::<barid_core::bulletin::BulletinId>() else { return Ok(None) };
        self.store().find(self.me(), id.uuid()).map_err(|error| errors::read(&error))
    }

    /// Handles an id that is in use: returns the receipt if issuer and bulletin are the same, else
    /// an id conflict.
    fn first_receipt(
        &self,
        issuer: &str,
        draft: &proto::Draft,
        id: &str,
        location: &Location,
        newest: Option<&Head>,
    ) -> Result<Receipt, Status> {
        let defect = || Status::internal("internal error of the node");
        let entries = self.store().entries(&location.feed, location.index, 1, usize::MAX);
        let entry = entries.map_err(|error| errors::read(&error))?.into_iter().next().ok_or_else(defect)?;
        let Content::Disclosed { envelope, header: Some(header) } = &entry.content else { return Err(id_conflict(id)) };
        if header.issuer != issuer {
            return Err(id_conflict(id));
        }
        let parts = envelope::parts(envelope).map_err(|_| defect())?;
        let salt: [u8; SALT_BYTES] = parts.salt.try_into().map_err(|_| defect())?;
        let defaults = DraftDefaults {
            member: self.me().clone(),
            issuer: header.issuer.clone(),
            id: header.id.parse().map_err(|_| defect())?,
            sent_at_unix_ms: sent_at_unix_ms(header),
            roster_version: header.roster_version,
        };
        if prepare::encode(draft, &defaults, salt).1 != entry.digest {
            return Err(id_conflict(id));
        }
        let older;
        let head = match newest.filter(|head| head.feed == location.feed) {
            Some(head) => head,
            None => {
                older = self.head(location)?;
                &older
            }
        };
        let tree = FeedTree { store: self.store().as_ref(), feed: &location.feed };
        prove(&tree, head, location.index, &header.id, &entry.digest, header.sent_at)
    }

    /// Returns a checkpoint that includes an entry and lies within the tree held here.
    fn head(&self, location: &Location) -> Result<Head, Status> {
        let Location { feed, index, .. } = location;
        let covers = |size: u64, held: u64| *index < size && size <= held;
        if feed == self.committer.feed() {
            // The store's checkpoint may belong to a commit whose high-water mark is still being
            // written.
            let newest = self.committer.newest_checkpoint().filter(|newest| newest.checkpoint.size > *index);
            let newest = newest.ok_or_else(|| Status::unavailable("the bulletin is being committed"))?;
            return Ok(Head { feed: feed.clone(), note: newest.note, size: newest.checkpoint.size });
        }
        let missing = || errors::read(&ReadError::Missing(feed.to_string()));
        let state = self.store().feed(feed).ok_or_else(missing)?;
        let held = state.compact_range.size();
        if covers(state.checkpoint_size, held) {
            return Ok(Head { feed: feed.clone(), note: state.checkpoint, size: state.checkpoint_size });
        }
        // The tail of an older epoch may be missing. Use a cosigned checkpoint of the part that is
        // held.
        let cosigned = self.store().cosigned_covering(feed, *index).map_err(|error| errors::read(&error))?;
        let reached = cosigned.into_iter().find(|cosigned| covers(cosigned.size, held));
        let reached = reached.ok_or_else(|| {
            Status::unavailable(format!(
                "no checkpoint of {feed} that includes entry {index} and can be proven is held"
            ))
        })?;
        Ok(Head { feed: feed.clone(), note: reached.note, size: reached.size })
    }
}

fn prove(
    tree: &FeedTree<'_>,
    head: &Head,
    index: u64,
    id: &str,
    digest: &Digest,
    sent_at: Option<prost_types::Timestamp>,
) -> Result<Receipt, Status> {
    let proof = inclusion_proof(tree, index, head.size).map_err(|error| errors::read(&error))?;
    let receipt = proto::Receipt {
        feed: head.feed.to_string(),
        index,
        id: id.to_owned(),
        digest: Bytes::copy_from_slice(&digest.0),
        checkpoint: head.note.clone(),
        inclusion_proof: proof.iter().map(|hash| Bytes::copy_from_slice(&hash.0)).collect(),
        sent_at,
    };
    Ok(Receipt { receipt, feed: head.feed.clone() })
}

fn id_conflict(id: &str) -> Status {
    Status::already_exists(format!("another bulletin has the id {id}; publish this one with a new id"))
}

fn sent_at_unix_ms(header: &proto::Header) -> u64 {
    header.sent_at.as_ref().map_or(0, |at| {
        let ms = at.seconds.saturating_mul(1_000).saturating_add(i64::from(at.nanos) / 1_000_000);
        u64::try_from(ms).unwrap_or(0)
    })
}
