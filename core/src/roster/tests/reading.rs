use proptest::prelude::*;

use super::*;
use crate::limits::{FOUND_CHARS_MAX, GOVERNORS_MAX};

#[track_caller]
fn twice(change: impl FnOnce(&mut RosterText)) -> (String, String, &'static str) {
    match changed(change).unwrap_err() {
        RosterError::Twice { field, other, what } => (field, other, what),
        other => panic!("{other}"),
    }
}

fn same(field: &str, other: &str, what: &'static str) -> (String, String, &'static str) {
    (field.into(), other.into(), what)
}

#[test]
fn the_sample_makes_sense() {
    let roster = changed(|_| {}).unwrap();
    assert_eq!((roster.version(), roster.threshold(), roster.quorum()), (1, 2, 1));
    assert_eq!(roster.full_members().map(|entry| entry.code.as_str()).collect::<Vec<_>>(), ["ly", "ma"]);
    assert_eq!(roster.unfit_authorities(None, NOW), []);
}

#[test]
fn authority_is_identified_by_its_key_and_listed_once() {
    let renewed_elsewhere = twice(|text| text.members[1].ca_certificates.push(AUTHORITY_RENEWED.into()));
    assert_eq!(renewed_elsewhere, same("members.ly.ca_certificates[1]", "members.ma.ca_certificates[0]", "authority"));
    let renewed = twice(|text| text.members[0].ca_certificates.push(AUTHORITY_RENEWED.into()));
    assert_eq!(renewed, same("members.ma.ca_certificates[1]", "members.ma.ca_certificates[0]", "authority"));
    let commented = twice(|text| text.members[1].ca_certificates = vec![format!("# of Libya\n{AUTHORITY}\n")]);
    assert_eq!(commented, same("members.ly.ca_certificates[0]", "members.ma.ca_certificates[0]", "authority"));
}

#[test]
fn unreadable_authority_is_reported() {
    let broken = AUTHORITY_OTHER.replace("MII", "MIJ");
    let roster = changed(|text| text.members[1].ca_certificates.push(broken.clone())).unwrap();
    let unfit = UnfitAuthority { field: "members.ly.ca_certificates[1]".into(), reason: Unfit::Unreadable };
    assert_eq!(roster.unfit_authorities(None, NOW), [unfit]);
    let field = rejected(|text| text.members.iter_mut().for_each(|member| member.ca_certificates.push(broken.clone())));
    assert_eq!(field, "members.ly.ca_certificates[1]");
    let field = rejected(|text| text.members[1].ca_certificates = vec![format!("{AUTHORITY_OTHER}{AUTHORITY}")]);
    assert_eq!(field, "members.ly.ca_certificates[0]");
    assert_eq!(rejected(|text| text.members[1].ca_certificates.clear()), "members.ly.ca_certificates");
}

#[test]
fn member_names_with_bidi_controls_are_rejected() {
    for hostile in ["\u{1b}[2J", "\u{7}", "\u{9b}", "\u{202e}", "\u{2066}", "\u{2028}", "\n"] {
        let name = format!("Maroc{hostile}x");
        let error = changed(|text| text.members[0].names.fr = name.clone()).unwrap_err();
        let RosterError::Field { field, found, .. } = &error else { panic!("{error}") };
        assert_eq!(field, "members.ma.names.fr");
        assert!(!found.contains(hostile) && !error.to_string().contains(hostile), "{found}");
    }
    for blank in ["", " ", "\u{200b}", "\u{3164}", "\u{2800}", "\u{e0020}"] {
        assert_eq!(
            rejected(|text| text.members[0].names.ar = blank.into()),
            "members.ma.names.ar",
            "{}",
            blank.escape_unicode()
        );
    }
    assert_eq!(rejected(|text| text.members[0].names.en = "x".repeat(501)), "members.ma.names.en");
    let error = changed(|text| text.members[0].names.en = "x".repeat(5_000)).unwrap_err();
    assert!(matches!(error, RosterError::Field { found, .. } if found.len() == FOUND_CHARS_MAX));
    changed(|text| text.members[0].names.ar = "المملكة المغربية".into()).unwrap();
}

