//! Equivocation by entries: two entries at one index of one feed.
//!
//! In scope: the evidence, and the file that proves it to others (docs/protocol.md §9.2). Out of
//! scope: two trees ([`super::Equivocation`]), and the reaction to it.

use std::fmt;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::EquivocationError;
use super::EquivocationError::Form;
use crate::feed::checkpoint::{Checkpoint, SignedCheckpoint};
use crate::feed::note::Note;
use crate::feed::tree::verify_inclusion;
use crate::ids::{Digest, FeedId, Hash};
use crate::limits::{EQUIVOCATION_BYTES_MAX, PROOF_HASHES_MAX};
use crate::roster::Roster;

/// First line of the file, with its newline. It distinguishes the file from other evidence.
pub const HEADING: &str = "barid equivocation v2\n";

/// An entry whose inclusion a checkpoint proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenEntry {
    /// Its digest.
    pub digest: Digest,
    /// A checkpoint with the feed's own signatures.
    pub checkpoint: SignedCheckpoint,
    /// Inclusion proof to the checkpoint's root.
    pub proof: Vec<Hash>,
}

/// Two checkpoints, validly signed by one feed's keys, that prove two different entries at one
/// index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryEquivocation {
    /// The index.
    pub index: u64,
    /// The entry under the smaller checkpoint, or under one of equal size.
    pub one: ProvenEntry,
    /// The other entry.
    pub other: ProvenEntry,
}

impl EntryEquivocation {
    /// Returns evidence if two verified checkpoints of one feed prove two different entries at
    /// `index`.
    #[must_use]
    pub fn at(index: u64, one: ProvenEntry, other: ProvenEntry) -> Option<Self> {
        let holds = |entry: &ProvenEntry| {
            let Checkpoint { size, root, .. } = &entry.checkpoint.checkpoint;
            verify_inclusion(&entry.digest, index, *size, &entry.proof, root).is_ok()
        };
        let proven = one.checkpoint.checkpoint.feed == other.checkpoint.checkpoint.feed
            && one.digest != other.digest
            && holds(&one)
            && holds(&other);
        // A fixed order makes the encoding unique.
        let order = |entry: &ProvenEntry| (entry.checkpoint.checkpoint.size, entry.digest.0);
        let (one, other) = if order(&one) <= order(&other) { (one, other) } else { (other, one) };
        proven.then_some(Self { index, one, other })
    }

    /// Returns the feed.
    #[must_use]
    pub fn feed(&self) -> &FeedId {
        &self.one.checkpoint.checkpoint.feed
    }

    /// Returns the file that proves it to every holder of the roster.
    #[must_use]
    pub fn format(&self) -> String {
        let mut text = format!("{HEADING}index {}\n", self.index);
        for entry in [&self.one, &self.other] {
            let mut line = |name: &str, bytes: &[u8]| writeln!(text, "{name} {}", STANDARD.encode(bytes));
            // Writing to a string cannot fail.
            let _ = line("digest", &entry.digest.0);
            let _ = line("checkpoint", &entry.checkpoint.note);
            entry.proof.iter().for_each(|hash| _ = line("proof", &hash.0));
        }
        text
    }

    /// Parses and verifies a file with the feed's keys in `roster`. It must have exactly the form
    /// that [`Self::format`] returns.
    ///
    /// # Errors
    /// See [`EquivocationError`].
    pub fn verify(file: &[u8], roster: &Roster) -> Result<Self, EquivocationError> {
        let Parts { index, one, other } = Parts::read(file)?;
        let verified = |part: Part| -> Result<ProvenEntry, EquivocationError> {
            let checkpoint = SignedCheckpoint::verify(&part.note, &roster.feed_keys(&part.checkpoint()?.feed))?;
            Ok(ProvenEntry { digest: part.digest, checkpoint, proof: part.proof })
        };
        let (one, other) = (verified(one)?, verified(other)?);
        let feeds = (&one.checkpoint.checkpoint.feed, &other.checkpoint.checkpoint.feed);
        if feeds.0 != feeds.1 {
            return Err(EquivocationError::TwoFeeds(feeds.0.clone(), feeds.1.clone()));
        }
        let proven = Self::at(index, one, other).ok_or(EquivocationError::NotProven)?;
        // The notes hold nothing that was not verified, and no bytes follow.
        if proven.format().as_bytes() == file { Ok(proven) } else { Err(Form("canonical form")) }
    }
}

