//! Resource exhaustion by strangers, clients and members. The node stays within its budgets, its
//! own officers can publish, its operator can connect, and it stops when asked.
//!
//! `BARID_ATTACK_SECONDS=10 BARID_BIN=target/release/barid cargo test -p barid --test black_box
//! attacks -- --nocapture` prints the table of docs/limits.md. Without these variables the test is
//! short and measures no times.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_compression::tokio::write::ZstdEncoder;
use barid::cli::{Profile, channel};
use barid::rpc::focal_point_client::FocalPointClient;
use barid_core::feed::checkpoint::Checkpoint;
use barid_core::feed::custody::CustodyNote;
use barid_core::feed::note::SigningKey;
use barid_core::ids::{FeedId, Hash};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::future::BoxFuture;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::world::{DEADLINE, World, example, until};

/// Pause between two bulletins of the officer who publishes during an attack.
const PUBLISH_EVERY: Duration = Duration::from_millis(20);
/// Least number of bulletins that the officer publishes during an attack.
const PUBLISHED_MIN: u32 = 20;
/// `memory_mib` of the attacked node.
const MEMORY_MIB: u64 = 512;
/// Memory of the process beside the budgets: allocator, page tables, the store's caches.
const BESIDE_MIB: u64 = 128;

fn seconds() -> Option<u64> {
    std::env::var("BARID_ATTACK_SECONDS").ok()?.parse().ok()
}

/// The attacked node and the attackers' identities.
#[derive(Clone)]
struct Target {
    folder: std::path::PathBuf,
    /// The folder of the malicious member.
    rogue: std::path::PathBuf,
    api: String,
    exchange: String,
}

impl Target {
    fn of(world: &World) -> Self {
        let folder = world.folder("ma");
        let config: toml::Table = fs::read_to_string(folder.join("node.toml")).unwrap().parse().unwrap();
        let address = |key: &str| config[key].as_str().unwrap().to_owned();
        Self { api: address("listen_api"), exchange: address("listen_exchange"), rogue: world.folder("tn"), folder }
    }

    async fn person(&self, name: &str) -> Option<TlsStream<TcpStream>> {
        let folder = self.folder.join("clients").join(name);
        tls(&self.api, &folder.join("client.pem"), &folder.join("client.key"), b"h2").await
    }

    async fn member(&self, alpn: &[u8]) -> Option<TlsStream<TcpStream>> {
        tls(&self.exchange, &self.rogue.join("tls/node.pem"), &self.rogue.join("tls/node.key"), alpn).await
    }

    fn key(&self, name: &str) -> SigningKey {
        SigningKey::from_text(fs::read_to_string(self.rogue.join("keys").join(name)).unwrap().trim_end()).unwrap()
    }
}

/// Accepts any server certificate: an attacker does not verify its target.
#[derive(Debug)]
struct AcceptAnyServer;

impl rustls::client::danger::ServerCertVerifier for AcceptAnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Connects with TLS; returns `None` if the node rejects the connection.
async fn tls(address: &str, certificate: &Path, key: &Path, alpn: &[u8]) -> Option<TlsStream<TcpStream>> {
    let chain = CertificateDer::pem_file_iter(certificate).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAnyServer))
        .with_client_auth_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    let tcp = TcpStream::connect(address.replace("0.0.0.0", "127.0.0.1")).await.ok()?;
    tcp.set_nodelay(true).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.ok()
}

type Requests = h2::client::SendRequest<Bytes>;

/// Starts HTTP/2 on a stream, with a flow-control window of `window` bytes.
async fn http2(stream: TlsStream<TcpStream>, window: u32) -> Option<Requests> {
    let mut builder = h2::client::Builder::new();
    let handshake = builder.initial_window_size(window).handshake::<_, Bytes>(stream).await.ok()?;
    let (requests, connection) = handshake;
    tokio::spawn(connection);
    Some(requests)
}