#[test]
fn key_listed_twice_is_rejected() {
    let plain = |name: &str, of: &str| vkey(&key_of(name, Algorithm::Ed25519, of));
    let cosigning = |name: &str, of: &str| vkey(&key_of(name, Algorithm::CosignatureEd25519, of));
    let governor_1 = format!("{EXCHANGE}/governor/1");
    let feed_1 = format!("ma.{EXCHANGE}/feed/1");
    let custody = format!("ma.{EXCHANGE}/custody");

    let governor_twice = twice(|text| text.governors.keys[2] = plain("another.example/name", &governor_1));
    assert_eq!(governor_twice, same("governors.keys[2]", "governors.keys[0]", "key"));
    let governor_and_feed = twice(|text| text.members[0].keys[0].key = plain(&feed_1, &governor_1));
    assert_eq!(governor_and_feed, same("members.ma.keys[0].key", "governors.keys[0]", "key"));
    let both_epochs = twice(|text| text.members[0].keys[1].key = plain(&format!("ma.{EXCHANGE}/feed/2"), &feed_1));
    assert_eq!(both_epochs, same("members.ma.keys[1].key", "members.ma.keys[0].key", "key"));
    let feed_and_mirror =
        twice(|text| text.members[0].keys[2].key = cosigning(&format!("ma.{EXCHANGE}/mirror"), &feed_1));
    assert_eq!(feed_and_mirror, same("members.ma.keys[2].key", "members.ma.keys[0].key", "key"));
    let feed_and_custody = twice(|text| text.members[0].keys[3].key = plain(&custody, &feed_1));
    assert_eq!(feed_and_custody, same("members.ma.keys[3].key", "members.ma.keys[0].key", "key"));
    let two_members = twice(|text| text.members[1].keys[3].key = plain(&format!("ly.{EXCHANGE}/custody"), &custody));
    assert_eq!(two_members, same("members.ly.keys[3].key", "members.ma.keys[3].key", "key"));
    for role in ["journal", "witness"] {
        let name = format!("ma.{EXCHANGE}/{role}");
        let text = if role == "journal" { plain(&name, &custody) } else { cosigning(&name, &custody) };
        let entry = KeyText { key: text, ..listed(role, None, &governor(9)) };
        let again = twice(|text| text.members[0].keys.push(entry));
        assert_eq!(again, same("members.ma.keys[4].key", "members.ma.keys[3].key", "key"), "{role}");
    }
    let listed_twice = twice(|text| {
        let again = text.members[0].keys[2].clone();
        text.members[0].keys.push(again);
    });
    assert_eq!(listed_twice, same("members.ma.keys[4].key", "members.ma.keys[2].key", "key"));
}

#[test]
fn governors_are_distinct_and_the_threshold_is_reachable() {
    for threshold in [0, 4] {
        assert_eq!(rejected(|text| text.governors.threshold = threshold), "governors.threshold");
    }
    for threshold in [1, 3] {
        assert!(changed(|text| text.governors.threshold = threshold).is_ok());
    }
    assert_eq!(rejected(|text| text.governors.keys.clear()), "governors.threshold");
    let second_key = vkey(&key_of(&format!("{EXCHANGE}/governor/1"), Algorithm::Ed25519, "a second key"));
    assert_eq!(
        twice(|text| text.governors.keys.push(second_key)),
        same("governors.keys[3]", "governors.keys[0]", "governor")
    );
    let cosigner = key_of("a.example", Algorithm::CosignatureEd25519, "a");
    assert_eq!(rejected(|text| text.governors.keys[1] = vkey(&cosigner)), "governors.keys[1]");
    let many = |count: usize| (0_u8..).take(count).map(|n| vkey(&governor(n))).collect::<Vec<_>>();
    changed(|text| text.governors.keys = many(GOVERNORS_MAX)).unwrap();
    assert_eq!(rejected(|text| text.governors.keys = many(GOVERNORS_MAX + 1)), "governors.keys");
}

#[test]
fn an_epoch_has_one_classical_key_and_at_most_one_post_quantum_key() {
    let feed = |algorithm, of: &str| listed("feed", Some(1), &key_of(&format!("ma.{EXCHANGE}/feed/1"), algorithm, of));
    let (classical, post_quantum) = (Algorithm::Ed25519, Algorithm::CosignatureMlDsa44);
    let both = changed(|text| text.members[0].keys.push(feed(post_quantum, "a"))).unwrap();
    assert_eq!(both.feed_keys(&format!("ma.{EXCHANGE}/feed/1").parse().unwrap()).len(), 2);
    assert_eq!(rejected(|text| text.members[0].keys.push(feed(classical, "a"))), "members.ma.keys");
    assert_eq!(rejected(|text| text.members[0].keys[0] = feed(post_quantum, "a")), "members.ma.keys");
    let two = |text: &mut RosterText| text.members[0].keys.extend(["a", "b"].map(|of| feed(post_quantum, of)));
    assert_eq!(rejected(two), "members.ma.keys");
    changed(|text| text.members[0].keys.retain(|key| key.role != "feed")).unwrap();
}

