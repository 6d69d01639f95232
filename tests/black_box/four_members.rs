//! Rabat, Tripoli, Tunis and Niamey exchange bulletins.

use serde_json::json;

use crate::world::{MEMBERS, World, example, holds, text, until};

#[test]
fn publisher_sees_bulletin_stored_at_recipient() {
    let mut world = World::start();
    let alert = world.draft("alert.json", &example("stolen-passport.fr.json", |_| ()));
    let published = world.json("ne", "police-hq", &["publish", &alert, "--wait-for", "tn"]);
    assert_eq!(published[0]["waitReached"], true);
    let holders: Vec<_> = published[0]["stored"].as_array().unwrap().iter().map(|by| by["member"].clone()).collect();
    assert!(holders.contains(&json!("tn")), "{holders:?}");
    let id = published[0]["receipt"]["id"].as_str().unwrap().to_owned();
    let history = world.json("tn", "police-hq", &["history", "--topic", "security.>"]);
    assert!(history[0].to_string().contains(&id), "{history:?}");

    // Tunis loses power. Niamey's next alert waits for it, and arrives exactly once when Tunis is
    // back.
    world.kill("tn");
    let another = world.draft("another.json", &example("stolen-passport.fr.json", |_| ()));
    let late = world.client("ne", "police-hq", &["publish", &another, "--wait-for", "tn", "--timeout", "2"]);
    assert_eq!(late.status.code(), Some(3), "{}{}", text(&late.stdout), text(&late.stderr));
    world.run("tn");
    until("all feeds are equal everywhere", || MEMBERS.iter().all(|member| world.feeds(member) == world.feeds("ne")));
    let history = world.json("tn", "police-hq", &["history", "--member", "ne"]);
    assert_eq!(history.len(), 2, "{history:?}");

    // The index database is derived data: deleted, it is rebuilt.
    world.kill("tn");
    std::fs::remove_dir_all(world.folder("tn").join("data/db")).unwrap();
    world.run("tn");
    assert_eq!(world.json("tn", "police-hq", &["history", "--member", "ne"]).len(), 2);
}

#[test]
fn restricted_bulletin_is_stored_only_at_recipient() {
    let world = World::start();
    let token = format!("TOKEN-{}-{:?}", std::process::id(), std::time::Instant::now());
    let token = token.replace(|c: char| !c.is_ascii_alphanumeric(), "");
    let secret = example("stolen-passport.fr.json", |draft| {
        draft["header"]["handling"]["tlp"] = json!("TLP:RED");
        draft["header"]["handling"]["releasableTo"] = json!(["tn"]);
        draft["body"]["texts"][0]["description"] = json!(token);
    });
    let secret = world.draft("secret.json", &secret);
    let published = world.json("ma", "police-hq", &["publish", &secret, "--wait-for", "tn"]);
    assert_eq!(published[0]["waitReached"], true);
    until("all feeds are equal everywhere", || MEMBERS.iter().all(|member| world.feeds(member) == world.feeds("ma")));
    assert_eq!(world.json("tn", "police-hq", &["history"]).len(), 1);
    assert!(holds(&world.folder("tn").join("data"), token.as_bytes()).is_some());
    for other in ["ly", "ne"] {
        assert_eq!(world.json(other, "police-hq", &["history"]).len(), 0);
        assert_eq!(holds(&world.folder(other), token.as_bytes()), None);
    }
    // Agencies cannot read RED, in Tunis neither; a call without a grant is denied.
    assert_eq!(world.json("tn", "border-post", &["history"]).len(), 0);
    let rejected = world.client("ma", "customs-hq", &["publish", &secret]);
    assert_eq!(rejected.status.code(), Some(1), "{}", text(&rejected.stderr));
    // Operators can read bulletins about the network, and nothing else.
    assert_eq!(world.json("ma", "operator", &["history"]).len(), 0);
    let rejected = world.client("ma", "operator", &["publish", &secret]);
    assert_eq!(rejected.status.code(), Some(1), "{}", text(&rejected.stderr));
}
