//! An auditor exports evidence of a bulletin, and a court verifies it with nothing but a roster.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use barid_core::evidence::{Outcome, verify};
use barid_core::roster::Roster;
use serde_json::{Value, json};

use crate::world::{World, barid, example, text, until};

/// A verifier outside of all members: a folder with files and a roster, no profile, no network.
struct Court {
    folder: tempfile::TempDir,
}

impl Court {
    fn new(world: &World) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(world.roster(), folder.path().join("roster.note")).unwrap();
        Self { folder }
    }

    fn file(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Returns the exit code and the JSON output.
    fn verify(&self, name: &str) -> (Option<i32>, Value) {
        let judged = barid(&["--json", "verify", &self.file(name), "--roster", &self.file("roster.note")]);
        (judged.status.code(), serde_json::from_slice(&judged.stdout).unwrap_or_default())
    }
}

/// Exports evidence as a member's auditor until enough others have cosigned.
fn witnessed(world: &World, member: &str, id: &str, file: &str) -> Value {
    let mut json = Value::Null;
    until(&format!("evidence from {member} is witnessed"), || {
        json = world.json(member, "auditor", &["evidence", id, "-o", file, "--force"]).remove(0);
        json["outcome"] == "witnessed"
    });
    json
}

fn publish(world: &World, name: &str, change: impl Fn(&mut Value), wait_for: &[&str]) -> String {
    let draft = world.draft(name, &example("stolen-passport.fr.json", change));
    let args = [&["publish", draft.as_str()], wait_for].concat();
    let published = world.json("ma", "police-hq", &args);
    published[0]["receipt"]["id"].as_str().unwrap().to_owned()
}

#[test]
fn evidence_of_cleared_member_verifies_offline() {
    let world = World::start();
    let court = Court::new(&world);
    let red = |draft: &mut Value| {
        draft["header"]["handling"]["tlp"] = json!("TLP:RED");
        draft["header"]["handling"]["releasableTo"] = json!(["tn"]);
        draft["body"]["texts"][0]["headline"] = json!("EXERCICE : pour Tunis seule");
    };
    publish(&world, "before.json", |_| (), &[]);
    let id = publish(&world, "red.json", red, &["--wait-for", "tn"]);
    publish(&world, "after.json", |_| (), &["--wait-for", "3"]);

    for member in ["ma", "tn"] {
        let json = witnessed(&world, member, &format!("ma/{id}"), &court.file(&format!("{member}.barid")));
        assert!(json["cosigners"].as_array().unwrap().len() >= 2, "{json}");
        assert_eq!(json["custody"], json!(["tn"]), "{json}");
    }
    // By id alone, with another file name, and never over an existing file.
    let profile = world.folder("tn").join("clients/police-hq/client.toml");
    let here = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_barid"));
        command.current_dir(court.folder.path()).env("BARID_LANG", "en").env("BARID_PROFILE", &profile);
        command.args(args).output().unwrap()
    };
    let written = here(&["evidence", &id]);
    assert_eq!(written.status.code(), Some(0), "{}", text(&written.stderr));
    assert!(text(&written.stdout).contains("needed: 2"), "{}", text(&written.stdout));
    let named = fs::read(court.file(&format!("{id}.barid"))).unwrap();
    let again = here(&["evidence", &id]);
    assert_eq!(again.status.code(), Some(2), "{}", text(&again.stderr));
    assert_eq!(fs::read(court.file(&format!("{id}.barid"))).unwrap(), named);
    let piped = here(&["evidence", &id, "-o", "-"]);
    assert_eq!(verify(&piped.stdout, &roster(&court)).outcome, Outcome::Witnessed);

    // A client without clearance gets nothing. A denied request for a known bulletin is audited.
    let file = court.file("refused.barid");
    for (member, name, error) in [
        ("ly", "auditor", "no-such-bulletin"),
        ("ne", "police-hq", "no-such-bulletin"),
        ("tn", "border-post", "no-such-bulletin"),
        ("tn", "customs-hq", "no-such-bulletin"),
        ("tn", "operator", "permission-denied"),
    ] {
        let rejected = world.client(member, name, &["evidence", &format!("ma/{id}"), "-o", &file]);
        assert_eq!(rejected.status.code(), Some(1), "{member} {name}: {}", text(&rejected.stderr));
        let json: Value = serde_json::from_slice(&rejected.stderr).unwrap();
        assert_eq!(json["error"]["id"], error, "{member} {name}");
        assert!(!Path::new(&file).exists());
    }
    let log = fs::read_to_string(world.folder("tn").join("node.log")).unwrap();
    for who in ["agency/border-post", "focal-point/customs-hq"] {
        let recorded = |line: &&str| {
            ["call-denied", "not-cleared", "Audit.ExportEvidence", who].iter().all(|part| line.contains(part))
        };
        assert_eq!(log.lines().filter(recorded).count(), 1, "{who}");
    }
    assert!(log.lines().any(|line| line.contains("evidence") && line.contains("exported") && line.contains("auditor")));

    // All nodes are gone.
    drop(world);
    for member in ["ma", "tn"] {
        let (exit, json) = court.verify(&format!("{member}.barid"));
        assert_eq!((exit, &json["result"]), (Some(0), &json!("witnessed")), "{json}");
        assert_eq!((&json["member"], &json["issuer"], &json["id"]), (&json!("ma"), &json!("police-hq"), &json!(id)));
        assert_eq!(json["custody"][0]["member"], "tn");
        assert_eq!(json["body"]["texts"][0]["headline"], "EXERCICE : pour Tunis seule");
    }
    for (lang, phrases) in [
        ("en", ["WITNESSED", "ma (Morocco)", "police-hq", "does not prove"]),
        ("fr", ["ATTESTÉ", "ma (Maroc)", "police-hq", "ne prouve pas"]),
        ("ar", ["مشهود", "المغرب", "police-hq", "ما لا يثبته"]),
    ] {
        let (file, roster) = (court.file("tn.barid"), court.file("roster.note"));
        let output = barid(&["verify", &file, "--roster", &roster, "--lang", lang]);
        let output = text(&output.stdout);
        assert!(
            phrases.iter().all(|phrase| output.contains(phrase)) && output.contains("EXERCICE : pour Tunis seule"),
            "{output}"
        );
    }
    let stdin = File::open(court.file("ma.barid")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_barid"));
    let output = command.args(["verify", "-", "--roster", &court.file("roster.note")]).stdin(stdin).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));

    tampered(&court);
}

