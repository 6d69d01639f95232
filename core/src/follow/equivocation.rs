//! Equivocation by checkpoints: two trees signed by the keys of one feed.
//!
//! In scope: detecting it from verified checkpoints, the evidence, and the file that proves it to
//! others (docs/protocol.md §9.1). A proof that merely fails is its sender's fault and proves no
//! equivocation. Out of scope: the reaction to it.

use std::fmt;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::feed::checkpoint::{Checkpoint, CheckpointError, SignedCheckpoint};
use crate::feed::note::{Note, NoteError};
use crate::feed::tree::verify_consistency;
use crate::ids::{FeedId, Hash};
use crate::limits::{EQUIVOCATION_BYTES_MAX, PROOF_HASHES_MAX};
use crate::roster::Roster;

/// First line of the file, with its newline. It distinguishes the file from other evidence.
pub const HEADING: &str = "barid equivocation v1\n";

/// Two checkpoints, validly signed by one feed's keys, neither of which extends the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Equivocation {
    /// The smaller checkpoint, or one of equal size.
    pub smaller: SignedCheckpoint,
    /// The other checkpoint.
    pub larger: SignedCheckpoint,
    /// The root to which `larger` commits at the size of `smaller`. If the sizes are equal, its own
    /// root.
    pub other_root: Hash,
    /// Consistency proof from `other_root` to `larger`; empty if the sizes are equal.
    pub proof: Vec<Hash>,
}

impl Equivocation {
    /// Returns evidence if two verified checkpoints of one feed and size have different roots.
    #[must_use]
    pub fn between(one: &SignedCheckpoint, other: &SignedCheckpoint) -> Option<Self> {
        let (first, second) = (&one.checkpoint, &other.checkpoint);
        if first.size != second.size || first.feed != second.feed || first.root == second.root {
            return None;
        }
        Some(Self { smaller: one.clone(), larger: other.clone(), other_root: second.root, proof: Vec::new() })
    }

    /// Returns evidence if `proof` shows that the larger of two verified checkpoints of one feed
    /// commits to `other_root` at the smaller one's size, and `other_root` differs from the smaller
    /// one's root.
    #[must_use]
    pub fn by_proof(
        smaller: &SignedCheckpoint,
        larger: &SignedCheckpoint,
        other_root: &Hash,
        proof: &[Hash],
    ) -> Option<Self> {
        let (old, new) = (&smaller.checkpoint, &larger.checkpoint);
        let proven = old.feed == new.feed
            && old.size > 0
            && old.root != *other_root
            && verify_consistency(old.size, other_root, new.size, &new.root, proof).is_ok();
        proven.then(|| Self {
            smaller: smaller.clone(),
            larger: larger.clone(),
            other_root: *other_root,
            proof: proof.to_vec(),
        })
    }
}

