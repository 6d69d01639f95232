//! Timestamped signatures over a tree head: the messages and encodings of C2SP tlog-cosignature.
//!
//! In scope: `timestamped_signature` for Ed25519 (type 0x04) and ML-DSA-44 (type 0x06). Out of
//! scope: what a signer attests with it, and the note that carries it.

use super::key::{Algorithm, KeyError, SigningKey, VerifierKey};
use super::note::NoteSignature;
use super::text::base64;
use super::tree::TREE_SIZE_MAX;
use crate::ids::Hash;

/// First bytes of every ML-DSA-44 message.
const SUBTREE_LABEL: &[u8; 12] = b"subtree/v1\n\0";

/// The signed content besides the time.
#[derive(Clone, Copy)]
pub(super) struct TreeHead<'a> {
    pub(super) origin: &'a str,
    pub(super) size: u64,
    pub(super) root: &'a Hash,
}

impl TreeHead<'_> {
    /// Returns the note text of the checkpoint, without extension lines (tlog-checkpoint).
    pub(super) fn text(self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, base64(self.root))
    }

    /// Signs with a key of type 0x04 or 0x06. `time` is in seconds since the Unix epoch, at most
    /// 2^63 - 1.
    pub(super) fn sign(self, key: &SigningKey, time: u64) -> Result<NoteSignature, KeyError> {
        let message = self.message(key.verifier(), time)?;
        let mut bytes = time.to_be_bytes().to_vec();
        bytes.extend(key.sign(&message)?);
        Ok(NoteSignature::new(key, bytes))
    }

    /// Returns the time of a signature by `key` if it is valid for this tree head. The caller has
    /// matched name and id.
    pub(super) fn verify(self, key: &VerifierKey, line: &NoteSignature) -> Result<Option<u64>, KeyError> {
        let Some((time, signature)) = line.bytes.split_first_chunk() else { return Ok(None) };
        let time = u64::from_be_bytes(*time);
        if time > TREE_SIZE_MAX {
            return Ok(None);
        }
        Ok(key.verifies(&self.message(key, time)?, signature).then_some(time))
    }

    fn message(self, key: &VerifierKey, time: u64) -> Result<Vec<u8>, KeyError> {
        match key.algorithm() {
            Algorithm::Ed25519 => Err(key.cannot("a tree head with a time")),
            Algorithm::CosignatureEd25519 => Ok(format!("cosignature/v1\ntime {time}\n{}", self.text()).into_bytes()),
            Algorithm::CosignatureMlDsa44 => {
                let mut message = SUBTREE_LABEL.to_vec();
                push_short(&mut message, key.name())?;
                message.extend(time.to_be_bytes());
                push_short(&mut message, self.origin)?;
                message.extend(0_u64.to_be_bytes());
                message.extend(self.size.to_be_bytes());
                message.extend(self.root.0);
                Ok(message)
            }
        }
    }
}

/// Appends a text of 1 to 255 bytes, preceded by its length in one byte.
fn push_short(message: &mut Vec<u8>, text: &str) -> Result<(), KeyError> {
    let length = u8::try_from(text.len()).ok().filter(|length| *length > 0);
    message.push(length.ok_or_else(|| KeyError::Name(text.chars().take(80).collect()))?);
    message.extend_from_slice(text.as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::note::Note;
    use super::super::text::hash;
    use super::*;

    /// The root of the reference notes; the examples of tlog-checkpoint use it too.
    const ROOT: &str = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=";
    /// A note and its key created with github.com/transparency-dev/formats/note.
    const ED25519_KEY: &str = "vec.example/cosigv10+c12688da+BLMSTPoQj0PojM8eKiPf9xUT8g6b0OuMyvYb5sSu9JH5";
    const ED25519_NOTE: &str = "vec.example/cosigv10\n42\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n\
        — vec.example/cosigv10 wSaI2gAAAABqbL5Q3HjbTCJeqMg3tmpdYGAg05ijTi7k0pyreJSULmtv3g+yXH+G/Ko87JG+QkLF6af9+GVVNlEIgf6T0bw0wQyMDw==\n";
    const ML_DSA_KEY: &str = include_str!("vectors/mldsa44.vkey");
    const ML_DSA_NOTE: &str = include_str!("vectors/mldsa44.note");

    #[test]
    fn notes_of_the_reference_implementation_verify() {
        for (key, note) in [(ED25519_KEY, ED25519_NOTE), (ML_DSA_KEY, ML_DSA_NOTE)] {
            let key: VerifierKey = key.trim_end().parse().unwrap();
            let note = Note::parse(note.as_bytes()).unwrap();
            let line = note.line_by(&key).unwrap().unwrap();
            let root = hash(ROOT).unwrap();
            let head = TreeHead { origin: key.name(), size: 42, root: &root };
            assert_eq!(head.text(), note.text);
            assert_eq!(head.verify(&key, line), Ok(Some(1_785_511_504)));
            assert_eq!(TreeHead { size: 43, ..head }.verify(&key, line), Ok(None));
            assert_eq!(TreeHead { origin: "vec.example/other", ..head }.verify(&key, line), Ok(None));
            assert_eq!(TreeHead { root: &Hash([0; 32]), ..head }.verify(&key, line), Ok(None));
            let mut later = line.clone();
            later.bytes[7] ^= 1;
            assert_eq!(head.verify(&key, &later), Ok(None));
            later.bytes.truncate(7);
            assert_eq!(head.verify(&key, &later), Ok(None));
        }
    }

    #[test]
    fn the_messages_are_as_the_specification_writes_them() {
        let root = hash(ROOT).unwrap();
        let head = TreeHead { origin: "example.com/behind-the-sofa", size: 20_852_163, root: &root };
        let key = |algorithm| SigningKey::from_seed("witness.example.com/w1", algorithm, [1; 32]).unwrap();
        assert_eq!(
            String::from_utf8(head.message(key(Algorithm::CosignatureEd25519).verifier(), 1_679_315_147).unwrap())
                .unwrap(),
            "cosignature/v1\ntime 1679315147\nexample.com/behind-the-sofa\n20852163\n\
             CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
        );
        let mut expected = b"subtree/v1\n\0\x16witness.example.com/w1".to_vec();
        expected.extend(hex::decode("00000000641850cb").unwrap());
        expected.extend(b"\x1bexample.com/behind-the-sofa");
        expected.extend(hex::decode("000000000000000000000000013e2dc3").unwrap());
        expected.extend(root.0);
        assert_eq!(head.message(key(Algorithm::CosignatureMlDsa44).verifier(), 1_679_315_147).unwrap(), expected);
        assert!(matches!(head.sign(&key(Algorithm::Ed25519), 1), Err(KeyError::Purpose { .. })));
    }
}
