//! Evidence that convinces every holder of a roster, and forgeries that must not.

use barid_core::evidence::zip::{self, Part};
use barid_core::evidence::{Dispute, EvidenceError, EvidenceParts, Outcome, Uncounted, assemble, verify};
use barid_core::feed::note::Note;
use barid_core::feed::tlog_proof::TlogProof;
use barid_core::ids::Hash;
use barid_core::roster::Roster;
use bytes::Bytes;

use crate::fixture::*;

fn outcome(parts: &EvidenceParts, roster: &Roster) -> Outcome {
    verify(&parts.to_bytes().unwrap(), roster).outcome
}

fn changed(change: impl FnOnce(&mut EvidenceParts)) -> EvidenceParts {
    let mut parts = parts();
    change(&mut parts);
    tied(&tree(), parts)
}

fn rejected(change: impl FnOnce(&mut EvidenceParts)) -> EvidenceError {
    let mut parts = parts();
    change(&mut parts);
    let roster = trusted(&roster_1());
    assert!(assemble(parts.clone()).is_err());
    match outcome(&parts, &roster) {
        Outcome::Invalid(error) | Outcome::Undecided(error) => error,
        other => panic!("read as {other:?}"),
    }
}

#[test]
fn evidence_verifies_with_the_roster_alone() {
    let file = assemble(parts()).unwrap();
    for roster in [roster_1(), roster_2()] {
        let verdict = verify(&file, &trusted(&roster));
        assert_eq!((&verdict.outcome, verdict.exit_code()), (&Outcome::Witnessed, 0));
        let report = verdict.report.unwrap();
        assert_eq!((report.member, report.index, report.sizes), (member("ma"), INDEX, vec![7, SIZE]));
        assert_eq!((report.id, report.digest), (bulletin().header.id, bulletin().digest));
        assert_eq!((report.counted, report.quorum, report.roster_version, report.rosters_tied), (2, 2, 2, true));
        let cosigners: Vec<_> =
            report.cosigners.iter().map(|one| (one.member.as_str(), one.time, one.uncounted)).collect();
        let expected = [("ly", TIME, None), ("ma", TIME + 5, Some(Uncounted::Publisher)), ("tn", TIME + 5, None)];
        assert_eq!(cosigners, expected);
        let custody: Vec<_> = report.custody.iter().map(|one| (one.member.as_str(), one.time, one.valid)).collect();
        assert_eq!(custody, [("ly", TIME + 1, true), ("ne", TIME + 1, true)]);
        assert_eq!((report.status.as_str(), report.kind.as_str()), ("Exercise", "situation-report"));
        assert_eq!(report.sent_at.unwrap().to_string(), "2025-11-23T19:44:04.250Z");
    }
}

#[test]
fn parts_may_come_in_any_order_and_the_file_reads_back() {
    let mut mixed = parts();
    mixed.proofs.reverse();
    mixed.consistency.reverse();
    mixed.custody.reverse();
    mixed.rosters.reverse();
    let file = assemble(mixed).unwrap();
    assert_eq!(file, assemble(parts()).unwrap());
    let read = EvidenceParts::read(&file).unwrap();
    assert_eq!(read, parts());
    assert_eq!(read.to_bytes().unwrap(), file);
}

#[test]
fn flipped_bit_in_any_byte_of_the_file_is_rejected() {
    let file = assemble(parts()).unwrap();
    let roster = trusted(&roster_1());
    for at in 0..file.len() {
        let mut altered = file.clone();
        altered[at] ^= 1 << (at % 8);
        assert_eq!(verify(&altered, &roster).exit_code(), 12, "byte {at}");
    }
    for cut in [0, 1, 100, file.len() / 2, file.len() - 1] {
        assert_eq!(verify(&file[..cut], &roster).exit_code(), 12, "cut at {cut}");
    }
}

/// The archive's checksums detect damage, but a forger can recompute them. So every byte of every
/// part must also be covered by a hash or a signature.
#[test]
fn flipped_bit_in_any_part_of_a_rewritten_archive_is_rejected() {
    let file = Bytes::from(assemble(parts()).unwrap());
    // One trusted roster is newer than those in the file, the other is in the file: both ways of
    // linking the file's rosters.
    let rosters = [trusted(&roster_1()), trusted(&next_roster(&roster_2(), |_| ()))];
    let parts = zip::read(&file).unwrap();
    assert_eq!(verify(&file, &rosters[1]).outcome, Outcome::Witnessed);
    std::thread::scope(|scope| {
        for half in 0..2 {
            let (parts, rosters) = (&parts, &rosters);
            scope.spawn(move || {
                for (place, part) in parts.iter().enumerate() {
                    for at in (half..part.data.len()).step_by(2) {
                        let mut altered: Vec<Part> = parts.clone();
                        let mut data = part.data.to_vec();
                        data[at] ^= 1 << (at / 2 % 8);
                        altered[place].data = data.into();
                        let file = zip::write(&altered).unwrap();
                        let roster = &rosters[at / 16 % 2];
                        assert_eq!(verify(&file, roster).exit_code(), 12, "{} byte {at}", part.name);
                    }
                }
            });
        }
    });
}

