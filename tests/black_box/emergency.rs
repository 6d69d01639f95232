//! Load of a real emergency: a member comes back to a backlog of hours while fifty officers publish
//! at once. Nothing is lost, nothing is denied, and nothing is held as a digest.
//!
//! `BARID_BACKLOG=200000` makes the backlog as long as six hours of ten bulletins a second.

use std::fs;
use std::time::Duration;

use barid::cli::{Profile, channel};
use barid::pki::Authority;
use barid::rpc::focal_point_client::FocalPointClient;
use barid_core::proto;
use barid_core::proto::publish_result::Outcome;
use futures::StreamExt as _;
use futures::future::join_all;
use tonic::transport::Channel;

use crate::world::{World, example, until_within};

const OFFICERS: usize = 50;
/// Bulletins of each officer, one after the other.
const EACH: usize = 6;
const LONG: Duration = Duration::from_secs(600);

fn backlog() -> usize {
    std::env::var("BARID_BACKLOG").ok().and_then(|count| count.parse().ok()).unwrap_or(5_000)
}

fn client(world: &World, name: &str) -> FocalPointClient<Channel> {
    let profile = Profile::read(&world.folder("ma").join("clients").join(name).join("client.toml")).unwrap();
    FocalPointClient::new(channel(&profile).unwrap())
}

fn request(change: impl Fn(&mut proto::Header)) -> proto::PublishRequest {
    let mut draft: proto::Draft = serde_json::from_value(example("stolen-passport.fr.json", |_| ())).unwrap();
    change(draft.header.as_mut().unwrap());
    proto::PublishRequest { draft: Some(draft), ..Default::default() }
}

/// Creates certificates and grants for fifty posts of one member.
fn enrol_officers(world: &World) {
    let (folder, domain) = (world.folder("ma"), "ma.rabat.example");
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let authority = Authority::load(domain, &read("tls/ca.pem"), &read("offline/ca.key")).unwrap();
    let mut access = read("access.toml");
    let police = folder.join("clients/police-hq");
    for number in 0..OFFICERS {
        let path = format!("focal-point/post-{number}");
        let issued = authority.issue(&path, &[]).unwrap();
        let own = folder.join(format!("clients/post-{number}"));
        fs::create_dir(&own).unwrap();
        fs::copy(police.join("client.toml"), own.join("client.toml")).unwrap();
        fs::copy(police.join("client.key"), own.join("client.key")).unwrap();
        fs::write(own.join("client.pem"), issued.certificate.as_bytes()).unwrap();
        // Written into a copy of the key file, to preserve its permissions.
        fs::write(own.join("client.key"), issued.key.as_bytes()).unwrap();
        access +=
            &format!("\n[[grant]]\npath = \"{path}\"\nroles = [\"focal-point\"]\nworking_groups = [\"security\"]\n");
    }
    fs::write(folder.join("access.toml"), access).unwrap();
}

async fn publish_backlog(world: &World, count: usize) {
    let mut client = client(world, "police-hq");
    let requests = futures::stream::iter(0..count as u64)
        .map(|number| proto::PublishStreamRequest { request: number, publish: Some(request(|_| ())) });
    let mut responses = client.publish_stream(requests).await.unwrap().into_inner();
    let mut published = 0;
    while published < count {
        let response = responses.message().await.unwrap().expect("every request is answered");
        for result in response.results {
            assert!(matches!(result.outcome, Some(Outcome::Published(_))), "{:?}", result.outcome);
            published += 1;
        }
    }
}

/// Publishes as one officer. Half of the officers wait until the other member has stored each
/// bulletin in full.
async fn officer(world: &World, number: usize) {
    let mut client = client(world, &format!("post-{number}"));
    for _ in 0..EACH {
        let mut request = request(|header| header.urgency = "Immediate".into());
        if number.is_multiple_of(2) {
            request.wait_for =
                Some(proto::WaitFor { members: vec!["tn".into()], timeout_ms: 300_000, ..Default::default() });
        }
        let waits = request.wait_for.is_some();
        let response = client.publish(request).await.expect("nothing is denied").into_inner();
        assert!(response.wait_reached, "{number}");
        assert!(!waits || response.stored.iter().any(|stored| stored.member == "tn"));
    }
}

#[test]
fn backlog_and_fifty_publishers_lose_nothing_and_are_not_denied() {
    let mut world = World::prepared(&["ma", "tn"], "info", |_, config| config);
    enrol_officers(&world);
    world.run("ma");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(publish_backlog(&world, backlog()));
    world.run("tn");
    runtime.block_on(async { join_all((0..OFFICERS).map(|number| officer(&world, number))).await });
    let all = (backlog() + OFFICERS * EACH).to_string();
    until_within(LONG, "tn holds all in full", || {
        let status = world.json("tn", "operator", &["status"]).remove(0);
        let peer = status["peers"].as_array().unwrap().iter().find(|peer| peer["member"] == "ma").cloned().unwrap();
        peer["feed"]["size"] == all.as_str() && peer["feed"]["disclosed"] == all.as_str()
    });
    for member in ["ma", "tn"] {
        let status = world.json(member, "operator", &["status"]).remove(0);
        let alarms = status["alarms"].as_array().cloned().unwrap_or_default();
        assert!(alarms.is_empty(), "{member}: {alarms:?}");
        let denied: Vec<_> =
            status["budgets"].as_array().unwrap().iter().filter(|budget| budget["denied"].is_string()).collect();
        assert!(denied.iter().all(|budget| budget["denied"] == "0"), "{member}: {denied:?}");
    }
}
