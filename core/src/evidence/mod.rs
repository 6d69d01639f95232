//! Evidence: one file that proves a bulletin offline, years later, to a verifier that trusts only a
//! roster.
//!
//! In scope: the file `<id>.barid` and its parts, assembling it, and verifying it ([`verify()`]).
//! Out of scope: finding the parts in a store, reading the file from a disk, and presenting the
//! result. Format: docs/protocol.md, "Evidence".
//!
//! The file is a ZIP in canonical form ([`zip`]). It holds, in this order: `README.txt`, the page
//! that describes what the file proves and how to check it without Barid; `envelope.bin`;
//! `proofs/<n>.tlog-proof` from 1, by ascending size; `consistency/<a>-<b>.txt`, a consistency
//! proof between every two adjacent sizes of proofs and custody notes, as base64 hashes, one per
//! line; `custody/<member>.note`; and `rosters/<version>.note`. No byte of the file can vary: each
//! is fixed, or covered by a hash or signature.

mod verify;
pub mod zip;

use bytes::Bytes;

pub use verify::{Cosigner, CustodyHolder, Dispute, Outcome, Report, Uncounted, Verdict, verify};
use zip::{Part, ZipError};

use crate::feed::cosignature::CosignatureError;
use crate::feed::custody::CustodyError;
use crate::feed::note::{Note, NoteError};
use crate::feed::text;
use crate::feed::tlog_proof::{TlogProof, TlogProofError};
use crate::feed::tree::ProofError;
use crate::ids::{FeedId, Hash, Member};
use crate::limits::{EVIDENCE_PROOFS_MAX, PROOF_HASHES_MAX, ROSTER_BYTES_MAX};
use crate::roster::{ChainError, Roster, RosterError};

/// The page in every file of this format version.
pub const PAGE: &str = include_str!("page-1.txt");

/// The parts of a file. Reading checks the form only: nothing in this type is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvidenceParts {
    /// The bulletin.
    pub envelope: Bytes,
    /// Proofs of the same entry, each to a checkpoint of a different size, with the cosignatures
    /// made on that checkpoint ([`crate::feed::cosignature::with_cosignatures`]).
    pub proofs: Vec<TlogProof>,
    /// See [`EvidenceParts::pairs`].
    pub consistency: Vec<Consistency>,
    /// Custody notes that attest that the entry is held in full, one per member. Only the feed's
    /// owner has them.
    pub custody: Vec<(Member, Bytes)>,
    /// Consecutive versions, ascending: from the oldest that a verifier may trust, up to at least
    /// the header's version.
    pub rosters: Vec<(u64, Bytes)>,
}

/// Proof that the feed at one size is a prefix of the feed at another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consistency {
    /// The smaller size.
    pub old: u64,
    /// The larger size.
    pub new: u64,
    /// Consistency proof (RFC 6962 §2.1.2).
    pub proof: Vec<Hash>,
}

