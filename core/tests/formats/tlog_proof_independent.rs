//! An independent checker of tlog-proofs. It is based on the specifications and does not use core:
//! c2sp.org/tlog-proof, tlog-checkpoint, signed-note and tlog-cosignature, and RFC 9162 §2.1.3.2.
//! Only the tests at the end take a proof from an evidence file created by core.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest, Sha256};

type Hash = [u8; 32];

/// The policy of a verifier: the log's key and the witnesses' keys, as vkeys, and the number of
/// witnesses required.
struct Policy<'a> {
    log: &'a str,
    witnesses: &'a [&'a str],
    wanted: usize,
}

struct Key {
    name: String,
    id: [u8; 4],
    kind: u8,
    public: VerifyingKey,
}

/// signed-note, "Verifier keys".
fn vkey(text: &str) -> Option<Key> {
    let (name, rest) = text.split_once('+')?;
    let (id, material) = rest.split_once('+')?;
    let material = STANDARD.decode(material).ok()?;
    let hash = Sha256::new().chain_update(name).chain_update("\n").chain_update(&material).finalize();
    if hex::encode(&hash[..4]) != id {
        return None;
    }
    let public = VerifyingKey::from_bytes(material[1..].try_into().ok()?).ok()?;
    Some(Key { name: name.to_owned(), id: hash[..4].try_into().ok()?, kind: material[0], public })
}

/// Checks a proof that the log includes a leaf with this hash, and returns the times of the
/// witnesses by name.
fn check(proof: &str, leaf: Hash, policy: &Policy<'_>) -> Result<BTreeMap<String, u64>, &'static str> {
    // tlog-proof, "Format".
    let (head, checkpoint) = proof.split_once("\n\n").ok_or("no empty line")?;
    let mut lines = head.split('\n').peekable();
    if lines.next() != Some("c2sp.org/tlog-proof@v1") {
        return Err("first line");
    }
    if let Some(extra) = lines.peek().and_then(|line| line.strip_prefix("extra ")) {
        STANDARD.decode(extra).map_err(|_| "extra")?;
        lines.next();
    }
    let index = decimal(lines.next().and_then(|line| line.strip_prefix("index ")).ok_or("index")?)?;
    let path = lines.map(hash).collect::<Result<Vec<_>, _>>()?;

    // signed-note, "Format"; tlog-checkpoint.
    let blank = checkpoint.rfind("\n\n").ok_or("no signatures")?;
    let (text, signatures) = (&checkpoint[..=blank], &checkpoint[blank + 2..]);
    let mut body = text.lines();
    let origin = body.next().ok_or("origin")?;
    let size = decimal(body.next().ok_or("size")?)?;
    let root = hash(body.next().ok_or("root")?)?;
    let signatures = signatures.strip_suffix('\n').ok_or("last newline")?;
    let signatures: Vec<(&str, Vec<u8>)> = signatures.split('\n').map(signature).collect::<Result<_, _>>()?;
    let by = |key: &Key| {
        let found = signatures.iter().find(|(name, bytes)| *name == key.name && bytes[..4] == key.id);
        found.map(|(_, bytes)| bytes[4..].to_vec())
    };

    // tlog-proof, "Verifying", 2.
    let log = vkey(policy.log).ok_or("log key")?;
    if log.name != origin || log.kind != 1 {
        return Err("origin");
    }
    verify(&log, text.as_bytes(), &by(&log).ok_or("not signed by the log")?)?;

    // 3, and tlog-cosignature, "Ed25519 signed message".
    let mut times = BTreeMap::new();
    for witness in policy.witnesses {
        let witness = vkey(witness).ok_or("witness key")?;
        let Some(bytes) = by(&witness) else { continue };
        let (time, bytes) = bytes.split_first_chunk::<8>().ok_or("cosignature")?;
        let time = u64::from_be_bytes(*time);
        verify(&witness, format!("cosignature/v1\ntime {time}\n{text}").as_bytes(), bytes)?;
        times.insert(witness.name, time);
    }
    if times.len() < policy.wanted {
        return Err("too few witnesses");
    }

    // 4, according to RFC 9162 §2.1.3.2.
    if index >= size {
        return Err("index beyond the tree");
    }
    let (mut first, mut second, mut climbing) = (index, size - 1, leaf);
    for sibling in path {
        if second == 0 {
            return Err("proof too long");
        }
        if first & 1 == 1 || first == second {
            climbing = node(sibling, climbing);
            while first & 1 == 0 && first != 0 {
                first >>= 1;
                second >>= 1;
            }
        } else {
            climbing = node(climbing, sibling);
        }
        first >>= 1;
        second >>= 1;
    }
    if second == 0 && climbing == root { Ok(times) } else { Err("another root") }
}

fn decimal(text: &str) -> Result<u64, &'static str> {
    let value: u64 = text.parse().map_err(|_| "number")?;
    if value.to_string() == text { Ok(value) } else { Err("number") }
}

