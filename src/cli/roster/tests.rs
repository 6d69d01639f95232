#![allow(clippy::unwrap_used)]
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use serde_json::Value;

use super::run;
use crate::cli::messages::{FSI, Lang, Messages, PDI};
use crate::cli::output::Output;
use crate::cli::{Cli, Command, Context, Exit, Failure};
use crate::pki::{DevelopMember, DevelopOptions, develop};
use barid_core::roster::{MemberKind, Roster};

/// A development exchange with two full members and an observer. No node runs.
struct Secretariat(tempfile::TempDir);

impl Secretariat {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let member = |code: &str, port| DevelopMember::local(code.parse().unwrap(), port);
        let members = vec![member("ma", 7400), member("tn", 7410), member("x-au", 7420).of_kind(MemberKind::Observer)];
        develop(&DevelopOptions::new(folder.path().to_owned(), "rabat.example".parse().unwrap(), members)).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes the text of the version after `roster.note`, with a change, to a file.
    fn draft(&self, name: &str, change: impl FnOnce(String) -> String) -> String {
        let (roster, note) = Roster::read(&fs::read(self.path("roster.note")).unwrap()).unwrap();
        let next = format!("version = 2\nprevious = \"{}\"", roster.text_hash());
        fs::write(self.path(name), change(note.text.replacen("version = 1", &next, 1))).unwrap();
        self.file(name)
    }

    fn run_command(&self, lang: Lang, args: &[&str]) -> (Result<Exit, Failure>, String) {
        let args: Vec<String> = args
            .iter()
            .map(|arg| arg.strip_prefix('@').map_or_else(|| (*arg).to_owned(), |name| self.file(name)))
            .collect();
        let cli = Cli::try_parse_from(["barid", "roster"].into_iter().map(str::to_owned).chain(args)).unwrap();
        let (output, captured) = Output::captured(cli.json);
        let profile = Some(self.path("ma/clients/operator/client.toml"));
        let context = Context::new(Messages::new(lang), output, profile);
        let Command::Roster(args) = cli.command else { panic!("another command") };
        let result = run(&context, &args);
        if let Err(failure) = &result {
            failure.show(&context.messages, &context.output);
        }
        let text = String::from_utf8(captured.lock().clone()).unwrap();
        (result, text)
    }

    /// Returns the exit code and the JSON object of a command.
    fn json(&self, args: &[&str]) -> (Exit, Value) {
        let args = [args, &["--json"]].concat();
        let (result, text) = self.run_command(Lang::En, &args);
        let exit = result.unwrap_or_else(|failure| failure.exit_code());
        (exit, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}")))
    }
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()
}

#[test]
fn roster_show_prints_everything_in_every_language() {
    let office = Secretariat::new();
    let (_, object) = office.json(&["show", "@roster.note"]);
    let key = &object["members"][0]["keys"][2];
    assert_eq!((key["role"].as_str(), key["signatureType"].as_u64()), (Some("mirror"), Some(4)));
    assert!(key["fingerprint"].as_str().unwrap().starts_with(key["id"].as_str().unwrap()));
    assert_eq!(object["members"][2]["ceilings"]["information"], "TLP:GREEN");
    for lang in Lang::ALL {
        // The profile names the roster.
        let (result, text) = office.run_command(lang, &["show"]);
        assert_eq!(result.unwrap(), Exit::Ok);
        let messages = Messages::new(lang);
        let expected = [
            "rabat.example/governor/3",
            "127.0.0.1:7410",
            "x-au",
            object["textHash"].as_str().unwrap(),
            key["fingerprint"].as_str().unwrap(),
            object["members"][1]["authorities"][0]["sha256"].as_str().unwrap(),
            "information TLP:GREEN",
            &messages.text("member-kind-observer"),
            &messages.text("signer-own"),
        ];
        for part in expected {
            assert!(text.contains(part), "{lang:?}: {part} in {text}");
        }
        assert_eq!(text.matches(FSI).count(), text.matches(PDI).count());
    }
}

