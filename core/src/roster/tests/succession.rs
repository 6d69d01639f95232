use proptest::prelude::*;

use super::*;
use crate::roster::text::ClosedFeedText;
use crate::roster::{ChainError, RosterChain};

fn first() -> RosterChain {
    chain_of(&sample())
}

fn chain_of(text: &RosterText) -> RosterChain {
    RosterChain::start(&signed(text, &[governor(1), governor(2)])).unwrap()
}

/// Returns the text that follows the newest of `chain`, with a change.
fn next_text(chain: &RosterChain, change: impl FnOnce(&mut RosterText)) -> RosterText {
    let (_, note) = chain.notes().last().unwrap();
    let mut text: RosterText = toml::from_str(&Roster::read(note).unwrap().1.text).unwrap();
    text.version += 1;
    text.previous = Some(chain.newest().text_hash().to_string());
    change(&mut text);
    text
}

fn next(chain: &RosterChain, by: &[SigningKey], change: impl FnOnce(&mut RosterText)) -> Vec<u8> {
    signed(&next_text(chain, change), by)
}

fn new_governors(text: &mut RosterText) {
    text.governors.keys = [4, 5].map(|n| vkey(&governor(n))).to_vec();
}

fn threshold(version: u64, whose: &'static str, found: usize) -> ChainError {
    ChainError::Threshold { version, whose, found, needed: 2 }
}

#[test]
fn version_needs_both_governor_thresholds() {
    let mut chain = first();
    let by = |numbers: &[u8]| numbers.iter().map(|n| governor(*n)).collect::<Vec<_>>();
    let old_only = next(&chain, &by(&[1, 2, 3]), new_governors);
    assert_eq!(chain.extend(&old_only), Err(threshold(2, "its own", 0)));
    let new_only = next(&chain, &by(&[4, 5]), new_governors);
    assert_eq!(chain.extend(&new_only), Err(threshold(2, "the version before's", 0)));
    let one_short = next(&chain, &by(&[1, 4, 5]), new_governors);
    assert_eq!(chain.extend(&one_short), Err(threshold(2, "the version before's", 1)));
    assert_eq!(chain.newest().version(), 1);
    let both = next(&chain, &by(&[1, 3, 4, 5]), new_governors);
    assert_eq!(chain.extend(&both), Ok(true));
    assert_eq!(chain.extend(&both), Ok(false));
    assert_eq!((chain.newest().version(), chain.notes().count()), (2, 2));
    assert_eq!(RosterChain::start(&signed(&sample(), &by(&[1]))).unwrap_err(), threshold(1, "its own", 1));
    // The signature of a governor counts once; when duplicated it does not count at all.
    let twice = RosterChain::start(&signed(&sample(), &by(&[1, 1])));
    assert_eq!(twice.unwrap_err(), threshold(1, "its own", 0));
}

#[test]
fn versions_follow_consecutively_and_name_their_predecessor() {
    let mut chain = first();
    let by = [governor(1), governor(2)];
    let skipping = next(&chain, &by, |text| text.version = 3);
    assert_eq!(chain.extend(&skipping), Err(ChainError::Gap { held: 1, found: 3 }));
    let other = next(&chain, &by, |text| text.previous = Some("00".repeat(32)));
    assert_eq!(chain.extend(&other), Err(ChainError::Previous(2)));
    let mut elsewhere = next_text(&chain, |_| {});
    elsewhere.exchange = "tunis.example".into();
    elsewhere.members.truncate(0);
    assert_eq!(chain.extend(&signed(&elsewhere, &by)), Err(ChainError::Previous(2)));
    assert!(matches!(chain.extend(b"no roster"), Err(ChainError::Roster(RosterError::Note(_)))));
    assert_eq!(chain.newest().version(), 1);
}

