#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use barid_core::evidence::{Dispute, EvidenceError, Outcome, Uncounted};

use super::*;
use crate::cli::messages::{FSI, Lang, Messages, PDI};
use crate::cli::output::Output;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn verified(lang: Lang, json: bool, file: &Path, roster: &Path) -> (Exit, String) {
    let (output, captured) = Output::captured(json);
    let context = Context::new(Messages::new(lang), output, None);
    let args = VerifyArgs { file: file.to_owned(), roster: Some(roster.to_owned()) };
    let exit = run(&context, &args).unwrap();
    let text = String::from_utf8(captured.lock().clone()).unwrap();
    (exit, text)
}

fn judged() -> Judged {
    let trusted = trusted(&golden("roster-1.note")).unwrap();
    let file = std::fs::read(golden("evidence.barid")).unwrap();
    let verdict = verify(&file, &trusted);
    let delivery = delivery(&file, verdict.report.as_ref().unwrap());
    Judged { path: "roster-1.note".into(), trusted, verdict, delivery }
}

fn report_text(lang: Lang, judged: &Judged) -> String {
    let context = Context::new(Messages::new(lang), Output::plain(), None);
    let render = Render::new(&context, Directory::with_roster(unknown_member(), judged.trusted.clone()));
    let text = report::lines(&context, &render, judged).join("\n");
    assert_eq!(text.matches(FSI).count(), text.matches(PDI).count(), "{text:?}");
    // A missing message would be shown as its id, and a value in a wrong place as U+FFFD.
    for id in ["verify-", "unproven-", "uncounted-", "dispute-", "invalid-", "part-", "detail-", "\u{FFFD}"] {
        assert!(!text.contains(id), "{lang:?}: {text}");
    }
    text
}

#[test]
fn verify_report_names_issuer_and_witnesses() {
    for (lang, phrases) in [
        (Lang::En, ["WITNESSED", "Who published it", "cannot deny it", "What this does not prove"]),
        (Lang::Fr, ["ATTESTÉ", "Qui l'a publié", "ne peut pas le nier", "Ce que cela ne prouve pas"]),
        (Lang::Ar, ["مشهود", "من نشرها", "فلا يستطيع العضو إنكارها", "ما لا يثبته هذا الملف"]),
    ] {
        let (exit, text) = verified(lang, false, &golden("evidence.barid"), &golden("roster-1.note"));
        assert_eq!(exit, Exit::Ok, "{text}");
        let found = ["ma.rabat.example/feed/1", "ly", "tn", "2025-11-23 19:44:10 UTC", "roster-1.note"];
        for part in phrases.iter().chain(&found) {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(
            text,
            report_text(lang, &judged()).replace("roster-1.note", golden("roster-1.note").to_str().unwrap()) + "\n"
        );
    }
}

#[test]
fn verify_json_matches_report() {
    let (exit, text) = verified(Lang::Ar, true, &golden("evidence.barid"), &golden("roster-1.note"));
    let object: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((exit, &object["result"], &object["exit"]), (Exit::Ok, &json!("witnessed"), &json!(0)));
    assert_eq!((&object["member"], &object["counted"], &object["quorum"]), (&json!("ma"), &json!(2), &json!(2)));
    assert_eq!(object["header"]["member"], json!("ma"));
    assert!(object["body"]["texts"].is_array());
    let cosigner =
        |code: &str| object["cosigners"].as_array().unwrap().iter().find(|one| one["member"] == code).cloned();
    assert_eq!(cosigner("ly").unwrap()["at"], json!("2025-11-23T19:44:10Z"));
    assert_eq!(cosigner("ma").unwrap()["counted"], json!(false));
    let holders: Vec<&Value> = object["custody"].as_array().unwrap().iter().map(|one| &one["member"]).collect();
    assert_eq!(holders, ["ly", "ne"]);
}

#[test]
fn damaged_evidence_is_invalid_with_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = std::fs::read(golden("evidence.barid")).unwrap();
    let copy = folder.path().join("copy.barid");
    for bytes in [&file[..file.len() - 1], b"", &file[1..], &[&file[..], b"x"].concat()] {
        std::fs::write(&copy, bytes).unwrap();
        let (exit, text) = verified(Lang::Fr, false, &copy, &golden("roster-1.note"));
        assert_eq!(exit, Exit::Invalid);
        assert!(
            text.contains("NON VALABLE") && text.contains("endommagé") && text.contains("Demandez le fichier"),
            "{text}"
        );
        let (exit, text) = verified(Lang::Fr, true, &copy, &golden("roster-1.note"));
        let object: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((exit, &object["result"], &object["exit"]), (Exit::Invalid, &json!("invalid"), &json!(12)));
        assert!(object["reason"].as_str().unwrap().contains("damaged") && object["member"].is_null(), "{object}");
    }
}

