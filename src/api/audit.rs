//! The Audit service: exports evidence from this node's store.
//!
//! In scope: access, finding the parts of the file in the store, and sending the file in pieces.
//! Out of scope: the file's format and what it proves (`core::evidence`).

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use barid_core::bulletin::{BulletinId, Rule};
use barid_core::evidence::{Consistency, EvidenceError, EvidenceParts, Verdict, assemble, verify};
use barid_core::feed::checkpoint::{CheckpointError, SignedCheckpoint};
use barid_core::feed::cosignature::with_cosignatures;
use barid_core::feed::custody::CustodyNote;
use barid_core::feed::note::{Note, NoteSignature, VerifierKey};
use barid_core::feed::tlog_proof::{TlogProof, TlogProofError};
use barid_core::feed::tree::{HashReader as _, NodeId, consistency_proof, inclusion_proof, leaf_hash, root_at};
use barid_core::ids::{FeedId, Member};
use barid_core::limits::{EVIDENCE_BYTES_MAX, EVIDENCE_PROOFS_MAX};
use barid_core::proto;
use barid_core::roster::{Role as KeyRole, RosterChain};
use bytes::Bytes;
use futures::stream::{self, Stream};
use tonic::{Request, Response, Status};

use super::caller::Caller;
use super::{Api, errors, methods, stored_wait};
use crate::budgets::table;
use crate::rpc::audit_server::Audit;
use crate::store::{Content, Entry, FeedTree, PriorityEntry, ReadError, Store};
use crate::telemetry::{AuditEvent, audit_limited};

/// Bytes of the file in one message: far below the message limit, so that a slow client holds
/// little of it in buffers.
const PIECE_BYTES_MAX: usize = 256 << 10;

/// Exports by one caller in a minute that are each recorded. A person does not export more.
const EXPORTS_RECORDED_MAX: u64 = 60;
/// Bytes of memory that assembling a file takes: its parts and the whole.
const ASSEMBLED_BYTES: u64 = 2 * EVIDENCE_BYTES_MAX as u64;

/// Why a bulletin in the store cannot be exported.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExportError {
    /// No checkpoint is held that includes the entry and lies within the tree held here.
    #[error("no checkpoint of {feed} that includes entry {index} and has at most {held} entries is held yet")]
    CatchingUp {
        /// The feed.
        feed: FeedId,
        /// The entry's index.
        index: u64,
        /// Number of entries of the feed that are held.
        held: u64,
    },
    /// The parts would not pass verification.
    #[error("the parts held here do not form valid evidence: {0}")]
    Evidence(#[from] EvidenceError),
    /// The store cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl From<CheckpointError> for ExportError {
    fn from(error: CheckpointError) -> Self {
        Self::Evidence(TlogProofError::from(error).into())
    }
}

#[tonic::async_trait]
impl Audit for Api {
    type ExportEvidenceStream = Pin<Box<dyn Stream<Item = Result<proto::ExportEvidenceResponse, Status>> + Send>>;

