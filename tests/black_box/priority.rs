//! A long outage. Afterwards an alert arrives before the whole backlog, exactly once, and its
//! publisher is informed.

use std::time::Instant;

use serde_json::Value;

use crate::low_bandwidth::Satellite;
use crate::world::{World, barid, example, text, until};

/// Reports that Tunis misses before the alert, and the same number after it.
const MISSED: usize = 40;

/// Writes an alert that is not urgent and does not compress, so that it occupies the link.
fn report(world: &World, number: usize) -> String {
    let draft = example("stolen-passport.fr.json", |draft| {
        let noise = (0..60).map(|n| format!("{:016x}", (number * 1_000 + n).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        draft["body"]["texts"][0]["description"] = noise.collect::<String>().into();
        draft["header"]["urgency"] = "Expected".into();
        draft["header"]["severity"] = "Moderate".into();
    });
    world.draft(&format!("report-{number}.json"), &draft)
}

fn size_of_ne(world: &World) -> u64 {
    world.feeds("tn").get("ne.rabat.example/feed/1").map_or(0, |(size, _)| size.parse().unwrap())
}

#[test]
fn alert_overtakes_backlog_after_long_outage_with_proof() {
    let satellite = Satellite::launch();
    let mut world = World::configured("info", satellite.behind("ne", "tn", "auto"));
    until("linked", || world.linked(&["ne", "tn"]));
    // No other member can relay.
    ["ma", "ly"].into_iter().for_each(|member| world.kill(member));
    satellite.cut();
    for number in 0..MISSED {
        world.json("ne", "police-hq", &["publish", &report(&world, number)]);
    }
    let alert = example("stolen-passport.fr.json", |draft| draft["header"]["urgency"] = "Immediate".into());
    let alert = world.draft("alert.json", &alert);
    let published = world.json("ne", "police-hq", &["publish", &alert]).remove(0);
    let id = published["receipt"]["id"].as_str().unwrap().to_owned();
    for number in MISSED..2 * MISSED {
        world.json("ne", "police-hq", &["publish", &report(&world, number)]);
    }

    satellite.restore();
    let begun = Instant::now();
    until("Tunis has the alert", || world.client("tn", "police-hq", &["show", &format!("ne/{id}")]).status.success());
    println!("priority.low_bandwidth.alert {:.1} s", begun.elapsed().as_secs_f64());
    let held = size_of_ne(&world);
    assert!(held <= MISSED as u64, "it arrived in order: {held}");
    // Tunis can export evidence at once, from the proof that came with the entry.
    let evidence = world.folder("tn").join("alert.barid");
    let evidence = evidence.to_str().unwrap();
    let exported = world.client("tn", "auditor", &["evidence", &format!("ne/{id}"), "-o", evidence]);
    assert!(exported.status.success(), "{}", text(&exported.stderr));
    let judged = barid(&["verify", evidence, "--roster", world.roster().to_str().unwrap()]);
    assert_eq!(judged.status.code(), Some(10), "signed only: {}", text(&judged.stdout));

    until("Niamey knows it", || {
        let bulletin = world.json("ne", "police-hq", &["show", &format!("ne/{id}")]).remove(0);
        bulletin["stored"].as_array().is_some_and(|stored| stored.iter().any(|by| by["member"] == "tn"))
    });
    until("Tunis has the rest", || size_of_ne(&world) == 2 * MISSED as u64 + 1);
    println!("priority.low_bandwidth.rest {:.1} s", begun.elapsed().as_secs_f64());
    assert_eq!(world.feeds("tn")["ne.rabat.example/feed/1"], world.feeds("ne")["ne.rabat.example/feed/1"]);
    let history = world.json("tn", "police-hq", &["history", "--member", "ne", "--limit", "1000"]);
    let place = |delivery: &Value| {
        (delivery["index"].as_str().unwrap_or("0").to_owned(), delivery["offset"].as_str().unwrap().to_owned())
    };
    let (mut indexes, mut offsets): (Vec<_>, Vec<_>) = history.iter().map(place).unzip();
    for numbers in [&mut indexes, &mut offsets] {
        numbers.sort_unstable();
        numbers.dedup();
    }
    assert_eq!((indexes.len(), offsets.len()), (2 * MISSED + 1, 2 * MISSED + 1), "each once");
}