/// Why a file does not prove an equivocation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EquivocationError {
    /// Not of the expected form; names the invalid part.
    #[error("it has no valid {0}")]
    Form(&'static str),
    /// One of its checkpoints is not a valid note.
    #[error("a checkpoint in it: {0}")]
    Note(#[from] NoteError),
    /// One of its checkpoints is not signed by the keys that the roster lists for its feed.
    #[error("a checkpoint in it: {0}")]
    Checkpoint(#[from] CheckpointError),
    /// The checkpoints belong to two feeds.
    #[error("its checkpoints are of two feeds, {0} and {1}")]
    TwoFeeds(FeedId, FeedId),
    /// One checkpoint may extend the other.
    #[error("it does not prove that neither checkpoint extends the other")]
    NotProven,
}

impl Equivocation {
    /// Returns the feed.
    #[must_use]
    pub fn feed(&self) -> &FeedId {
        &self.smaller.checkpoint.feed
    }

    /// Returns the claims that it proves.
    #[must_use]
    pub fn claims(&self) -> CheckpointClaims {
        CheckpointClaims {
            smaller: self.smaller.checkpoint.clone(),
            larger: self.larger.checkpoint.clone(),
            other_root: self.other_root,
        }
    }

    /// Returns the file that proves it to every holder of the roster.
    #[must_use]
    pub fn format(&self) -> String {
        let mut text = HEADING.to_owned();
        let mut line = |name: &str, bytes: &[u8]| writeln!(text, "{name} {}", STANDARD.encode(bytes));
        // Writing to a string cannot fail.
        let _ = line("smaller", &self.smaller.note);
        let _ = line("larger", &self.larger.note);
        let _ = line("root", &self.other_root.0);
        self.proof.iter().for_each(|hash| _ = line("proof", &hash.0));
        text
    }

    /// Parses and verifies a file with the feed's keys in `roster`. It must have exactly the form
    /// that [`Self::format`] returns.
    ///
    /// # Errors
    /// See [`EquivocationError`].
    pub fn verify(file: &[u8], roster: &Roster) -> Result<Self, EquivocationError> {
        use EquivocationError::Form;
        let Parts { smaller, larger, other_root, proof } = Parts::read(file)?;
        let verified = |note: &[u8]| -> Result<SignedCheckpoint, EquivocationError> {
            let feed = Checkpoint::parse_text(&Note::parse(note)?.text)?.feed;
            Ok(SignedCheckpoint::verify(note, &roster.feed_keys(&feed))?)
        };
        let (smaller, larger) = (verified(&smaller)?, verified(&larger)?);
        let feeds = (&smaller.checkpoint.feed, &larger.checkpoint.feed);
        if feeds.0 != feeds.1 {
            return Err(EquivocationError::TwoFeeds(feeds.0.clone(), feeds.1.clone()));
        }
        let proven = Self::between(&smaller, &larger)
            .filter(|proven| proven.other_root == other_root && proof.is_empty())
            .or_else(|| Self::by_proof(&smaller, &larger, &other_root, &proof));
        let proven = proven.ok_or(EquivocationError::NotProven)?;
        // The encoding is unique, and the notes hold nothing that was not verified.
        if proven.format().as_bytes() == file { Ok(proven) } else { Err(Form("canonical form")) }
    }
}

/// The claims of an evidence file about a feed. They are unverified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointClaims {
    /// The smaller checkpoint, or one of equal size.
    pub smaller: Checkpoint,
    /// The other checkpoint.
    pub larger: Checkpoint,
    /// The root to which `larger` commits, according to the file, at the size of `smaller`.
    pub other_root: Hash,
}

impl CheckpointClaims {
    /// Parses a file.
    ///
    /// # Errors
    /// If it does not have the form, or covers two feeds; see [`EquivocationError`].
    pub fn read(file: &[u8]) -> Result<Self, EquivocationError> {
        let Parts { smaller, larger, other_root, .. } = Parts::read(file)?;
        let of = |note: &[u8]| -> Result<Checkpoint, EquivocationError> {
            Ok(Checkpoint::parse_text(&Note::parse(note)?.text)?)
        };
        let (smaller, larger) = (of(&smaller)?, of(&larger)?);
        if smaller.feed != larger.feed {
            return Err(EquivocationError::TwoFeeds(smaller.feed, larger.feed));
        }
        Ok(Self { smaller, larger, other_root })
    }
}

/// The parts of a file.
struct Parts {
    smaller: Vec<u8>,
    larger: Vec<u8>,
    other_root: Hash,
    proof: Vec<Hash>,
}

impl Parts {
    fn read(file: &[u8]) -> Result<Self, EquivocationError> {
        use EquivocationError::Form;
        let text = std::str::from_utf8(file).ok().filter(|text| text.len() <= EQUIVOCATION_BYTES_MAX);
        let text = text.and_then(|text| text.strip_prefix(HEADING)).ok_or(Form("heading"))?;
        let mut lines = text.lines();
        let mut next = |name: &'static str| -> Result<Vec<u8>, EquivocationError> {
            let line = lines.next().and_then(|line| line.strip_prefix(name)?.strip_prefix(' ')).ok_or(Form(name))?;
            STANDARD.decode(line).map_err(|_| Form(name))
        };
        let (smaller, larger) = (next("smaller")?, next("larger")?);
        let hash = |bytes: Vec<u8>, name| <[u8; 32]>::try_from(bytes).map(Hash).map_err(|_| Form(name));
        let other_root = hash(next("root")?, "root")?;
        let mut proof = Vec::new();
        for line in lines {
            let bytes = line.strip_prefix("proof ").and_then(|line| STANDARD.decode(line).ok());
            proof.push(hash(bytes.ok_or(Form("proof"))?, "proof")?);
            if proof.len() > PROOF_HASHES_MAX {
                return Err(Form("proof"));
            }
        }
        Ok(Self { smaller, larger, other_root, proof })
    }
}

impl fmt::Display for CheckpointClaims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { smaller, larger, other_root } = self;
        write!(f, "{} has forked: at size {} ", smaller.feed, smaller.size)?;
        if smaller.size == larger.size {
            return write!(f, "one checkpoint has root {}, another has root {other_root}", smaller.root);
        }
        // Three roots at two sizes, so each root is reported with its size.
        write!(
            f,
            "its checkpoint has root {}, and the checkpoint of size {} (with root {}) ",
            smaller.root, larger.size, larger.root
        )?;
        write!(f, "commits to root {other_root} at size {}", smaller.size)
    }
}

impl fmt::Display for Equivocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.claims().fmt(f)
    }
}