    async fn export_evidence(
        &self,
        request: Request<proto::ExportEvidenceRequest>,
    ) -> Result<Response<Self::ExportEvidenceStream>, Status> {
        let (caller, call) = self.begin(request.extensions(), &methods::EXPORT_EVIDENCE)?;
        let proto::ExportEvidenceRequest { member, id } = request.into_inner();
        let owner: Member = member.parse().map_err(|_| errors::argument("member", &member, Rule::Member))?;
        let uuid: BulletinId = id.parse().map_err(|_| errors::argument("id", &id, Rule::Id))?;
        // To the caller, a bulletin that is not visible does not exist.
        let not_visible = |entry: &Entry| (!self.may_export(&caller, entry)).then_some("NOT_CLEARED");
        let found = self.find_for(&caller, methods::EXPORT_EVIDENCE.name, (&owner, uuid), not_visible).await?;
        let entry = found
            .ok_or_else(|| Status::not_found(format!("no bulletin {member}/{id} that you may read is held here")))?;
        let (owner, class) = call.account();
        let turn = self.budgets.of(&table::API_EVIDENCE).charge(owner, class, ASSEMBLED_BYTES).await;
        let (store, rosters) = (Arc::clone(self.store()), self.rosters.load());
        let place = format!("{} {}", entry.feed, entry.index);
        let made = tokio::task::spawn_blocking(move || {
            let made = export(store.as_ref(), &rosters, &entry);
            // Reading, hashing and verifying continue after the call is cancelled, so they stay
            // charged.
            drop(turn);
            made
        });
        let made = made.await;
        let (file, verdict) = made
            .map_err(|_| Status::internal("internal error of the node"))?
            .map_err(|error| errors::export(&error))?;
        // The call was charged for a file of usual size when it began.
        let beyond = (file.len() as u64).saturating_sub(methods::EXPORT_EVIDENCE.response_bytes);
        call.grow_response(beyond)?;
        let held = call.take_response_charges();
        let exported =
            AuditEvent { event: "evidence", reason: "exported", actor: &caller.path, resource: &place, detail: &"" };
        audit_limited(EXPORTS_RECORDED_MAX, &exported);
        let mut summary = Some(summary(&file, &verdict));
        let pieces = pieces(file).map(move |piece| {
            // The file stays in memory, and charged, until its last piece is dropped.
            let _charged = &held;
            Ok(proto::ExportEvidenceResponse { summary: summary.take(), piece })
        });
        Ok(Response::new(Box::pin(stream::iter(pieces))))
    }
}

impl Api {
    /// Auditors export what their member may read in the auditors' working groups. All other
    /// callers export what they may read themselves.
    fn may_export(&self, caller: &Caller, entry: &Entry) -> bool {
        let Content::Disclosed { header: Some(header), .. } = &entry.content else { return false };
        let audits = caller.audits(&header.topic) && self.local_audience(entry, header).to_focal_points();
        audits || self.may_deliver(caller, entry)
    }
}

fn pieces(file: Bytes) -> impl Iterator<Item = Bytes> {
    let starts = (0..file.len()).step_by(PIECE_BYTES_MAX);
    starts.map(move |start| file.slice(start..file.len().min(start + PIECE_BYTES_MAX)))
}

fn summary(file: &Bytes, verdict: &Verdict) -> proto::EvidenceSummary {
    let report = verdict.report.as_ref();
    let cosigners = report.map(|report| report.cosigners.as_slice()).unwrap_or_default();
    let counted = || cosigners.iter().filter(|cosigner| cosigner.uncounted.is_none());
    let custody = report.map(|report| report.custody.as_slice()).unwrap_or_default();
    proto::EvidenceSummary {
        size: file.len() as u64,
        outcome: verdict.outcome.as_str().to_owned(),
        cosigners: counted().map(|cosigner| cosigner.member.to_string()).collect(),
        quorum: report.map_or(0, |report| u32::try_from(report.quorum).unwrap_or(u32::MAX)),
        newest_cosignature: counted().map(|cosigner| cosigner.time).max().map(stored_wait::seconds),
        custody: custody.iter().map(|holder| holder.member.to_string()).collect(),
    }
}

/// Builds the file, and its verdict by the newest roster. Blocks.
fn export(store: &dyn Store, rosters: &RosterChain, entry: &Entry) -> Result<(Bytes, Verdict), ExportError> {
    let Content::Disclosed { envelope, .. } = &entry.content else {
        return Err(ReadError::Missing(format!("the content of {} {}", entry.feed, entry.index)).into());
    };
    let feed = &entry.feed;
    let tree = FeedTree { store, feed };
    let in_order = checkpoints(&tree, rosters, entry.index).and_then(|found| {
        // A priority entry may differ from the entry that its feed has at that index. Then it is
        // not in the tree held here.
        let leaf = tree.hashes(&[NodeId::leaf(entry.index)])?;
        let held = leaf.first() == Some(&leaf_hash(&entry.digest));
        if held { Ok(found) } else { Err(ReadError::Missing(format!("{feed} {}", entry.index)).into()) }
    });
    let (proofs, custody) = match in_order {
        Ok(checkpoints) => {
            let proofs = checkpoints.into_iter().map(|(size, checkpoint)| {
                Ok(TlogProof { index: entry.index, proof: inclusion_proof(&tree, entry.index, size)?, checkpoint })
            });
            let proofs: Vec<TlogProof> = proofs.collect::<Result<_, ReadError>>()?;
            (proofs, custody(&tree, rosters, entry.index)?)
        }
        // A priority entry was stored with its own proof.
        Err(error) => match store.priority_entry(feed, entry.index)?.filter(|held| held.entry.digest == entry.digest) {
            Some(priority) => (vec![own_proof(&priority, rosters)?], Vec::new()),
            None => return Err(error),
        },
    };
    let ties = EvidenceParts::pairs(&proofs, &custody)?.into_iter();
    let ties = ties.map(|(old, new)| Ok(Consistency { old, new, proof: consistency_proof(&tree, old, new)? }));
    let parts = EvidenceParts {
        envelope: envelope.clone(),
        proofs,
        consistency: ties.collect::<Result<_, ReadError>>()?,
        custody,
        rosters: rosters.notes().map(|(version, note)| (version, note.clone())).collect(),
    };
    let file = Bytes::from(assemble(parts)?);
    let verdict = verify(&file, rosters.newest());
    Ok((file, verdict))
}

