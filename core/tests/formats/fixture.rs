//! A small fictional exchange with fixed keys, rosters and bulletins.

use barid_core::bulletin::kinds;
use barid_core::bulletin::{BulletinId, DraftDefaults, ValidBulletin, prepare};
use barid_core::evidence::{Consistency, EvidenceParts};
use barid_core::feed::checkpoint::{Checkpoint, SignedCheckpoint, sign};
use barid_core::feed::cosignature::{cosign, with_cosignatures};
use barid_core::feed::custody::CustodyNote;
use barid_core::feed::note::{Algorithm, Note, SigningKey};
use barid_core::feed::tlog_proof::TlogProof;
use barid_core::feed::tree::{MemoryTree, consistency_proof, inclusion_proof, root_at};
use barid_core::ids::{Digest, Member, Undisclosed};
use barid_core::roster::Roster;
use barid_core::roster::text::{ClosedFeedText, GovernorsText, KeyText, MemberText, NamesText, RosterText};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

pub(crate) const EXCHANGE: &str = "rabat.example";
/// 2025-11-23T19:44:04.250Z.
pub(crate) const NOW_MS: u64 = 1_763_927_044_250;
/// Unix seconds of the first cosignature.
pub(crate) const TIME: u64 = 1_763_927_050;
/// The index of the bulletin in the feed, and the size of the feed.
pub(crate) const INDEX: u64 = 4;
pub(crate) const SIZE: u64 = 10;

pub(crate) fn member(code: &str) -> Member {
    code.parse().unwrap()
}

/// Returns a key derived from its name and number.
pub(crate) fn key(name: &str, algorithm: Algorithm, number: u8) -> SigningKey {
    let seed = Sha256::new().chain_update(name).chain_update([algorithm.number(), number]).finalize();
    SigningKey::from_seed(name, algorithm, seed.into()).unwrap()
}

pub(crate) fn governor(number: u8) -> SigningKey {
    key(&format!("governor-{number}.{EXCHANGE}"), Algorithm::Ed25519, 0)
}

pub(crate) fn feed_key(code: &str) -> SigningKey {
    key(&format!("{code}.{EXCHANGE}/feed/1"), Algorithm::Ed25519, 0)
}

pub(crate) fn mirror_key(code: &str, number: u8) -> SigningKey {
    key(&format!("{code}.{EXCHANGE}/mirror"), Algorithm::CosignatureEd25519, number)
}

/// Returns the post-quantum key that a roster lists beside [`feed_key`].
pub(crate) fn post_quantum_feed_key(code: &str) -> SigningKey {
    key(&format!("{code}.{EXCHANGE}/feed/1"), Algorithm::CosignatureMlDsa44, 0)
}

pub(crate) fn post_quantum_mirror_key(code: &str) -> SigningKey {
    key(&format!("{code}.{EXCHANGE}/mirror"), Algorithm::CosignatureMlDsa44, 0)
}

pub(crate) fn custody_key(code: &str) -> SigningKey {
    key(&format!("{code}.{EXCHANGE}/custody"), Algorithm::Ed25519, 0)
}

/// Version 1: four full members and an observer; two others must cosign, and two of three governors
/// must sign.
pub(crate) fn roster_text() -> RosterText {
    let names = [
        ("ma", ["المغرب", "Maroc", "Morocco"]),
        ("ly", ["ليبيا", "Libye", "Libya"]),
        ("tn", ["تونس", "Tunisie", "Tunisia"]),
        ("ne", ["النيجر", "Niger", "Niger"]),
        ("x-observer", ["مراقب", "Observateur", "Observer"]),
    ];
    RosterText {
        format: 1,
        exchange: EXCHANGE.to_owned(),
        version: 1,
        previous: None,
        issued: "2025-11-01T10:00:00Z".parse().unwrap(),
        review_by: "2026-11-01T10:00:00Z".parse().unwrap(),
        quorum: 2,
        working_groups: ["security", "information", "customs", "justice"].map(str::to_owned).to_vec(),
        governors: GovernorsText {
            threshold: 2,
            keys: [1, 2, 3].map(|number| governor(number).verifier().to_string()).to_vec(),
        },
        members: names.iter().map(|(code, names)| member_text(code, names)).collect(),
    }
}

