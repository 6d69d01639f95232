//! Keys, signed notes, checkpoints, cosignatures, heartbeats and custody notes. Each has exactly
//! one encoding, and what verifies is what the key's holder would sign.

use barid_core::feed::checkpoint::{Checkpoint, SignedCheckpoint, sign};
use barid_core::feed::cosignature::{cosign, verified_lines, verify_cosigned, verify_heartbeat};
use barid_core::feed::custody::CustodyNote;
use barid_core::feed::note::{Algorithm, Note, SigningKey, VerifierKey};
use barid_core::ids::{FeedId, Member};

use super::golden;
use crate::fixture;

pub fn check(data: &[u8]) {
    names_and_keys(data);
    if let Ok(note) = Note::parse(data) {
        assert_eq!(note.to_bytes(), data, "a note has one encoding");
    }
    let (feed_key, mirror_key) = (fixture::feed_key("ma"), fixture::mirror_key("tn", 0));
    let (log, mirrors) = ([feed_key.verifier().clone()], [mirror_key.verifier().clone()]);
    let honest = fixture::checkpoint(&fixture::tree(), fixture::SIZE);
    if let Ok(signed) = SignedCheckpoint::verify(data, &log) {
        assert_eq!(sign(&signed.checkpoint, std::slice::from_ref(&feed_key)).as_ref(), Ok(&signed), "reproducible");
        assert_eq!(SignedCheckpoint::verify(&signed.note, &log).as_ref(), Ok(&signed));
    }
    if let Ok((signed, time)) = verify_cosigned(data, &log, &mirrors) {
        let again = cosign(&signed, &mirror_key, time).unwrap();
        assert_eq!(verify_cosigned(&again, &log, &mirrors), Ok((signed, time)), "reproducible");
    }
    if let Ok(time) = verify_heartbeat(data, &honest.checkpoint, &[fixture::mirror_key("ma", 0).verifier().clone()]) {
        assert_ne!(time, 0);
    }
    let custodian = fixture::custody_key("ly");
    if let Ok(custody) = CustodyNote::verify(data, &[custodian.verifier().clone()]) {
        let text = Note::parse(data).unwrap().text;
        assert_eq!(custody.text(), text);
    }
    if let Ok(text) = std::str::from_utf8(data) {
        texts(text, &feed_key, &mirror_key, &custodian);
    }
}

/// Checks the text as if the key's holder signed it.
fn texts(text: &str, feed_key: &SigningKey, mirror_key: &SigningKey, custodian: &SigningKey) {
    if let Ok(checkpoint) = Checkpoint::parse_text(text) {
        assert_eq!(checkpoint.text(), text, "a checkpoint has one encoding");
        match sign(&checkpoint, std::slice::from_ref(feed_key)) {
            Ok(signed) => {
                let keys = [feed_key.verifier().clone()];
                assert_eq!(SignedCheckpoint::verify(&signed.note, &keys).as_ref(), Ok(&signed));
                let note = cosign(&signed, mirror_key, 77).unwrap();
                let mirrors = [mirror_key.verifier().clone()];
                assert_eq!(verify_cosigned(&note, &keys, &mirrors), Ok((signed.clone(), 77)));
                let lines = verified_lines(&Note::parse(&note).unwrap(), &checkpoint, &mirrors).unwrap();
                assert_eq!(lines.len(), 1);
                let other = Checkpoint { size: checkpoint.size ^ 1, ..checkpoint };
                assert!(verified_lines(&Note::parse(&note).unwrap(), &other, &mirrors).is_err());
            }
            Err(_) => assert_ne!(checkpoint.feed.to_string(), feed_key.name()),
        }
    }
    if let Ok(custody) = CustodyNote::parse_text(text) {
        assert_eq!(custody.text(), text, "a custody note has one encoding");
        for (range, _) in &custody.not_held {
            assert!(!custody.holds(range.start) && !custody.holds(range.end - 1));
            assert!(custody.range.start <= range.start && range.end <= custody.range.end);
        }
        assert!(!custody.holds(custody.range.end) && custody.range.end <= custody.size);
        if let Ok(note) = custody.sign(custodian) {
            assert_eq!(CustodyNote::verify(&note, &[custodian.verifier().clone()]), Ok(custody));
        }
    }
}

fn names_and_keys(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(member) = text.parse::<Member>() {
        assert_eq!(member.as_str(), text);
    }
    if let Ok(feed) = text.parse::<FeedId>() {
        assert_eq!(feed.to_string(), text);
    }
    if let Ok(key) = text.parse::<VerifierKey>() {
        assert_eq!(key.to_string(), text, "a key has one encoding");
        let again = VerifierKey::new(key.name(), key.algorithm(), key.public_bytes());
        assert_eq!(again.as_ref(), Ok(&key));
    }
    if let Ok(key) = SigningKey::from_text(text) {
        assert_eq!(key.to_text().as_str(), text, "a private key has one encoding");
    }
    if let Some(public) = data.first_chunk::<32>()
        && let Ok(key) = VerifierKey::new("fuzz.example/key", Algorithm::Ed25519, public)
    {
        assert_eq!(key.to_string().parse::<VerifierKey>().as_ref(), Ok(&key));
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> =
        ["checkpoint.note", "cosigned-checkpoint.note", "custody.note", "bulletin.tlog-proof"].map(golden).into();
    let texts = seeds.iter().filter_map(|note| Some(Note::parse(note).ok()?.text.into_bytes()));
    seeds.extend(texts.collect::<Vec<_>>());
    let keys = [fixture::feed_key("ma"), fixture::mirror_key("tn", 0), fixture::custody_key("ly")];
    seeds.extend(keys.iter().map(|key| key.verifier().to_string().into_bytes()));
    let post_quantum = fixture::key("ma.rabat.example/mirror", Algorithm::CosignatureMlDsa44, 0);
    seeds.push(post_quantum.verifier().to_string().into_bytes());
    seeds.push(fixture::feed_key("ma").to_text().as_bytes().to_vec());
    seeds.extend(["ma", "x-observer", "ma.rabat.example/feed/1"].map(|text| text.as_bytes().to_vec()));
    let heartbeat = barid_core::feed::cosignature::heartbeat_line(
        &fixture::checkpoint(&fixture::tree(), fixture::SIZE).checkpoint,
        &fixture::mirror_key("ma", 0),
        99,
    );
    seeds.push(heartbeat.unwrap().to_vec());
    seeds
}
