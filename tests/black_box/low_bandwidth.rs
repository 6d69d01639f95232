//! An officer in Niamey, behind a satellite link: 64 kbit/s, 600 ms round-trip time, one segment in
//! fifty lost.
//!
//! The link is a byte relay in this process. It gives each direction its rate and its delay, and
//! delays a lost segment by the time of a TCP retransmission. It counts TLS bytes; TCP and IP add
//! some 40 bytes to each segment.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::Value;

use crate::world::{World, example, until};

const BYTES_PER_SECOND: f64 = 8_000.0;
const ONE_WAY: Duration = Duration::from_millis(300);
const SEGMENT_BYTES: usize = 1_400;
const LOST_ONE_IN: u64 = 50;
/// Default duration of the idle measurement: a heartbeat and a keep-alive each way are in it.
const IDLE_SECONDS: u64 = 60;
/// Maximum bytes on the link in an idle day.
const IDLE_BYTES_A_DAY_MAX: u64 = 2_000_000;
/// Time after the last event in which responses, tree heads and custody notes are complete.
const SETTLING: Duration = Duration::from_secs(10);
/// Delay of a lost segment: a round trip until its loss is detected, and its retransmission.
const SENT_AGAIN: Duration = Duration::from_millis(900);

/// A satellite link to an address.
pub(crate) struct Satellite {
    port: u16,
    target: Arc<Mutex<String>>,
    up: Arc<AtomicBool>,
    bytes: Arc<AtomicU64>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Satellite {
    pub(crate) fn launch() -> Self {
        let ground = TcpListener::bind("127.0.0.1:0").unwrap();
        let satellite = Self {
            port: ground.local_addr().unwrap().port(),
            target: Arc::default(),
            up: Arc::new(AtomicBool::new(true)),
            bytes: Arc::default(),
            open: Arc::default(),
        };
        let (target, up, bytes, open) = (
            Arc::clone(&satellite.target),
            Arc::clone(&satellite.up),
            Arc::clone(&satellite.bytes),
            Arc::clone(&satellite.open),
        );
        std::thread::spawn(move || {
            for near in ground.incoming().map_while(Result::ok) {
                let target = target.lock().unwrap().clone();
                if !up.load(Ordering::Relaxed) {
                    continue;
                }
                let Ok(far) = TcpStream::connect(&target) else { continue };
                let streams = [near.try_clone().unwrap(), far.try_clone().unwrap()];
                open.lock().unwrap().extend(streams);
                carry(near.try_clone().unwrap(), far.try_clone().unwrap(), Arc::clone(&bytes));
                carry(far, near, Arc::clone(&bytes));
            }
        });
        satellite
    }

    /// Returns a change of each member's `node.toml` that puts `far` behind the satellite, with
    /// this link to `near`.
    pub(crate) fn behind(
        &self,
        far: &'static str,
        near: &'static str,
        compress: &str,
    ) -> impl Fn(&str, String) -> String + use<> {
        let (port, target, compress) = (self.port, Arc::clone(&self.target), compress.to_owned());
        move |member, config| {
            let listens = config.lines().find(|line| line.starts_with("listen_exchange")).unwrap().to_owned();
            if member == near {
                *target.lock().unwrap() = listens.split('"').nth(1).unwrap().to_owned();
            }
            if member != far {
                return config;
            }
            // Nobody can connect to a node behind the satellite. TCP ends at the relay and connects
            // at once, so the round-trip time does not show that the link is slow.
            let config =
                config.replace(&listens, "").replace("compress = \"auto\"", &format!("compress = \"{compress}\""));
            config + &format!("\n[endpoints]\n{near} = \"127.0.0.1:{port}\"\n")
        }
    }

    pub(crate) fn cut(&self) {
        self.up.store(false, Ordering::Relaxed);
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn restore(&self) {
        self.up.store(true, Ordering::Relaxed);
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// Carries one direction of a connection.
fn carry(mut from: TcpStream, mut to: TcpStream, bytes: Arc<AtomicU64>) {
    let (on_its_way, arriving) = mpsc::sync_channel::<(Instant, Vec<u8>)>(64);
    std::thread::spawn(move || {
        let (mut free, mut count) = (Instant::now(), 0_u64);
        let mut segment = [0; SEGMENT_BYTES];
        while let Ok(length @ 1..) = from.read(&mut segment) {
            count += 1;
            bytes.fetch_add(length as u64, Ordering::Relaxed);
            free = free.max(Instant::now()) + Duration::from_secs_f64(length as f64 / BYTES_PER_SECOND);
            let again = if count % LOST_ONE_IN == 0 { SENT_AGAIN } else { Duration::ZERO };
            if on_its_way.send((free + ONE_WAY + again, segment[..length].to_vec())).is_err() {
                break;
            }
        }
    });
    std::thread::spawn(move || {
        for (at, segment) in arriving {
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            if to.write_all(&segment).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}

/// Writes an alert about a passport unlike all others.
fn alert(world: &World, number: usize) -> String {
    let draft = example("stolen-passport.fr.json", |draft| {
        let document = &mut draft["body"]["travelDocumentAlert"];
        document.as_object_mut().unwrap().remove("mrz");
        document["documentNumber"] = format!("{}SP{:05}", 10 + number % 80, number * 7_919 % 100_000).into();
        let description = &mut draft["body"]["texts"][0]["description"];
        *description = format!("{} Dossier {number}.", description.as_str().unwrap_or_default()).into();
    });
    world.draft(&format!("alert-{number}.json"), &draft)
}

fn stored_at_tn(world: &World, draft: &str) -> bool {
    let response = world.json("ne", "police-hq", &["publish", draft, "--wait-for", "tn", "--timeout", "60"]);
    response[0]["waitReached"] == true
}

#[test]
fn low_bandwidth_link_delivers_alert_with_few_bytes() {
    let satellite = Satellite::launch();
    let compress = std::env::var("BARID_THIN_COMPRESS").unwrap_or("always".into());
    let mut world = World::configured("info", satellite.behind("ne", "tn", &compress));
    until("linked", || world.linked(&["ne", "tn"]));
    // No other member can relay the bulletins.
    world.kill("ma");
    world.kill("ly");
    assert!(stored_at_tn(&world, &alert(&world, 0)));
    let (mut seconds, before) = (Vec::new(), satellite.bytes());
    for number in 1..=5 {
        let begun = Instant::now();
        assert!(stored_at_tn(&world, &alert(&world, number)));
        seconds.push(begun.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    println!("thin_line.stored.p50 {:.2} s", seconds[2]);
    println!("thin_line.stored.max {:.2} s", seconds[4]);
    println!("thin_line.wire.live {} B/bulletin", (satellite.bytes() - before) / 5);

    // A long outage; then everything at once.
    satellite.cut();
    let missed: usize = std::env::var("BARID_THIN_BULLETINS").ok().map_or(100, |count| count.parse().unwrap());
    for number in 0..missed {
        world.json("ne", "police-hq", &["publish", &alert(&world, 10 + number)]);
    }
    let before = satellite.bytes();
    satellite.restore();
    let begun = Instant::now();
    until("Tunis has caught up", || {
        world.feeds("tn").get("ne.rabat.example/feed/1") == world.feeds("ne").values().next()
    });
    let wire = satellite.bytes() - before;
    let history = world.json("tn", "police-hq", &["history", "--member", "ne", "--limit", "1000"]);
    let envelopes: Vec<usize> = history.iter().take(missed).map(envelope_bytes).collect();
    let own: usize = envelopes.iter().sum();
    assert_eq!(envelopes.len(), missed);
    println!("thin_line.catchup.seconds {:.1} s", begun.elapsed().as_secs_f64());
    println!("thin_line.wire.catchup {} B/bulletin", wire / missed as u64);
    println!("thin_line.wire.catchup_ratio {:.3} of the bulletins' own size", wire as f64 / own as f64);
    assert!(wire * 50 > own as u64, "{wire} bytes: it was sent over another line");
    assert!(wire * 2 < own as u64, "{wire} bytes for bulletins of {own} bytes");

    // Idle traffic: keep-alives, once the last responses are complete.
    let idle = std::env::var("BARID_THIN_IDLE_SECONDS").map_or(IDLE_SECONDS, |seconds| seconds.parse().unwrap());
    std::thread::sleep(SETTLING);
    let before = satellite.bytes();
    std::thread::sleep(Duration::from_secs(idle));
    let a_day = (satellite.bytes() - before) * 86_400 / idle;
    println!("thin_line.idle {a_day} B/day");
    assert!(a_day <= IDLE_BYTES_A_DAY_MAX, "{a_day} bytes a day while nothing happens");
}

fn envelope_bytes(delivery: &Value) -> usize {
    base64::engine::general_purpose::STANDARD.decode(delivery["envelope"].as_str().unwrap()).unwrap().len()
}
