//! Cosignatures: a member's signed statement, with a time, that it durably holds a feed's log up to
//! a checkpoint (C2SP tlog-cosignature, with the additional statement of a mirror). Heartbeats are
//! cosignatures on a node's own feed.
//!
//! In scope: creating and verifying them. Out of scope: when a node may cosign (only what is
//! durable, never a smaller size than before, never an earlier time; the committer ensures this),
//! and which keys belong to a member (`roster`).

use bytes::Bytes;

use super::checkpoint::{Checkpoint, CheckpointError, SignedCheckpoint};
use super::note::{KeyError, Note, NoteError, NoteSignature, SigningKey, VerifierKey};
use super::tree::TREE_SIZE_MAX;
use crate::ids::{ExchangeName, FeedId, Member};
use crate::limits::{NOTE_BYTES_MAX, NOTE_WRITTEN_BYTES_MAX};

/// One verified cosignature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cosignature {
    /// The member that signed it.
    pub cosigner: Member,
    /// Time of signing, in seconds since the Unix epoch by the cosigner's clock.
    pub time: u64,
    /// The signature line.
    pub line: NoteSignature,
}

/// Why there is no valid cosignature.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CosignatureError {
    /// The cosigned checkpoint is not valid.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A key whose name is not `<member>.<exchange>/mirror` in the feed's exchange.
    #[error("key `{0}` is not a mirror key of the feed's exchange")]
    KeyName(String),
    /// A time of 0 or beyond 2^63 - 1; a receipt needs a time.
    #[error("the cosignature has no valid time")]
    Time,
    /// A heartbeat that is not exactly one signature line.
    #[error("the heartbeat is not one signature line")]
    Heartbeat,
    /// Not signed by any of the keys.
    #[error("the checkpoint is not cosigned by any of these keys")]
    Unsigned,
}

impl From<NoteError> for CosignatureError {
    fn from(error: NoteError) -> Self {
        Self::Checkpoint(error.into())
    }
}

impl From<KeyError> for CosignatureError {
    fn from(error: KeyError) -> Self {
        Self::Checkpoint(error.into())
    }
}

/// Cosigns a checkpoint at `time`, in seconds since the Unix epoch. Returns the whole note: the
/// text, the log's signatures, and this cosignature last.
pub fn cosign(signed: &SignedCheckpoint, key: &SigningKey, time: u64) -> Result<Bytes, CosignatureError> {
    let mut note = Note::parse(&signed.note)?;
    note.signatures.push(sign_line(&signed.checkpoint, key, time)?);
    Ok(note.to_bytes().into())
}

/// Verifies a cosigned checkpoint and returns it with the time of the cosignature.
///
/// Every one of `log_keys` must have signed it, as for [`SignedCheckpoint::verify`], and at least
/// one of `cosigner_keys`, which are one member's mirror keys. Every line by a cosigner key must be
/// valid, and all must have the same time.
pub fn verify_cosigned(
    note: &[u8],
    log_keys: &[VerifierKey],
    cosigner_keys: &[VerifierKey],
) -> Result<(SignedCheckpoint, u64), CosignatureError> {
    let note = Note::parse(note)?;
    let signed = SignedCheckpoint::verify_parsed(note.clone(), log_keys)?;
    let found = verified_lines(&note, &signed.checkpoint, cosigner_keys)?;
    let Some(first) = found.first() else { return Err(CosignatureError::Unsigned) };
    if found.iter().any(|other| other.time != first.time) {
        return Err(CosignatureError::Time);
    }
    Ok((signed, first.time))
}

/// Returns all cosignatures on a note by any of `keys`, in the order of the keys, each verified.
/// The note's text must be that of `checkpoint`. An invalid line by one of the keys makes the note
/// invalid; lines by other keys are ignored.
pub fn verified_lines(
    note: &Note,
    checkpoint: &Checkpoint,
    keys: &[VerifierKey],
) -> Result<Vec<Cosignature>, CosignatureError> {
    let mut found = Vec::new();
    for key in keys {
        let Some(line) = note.line_by(key)? else { continue };
        let (cosigner, time) = verify_line(line, checkpoint, key)?;
        found.push(Cosignature { cosigner, time, line: line.clone() });
    }
    Ok(found)
}