/// Builds the proof that a priority entry was stored with.
fn own_proof(priority: &PriorityEntry, rosters: &RosterChain) -> Result<TlogProof, ExportError> {
    let feed = &priority.feed;
    let keys = feed_keys(rosters, feed).ok_or_else(|| EvidenceError::NoFeedKeys(feed.clone()))?;
    let checkpoint = with_cosignatures(&SignedCheckpoint::verify(&priority.checkpoint, &keys)?, &[]);
    Ok(TlogProof { index: priority.index, proof: priority.proof.clone(), checkpoint })
}

/// Returns the checkpoint notes that include the entry and lie within the tree held here, by size:
/// the cosigned ones, or else the newest one without cosignatures. Cosignatures by keys that no
/// roster lists are left out, because a verifier would reject them.
fn checkpoints(tree: &FeedTree<'_>, rosters: &RosterChain, index: u64) -> Result<BTreeMap<u64, Bytes>, ExportError> {
    let (store, feed) = (tree.store, tree.feed);
    let keys = feed_keys(rosters, feed).ok_or_else(|| EvidenceError::NoFeedKeys(feed.clone()))?;
    let state = store.feed(feed).ok_or_else(|| ReadError::Missing(feed.to_string()))?;
    let held = state.compact_range.size();
    let mut cosigned: BTreeMap<u64, (SignedCheckpoint, Vec<NoteSignature>)> = BTreeMap::new();
    for record in store.cosigned_covering(feed, index)? {
        let Ok(note) = Note::parse(&record.note) else { continue };
        let by = |line: &NoteSignature| listed(rosters, &record.cosigner, KeyRole::Mirror, line);
        let lines: Vec<NoteSignature> = note.signatures.iter().filter(|line| by(line)).cloned().collect();
        let room = cosigned.len() < EVIDENCE_PROOFS_MAX || cosigned.contains_key(&record.size);
        if lines.is_empty() || record.size > held || !room {
            continue;
        }
        let signed = SignedCheckpoint::verify(&record.note, &keys)?;
        // The cosignature was stored when this node held a smaller tree, and it covers another
        // history. It proves nothing about this tree.
        if root_at(tree, record.size)? != signed.checkpoint.root {
            tracing::error!(
                %feed,
                cosigner = %record.cosigner,
                size = record.size,
                "a stored cosigned checkpoint conflicts with the feed held here"
            );
            continue;
        }
        cosigned.entry(record.size).or_insert_with(|| (signed, Vec::new())).1.extend(lines);
    }
    if cosigned.is_empty() {
        if state.checkpoint_size > held || state.checkpoint_size <= index {
            return Err(ExportError::CatchingUp { feed: feed.clone(), index, held });
        }
        cosigned.insert(held, (SignedCheckpoint::verify(&state.checkpoint, &keys)?, Vec::new()));
    }
    Ok(cosigned.into_iter().map(|(size, (signed, lines))| (size, with_cosignatures(&signed, &lines))).collect())
}