/// The claims of an evidence file about a feed: two entries at one index, each under a checkpoint.
/// They are unverified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryClaims {
    /// The index.
    pub index: u64,
    /// The entry under the smaller checkpoint, or under one of equal size.
    pub one: ClaimedEntry,
    /// The other entry.
    pub other: ClaimedEntry,
}

/// An entry that a checkpoint includes, according to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedEntry {
    /// Its digest.
    pub digest: Digest,
    /// The checkpoint.
    pub checkpoint: Checkpoint,
}

impl EntryClaims {
    /// Parses a file.
    ///
    /// # Errors
    /// If it does not have the form, or covers two feeds; see [`EquivocationError`].
    pub fn read(file: &[u8]) -> Result<Self, EquivocationError> {
        let Parts { index, one, other } = Parts::read(file)?;
        let claimed = |part: &Part| -> Result<ClaimedEntry, EquivocationError> {
            Ok(ClaimedEntry { digest: part.digest, checkpoint: part.checkpoint()? })
        };
        let (one, other) = (claimed(&one)?, claimed(&other)?);
        if one.checkpoint.feed != other.checkpoint.feed {
            return Err(EquivocationError::TwoFeeds(one.checkpoint.feed, other.checkpoint.feed));
        }
        Ok(Self { index, one, other })
    }
}

/// The parts of a file.
struct Parts {
    index: u64,
    one: Part,
    other: Part,
}

/// The part of a file about one entry.
struct Part {
    digest: Digest,
    note: Vec<u8>,
    proof: Vec<Hash>,
}

impl Parts {
    fn read(file: &[u8]) -> Result<Self, EquivocationError> {
        let text = std::str::from_utf8(file).ok().filter(|text| text.len() <= EQUIVOCATION_BYTES_MAX);
        let text = text.and_then(|text| text.strip_prefix(HEADING)).ok_or(Form("heading"))?;
        let mut lines = text.lines().peekable();
        let index = lines.next().and_then(|line| line.strip_prefix("index ")?.parse().ok()).ok_or(Form("index"))?;
        let mut part = || -> Result<Part, EquivocationError> {
            let digest = Digest(hash(lines.next(), "digest")?);
            let note = bytes(lines.next(), "checkpoint")?;
            let mut proof = Vec::new();
            while let Some(line) = lines.next_if(|line| line.starts_with("proof ")) {
                if proof.len() >= PROOF_HASHES_MAX {
                    return Err(Form("proof"));
                }
                proof.push(Hash(hash(Some(line), "proof")?));
            }
            Ok(Part { digest, note, proof })
        };
        let (one, other) = (part()?, part()?);
        Ok(Self { index, one, other })
    }
}

impl Part {
    fn checkpoint(&self) -> Result<Checkpoint, EquivocationError> {
        Ok(Checkpoint::parse_text(&Note::parse(&self.note)?.text)?)
    }
}

fn bytes(line: Option<&str>, name: &'static str) -> Result<Vec<u8>, EquivocationError> {
    let line = line.and_then(|line| line.strip_prefix(name)?.strip_prefix(' ')).ok_or(Form(name))?;
    STANDARD.decode(line).map_err(|_| Form(name))
}

fn hash(line: Option<&str>, name: &'static str) -> Result<[u8; 32], EquivocationError> {
    bytes(line, name)?.try_into().map_err(|_| Form(name))
}

impl fmt::Display for EntryClaims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, one, other } = self;
        write!(f, "{} has two entries at index {index}: {} and {}", one.checkpoint.feed, one.digest, other.digest)
    }
}