/// Returns a checkpoint note with cosignatures added, in the given order, once per key, as many as
/// fit in a note. Witnessed evidence is assembled in this way from the notes of several peers that
/// cosigned one size.
#[must_use]
pub fn with_cosignatures<'a>(signed: &SignedCheckpoint, lines: impl IntoIterator<Item = &'a NoteSignature>) -> Bytes {
    let Ok(mut note) = Note::parse(&signed.note) else { return signed.note.clone() };
    for line in lines {
        let known = note.signatures.iter().any(|other| other.id == line.id && other.name == line.name);
        if known || note.signatures.len() == crate::limits::NOTE_SIGNATURES_MAX {
            continue;
        }
        note.signatures.push(line.clone());
        if note.to_bytes().len() > NOTE_WRITTEN_BYTES_MAX {
            note.signatures.pop();
        }
    }
    note.to_bytes().into()
}

/// Returns the bare signature line, with its newline, with which a node attests that a checkpoint
/// of its own feed is its newest at `time`.
pub fn heartbeat_line(checkpoint: &Checkpoint, key: &SigningKey, time: u64) -> Result<Bytes, CosignatureError> {
    Ok(format!("{}\n", sign_line(checkpoint, key, time)?).into())
}

/// Verifies a heartbeat on a checkpoint of the sender's own feed by one of its mirror keys, and
/// returns its time. The key must be named after the feed's owner.
pub fn verify_heartbeat(line: &[u8], checkpoint: &Checkpoint, keys: &[VerifierKey]) -> Result<u64, CosignatureError> {
    let line = parse_heartbeat(line)?;
    let key = keys.iter().find(|key| line.is_by(key)).ok_or(CosignatureError::Unsigned)?;
    let (sender, time) = verify_line(&line, checkpoint, key)?;
    if sender != checkpoint.feed.member {
        return Err(CosignatureError::KeyName(line.name));
    }
    Ok(time)
}

/// Returns the time in a cosignature line, in seconds since the Unix epoch. It is unverified until
/// the line is verified.
#[must_use]
pub fn claimed_time(line: &NoteSignature) -> Option<u64> {
    line.bytes.first_chunk().map(|time| u64::from_be_bytes(*time))
}

/// Parses the signature line of a heartbeat.
pub fn parse_heartbeat(line: &[u8]) -> Result<NoteSignature, CosignatureError> {
    if line.len() > NOTE_BYTES_MAX {
        return Err(CosignatureError::Heartbeat);
    }
    let text = std::str::from_utf8(line).ok().and_then(|text| text.strip_suffix('\n'));
    text.and_then(NoteSignature::parse_line).ok_or(CosignatureError::Heartbeat)
}

fn sign_line(checkpoint: &Checkpoint, key: &SigningKey, time: u64) -> Result<NoteSignature, CosignatureError> {
    check_time(time)?;
    cosigner(key.name(), &checkpoint.feed.exchange)?;
    Ok(checkpoint.head(&checkpoint.feed.to_string()).sign(key, time)?)
}

fn verify_line(
    line: &NoteSignature,
    checkpoint: &Checkpoint,
    key: &VerifierKey,
) -> Result<(Member, u64), CosignatureError> {
    let member = cosigner(key.name(), &checkpoint.feed.exchange)?;
    let time = checkpoint.head(&checkpoint.feed.to_string()).verify(key, line)?;
    let time = time.ok_or_else(|| NoteError::BadSignature(key.name().to_owned()))?;
    check_time(time)?;
    Ok((member, time))
}

fn check_time(time: u64) -> Result<(), CosignatureError> {
    if (1..=TREE_SIZE_MAX).contains(&time) { Ok(()) } else { Err(CosignatureError::Time) }
}