fn hash(line: &str) -> Result<Hash, &'static str> {
    STANDARD.decode(line).ok().and_then(|bytes| bytes.try_into().ok()).ok_or("hash")
}

fn signature(line: &str) -> Result<(&str, Vec<u8>), &'static str> {
    let (name, encoded) = line.strip_prefix("— ").and_then(|rest| rest.split_once(' ')).ok_or("signature line")?;
    let bytes = STANDARD.decode(encoded).map_err(|_| "signature line")?;
    if bytes.len() > 4 { Ok((name, bytes)) } else { Err("signature line") }
}

fn verify(key: &Key, message: &[u8], signature: &[u8]) -> Result<(), &'static str> {
    let signature = Signature::from_slice(signature).map_err(|_| "signature")?;
    key.public.verify_strict(message, &signature).map_err(|_| "signature")
}

fn node(left: Hash, right: Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// Returns the leaf of a record, RFC 6962 §2.1.
fn leaf(record: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(record).finalize().into()
}

mod tests {
    use super::*;
    use crate::fixture;
    use barid_core::evidence::{assemble, zip};

    /// Returns envelope digest, second proof and keys from an evidence file; the keys are copied
    /// from the roster's text.
    fn out_of_evidence() -> (Hash, String, String, [String; 2]) {
        let parts = zip::read(&assemble(fixture::parts()).unwrap().into()).unwrap();
        let part = |name: &str| parts.iter().find(|part| part.name == name).unwrap().data.to_vec();
        let record = Sha256::digest(part("envelope.bin"));
        let roster = String::from_utf8(part("rosters/1.note")).unwrap();
        let key = |name: &str| {
            let start = roster.find(&format!("\"{name}+")).unwrap() + 1;
            roster[start..].split('"').next().unwrap().to_owned()
        };
        let witnesses = ["tn.rabat.example/mirror", "ly.rabat.example/mirror"].map(key);
        let proof = String::from_utf8(part("proofs/2.tlog-proof")).unwrap();
        (leaf(&record), proof, key("ma.rabat.example/feed/1"), witnesses)
    }

    #[test]
    fn the_proof_in_our_evidence_is_accepted() {
        let (leaf, proof, log, witnesses) = out_of_evidence();
        let witnesses = witnesses.each_ref().map(String::as_str);
        let times = check(&proof, leaf, &Policy { log: &log, witnesses: &witnesses, wanted: 1 }).unwrap();
        assert_eq!(times, BTreeMap::from([("tn.rabat.example/mirror".to_owned(), fixture::TIME + 5)]));
        assert_eq!(
            check(&proof, leaf, &Policy { log: &log, witnesses: &witnesses, wanted: 2 }),
            Err("too few witnesses")
        );
        let policy = Policy { log: witnesses[0], witnesses: &witnesses, wanted: 1 };
        assert_eq!(check(&proof, leaf, &policy), Err("origin"));
    }

    #[test]
    fn altered_proof_is_rejected() {
        let (leaf, proof, log, witnesses) = out_of_evidence();
        // Without the publisher's own cosignature, every byte of the proof matters.
        let proof: String =
            proof.split_inclusive('\n').filter(|line| !line.contains("ma.rabat.example/mirror")).collect();
        let witnesses = witnesses.each_ref().map(String::as_str);
        let policy = Policy { log: &log, witnesses: &witnesses, wanted: 1 };
        check(&proof, leaf, &policy).unwrap();
        for at in 0..proof.len() {
            let mut altered = proof.clone().into_bytes();
            altered[at] ^= 1 << (at % 7);
            let accepted = String::from_utf8(altered).is_ok_and(|altered| check(&altered, leaf, &policy).is_ok());
            assert!(!accepted, "byte {at}");
        }
        assert_eq!(check(&proof, super::leaf(b"another"), &policy), Err("another root"));
    }
}
