//! Rosters. An accepted roster is consistent, signed by its threshold, and a valid successor of the
//! previous one.

use barid_core::feed::note::{Note, VerifierKey};
use barid_core::ids::FeedId;
use barid_core::limits::ROSTER_BYTES_MAX;
use barid_core::roster::{Role, Roster, RosterChain};

use super::{chain, golden};
use crate::fixture;

pub fn check(data: &[u8]) {
    note(data);
    // The same bytes as a text that governors have signed.
    let Ok(text) = std::str::from_utf8(data) else { return };
    let parsed = Roster::from_text(text);
    if let Ok(roster) = &parsed {
        sensible(roster);
    }
    if !text.ends_with('\n') {
        return;
    }
    let signatures = [2, 3, 4].map(|number| fixture::governor(number).sign_text(text).unwrap());
    let signed = Note { text: text.to_owned(), signatures: signatures.into() }.to_bytes();
    if signed.len() <= ROSTER_BYTES_MAX && Note::parse_bounded(&signed, ROSTER_BYTES_MAX).is_ok() {
        assert_eq!(
            Roster::read(&signed).map(|(roster, _)| roster.text_hash()),
            parsed.map(|roster| roster.text_hash())
        );
    }
    note(&signed);
}

fn note(note: &[u8]) {
    if let Ok(begun) = RosterChain::start(note) {
        let roster = begun.newest();
        let parsed = Note::parse_bounded(note, ROSTER_BYTES_MAX).unwrap();
        let signed = |key: &&VerifierKey| parsed.verify(key).is_ok();
        assert!(roster.governors().iter().filter(signed).count() >= roster.threshold());
        sensible(roster);
    }
    let mut chain = chain().clone();
    let before = chain.newest_shared();
    if let Ok(true) = chain.extend(note) {
        let newest = chain.newest();
        assert_eq!(newest.version(), before.version() + 1);
        assert_eq!(newest.previous(), Some(before.text_hash()));
        assert_eq!(newest.exchange(), before.exchange());
        assert!(before.approvals(&Note::parse_bounded(note, ROSTER_BYTES_MAX).unwrap()) >= before.threshold());
    }
}

fn sensible(roster: &Roster) {
    assert!(roster.version() > 0 && roster.previous().is_some() == (roster.version() > 1));
    assert!((1..=roster.governors().len()).contains(&roster.threshold()));
    assert!(roster.quorum() > 0);
    for entry in roster.entries() {
        assert_eq!(entry.trust_domain, format!("{}.{}", entry.code, roster.exchange()));
        for key in &entry.keys {
            if let Role::Feed(epoch) = key.role {
                let feed = FeedId::new(entry.code.clone(), roster.exchange().clone(), epoch);
                assert_eq!(key.key.name(), feed.to_string());
                assert!(roster.feed_keys(&feed).iter().all(|listed| listed.name() == feed.to_string()));
            }
        }
        for pem in &entry.ca_certificates {
            let owners =
                roster.entries().filter(|other| other.ca_certificates.iter().any(|ca| ca.trim() == pem.trim()));
            assert_eq!(owners.count(), 1, "an authority belongs to one member");
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let notes = ["roster-1.note", "roster-2.note"].map(golden);
    let text = |note: &Vec<u8>| Note::parse_bounded(note, ROSTER_BYTES_MAX).unwrap().text.into_bytes();
    let third = fixture::next_roster(&fixture::roster_2(), |text| text.quorum = 3).to_vec();
    let small = fixture::next_roster(&fixture::roster_2(), |text| text.members.truncate(3)).to_vec();
    let all = [notes[0].clone(), notes[1].clone(), third, small];
    all.iter().map(text).chain(all.clone()).collect()
}