fn member_text(code: &str, [ar, fr, en]: &[&str; 3]) -> MemberText {
    let full = !code.starts_with("x-");
    let listed = |role: &str, epoch: Option<u32>, key: &SigningKey| KeyText {
        role: role.to_owned(),
        epoch,
        key: key.verifier().to_string(),
        from_version: None,
        retired: None,
        compromised: None,
    };
    let groups = ["security", "information", "customs", "justice"].map(str::to_owned);
    MemberText {
        code: code.to_owned(),
        kind: if full { "full" } else { "observer" }.to_owned(),
        names: NamesText { ar: (*ar).to_owned(), fr: (*fr).to_owned(), en: (*en).to_owned() },
        endpoints: vec![format!("barid.{code}.{EXCHANGE}:7443")],
        trust_domain: format!("{code}.{EXCHANGE}"),
        ca_certificates: vec![format!("-----BEGIN CERTIFICATE-----\nEXERCISE {code}\n-----END CERTIFICATE-----\n")],
        working_groups: if full { groups.to_vec() } else { Vec::new() },
        ceilings: if full { Default::default() } else { [("information".to_owned(), "TLP:GREEN".to_owned())].into() },
        keys: vec![
            listed("feed", Some(1), &feed_key(code)),
            listed("mirror", None, &mirror_key(code, 0)),
            listed("mirror", None, &mirror_key(code, 1)),
            listed("custody", None, &custody_key(code)),
        ],
        closed_feeds: Vec::new(),
    }
}

/// Returns a roster signed by the governors with these numbers.
pub(crate) fn roster_note(text: &RosterText, governors: &[u8]) -> Bytes {
    let text = toml::to_string(text).unwrap();
    let signatures = governors.iter().map(|number| governor(*number).sign_text(&text).unwrap()).collect();
    Note { text, signatures }.to_bytes().into()
}

pub(crate) fn roster_1() -> Bytes {
    roster_note(&roster_text(), &[1, 2])
}

/// Returns the version after `before`, with a change.
pub(crate) fn next_roster(before: &Bytes, change: impl FnOnce(&mut RosterText)) -> Bytes {
    let (roster, note) = Roster::read(before).unwrap();
    let mut text: RosterText = toml::from_str(&note.text).unwrap();
    text.version += 1;
    text.previous = Some(roster.text_hash().to_string());
    change(&mut text);
    roster_note(&text, &[2, 3])
}

/// Version 2: a fourth governor replaces the first.
pub(crate) fn roster_2() -> Bytes {
    next_roster(&roster_1(), |text| text.governors.keys[0] = governor(4).verifier().to_string())
}

pub(crate) fn member_of<'a>(text: &'a mut RosterText, code: &str) -> &'a mut MemberText {
    text.members.iter_mut().find(|member| member.code == code).unwrap()
}

pub(crate) fn keys_of<'a>(text: &'a mut RosterText, code: &str, role: &str) -> impl Iterator<Item = &'a mut KeyText> {
    let role = role.to_owned();
    member_of(text, code).keys.iter_mut().filter(move |key| key.role == role)
}

pub(crate) fn close(text: &mut RosterText, size: u64, root: &str) {
    let closed = ClosedFeedText { epoch: 1, size, root: root.to_owned() };
    member_of(text, "ma").closed_feeds.push(closed);
}

pub(crate) fn trusted(note: &Bytes) -> Roster {
    Roster::read(note).unwrap().0
}

/// The bulletin: the sample of its kind, a situation report with status Exercise.
pub(crate) fn bulletin() -> ValidBulletin {
    bulletin_of("ma", 1)
}