#[test]
fn observers_and_partners_are_granted_green_at_most() {
    let granted = |kind: &'static str, label: &'static str| {
        move |text: &mut RosterText| {
            text.members[2].kind = kind.into();
            text.members[2].ceilings = [("customs".into(), label.into())].into();
        }
    };
    for kind in ["observer", "partner"] {
        for label in ["TLP:CLEAR", "TLP:GREEN"] {
            changed(granted(kind, label)).unwrap();
        }
        for label in ["TLP:AMBER", "TLP:AMBER+STRICT", "TLP:RED", "green", ""] {
            assert_eq!(rejected(granted(kind, label)), "members.x-au.ceilings.customs", "{kind} {label}");
        }
    }
    let other_group =
        |text: &mut RosterText| text.members[2].ceilings = [("fishing".into(), "TLP:GREEN".into())].into();
    assert_eq!(rejected(other_group), "members.x-au.ceilings");
    assert_eq!(rejected(|text| text.members[2].working_groups.push("customs".into())), "members.x-au.working_groups");
    let full = |text: &mut RosterText| text.members[0].ceilings = [("customs".into(), "TLP:GREEN".into())].into();
    assert_eq!(rejected(full), "members.ma.ceilings");
    assert_eq!(rejected(|text| text.members[2].kind = "guest".into()), "members.x-au.kind");
}

#[test]
fn duplicate_values_are_rejected() {
    let again = |text: &mut RosterText| text.members.push(member_text("ma", "another"));
    assert_eq!(twice(again), same("members[3].code", "members[0].code", "member"));
    let group = twice(|text| text.working_groups.push("security".into()));
    assert_eq!(group, same("working_groups[2]", "working_groups[0]", "working group"));
    let group = twice(|text| text.members[0].working_groups.push("customs".into()));
    assert_eq!(group, same("members.ma.working_groups[2]", "members.ma.working_groups[1]", "working group"));
    let endpoint = twice(|text| text.members[0].endpoints.push("MA.example:7400".into()));
    assert_eq!(endpoint, same("members.ma.endpoints[1]", "members.ma.endpoints[0]", "endpoint"));
    let endpoint = twice(|text| text.members[1].endpoints = vec!["ma.example:7400".into()]);
    assert_eq!(endpoint, same("members.ly.endpoints[0]", "members.ma.endpoints[0]", "endpoint"));
    let closed = |text: &mut RosterText| text.members[0].closed_feeds = vec![closed(1, 3), closed(1, 3)];
    assert_eq!(twice(closed), same("members.ma.closed_feeds[1].epoch", "members.ma.closed_feeds[0].epoch", "epoch"));
}

fn closed(epoch: u32, size: u64) -> crate::roster::text::ClosedFeedText {
    crate::roster::text::ClosedFeedText { epoch, size, root: "00".repeat(32) }
}