/// Returns the custody notes that cover the entry in full and lie within the tree held here.
fn custody(tree: &FeedTree<'_>, rosters: &RosterChain, index: u64) -> Result<Vec<(Member, Bytes)>, ReadError> {
    let held = tree.store.feed(tree.feed).map_or(0, |state| state.compact_range.size());
    let usable = |holder: &Member, note: &Bytes| {
        let Ok(parsed) = Note::parse(note) else { return false };
        CustodyNote::parse_text(&parsed.text).is_ok_and(|custody| custody.size <= held)
            && parsed.signatures.iter().all(|line| listed(rosters, holder, KeyRole::Custody, line))
    };
    let records = tree.store.custody_covering(tree.feed, index)?.into_iter();
    let notes = records.map(|record| (record.holder, record.note));
    Ok(notes.filter(|(holder, note)| usable(holder, note)).collect())
}

/// Returns whether a signature line has the name and id of a key that any roster lists for the
/// member in that role.
fn listed(rosters: &RosterChain, member: &Member, role: KeyRole, line: &NoteSignature) -> bool {
    let mut versions = rosters.notes().filter_map(|(version, _)| rosters.at(version));
    versions.any(|roster| roster.keys(member, role).any(|key| line.is_by(&key.key)))
}

/// Returns the feed's keys from the newest roster that lists any, as a verifier does.
fn feed_keys(rosters: &RosterChain, feed: &FeedId) -> Option<Vec<VerifierKey>> {
    let versions = rosters.notes().filter_map(|(version, _)| rosters.at(version));
    versions.map(|roster| roster.feed_keys(feed)).filter(|keys| !keys.is_empty()).last()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use barid_core::bulletin::kinds;
    use barid_core::envelope;
    use barid_core::evidence::Outcome;
    use barid_core::feed::checkpoint::{Checkpoint, sign};
    use barid_core::feed::cosignature::cosign;
    use barid_core::feed::note::{Algorithm, SigningKey};
    use barid_core::feed::tree::MemoryTree;

    use super::*;
    use crate::pki::{DevelopMember, DevelopOptions, develop};
    use crate::store::memory::MemoryStore;
    use crate::store::{Append, Commit, Cosigned, NewEntry};

    const TIME: u64 = 1_763_927_050;

    /// Morocco's feed as another member holds it.
    struct World {
        folder: tempfile::TempDir,
        rosters: RosterChain,
        feed: FeedId,
        tree: MemoryTree,
        entries: Vec<NewEntry>,
        store: MemoryStore,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let places = [("ma", 7400), ("ly", 7410), ("tn", 7420)];
            let members = places.map(|(code, port)| DevelopMember::local(code.parse().unwrap(), port)).into();
            let exchange = "rabat.example".parse().unwrap();
            develop(&DevelopOptions::new(folder.path().to_owned(), exchange, members)).unwrap();
            let roster = std::fs::read(folder.path().join("roster.note")).unwrap();
            let (mut tree, mut entries) = (MemoryTree::new(), Vec::new());
            for n in 0..4_u8 {
                let draft = kinds::REGISTRY[0].sample().unwrap();
                let header = proto::Header {
                    format: 1,
                    member: "ma".into(),
                    id: format!("01976f6e-7c00-7000-8000-00000000000{n}"),
                    roster_version: 1,
                    ..draft.header.unwrap()
                };
                let envelope = envelope::encode(&header, &draft.body.unwrap(), [n; 16]);
                let digest = envelope::digest(&envelope);
                tree.append(&digest);
                let header = Some(Arc::new(header));
                entries.push(NewEntry { digest, content: Content::Disclosed { envelope, header } });
            }
            let feed = "ma.rabat.example/feed/1".parse().unwrap();
            let rosters = RosterChain::start(&roster).unwrap();
            Self { folder, rosters, feed, tree, entries, store: MemoryStore::new() }
        }

        fn key(&self, path: &str) -> SigningKey {
            let text = std::fs::read_to_string(self.folder.path().join(path)).unwrap();
            SigningKey::from_text(text.trim_end()).unwrap()
        }

        fn checkpoint(&self, size: u64) -> SignedCheckpoint {
            let root = root_at(&self.tree, size).unwrap();
            sign(&Checkpoint { feed: self.feed.clone(), size, root }, &[self.key("ma/keys/feed.key")]).unwrap()
        }

        /// Stores entries up to `end`, with a checkpoint of `size`.
        fn arrive(&self, end: u64, size: u64) {
            let first = self.store.feed(&self.feed).map_or(0, |state| state.compact_range.size());
            let range = usize::try_from(first).unwrap()..usize::try_from(end).unwrap();
            let append = Append {
                feed: self.feed.clone(),
                first,
                entries: self.entries[range].to_vec(),
                checkpoint: self.checkpoint(size).note,
                checkpoint_size: size,
                consistency_proof: consistency_proof(&self.tree, end, size).unwrap(),
            };
            self.store.commit(Commit { appends: vec![append], ..Commit::default() }, self.store.seq()).unwrap();
        }

        fn cosigned(&self, member: &str, size: u64, key: &SigningKey) {
            let note = cosign(&self.checkpoint(size), key, TIME).unwrap();
            let cosigner = member.parse().unwrap();
            let cosigned = Cosigned { feed: self.feed.clone(), cosigner, size, time: TIME, note };
            self.store.commit(Commit { cosigned: vec![cosigned], ..Commit::default() }, self.store.seq()).unwrap();
        }

        fn export(&self, index: u64) -> Result<(Bytes, Verdict), ExportError> {
            let entry = self.store.entries(&self.feed, index, 1, usize::MAX).unwrap().remove(0);
            export(&self.store, &self.rosters, &entry)
        }
    }

    #[test]
    fn evidence_uses_checkpoints_within_the_held_tree() {
        let world = World::new();
        let mirror = |member: &str| world.key(&format!("{member}/keys/mirror.key"));
        // Half of the feed with a checkpoint of the whole feed, which nothing held here proves yet.
        world.arrive(2, 4);
        world.cosigned("ly", 4, &mirror("ly"));
        let error = world.export(1).unwrap_err();
        assert!(matches!(error, ExportError::CatchingUp { index: 1, held: 2, .. }), "{error}");
        let status = errors::export(&error);
        assert_eq!(status.code(), tonic::Code::FailedPrecondition);
        assert!(tonic_types::StatusExt::get_error_details(&status).retry_info().is_some());
        // The whole feed. One member has cosigned, then a second one at another size.
        world.arrive(4, 4);
        let (_, verdict) = world.export(1).unwrap();
        assert_eq!((verdict.outcome, verdict.report.unwrap().counted), (Outcome::SignedOnly, 1));
        world.cosigned("tn", 3, &mirror("tn"));
        let (file, verdict) = world.export(1).unwrap();
        assert_eq!((&verdict.outcome, &verdict.report.as_ref().unwrap().sizes[..]), (&Outcome::Witnessed, &[3, 4][..]));
        let summary = summary(&file, &verdict);
        assert_eq!((summary.outcome.as_str(), summary.quorum), ("witnessed", 2));
        assert_eq!(summary.cosigners, ["ly", "tn"]);
        let sent: Vec<Bytes> = pieces(file.clone()).collect();
        assert_eq!(sent.concat(), file);
        // Cosigned at size 3 only, which does not include the last entry.
        assert_eq!(world.export(3).unwrap().1.outcome, Outcome::SignedOnly);
    }

    #[test]
    fn evidence_omits_lines_of_unlisted_keys() {
        let world = World::new();
        world.arrive(4, 4);
        let stranger =
            SigningKey::from_seed("tn.rabat.example/mirror", Algorithm::CosignatureEd25519, [7; 32]).unwrap();
        world.cosigned("tn", 4, &stranger);
        let (_, verdict) = world.export(0).unwrap();
        assert_eq!((verdict.outcome, verdict.report.unwrap().cosigners.len()), (Outcome::SignedOnly, 0));
    }

    #[test]
    fn large_evidence_file_is_sent_in_bounded_pieces() {
        let file = Bytes::from(vec![7; 2 * PIECE_BYTES_MAX + 1]);
        let sizes: Vec<usize> = pieces(file).map(|piece| piece.len()).collect();
        assert_eq!(sizes, [PIECE_BYTES_MAX, PIECE_BYTES_MAX, 1]);
    }
}