#[test]
fn roster_show_prints_key_state() {
    let office = Secretariat::new();
    office.draft("next.toml", |text| {
        let mut text: barid_core::roster::text::RosterText = toml::from_str(&text).unwrap();
        let keys = &mut text.members[0].keys;
        keys[0].retired = "2026-01-02T03:04:05Z".parse().ok();
        keys[2].compromised = "2026-02-03T04:05:06Z".parse().ok();
        keys[1].from_version = Some(9);
        text.review_by = "2026-01-01T00:00:00Z".parse().unwrap();
        text.issued = "2025-01-01T00:00:00Z".parse().unwrap();
        text.members[1].ca_certificates = vec!["nothing".into()];
        text.members[1].endpoints.clear();
        toml::to_string(&text).unwrap()
    });
    let (_, text) = office.run_command(Lang::En, &["show", "@next.toml"]);
    let all = [
        "retired at 2026-01-02 03:04:05 UTC",
        "stolen, counts until 2026-02-03 04:05:06 UTC",
        "from version 9 on",
        "cannot be read: certifies nothing",
        "dials only",
        "Nobody has signed it",
        "should have been reviewed",
    ];
    for part in all {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn governors_sign_in_turn_and_draft_is_unchanged() {
    let office = Secretariat::new();
    let draft = office.draft("next.toml", |text| text.replace("Morocco", "Kingdom of Morocco"));
    let before = read(&office.path("next.toml"));
    let (exit, object) = office.json(&["sign", "@next.toml", "--key", "@governors/1.key", "--trust", "@roster.note"]);
    assert_eq!((exit, object["complete"].as_bool()), (Exit::Ok, Some(false)), "{object}");
    assert_eq!(object["file"].as_str().unwrap(), office.file("next.note"));
    let again = office.json(&["sign", &draft, "--key", "@governors/1.key"]);
    assert_eq!((again.0, &again.1["error"]["id"]), (Exit::Usage, &"roster-exists".into()));
    // The draft is not overwritten, neither by the default name nor with --force.
    for args in [&["--force"][..], &["--force", "--output", "@next.note"]] {
        let once = read(&office.path("next.note"));
        let args = [&["sign", "@next.note", "--key", "@governors/2.key"], args].concat();
        assert_eq!(office.json(&args).0, Exit::Usage, "{args:?}");
        assert_eq!(read(&office.path("next.note")), once);
    }
    let (_, half) = office.json(&["verify", "@next.note"]);
    assert_eq!((half["result"].as_str(), half["ownGovernors"]["found"].as_u64()), (Some("invalid"), Some(1)));
    let (_, object) =
        office.json(&["sign", "@next.note", "--key", "@governors/2.key", "--in-place", "--trust", "@roster.note"]);
    assert_eq!(object["complete"], true, "{object}");
    assert_eq!(read(&office.path("next.toml")), before, "the draft was never touched");
    let (exit, object) = office.json(&["verify", "@next.note"]);
    assert_eq!((exit, object["result"].as_str()), (Exit::Ok, Some("follows")), "{object}");
    assert_eq!(object["governorsBefore"]["found"], 2);
    let (result, note) =
        office.run_command(Lang::En, &["sign", "@next.toml", "--key", "@governors/3.key", "--output", "-"]);
    assert_eq!(result.unwrap(), Exit::Ok);
    assert!(note.starts_with("format = 1\n") && note.ends_with('\n') && note.contains("— rabat.example/governor/3 "));
}

#[test]
fn roster_sign_rejects_unauthorized_keys() {
    let office = Secretariat::new();
    office.draft("next.toml", |text| text);
    let sign_error = |args: &[&str]| {
        let (exit, object) = office.json(&[&["sign", "@next.toml"], args].concat());
        assert!(!office.path("next.note").exists());
        (exit, object["error"]["id"].as_str().unwrap().to_owned())
    };
    assert_eq!(sign_error(&["--key", "@ma/keys/custody.key"]), (Exit::Failure, "roster-unknown-signer".into()));
    assert_eq!(sign_error(&["--key", "@ma/tls/node.key"]), (Exit::Usage, "key-unusable".into()));
    assert_eq!(sign_error(&["--key", "@nothing"]), (Exit::Usage, "file-unreadable".into()));
    let skipping = |text: String| text.replacen("version = 2", "version = 3", 1);
    office.draft("next.toml", skipping);
    let args = ["--key", "@governors/1.key", "--trust", "@roster.note"];
    assert_eq!(sign_error(&args), (Exit::Failure, "roster-not-signed".into()));
    office.draft("next.toml", |text| text.replace("quorum = 1", "quorum = 7"));
    let (exit, object) = office.json(&["sign", "@next.toml", "--key", "@governors/1.key"]);
    assert_eq!((exit, &object["error"]["fields"][0]["field"]), (Exit::Usage, &"quorum".into()));
}

#[test]
fn roster_is_verified_against_trusted_roster() {
    let office = Secretariat::new();
    let sign = |draft: &str, change: &dyn Fn(String) -> String| {
        office.draft(draft, change);
        let keys = ["--key", "@governors/1.key", "--key", "@governors/3.key"];
        let path = format!("@{draft}");
        assert_eq!(office.json(&[&["sign", &path][..], &keys].concat()).0, Exit::Ok);
    };
    sign("second.toml", &|text| text);
    sign("rival.toml", &|text| text.replace("Morocco", "Another"));
    let result = |args: &[&str]| {
        let (exit, object) = office.json(&[&["verify"], args].concat());
        (exit, object["result"].as_str().unwrap().to_owned())
    };
    let expect = |exit, id: &str| (exit, id.to_owned());
    assert_eq!(result(&["@roster.note"]), expect(Exit::Ok, "same"));
    assert_eq!(result(&["@second.note"]), expect(Exit::Ok, "follows"));
    assert_eq!(result(&["@roster.note", "--trust", "@second.note"]), expect(Exit::Ok, "before"));
    assert_eq!(result(&["@rival.note", "--trust", "@second.note"]), expect(Exit::Disputed, "fork"));
    assert_eq!(result(&["@second.note", "@rival.note"]), expect(Exit::Disputed, "fork"));
    assert_eq!(result(&["@second.toml"]), expect(Exit::Invalid, "invalid"));
    assert_eq!(result(&["@governors/1.key"]), expect(Exit::Invalid, "invalid"));

    // Another exchange with the same name: all its signatures are valid, but by other keys.
    let other = Secretariat::new();
    let theirs = other.file("roster.note");
    assert_eq!(result(&[&theirs]), expect(Exit::Invalid, "invalid"));
    assert_eq!(result(&["@second.note", "--trust", &theirs]), expect(Exit::Invalid, "invalid"));
    for lang in Lang::ALL {
        let (exit, text) = office.run_command(lang, &["verify", "@rival.note", "--trust", "@second.note"]);
        assert_eq!(exit.unwrap(), Exit::Disputed);
        assert!(text.contains("rabat.example/governor/3"), "{text}");
        assert!(text.contains(&Messages::new(lang).find("roster-fork.next", None).unwrap()), "{text}");
    }
}

#[test]
fn roster_without_trusted_roster_is_signed_only() {
    let office = Secretariat::new();
    fs::remove_file(office.path("ma/roster.note")).unwrap();
    let profile = office.path("ma/clients/operator/client.toml");
    let text = fs::read_to_string(&profile).unwrap();
    let without: String =
        text.lines().filter(|line| !line.starts_with("roster")).map(|line| format!("{line}\n")).collect();
    fs::write(&profile, without).unwrap();
    let (exit, object) = office.json(&["verify", "@roster.note"]);
    assert_eq!((exit, object["result"].as_str()), (Exit::SignedOnly, Some("untied")), "{object}");
    let (exit, object) = office.json(&["show"]);
    assert_eq!((exit, &object["error"]["id"]), (Exit::Usage, &"no-roster-file".into()));
}

#[test]
fn roster_sign_rejects_unfit_authorities_and_lists_members() {
    let office = Secretariat::new();
    let expired = {
        let authority = crate::pki::Authority::changed("tn.rabat.example", |params| {
            let now = time::OffsetDateTime::now_utc();
            (params.not_before, params.not_after) = (now - time::Duration::days(9), now - time::Duration::days(1));
        });
        authority.unwrap().certificate()
    };
    let leaf = crate::pki::Authority::new("ma.rabat.example").unwrap().issue("node", &[]).unwrap().certificate;
    let change = |text: String| {
        let mut text: barid_core::roster::text::RosterText = toml::from_str(&text).unwrap();
        text.members[0].ca_certificates.push(leaf.clone());
        text.members[1].ca_certificates.push(expired.clone());
        toml::to_string(&text).unwrap()
    };
    office.draft("next.toml", change);
    for trust in [&["--trust", "@roster.note"][..], &[]] {
        let sign = [&["sign", "@next.toml", "--key", "@governors/1.key"], trust].concat();
        for lang in Lang::ALL {
            let (result, text) = office.run_command(lang, &sign);
            assert_eq!(result.unwrap_err().id(), "roster-authorities", "{text}");
            for part in ["members.ma.ca_certificates[1]", "members.tn.ca_certificates[1]", "CA true", "expired on"] {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
    }
    assert!(!office.path("next.note").exists());

    // Signed with a tool that does not check the authorities.
    let (_, note) = Roster::read(&read(&office.path("roster.note"))).unwrap();
    let key = |n: u8| {
        let text = fs::read_to_string(office.path(&format!("governors/{n}.key"))).unwrap();
        barid_core::feed::note::SigningKey::from_text(text.trim_end()).unwrap()
    };
    let text = change(note.text);
    let signatures = [1, 2].map(|n| key(n).sign_text(&text).unwrap()).to_vec();
    fs::write(office.path("signed.note"), barid_core::feed::note::Note { text, signatures }.to_bytes()).unwrap();
    let mut roster = fs::read_to_string(office.path("ma/clients/operator/client.toml")).unwrap();
    roster = roster.lines().filter(|line| !line.starts_with("roster")).collect::<Vec<_>>().join("\n");
    fs::write(office.path("ma/clients/operator/client.toml"), roster).unwrap();
    let (exit, object) = office.json(&["verify", "@signed.note"]);
    assert_eq!((exit, object["result"].as_str()), (Exit::Invalid, Some("invalid")), "{object}");
    let reason = object["reason"].as_str().unwrap();
    assert!(reason.contains("members.ma.ca_certificates[1]") && reason.contains("members.tn.ca_certificates[1]"));
}

#[test]
fn roster_sign_rejects_authority_with_invalid_self_signature() {
    let office = Secretariat::new();
    let params = || {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        params
    };
    let key = || rcgen::KeyPair::generate().unwrap();
    let pem = params().signed_by(&key(), &rcgen::Issuer::new(params(), key())).unwrap().pem();
    office.draft("next.toml", |text| {
        let mut text: barid_core::roster::text::RosterText = toml::from_str(&text).unwrap();
        text.members[0].ca_certificates.push(pem);
        toml::to_string(&text).unwrap()
    });
    let sign = ["sign", "@next.toml", "--key", "@governors/1.key", "--trust", "@roster.note"];
    let (result, text) = office.run_command(Lang::En, &sign);
    assert_eq!(result.unwrap_err().id(), "roster-authorities", "{text}");
    for part in ["members.ma.ca_certificates[1]", "its own key has not signed it"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!office.path("next.note").exists());
}

#[test]
fn roster_sign_rejects_readable_governor_key() {
    use std::os::unix::fs::PermissionsExt;
    let office = Secretariat::new();
    office.draft("next.toml", |text| text);
    fs::set_permissions(office.path("governors/1.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let (result, text) = office.run_command(Lang::En, &["sign", "@next.toml", "--key", "@governors/1.key"]);
    assert_eq!(result.unwrap_err().exit_code(), Exit::Usage);
    assert!(text.contains("chmod 600"), "{text}");
}