#[test]
fn fields_that_make_no_sense_are_named() {
    type Change = fn(&mut RosterText);
    let cases: [(&str, Change); 24] = [
        ("format", |text| text.format = 2),
        ("exchange", |text| text.exchange = "Rabat".into()),
        ("version", |text| text.version = 0),
        ("previous", |text| text.version = 2),
        ("previous", |text| text.previous = Some("00".repeat(32))),
        ("previous", |text| (text.version, text.previous) = (2, Some("AB".repeat(32)))),
        ("issued", |text| text.issued = "2026-01-01T00:00:00".parse().unwrap()),
        ("review_by", |text| text.review_by = "2026-01-01".parse().unwrap()),
        ("review_by", |text| text.review_by = text.issued),
        ("quorum", |text| text.quorum = 0),
        ("quorum", |text| text.quorum = 2),
        ("working_groups[1]", |text| text.working_groups[1] = "Customs".into()),
        ("members[0].code", |text| text.members[0].code = "MA".into()),
        ("members.ma.trust_domain", |text| text.members[0].trust_domain = format!("ly.{EXCHANGE}")),
        ("members.ma.working_groups", |text| text.members[0].working_groups.push("fishing".into())),
        ("members.ma.keys", |text| text.members[0].keys[2].from_version = Some(2)),
        ("members.ma.keys", |text| text.members[0].keys.truncate(3)),
        ("members.ma.keys[0].role", |text| text.members[0].keys[0].epoch = None),
        ("members.ma.keys[0].key", |text| text.members[0].keys[0].epoch = Some(3)),
        ("members.ma.keys[0].key", |text| text.members[0].keys[0].key.truncate(20)),
        ("members.ma.keys[2].from_version", |text| text.members[0].keys[2].from_version = Some(0)),
        ("members.ma.keys[2].retired", |text| text.members[0].keys[2].retired = "2026-01-01".parse().ok()),
        ("members.ma.closed_feeds[0].epoch", |text| text.members[0].closed_feeds.push(closed(3, 1))),
        ("members.ma.closed_feeds[0].root", |text| {
            text.members[0].closed_feeds.push(closed(1, 1));
            text.members[0].closed_feeds[0].root.pop();
        }),
    ];
    for (field, change) in cases {
        assert_eq!(rejected(change), field);
    }
    let unknown = written(&sample()).replacen("quorum", "quota", 1);
    assert!(matches!(Roster::from_text(&unknown), Err(RosterError::Toml(reason)) if reason.contains("quota")));
}

#[test]
fn an_endpoint_is_a_host_and_a_port() {
    for good in ["10.0.0.1:1", "[2001:db8::1]:65535", "barid.ma.rabat.example:7400"] {
        changed(|text| text.members[0].endpoints = vec![good.into()]).unwrap();
    }
    let long = format!("{}:1", "a".repeat(300));
    for bad in
        ["", "ma", "ma:", ":1", "ma:0", "ma:65536", "ma:+1", "ma:01", "a b:1", "2001:db8::1:1", "x/y:1", "a@b:1", &long]
    {
        assert_eq!(rejected(|text| text.members[0].endpoints = vec![bad.into()]), "members.ma.endpoints[0]", "{bad}");
    }
}

/// Changes each of which alone makes the sample invalid, whatever the others do.
const FAULTS: [fn(&mut RosterText); 8] = [
    |text| text.governors.threshold = 99,
    |text| text.quorum = 0,
    |text| text.members[0].names.fr.push('\u{202e}'),
    |text| text.members[1].keys[3].key = text.members[0].keys[3].key.clone(),
    |text| text.members[1].ca_certificates.push(AUTHORITY_RENEWED.into()),
    |text| text.members[2].ceilings = [("customs".into(), "TLP:RED".into())].into(),
    |text| text.members[1].endpoints = text.members[0].endpoints.clone(),
    |text| text.working_groups.push("customs".into()),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_field_error_is_rejected_in_any_order(faults in prop::collection::btree_set(0..FAULTS.len(), 0..4), order in any::<[u8; 3]>()) {
        let mut text = sample();
        faults.iter().for_each(|fault| FAULTS[*fault](&mut text));
        // Members may be in any order.
        let mut members: Vec<_> = order.into_iter().zip(text.members).collect();
        members.sort_by_key(|(place, _)| *place);
        text.members = members.into_iter().map(|(_, member)| member).collect();
        prop_assert_eq!(Roster::from_text(&written(&text)).is_ok(), faults.is_empty());
    }

    #[test]
    fn damaged_text_never_panics(place in any::<prop::sample::Index>(), with in any::<char>(), cut in 0_usize..40) {
        let whole: Vec<char> = written(&sample()).chars().collect();
        let place = place.index(whole.len());
        let end = (place + cut).min(whole.len());
        let damaged: String = whole[..place].iter().chain([&with]).chain(&whole[end..]).collect();
        if let Ok(roster) = Roster::from_text(&damaged) {
            prop_assert!((1..=roster.governors().len()).contains(&roster.threshold()));
            let keys: Vec<_> = roster.entries().flat_map(|entry| &entry.keys).map(|key| key.key.public_bytes()).collect();
            let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
            prop_assert_eq!(distinct.len(), keys.len());
        }
    }
}
