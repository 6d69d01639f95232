//! Offline proofs that an entry is in a feed: C2SP tlog-proof, `c2sp.org/tlog-proof@v1`.
//!
//! In scope: the format and its verification against the feed's keys. Out of scope: cosignatures on
//! the checkpoint and their number (`evidence`). A proof with the format's `extra` line is
//! rejected: the line is not authenticated, and Barid does not need it.

use bytes::Bytes;

use super::checkpoint::{CheckpointError, SignedCheckpoint};
use super::note::VerifierKey;
use super::text::{base64, decimal, hash};
use super::tree::{ProofError, verify_inclusion};
use crate::ids::{Digest, Hash};
use crate::limits::{PROOF_HASHES_MAX, TLOG_PROOF_BYTES_MAX};

const FIRST_LINE: &str = "c2sp.org/tlog-proof@v1";

/// Index of an entry, its inclusion proof, and the checkpoint that it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlogProof {
    /// Index of the entry.
    pub index: u64,
    /// Inclusion proof, from the leaf's sibling to the root's child.
    pub proof: Vec<Hash>,
    /// The checkpoint note, verbatim, with any cosignatures on it.
    pub checkpoint: Bytes,
}

/// Why bytes are not a proof, or the proof is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlogProofError {
    /// Larger than [`TLOG_PROOF_BYTES_MAX`].
    #[error("the proof has {0} bytes, more than {TLOG_PROOF_BYTES_MAX}")]
    TooLarge(usize),
    /// Not in the format; names the invalid part.
    #[error("the proof has no valid {0}")]
    Form(&'static str),
    /// The checkpoint is not valid.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The inclusion proof does not lead to the checkpoint.
    #[error(transparent)]
    Inclusion(#[from] ProofError),
}

impl TlogProof {
    /// Returns the bytes of the proof.
    #[must_use]
    pub fn format(&self) -> Vec<u8> {
        let mut head = format!("{FIRST_LINE}\nindex {}\n", self.index);
        for hash in &self.proof {
            head.push_str(&base64(hash));
            head.push('\n');
        }
        head.push('\n');
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&self.checkpoint);
        bytes
    }

    /// Parses a proof, without parsing the checkpoint in it. For every proof accepted here,
    /// [`Self::format`] returns the same bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, TlogProofError> {
        if bytes.len() > TLOG_PROOF_BYTES_MAX {
            return Err(TlogProofError::TooLarge(bytes.len()));
        }
        let blank = bytes.windows(2).position(|pair| pair == b"\n\n").ok_or(TlogProofError::Form("blank line"))?;
        let (head, checkpoint) = (&bytes[..blank], &bytes[blank + 2..]);
        let head = std::str::from_utf8(head).map_err(|_| TlogProofError::Form("text"))?;
        let mut lines = head.split('\n');
        if lines.next() != Some(FIRST_LINE) {
            return Err(TlogProofError::Form("first line"));
        }
        let index = lines.next().and_then(|line| line.strip_prefix("index ")).and_then(decimal);
        let index = index.ok_or(TlogProofError::Form("index"))?;
        let mut proof = Vec::new();
        for line in lines {
            if proof.len() == PROOF_HASHES_MAX {
                return Err(TlogProofError::Form("number of hashes"));
            }
            proof.push(hash(line).ok_or(TlogProofError::Form("hash"))?);
        }
        Ok(Self { index, proof, checkpoint: Bytes::copy_from_slice(checkpoint) })
    }

    /// Verifies that the record `digest` is in the feed, and returns the checkpoint. `log_keys` are
    /// all of the feed's keys.
    pub fn verify(&self, digest: &Digest, log_keys: &[VerifierKey]) -> Result<SignedCheckpoint, TlogProofError> {
        let signed = SignedCheckpoint::verify(&self.checkpoint, log_keys)?;
        let head = &signed.checkpoint;
        verify_inclusion(digest, self.index, head.size, &self.proof, &head.root)?;
        Ok(signed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::checkpoint::{Checkpoint, sign};
    use super::super::note::{Algorithm, SigningKey};
    use super::super::tree::{MemoryTree, inclusion_proof};
    use super::*;
    use proptest::prelude::*;

    /// The first part of the example in tlog-proof, without its `extra` line.
    const EXAMPLE: &str = "c2sp.org/tlog-proof@v1\nindex 73894\n\
        gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=\nB95lDa8R83lS8n0eG+o0buTxRKQTYFi//1U8anccXmA=\n\n\
        example.com/fancylog\n109482\nsFodV/vSp5O8n9a8QpW6PRY97tfOSW5bsc2Xl/EQi08=\n\n— example.com/fancylog hI2DJw==\n";

    fn proof_of(index: u64, size: u8) -> (TlogProof, Digest, Vec<VerifierKey>) {
        let mut tree = MemoryTree::new();
        (0..size).for_each(|number| tree.append(&Digest([number; 32])));
        let origin = "ma.rabat.example/feed/1";
        let key = SigningKey::from_seed(origin, Algorithm::Ed25519, [1; 32]).unwrap();
        let checkpoint = Checkpoint { feed: origin.parse().unwrap(), size: tree.size(), root: tree.root() };
        let checkpoint = sign(&checkpoint, std::slice::from_ref(&key)).unwrap().note;
        let proof = inclusion_proof(&tree, index, tree.size()).unwrap();
        let digest = Digest([u8::try_from(index).unwrap(); 32]);
        (TlogProof { index, proof, checkpoint }, digest, vec![key.verifier().clone()])
    }

    #[test]
    fn the_example_of_the_specification_is_read_and_written() {
        let proof = TlogProof::parse(EXAMPLE.as_bytes()).unwrap();
        assert_eq!((proof.index, proof.proof.len()), (73_894, 2));
        assert!(proof.checkpoint.starts_with(b"example.com/fancylog\n109482\n"));
        assert_eq!(proof.format(), EXAMPLE.as_bytes());
    }

    #[test]
    fn a_proof_verifies_for_its_entry_only() {
        for (index, size) in [(0, 1), (3, 8), (6, 7)] {
            let (proof, digest, keys) = proof_of(index, size);
            assert_eq!(TlogProof::parse(&proof.format()), Ok(proof.clone()));
            assert_eq!(proof.verify(&digest, &keys).unwrap().checkpoint.size, u64::from(size));
            assert_eq!(proof.verify(&Digest([99; 32]), &keys), Err(TlogProofError::Inclusion(ProofError::Root)));
            let elsewhere = TlogProof { index: index + 1, ..proof.clone() };
            assert!(matches!(elsewhere.verify(&digest, &keys), Err(TlogProofError::Inclusion(_))));
            let stranger = SigningKey::from_seed("ma.rabat.example/feed/1", Algorithm::Ed25519, [2; 32]).unwrap();
            let rejected = proof.verify(&digest, &[stranger.verifier().clone()]);
            assert!(matches!(rejected, Err(TlogProofError::Checkpoint(_))));
        }
    }

    #[test]
    fn other_spellings_are_rejected() {
        let hash = "gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=\n";
        for (right, wrong) in [
            ("@v1", "@v2"),
            ("index 73894", "index 073894"),
            ("index 73894", "extra AAAA\nindex 73894"),
            ("index 73894", "73894"),
            ("PlQ=", "PlR="),
            ("PlQ=\n", "PlQ=\r\n"),
            (hash, &hash.repeat(PROOF_HASHES_MAX)),
        ] {
            let altered = EXAMPLE.replacen(right, wrong, 1);
            assert!(matches!(TlogProof::parse(altered.as_bytes()), Err(TlogProofError::Form(_))), "{right} as {wrong}");
        }
        assert_eq!(TlogProof::parse(b"c2sp.org/tlog-proof@v1\nindex 1\n"), Err(TlogProofError::Form("blank line")));
        let large = vec![b'a'; TLOG_PROOF_BYTES_MAX + 1];
        assert_eq!(TlogProof::parse(&large), Err(TlogProofError::TooLarge(TLOG_PROOF_BYTES_MAX + 1)));
    }

    proptest! {
        #[test]
        fn parsed_proof_formats_to_the_same_bytes(tail in "(index [0-9]{1,3}\n)?([A-D]{43}=\n){0,2}\n[a-c\n]{0,9}") {
            let text = format!("{FIRST_LINE}\n{tail}");
            if let Ok(proof) = TlogProof::parse(text.as_bytes()) {
                prop_assert_eq!(proof.format(), text.into_bytes());
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(TlogProof::parse(&bytes).is_err());
        }
    }
}
