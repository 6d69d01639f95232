//! Thousands of subscribers that stop reading. They cost little and block nobody, and a node that
//! is asked to stop does.

use std::fs;
use std::time::Duration;

use barid::cli::{Profile, channel};
use barid::rpc::focal_point_client::FocalPointClient;
use barid_core::proto;
use barid_core::proto::subscribe_request::Start;
use barid_core::proto::subscribe_response::Event;
use tonic::Streaming;
use tonic::transport::Channel;

use crate::world::{DEADLINE, World, example};

/// Stopped subscribers of each of two identities: two thousand together, each below its limit.
const STOPPED_EACH: usize = 1_000;
/// Bulletins published in each round: more than fit into the buffers between the store and a
/// subscriber.
const PUBLISHED_A_ROUND: usize = 150;
/// Maximum memory growth of a further round after every subscriber has stopped: the node's window
/// of newest entries.
const GROWTH_KIB_MAX: u64 = 64 << 10;

fn client(world: &World, name: &str) -> FocalPointClient<Channel> {
    let profile = Profile::read(&world.folder("ma").join("clients").join(name).join("client.toml")).unwrap();
    FocalPointClient::new(channel(&profile).unwrap())
}

fn from_the_beginning() -> proto::SubscribeRequest {
    proto::SubscribeRequest { start: Some(Start::After(0)), ..Default::default() }
}

async fn subscribe(
    client: &mut FocalPointClient<Channel>,
    request: proto::SubscribeRequest,
) -> Streaming<proto::SubscribeResponse> {
    let mut stream = client.subscribe(request).await.unwrap().into_inner();
    // The stream is open after its first message.
    stream.message().await.unwrap().unwrap();
    stream
}

fn resident_kib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Publishes a round, and receives all of it as the live subscriber.
async fn round(publisher: &mut FocalPointClient<Channel>, live: &mut Streaming<proto::SubscribeResponse>) {
    let draft: proto::Draft = serde_json::from_value(example("stolen-passport.fr.json", |_| ())).unwrap();
    for _ in 0..PUBLISHED_A_ROUND {
        publisher.publish(proto::PublishRequest { draft: Some(draft.clone()), ..Default::default() }).await.unwrap();
    }
    let mut received = 0;
    while received < PUBLISHED_A_ROUND {
        let message = tokio::time::timeout(DEADLINE, live.message()).await.expect("in time").unwrap().unwrap();
        received += usize::from(matches!(message.event, Some(Event::Delivery(_))));
    }
}

#[test]
fn stalled_subscribers_cost_little_and_block_nobody() {
    let mut world = World::logging("info");
    // The peers are stopped, so that they do not affect the measurement.
    for peer in ["ly", "tn", "ne"] {
        world.kill(peer);
    }
    // More streams for one identity than the default limit.
    let access = world.folder("ma").join("access.toml");
    let granted = fs::read_to_string(&access).unwrap();
    fs::write(&access, format!("[limits]\nstreams = {}\n\n{granted}", STOPPED_EACH + 2)).unwrap();
    world.terminate("ma");
    world.ended("ma");
    world.run("ma");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let process = world.process("ma");
    let stopped = runtime.block_on(async {
        let (mut publisher, mut reader) = (client(&world, "police-hq"), client(&world, "police-hq"));
        let mut live = subscribe(&mut reader, from_the_beginning()).await;
        // On its own connection: unread messages of one stream block all streams of a connection.
        let mut late_reader = client(&world, "border-post");
        let mut late = subscribe(&mut late_reader, from_the_beginning()).await;
        let mut stopped = Vec::new();
        for name in ["police-hq", "border-post"] {
            let mut client = client(&world, name);
            for _ in 0..STOPPED_EACH {
                stopped.push(subscribe(&mut client, from_the_beginning()).await);
            }
        }
        round(&mut publisher, &mut live).await;
        let full = resident_kib(process);
        round(&mut publisher, &mut live).await;
        round(&mut publisher, &mut live).await;
        let after = resident_kib(process);
        println!("{full} KiB with {} stopped subscribers, {after} KiB two rounds later", stopped.len());
        assert!(after < full + GROWTH_KIB_MAX, "{full} KiB became {after} KiB");
        // A subscriber that reads again has missed nothing. The node may have closed its stream in
        // favour of others of the same caller; then it resumes from its cursor.
        let (mut offsets, mut place, mut resumed) = (Vec::new(), from_the_beginning(), 0);
        while offsets.len() < 3 * PUBLISHED_A_ROUND {
            let Ok(message) = tokio::time::timeout(DEADLINE, late.message()).await.expect("in time") else {
                resumed += 1;
                assert!(resumed < 100, "the reader makes no progress");
                late = subscribe(&mut late_reader, place.clone()).await;
                continue;
            };
            let response = message.unwrap();
            place = proto::SubscribeRequest { cursor: response.cursor, ..Default::default() };
            if let Some(Event::Delivery(delivery)) = response.event {
                offsets.push(delivery.offset);
            }
        }
        assert!(offsets.iter().copied().eq(1..=offsets.len() as u64), "{offsets:?}");
        stopped
    });

    // No subscriber reads the end of its stream; the node still stops in order.
    world.terminate("ma");
    let ended = world.ended("ma");
    assert_eq!(ended.code(), Some(0), "{}", world.log_end("ma"));
    assert!(world.log_end("ma").contains("stopped: all accepted work is stored"), "{}", world.log_end("ma"));
    drop(stopped);
    runtime.shutdown_timeout(Duration::from_secs(5));
    world.run("ma");
    assert_eq!(world.feeds("ma")["ma.rabat.example/feed/1"].0, (3 * PUBLISHED_A_ROUND).to_string());
}
