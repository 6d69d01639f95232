//! Checkpoints: signed tree heads of a feed, as in C2SP tlog-checkpoint, without extension lines.
//!
//! In scope: the text, signing it with a feed's keys, and verifying it. Out of scope: whether one
//! checkpoint extends another (`tree`), cosignatures on it, and which keys belong to a feed
//! (`roster`).

use bytes::Bytes;

use super::note::{Algorithm, KeyError, Note, NoteError, SigningKey, VerifierKey};
use super::text;
use super::timestamped::TreeHead;
use super::tree::{TREE_SIZE_MAX, empty_root};
use crate::ids::{FeedId, Hash};

/// A feed's tree head.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Checkpoint {
    /// The feed; its printed form is the origin line.
    pub feed: FeedId,
    /// Entries in the tree.
    pub size: u64,
    /// Root of the tree.
    pub root: Hash,
}

/// A checkpoint with a note whose log signatures were created or verified by this program. Created
/// only by [`sign`], [`SignedCheckpoint::verify`] and [`super::cosignature::verify_cosigned`], or
/// read back from the node's own store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SignedCheckpoint {
    /// The signed checkpoint.
    pub checkpoint: Checkpoint,
    /// The note: only the text and the feed's own signatures, exactly as signed.
    pub note: Bytes,
}

/// Why a note is not a checkpoint of a feed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// Not a note, or not signed as required.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The text is not that of a checkpoint; names the invalid part.
    #[error("the checkpoint has no valid {0}")]
    Text(&'static str),
    /// No keys to sign or verify with.
    #[error("there are no keys for {0}")]
    NoKeys(FeedId),
    /// A key whose name differs from the origin.
    #[error("key `{name}` is not one of {feed}")]
    KeyName {
        /// The feed.
        feed: FeedId,
        /// The key's name.
        name: String,
    },
}

impl From<KeyError> for CheckpointError {
    fn from(error: KeyError) -> Self {
        Self::Note(error.into())
    }
}

impl Checkpoint {
    /// Returns the note text: origin, size and root, one per line.
    #[must_use]
    pub fn text(&self) -> String {
        self.feed_text(&self.feed.to_string())
    }

    fn feed_text(&self, origin: &str) -> String {
        self.head(origin).text()
    }

    pub(super) fn head<'a>(&'a self, origin: &'a str) -> TreeHead<'a> {
        TreeHead { origin, size: self.size, root: &self.root }
    }

    /// Parses a note text. Extension lines are rejected, because some signature algorithms would
    /// cover them and others would not.
    pub fn parse_text(text: &str) -> Result<Self, CheckpointError> {
        let mut lines = text.strip_suffix('\n').ok_or(CheckpointError::Text("last newline"))?.split('\n');
        let mut line = |what| lines.next().ok_or(CheckpointError::Text(what));
        let feed = line("origin")?.parse().map_err(|_| CheckpointError::Text("origin"))?;
        let size = text::decimal(line("size")?).ok_or(CheckpointError::Text("size"))?;
        let root = text::hash(line("root hash")?).ok_or(CheckpointError::Text("root hash"))?;
        if lines.next().is_some() {
            return Err(CheckpointError::Text("end: extension lines are not allowed"));
        }
        if size == 0 && root != empty_root() {
            return Err(CheckpointError::Text("root hash of an empty tree"));
        }
        Ok(Self { feed, size, root })
    }
}

/// Signs a checkpoint with all of a feed's keys: Ed25519 (type 0x01) over the text, ML-DSA-44 (type
/// 0x06) over the tree head with time 0, which states no time.
pub fn sign(checkpoint: &Checkpoint, keys: &[SigningKey]) -> Result<SignedCheckpoint, CheckpointError> {
    if checkpoint.size > TREE_SIZE_MAX {
        return Err(CheckpointError::Text("size"));
    }
    if keys.is_empty() {
        return Err(CheckpointError::NoKeys(checkpoint.feed.clone()));
    }
    let origin = checkpoint.feed.to_string();
    let text = checkpoint.feed_text(&origin);
    let mut signatures = Vec::with_capacity(keys.len());
    for key in keys {
        check_key(checkpoint, &origin, key.verifier())?;
        signatures.push(match key.algorithm() {
            Algorithm::CosignatureMlDsa44 => checkpoint.head(&origin).sign(key, 0)?,
            _ => key.sign_text(&text)?,
        });
    }
    let note = Note { text, signatures }.to_bytes().into();
    Ok(SignedCheckpoint { checkpoint: checkpoint.clone(), note })
}

