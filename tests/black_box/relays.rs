//! Morocco is cut off from all members but Libya, and continues to publish. No entry is lost, and
//! no reader gets content outside of its audience.
//!
//! `BARID_RELAY_ENTRIES=100000` makes the test long.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use barid::cli::{Profile, channel};
use barid::rpc::focal_point_client::FocalPointClient;
use barid::rpc::operator_client::OperatorClient;
use barid_core::bulletin::BulletinId;
use barid_core::envelope;
use barid_core::proto;
use barid_core::proto::publish_result::Outcome;
use serde_json::Value;
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use crate::world::{World, example, until_within};

/// Default number of bulletins published while Morocco is cut off.
const ENTRIES: usize = 600;
/// Members that Morocco is cut off from.
const FAR: [&str; 2] = ["ne", "tn"];
/// Returns the deadline of a condition: one minute, and another for each 10,000 entries.
fn deadline(entries: usize) -> Duration {
    Duration::from_secs(60 * (1 + entries as u64 / 10_000))
}

/// Relays connections to one node while it is not cut.
struct Line {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Target address; `None` if cut.
    target: Option<String>,
    open: Vec<TcpStream>,
}

impl Line {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let line = Self { address: listener.local_addr().unwrap(), state: Arc::default() };
        let state = Arc::clone(&line.state);
        std::thread::spawn(move || {
            for caller in listener.incoming().flatten() {
                let mut state = state.lock().unwrap();
                let Some(called) = state.target.as_ref().and_then(|target| TcpStream::connect(target).ok()) else {
                    continue;
                };
                for stream in [&caller, &called] {
                    stream.set_nodelay(true).unwrap();
                    state.open.push(stream.try_clone().unwrap());
                }
                let (back, forth) = (caller.try_clone().unwrap(), called.try_clone().unwrap());
                std::thread::spawn(move || carry(caller, called));
                std::thread::spawn(move || carry(forth, back));
            }
        });
        line
    }

    fn open(&self, target: &str) {
        self.state.lock().unwrap().target = Some(target.to_owned());
    }

    fn cut(&self) {
        let mut state = self.state.lock().unwrap();
        state.target = None;
        for stream in state.open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Copies bytes until either side ends.
fn carry(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    let mut step = || -> io::Result<bool> {
        let count = from.read(&mut buffer)?;
        to.write_all(&buffer[..count])?;
        Ok(count > 0)
    };
    while step().unwrap_or(false) {}
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// An exchange with lines between Morocco and the far members that can be cut.
struct Region {
    world: World,
    /// By caller and called member.
    lines: BTreeMap<(&'static str, &'static str), Line>,
    channels: BTreeMap<(&'static str, &'static str), Channel>,
    runtime: Runtime,
}

impl Region {
    fn start() -> Self {
        let pairs = FAR.into_iter().flat_map(|far| [("ma", far), (far, "ma")]);
        let lines: BTreeMap<_, _> = pairs.map(|pair| (pair, Line::new())).collect();
        let world = World::configured("info", |member, config| {
            let calls = lines.iter().filter(|((caller, _), _)| *caller == member);
            let endpoints = calls.map(|((_, called), line)| format!("{called} = \"{}\"\n", line.address));
            format!("{config}\n[endpoints]\n{}", endpoints.collect::<String>())
        });
        let runtime = Runtime::new().unwrap();
        let channel_of = |member: &'static str, name: &'static str| {
            let path = world.folder(member).join("clients").join(name).join("client.toml");
            let _entered = runtime.enter();
            ((member, name), channel(&Profile::read(&path).unwrap()).unwrap())
        };
        let names = crate::world::MEMBERS.into_iter().flat_map(|member| [(member, "police-hq"), (member, "operator")]);
        let channels = names.map(|(member, name)| channel_of(member, name)).collect();
        Self { world, lines, channels, runtime }
    }

    fn heal(&self) {
        for ((_, called), line) in &self.lines {
            let config = std::fs::read_to_string(self.world.folder(called).join("node.toml")).unwrap();
            let target = config.lines().find_map(|line| line.strip_prefix("listen_exchange = ")).unwrap();
            line.open(target.trim_matches('"'));
        }
    }

    fn cut(&self) {
        self.lines.values().for_each(Line::cut);
    }

    /// Publishes at `ma` and returns the ids; `readers` returns the audience of each entry (`None`:
    /// all members).
    fn publish(&self, count: usize, readers: impl Fn(usize) -> Option<Vec<&'static str>>) -> Vec<String> {
        let draft = example("stolen-passport.fr.json", |_| ());
        let draft: proto::Draft = serde_json::from_value(draft).unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let drafts: Vec<proto::Draft> = (0..count)
            .map(|number| {
                let (mut draft, mut random) = (draft.clone(), [0; 10]);
                getrandom::fill(&mut random).unwrap();
                let header = draft.header.as_mut().unwrap();
                header.id = BulletinId::new(u64::try_from(now.as_millis()).unwrap(), &random).to_string();
                if let Some(readers) = readers(number) {
                    let handling = header.handling.as_mut().unwrap();
                    handling.tlp = "TLP:RED".into();
                    handling.releasable_to = readers.into_iter().map(Into::into).collect();
                }
                draft
            })
            .collect();
        let ids = drafts.iter().map(|draft| draft.header.as_ref().unwrap().id.clone()).collect();
        let requests = (0..).zip(drafts).map(|(request, draft)| proto::PublishStreamRequest {
            request,
            publish: Some(proto::PublishRequest { draft: Some(draft), wait_for: None }),
        });
        let requests = futures::stream::iter(requests.collect::<Vec<_>>());
        let published = self.runtime.block_on(async {
            let mut client = FocalPointClient::new(self.channels[&("ma", "police-hq")].clone());
            let mut responses = client.publish_stream(requests).await.unwrap().into_inner();
            let mut published = 0;
            while let Some(response) = responses.message().await.unwrap() {
                for result in response.results {
                    assert!(matches!(result.outcome, Some(Outcome::Published(_))), "{result:?}");
                    published += 1;
                }
            }
            published
        });
        assert_eq!(published, count);
        ids
    }

    fn status(&self, member: &'static str) -> proto::GetStatusResponse {
        let mut client = OperatorClient::new(self.channels[&(member, "operator")].clone());
        let status = self.runtime.block_on(client.get_status(proto::GetStatusRequest::default()));
        status.unwrap().into_inner()
    }

    /// Returns Morocco's feed as a member holds it; empty if the node has just started.
    fn peer(&self, at: &'static str) -> proto::PeerStatus {
        self.status(at).peers.into_iter().find(|peer| peer.member == "ma").unwrap_or_default()
    }

    fn holds_all_of_ma(&self, at: &'static str) -> bool {
        let (own, held) = (self.status("ma").own.unwrap(), self.peer(at).feed);
        held.is_some_and(|held| (held.size, held.root) == (own.size, own.root))
    }

    /// Returns the members whose custody note for a bulletin Morocco holds.
    fn stored_at(&self, id: &str) -> Vec<String> {
        let visible = &self.world.json("ma", "police-hq", &["show", &format!("ma/{id}")])[0];
        let stored = visible["stored"].as_array().into_iter().flatten();
        let mut members: Vec<String> = stored.filter_map(|by| Some(by["member"].as_str()?.to_owned())).collect();
        members.sort_unstable();
        members
    }

    /// Returns Morocco's entries that a member's focal point can read: offset by index. No offset
    /// and no entry exists twice.
    fn visible(&self, at: &'static str) -> BTreeMap<u64, u64> {
        let filter = proto::Filter { members: vec!["ma".into()], ..proto::Filter::default() };
        let mut request =
            proto::HistoryRequest { filter: Some(filter), page_size: 1_000, ..proto::HistoryRequest::default() };
        let mut client =
            FocalPointClient::new(self.channels[&(at, "police-hq")].clone()).max_decoding_message_size(64 << 20);
        let (mut visible, mut offsets) = (BTreeMap::new(), BTreeSet::new());
        loop {
            let page = self.runtime.block_on(client.history(request.clone())).unwrap().into_inner();
            for delivery in page.deliveries {
                assert_eq!(envelope::digest(&delivery.envelope).0.as_slice(), delivery.digest.as_ref());
                assert!(offsets.insert(delivery.offset), "{at}: offset {} twice", delivery.offset);
                assert!(visible.insert(delivery.index, delivery.offset).is_none(), "{at}: {} twice", delivery.index);
            }
            if page.next_page_token.is_empty() {
                return visible;
            }
            request.page_token = page.next_page_token;
        }
    }
}

fn until(entries: usize, what: &str, condition: impl FnMut() -> bool) {
    until_within(deadline(entries), what, condition);
}

fn entries() -> usize {
    std::env::var("BARID_RELAY_ENTRIES").map_or(ENTRIES, |text| text.parse().unwrap())
}

#[test]
fn relay_serves_feed_and_restricted_content_is_backfilled_from_owner() {
    let entries = entries();
    let region = Region::start();
    region.heal();
    until(0, "all members are linked to each other", || region.world.linked(&crate::world::MEMBERS));
    region.publish(10, |_| None);
    until(0, "the far members hold it", || FAR.into_iter().all(|far| region.holds_all_of_ma(far)));

    region.cut();
    until(0, "Morocco is cut off", || FAR.into_iter().all(|far| !region.peer(far).linked));
    let readers = |number: usize| match number % 6 {
        0 => Some(vec!["tn"]),
        2 => Some(vec!["ne", "tn"]),
        4 => Some(vec!["ly"]),
        _ => None,
    };
    let began = Instant::now();
    let ids = region.publish(entries, readers);
    println!("{entries} entries published in {:.1?}", began.elapsed());
    until(entries, "the far members hold all of Morocco's feed through Libya", || {
        FAR.into_iter().all(|far| region.holds_all_of_ma(far))
    });
    println!("held by all after {:.1?}", began.elapsed());
    for far in FAR {
        let ma = region.peer(far);
        assert!(!ma.linked);
        assert!(
            ma.undisclosed_ranges.iter().any(|held| held.reason == "not_held"),
            "{far}: {:?}",
            ma.undisclosed_ranges.len()
        );
    }

    let may_read = |member: &str| -> BTreeSet<u64> {
        let mine = |number: &usize| readers(*number).is_none_or(|readers| readers.contains(&member));
        (0..10).chain((0..entries).filter(mine).map(|number| 10 + number as u64)).collect()
    };
    // For entries that all may read, Morocco has the custody notes of members without a link to it:
    // Libya relays them. For entries that Libya may not read there are none.
    for (number, holders) in [(1, vec!["ly", "ne", "tn"]), (4, vec!["ly"]), (0, vec![])] {
        until(0, "Morocco has the custody notes through a relay", || region.stored_at(&ids[number]) == holders);
    }
    let visible_before: BTreeMap<&str, BTreeMap<u64, u64>> = FAR.map(|far| (far, region.visible(far))).into();
    region.heal();
    let began = Instant::now();
    for far in FAR {
        let wanted = may_read(far);
        until(entries, "they hold all that they may read", || {
            let held = region.peer(far).feed.map_or(0, |feed| feed.disclosed);
            assert!(held <= wanted.len() as u64, "{far} was sent more than it may read");
            held == wanted.len() as u64
        });
        println!("{far} has it {:.1?} after the line is restored", began.elapsed());
        let visible = region.visible(far);
        assert_eq!(visible.keys().copied().collect::<BTreeSet<_>>(), wanted, "{far}");
        // Entries that had arrived before have the same offset.
        for (index, offset) in &visible_before[far] {
            assert_eq!(visible[index], *offset, "{far}: {index}");
        }
    }
    assert_eq!(region.visible("ly").keys().copied().collect::<BTreeSet<_>>(), may_read("ly"));
    // Members that may read restricted entries have sent their custody notes to Morocco.
    for (number, far) in [(0, vec!["tn"]), (2, FAR.to_vec())] {
        until(0, "Morocco has the custody notes", || region.stored_at(&ids[number]) == far);
    }
    let alarms: Vec<Value> = region.world.json("tn", "operator", &["status"]);
    assert_eq!(alarms[0]["alarms"].as_array().map_or(0, Vec::len), 0, "{:?}", alarms[0]["alarms"]);
}

/// Prints the catch-up rates from the owner and through a relay. Run it alone, in a release build,
/// with `BARID_RELAY_ENTRIES`.
#[test]
#[ignore = "measures; run it in a release build on a quiet machine"]
fn catch_up_rate_through_relay_matches_owner() {
    let entries = entries();
    let mut region = Region::start();
    region.heal();
    region.world.kill("ne");
    region.publish(entries, |_| None);
    until(entries, "Libya holds it", || region.holds_all_of_ma("ly"));
    let mut rates = BTreeMap::new();
    for round in 0..3 {
        for source in ["owner", "relay"] {
            if source == "owner" {
                region.heal();
            } else {
                region.cut();
            }
            std::fs::remove_dir_all(region.world.folder("ne").join("data")).unwrap();
            region.world.run_without_store("ne");
            let held = || region.peer("ne").feed.map_or(0, |feed| feed.size);
            until(entries, "it begins", || held() > 0);
            let (began, first) = (Instant::now(), held());
            until(entries, "it is done", || region.holds_all_of_ma("ne"));
            let seconds = began.elapsed().as_secs_f64();
            #[allow(clippy::cast_precision_loss)]
            let rate = (entries as u64 - first) as f64 / seconds;
            println!("round {round}, from the {source}: {rate:.0} entries/s ({first} at first)");
            rates.entry(source).or_insert_with(Vec::new).push(rate);
            region.world.kill("ne");
        }
    }
    let best = |source: &str| rates[source].iter().copied().fold(0.0, f64::max);
    println!("through a relay: {:.2} of the rate from the owner", best("relay") / best("owner"));
}