pub(crate) fn bulletin_of(code: &str, roster_version: u64) -> ValidBulletin {
    let draft = kinds::find("situation-report").unwrap().sample().unwrap();
    let defaults = DraftDefaults {
        member: member(code),
        issuer: "border-police".to_owned(),
        id: BulletinId::new(NOW_MS, &[7; 10]),
        sent_at_unix_ms: NOW_MS,
        roster_version,
    };
    prepare(&draft, &defaults, [9; 16]).unwrap()
}

/// Ten entries of Morocco's feed, one of which is the bulletin.
pub(crate) fn tree() -> MemoryTree {
    tree_with(&bulletin())
}

pub(crate) fn tree_with(bulletin: &ValidBulletin) -> MemoryTree {
    let mut tree = MemoryTree::new();
    for index in 0..SIZE {
        let other = Digest(Sha256::digest(format!("entry {index}")).into());
        tree.append(if index == INDEX { &bulletin.digest } else { &other });
    }
    tree
}

pub(crate) fn checkpoint(tree: &MemoryTree, size: u64) -> SignedCheckpoint {
    let feed = format!("ma.{EXCHANGE}/feed/1").parse().unwrap();
    let checkpoint = Checkpoint { feed, size, root: root_at(tree, size).unwrap() };
    sign(&checkpoint, &[feed_key("ma")]).unwrap()
}

/// Returns a checkpoint note cosigned with these members' mirror keys (code, number of the key) at
/// `time`.
pub(crate) fn cosigned(signed: &SignedCheckpoint, by: &[(&str, u8)], time: u64) -> Bytes {
    let lines = by.iter().map(|(code, number)| {
        let note = cosign(signed, &mirror_key(code, *number), time).unwrap();
        Note::parse(&note).unwrap().signatures.pop().unwrap()
    });
    let lines: Vec<_> = lines.collect();
    with_cosignatures(signed, &lines)
}

pub(crate) fn proof(tree: &MemoryTree, index: u64, size: u64, by: &[(&str, u8)], time: u64) -> TlogProof {
    let checkpoint = cosigned(&checkpoint(tree, size), by, time);
    TlogProof { index, proof: inclusion_proof(tree, index, size).unwrap(), checkpoint }
}

pub(crate) fn custody(tree: &MemoryTree, code: &str, size: u64, not_held: Option<u64>) -> (Member, Bytes) {
    let head = checkpoint(tree, size).checkpoint;
    let not_held = not_held.map(|index| (index..index + 1, Undisclosed::Withheld));
    let note = CustodyNote::new(&head, TIME + 1, 0..size, not_held).unwrap();
    (member(code), note.sign(&custody_key(code)).unwrap())
}

/// Adds the consistency proofs that proofs and custody notes need.
pub(crate) fn tied(tree: &MemoryTree, mut parts: EvidenceParts) -> EvidenceParts {
    let pairs = EvidenceParts::pairs(&parts.proofs, &parts.custody).unwrap();
    let tie = |(old, new)| Consistency { old, new, proof: consistency_proof(tree, old, new).unwrap() };
    parts.consistency = pairs.into_iter().map(tie).collect();
    parts
}

/// Libya cosigned at 7 entries, Tunisia and the publisher itself at 10; Libya and Niger attest that
/// they hold the bulletin.
pub(crate) fn parts() -> EvidenceParts {
    let tree = tree();
    let parts = EvidenceParts {
        envelope: bulletin().envelope,
        proofs: vec![
            proof(&tree, INDEX, 7, &[("ly", 0)], TIME),
            proof(&tree, INDEX, SIZE, &[("tn", 0), ("ma", 0)], TIME + 5),
        ],
        consistency: Vec::new(),
        custody: vec![custody(&tree, "ly", 7, Some(2)), custody(&tree, "ne", 8, None)],
        rosters: vec![(1, roster_1()), (2, roster_2())],
    };
    tied(&tree, parts)
}