#[test]
fn unreadable_trusted_roster_is_usage_error() {
    let context = Context::new(Messages::new(Lang::En), Output::plain(), None);
    let note = std::fs::read_to_string(golden("roster-1.note")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let altered = folder.path().join("roster.note");
    std::fs::write(&altered, note.replacen("quorum = 2", "quorum = 1", 1)).unwrap();
    for (roster, id) in
        [(altered, "roster-unusable"), (golden("envelope.bin"), "roster-unusable"), (golden("none"), "file-unreadable")]
    {
        let args = VerifyArgs { file: golden("evidence.barid"), roster: Some(roster) };
        let failure = run(&context, &args).unwrap_err();
        assert_eq!((failure.id(), failure.exit_code()), (id, Exit::Usage));
    }
}

#[test]
fn every_dispute_is_localized() {
    for lang in Lang::ALL {
        let mut judged = judged();
        let disputes = [true, false].map(|compromised| Dispute::FeedKeyExpired { compromised, until: 1_763_927_052 });
        let mut disputes = disputes.to_vec();
        disputes.extend([
            Dispute::Closed { size: 3, index: 7 },
            Dispute::Fork { size: 9, by: "the governors".into() },
            Dispute::Fork { size: 9, by: "ly".into() },
            Dispute::FeedKeyGone,
            Dispute::CosignerKeyExpired,
        ]);
        judged.verdict.outcome = Outcome::Disputed(disputes);
        let report = judged.verdict.report.as_mut().unwrap();
        let reasons = [
            Uncounted::Publisher,
            Uncounted::NotFull,
            Uncounted::Earlier,
            Uncounted::KeyExpired,
            Uncounted::FeedKeyExpired,
        ];
        let first = report.cosigners[0].clone();
        report.cosigners.extend(reasons.map(|reason| {
            let mut one = first.clone();
            one.uncounted = Some(reason);
            one
        }));
        report.custody[0].valid = false;
        report.rosters_tied = false;
        let text = report_text(lang, &judged);
        assert_eq!(text.matches('⚠').count(), 7, "{text}");
        assert_eq!(judged.json()["disputes"].as_array().unwrap().len(), 7);
        judged.verdict.outcome = Outcome::SignedOnly;
        let report = judged.verdict.report.as_mut().unwrap();
        report.cosigners.clear();
        report.custody.clear();
        report_text(lang, &judged);
    }
}

#[test]
fn every_fault_is_localized() {
    let feed = "ma.rabat.example/feed/1".parse::<barid_core::ids::FeedId>().unwrap();
    let member = || "ly".parse::<Member>().unwrap();
    let files: Vec<EvidenceError> = vec![
        barid_core::evidence::zip::ZipError::Form.into(),
        EvidenceError::Page,
        EvidenceError::Part("proofs/2.tlog-proof".into()),
        EvidenceError::Count { what: "proofs", found: 0 },
        EvidenceError::Bulletin("x".into()),
        EvidenceError::Proof(barid_core::feed::tlog_proof::TlogProofError::Form("index")),
        EvidenceError::Feed { feed: feed.clone(), member: member(), exchange: "tunis.example".into() },
        EvidenceError::NoFeedKeys(feed.clone()),
        EvidenceError::Different,
        EvidenceError::Untied,
        EvidenceError::Consistency { old: 1, new: 2, source: barid_core::feed::tree::ProofError::Root },
        EvidenceError::UnknownSignature("tn.rabat.example/mirror".into()),
        EvidenceError::Note(barid_core::feed::note::NoteError::BadSignature("x".into())),
        EvidenceError::Cosignature(barid_core::feed::cosignature::CosignatureError::Time),
        EvidenceError::NotHeld(member()),
        EvidenceError::Rosters(barid_core::roster::ChainError::Previous(2)),
        EvidenceError::OtherRoster(2),
        EvidenceError::RosterGap { first: 3 },
        EvidenceError::RosterTooOld { needed: 3, newest: 2 },
    ];
    for lang in Lang::ALL {
        for error in &files {
            let mut judged = judged();
            judged.verdict = Verdict { outcome: Outcome::Invalid(error.clone()), report: None };
            if matches!(error, EvidenceError::RosterGap { .. } | EvidenceError::RosterTooOld { .. }) {
                judged.verdict.outcome = Outcome::Undecided(error.clone());
            }
            let text = report_text(lang, &judged);
            // A detail in other languages than English is left out if the sentence has it.
            assert!((if lang == Lang::En { 4..=4 } else { 3..=4 }).contains(&text.lines().count()), "{text}");
            for english in ["the ", "signature by", "does not"] {
                assert!(lang == Lang::En || !text.contains(english), "{lang:?}: {text}");
            }
            assert!(!judged.json()["reason"].as_str().unwrap().is_empty());
        }
    }
}

#[test]
fn conflicting_entries_are_equivocation() {
    let (file, roster) = (golden("equivocation-two-entries.txt"), golden("roster-2.note"));
    for lang in Lang::ALL {
        let (exit, text) = verified(lang, false, &file, &roster);
        assert_eq!((exit, text.lines().count()), (Exit::Equivocation, 4), "{text}");
    }
    let (exit, text) = verified(Lang::En, true, &file, &roster);
    let object: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((exit, &object["result"], &object["index"]), (Exit::Equivocation, &json!("equivocation"), &json!(4)));
    assert_eq!(object["digests"].as_array().unwrap().len(), 2);
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.txt");
    let altered = std::fs::read_to_string(&file).unwrap().replacen("index 4", "index 5", 1);
    std::fs::write(&copy, altered).unwrap();
    assert_eq!(verified(Lang::En, true, &copy, &roster).0, Exit::Invalid);
}
