//! Tests that the files of development exchanges can be used.
#![allow(clippy::unwrap_used)]
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use barid_core::feed::note::SigningKey;
use barid_core::roster::{MemberKind, RosterChain};

use super::*;
use crate::access::Access;
use crate::cli::Profile;
use crate::config::NodeConfig;

#[test]
fn development_exchange_is_consistent() {
    let folder = tempfile::tempdir().unwrap();
    let member = |code: &str, port| DevelopMember::local(code.parse().unwrap(), port);
    let members = vec![member("ma", 7400), member("tn", 7410)];
    let options = DevelopOptions::new(folder.path().to_owned(), "rabat.example".parse().unwrap(), members);
    develop(&options).unwrap();
    let chain = RosterChain::start(&fs::read(folder.path().join("roster.note")).unwrap()).unwrap();
    for code in ["ma", "tn"] {
        let config = NodeConfig::load(&folder.path().join(code).join("node.toml")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&config.text.keys), 0o700);
        for key in fs::read_dir(&config.text.keys).unwrap() {
            assert_eq!(mode(&key.unwrap().path()), 0o600);
        }
        let keys = chain.newest().feed_keys(&config.feed);
        let held = SigningKey::from_text(&fs::read_to_string(config.text.keys.join("feed.key")).unwrap()).unwrap();
        assert_eq!(keys, [held.verifier().clone()]);
        let access = Access::load(&config.text.access).unwrap();
        assert!(access.grant("focal-point/police-hq").unwrap().may_publish_in("security"));
        let profile = Profile::read(&folder.path().join(code).join("clients/police-hq/client.toml")).unwrap();
        assert!(profile.certificate.is_file() && profile.ca.is_file() && profile.roster.unwrap().is_file());
    }
    assert!(matches!(develop(&options), Err(PkiError::Exists(_))));
}
#[test]
fn member_folder_is_complete_without_offline_keys() {
    let (made, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let place = |name: &str, port| Place { bind: name.into(), host: name.into(), port };
    let member = |code: &str| DevelopMember {
        exchange: place(&format!("{code}.rabat.example"), 7400),
        api: place(&format!("api.{code}.rabat.example"), 7401),
        ..DevelopMember::local(code.parse().unwrap(), 0)
    };
    let own = fs::metadata(made.path()).unwrap();
    let owner = Owner { user: own.uid(), group: own.gid() };
    let members = vec![member("ma"), member("tn")];
    develop(&DevelopOptions {
        offline: Some(made.path().join("offline")),
        owner: Some(owner),
        ..DevelopOptions::new(made.path().to_owned(), "rabat.example".parse().unwrap(), members)
    })
    .unwrap();
    for existing in ["governors/1.key", "tn/ca.key", "tn/feed-2.key"] {
        assert!(made.path().join("offline").join(existing).is_file(), "{existing}");
    }

    // The folder of one member is moved to another place.
    let home = elsewhere.path().join("barid");
    fs::rename(made.path().join("tn"), &home).unwrap();
    assert!(!home.join("offline").exists());
    let config = NodeConfig::load(&home.join("node.toml")).unwrap();
    assert_eq!(config.text.listen_exchange.as_deref(), Some("tn.rabat.example:7400"));
    assert_eq!(config.text.listen_api, "api.tn.rabat.example:7401");
    let chain = RosterChain::start(&fs::read(&config.text.roster).unwrap()).unwrap();
    let listed = chain.newest().member(&"tn".parse().unwrap()).unwrap();
    assert_eq!(listed.endpoints, ["tn.rabat.example:7400"]);
    let profile = Profile::read(&home.join("clients/operator/client.toml")).unwrap();
    assert_eq!(profile.endpoint, "api.tn.rabat.example:7401");
    assert_eq!(fs::read(profile.roster.unwrap()).unwrap(), fs::read(&config.text.roster).unwrap());
}

#[test]
fn owner_parses_uid_and_gid() {
    assert_eq!("65532:0".parse(), Ok(Owner { user: 65_532, group: 0 }));
    for wrong in ["", "65532", "nobody:nogroup", "1:2:3", "-1:0"] {
        assert!(wrong.parse::<Owner>().is_err(), "{wrong}");
    }
}

#[test]
fn observers_and_partners_have_ceilings_and_no_quorum() {
    let folder = tempfile::tempdir().unwrap();
    let member = |code: &str, port, kind| DevelopMember::local(code.parse().unwrap(), port).of_kind(kind);
    let members = vec![
        member("ma", 7400, MemberKind::Full),
        member("x-au", 7410, MemberKind::Observer),
        member("x-partner", 7420, MemberKind::Partner),
    ];
    let options = DevelopOptions::new(folder.path().to_owned(), "rabat.example".parse().unwrap(), members);
    assert_eq!(options.quorum, 1);
    develop(&options).unwrap();
    let chain = RosterChain::start(&fs::read(options.roster()).unwrap()).unwrap();
    let granted = |code: &str| chain.newest().member(&code.parse().unwrap()).unwrap().ceilings.len();
    assert_eq!((granted("ma"), granted("x-au"), granted("x-partner")), (0, 1, WORKING_GROUPS.len()));
    assert_eq!(chain.newest().unfit_authorities(None, OffsetDateTime::now_utc().unix_timestamp()), []);
}

#[test]
fn invalid_roster_is_rejected_before_writing() {
    let folder = tempfile::tempdir().unwrap();
    let member = |code: &str, port| DevelopMember::local(code.parse().unwrap(), port);
    for (second, twice) in [(member("ma", 7410), "ma"), (member("tn", 7400), "127.0.0.1:7400")] {
        let members = vec![member("ma", 7400), second];
        let options = DevelopOptions::new(folder.path().to_owned(), "rabat.example".parse().unwrap(), members);
        assert!(matches!(develop(&options), Err(PkiError::Twice(found)) if found == twice));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

fn two_members(folder: &Path) -> DevelopOptions {
    let member = |code: &str, port| DevelopMember::local(code.parse().unwrap(), port);
    let members = vec![member("ma", 7400), member("tn", 7410)];
    DevelopOptions::new(folder.to_owned(), "rabat.example".parse().unwrap(), members)
}

/// Returns all files under a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn failed_init_leaves_nothing_and_can_be_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("exchange");
    // A file is in the place of the second member's folder: detected after some files are written.
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("tn"), "in the way").unwrap();
    assert!(matches!(develop(&two_members(&dir)), Err(PkiError::File { .. })));
    assert_eq!(files(&dir), [dir.join("tn")]);
    assert!(!dir.join("ma").exists(), "folders are gone, too");
    fs::remove_file(dir.join("tn")).unwrap();
    develop(&two_members(&dir)).unwrap();

    // A folder created by the run is removed again.
    let elsewhere = folder.path().join("new/deep");
    let blocked = DevelopOptions { offline: Some(dir.join("roster.note")), ..two_members(&elsewhere) };
    assert!(develop(&blocked).is_err());
    assert!(!folder.path().join("new").exists());
}

#[test]
fn existing_file_is_reported_and_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let existing = folder.path().join("tn/keys/feed.key");
    fs::create_dir_all(existing.parent().unwrap()).unwrap();
    fs::write(&existing, "a key").unwrap();
    assert!(matches!(develop(&two_members(folder.path())), Err(PkiError::Exists(path)) if path == existing));
    assert_eq!(files(folder.path()), std::slice::from_ref(&existing));
    assert_eq!(fs::read_to_string(existing).unwrap(), "a key");
}