#[test]
fn only_those_who_decide_about_a_version_can_raise_a_fork() {
    let mut chain = first();
    let held = next(&chain, &[governor(1), governor(2)], |_| {});
    let other_text = next_text(&chain, |text| {
        new_governors(text);
        text.quorum = 1;
        text.members[0].names.en = "Another".into();
    });
    chain.extend(&held).unwrap();
    // Anybody can write a second version 2 with governors of their own.
    let made_up = signed(&other_text, &[governor(4), governor(5)]);
    assert_eq!(chain.extend(&made_up), Err(threshold(2, "the version before's", 0)));
    let half = signed(&other_text, &[governor(1), governor(4), governor(5)]);
    assert_eq!(chain.extend(&half), Err(threshold(2, "the version before's", 1)));
    let unfinished = signed(&other_text, &[governor(1), governor(2)]);
    assert_eq!(chain.extend(&unfinished), Err(threshold(2, "its own", 0)));
    let rival = signed(&other_text, &[governor(1), governor(2), governor(4), governor(5)]);
    let fork = ChainError::Fork { version: 2, held: held.clone().into(), other: rival.clone().into() };
    assert_eq!(chain.extend(&rival), Err(fork));
    assert_eq!(chain.notes().last().unwrap().1, &held, "the held one stays");
    let mut elsewhere = other_text;
    elsewhere.exchange = "tunis.example".into();
    elsewhere.members.truncate(0);
    let elsewhere = signed(&elsewhere, &[governor(1), governor(2), governor(4), governor(5)]);
    assert_eq!(chain.extend(&elsewhere), Err(ChainError::Previous(2)));
}

#[test]
fn first_held_version_decides_a_fork_by_its_own_governors() {
    let mut chain = first();
    let mut other = sample();
    other.members[0].names.en = "Another".into();
    let by_governors = signed(&other, &[governor(1), governor(3)]);
    assert!(matches!(chain.extend(&by_governors), Err(ChainError::Fork { version: 1, .. })));
    new_governors(&mut other);
    let made_up = signed(&other, &[governor(4), governor(5)]);
    assert_eq!(chain.extend(&made_up), Err(threshold(1, "the held version's", 0)));
}

const END: &str = "2026-06-01T00:00:00Z";
const EARLIER: &str = "2026-05-01T00:00:00Z";
const LATER: &str = "2026-07-01T00:00:00Z";

/// A chain whose first version has many invariants.
fn settled() -> RosterChain {
    let mut text = sample();
    text.members[0].closed_feeds = vec![ClosedFeedText { epoch: 1, size: 9, root: "11".repeat(32) }];
    text.members[0].keys[0].retired = END.parse().ok();
    text.members[0].keys[2].compromised = END.parse().ok();
    let retired = key_of(&format!("ma.{EXCHANGE}/mirror"), Algorithm::CosignatureEd25519, "an old one");
    text.members[0].keys.push(KeyText { retired: END.parse().ok(), ..listed("mirror", None, &retired) });
    chain_of(&text)
}

