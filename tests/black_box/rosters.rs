//! The secretariat writes the next roster, the governors sign it in turn, and a member accepts it
//! because it follows the trusted one.

use std::fs;

use serde_json::Value;

use crate::world::{barid, text};

struct Office(tempfile::TempDir);

impl Office {
    fn new() -> Self {
        let office = Self(tempfile::tempdir().unwrap());
        let made = barid(&[
            "exchange",
            "init",
            "--dir",
            &office.file(""),
            "--count",
            "3",
            "--observers",
            "x-au",
            "--partners",
            "x-exercise",
        ]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        office
    }

    fn file(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// Returns the exit code and the JSON output.
    fn roster(&self, args: &[&str]) -> (Option<i32>, Value) {
        let args: Vec<String> = args
            .iter()
            .map(|arg| arg.strip_prefix('@').map_or_else(|| (*arg).to_owned(), |name| self.file(name)))
            .collect();
        let args: Vec<&str> = ["--json", "roster"].into_iter().chain(args.iter().map(String::as_str)).collect();
        let output = barid(&args);
        let printed = if output.stdout.is_empty() { &output.stderr } else { &output.stdout };
        (output.status.code(), serde_json::from_slice(printed).unwrap_or_else(|_| panic!("{}", text(printed))))
    }
}

#[test]
fn next_roster_is_drafted_signed_and_verified() {
    let office = Office::new();
    let (_, object) = office.roster(&["show", "@roster.note"]);
    let kinds: Vec<&str> =
        object["members"].as_array().unwrap().iter().filter_map(|member| member["kind"].as_str()).collect();
    assert_eq!(kinds, ["full", "full", "full", "observer", "partner"]);
    assert_eq!((&object["quorum"], &object["signatures"][1]["valid"]), (&2.into(), &true.into()));

    // The secretariat writes version 2: the observer leaves, and nothing else changes.
    let note = fs::read_to_string(office.file("roster.note")).unwrap();
    let (first, _) = note.split_once("\n\n— ").unwrap();
    let mut draft: toml::Table = first.parse().unwrap();
    draft["version"] = 2.into();
    draft.insert("previous".into(), object["textHash"].as_str().unwrap().into());
    draft["members"].as_array_mut().unwrap().retain(|member| member["code"].as_str() != Some("x-au"));
    fs::write(office.file("second.toml"), draft.to_string()).unwrap();
    assert_eq!(office.roster(&["verify", "@second.toml", "--trust", "@roster.note"]).0, Some(12));

    // Two governors sign, each on their own machine.
    let first_governor = ["sign", "@second.toml", "--key", "@governors/1.key", "--trust", "@roster.note"];
    let (code, signed) = office.roster(&first_governor);
    assert_eq!((code, &signed["complete"]), (Some(0), &false.into()), "{signed}");
    let (code, half) = office.roster(&["verify", "@second.note", "--trust", "@roster.note"]);
    assert_eq!((code, &half["governorsBefore"]["found"]), (Some(12), &1.into()), "{half}");
    let second_governor = ["sign", "@second.note", "--key", "@governors/2.key", "--trust", "@roster.note"];
    assert_eq!(office.roster(&second_governor).0, Some(2), "not over the draft");
    let (code, signed) = office.roster(&[&second_governor[..], &["--in-place"]].concat());
    assert_eq!((code, &signed["complete"]), (Some(0), &true.into()), "{signed}");

    let (code, verified) = office.roster(&["verify", "@second.note", "--trust", "@roster.note"]);
    assert_eq!((code, &verified["result"]), (Some(0), &"follows".into()), "{verified}");
    let damaged = fs::read_to_string(office.file("second.note")).unwrap().replacen("Maroc", "Maric", 1);
    fs::write(office.file("damaged.note"), damaged).unwrap();
    let (code, rejected) = office.roster(&["verify", "@damaged.note", "--trust", "@roster.note"]);
    assert_eq!((code, &rejected["signatures"][0]["valid"]), (Some(12), &false.into()), "{rejected}");

    // Settled facts of version 1 cannot be removed by signatures.
    let keys = draft["members"].as_array_mut().unwrap()[0]["keys"].as_array_mut().unwrap();
    keys.retain(|key| key.get("epoch").and_then(toml::Value::as_integer) != Some(2));
    fs::write(office.file("taking-back.toml"), draft.to_string()).unwrap();
    let (code, rejected) =
        office.roster(&["sign", "@taking-back.toml", "--key", "@governors/1.key", "--trust", "@roster.note"]);
    assert_eq!(code, Some(1));
    assert!(rejected["error"]["why"].as_str().unwrap().contains("epoch 2"), "{rejected}");
}

#[test]
fn node_with_retired_key_does_not_start() {
    let office = Office::new();
    let note = fs::read_to_string(office.file("roster.note")).unwrap();
    let mut draft: toml::Table = note.split_once("\n\n— ").unwrap().0.parse().unwrap();
    let member = &mut draft["members"].as_array_mut().unwrap()[0];
    assert_eq!(member["code"].as_str(), Some("ma"));
    let mirror = member["keys"].as_array_mut().unwrap()[2].as_table_mut().unwrap();
    mirror.insert("retired".into(), toml::Value::Datetime("2025-06-01T00:00:00Z".parse().unwrap()));
    fs::write(office.file("ma/roster.toml"), draft.to_string()).unwrap();
    let sign = ["sign", "@ma/roster.toml", "--key", "@governors/1.key", "--key", "@governors/2.key", "--force"];
    assert_eq!(office.roster(&sign).0, Some(0));
    let node = barid(&["--json", "node", "--bootstrap", "--config", &office.file("ma/node.toml")]);
    assert_eq!(node.status.code(), Some(1));
    let printed = text(&node.stderr);
    assert!(printed.contains("mirror.key") && printed.contains("retired or stolen"), "{printed}");
}