#[test]
fn missing_added_or_moved_parts_are_rejected() {
    let file = Bytes::from(assemble(parts()).unwrap());
    let roster = trusted(&roster_1());
    let parts = zip::read(&file).unwrap();
    let judged = |parts: &[Part]| verify(&zip::write(parts).unwrap(), &roster).exit_code();
    assert_eq!(judged(&parts), 0);
    for place in 0..parts.len() {
        let mut without = parts.clone();
        let removed = without.remove(place);
        // The verifier holds roster 1 itself, and the rest is valid without the newest roster and
        // without one member's custody note. Niger's note has a size of its own, so without it the
        // consistency proof for that size is superfluous.
        let spare = removed.name.starts_with("rosters/") || removed.name == "custody/ly.note";
        let expected = if spare { 0 } else { 12 };
        let verdict = verify(&zip::write(&without).unwrap(), &roster);
        assert_eq!(verdict.exit_code(), expected, "without {}: {verdict:?}", removed.name);
        let mut twice = parts.clone();
        twice.insert(place, parts[place].clone());
        assert_eq!(judged(&twice), 12, "{} twice", parts[place].name);
        let mut renamed = parts.clone();
        renamed[place].name.insert(0, 'x');
        assert_eq!(judged(&renamed), 12, "{} renamed", parts[place].name);
    }
    let mut swapped = parts.clone();
    swapped.swap(2, 3);
    assert_eq!(judged(&swapped), 12);
    let mut more = parts;
    more.push(Part { name: "extra.txt".to_owned(), data: Bytes::from_static(b"x") });
    assert_eq!(judged(&more), 12);
}

#[test]
fn quorum_counts_each_full_member_except_the_publisher_once() {
    let roster = trusted(&roster_1());
    let with = |by: &[(&str, u8)]| changed(|parts| parts.proofs = vec![proof(&tree(), INDEX, SIZE, by, TIME)]);
    assert_eq!(outcome(&with(&[("ly", 0), ("tn", 0)]), &roster), Outcome::Witnessed);
    for by in [
        &[][..],
        &[("ly", 0)],
        &[("ly", 0), ("ma", 0)],
        &[("ly", 0), ("ly", 1)],
        &[("ly", 0), ("x-observer", 0)],
        &[("ma", 0), ("ma", 1), ("x-observer", 0)],
    ] {
        let parts = with(by);
        assert_eq!(outcome(&parts, &roster), Outcome::SignedOnly, "{by:?}");
        assert_eq!(verify(&assemble(parts).unwrap(), &roster).exit_code(), 10);
    }
    let twice =
        changed(|parts| parts.proofs = [7, 8].map(|size| proof(&tree(), INDEX, size, &[("ly", 0)], TIME)).into());
    assert_eq!(outcome(&twice, &roster), Outcome::SignedOnly, "one member at two sizes");
}

#[test]
fn proofs_of_another_entry_are_rejected() {
    let tree = tree();
    let other = |index, size| proof(&tree, index, size, &[("ly", 0), ("tn", 0)], TIME);
    assert!(matches!(rejected(|parts| parts.proofs[0] = other(INDEX + 1, 7)), EvidenceError::Proof(_)));
    let moved = |proof: TlogProof| TlogProof { index: INDEX + 1, ..proof };
    assert!(matches!(rejected(|parts| parts.proofs[0] = moved(other(INDEX, 7))), EvidenceError::Proof(_)));
    assert_eq!(rejected(|parts| parts.proofs[1] = other(INDEX, 7)), EvidenceError::Different);
    // A bulletin by Libya is not accepted as Morocco's because it is in Morocco's feed.
    let foreign = bulletin_of("ly", 1);
    let tree = tree_with(&foreign);
    let error = rejected(|parts| {
        parts.envelope = foreign.envelope.clone();
        parts.proofs = vec![proof(&tree, INDEX, SIZE, &[("ly", 0), ("tn", 0)], TIME)];
        parts.custody.clear();
        parts.consistency.clear();
    });
    assert!(matches!(error, EvidenceError::Feed { .. }));
}

