//! CRLs.

use super::super::{CrlError, CrlStore, Policy, Trust};
use super::world::{World, days, roster};
use crate::pki::Authority;

#[test]
fn crl_is_accepted_if_signed_by_its_authority_and_newer() {
    let world = World::new();
    let node = world.ly.issue("node", &[]).unwrap();
    let serials = [node.serial.clone()];
    assert!(world.offer(&world.ma.revoke(&serials, 9).unwrap()));
    assert!(world.at_ma(&node).is_ok(), "Morocco's CRL does not cover Libya's certificates");
    let stranger = Authority::new("ly.rabat.example").unwrap();
    let strange = world.crls.offer(&stranger.revoke(&serials, 9).unwrap(), &world.trust);
    assert_eq!(strange, Err(CrlError::UnknownIssuer));
    assert!(world.offer(&world.ly.revoke(&serials, 2).unwrap()));
    assert_eq!(world.at_ma(&node), Err("revoked"));
    assert!(!world.offer(&world.ly.revoke(&[], 1).unwrap()));
    assert_eq!(world.at_ma(&node), Err("revoked"));
    assert!(matches!(world.crls.offer(b"no list", &world.trust), Err(CrlError::Malformed(_))));
}

#[test]
fn crls_with_one_number_and_different_bytes_contradict() {
    let world = World::new();
    let node = world.ly.issue("node", &[]).unwrap();
    let first = world.ly.revoke(&[], 7).unwrap();
    assert!(world.offer(&first));
    let check = |der: &[u8]| CrlStore::check(der, &world.trust).unwrap();
    let other = check(&world.ly.revoke(std::slice::from_ref(&node.serial), 7).unwrap());
    assert!(world.crls.contradicts(&other) && !world.crls.is_newer(&other));
    let next = check(&world.ly.revoke(std::slice::from_ref(&node.serial), 8).unwrap());
    assert!(!world.crls.contradicts(&check(&first)) && !world.crls.contradicts(&next));
}

#[test]
fn each_authority_of_a_member_has_its_own_crl() {
    // The next authority has the same name. Only its key differs.
    let mut world = World::new();
    let next = Authority::new("ly.rabat.example").unwrap();
    world.trust = Trust::of(&roster(&[("ma", &[&world.ma]), ("ly", &[&world.ly, &next])]));
    let (old_node, new_node) = (world.ly.issue("node", &[]).unwrap(), next.issue("node", &[]).unwrap());
    assert!(world.offer(&world.ly.revoke(&[old_node.serial.clone(), new_node.serial.clone()], 5).unwrap()));
    assert_eq!(world.at_ma(&old_node), Err("revoked"));
    assert_eq!(world.at_ma(&new_node), Ok("ly".into()), "an authority revokes its own certificates only");
    assert!(world.offer(&next.revoke(&[], 1).unwrap()), "its numbers are its own, too");
    assert_eq!(world.at_ma(&new_node), Ok("ly".into()));
    assert_eq!(world.crls.held(&world.trust).len(), 2);
    assert!(world.offer(&next.revoke(std::slice::from_ref(&new_node.serial), 2).unwrap()));
    assert_eq!(world.at_ma(&new_node), Err("revoked"));
    // An authority whose CRL is stale does not affect certificates of the next authority.
    let stale = world.ly.revoke_for(&[], 6, days(-90, -60)).unwrap();
    assert!(world.offer(&stale));
    assert_eq!(world.at_ma(&next.issue("node", &[]).unwrap()), Ok("ly".into()));
    assert_eq!(world.at_ma(&world.ly.issue("node", &[]).unwrap()), Err("crl-stale"));
}

#[test]
fn stale_crl_rejects_clients_at_once_and_peers_after_the_grace() {
    let world = World::new();
    assert!(world.offer(&world.ly.revoke_for(&[], 1, days(-1, 30)).unwrap()));
    let (person, node) = (world.ly.issue("focal-point/customs-hq", &[]).unwrap(), world.ly.issue("node", &[]).unwrap());
    let people = || Policy::OwnClients("ly.rabat.example".into());
    let peers = || Policy::Peers("ma.rabat.example".into());
    assert!(world.at(people(), &person, 29).is_ok());
    assert_eq!(world.at(people(), &person, 31), Err("crl-stale"));
    assert!(world.at(peers(), &node, 31).is_ok());
    assert_eq!(world.at(peers(), &node, 61), Err("crl-stale"));
}

#[test]
fn revocations_outlive_their_expired_crl() {
    let world = World::new();
    let node = world.ly.issue("node", &[]).unwrap();
    let serials = [node.serial.clone()];
    assert!(world.offer(&world.ly.revoke_for(&serials, 1, days(-20, -10)).unwrap()));
    assert_eq!(world.at_ma(&node), Err("revoked"));
}

#[test]
fn crl_of_a_removed_authority_is_neither_used_nor_forwarded() {
    let world = World::new();
    assert!(world.offer(&world.ly.revoke(&[], 1).unwrap()));
    assert_eq!(world.crls.held(&world.trust).len(), 1);
    let next = Authority::new("ly.rabat.example").unwrap();
    world.trust.replace(&roster(&[("ma", &[&world.ma]), ("ly", &[&next])]));
    assert_eq!(world.crls.held(&world.trust), []);
    let unread = CrlStore::check(&world.ly.revoke(&[], 2).unwrap(), &world.trust);
    assert_eq!(unread.err(), Some(CrlError::UnknownIssuer));
}
