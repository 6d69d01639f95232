use super::*;
use crate::roster::{ChainError, Draft, RosterChain, SignError};

#[test]
fn governors_sign_a_text_one_after_the_other() {
    let mut draft = Draft::read(written(&sample()).as_bytes()).unwrap();
    assert!(draft.signers(None).is_empty());
    assert_eq!(draft.sign(&governor(1), None, NOW), Ok(true));
    assert_eq!(draft.sign(&governor(1), None, NOW), Ok(false));
    let mut reopened = Draft::read(&draft.note().to_bytes()).unwrap();
    assert_eq!(reopened.sign(&governor(3), None, NOW), Ok(true));
    let chain = RosterChain::start(&reopened.note().to_bytes()).unwrap();
    assert_eq!(chain.newest().text_hash(), draft.roster().text_hash());
    let names: Vec<_> =
        reopened.signers(None).into_iter().map(|signer| (signer.name, signer.own, signer.valid)).collect();
    let signer = |n| (format!("{EXCHANGE}/governor/{n}"), true, Some(true));
    assert_eq!(names, [signer(1), signer(3)]);
}

#[test]
fn new_member_whose_code_iso_does_not_assign_is_not_signed_for() {
    for code in ["uk", "zz", "eu", "an", "xk"] {
        let mut text = sample();
        text.members[1] = member_text(code, AUTHORITY_OTHER);
        let mut draft = Draft::read(written(&text).as_bytes()).unwrap();
        assert_eq!(draft.sign(&governor(1), None, NOW), Err(SignError::Unassigned(member(code))));
        // A roster that is already signed stays readable, and its members may stay.
        let before = Roster::from_text(&written(&text)).unwrap();
        (text.version, text.previous) = (2, Some(before.text_hash().to_string()));
        let mut next = Draft::read(written(&text).as_bytes()).unwrap();
        assert_eq!(next.sign(&governor(1), Some(&before), NOW), Ok(true), "{code}");
    }
}

#[test]
fn previous_governors_sign_only_a_valid_successor() {
    let before = Roster::from_text(&written(&sample())).unwrap();
    let mut text = sample();
    (text.version, text.previous) = (2, Some(before.text_hash().to_string()));
    text.governors.keys = [4, 5].map(|n| vkey(&governor(n))).to_vec();
    let mut draft = Draft::read(written(&text).as_bytes()).unwrap();
    let stranger =
        |n| SignError::NotGovernor(format!("{EXCHANGE}/governor/{n}+{}", hex::encode(governor(n).verifier().id())));
    assert_eq!(draft.sign(&governor(1), None, NOW), Err(stranger(1)));
    assert_eq!(draft.sign(&governor(9), Some(&before), NOW), Err(stranger(9)));
    assert_eq!(draft.sign(&governor(1), Some(&before), NOW), Ok(true));
    assert_eq!(draft.sign(&governor(4), Some(&before), NOW), Ok(true));
    let signers = draft.signers(Some(&before));
    assert_eq!(
        signers.iter().map(|signer| (signer.own, signer.before)).collect::<Vec<_>>(),
        [(false, true), (true, false)]
    );
    assert_eq!(draft.signers(None)[0].valid, None, "an unknown key");

    text.members[0].keys.remove(0);
    let mut unsettling = Draft::read(written(&text).as_bytes()).unwrap();
    let error = unsettling.sign(&governor(1), Some(&before), NOW).unwrap_err();
    assert!(matches!(error, SignError::Chain(ChainError::InvariantChanged { .. })), "{error}");
    text.version = 3;
    let mut skipping = Draft::read(written(&text).as_bytes()).unwrap();
    let error = SignError::Chain(ChainError::Gap { held: 1, found: 3 });
    assert_eq!(skipping.sign(&governor(1), Some(&before), NOW), Err(error));
    assert!(skipping.note().signatures.is_empty());
}

