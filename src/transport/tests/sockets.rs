//! Real TCP and real TLS: a listener, and clients that are wrong in one way each.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, HandshakeKind, SignatureScheme};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::{
    AccessLevel, Compress, Connections, Connector, Credentials, Limits, Line, Listening, OnRefusal, PeerIdentity,
    Policy, Refusal, SpiffeId, listen,
};
use super::world::{World, days, der, roster};
use crate::budgets::{Bounds, Budget, Class, table};
use crate::calls::{self, Admission, Calls, Terms};
use crate::pki::{Authority, Issued};

/// Longest for anything to come true: the machine may be busy.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);
/// Live connections end so soon (DESIGN §5).
const ENDS_WITHIN: Duration = Duration::from_secs(2);
/// An HTTP/2 client's first bytes: preface and empty SETTINGS (RFC 9113 §3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

/// More connections than a test opens.
const MANY: Bounds = Bounds { total: 10_000, per_owner: 10_000, reserved: 0 };

/// Lets everybody call.
struct Everybody;

impl Admission for Everybody {
    fn admit(&self, _path: &str, extensions: &mut http::Extensions) -> Result<Terms, tonic::Status> {
        let calls = Budget::with(&table::API_CALLS, MANY);
        let owner = extensions.get::<PeerIdentity>().unwrap().owner();
        let call = calls.try_charge(&owner, Class::Ordinary, 1).unwrap();
        let bytes = Budget::new(&table::API_RESPONSE_BYTES);
        Ok(Terms {
            owner,
            class: Class::Ordinary,
            call,
            requests: bytes.clone(),
            responses: bytes,
            request_bytes_max: 4_096,
            one_request: true,
            response_bytes: 0,
            report: Arc::new(|_| {}),
        })
    }
}

/// A listener with a gRPC service behind it.
pub(super) struct Served {
    pub(super) address: SocketAddr,
    connections: Connections,
    refusals: Arc<Mutex<Vec<Refusal>>>,
    credentials: Credentials,
    folder: tempfile::TempDir,
}

impl Served {
    /// Morocco's listener.
    pub(super) async fn start(world: &World, policy: Policy, limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let issued = world.ma.issue("node", &["127.0.0.1".into()]).unwrap();
        Self::showing(world, &issued, folder, policy, limits, MANY).await
    }

    /// Morocco's listener for its own people, of whom so many may be there.
    async fn for_people(world: &World, limits: Limits, bounds: Bounds) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let issued = world.ma.issue("node", &["127.0.0.1".into()]).unwrap();
        Self::showing(world, &issued, folder, Policy::OwnPeople("ma.rabat.example".into()), limits, bounds).await
    }

    /// A listener that shows another certificate than Morocco's.
    async fn showing(
        world: &World,
        issued: &Issued,
        folder: tempfile::TempDir,
        policy: Policy,
        limits: Limits,
        bounds: Bounds,
    ) -> Self {
        let budget = Budget::with(&table::API_CONNECTIONS, bounds);
        let credentials = credentials(&folder, issued);
        let (refusals, on_refusal) = told();
        let connections = Connections::reporting(Arc::clone(&on_refusal));
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let listening = Listening {
            name: "exchange",
            verifier: Arc::new(world.verifier(policy)),
            credentials: credentials.clone(),
            connections: connections.clone(),
            limits,
            budget,
            level: Arc::new(|identity| match identity.spiffe.path.split('/').next() {
                Some("operator") => AccessLevel::Operator,
                Some("stranger") => AccessLevel::Ungranted,
                _ => AccessLevel::Granted,
            }),
            on_refusal: Arc::clone(&on_refusal),
        };
        let incoming = listen(tcp, listening).unwrap();
        let (_, health) = tonic_health::server::health_reporter();
        let calls = Calls::new(tonic::service::Routes::new(health), Arc::new(Everybody));
        tokio::spawn(calls::serve(incoming, calls, limits, std::future::pending()));
        let watching = connections.clone().watch(world.trust.clone(), world.lists.clone(), move |end| on_refusal(end));
        tokio::spawn(watching);
        Self { address, connections, refusals, credentials, folder }
    }

    pub(super) async fn for_peers(world: &World) -> Self {
        Self::start(world, Policy::Peers("ma.rabat.example".into()), Limits::EXCHANGE).await
    }

    /// What was refused or ended, once there is so much of it.
    pub(super) async fn told(&self, count: usize) -> Vec<Refusal> {
        until("refusals are told", || self.refusals.lock().len() >= count).await;
        std::mem::take(&mut *self.refusals.lock())
    }

    /// The one refusal that there is.
    pub(super) async fn refusal(&self) -> Refusal {
        let mut told = self.told(1).await;
        assert_eq!(told.len(), 1, "{told:?}");
        told.remove(0)
    }
}

