//! A small fictional roster, with one change at a time.
#![allow(clippy::unwrap_used)]

mod drafts;
mod keys;
mod reading;
mod succession;

use sha2::{Digest as _, Sha256};

use super::text::{GovernorsText, KeyText, MemberText, NamesText, RosterText};
use super::{Roster, RosterError, UnfitAuthority};
use crate::certificate::Unfit;
use crate::feed::note::{Algorithm, Note, SigningKey};
use crate::ids::Member;

/// A day on which all these authorities are valid: 2027-01-15.
const NOW: i64 = 1_800_000_000;
const EXCHANGE: &str = "rabat.example";
const AUTHORITY: &str = include_str!("../vectors/authority.pem");
/// Another certificate for the key of [`AUTHORITY`].
const AUTHORITY_RENEWED: &str = include_str!("../vectors/authority-renewed.pem");
const AUTHORITY_OTHER: &str = include_str!("../vectors/authority-other.pem");
/// An authority without the extension key usage.
const AUTHORITY_WITHOUT_USAGE: &str = include_str!("../vectors/authority-without-usage.pem");
const AUTHORITY_OBSERVER: &str = include_str!("../vectors/authority-observer.pem");

fn member(code: &str) -> Member {
    code.parse().unwrap()
}

/// Returns a key with this name; its seed is derived from `of`.
fn key_of(name: &str, algorithm: Algorithm, of: &str) -> SigningKey {
    SigningKey::from_seed(name, algorithm, Sha256::digest(of).into()).unwrap()
}

/// Returns the key of `code` for a role: `mirror`, `feed/1`.
fn key(code: &str, part: &str, algorithm: Algorithm) -> SigningKey {
    let name = format!("{code}.{EXCHANGE}/{part}");
    key_of(&name, algorithm, &name)
}

fn governor(number: u8) -> SigningKey {
    let name = format!("{EXCHANGE}/governor/{number}");
    key_of(&name, Algorithm::Ed25519, &name)
}

fn vkey(key: &SigningKey) -> String {
    key.verifier().to_string()
}

fn listed(role: &str, epoch: Option<u32>, key: &SigningKey) -> KeyText {
    KeyText { role: role.into(), epoch, key: vkey(key), from_version: None, retired: None, compromised: None }
}

fn member_text(code: &str, authority: &str) -> MemberText {
    let full = !code.starts_with("x-");
    MemberText {
        code: code.into(),
        kind: if full { "full" } else { "observer" }.into(),
        names: NamesText { ar: "تمرين".into(), fr: "Exercice".into(), en: "Exercise".into() },
        endpoints: vec![format!("{code}.example:7400")],
        trust_domain: format!("{code}.{EXCHANGE}"),
        ca_certificates: vec![authority.into()],
        working_groups: if full { vec!["security".into(), "customs".into()] } else { Vec::new() },
        ceilings: if full { Default::default() } else { [("customs".into(), "TLP:GREEN".into())].into() },
        keys: vec![
            listed("feed", Some(1), &key(code, "feed/1", Algorithm::Ed25519)),
            listed("feed", Some(2), &key(code, "feed/2", Algorithm::Ed25519)),
            listed("mirror", None, &key(code, "mirror", Algorithm::CosignatureEd25519)),
            listed("custody", None, &key(code, "custody", Algorithm::Ed25519)),
        ],
        closed_feeds: Vec::new(),
    }
}

/// Version 1: two full members and an observer; two of three governors must sign.
fn sample() -> RosterText {
    RosterText {
        format: 1,
        exchange: EXCHANGE.into(),
        version: 1,
        previous: None,
        issued: "2026-01-01T00:00:00Z".parse().unwrap(),
        review_by: "2027-01-01T00:00:00Z".parse().unwrap(),
        quorum: 1,
        working_groups: vec!["security".into(), "customs".into()],
        governors: GovernorsText { threshold: 2, keys: [1, 2, 3].map(|n| vkey(&governor(n))).to_vec() },
        members: vec![
            member_text("ma", AUTHORITY),
            member_text("ly", AUTHORITY_OTHER),
            member_text("x-au", AUTHORITY_OBSERVER),
        ],
    }
}

fn written(text: &RosterText) -> String {
    toml::to_string(text).unwrap()
}

/// Parses the sample with a change.
fn changed(change: impl FnOnce(&mut RosterText)) -> Result<Roster, RosterError> {
    let mut text = sample();
    change(&mut text);
    Roster::from_text(&written(&text))
}

/// Returns the field named in the error for the sample with a change.
#[track_caller]
fn rejected(change: impl FnOnce(&mut RosterText)) -> String {
    match changed(change).unwrap_err() {
        RosterError::Field { field, .. } | RosterError::Twice { field, .. } => field,
        other => panic!("{other}"),
    }
}

fn signed(text: &RosterText, by: &[SigningKey]) -> Vec<u8> {
    let text = written(text);
    let signatures = by.iter().map(|key| key.sign_text(&text).unwrap()).collect();
    Note { text, signatures }.to_bytes()
}