#[test]
fn init_after_killed_run_starts_again() {
    let folder = tempfile::tempdir().unwrap();
    let options = two_members(folder.path());
    develop(&options).unwrap();
    let first = fs::read(options.roster()).unwrap();
    // The state after a kill: the list, some of the files, and another file that the list must not
    // affect.
    let (mine, other) = (folder.path().join("mine.txt"), folder.path().join("tn/keys/mirror.key"));
    fs::write(&mine, "kept").unwrap();
    let list: Vec<PathBuf> = files(folder.path());
    fs::write(folder.path().join("exchange-init.unfinished"), serde_json::to_vec(&list).unwrap()).unwrap();
    fs::remove_file(&other).unwrap();
    assert!(!options.is_made());
    develop(&options).unwrap();
    assert!(options.is_made() && other.is_file() && mine.is_file());
    assert_ne!(fs::read(options.roster()).unwrap(), first);
    assert!(!folder.path().join("exchange-init.unfinished").exists());
}

#[test]
fn invalid_members_and_hosts_are_rejected_before_writing() {
    let folder = tempfile::tempdir().unwrap();
    let member = |n: usize| DevelopMember::local(format!("x-member-{n}").parse().unwrap(), 7400);
    let exchange = || "rabat.example".parse().unwrap();
    let many = DevelopOptions::new(folder.path().to_owned(), exchange(), (0..=MEMBERS_MAX).map(member).collect());
    assert!(matches!(develop(&many), Err(PkiError::TooMany(513))));
    for host in ["", " ", "a b", "-", "ma.example:7400"] {
        let place = Place { bind: "127.0.0.1".into(), host: host.into(), port: 7400 };
        let members = vec![DevelopMember { exchange: place, ..member(1) }];
        let options = DevelopOptions::new(folder.path().to_owned(), exchange(), members);
        assert!(matches!(develop(&options), Err(PkiError::Host(found)) if found == host));
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn roster_with_maximum_members_fits() {
    let folder = tempfile::tempdir().unwrap();
    let options = two_members(folder.path());
    develop(&options).unwrap();
    let of_two = fs::read(options.roster()).unwrap().len();
    assert!(of_two / 2 * MEMBERS_MAX < barid_core::limits::ROSTER_BYTES_MAX, "{of_two} bytes for two");
}

/// Returns the key identifiers of a PEM certificate's extensions.
fn key_identifiers(path: &Path) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    use x509_parser::extensions::ParsedExtension;
    use x509_parser::prelude::FromDer;
    let der = barid_core::certificate::first_der(&fs::read_to_string(path).unwrap()).unwrap();
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(&der).unwrap();
    let (mut subject, mut authority) = (None, None);
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => subject = Some(id.0.to_vec()),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                authority = id.key_identifier.as_ref().map(|id| id.0.to_vec());
            }
            _ => {}
        }
    }
    (subject, authority)
}