/// Checks that every byte of a file counts.
fn tampered(court: &Court) {
    let file = fs::read(court.file("ma.barid")).unwrap();
    let roster = roster(court);
    assert_eq!(verify(&file, &roster).outcome, Outcome::Witnessed);
    let flipped = |at: usize| {
        let mut altered = file.clone();
        altered[at] ^= 1 << (at % 8);
        altered
    };
    for at in 0..file.len() {
        assert_eq!(verify(&flipped(at), &roster).exit_code(), 12, "byte {at} of {}", file.len());
    }
    for at in (0..file.len()).step_by(file.len() / 12) {
        fs::write(court.file("altered.barid"), flipped(at)).unwrap();
        let (exit, json) = court.verify("altered.barid");
        assert_eq!((exit, &json["result"]), (Some(12), &json!("invalid")), "byte {at}: {json}");
        assert!(json["header"].is_null() && !json["reason"].as_str().unwrap().is_empty(), "{json}");
    }
    fs::write(court.file("altered.barid"), &file[..file.len() / 2]).unwrap();
    assert_eq!(court.verify("altered.barid").0, Some(12));
    // The roster of another exchange with the same name; no roster; no file.
    let other = court.folder.path().join("other");
    let made = barid(&["exchange", "init", "--dir", other.to_str().unwrap()]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let judge = |args: &[&str]| barid(&[&["verify"], args].concat()).status.code();
    assert_eq!(judge(&[&court.file("ma.barid"), "--roster", &court.file("other/roster.note")]), Some(12));
    assert_eq!(judge(&[&court.file("ma.barid"), "--roster", &court.file("ma.barid")]), Some(2));
    assert_eq!(judge(&[&court.file("none.barid"), "--roster", &court.file("roster.note")]), Some(2));
}

fn roster(court: &Court) -> Roster {
    Roster::read(&fs::read(court.file("roster.note")).unwrap()).unwrap().0
}

#[test]
fn evidence_without_cosignatures_is_signed_only() {
    let mut world = World::start();
    let court = Court::new(&world);
    for other in ["ly", "tn", "ne"] {
        world.kill(other);
    }
    let id = publish(&world, "alone.json", |_| (), &[]);
    let json = world.json("ma", "auditor", &["evidence", &id, "-o", &court.file("alone.barid")]).remove(0);
    assert_eq!((&json["outcome"], &json["cosigners"]), (&json!("signed-only"), &Value::Null), "{json}");
    let (exit, json) = court.verify("alone.barid");
    assert_eq!((exit, &json["result"], &json["counted"]), (Some(10), &json!("signed-only"), &json!(0)), "{json}");
    for other in ["ly", "tn"] {
        world.run(other);
    }
    witnessed(&world, "ly", &id, &court.file("later.barid"));
    assert_eq!(court.verify("later.barid").0, Some(0));
}
