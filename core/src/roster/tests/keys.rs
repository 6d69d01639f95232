use super::*;
use crate::feed::checkpoint::{Checkpoint, SignedCheckpoint, sign};
use crate::feed::cosignature::{
    CosignatureError, cosign, heartbeat_line, parse_heartbeat, verify_cosigned, verify_heartbeat,
};
use crate::ids::Hash;

/// 2026-06-01T00:00:00Z.
const END: u64 = 1_780_272_000;
const END_TEXT: &str = "2026-06-01T00:00:00Z";

fn checkpoint() -> SignedCheckpoint {
    let feed = format!("ma.{EXCHANGE}/feed/1").parse().unwrap();
    sign(&Checkpoint { feed, size: 3, root: Hash([7; 32]) }, &[key("ma", "feed/1", Algorithm::Ed25519)]).unwrap()
}

fn mirror() -> SigningKey {
    key("ly", "mirror", Algorithm::CosignatureEd25519)
}

fn new_mirror() -> SigningKey {
    key_of(&format!("ly.{EXCHANGE}/mirror"), Algorithm::CosignatureEd25519, "the new one")
}

fn cosigned(roster: &Roster, by: &[(&SigningKey, u64)]) -> Result<u64, CosignatureError> {
    let mut signed = checkpoint();
    for (key, time) in by {
        signed.note = cosign(&signed, key, *time).unwrap();
    }
    let lines = Note::parse(&signed.note).unwrap().signatures;
    let keys = roster.mirror_keys(&member("ly"), &lines);
    verify_cosigned(&signed.note, &roster.feed_keys(&signed.checkpoint.feed), &keys).map(|(_, time)| time)
}

#[test]
fn cosignature_before_key_expiry_stays_verifiable() {
    let ends: [fn(&mut KeyText); 2] =
        [|key| key.retired = END_TEXT.parse().ok(), |key| key.compromised = END_TEXT.parse().ok()];
    for end in ends {
        let roster = changed(|text| {
            end(&mut text.members[1].keys[2]);
            text.members[1].keys.push(listed("mirror", None, &new_mirror()));
        })
        .unwrap();
        assert_eq!(cosigned(&roster, &[(&mirror(), END)]), Ok(END));
        assert_eq!(cosigned(&roster, &[(&mirror(), END + 1)]), Err(CosignatureError::Unsigned));
        assert_eq!(cosigned(&roster, &[(&mirror(), u64::MAX >> 1)]), Err(CosignatureError::Unsigned));
        assert_eq!(cosigned(&roster, &[(&new_mirror(), END + 1)]), Ok(END + 1));
        // A thief's line beside the valid one does not invalidate it.
        assert_eq!(cosigned(&roster, &[(&mirror(), END + 5), (&new_mirror(), END + 9)]), Ok(END + 9));
    }
}

#[test]
fn the_earlier_of_retirement_and_theft_ends_a_key() {
    let roster = changed(|text| {
        text.members[1].keys[2].retired = "2026-07-01T00:00:00Z".parse().ok();
        text.members[1].keys[2].compromised = END_TEXT.parse().ok();
    })
    .unwrap();
    let held = roster.keys(&member("ly"), crate::roster::Role::Mirror).next().unwrap();
    assert!(held.compromised && held.counts_at(END) && !held.counts_at(END + 1));
    assert_eq!(held.retired, Some(i64::try_from(END).unwrap() + 30 * 86_400));
}

#[test]
fn heartbeat_by_an_expired_key_is_rejected() {
    let roster = changed(|text| text.members[0].keys[2].retired = END_TEXT.parse().ok()).unwrap();
    let (head, key) = (checkpoint().checkpoint, key("ma", "mirror", Algorithm::CosignatureEd25519));
    let beat = |time| {
        let line = heartbeat_line(&head, &key, time).unwrap();
        let keys = roster.mirror_keys(&member("ma"), &[parse_heartbeat(&line).unwrap()]);
        verify_heartbeat(&line, &head, &keys)
    };
    assert_eq!(beat(END), Ok(END));
    assert_eq!(beat(END + 1), Err(CosignatureError::Unsigned));
    assert_eq!(parse_heartbeat(b"no line"), Err(CosignatureError::Heartbeat));
}

#[test]
fn custody_keys_count_until_they_expire() {
    let roster = changed(|text| text.members[1].keys[3].compromised = END_TEXT.parse().ok()).unwrap();
    assert_eq!(roster.custody_keys(&member("ly"), END).len(), 1);
    assert!(roster.custody_keys(&member("ly"), END + 1).is_empty());
    assert_eq!(roster.custody_keys(&member("ma"), END + 1).len(), 1);
}

#[test]
fn a_key_may_be_used_from_its_version_on() {
    let later = |text: &mut RosterText| {
        let key = listed("mirror", None, &new_mirror());
        text.members[1].keys.push(KeyText { from_version: Some(2), ..key });
        text.members[1].keys[1].from_version = Some(2);
    };
    let first = changed(later).unwrap();
    let second = changed(|text| {
        later(text);
        (text.version, text.previous) = (2, Some(first.text_hash().to_string()));
    })
    .unwrap();
    let next_epoch = format!("ly.{EXCHANGE}/feed/2").parse().unwrap();
    assert_eq!((first.mirror_keys(&member("ly"), &[]).len(), first.feed_keys(&next_epoch).len()), (1, 0));
    assert_eq!((second.mirror_keys(&member("ly"), &[]).len(), second.feed_keys(&next_epoch).len()), (2, 1));
}

#[test]
fn feed_keys_are_of_this_exchange_and_include_expired_ones() {
    let roster = changed(|text| text.members[0].keys[0].compromised = END_TEXT.parse().ok()).unwrap();
    assert_eq!(roster.feed_keys(&format!("ma.{EXCHANGE}/feed/1").parse().unwrap()).len(), 1);
    assert!(roster.feed_keys(&"ma.tunis.example/feed/1".parse().unwrap()).is_empty());
}