#[test]
fn development_certificates_pass_openssl_strict_verification() {
    let folder = tempfile::tempdir().unwrap();
    develop(&two_members(folder.path())).unwrap();
    let tls = folder.path().join("ma/tls");
    let (of_authority, _) = key_identifiers(&tls.join("ca.pem"));
    assert!(of_authority.is_some());
    let client = folder.path().join("ma/clients/operator/client.pem");
    for leaf in [&tls.join("node.pem"), &client] {
        let (own, authority) = key_identifiers(leaf);
        assert!(own.is_some(), "{}", leaf.display());
        assert_eq!(authority, of_authority, "{}", leaf.display());
    }
    let verify = |purpose: &str, leaf: &Path| {
        let mut openssl = std::process::Command::new("openssl");
        openssl.args(["verify", "-x509_strict", "-purpose", purpose, "-crl_check", "-CAfile"]).arg(tls.join("ca.pem"));
        openssl.arg("-CRLfile").arg(tls.join("ca.crl.pem")).arg(leaf);
        openssl.output()
    };
    let pem = std::process::Command::new("openssl")
        .args(["crl", "-inform", "DER", "-in"])
        .arg(tls.join("ca.crl"))
        .arg("-out")
        .arg(tls.join("ca.crl.pem"))
        .output();
    if !pem.is_ok_and(|pem| pem.status.success()) {
        eprintln!("SKIPPED: there is no `openssl` here, so its strict check was not tried");
        return;
    }
    for (purpose, leaf) in
        [("sslserver", &tls.join("node.pem")), ("sslclient", &tls.join("node.pem")), ("sslclient", &client)]
    {
        let verified = verify(purpose, leaf).unwrap();
        assert!(verified.status.success(), "{purpose} {}: {verified:?}", leaf.display());
    }
}
