//! Draft rosters: a text that governors sign one after the other until both thresholds are reached.
//!
//! In scope: reading a bare text or a note, listing its signers, adding a signature to the exact
//! text. Out of scope: files, and whether the signatures suffice ([`super::RosterChain`]).

use super::{ChainError, Roster, RosterError, UnfitAuthority, could_follow};
use crate::feed::note::{Algorithm, KeyError, Note, NoteError, SigningKey, VerifierKey};
use crate::ids::Member;
use crate::limits::{NOTE_SIGNATURES_MAX, ROSTER_BYTES_MAX};

/// A roster's text with the signatures collected so far.
#[derive(Clone, Debug)]
pub struct Draft {
    roster: Roster,
    note: Note,
}

/// One signature line of a draft.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signer {
    /// Name of the key.
    pub name: String,
    /// Its id.
    pub id: [u8; 4],
    /// Whether this version lists the key as a governor.
    pub own: bool,
    /// Whether the version before lists the key as a governor.
    pub before: bool,
    /// Whether the signature is valid; `None` if neither version lists the key.
    pub valid: Option<bool>,
}

/// Why a draft was not signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// A key that may not sign rosters.
    #[error("key {0} is not a governor key of this version or of the previous one")]
    NotGovernor(String),
    /// A new member with a code that ISO 3166-1 does not assign.
    #[error("{0} is not a member code: ISO 3166-1 does not assign it; the code of an organisation is `x-` and a name")]
    Unassigned(Member),
    /// Certificates that are unfit for authorities.
    #[error("{}", listed(.0))]
    Authorities(Vec<UnfitAuthority>),
    /// The draft cannot follow the version before.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// An existing signature by this key is invalid: the text was changed after it had been signed.
    #[error("the draft has a wrong signature by {0}: its text was changed after it was signed")]
    Changed(String),
    /// The draft already has the largest number of signatures.
    #[error("the draft has {NOTE_SIGNATURES_MAX} signatures already")]
    Full,
    /// The key cannot sign.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl Draft {
    /// Reads a bare text or a note. If a bare text does not end in a newline, one is added, because
    /// the newline is part of the signed text.
    ///
    /// # Errors
    /// See [`RosterError`].
    pub fn read(bytes: &[u8]) -> Result<Self, RosterError> {
        let note_error = |error: NoteError| RosterError::Note(error.to_string());
        if bytes.len() > ROSTER_BYTES_MAX {
            return Err(note_error(NoteError::TooLarge { max: ROSTER_BYTES_MAX, found: bytes.len() }));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| note_error(NoteError::NotText))?;
        // Some editors add a byte order mark at the beginning of a file; it is not part of the
        // text.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let bytes = text.as_bytes();
        if text.contains("\n\n— ") {
            let (roster, note) = Roster::read(bytes)?;
            return Ok(Self { roster, note });
        }
        let line = text.split('\n').position(|line| line.bytes().any(|byte| byte < b' '));
        if let Some(line) = line {
            let what = "a tab, a Windows line end or another control character, which cannot be signed";
            return Err(RosterError::Note(format!("line {} has {what}", line + 1)));
        }
        let end = if text.ends_with('\n') { "" } else { "\n" };
        let text = format!("{text}{end}");
        Ok(Self { roster: Roster::from_text(&text)?, note: Note { text, signatures: Vec::new() } })
    }

    /// Returns the roster in the draft.
    #[must_use]
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// Returns text and signatures. A note without signatures cannot be encoded.
    #[must_use]
    pub fn note(&self) -> &Note {
        &self.note
    }

    /// Returns the signers in the order of the lines. `before` is the version before, if known.
    #[must_use]
    pub fn signers(&self, before: Option<&Roster>) -> Vec<Signer> {
        let signer = |line: &crate::feed::note::NoteSignature| {
            let own = self.roster.governors().iter().find(|key| line.is_by(key));
            let earlier = before.and_then(|before| before.governors().iter().find(|key| line.is_by(key)));
            let valid = own.or(earlier).map(|key| self.note.verify(key).is_ok());
            Signer { name: line.name.clone(), id: line.id, own: own.is_some(), before: earlier.is_some(), valid }
        };
        self.note.signatures.iter().map(signer).collect()
    }

    /// Adds the signature of a governor of this version or the one before, and returns whether it
    /// was new.
    ///
    /// Refuses to sign a roster that could never be accepted, new members whose code is not
    /// assigned, and authorities that `before` does not list and that are unfit at `now` (Unix
    /// seconds).
    ///
    /// # Errors
    /// See [`SignError`]; the draft is unchanged then.
    pub fn sign(&mut self, key: &SigningKey, before: Option<&Roster>, now: i64) -> Result<bool, SignError> {
        let listed = |roster: &Roster| roster.governors().contains(key.verifier());
        if key.algorithm() != Algorithm::Ed25519 || !(listed(&self.roster) || before.is_some_and(listed)) {
            return Err(SignError::NotGovernor(written(key.verifier())));
        }
        let new =
            self.roster.entries().filter(|entry| before.is_none_or(|before| before.member(&entry.code).is_none()));
        if let Some(entry) = new.into_iter().find(|entry| !entry.code.is_assigned()) {
            return Err(SignError::Unassigned(entry.code.clone()));
        }
        let unfit = self.roster.unfit_authorities(before, now);
        if !unfit.is_empty() {
            return Err(SignError::Authorities(unfit));
        }
        if let Some(before) = before {
            could_follow(before, &self.roster)?;
        }
        match self.note.verify(key.verifier()) {
            Ok(()) => return Ok(false),
            Err(NoteError::Unsigned(_)) => {}
            Err(_) => return Err(SignError::Changed(written(key.verifier()))),
        }
        if self.note.signatures.len() >= NOTE_SIGNATURES_MAX {
            return Err(SignError::Full);
        }
        self.note.signatures.push(key.sign_text(&self.note.text)?);
        Ok(true)
    }
}

fn listed(unfit: &[UnfitAuthority]) -> String {
    unfit.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn written(key: &VerifierKey) -> String {
    format!("{}+{}", key.name(), hex::encode(key.id()))
}
