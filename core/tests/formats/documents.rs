//! Compares the examples in the project's documents with the formats that the code reads and
//! writes, byte for byte.
//!
//! A fenced block whose first line has `golden=FILE` repeats a file of `tests/golden`, or its
//! `lines=A..B` (from 1, inclusive) or `bytes=A..B` (from 0, exclusive of B); `produced=NAME`
//! repeats the output of [`produced`]. Blocks of `text` are compared exactly; in blocks of `hex`,
//! white space is ignored and `#` begins a comment.

use std::collections::BTreeMap;
use std::path::PathBuf;

use barid_core::bulletin::header::HEADER_FORMAT;
use barid_core::evidence::PAGE;
use barid_core::evidence::zip;
use barid_core::feed::note::{Algorithm, Note, VerifierKey};
use barid_core::feed::tree;
use barid_core::limits;
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::roster::Roster;
use bytes::Bytes;
use ed25519_dalek::Verifier as _;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use crate::fixture::*;
use crate::golden::read;

/// The documents with examples, and the least number of examples in each.
const PAPERS: [(&str, usize); 2] = [("docs/protocol.md", 20), ("docs/store.md", 3)];

struct Block {
    place: String,
    language: String,
    attributes: BTreeMap<String, String>,
    body: String,
}

fn paper(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn blocks(name: &str) -> Vec<Block> {
    let text = paper(name);
    let mut blocks: Vec<Block> = Vec::new();
    let mut open = false;
    for (line, number) in text.lines().zip(1..) {
        match line.strip_prefix("```") {
            Some(_) if open => open = false,
            Some(info) => {
                open = true;
                let mut parts = info.split_whitespace();
                let language = parts.next().unwrap_or_default().to_owned();
                let pair = |part: &str| part.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
                let place = format!("{name}:{number}");
                let attributes = parts.filter_map(pair).collect();
                blocks.push(Block { place, language, attributes, body: String::new() });
            }
            None if open => {
                let block = blocks.last_mut().unwrap();
                block.body.push_str(line);
                block.body.push('\n');
            }
            None => {}
        }
    }
    assert!(!open, "{name}: a block is not closed");
    blocks
}

fn range(text: &str) -> (usize, usize) {
    let (from, to) = text.split_once("..").unwrap();
    (from.parse().unwrap(), to.parse().unwrap())
}

/// Returns what the block must repeat; `None` for one that repeats nothing.
fn expected(block: &Block) -> Option<Vec<u8>> {
    if let Some(name) = block.attributes.get("produced") {
        return Some(produced(name).unwrap_or_else(|| panic!("{}: nothing is called {name}", block.place)));
    }
    let file = read(block.attributes.get("golden")?);
    if let Some(lines) = block.attributes.get("lines") {
        let (from, to) = range(lines);
        let text = String::from_utf8(file.to_vec()).unwrap();
        return Some(
            text.lines().skip(from - 1).take(to + 1 - from).fold(String::new(), |all, line| all + line + "\n").into(),
        );
    }
    Some(match block.attributes.get("bytes").map(|bytes| range(bytes)) {
        Some((from, to)) => file.slice(from..to).to_vec(),
        None => file.to_vec(),
    })
}

fn rendered(block: &Block) -> Vec<u8> {
    match block.language.as_str() {
        "text" | "toml" => block.body.clone().into_bytes(),
        "hex" => {
            let digits = block.body.lines().flat_map(|line| line.split('#').next().unwrap_or_default().chars());
            let digits: String = digits.filter(|c| !c.is_whitespace()).collect();
            hex::decode(&digits).unwrap_or_else(|error| panic!("{}: {error}", block.place))
        }
        other => panic!("{}: examples are text, toml or hex, not {other}", block.place),
    }
}

#[test]
fn documented_examples_match_the_code() {
    for (name, least) in PAPERS {
        let mut checked = 0;
        for block in blocks(name) {
            let Some(expected) = expected(&block) else {
                assert!(!["text", "hex"].contains(&block.language.as_str()), "{}: of which file?", block.place);
                continue;
            };
            let rendered = rendered(&block);
            let print = |bytes: &[u8]| {
                if block.language == "hex" { hex::encode(bytes) } else { String::from_utf8_lossy(bytes).into() }
            };
            assert!(
                rendered == expected,
                "{} contains\n{}\nexpected\n{}",
                block.place,
                print(&rendered),
                print(&expected)
            );
            checked += 1;
        }
        assert!(checked >= least, "{name}: only {checked} examples");
    }
}

/// Compares every limit in the documents' tables (`| `NAME` | value |`) with the code.
#[test]
fn documented_limits_match_the_code() {
    macro_rules! limits {
        ($($name:ident),+ $(,)?) => { [$((stringify!($name), u64::try_from(limits::$name).unwrap())),+] };
    }
    let known = BTreeMap::from(limits![
        ENVELOPE_BYTES_MAX,
        HEADER_BYTES_MAX,
        HEADER_READ_BYTES_MAX,
        BATCH_ENTRIES_MAX,
        BATCH_BYTES_MAX,
        NOTE_BYTES_MAX,
        NOTE_WRITTEN_BYTES_MAX,
        NOTE_SIGNATURES_MAX,
        KEY_NAME_BYTES_MAX,
        CUSTODY_RANGES_MAX,
        TLOG_PROOF_BYTES_MAX,
        ROSTER_BYTES_MAX,
        MESSAGE_BYTES_MAX,
        PROOF_HASHES_MAX,
        EVIDENCE_BYTES_MAX,
        EVIDENCE_PARTS_MAX,
        EQUIVOCATION_BYTES_MAX,
        PRIORITY_ENTRIES_MAX,
        PRIORITY_OTHERS_MAX,
        BACKFILL_RANGES_MAX,
        BACKFILL_SCAN_MAX,
        EVIDENCE_PROOFS_MAX,
        TOPIC_BYTES_MAX,
        TOPIC_LABELS_MAX,
        FILTERS_MAX,
        FRAME_PARTS_MAX,
        REFERENCES_MAX,
        RELEASABLE_MAX,
        TEXTS_MAX,
        LIST_MAX,
        BODY_FIELDS_MAX,
        AUTHOR_SIGNATURES_MAX,
        NAME_BYTES_MAX,
        ISSUER_BYTES_MAX,
        CLOCK_AHEAD_SECONDS_MAX,
        ATTACHMENT_BYTES_MAX,
        GOVERNORS_MAX,
        ENDPOINT_BYTES_MAX,
    ]);
    let text = paper("docs/protocol.md");
    let mut seen = 0;
    for line in text.lines().filter(|line| line.starts_with("| `") && line.contains("_MAX` |")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let name = cells[1].trim_matches('`');
        let value: u64 = cells[2].replace(',', "").parse().unwrap_or_else(|_| panic!("{line}: no number"));
        assert_eq!(known.get(name), Some(&value), "{line}");
        seen += 1;
    }
    assert_eq!(seen, known.len(), "every limit is in the table once");
}

#[test]
fn documented_vocabularies_match_the_code() {
    use barid_core::bulletin::vocabulary::*;
    let text = paper("docs/protocol.md");
    macro_rules! values {
        ($($name:ident),+) => { [$($name::ALL.iter().map(|value| value.as_str()).collect::<Vec<_>>()),+] };
    }
    for values in values![Status, MsgType, Urgency, Severity, Tlp, HandlingCode, Purpose] {
        let row = values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ");
        assert!(text.contains(&row), "the document lacks: {row}");
    }
    for kind in barid_core::bulletin::kinds::REGISTRY {
        assert!(text.contains(&format!("| `{}` |", kind.name)), "the document lacks the kind {}", kind.name);
    }
    for (_, reason, _) in barid_core::ids::Undisclosed::ALL {
        assert!(text.contains(&format!("| `{reason}` |")), "the document lacks the reason {reason}");
    }
    assert_eq!(HEADER_FORMAT, 1);
}

fn text(lines: &[&str]) -> Vec<u8> {
    lines.iter().fold(String::new(), |all, line| all + line + "\n").into()
}

fn frame(frame: Frame) -> Vec<u8> {
    proto::Frame { frame: Some(frame) }.encode_to_vec()
}

fn produced(name: &str) -> Option<Vec<u8>> {
    let feed_key = feed_key("ma");
    let signed = checkpoint(&tree(), SIZE);
    Some(match name {
        "entry-digest" => bulletin().digest.0.to_vec(),
        "leaf-hash" => tree::leaf_hash(&bulletin().digest).0.to_vec(),
        "vkey" => text(&[&feed_key.verifier().to_string()]),
        "key-id" => {
            let key = feed_key.verifier();
            let input = [key.name().as_bytes(), b"\n", &[key.algorithm().number()], key.public_bytes()].concat();
            assert_eq!(Sha256::digest(&input)[..4], key.id());
            key.id().to_vec()
        }
        "signature-line" => decoded_line(&signed.note, 0),
        "cosignature-line" => decoded_line(&read("cosigned-checkpoint.note"), 1),
        "cosignature-message" => {
            let message = format!("cosignature/v1\ntime {TIME}\n{}", signed.checkpoint.text()).into_bytes();
            let line = decoded_line(&read("cosigned-checkpoint.note"), 1);
            let key = mirror_key("tn", 0);
            let public = ed25519_dalek::VerifyingKey::from_bytes(key.verifier().public_bytes().try_into().unwrap());
            public.unwrap().verify(&message, &ed25519_dalek::Signature::from_slice(&line[12..]).unwrap()).unwrap();
            message
        }
        "tree-head-message" => {
            let key = post_quantum_mirror_key("tn");
            let message = tree_head_message(key.verifier(), TIME, &signed.checkpoint.feed.to_string());
            let line = decoded_line(&read("post-quantum-checkpoint.note"), 3);
            assert_eq!(line[4..12], TIME.to_be_bytes());
            assert!(ml_dsa_verifies(key.verifier(), &message, &line[12..]));
            message
        }
        "roster-hash" => Roster::read(&read("roster-1.note")).unwrap().0.text_hash().0.to_vec(),
        "evidence-parts" => {
            let parts = zip::read(&read("evidence.barid")).unwrap();
            assert_eq!(parts[0].data, PAGE);
            parts.iter().fold(String::new(), |all, part| all + &part.name + "\n").into()
        }
        "frame-hello" => frame(Frame::Hello(proto::Hello {
            protocol: 1,
            exchange: EXCHANGE.to_owned(),
            software: "barid 0.1.0".to_owned(),
            roster_version: 2,
            now_unix_ms: NOW_MS,
        })),
        "frame-follow" => frame(Frame::Follow(proto::Follow {
            feed: signed.checkpoint.feed.to_string(),
            from: 7,
            topics: vec!["information.>".to_owned()],
            ranges: Vec::new(),
        })),
        "frame-priority" => {
            // Without the envelope, which is in §2.
            let proof = tree::inclusion_proof(&tree(), 9, SIZE).unwrap();
            frame(Frame::PriorityEntry(proto::PriorityEntry {
                feed: signed.checkpoint.feed.to_string(),
                index: 9,
                envelope: Bytes::new(),
                inclusion_proof: proof.iter().map(|hash| Bytes::copy_from_slice(&hash.0)).collect(),
                checkpoint: Bytes::new(),
            }))
        }
        "frame-fault" => frame(Frame::Fault(proto::Fault {
            feed: signed.checkpoint.feed.to_string(),
            reason: "gap".to_owned(),
            detail: String::new(),
        })),
        _ => return None,
    })
}

/// Returns key id and signature of a note's line, as decoded from its base64.
fn decoded_line(note: &[u8], line: usize) -> Vec<u8> {
    let line = &Note::parse(note).unwrap().signatures[line];
    [&line.id[..], &line.bytes].concat()
}

/// The message of type 0x06, implemented from c2sp.org/tlog-cosignature alone.
fn tree_head_message(key: &VerifierKey, time: u64, origin: &str) -> Vec<u8> {
    let head = checkpoint(&tree(), SIZE).checkpoint;
    let short = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let (start, size) = (0_u64.to_be_bytes(), head.size.to_be_bytes());
    [b"subtree/v1\n\0", &short(key.name())[..], &time.to_be_bytes(), &short(origin), &start, &size, &head.root.0]
        .concat()
}

fn ml_dsa_verifies(key: &VerifierKey, message: &[u8], signature: &[u8]) -> bool {
    assert_eq!(key.algorithm(), Algorithm::CosignatureMlDsa44);
    let encoded = ml_dsa::EncodedVerifyingKey::<ml_dsa::MlDsa44>::try_from(key.public_bytes()).unwrap();
    let signature = ml_dsa::Signature::<ml_dsa::MlDsa44>::try_from(signature).unwrap();
    ml_dsa::VerifyingKey::decode(&encoded).verify_with_context(message, &[], &signature)
}

#[test]
fn outdated_document_is_detected() {
    let block = |body: &str, golden: &str| Block {
        place: String::new(),
        language: "hex".to_owned(),
        attributes: [("golden".to_owned(), golden.to_owned()), ("bytes".to_owned(), "0..4".to_owned())].into(),
        body: body.to_owned(),
    };
    let right = block("0aa6 01 # header\n08\n", "envelope.bin");
    assert_eq!(Some(rendered(&right)), expected(&right));
    let rotten = block("0aa6 0109\n", "envelope.bin");
    assert_ne!(Some(rendered(&rotten)), expected(&rotten));
    assert_eq!(Bytes::from(expected(&right).unwrap()), read("envelope.bin").slice(0..4));
}
