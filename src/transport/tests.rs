//! Who gets in, who does not, and who is put out.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use barid_core::feed::note::{Algorithm, SigningKey};
use barid_core::roster::Roster;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use super::*;
use crate::pki::{Authority, Issued};

/// A roster of these members and authorities.
fn roster(members: &[(&str, &Authority)]) -> Roster {
    let key = |name: &str, algorithm| {
        let key = SigningKey::from_seed(name, algorithm, Sha256::digest(name).into()).unwrap();
        key.verifier().to_string()
    };
    let mut text = format!(
        "format = 1\nexchange = \"rabat.example\"\nversion = 1\nissued = 2025-01-01T00:00:00Z\n\
         review_by = 2030-01-01T00:00:00Z\nquorum = 1\nworking_groups = []\n[governors]\nthreshold = 1\nkeys = [\"{}\"]\n",
        key("governor.example/1", Algorithm::Ed25519)
    );
    for (code, authority) in members {
        let host = format!("{code}.rabat.example");
        text += &format!(
            "[[members]]\ncode = \"{code}\"\nkind = \"full\"\nnames = {{ ar = \"x\", fr = \"x\", en = \"x\" }}\n\
             trust_domain = \"{host}\"\nca_certificates = [\"\"\"\n{}\"\"\"]\nkeys = [{{ role = \"mirror\", key = \"{}\" }}, \
             {{ role = \"custody\", key = \"{}\" }}]\n",
            authority.certificate(),
            key(&format!("{host}/mirror"), Algorithm::CosignatureEd25519),
            key(&format!("{host}/custody"), Algorithm::Ed25519)
        );
    }
    Roster::from_text(&text).unwrap()
}

struct World {
    ma: Authority,
    ly: Authority,
    trust: Trust,
    lists: RevocationLists,
}

impl World {
    fn new() -> Self {
        let (ma, ly) = (Authority::new("ma.rabat.example").unwrap(), Authority::new("ly.rabat.example").unwrap());
        let trust = Trust::of(&roster(&[("ma", &ma), ("ly", &ly)]));
        Self { ma, ly, trust, lists: RevocationLists::default() }
    }

    fn verifier(&self, policy: Policy) -> Verifier {
        Verifier::new(self.trust.clone(), self.lists.clone(), policy, 30 * 86_400)
    }

    /// What ma's exchange listener says to a certificate.
    fn at_ma(&self, issued: &Issued) -> Result<String, &'static str> {
        let der = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap();
        let verifier = self.verifier(Policy::Peers("ma.rabat.example".into()));
        let result = verifier.identify(&der, &[], UnixTime::now());
        result.map(|identity| identity.member.to_string()).map_err(|refused| refused.reason)
    }
}

fn days(from: i64, to: i64) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now + time::Duration::days(from), now + time::Duration::days(to))
}

#[test]
fn a_member_speaks_for_itself_only() {
    let world = World::new();
    assert_eq!(world.at_ma(&world.ly.issue("node", &[]).unwrap()), Ok("ly".into()));
    let other = Authority::new("tn.rabat.example").unwrap();
    assert_eq!(world.at_ma(&other.issue("node", &[]).unwrap()), Err("unknown-member"));
    let as_ly = other.issue_for(&["spiffe://ly.rabat.example/node"], &[], days(-1, 1)).unwrap();
    assert_eq!(world.at_ma(&as_ly), Err("wrong-ca"));
    let ma_by_ly = world.ly.issue_for(&["spiffe://ma.rabat.example/node"], &[], days(-1, 1)).unwrap();
    assert_eq!(world.at_ma(&ma_by_ly), Err("not-a-peer"));
    assert_eq!(world.at_ma(&world.ly.issue("focal-point/police-hq", &[]).unwrap()), Err("not-a-node"));
    let node = "spiffe://ly.rabat.example/node";
    assert_eq!(world.at_ma(&world.ly.issue_for(&[node, node], &[], days(-1, 1)).unwrap()), Err("many-uri-sans"));
    assert_eq!(world.at_ma(&world.ly.issue_for(&[], &["localhost".into()], days(-1, 1)).unwrap()), Err("no-uri-san"));
    assert_eq!(world.at_ma(&world.ly.issue_for(&[node], &[], days(-3, -1)).unwrap()), Err("expired"));
    assert_eq!(world.at_ma(&world.ly.issue_for(&[node], &[], days(1, 3)).unwrap()), Err("not-yet-valid"));
}

#[test]
fn libyas_authority_cannot_speak_for_morocco() {
    let world = World::new();
    let forged = world.ly.issue_for(&["spiffe://ma.rabat.example/node"], &[], days(-1, 1)).unwrap();
    let der = CertificateDer::from_pem_slice(forged.certificate.as_bytes()).unwrap();
    let at_tunis = world.verifier(Policy::Peers("tn.rabat.example".into()));
    assert_eq!(at_tunis.identify(&der, &[], UnixTime::now()).unwrap_err().reason, "wrong-ca");
}

#[test]
fn a_list_counts_if_its_authority_signed_it_and_it_is_newer() {
    let world = World::new();
    let node = world.ly.issue("node", &[]).unwrap();
    let serials = [node.serial.clone()];
    assert_eq!(world.lists.offer(&world.ma.revoke(&serials, 9).unwrap(), &world.trust), Ok(true));
    assert!(world.at_ma(&node).is_ok(), "Morocco's list says nothing of Libya's certificates");
    let stranger = Authority::new("ly.rabat.example").unwrap();
    assert_eq!(world.lists.offer(&stranger.revoke(&serials, 9).unwrap(), &world.trust), Err(ListError::Stranger));
    assert_eq!(world.lists.offer(&world.ly.revoke(&serials, 2).unwrap(), &world.trust), Ok(true));
    assert_eq!(world.at_ma(&node), Err("revoked"));
    assert_eq!(world.lists.offer(&world.ly.revoke(&[], 1).unwrap(), &world.trust), Ok(false));
    assert_eq!(world.at_ma(&node), Err("revoked"));
    assert!(world.lists.offer(b"no list", &world.trust).is_err());
}

#[test]
fn a_silent_authority_stops_people_at_once_and_peers_after_the_grace() {
    let world = World::new();
    world.lists.offer(&world.ly.revoke(&[], 1).unwrap(), &world.trust).unwrap();
    let at = |policy, path: &str, days: u64| {
        let issued = world.ly.issue(path, &[]).unwrap();
        let der = CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() + days * 86_400));
        world.verifier(policy).identify(&der, &[], now).map(|_| ()).map_err(|refused| refused.reason)
    };
    let people = || Policy::OwnPeople("ly.rabat.example".into());
    let peers = || Policy::Peers("ma.rabat.example".into());
    assert_eq!(at(people(), "focal-point/customs-hq", 29), Ok(()));
    assert_eq!(at(people(), "focal-point/customs-hq", 31), Err("crl-stale"));
    assert_eq!(at(peers(), "node", 31), Ok(()));
    assert_eq!(at(peers(), "node", 61), Err("crl-stale"));
}
