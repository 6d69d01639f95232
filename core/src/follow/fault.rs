//! Faults of a sender, by kind.

use std::fmt;

use super::Equivocation;
use crate::feed::checkpoint::CheckpointError;
use crate::feed::note::NoteError;

/// Why a batch is rejected as a whole. The sender's fault, except for [`FaultKind::Equivocation`],
/// which is the feed owner's.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {detail}", .kind.as_str())]
pub struct Fault {
    /// The kind of fault.
    pub kind: FaultKind,
    /// Details for human readers.
    pub detail: String,
}

/// Kind of fault in a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The checkpoint is not signed by every key of the feed.
    BadSignature,
    /// The consistency proof is invalid.
    BadProof,
    /// The entries lead to a root other than the checkpoint's.
    BadRoot,
    /// More than a message may hold, or sizes that do not match.
    BadBounds,
    /// Not of the expected form, or without entries.
    Malformed,
    /// It does not begin at the end of the local replica.
    Gap,
    /// The feed's keys signed two trees; with the evidence.
    Equivocation(Box<Equivocation>),
}

impl FaultKind {
    /// Returns the stable code on the wire (`Fault.reason`).
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::BadSignature => "bad-signature",
            Self::BadProof => "bad-proof",
            Self::BadRoot => "bad-root",
            Self::BadBounds => "bad-bounds",
            Self::Malformed => "malformed",
            Self::Gap => "gap",
            Self::Equivocation(_) => "equivocation",
        }
    }
}

impl Fault {
    pub(super) fn new(kind: FaultKind, detail: impl fmt::Display) -> Self {
        Self { kind, detail: detail.to_string() }
    }
}

impl From<CheckpointError> for Fault {
    fn from(error: CheckpointError) -> Self {
        let kind = match &error {
            CheckpointError::Note(
                NoteError::Unsigned(_) | NoteError::SignedTwice(_) | NoteError::BadSignature(_) | NoteError::Key(_),
            )
            | CheckpointError::NoKeys(_)
            | CheckpointError::KeyName { .. } => FaultKind::BadSignature,
            _ => FaultKind::Malformed,
        };
        Self::new(kind, error)
    }
}

impl From<Equivocation> for Fault {
    fn from(evidence: Equivocation) -> Self {
        let detail = evidence.to_string();
        Self { kind: FaultKind::Equivocation(Box::new(evidence)), detail }
    }
}