impl SignedCheckpoint {
    /// Parses a note that this program created or verified before storing it. Its signatures are
    /// not verified again. Never use it for bytes from another source.
    ///
    /// # Errors
    /// If it is not a note with a checkpoint's text.
    pub fn from_trusted_store(note: Bytes) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::parse_text(&Note::parse(&note)?.text)?;
        Ok(Self { checkpoint, note })
    }

    /// Verifies a checkpoint note: every one of `keys`, which are all of the feed's, must have
    /// signed it. Other signatures, such as cosignatures, are ignored and dropped.
    ///
    /// # Examples
    /// ```
    /// use barid_core::feed::checkpoint::SignedCheckpoint;
    /// use barid_core::roster::Roster;
    ///
    /// let (roster, _) = Roster::read(include_bytes!("../../../tests/golden/roster-1.note"))?;
    /// let keys = roster.feed_keys(&"ma.rabat.example/feed/1".parse()?);
    /// let note = include_bytes!("../../../tests/golden/cosigned-checkpoint.note");
    /// let signed = SignedCheckpoint::verify(note, &keys)?;
    /// assert_eq!(signed.checkpoint.size, 10);
    /// assert!(signed.note.len() < note.len());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn verify(note: &[u8], keys: &[VerifierKey]) -> Result<Self, CheckpointError> {
        Self::verify_parsed(Note::parse(note)?, keys)
    }

    pub(super) fn verify_parsed(mut note: Note, keys: &[VerifierKey]) -> Result<Self, CheckpointError> {
        let checkpoint = Checkpoint::parse_text(&note.text)?;
        if keys.is_empty() {
            return Err(CheckpointError::NoKeys(checkpoint.feed));
        }
        let origin = checkpoint.feed.to_string();
        for key in keys {
            check_key(&checkpoint, &origin, key)?;
            if key.algorithm() == Algorithm::CosignatureMlDsa44 {
                let line = note.line_by(key)?.ok_or_else(|| NoteError::Unsigned(key.name().to_owned()))?;
                if checkpoint.head(&origin).verify(key, line)? != Some(0) {
                    return Err(NoteError::BadSignature(key.name().to_owned()).into());
                }
            } else {
                note.verify(key)?;
            }
        }
        note.signatures.retain(|line| keys.iter().any(|key| line.is_by(key)));
        Ok(Self { checkpoint, note: note.to_bytes().into() })
    }
}