fn request(method: &str) -> http::Request<()> {
    let builder = http::Request::builder().method("POST").uri(format!("https://localhost/barid.v1.{method}"));
    builder.header("content-type", "application/grpc").header("te", "trailers").body(()).unwrap()
}

/// Returns a message with its gRPC framing.
fn framed(message: &impl prost::Message) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.encoded_len()).unwrap());
    message.encode(&mut bytes).unwrap();
    bytes.freeze()
}

/// Calls of one method that hold as many resources as possible, on as many connections as the node
/// accepts.
#[derive(Clone, Copy)]
struct Calls {
    person: &'static str,
    method: &'static str,
    /// Flow-control window of the responses; with 0 none is read.
    window: u32,
    /// Whether the request ends after its first bytes.
    ends: bool,
}

/// Opens calls; `sent` returns the first bytes of each request.
async fn calls(target: Target, calls: Calls, sent: impl Fn(u64) -> Bytes, stop: Arc<AtomicBool>) {
    let Calls { person, method, window, ends } = calls;
    let (mut held, mut number) = (Vec::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        let Some(mut requests) = connect_as(&target, person, window).await else { continue };
        let mut open = Vec::new();
        while !stop.load(Ordering::Relaxed) && open.len() < 1_200 {
            let ready = tokio::time::timeout(Duration::from_millis(200), requests.clone().ready()).await;
            let Ok(Ok(ready)) = ready else { break };
            requests = ready;
            let Ok((response, mut body)) = requests.send_request(request(method), false) else { break };
            let sent = sent(number);
            number += 1;
            if (ends || !sent.is_empty()) && body.send_data(sent, ends).is_err() {
                break;
            }
            open.push((response, body));
        }
        held.push((requests, open));
        // A few connections suffice to hold all that can be held.
        if held.len() >= 4 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            held.remove(0);
        }
    }
}

/// Returns the beginning of a message of 4 MiB.
fn unfinished() -> Bytes {
    let mut beginning = BytesMut::new();
    beginning.put_u8(0);
    beginning.put_u32(4 << 20);
    beginning.put_bytes(0x0a, (4 << 20) - 100);
    beginning.freeze()
}

/// Returns a subscription with a long filter, and alternately a different one, so that each call
/// replaces the filter.
fn renamed(number: u64) -> Bytes {
    let topics = (0..60)
        .map(|n| format!("security.{}.t{n}.>", if number.is_multiple_of(2) { "a" } else { "b" }.repeat(90)))
        .collect();
    framed(&proto::SubscribeRequest {
        filter: Some(proto::Filter { topics, ..Default::default() }),
        start: Some(proto::subscribe_request::Start::Subscription(format!("n{}", number % 200))),
        begin: "now".into(),
        replace_filter: true,
        ..Default::default()
    })
}

/// Connections that send nothing.
async fn silent(target: Target, stop: Arc<AtomicBool>) {
    let mut held = std::collections::VecDeque::new();
    while !stop.load(Ordering::Relaxed) {
        held.extend(TcpStream::connect(&target.api).await.ok());
        if held.len() > 2_000 {
            held.pop_front();
        }
    }
}