#[test]
fn unusable_draft_is_not_signed() {
    let mut text = sample();
    text.members[1].ca_certificates[0] = "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n".into();
    let mut draft = Draft::read(written(&text).as_bytes()).unwrap();
    let unfit = UnfitAuthority { field: "members.ly.ca_certificates[0]".into(), reason: Unfit::Unreadable };
    assert_eq!(draft.sign(&governor(1), None, NOW), Err(SignError::Authorities(vec![unfit])));
}

#[test]
fn unfit_authorities_are_reported_unless_the_previous_version_lists_them() {
    let mut text = sample();
    text.members[0].ca_certificates.push(AUTHORITY_WITHOUT_USAGE.into());
    let mut draft = Draft::read(written(&text).as_bytes()).unwrap();
    let after_all = 2_200_000_000;
    let Err(SignError::Authorities(unfit)) = draft.sign(&governor(1), None, after_all) else { panic!("signed") };
    let fields: Vec<&str> = unfit.iter().map(|unfit| unfit.field.as_str()).collect();
    let all = ["members.ly.ca_certificates[0]", "members.ma.ca_certificates[0]", "members.ma.ca_certificates[1]"];
    assert_eq!(fields[..3], all);
    assert_eq!(unfit[2].reason, Unfit::NoKeyUsage("keyCertSign"));
    assert!(unfit[0].to_string().contains("members.ly.ca_certificates[0]: it expired on 2036-11-26T"), "{}", unfit[0]);
    assert!(draft.note().signatures.is_empty());

    let before = changed(|_| {}).unwrap();
    assert_eq!(before.unfit_authorities(Some(&before), after_all), []);
    let added: Vec<_> = draft.roster().unfit_authorities(Some(&before), after_all);
    assert_eq!(added.iter().map(|unfit| unfit.field.as_str()).collect::<Vec<_>>(), all[2..]);
}

#[test]
fn authority_not_valid_yet_is_not_signed_beyond_clock_skew() {
    let begun = crate::certificate::check_pem(AUTHORITY, crate::certificate::Purpose::Authority).unwrap().not_before;
    let roster = changed(|_| {}).unwrap();
    assert!(roster.unfit_authorities(None, begun - 86_400).iter().any(|unfit| unfit.field.starts_with("members.ma")));
    assert_eq!(roster.unfit_authorities(None, begun - 60), []);
}

#[test]
fn text_altered_after_signing_is_detected() {
    let note = String::from_utf8(signed(&sample(), &[governor(1)])).unwrap();
    let mut draft = Draft::read(note.replacen("quorum = 1", "quorum = 1 ", 1).as_bytes()).unwrap();
    assert_eq!(draft.signers(None)[0].valid, Some(false));
    assert!(matches!(draft.sign(&governor(1), None, NOW), Err(SignError::Changed(_))));
}

#[test]
fn editor_artifacts_are_corrected_or_reported() {
    let text = written(&sample());
    let marked = Draft::read(format!("\u{feff}{text}").as_bytes()).unwrap();
    assert_eq!(marked.note().text, text);
    let without_end = Draft::read(text.trim_end().as_bytes()).unwrap();
    assert_eq!(without_end.note().text, format!("{}\n", text.trim_end()));
    let windows = text.replace('\n', "\r\n");
    let error = Draft::read(windows.as_bytes()).unwrap_err();
    assert!(matches!(&error, RosterError::Note(reason) if reason.contains("line 1")), "{error}");
    assert!(matches!(Draft::read(b"\xff"), Err(RosterError::Note(_))));
    let broken = format!("{text}\n— not a line\n");
    assert!(matches!(Draft::read(broken.as_bytes()), Err(RosterError::Note(_))));
    let large = "#".repeat(crate::limits::ROSTER_BYTES_MAX + 1);
    assert!(matches!(Draft::read(large.as_bytes()), Err(RosterError::Note(_))));
}