#[test]
fn signatures_by_unlisted_keys_are_rejected() {
    let swap = |note: &Bytes, from: &str, to: &str| -> Bytes {
        let mut note = Note::parse(note).unwrap();
        for line in &mut note.signatures {
            line.name = line.name.replace(from, to);
        }
        note.to_bytes().into()
    };
    let error = rejected(|parts| parts.proofs[0].checkpoint = swap(&parts.proofs[0].checkpoint, "ly.", "tn."));
    assert_eq!(error, EvidenceError::UnknownSignature("tn.rabat.example/mirror".to_owned()));
    let stranger = |number| proof(&tree(), INDEX, 7, &[("ly", number)], TIME);
    assert!(matches!(rejected(|parts| parts.proofs[0] = stranger(9)), EvidenceError::UnknownSignature(_)));
    // Tunisia's signature of the same statement under Libya's name and key id.
    let error = rejected(|parts| {
        let tunisian = Note::parse(&proof(&tree(), INDEX, 7, &[("tn", 0)], TIME).checkpoint).unwrap();
        let mut note = Note::parse(&parts.proofs[0].checkpoint).unwrap();
        note.signatures[1].bytes = tunisian.signatures[1].bytes.clone();
        parts.proofs[0].checkpoint = note.to_bytes().into();
    });
    assert!(matches!(error, EvidenceError::Cosignature(_)));
    let error = rejected(|parts| parts.custody[0].0 = member("tn"));
    assert!(matches!(error, EvidenceError::UnknownSignature(_)));
    let error = rejected(|parts| parts.custody[0] = custody(&tree(), "ly", 7, Some(INDEX)));
    assert_eq!(error, EvidenceError::NotHeld(member("ly")));
    // Assembling does not check signatures on rosters by other keys; verifying does.
    let mut parts = parts();
    let mut note = Note::parse(&parts.rosters[0].1).unwrap();
    note.signatures.push(governor(9).sign_text(&note.text).unwrap());
    parts.rosters[0].1 = note.to_bytes().into();
    let outcome = outcome(&parts, &trusted(&roster_1()));
    assert!(matches!(outcome, Outcome::Invalid(EvidenceError::UnknownSignature(_))), "{outcome:?}");
}

#[test]
fn checkpoints_without_consistency_proofs_are_rejected() {
    assert_eq!(rejected(|parts| parts.consistency.clear()), EvidenceError::Untied);
    assert_eq!(rejected(|parts| drop(parts.consistency.remove(0))), EvidenceError::Untied);
    let error = rejected(|parts| parts.consistency[1].proof[0] = Hash([0; 32]));
    assert!(matches!(error, EvidenceError::Consistency { old: 8, new: SIZE, .. }));
}

#[test]
fn only_rosters_linked_to_the_trusted_one_are_used() {
    let file = assemble(parts()).unwrap();
    let judge = |roster: &Bytes| verify(&file, &trusted(roster)).outcome;
    // Another exchange with the same name: the same members, but a different decision of the
    // governors.
    let forked = next_roster(&roster_1(), |text| text.quorum = 1);
    assert_eq!(judge(&forked), Outcome::Invalid(EvidenceError::OtherRoster(2)));
    let mut text = roster_text();
    text.quorum = 1;
    assert_eq!(judge(&roster_note(&text, &[1, 2])), Outcome::Invalid(EvidenceError::OtherRoster(1)));
    // The next roster, or a much later one, decides by itself.
    let third = next_roster(&roster_2(), |text| text.quorum = 3);
    assert_eq!(judge(&third), Outcome::SignedOnly);
    let fourth = next_roster(&third, |_| ());
    let report = verify(&file, &trusted(&fourth)).report.unwrap();
    assert_eq!((report.rosters_tied, report.roster_version, report.quorum), (false, 4, 3));
    // The file's first roster may follow the trusted one directly; a gap is not allowed.
    let late = |rosters: Vec<(u64, Bytes)>| changed(|parts| parts.rosters = rosters);
    assert_eq!(outcome(&late(vec![(2, roster_2()), (3, third.clone())]), &trusted(&roster_1())), Outcome::SignedOnly);
    let missing_roster = outcome(&late(vec![(3, third.clone())]), &trusted(&roster_1()));
    assert_eq!(missing_roster, Outcome::Undecided(EvidenceError::RosterGap { first: 3 }));
    let missing_roster = outcome(&late(vec![(1, roster_1()), (3, third)]), &trusted(&roster_1()));
    assert!(matches!(missing_roster, Outcome::Invalid(EvidenceError::Rosters(_))));
    // Too few governors signed.
    let text = toml::from_str(&Note::parse(&roster_2()).unwrap().text).unwrap();
    for governors in [&[2][..], &[3, 4], &[]] {
        let weak = late(vec![(1, roster_1()), (2, roster_note(&text, governors))]);
        assert!(matches!(outcome(&weak, &trusted(&roster_1())), Outcome::Invalid(_)), "{governors:?}");
    }
}