/// Returns the member to which a mirror key of this name belongs.
fn cosigner(name: &str, exchange: &ExchangeName) -> Result<Member, CosignatureError> {
    let member = name.split_once('.').and_then(|(member, _)| member.parse().ok());
    member
        .filter(|member| FeedId::mirror_key_name(member, exchange) == name)
        .ok_or_else(|| CosignatureError::KeyName(name.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::checkpoint::sign;
    use super::super::note::Algorithm;
    use super::*;
    use crate::ids::Hash;
    use proptest::prelude::*;

    const ORIGIN: &str = "ma.rabat.example/feed/1";
    const TIME: u64 = 1_679_315_147;

    fn key(name: &str, algorithm: Algorithm, seed: u8) -> SigningKey {
        SigningKey::from_seed(name, algorithm, [seed; 32]).unwrap()
    }

    fn signed(size: u64) -> (SignedCheckpoint, Vec<VerifierKey>) {
        let log = key(ORIGIN, Algorithm::Ed25519, 1);
        let checkpoint = Checkpoint { feed: ORIGIN.parse().unwrap(), size, root: Hash([5; 32]) };
        (sign(&checkpoint, std::slice::from_ref(&log)).unwrap(), vec![log.verifier().clone()])
    }

    /// The example of tlog-cosignature is only parsed; its keys are not published.
    #[test]
    fn the_example_of_the_specification_is_read() {
        let text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n\
            — example.com/behind-the-sofa \
            Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n\
            — witness.example.com/w1 \
            jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n";
        let note = Note::parse(text.as_bytes()).unwrap();
        assert_eq!(note.to_string(), text);
        let cosignature = &note.signatures[1];
        assert_eq!(cosignature.bytes.len(), 72);
        assert_eq!(cosignature.bytes[..8], TIME.to_be_bytes());
    }

    #[test]
    fn a_cosigned_checkpoint_verifies_with_its_time() {
        for algorithm in [Algorithm::CosignatureEd25519, Algorithm::CosignatureMlDsa44] {
            let (signed, log_keys) = signed(7);
            let mirror = key("ly.rabat.example/mirror", algorithm, 2);
            let note = cosign(&signed, &mirror, TIME).unwrap();
            assert!(note.starts_with(&signed.note));
            let mirrors = [mirror.verifier().clone()];
            assert_eq!(verify_cosigned(&note, &log_keys, &mirrors).unwrap(), (signed.clone(), TIME));
            // A newer key that has not signed does not matter.
            let next = key("ly.rabat.example/mirror", algorithm, 3).verifier().clone();
            assert!(verify_cosigned(&note, &log_keys, &[next.clone(), mirrors[0].clone()]).is_ok());
            assert_eq!(verify_cosigned(&note, &log_keys, &[next]), Err(CosignatureError::Unsigned));
            assert_eq!(verify_cosigned(&signed.note, &log_keys, &mirrors), Err(CosignatureError::Unsigned));
            // The log's own signature is required too.
            let mut without = Note::parse(&note).unwrap();
            without.signatures.remove(0);
            assert!(matches!(
                verify_cosigned(&without.to_bytes(), &log_keys, &mirrors),
                Err(CosignatureError::Checkpoint(CheckpointError::Note(NoteError::Unsigned(_))))
            ));
        }
    }

    #[test]
    fn cosignature_of_another_checkpoint_or_time_is_rejected() {
        let mirror = key("ly.rabat.example/mirror", Algorithm::CosignatureEd25519, 2);
        let mirrors = [mirror.verifier().clone()];
        let ((seven, log_keys), (eight, _)) = (signed(7), signed(8));
        let line = |signed: &SignedCheckpoint| {
            Note::parse(&cosign(signed, &mirror, TIME).unwrap()).unwrap().signatures.remove(1)
        };
        let moved = with_cosignatures(&eight, [&line(&seven)]);
        assert!(verify_cosigned(&moved, &log_keys, &mirrors).is_err());
        let mut later = line(&seven);
        later.bytes[7] ^= 1;
        assert!(verify_cosigned(&with_cosignatures(&seven, [&later]), &log_keys, &mirrors).is_err());
        for time in [0, 1 << 63] {
            assert_eq!(cosign(&seven, &mirror, time), Err(CosignatureError::Time));
        }
        let twice = [line(&seven).to_string(), line(&seven).to_string()].join("\n");
        let note = [seven.note.as_ref(), twice.as_bytes(), b"\n"].concat();
        assert!(verify_cosigned(&note, &log_keys, &mirrors).is_err());
    }

    #[test]
    fn cosignatures_of_several_members_fit_one_note() {
        let (signed, log_keys) = signed(7);
        let mirrors =
            ["ly", "tn"].map(|member| key(&format!("{member}.rabat.example/mirror"), Algorithm::CosignatureEd25519, 2));
        let keys = mirrors.each_ref().map(|mirror| mirror.verifier().clone());
        let lines: Vec<_> = mirrors.iter().map(|mirror| sign_line(&signed.checkpoint, mirror, TIME).unwrap()).collect();
        let note = with_cosignatures(&signed, lines.iter().chain(&lines));
        let parsed = Note::parse(&note).unwrap();
        assert_eq!(parsed.signatures.len(), 3);
        let found = verified_lines(&parsed, &signed.checkpoint, &keys).unwrap();
        assert_eq!(found.iter().map(|one| one.cosigner.as_str()).collect::<Vec<_>>(), ["ly", "tn"]);
        assert_eq!(verify_cosigned(&note, &log_keys, &keys[1..]).unwrap().1, TIME);
    }

    #[test]
    fn only_mirror_keys_of_the_exchange_cosign() {
        let (signed, _) = signed(7);
        for name in ["ly.rabat.example/custody", "ly.tripoli.example/mirror", "ly", "LY.rabat.example/mirror"] {
            let key = key(name, Algorithm::CosignatureEd25519, 2);
            assert!(matches!(cosign(&signed, &key, TIME), Err(CosignatureError::KeyName(_))), "{name}");
        }
        let plain = key("ly.rabat.example/mirror", Algorithm::Ed25519, 2);
        assert!(matches!(cosign(&signed, &plain, TIME), Err(CosignatureError::Checkpoint(_))));
    }

    #[test]
    fn heartbeat_is_accepted_from_the_feed_owner_only() {
        let checkpoint = signed(7).0.checkpoint;
        let own = key("ma.rabat.example/mirror", Algorithm::CosignatureEd25519, 4);
        let keys = [own.verifier().clone()];
        let line = heartbeat_line(&checkpoint, &own, TIME).unwrap();
        assert_eq!(verify_heartbeat(&line, &checkpoint, &keys), Ok(TIME));
        assert!(verify_heartbeat(&line, &signed(8).0.checkpoint, &keys).is_err());
        assert_eq!(verify_heartbeat(&line, &checkpoint, &[]), Err(CosignatureError::Unsigned));
        assert_eq!(verify_heartbeat(&line[..line.len() - 1], &checkpoint, &keys), Err(CosignatureError::Heartbeat));
        let other = key("ly.rabat.example/mirror", Algorithm::CosignatureEd25519, 4);
        let line = heartbeat_line(&checkpoint, &other, TIME).unwrap();
        assert!(matches!(
            verify_heartbeat(&line, &checkpoint, &[other.verifier().clone()]),
            Err(CosignatureError::KeyName(_))
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let keys = [key("ma.rabat.example/mirror", Algorithm::CosignatureEd25519, 4).verifier().clone()];
            prop_assert!(verify_heartbeat(&bytes, &signed(7).0.checkpoint, &keys).is_err());
            prop_assert!(verify_cosigned(&bytes, &keys, &keys).is_err());
        }
    }
}
