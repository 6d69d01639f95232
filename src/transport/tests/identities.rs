//! Which certificates are accepted.

use rustls::pki_types::UnixTime;

use super::super::{Policy, Trust, trust};
use super::world::{World, days, der, roster};
use crate::pki::Authority;

#[test]
fn node_certificate_is_accepted_for_its_own_member_only() {
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
fn authority_cannot_certify_another_member() {
    let world = World::new();
    let forged = world.ly.issue_for(&["spiffe://ma.rabat.example/node"], &[], days(-1, 1)).unwrap();
    let at_tunis = world.verifier(Policy::Peers("tn.rabat.example".into()));
    assert_eq!(at_tunis.identify(&der(&forged), UnixTime::now()).unwrap_err().reason, "wrong-ca");
}

#[test]
fn authority_key_of_two_members_certifies_for_neither() {
    let world = World::new();
    let ly_as_ma = Authority::with_key("ma.rabat.example", &world.ly.key()).unwrap();
    // A roster itself would reject it, so each authority is in a roster of its own.
    let (one, other) = (roster(&[("ma", &[&world.ma, &ly_as_ma])]), roster(&[("ly", &[&world.ly])]));
    let domains = trust::domains(one.entries().chain(other.entries()));
    let left = |domain: &str| domains[domain].authorities.len();
    assert_eq!((left("ma.rabat.example"), left("ly.rabat.example")), (1, 0));
}

#[test]
fn authority_with_a_new_key_is_added_and_with_a_new_certificate_replaced() {
    let mut world = World::new();
    let next = Authority::new("ly.rabat.example").unwrap();
    world.trust = Trust::of(&roster(&[("ma", &[&world.ma]), ("ly", &[&world.ly, &next])]));
    for authority in [&world.ly, &next] {
        assert_eq!(world.at_ma(&authority.issue("node", &[]).unwrap()), Ok("ly".into()));
    }
    // Another certificate with the same name and key is the same authority, so its CRL remains.
    let revoked = world.ly.issue("node", &[]).unwrap();
    assert!(world.offer(&world.ly.revoke(std::slice::from_ref(&revoked.serial), 1).unwrap()));
    let renewed = Authority::with_key("ly.rabat.example", &world.ly.key()).unwrap();
    assert_ne!(renewed.certificate(), world.ly.certificate());
    world.trust.replace(&roster(&[("ma", &[&world.ma]), ("ly", &[&renewed])]));
    assert_eq!(world.at_ma(&renewed.issue("node", &[]).unwrap()), Ok("ly".into()));
    assert_eq!(world.at_ma(&revoked), Err("revoked"));
}