#[test]
fn a_bulletin_of_a_newer_roster_needs_that_roster() {
    let bulletin = bulletin_of("ma", 2);
    let tree = tree_with(&bulletin);
    let make = |rosters: Vec<(u64, Bytes)>| EvidenceParts {
        envelope: bulletin.envelope.clone(),
        proofs: vec![proof(&tree, INDEX, SIZE, &[("ly", 0), ("tn", 0)], TIME)],
        consistency: Vec::new(),
        custody: Vec::new(),
        rosters,
    };
    let old = make(vec![(1, roster_1())]);
    let needed = EvidenceError::RosterTooOld { needed: 2, newest: 1 };
    assert_eq!(assemble(old.clone()), Err(needed.clone()));
    assert_eq!(outcome(&old, &trusted(&roster_1())), Outcome::Undecided(needed));
    assert_eq!(outcome(&old, &trusted(&roster_2())), Outcome::Witnessed);
    assert_eq!(outcome(&make(vec![(1, roster_1()), (2, roster_2())]), &trusted(&roster_1())), Outcome::Witnessed);
}

fn judged_after(change: impl FnOnce(&mut barid_core::roster::text::RosterText)) -> Outcome {
    let file = assemble(parts()).unwrap();
    verify(&file, &trusted(&next_roster(&roster_2(), change))).outcome
}

/// TIME is 2025-11-23T19:44:10Z; Libya cosigned at that time, Tunisia five seconds later.
const BETWEEN: &str = "2025-11-23T19:44:12Z";
const AFTERWARDS: &str = "2025-11-23T19:44:15Z";

#[test]
fn entry_cosigned_before_key_compromise_stays_witnessed() {
    let stolen = |at: &'static str| {
        judged_after(|text| keys_of(text, "ma", "feed").for_each(|key| key.compromised = Some(at.parse().unwrap())))
    };
    assert_eq!(stolen(AFTERWARDS), Outcome::Witnessed);
    let until = i64::try_from(TIME).unwrap() + 2;
    assert_eq!(stolen(BETWEEN), Outcome::Disputed(vec![Dispute::FeedKeyExpired { compromised: true, until }]));
    let cosigner = |at: &'static str| {
        judged_after(|text| keys_of(text, "tn", "mirror").for_each(|key| key.retired = Some(at.parse().unwrap())))
    };
    assert_eq!(cosigner(AFTERWARDS), Outcome::Witnessed);
    assert_eq!(cosigner(BETWEEN), Outcome::Disputed(vec![Dispute::CosignerKeyExpired]));
    assert_eq!(judged_after(|text| text.members.retain(|member| member.code != "tn")), Outcome::SignedOnly);
    let gone = judged_after(|text| member_of(text, "ma").keys.retain(|key| key.role != "feed"));
    assert_eq!(gone, Outcome::Disputed(vec![Dispute::FeedKeyGone]));
}

#[test]
fn closed_feed_retains_entries_below_its_final_size() {
    let root = |size| checkpoint(&tree(), size).checkpoint.root.to_string();
    let closed = |size: u64, root: String| judged_after(move |text| close(text, size, &root));
    assert_eq!(closed(SIZE, root(SIZE)), Outcome::Witnessed);
    assert_eq!(closed(INDEX + 1, root(INDEX + 1)), Outcome::Witnessed);
    let expected = vec![Dispute::Closed { size: INDEX, index: INDEX }];
    assert_eq!(closed(INDEX, root(INDEX)), Outcome::Disputed(expected));
    let expected = vec![Dispute::Fork { size: SIZE, by: "the governors".to_owned() }];
    assert_eq!(closed(SIZE, root(7)), Outcome::Disputed(expected));
    // The key was retired when the feed was closed. Later cosignatures still count for entries
    // within the closed size.
    let retired = judged_after(|text| {
        close(text, SIZE, &root(SIZE));
        keys_of(text, "ma", "feed").for_each(|key| key.retired = Some(BETWEEN.parse().unwrap()));
    });
    assert_eq!(retired, Outcome::Witnessed);
}

#[test]
fn custody_note_on_another_root_disputes_the_evidence() {
    let parts = changed(|parts| {
        let other = tree_with(&bulletin_of("ma", 2));
        parts.custody = vec![custody(&other, "ly", 7, None)];
    });
    let by = "ly".to_owned();
    let expected = vec![Dispute::Fork { size: 7, by }];
    assert_eq!(outcome(&parts, &trusted(&roster_1())), Outcome::Disputed(expected));
    assert_eq!(verify(&assemble(parts).unwrap(), &trusted(&roster_1())).exit_code(), 11);
}
