//! A publisher waits until other members have stored its bulletin in full, attested by custody
//! notes. A cosignature does not suffice.

use serde_json::Value;

use crate::world::{World, example, text, until};

fn holders(response: &Value) -> Vec<String> {
    let mut members: Vec<String> = response["stored"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|by| Some(by["member"].as_str()?.to_owned()))
        .collect();
    members.sort();
    members
}

#[test]
fn member_with_other_topic_cosigns_but_never_stores() {
    // Niamey fetches content of customs only.
    let world = World::configured("info", |member, config| match member {
        "ne" => config.replace("topics = []", "topics = [\"customs.>\"]"),
        _ => config,
    });
    let alert = world.draft("alert.json", &example("stolen-passport.fr.json", |_| ()));
    let published = &world.json("ma", "police-hq", &["publish", &alert, "--wait-for", "2"])[0];
    assert_eq!(published["waitReached"], true);
    assert_eq!(holders(published), ["ly", "tn"]);
    let bulletin = format!("ma/{}", published["receipt"]["id"].as_str().unwrap());
    until("Niamey has cosigned that it holds the log", || {
        let status = world.json("ma", "operator", &["status"]).remove(0);
        let niamey = status["peers"].as_array().unwrap().iter().find(|peer| peer["member"] == "ne").cloned().unwrap();
        niamey["cosignedSize"] == "1" && niamey["custodySize"] == "1"
    });
    assert_eq!(holders(&world.json("ma", "police-hq", &["show", &bulletin])[0]), ["ly", "tn"]);

    // A wait for all three, or for Niamey by name, times out. The result names the members that
    // have stored it, and that the wait was not reached.
    for wanted in ["3", "ne", "tn,ne"] {
        let again = world.draft("again.json", &example("stolen-passport.fr.json", |_| ()));
        let late = world.client("ma", "police-hq", &["publish", &again, "--wait-for", wanted, "--timeout", "3"]);
        assert_eq!(late.status.code(), Some(3), "{}{}", text(&late.stdout), text(&late.stderr));
        let response: Value = serde_json::from_slice(&late.stdout).unwrap();
        assert_ne!(response["waitReached"], true, "{response}");
        assert_eq!(holders(&response), ["ly", "tn"], "{response}");
    }

    // It stores content of the topics that it follows.
    let seizure = world.draft("seizure.json", &example("seizure-report.json", |_| ()));
    let published = &world.json("ma", "customs-hq", &["publish", &seizure, "--wait-for", "ne"])[0];
    assert_eq!(published["waitReached"], true);
    assert!(holders(published).contains(&"ne".to_owned()));
}