/// Why a file is not evidence: the fault of its creator or of its carrier.
/// [`EvidenceError::RosterGap`] and [`EvidenceError::RosterTooOld`] are faults of the verifier,
/// whose trusted roster is too old to decide.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceError {
    /// Not an archive in canonical form.
    #[error(transparent)]
    Zip(#[from] ZipError),
    /// The page differs from the page of this format version.
    #[error("README.txt is not the page of this format version")]
    Page,
    /// A part that is unexpected, out of place or unreadable.
    #[error("`{0}` is not a part of evidence, is out of order, or cannot be read")]
    Part(String),
    /// A required part is missing, or there are too many of it.
    #[error("there are {found} {what}")]
    Count {
        /// Type of part.
        what: &'static str,
        /// Number found.
        found: usize,
    },
    /// The envelope or its header cannot be read.
    #[error("the bulletin cannot be read: {0}")]
    Bulletin(String),
    /// A proof that does not prove the bulletin.
    #[error("a proof is wrong")]
    Proof(#[from] TlogProofError),
    /// The entry's feed is not a feed of the publisher in the roster's exchange.
    #[error("{feed} is not a feed of {member} in the exchange {exchange}")]
    Feed {
        /// Feed of the proof.
        feed: FeedId,
        /// Member named in the header.
        member: Member,
        /// Exchange of the roster.
        exchange: String,
    },
    /// The roster has no key for the feed.
    #[error("no roster lists a key for {0}")]
    NoFeedKeys(FeedId),
    /// Proofs of different feeds or entries, or not by ascending size.
    #[error("the proofs are not of one entry in ascending order of size")]
    Different,
    /// The consistency proofs do not match the sizes.
    #[error("the consistency proofs do not match the sizes of the checkpoints")]
    Untied,
    /// A consistency proof is invalid.
    #[error("the feed at {old} entries is not a prefix of the feed at {new}")]
    Consistency {
        /// Smaller size.
        old: u64,
        /// Larger size.
        new: u64,
        /// Why.
        source: ProofError,
    },
    /// A signature that is by no key in a roster.
    #[error("there is a signature by `{0}`, which the roster does not list for this purpose")]
    UnknownSignature(String),
    /// An invalid note.
    #[error("a signed note cannot be read, or its signature is wrong")]
    Note(#[from] NoteError),
    /// An invalid cosignature.
    #[error("a cosignature is wrong")]
    Cosignature(#[from] CosignatureError),
    /// An invalid custody note.
    #[error("the custody note of {member} is wrong")]
    Custody {
        /// The member that signed it.
        member: Member,
        /// Why.
        source: CustodyError,
    },
    /// A custody note for another feed, or one that does not attest that the entry is held.
    #[error("the custody note of {0} does not cover this bulletin")]
    NotHeld(Member),
    /// The rosters do not form a chain.
    #[error("the rosters do not follow one another")]
    Rosters(#[from] ChainError),
    /// A roster cannot be read.
    #[error("a roster cannot be read")]
    Roster(#[from] RosterError),
    /// A roster in the file differs from the trusted one of that version, or is not linked to it.
    #[error("roster version {0} differs from the one you trust, or is not its successor")]
    OtherRoster(u64),
    /// The trusted roster is too old for the file.
    #[error("the rosters begin at version {first}: you need a roster of version {} or later", first.saturating_sub(1))]
    RosterGap {
        /// First version in the file.
        first: u64,
    },
    /// Neither the trusted roster nor the file reaches the header's version.
    #[error("the bulletin names roster version {needed}, the newest known is {newest}")]
    RosterTooOld {
        /// The header's version.
        needed: u64,
        /// Newest version known.
        newest: u64,
    },
}

/// Assembles a file and verifies it against its own newest roster, so that an invalid file is never
/// created. Proofs, consistency proofs and custody notes may be in any order.
///
/// # Errors
/// [`EvidenceError`] as returned by verifying the file.
pub fn assemble(mut parts: EvidenceParts) -> Result<Vec<u8>, EvidenceError> {
    parts.proofs.sort_by_key(|proof| size_of(proof).unwrap_or(0));
    parts.consistency.sort_by_key(|tie| (tie.old, tie.new));
    parts.custody.sort();
    parts.rosters.sort();
    let count = EvidenceError::Count { what: "rosters", found: 0 };
    let (_, first) = parts.rosters.first_mut().ok_or(count.clone())?;
    *first = without_earlier_governors(first)?;
    let file = parts.to_bytes()?;
    let (newest, _) = Roster::read(&parts.rosters.last().ok_or(count)?.1)?;
    match verify(&file, &newest).outcome {
        Outcome::Invalid(error) | Outcome::Undecided(error) => Err(error),
        _ => Ok(file),
    }
}

impl EvidenceParts {
    /// Parses a file and checks its form. For every file accepted here, [`EvidenceParts::to_bytes`]
    /// returns the same bytes.
    ///
    /// # Errors
    /// [`EvidenceError`] if it has another form.
    pub fn read(file: &[u8]) -> Result<Self, EvidenceError> {
        if file.len() > crate::limits::EVIDENCE_BYTES_MAX {
            return Err(ZipError::TooLarge(file.len()).into());
        }
        let read = zip::read(&Bytes::copy_from_slice(file))?;
        let mut parts = Self {
            envelope: Bytes::new(),
            proofs: Vec::new(),
            consistency: Vec::new(),
            custody: Vec::new(),
            rosters: Vec::new(),
        };
        for part in &read {
            parts.insert(part).ok_or_else(|| EvidenceError::Part(part.name.clone()))?;
        }
        if read.first().is_none_or(|part| part.data != PAGE) {
            return Err(EvidenceError::Page);
        }
        // Comparing with the canonical list of parts detects parts that are missing, duplicated,
        // misspelled or out of place.
        let written = parts.parts()?;
        let wrong = read.iter().zip(&written).find(|(found, expected)| found != expected);
        if let Some((found, _)) = wrong {
            return Err(EvidenceError::Part(found.name.clone()));
        }
        if read.len() != written.len() {
            return Err(EvidenceError::Count { what: "parts", found: read.len() });
        }
        Ok(parts)
    }

    /// Returns the file.
    ///
    /// # Errors
    /// [`EvidenceError::Zip`] or [`EvidenceError::Count`] if there are too many or too few parts.
    pub fn to_bytes(&self) -> Result<Vec<u8>, EvidenceError> {
        Ok(zip::write(&self.parts()?)?)
    }

    /// Returns the pairs of sizes that need a consistency proof: adjacent sizes among all proofs
    /// and custody notes.
    ///
    /// # Errors
    /// If a checkpoint or custody note cannot be read.
    pub fn pairs(proofs: &[TlogProof], custody: &[(Member, Bytes)]) -> Result<Vec<(u64, u64)>, EvidenceError> {
        let mut sizes = std::collections::BTreeSet::new();
        for proof in proofs {
            sizes.insert(size_of(proof).map_err(TlogProofError::from)?);
        }
        for (member, note) in custody {
            let source = |source| EvidenceError::Custody { member: member.clone(), source };
            sizes.insert(crate::feed::custody::CustodyNote::parse_text(&Note::parse(note)?.text).map_err(source)?.size);
        }
        let sizes: Vec<u64> = sizes.into_iter().collect();
        Ok(sizes.windows(2).map(|pair| (pair[0], pair[1])).collect())
    }

    fn parts(&self) -> Result<Vec<Part>, EvidenceError> {
        let bounded = |what, found: usize, range: std::ops::RangeInclusive<usize>| {
            if range.contains(&found) { Ok(()) } else { Err(EvidenceError::Count { what, found }) }
        };
        bounded("proofs", self.proofs.len(), 1..=EVIDENCE_PROOFS_MAX)?;
        bounded("rosters", self.rosters.len(), 1..=usize::MAX)?;
        let part = |name: String, data: Bytes| Part { name, data };
        let mut parts = vec![
            part("README.txt".to_owned(), Bytes::from_static(PAGE.as_bytes())),
            part("envelope.bin".to_owned(), self.envelope.clone()),
        ];
        let numbered = (1..).zip(&self.proofs);
        parts.extend(numbered.map(|(n, proof)| part(format!("proofs/{n}.tlog-proof"), proof.format().into())));
        parts.extend(self.consistency.iter().map(|tie| {
            let lines: String = tie.proof.iter().map(|hash| text::base64(hash) + "\n").collect();
            part(format!("consistency/{}-{}.txt", tie.old, tie.new), lines.into())
        }));
        let custody = self.custody.iter();
        parts.extend(custody.map(|(member, note)| part(format!("custody/{member}.note"), note.clone())));
        let rosters = self.rosters.iter();
        parts.extend(rosters.map(|(version, note)| part(format!("rosters/{version}.note"), note.clone())));
        Ok(parts)
    }

    fn insert(&mut self, part: &Part) -> Option<()> {
        let name = part.name.as_str();
        let within = |folder: &str, end: &str| Some(name.strip_prefix(folder)?.strip_suffix(end)?.to_owned());
        if name == "README.txt" {
        } else if name == "envelope.bin" {
            self.envelope = part.data.clone();
        } else if within("proofs/", ".tlog-proof").is_some() {
            self.proofs.push(TlogProof::parse(&part.data).ok()?);
        } else if let Some(sizes) = within("consistency/", ".txt") {
            let (old, new) = sizes.split_once('-')?;
            let lines = std::str::from_utf8(&part.data).ok()?.strip_suffix('\n')?.split('\n');
            let proof: Option<Vec<Hash>> = lines.take(PROOF_HASHES_MAX + 1).map(text::hash).collect();
            self.consistency.push(Consistency {
                old: text::decimal(old)?,
                new: text::decimal(new)?,
                proof: proof.filter(|proof| proof.len() <= PROOF_HASHES_MAX)?,
            });
        } else if let Some(member) = within("custody/", ".note") {
            self.custody.push((member.parse().ok()?, part.data.clone()));
        } else {
            let version = within("rosters/", ".note")?;
            self.rosters.push((text::decimal(&version)?, part.data.clone()));
        }
        Some(())
    }
}

fn size_of(proof: &TlogProof) -> Result<u64, crate::feed::checkpoint::CheckpointError> {
    Ok(crate::feed::checkpoint::Checkpoint::parse_text(&Note::parse(&proof.checkpoint)?.text)?.size)
}

/// Removes signatures by governors of an earlier version. A chain that does not begin at version 1
/// begins with a note that governors of the previous version have signed too. That version is not
/// in the file, so their signatures could not be verified.
fn without_earlier_governors(note: &Bytes) -> Result<Bytes, EvidenceError> {
    let (roster, mut parsed) = Roster::read(note)?;
    debug_assert!(note.len() <= ROSTER_BYTES_MAX, "a decoded roster is bounded");
    parsed.signatures.retain(|line| roster.governors().iter().any(|key| line.is_by(key)));
    Ok(parsed.to_bytes().into())
}