fn check_key(checkpoint: &Checkpoint, origin: &str, key: &VerifierKey) -> Result<(), CheckpointError> {
    if key.name() == origin {
        return Ok(());
    }
    Err(CheckpointError::KeyName { feed: checkpoint.feed.clone(), name: key.name().to_owned() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use proptest::prelude::*;

    const ORIGIN: &str = "ma.rabat.example/feed/1";

    fn checkpoint(size: u64) -> Checkpoint {
        Checkpoint { feed: ORIGIN.parse().unwrap(), size, root: Hash([5; 32]) }
    }

    fn keys(seed: u8) -> [SigningKey; 2] {
        [Algorithm::Ed25519, Algorithm::CosignatureMlDsa44]
            .map(|algorithm| SigningKey::from_seed(ORIGIN, algorithm, [seed; 32]).unwrap())
    }

    fn verifiers(keys: &[SigningKey]) -> Vec<VerifierKey> {
        keys.iter().map(|key| key.verifier().clone()).collect()
    }

    #[test]
    fn the_text_has_three_lines() {
        let text = "ma.rabat.example/feed/1\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";
        let parsed = Checkpoint::parse_text(text).unwrap();
        assert_eq!((parsed.size, parsed.feed.epoch), (20_852_163, 1));
        assert_eq!(parsed.text(), text);
        let root = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=";
        for wrong in [
            String::new(),
            "\n".to_owned(),
            text.trim_end().to_owned(),
            format!("{ORIGIN}\n007\n{root}\n"),
            format!("{ORIGIN}\n9223372036854775808\n{root}\n"),
            format!("{ORIGIN}\n0\n{root}\n"),
            format!("{ORIGIN}\n7\nCsUYap==\n"),
            format!("{ORIGIN}\n7\n"),
            format!("example.com/log\n7\n{root}\n"),
            format!("{ORIGIN}\n7\n{root}\nextension\n"),
            format!("{ORIGIN}\n7\n{root}\n\n"),
        ] {
            assert!(matches!(Checkpoint::parse_text(&wrong), Err(CheckpointError::Text(_))), "{wrong:?}");
        }
        let empty = Checkpoint { size: 0, root: empty_root(), ..parsed };
        assert_eq!(Checkpoint::parse_text(&empty.text()), Ok(empty));
    }

    #[test]
    fn every_key_of_the_feed_must_have_signed() {
        let (keys, strangers) = (keys(1), keys(2));
        let signed = sign(&checkpoint(7), &keys).unwrap();
        assert_eq!(SignedCheckpoint::verify(&signed.note, &verifiers(&keys)).unwrap(), signed);
        let classical = sign(&checkpoint(7), &keys[..1]).unwrap();
        assert_eq!(SignedCheckpoint::verify(&classical.note, &verifiers(&keys[..1])).unwrap(), classical);
        let unsigned = |note: &[u8], keys: &[VerifierKey]| {
            matches!(SignedCheckpoint::verify(note, keys), Err(CheckpointError::Note(NoteError::Unsigned(_))))
        };
        assert!(unsigned(&classical.note, &verifiers(&keys)));
        assert!(unsigned(&signed.note, &verifiers(&strangers)));
        assert!(matches!(SignedCheckpoint::verify(&signed.note, &[]), Err(CheckpointError::NoKeys(_))));
        assert!(matches!(sign(&checkpoint(7), &[]), Err(CheckpointError::NoKeys(_))));
    }

    #[test]
    fn other_signatures_are_dropped() {
        let keys = keys(1);
        let signed = sign(&checkpoint(7), &keys[..1]).unwrap();
        let mut note = Note::parse(&signed.note).unwrap();
        let stranger = SigningKey::from_seed("witness.example", Algorithm::Ed25519, [9; 32]).unwrap();
        note.signatures.insert(0, stranger.sign_text(&note.text).unwrap());
        assert_eq!(SignedCheckpoint::verify(&note.to_bytes(), &verifiers(&keys[..1])).unwrap(), signed);
    }

    #[test]
    fn altered_tree_head_is_rejected() {
        let keys = keys(1);
        for keys in [&keys[..1], &keys[1..]] {
            let signed = sign(&checkpoint(7), keys).unwrap();
            let altered = String::from_utf8(signed.note.to_vec()).unwrap().replacen("\n7\n", "\n8\n", 1);
            assert!(matches!(
                SignedCheckpoint::verify(altered.as_bytes(), &verifiers(keys)),
                Err(CheckpointError::Note(NoteError::BadSignature(_)))
            ));
        }
    }

    #[test]
    fn keys_of_other_names_and_purposes_neither_sign_nor_verify() {
        let other = SigningKey::from_seed("ly.rabat.example/feed/1", Algorithm::Ed25519, [1; 32]).unwrap();
        assert!(matches!(sign(&checkpoint(7), &[other]), Err(CheckpointError::KeyName { .. })));
        let cosigner = SigningKey::from_seed(ORIGIN, Algorithm::CosignatureEd25519, [1; 32]).unwrap();
        let rejected = sign(&checkpoint(7), std::slice::from_ref(&cosigner)).unwrap_err();
        assert!(matches!(rejected, CheckpointError::Note(NoteError::Key(KeyError::Purpose { .. }))));
        let signed = sign(&checkpoint(7), &keys(1)).unwrap();
        assert!(SignedCheckpoint::verify(&signed.note, &[cosigner.verifier().clone()]).is_err());
    }

    /// A post-quantum signature by the feed's key with a time is not a log signature.
    #[test]
    fn log_signature_with_a_time_is_rejected() {
        let keys = keys(1);
        let text = checkpoint(7).text();
        let signatures = vec![checkpoint(7).head(ORIGIN).sign(&keys[1], 1_700_000_000).unwrap()];
        let note = Note { text, signatures }.to_bytes();
        assert!(SignedCheckpoint::verify(&note, &verifiers(&keys[1..])).is_err());
    }

    proptest! {
        #[test]
        fn checkpoints_print_and_parse(size in 1_u64..=TREE_SIZE_MAX, root in any::<[u8; 32]>(), epoch in 1_u32..) {
            let feed = FeedId { epoch, ..ORIGIN.parse().unwrap() };
            let checkpoint = Checkpoint { feed, size, root: Hash(root) };
            prop_assert_eq!(Checkpoint::parse_text(&checkpoint.text()), Ok(checkpoint));
        }

        #[test]
        fn any_text_is_read_without_panic(text in "([ -~]{0,12}\n){0,5}") {
            prop_assert!(Checkpoint::parse_text(&text).is_err());
        }
    }
}