pub(super) fn credentials(folder: &tempfile::TempDir, issued: &Issued) -> Credentials {
    let (certificate, key) = (folder.path().join("node.pem"), folder.path().join("node.key"));
    std::fs::write(&certificate, &issued.certificate).unwrap();
    std::fs::write(&key, &issued.key).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    Credentials::load(&certificate, &key).unwrap()
}

pub(super) fn told() -> (Arc<Mutex<Vec<Refusal>>>, OnRefusal) {
    let refusals: Arc<Mutex<Vec<Refusal>>> = Arc::default();
    let to = Arc::clone(&refusals);
    (refusals, Arc::new(move |refusal| to.lock().push(refusal.clone())))
}

pub(super) async fn until(what: &str, mut come_true: impl FnMut() -> bool) {
    let waiting = async {
        while !come_true() {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, waiting).await.is_ok(), "it did not come true in time that {what}");
}

/// Believes every server: what is tested is what the server believes.
#[derive(Debug)]
struct Believing(Arc<CryptoProvider>);

impl ServerCertVerifier for Believing {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

pub(super) fn client(
    shows: Option<&Issued>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Believing(provider)));
    let mut config = match shows {
        None => config.with_no_client_auth(),
        Some(issued) => {
            let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
            config.with_client_auth_cert(vec![der(issued)], key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// A connection on which the other end has answered over HTTP/2: it was let in.
async fn connect(address: SocketAddr, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let connecting = async {
        let tcp = TcpStream::connect(address).await?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let mut stream = TlsConnector::from(config).connect(name, tcp).await?;
        stream.write_all(PREFACE).await?;
        let mut header = [0; 9];
        stream.read_exact(&mut header).await?;
        assert_eq!(header[3], 4, "the first frame is SETTINGS");
        Ok(stream)
    };
    tokio::time::timeout(DEADLINE, connecting).await.unwrap()
}

pub(super) async fn show(address: SocketAddr, issued: &Issued) -> io::Result<TlsStream<TcpStream>> {
    connect(address, client(Some(issued), &[&rustls::version::TLS13])).await
}

/// The alert by which a certificate is refused. Nothing is sent beside it that could push the alert aside.
async fn refused(address: SocketAddr, issued: &Issued) -> rustls::AlertDescription {
    let connecting = async {
        let tcp = TcpStream::connect(address).await?;
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let mut stream =
            TlsConnector::from(client(Some(issued), &[&rustls::version::TLS13])).connect(name, tcp).await?;
        stream.read(&mut [0; 1]).await
    };
    let error = tokio::time::timeout(DEADLINE, connecting).await.unwrap().unwrap_err();
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        other => panic!("no alert: {error} {other:?}"),
    }
}

/// Whether the other end closes it in time. What it still says is read.
async fn ends(stream: &mut TlsStream<TcpStream>, within: Duration) -> bool {
    let mut rest = Vec::new();
    tokio::time::timeout(within, stream.read_to_end(&mut rest)).await.is_ok()
}

/// From seconds ago to seconds ahead.
fn seconds(from: i64, to: i64) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now + time::Duration::seconds(from), now + time::Duration::seconds(to))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_certificate_is_refused_with_one_record_that_says_why() {
    let world = World::new();
    let served = Served::start(&world, Policy::Peers("tn.rabat.example".into()), Limits::EXCHANGE).await;
    let node = "spiffe://ly.rabat.example/node";
    let revoked = world.ly.issue("node", &[]).unwrap();
    assert!(world.offer(&world.ly.revoke(std::slice::from_ref(&revoked.serial), 1).unwrap()));
    use rustls::AlertDescription::{AccessDenied, BadCertificate, CertificateExpired, CertificateRevoked, UnknownCA};
    let unknown = Authority::new("x-au.rabat.example").unwrap();
    let cases = [
        ("wrong-ca", UnknownCA, world.ly.issue_for(&["spiffe://ma.rabat.example/node"], &[], days(-1, 1)).unwrap()),
        ("expired", CertificateExpired, world.ly.issue_for(&[node], &[], days(-3, -1)).unwrap()),
        ("not-yet-valid", CertificateExpired, world.ly.issue_for(&[node], &[], days(1, 3)).unwrap()),
        ("unknown-member", UnknownCA, unknown.issue("node", &[]).unwrap()),
        ("not-a-node", AccessDenied, world.ly.issue("focal-point/customs-hq", &[]).unwrap()),
        ("no-uri-san", BadCertificate, world.ly.issue_for(&[], &["localhost".into()], days(-1, 1)).unwrap()),
        ("revoked", CertificateRevoked, revoked),
    ];
    for (reason, alert, issued) in &cases {
        assert_eq!(refused(served.address, issued).await, *alert, "{reason}");
        let refusal = served.refusal().await;
        assert_eq!((refusal.reason, refusal.at), (*reason, "exchange"), "{refusal:?}");
        assert!(refusal.who.starts_with("127.0.0.1:"), "{refusal:?}");
    }
    assert!(served.connections.is_empty());
    show(served.address, &world.ly.issue("node", &[]).unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_do_not_come_in_where_people_do_nor_people_of_others() {
    let world = World::new();
    let served = Served::start(&world, Policy::OwnPeople("ma.rabat.example".into()), Limits::API).await;
    for (reason, issued) in [
        ("not-our-member", world.ly.issue("node", &[]).unwrap()),
        ("not-our-member", world.ly.issue("focal-point/police-hq", &[]).unwrap()),
        ("is-a-node", world.ma.issue("node", &[]).unwrap()),
    ] {
        assert!(show(served.address, &issued).await.is_err(), "{reason}");
        assert_eq!(served.refusal().await.reason, reason);
    }
    show(served.address, &world.ma.issue("focal-point/police-hq", &[]).unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_mutual_tls_1_3_is_refused() {
    let world = World::new();
    let served = Served::for_peers(&world).await;
    let mut plain = TcpStream::connect(served.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: ma.rabat.example\r\n\r\n").await.unwrap();
    assert_eq!(served.refusal().await.reason, "plain-text");
    drop(TcpStream::connect(served.address).await.unwrap());
    assert_eq!(served.refusal().await.reason, "broken-off");
    let node = world.ly.issue("node", &[]).unwrap();
    assert!(connect(served.address, client(Some(&node), &[&rustls::version::TLS12])).await.is_err());
    assert_eq!(served.refusal().await.reason, "tls-version");
    assert!(connect(served.address, client(None, &[&rustls::version::TLS13])).await.is_err());
    assert_eq!(served.refusal().await.reason, "no-certificate");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_answers_for_another_is_refused_by_the_one_who_dials_with_a_record() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let forged = world.ly.issue_for(&["spiffe://ma.rabat.example/node"], &[], days(-1, 1)).unwrap();
    let policy = Policy::Peers("ma.rabat.example".into());
    let served = Served::showing(&world, &forged, folder, policy, Limits::EXCHANGE, MANY).await;
    let own = tempfile::tempdir().unwrap();
    let (refusals, on_refusal) = told();
    let connector = Connector {
        verifier: world.verifier(Policy::Peers("ly.rabat.example".into())),
        credentials: credentials(&own, &world.ly.issue("node", &[]).unwrap()),
        connections: Connections::default(),
        compress: Compress::Never,
        on_refusal,
    };
    let endpoint = served.address.to_string();
    assert!(connector.dial(&endpoint, SpiffeId::node("ma.rabat.example")).await.is_err());
    assert!(connector.dial(&endpoint, SpiffeId::node("ly.rabat.example")).await.is_err());
    let told = std::mem::take(&mut *refusals.lock());
    let told: Vec<_> = told.iter().map(|refusal| (refusal.reason, refusal.who.as_str(), refusal.at)).collect();
    let (ma, ly) = ("spiffe://ma.rabat.example/node", "spiffe://ly.rabat.example/node");
    assert_eq!(told, [("wrong-ca", ma, "dial"), ("another-identity", ly, "dial")]);

    // That nobody is there is no refusal.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    assert!(connector.dial(&free, SpiffeId::node("ma.rabat.example")).await.is_err());
    assert!(refusals.lock().is_empty());

    let honest = Served::for_peers(&world).await;
    let channel = connector.dial(&honest.address.to_string(), SpiffeId::node("ma.rabat.example")).await.unwrap();
    assert_eq!(connector.connections.len(), 1);

    // What this node dialled ends just so when the other end is revoked.
    let revoked = honest.credentials.certificate().unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&revoked).unwrap();
    assert!(world.offer(&world.ma.revoke(&[parsed.raw_serial().to_vec()], 1).unwrap()));
    let ended = connector.connections.reverify(super::super::Which::All, UnixTime::now());
    assert_eq!((ended.len(), ended[0].reason, ended[0].who.as_str(), ended[0].at), (1, "revoked", ma, "dial"));
    drop(channel);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_stream_ends_when_its_certificate_is_revoked() {
    let world = World::new();
    let served = Served::for_peers(&world).await;
    let (gone, stays) = (world.ly.issue("node", &[]).unwrap(), world.ly.issue("node", &[]).unwrap());
    let mut stream = show(served.address, &gone).await.unwrap();
    let mut other = show(served.address, &stays).await.unwrap();
    assert!(world.offer(&world.ly.revoke(std::slice::from_ref(&gone.serial), 1).unwrap()));
    assert!(ends(&mut stream, ENDS_WITHIN).await);
    let refusal = served.refusal().await;
    assert_eq!((refusal.reason, refusal.who.as_str()), ("revoked", "spiffe://ly.rabat.example/node"));
    assert_eq!(served.connections.len(), 1);
    assert!(!ends(&mut other, Duration::from_millis(100)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_stream_ends_when_its_member_is_removed() {
    let world = World::new();
    let served = Served::for_peers(&world).await;
    let mut stream = show(served.address, &world.ly.issue("node", &[]).unwrap()).await.unwrap();
    world.trust.replace(&roster(&[("ma", &[&world.ma])]));
    assert!(ends(&mut stream, ENDS_WITHIN).await);
    let refusal = served.refusal().await;
    assert_eq!((refusal.reason, refusal.who.as_str()), ("unknown-member", "spiffe://ly.rabat.example/node"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_live_stream_ends_with_its_certificate() {
    let world = World::new();
    let served = Served::for_peers(&world).await;
    let short = world.ly.issue_for(&["spiffe://ly.rabat.example/node"], &[], seconds(-60, 3)).unwrap();
    let mut stream = show(served.address, &short).await.unwrap();
    assert!(ends(&mut stream, DEADLINE).await);
    assert_eq!(served.refusal().await.reason, "expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_resumed() {
    let world = World::new();
    let served = Served::for_peers(&world).await;
    // The client keeps sessions and would resume.
    let config = client(Some(&world.ly.issue("node", &[]).unwrap()), &[&rustls::version::TLS13]);
    for _ in 0..2 {
        let stream = connect(served.address, Arc::clone(&config)).await.unwrap();
        let kind = stream.get_ref().1.handshake_kind();
        assert!(matches!(kind, Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest)), "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_shown_without_a_restart() {
    let world = World::new();
    let served = Served::for_peers(&world).await;
    let node = world.ly.issue("node", &[]).unwrap();
    let shown = |stream: &TlsStream<TcpStream>| stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
    let mut before = show(served.address, &node).await.unwrap();
    let renewed = world.ma.issue("node", &[]).unwrap();
    std::fs::write(served.folder.path().join("node.pem"), &renewed.certificate).unwrap();
    assert!(served.credentials.read().is_err(), "certificate and key do not belong together");
    assert_ne!(shown(&show(served.address, &node).await.unwrap()), der(&renewed));
    std::fs::write(served.folder.path().join("node.key"), &renewed.key).unwrap();
    let read = served.credentials.read().unwrap();
    assert!(!served.credentials.is_current(&read));
    served.credentials.put(read);
    assert_eq!(shown(&show(served.address, &node).await.unwrap()), der(&renewed));
    assert!(!ends(&mut before, Duration::from_millis(100)).await, "who is connected stays so");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_identity_or_one_address_cannot_take_all_connections() {
    let world = World::new();
    let limits = Limits { per_source_max: 3, ..Limits::API };
    let served = Served::for_people(&world, limits, Bounds { total: 100, per_owner: 2, reserved: 0 }).await;
    let person = |name: &str| world.ma.issue(&format!("agency/{name}"), &[]).unwrap();
    let (one, other) = (person("one"), person("other"));
    let held = [show(served.address, &one).await.unwrap(), show(served.address, &one).await.unwrap()];
    assert!(show(served.address, &one).await.is_err());
    let refusal = served.refusal().await;
    assert_eq!(refusal.reason, "too-many-connections");
    assert!(refusal.detail.contains("spiffe://ma.rabat.example/agency/one"), "{refusal:?}");
    let third = show(served.address, &other).await.unwrap();
    assert!(show(served.address, &other).await.is_err());
    assert!(served.refusal().await.detail.contains("this address"));
    drop((held, third));
    until("the closed ones are forgotten", || served.connections.is_empty()).await;
    show(served.address, &one).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_of_many_keep_no_operator_and_nobody_with_fewer_out() {
    let world = World::new();
    let bounds = Bounds { total: 20, per_owner: 8, reserved: 2 };
    let served = Served::for_people(&world, Limits { per_source_max: 20, ..Limits::API }, bounds).await;
    let person = |path: &str| world.ma.issue(path, &[]).unwrap();
    let mut held = Vec::new();
    for name in ["agency/one", "agency/two"] {
        for _ in 0..8 {
            held.push(show(served.address, &person(name)).await.unwrap());
        }
    }
    // Without any grant: very few.
    for _ in 0..4 {
        if let Ok(connection) = show(served.address, &person("stranger/one")).await {
            held.push(connection);
        }
    }
    assert_eq!(served.connections.len(), 18, "all but the reserve");
    served.refusals.lock().clear();
    // Operators have the reserve, and then what lies idle.
    for _ in 0..4 {
        held.push(show(served.address, &person("operator/night-shift")).await.unwrap());
    }
    let gone = served.told(2).await;
    assert!(gone.iter().all(|ended| ended.reason == "gave-way" && ended.who.ends_with("stranger/one")), "{gone:?}");
    // Somebody new gets in, too, in the place of those who have most, until the reserve is free again.
    held.push(show(served.address, &person("focal-point/customs")).await.unwrap());
    let gone = served.told(3).await;
    assert!(gone.iter().all(|ended| ended.reason == "gave-way" && ended.who.contains("/agency/")), "{gone:?}");
    // They cannot come back in the place of somebody who has fewer.
    assert!(show(served.address, &person(gone[0].who.rsplit("example/").next().unwrap())).await.is_err());
    assert!(show(served.address, &person("stranger/two")).await.is_err());
    assert!(served.told(2).await.iter().all(|refusal| refusal.reason == "too-many-connections"));
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_of_frames_without_use_end_the_connection_on_record() {
    let world = World::new();
    for (name, frame) in [
        ("frames of an unknown kind", [&[0, 1, 0, 0xbe, 0, 0, 0, 0, 0][..], &[7; 256]].concat()),
        ("SETTINGS", vec![0, 0, 0, 4, 0, 0, 0, 0, 0]),
        ("PING", [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], &[7; 8]].concat()),
        ("PRIORITY", [&[0, 0, 5, 2, 0, 0, 0, 0, 3][..], &[0; 5]].concat()),
    ] {
        for compress in [Compress::Never, Compress::Always] {
            let served = Served::for_peers(&world).await;
            let node = world.ly.issue("node", &[]).unwrap();
            let mut config = ClientConfig::clone(&client(Some(&node), &[&rustls::version::TLS13]));
            config.alpn_protocols = compress.offer(Duration::ZERO);
            let tcp = TcpStream::connect(served.address).await.unwrap();
            let name_of = ServerName::try_from("127.0.0.1").unwrap();
            let stream = TlsConnector::from(Arc::new(config)).connect(name_of, tcp).await.unwrap();
            let alpn = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
            let (mut reading, mut writing) = tokio::io::split(Line::agreed(stream, alpn.as_deref()));
            writing.write_all(PREFACE).await.unwrap();
            writing.flush().await.unwrap();
            // What is answered is read, so that the flood does not stop for that.
            tokio::spawn(async move { tokio::io::copy(&mut reading, &mut tokio::io::sink()).await });
            let flood = frame.repeat(200);
            let flooding = async { while writing.write_all(&flood).await.is_ok() && writing.flush().await.is_ok() {} };
            assert!(tokio::time::timeout(DEADLINE, flooding).await.is_ok(), "{name} end the connection");
            let ended = served.refusal().await;
            assert_eq!((ended.reason, ended.at), ("frame-flood", "exchange"), "{name}");
            assert!(ended.who.ends_with("ly.rabat.example/node"), "{ended:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_gone_without_a_word_is_noticed() {
    let world = World::new();
    let keep_alive = Duration::from_millis(100);
    let limits = Limits { keep_alive_every: keep_alive, keep_alive_wait: keep_alive, ..Limits::EXCHANGE };
    let served = Served::start(&world, Policy::Peers("ma.rabat.example".into()), limits).await;
    // It is there for TCP, and never answers a PING.
    let _silent = show(served.address, &world.ly.issue("node", &[]).unwrap()).await.unwrap();
    assert_eq!(served.connections.len(), 1);
    until("its connection is given up", || served.connections.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bounds_of_http_2_are_announced() {
    let world = World::new();
    let served = Served::for_peers(&world).await;
    let config = client(Some(&world.ly.issue("node", &[]).unwrap()), &[&rustls::version::TLS13]);
    let tcp = TcpStream::connect(served.address).await.unwrap();
    let mut stream = TlsConnector::from(config).connect(ServerName::try_from("127.0.0.1").unwrap(), tcp).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    let mut header = [0; 9];
    stream.read_exact(&mut header).await.unwrap();
    let mut settings = vec![0; usize::from(u16::from_be_bytes([header[1], header[2]]))];
    stream.read_exact(&mut settings).await.unwrap();
    let value = |id: u8| {
        let found = settings.chunks(6).find(|setting| setting[..2] == [0, id])?;
        Some(u32::from_be_bytes(found[2..].try_into().unwrap()))
    };
    // RFC 9113 §6.5.2: MAX_CONCURRENT_STREAMS, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE.
    assert_eq!((value(3), value(5), value(6)), (Some(16), Some(64 << 10), Some(16 << 10)));
}