async fn connect_as(target: &Target, name: &str, window: u32) -> Option<Requests> {
    let connected = async { http2(target.person(name).await?, window).await };
    let connected = tokio::time::timeout(Duration::from_secs(5), connected).await.ok().flatten();
    if connected.is_none() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    connected
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn http2_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Sends useless frames as fast as the node reads them.
async fn frames(target: Target, exchange: bool, frame: Vec<u8>, stop: Arc<AtomicBool>) {
    let many = frame.repeat((64 << 10) / frame.len() + 1);
    while !stop.load(Ordering::Relaxed) {
        let stream = if exchange { target.member(b"h2").await } else { target.person("border-post").await };
        let Some(mut stream) = stream else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        if stream.write_all(PREFACE).await.is_err() {
            continue;
        }
        while !stop.load(Ordering::Relaxed) && stream.write_all(&many).await.is_ok() {}
    }
}

/// Sends useless frames of which a few bytes decompress to megabytes.
async fn inflating(target: Target, stop: Arc<AtomicBool>) {
    let mut bomb = ZstdEncoder::new(Vec::new());
    bomb.write_all(PREFACE).await.unwrap();
    bomb.flush().await.unwrap();
    let frame = http2_frame(0xfa, 0, 0, &[0; 16 << 10]);
    let begun = bomb.get_ref().len();
    for _ in 0..800 {
        bomb.write_all(&frame).await.unwrap();
    }
    bomb.flush().await.unwrap();
    let bytes = bomb.into_inner();
    let (start, rest) = bytes.split_at(begun);
    while !stop.load(Ordering::Relaxed) {
        let Some(mut stream) = target.member(b"barid-zstd/1").await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let _ = stream.write_all(start).await;
        let _ = stream.write_all(rest).await;
        let _ = stream.flush().await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Opens idle connections, as many as the node accepts.
async fn idle(target: Target, name: &'static str, stop: Arc<AtomicBool>) {
    let mut held = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match target.person(name).await {
            Some(stream) if held.len() < 300 => held.push(stream),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// A link on which the malicious member sends the frames of `next`.
async fn link(target: Target, mut next: impl FnMut(u64) -> Frame + Send, stop: Arc<AtomicBool>) {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let connected = async { http2(target.member(b"h2").await?, 1 << 20).await };
        let Some(requests) = connected.await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let Ok(mut requests) = requests.ready().await else { continue };
        let Ok((response, mut body)) = requests.send_request(request("Exchange/Link"), false) else { continue };
        let exchange = target.key("feed.key").name().split_once('.').unwrap().1.split('/').next().unwrap().to_owned();
        let hello = proto::Hello { protocol: 1, exchange, roster_version: 1, ..Default::default() };
        let first = proto::LinkRequest { frame: Some(proto::Frame { frame: Some(Frame::Hello(hello)) }) };
        if body.send_data(framed(&first), false).is_err() {
            continue;
        }
        // The node's frames are read, so that only received frames are limited.
        let reads = tokio::spawn(async move {
            let Ok(response) = response.await else { return };
            let mut body = response.into_body();
            while let Some(Ok(data)) = body.data().await {
                let _ = body.flow_control().release_capacity(data.len());
            }
        });
        while !stop.load(Ordering::Relaxed) && !reads.is_finished() {
            let frame = proto::LinkRequest { frame: Some(proto::Frame { frame: Some(next(number)) }) };
            number += 1;
            let bytes = framed(&frame);
            body.reserve_capacity(bytes.len());
            let room = async {
                while body.capacity() < bytes.len() {
                    match futures::future::poll_fn(|context| body.poll_capacity(context)).await {
                        Some(Ok(_)) => {}
                        _ => return false,
                    }
                }
                true
            };
            match tokio::time::timeout(Duration::from_millis(500), room).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => continue,
            }
            if body.send_data(bytes, false).is_err() {
                break;
            }
        }
        reads.abort();
    }
}

fn own_feed(target: &Target, code: &str) -> FeedId {
    let name = target.key("feed.key").name().to_owned();
    let (_, rest) = name.split_once('.').unwrap();
    format!("{code}.{rest}").parse().unwrap()
}

type Attack = Box<dyn Fn(Target, Arc<AtomicBool>) -> BoxFuture<'static, ()> + Send>;

fn attack<F: Future<Output = ()> + Send + 'static>(
    run: impl Fn(Target, Arc<AtomicBool>) -> F + Send + 'static,
) -> Attack {
    Box::new(move |target, stop| Box::pin(run(target, stop)))
}

/// Returns all attacks with their names in the table.
fn attacks() -> Vec<(&'static str, Vec<Attack>)> {
    let read = |method| Calls { person: "border-post", method, window: 0, ends: true };
    let publish = |person, method| Calls { person, method, window: 1 << 20, ends: false };
    vec![
        (
            "answers that are not read",
            vec![
                attack(move |target, stop| {
                    let history = framed(&proto::HistoryRequest { page_size: 1_000, ..Default::default() });
                    calls(target, read("FocalPoint/History"), move |_| history.clone(), stop)
                }),
                attack(move |target, stop| {
                    calls(target, read("FocalPoint/Subscribe"), |_| framed(&proto::SubscribeRequest::default()), stop)
                }),
            ],
        ),
        (
            "requests that are not finished",
            ["ungranted", "customs-hq"]
                .map(|person| {
                    attack(move |target, stop| {
                        let beginning = unfinished();
                        calls(target, publish(person, "FocalPoint/Publish"), move |_| beginning.clone(), stop)
                    })
                })
                .into(),
        ),
        (
            "streams that bring and find nothing",
            vec![
                attack(move |target, stop| {
                    calls(target, publish("customs-hq", "FocalPoint/PublishStream"), |_| Bytes::new(), stop)
                }),
                attack(move |target, stop| {
                    let nobody = proto::Filter { members: vec!["zz".into()], ..Default::default() };
                    let all = proto::SubscribeRequest {
                        filter: Some(nobody),
                        begin: "beginning".into(),
                        ..Default::default()
                    };
                    calls(
                        target,
                        Calls { window: 1 << 20, ..read("FocalPoint/Subscribe") },
                        move |_| framed(&all),
                        stop,
                    )
                }),
            ],
        ),
        (
            "names that change",
            vec![attack(move |target, stop| {
                calls(target, Calls { window: 1 << 20, ..read("FocalPoint/Subscribe") }, renamed, stop)
            })],
        ),
        (
            "drafts of empty parts",
            vec![attack(move |target, stop| {
                let body = proto::Body { texts: vec![proto::Text::default(); 1_000_000], ..Default::default() };
                let draft = proto::Draft { body: Some(body), ..Default::default() };
                let request = framed(&proto::PublishRequest { draft: Some(draft), ..Default::default() });
                let many = Calls { ends: true, ..publish("customs-hq", "FocalPoint/Publish") };
                calls(target, many, move |_| request.clone(), stop)
            })],
        ),
        ("silent connections", vec![attack(silent)]),
        (
            "frames of no use",
            vec![
                attack(|target, stop| frames(target, false, http2_frame(6, 0, 0, &[7; 8]), stop)),
                attack(|target, stop| frames(target, false, http2_frame(0xfa, 0, 0, &[7; 64]), stop)),
                attack(|target, stop| frames(target, true, http2_frame(4, 0, 0, &[]), stop)),
                attack(|target, stop| frames(target, true, http2_frame(0xfa, 0, 0, &[0; 16 << 10]), stop)),
            ],
        ),
        ("a compressed link that inflates", (0..8).map(|_| attack(inflating)).collect()),
        (
            "idle connections",
            ["border-post", "customs-hq", "auditor", "ungranted"]
                .map(|name| attack(move |target, stop| idle(target, name, stop)))
                .into(),
        ),
        (
            "faults with long names",
            vec![attack(|target, stop| {
                let fault = proto::Fault {
                    feed: "x\u{1b}[31m\nforged".repeat(20_000),
                    reason: "bad-root".into(),
                    detail: "y\nforged audit line\u{1b}[2J".repeat(20_000),
                };
                link(target, move |_| Frame::Fault(fault.clone()), stop)
            })],
        ),
        (
            "custody notes without end",
            vec![attack(|target, stop| {
                let (key, feed) = (target.key("custody.key"), own_feed(&target, "ma"));
                link(
                    target,
                    move |number| {
                        let checkpoint = Checkpoint { feed: feed.clone(), size: 1, root: Hash([0; 32]) };
                        let note = CustodyNote::new(&checkpoint, 1_700_000_000 + number, 0..1, []).unwrap();
                        Frame::Custody(proto::Custody { note: note.sign(&key).unwrap() })
                    },
                    stop,
                )
            })],
        ),
        (
            "requests for feeds and answers without end",
            vec![attack(|target, stop| {
                let feed = own_feed(&target, "ma").to_string();
                link(
                    target,
                    move |number| match number % 3 {
                        0 => Frame::Follow(proto::Follow { feed: feed.clone(), ..Default::default() }),
                        1 => Frame::AttestationsRequest(proto::AttestationsRequest {
                            feed: feed.clone(),
                            ..Default::default()
                        }),
                        _ => Frame::ConsistencyRequest(proto::ConsistencyRequest { feed: feed.clone(), size: 1 }),
                    },
                    stop,
                )
            })],
        ),
        (
            "frames of empty parts",
            vec![attack(|target, stop| {
                let heads =
                    proto::TreeHeads { heads: vec![proto::TreeHead::default(); 1_000_000], ..Default::default() };
                link(target, move |_| Frame::TreeHeads(heads.clone()), stop)
            })],
        ),
    ]
}

/// Publish latencies during an attack, as other clients see them.
#[derive(Default)]
struct Felt {
    millis: Vec<f64>,
}

impl Felt {
    fn quantile(&mut self, q: f64) -> f64 {
        self.millis.sort_by(f64::total_cmp);
        #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)]
        let place = (self.millis.len().saturating_sub(1) as f64 * q).round() as usize;
        self.millis.get(place).copied().unwrap_or(f64::NAN)
    }
}

/// Publishes for the given time, but at least `count` bulletins, one after the other; every tenth
/// is Extreme. No bulletin may be denied.
async fn officer(client: &mut FocalPointClient<tonic::transport::Channel>, lasting: Duration, count: u32) -> Felt {
    let ordinary: proto::Draft = serde_json::from_value(example("stolen-passport.fr.json", |_| ())).unwrap();
    let mut extreme = ordinary.clone();
    extreme.header.as_mut().unwrap().severity = "Extreme".into();
    let (mut felt, begun) = (Felt::default(), Instant::now());
    let mut number = 0;
    while begun.elapsed() < lasting || number < count {
        let draft = if number % 10 == 9 { &extreme } else { &ordinary };
        let request = proto::PublishRequest { draft: Some(draft.clone()), ..Default::default() };
        let since = Instant::now();
        let published = tokio::time::timeout(DEADLINE, client.publish(request)).await.expect("answered in time");
        published.expect("own bulletins are published under attack");
        felt.millis.push(since.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(PUBLISH_EVERY).await;
        number += 1;
    }
    felt
}

fn memory_mib(process: u32, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

fn folder_mib(folder: &Path) -> u64 {
    let bytes = |path: &Path| fs::metadata(path).map_or(0, |file| file.len());
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.map(|path| if path.is_dir() { folder_mib(&path) << 20 } else { bytes(&path) }).sum::<u64>() >> 20
}

#[test]
fn node_stays_within_budgets_under_attack() {
    let mut world = World::prepared(&["ma", "tn"], "info", |_, config| {
        // No peer runs for whom the node would wait at each of its starts.
        let config = config.replace("peer_wait_seconds = 10", "peer_wait_seconds = 0");
        config.replace("memory_mib = 2048", &format!("memory_mib = {MEMORY_MIB}"))
    });
    // An officer with a valid certificate, but without a grant.
    let clients = world.folder("ma").join("clients");
    fs::create_dir(clients.join("ungranted")).unwrap();
    for file in ["client.pem", "client.key", "client.toml"] {
        fs::copy(clients.join("justice-hq").join(file), clients.join("ungranted").join(file)).unwrap();
    }
    let access = world.folder("ma").join("access.toml");
    let granted = fs::read_to_string(&access).unwrap();
    assert!(granted.contains("focal-point/justice-hq"));
    fs::write(&access, granted.replace("focal-point/justice-hq", "focal-point/nobody")).unwrap();
    let target = Target::of(&world);
    let people = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    // The short form compares no times, so it has no measurement before the attack.
    let (calm, lasting) = match seconds().map(Duration::from_secs) {
        Some(lasting) => (lasting, lasting),
        None => (Duration::ZERO, Duration::from_secs(1)),
    };
    println!(
        "| attack | memory MiB, at rest | under it, most | log KiB | data MiB | publish p50 ms, before | under it | p99 | ends in s |"
    );
    let all_attacks = attacks();
    let chosen = std::env::var("BARID_ATTACK").ok();
    let mut plans: Vec<(&str, Vec<&Attack>)> =
        all_attacks.iter().map(|(name, all)| (*name, all.iter().collect())).collect();
    plans.push(("all of these at once", all_attacks.iter().flat_map(|(_, all)| all).collect()));
    plans.retain(|(name, _)| chosen.as_ref().is_none_or(|chosen| name.contains(chosen.as_str())));
    for (name, attacks) in plans {
        world.run("ma");
        let process = world.process("ma");
        let log = world.folder("ma").join("node.log");
        let mut client = {
            let _inside = people.enter();
            let profile = Profile::read(&clients.join("police-hq").join("client.toml")).unwrap();
            FocalPointClient::new(channel(&profile).unwrap())
        };
        let mut before = people.block_on(officer(&mut client, calm, 1));
        let (rest, logged) = (memory_mib(process, "VmRSS:"), fs::metadata(&log).unwrap().len());
        let data = folder_mib(&world.folder("ma").join("data"));
        let stop = Arc::new(AtomicBool::new(false));
        let attackers = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .on_thread_start(|| {
                let mut one = rustix::thread::CpuSet::new();
                one.set(0);
                let _ = rustix::thread::sched_setaffinity(None, &one);
            })
            .enable_all()
            .build()
            .unwrap();
        let running: Vec<_> =
            attacks.iter().map(|run| attackers.spawn(run(target.clone(), Arc::clone(&stop)))).collect();
        let mut under = people.block_on(officer(&mut client, lasting, PUBLISHED_MIN));
        assert!(world.runs("ma"), "{name}: {}", world.log_end("ma"));
        // The operator can connect.
        let status = world.json("ma", "operator", &["status"]).remove(0);
        assert_eq!(status["publishing"], "yes", "{name}");
        let peak = memory_mib(process, "VmHWM:");
        let (grown, log_bytes) =
            (folder_mib(&world.folder("ma").join("data")) - data, fs::metadata(&log).unwrap().len());
        let since = Instant::now();
        world.terminate("ma");
        let ended = world.ended("ma");
        let ends = since.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        println!(
            "| {name} | {rest} | {peak} | {} | {grown} | {:.2} | {:.2} | {:.1} | {ends:.1} |",
            (log_bytes - logged) >> 10,
            before.quantile(0.5),
            under.quantile(0.5),
            under.quantile(0.99),
        );
        assert!(ended.success(), "{name}: {}", world.log_end("ma"));
        assert!(world.log_end("ma").contains("stopped: all accepted work is stored"), "{name}");
        assert!(peak < MEMORY_MIB + BESIDE_MIB, "{name}: {peak} MiB");
        let text = fs::read_to_string(&log).unwrap();
        assert!(!text.contains('\u{1b}') && !text.lines().any(|line| line.starts_with("forged")), "{name}");
        attackers.shutdown_timeout(Duration::from_secs(1));
        for task in running {
            task.abort();
        }
        until("the node has ended", || !Path::new(&format!("/proc/{process}/exe")).exists());
    }
}