/// Returns the field named in the error for the next version; `None` if it is accepted.
fn violation(change: impl FnOnce(&mut RosterText)) -> Option<String> {
    let mut chain = settled();
    let note = next(&chain, &[governor(1), governor(2)], change);
    match chain.extend(&note) {
        Ok(_) => None,
        Err(ChainError::InvariantChanged { version: 2, field, was, is }) => {
            assert_ne!(was, is);
            assert_eq!(chain.newest().version(), 1);
            Some(field)
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn an_epochs_final_size_is_final() {
    let field = Some("members.ma.closed_feeds, epoch 1".to_owned());
    assert_eq!(violation(|text| text.members[0].closed_feeds[0].size = 10), field);
    assert_eq!(violation(|text| text.members[0].closed_feeds[0].root = "22".repeat(32)), field);
    assert_eq!(violation(|text| text.members[0].closed_feeds.clear()), field);
    let another = ClosedFeedText { epoch: 2, size: 0, root: "33".repeat(32) };
    assert_eq!(violation(|text| text.members[0].closed_feeds.push(another)), None);
}

#[test]
fn an_epochs_keys_never_change() {
    let field = Some("members.ma.keys, epoch 2".to_owned());
    let name = format!("ma.{EXCHANGE}/feed/2");
    let other = vkey(&key_of(&name, Algorithm::Ed25519, "another"));
    let post_quantum = listed("feed", Some(2), &key_of(&name, Algorithm::CosignatureMlDsa44, "another"));
    assert_eq!(violation(|text| text.members[0].keys[1].key = other), field);
    assert_eq!(violation(|text| text.members[0].keys.push(post_quantum)), field);
    assert_eq!(violation(|text| drop(text.members[0].keys.remove(1))), field);
    let third = listed("feed", Some(3), &key("ma", "feed/3", Algorithm::Ed25519));
    assert_eq!(violation(|text| text.members[0].keys.push(third)), None);
}

#[test]
fn expired_key_stays_expired() {
    let retired = format!("members.ma.keys[0] (ma.{EXCHANGE}/feed/1)");
    for end in [None, Some(EARLIER), Some(LATER)] {
        let moved = violation(|text| text.members[0].keys[0].retired = end.map(|end| end.parse().unwrap()));
        assert_eq!(moved.as_ref(), Some(&retired), "{end:?}");
    }
    let stolen = Some(format!("members.ma.keys[2] (ma.{EXCHANGE}/mirror)"));
    assert_eq!(violation(|text| text.members[0].keys[2].compromised = LATER.parse().ok()), stolen);
    assert_eq!(violation(|text| text.members[0].keys[2].compromised = None), stolen);
    let retired_instead = |text: &mut RosterText| {
        text.members[0].keys[2].retired = text.members[0].keys[2].compromised.take();
    };
    assert_eq!(violation(retired_instead), stolen);
    assert_eq!(violation(|text| text.members[0].keys[2].compromised = EARLIER.parse().ok()), None);
    let dropped = Some(format!("members.ma.keys[4] (ma.{EXCHANGE}/mirror)"));
    assert_eq!(violation(|text| drop(text.members[0].keys.remove(4))), dropped);
    assert_eq!(violation(|text| text.members[0].keys[4].compromised = EARLIER.parse().ok()), None);
    assert_eq!(violation(|text| text.members[1].keys[2].retired = END.parse().ok()), None);
}

#[test]
fn active_key_stays_active_and_with_its_owner() {
    let put_off = violation(|text| text.members[1].keys[0].from_version = Some(3));
    assert_eq!(put_off, Some(format!("members.ly.keys[0] (ly.{EXCHANGE}/feed/1)")));
    assert_eq!(violation(|text| text.members[1].keys[0].from_version = Some(2)), None);
    let transferred = violation(|text| {
        let name = format!("x-au.{EXCHANGE}/mirror");
        let of = format!("ly.{EXCHANGE}/mirror");
        let fresh = key_of(&of, Algorithm::CosignatureEd25519, "a fresh one");
        text.members[1].keys[2] = listed("mirror", None, &fresh);
        text.members[2].keys[2] = listed("mirror", None, &key_of(&name, Algorithm::CosignatureEd25519, &of));
    });
    assert_eq!(transferred, Some("the place of a key".to_owned()));
    let renewed = |text: &mut RosterText| {
        let fresh = key_of(&format!("ly.{EXCHANGE}/mirror"), Algorithm::CosignatureEd25519, "a fresh one");
        text.members[1].keys[2] = listed("mirror", None, &fresh);
    };
    assert_eq!(violation(renewed), None);
}

#[test]
fn a_member_may_leave() {
    assert_eq!(violation(|text| drop(text.members.remove(2))), None);
    assert_eq!(violation(|text| drop(text.members.remove(0))), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_version_is_accepted_exactly_with_both_thresholds(
        signers in prop::collection::btree_set(1_u8..7, 0..6),
        later in prop::collection::btree_set(1_u8..7, 1..6),
        threshold in 1_usize..6,
    ) {
        let mut chain = first();
        let threshold = threshold.min(later.len());
        let text = next_text(&chain, |text| {
            text.governors.keys = later.iter().map(|n| vkey(&governor(*n))).collect();
            text.governors.threshold = u32::try_from(threshold).unwrap();
        });
        let mut by: Vec<SigningKey> = signers.iter().map(|n| governor(*n)).collect();
        // A note needs at least one line; this one is by an unknown key.
        by.push(governor(99));
        let enough = signers.intersection(&[1, 2, 3].into()).count() >= 2
            && signers.intersection(&later).count() >= threshold;
        prop_assert_eq!(chain.extend(&signed(&text, &by)).is_ok(), enough);
        prop_assert_eq!(chain.newest().version(), if enough { 2 } else { 1 });
    }
}
