//! Real TCP and real TLS: a listener, and clients that each have one defect.

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

use super::super::compression::negotiated;
use super::super::{
    AccessLevel, Compress, Connections, Connector, Credentials, Limits, ListenerOptions, OnRejected, PeerIdentity,
    Policy, RejectionRecord, SpiffeId, listen,
};
use super::world::{World, days, der, roster};
use crate::budgets::{Bounds, Budget, Class, table};
use crate::calls::{self, Admission, Calls, Terms};
use crate::pki::{Authority, Issued};

/// Longest wait for a condition. The machine may be busy.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);
/// Live connections end within this time (DESIGN §5).
const ENDS_WITHIN: Duration = Duration::from_secs(2);
/// An HTTP/2 client's first bytes: preface and empty SETTINGS (RFC 9113 §3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

/// More connections than a test opens.
const MANY: Bounds = Bounds { total: 10_000, per_owner: 10_000, reserved: 0 };

/// Admits every call.
struct AdmitAll;

impl Admission for AdmitAll {
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
    rejection_records: Arc<Mutex<Vec<RejectionRecord>>>,
    credentials: Credentials,
    folder: tempfile::TempDir,
}

impl Served {
    /// Starts Morocco's listener.
    pub(super) async fn start(world: &World, policy: Policy, limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let issued = world.ma.issue("node", &["127.0.0.1".into()]).unwrap();
        Self::presenting(world, &issued, folder, policy, limits, MANY).await
    }

    /// Starts Morocco's listener for its own clients, with bounds on their connections.
    async fn for_clients(world: &World, limits: Limits, bounds: Bounds) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let issued = world.ma.issue("node", &["127.0.0.1".into()]).unwrap();
        Self::presenting(world, &issued, folder, Policy::OwnClients("ma.rabat.example".into()), limits, bounds).await
    }

    /// Starts a listener that presents another certificate than Morocco's.
    async fn presenting(
        world: &World,
        issued: &Issued,
        folder: tempfile::TempDir,
        policy: Policy,
        limits: Limits,
        bounds: Bounds,
    ) -> Self {
        let budget = Budget::with(&table::API_CONNECTIONS, bounds);
        let credentials = credentials(&folder, issued);
        let (rejection_records, on_rejected) = recorded();
        let connections = Connections::reporting(Arc::clone(&on_rejected));
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let listener = ListenerOptions {
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
            on_rejected: Arc::clone(&on_rejected),
        };
        let incoming = listen(tcp, listener).unwrap();
        let (_, health) = tonic_health::server::health_reporter();
        let calls = Calls::new(tonic::service::Routes::new(health), Arc::new(AdmitAll));
        tokio::spawn(calls::serve(incoming, calls, limits, std::future::pending()));
        let watching = connections.clone().watch(world.trust.clone(), world.crls.clone(), move |end| on_rejected(end));
        tokio::spawn(watching);
        Self { address, connections, rejection_records, credentials, folder }
    }

    pub(super) async fn for_peers(world: &World) -> Self {
        Self::start(world, Policy::Peers("ma.rabat.example".into()), Limits::EXCHANGE).await
    }

    /// Returns the records of rejected or ended connections, once there are `count`.
    pub(super) async fn recorded(&self, count: usize) -> Vec<RejectionRecord> {
        until("rejections are reported", || self.rejection_records.lock().len() >= count).await;
        std::mem::take(&mut *self.rejection_records.lock())
    }

    /// Returns the only rejection record.
    pub(super) async fn rejection_record(&self) -> RejectionRecord {
        let mut recorded = self.recorded(1).await;
        assert_eq!(recorded.len(), 1, "{recorded:?}");
        recorded.remove(0)
    }
}

pub(super) fn credentials(folder: &tempfile::TempDir, issued: &Issued) -> Credentials {
    let (certificate, key) = (folder.path().join("node.pem"), folder.path().join("node.key"));
    std::fs::write(&certificate, &issued.certificate).unwrap();
    std::fs::write(&key, &issued.key).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    Credentials::load(&certificate, &key).unwrap()
}

pub(super) fn recorded() -> (Arc<Mutex<Vec<RejectionRecord>>>, OnRejected) {
    let rejection_records: Arc<Mutex<Vec<RejectionRecord>>> = Arc::default();
    let to = Arc::clone(&rejection_records);
    (rejection_records, Arc::new(move |rejection_record| to.lock().push(rejection_record.clone())))
}

pub(super) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, waiting).await.is_ok(), "timeout: {what}");
}

/// Accepts every server certificate: these tests check what the server verifies.
#[derive(Debug)]
struct AcceptAnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAnyServer {
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
    presents: Option<&Issued>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAnyServer(provider)));
    let mut config = match presents {
        None => config.with_no_client_auth(),
        Some(issued) => {
            let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
            config.with_client_auth_cert(vec![der(issued)], key).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// Connects and waits for an HTTP/2 reply, which shows that the connection was admitted.
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

pub(super) async fn connect_as(address: SocketAddr, issued: &Issued) -> io::Result<TlsStream<TcpStream>> {
    connect(address, client(Some(issued), &[&rustls::version::TLS13])).await
}

/// Returns the alert with which a certificate is rejected. The client sends nothing that could
/// displace the alert.
async fn rejected(address: SocketAddr, issued: &Issued) -> rustls::AlertDescription {
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

/// Returns whether the other end closes the connection in time. Reads all remaining data.
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
async fn invalid_certificate_is_rejected_with_one_record() {
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
        assert_eq!(rejected(served.address, issued).await, *alert, "{reason}");
        let rejection_record = served.rejection_record().await;
        assert_eq!((rejection_record.reason, rejection_record.at), (*reason, "exchange"), "{rejection_record:?}");
        assert!(rejection_record.actor.starts_with("127.0.0.1:"), "{rejection_record:?}");
    }
    assert!(served.connections.is_empty());
    connect_as(served.address, &world.ly.issue("node", &[]).unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn api_listener_rejects_nodes_and_other_members_clients() {
    let world = World::new();
    let served = Served::start(&world, Policy::OwnClients("ma.rabat.example".into()), Limits::API).await;
    for (reason, issued) in [
        ("not-our-member", world.ly.issue("node", &[]).unwrap()),
        ("not-our-member", world.ly.issue("focal-point/police-hq", &[]).unwrap()),
        ("is-a-node", world.ma.issue("node", &[]).unwrap()),
    ] {
        assert!(connect_as(served.address, &issued).await.is_err(), "{reason}");
        assert_eq!(served.rejection_record().await.reason, reason);
    }
    connect_as(served.address, &world.ma.issue("focal-point/police-hq", &[]).unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_without_mutual_tls_1_3_is_rejected() {
    let world = World::new();
    let served = Served::for_peers(&world).await;
    let mut plain = TcpStream::connect(served.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: ma.rabat.example\r\n\r\n").await.unwrap();
    assert_eq!(served.rejection_record().await.reason, "plain-text");
    drop(TcpStream::connect(served.address).await.unwrap());
    assert_eq!(served.rejection_record().await.reason, "handshake-aborted");
    let node = world.ly.issue("node", &[]).unwrap();
    assert!(connect(served.address, client(Some(&node), &[&rustls::version::TLS12])).await.is_err());
    assert_eq!(served.rejection_record().await.reason, "tls-version");
    assert!(connect(served.address, client(None, &[&rustls::version::TLS13])).await.is_err());
    assert_eq!(served.rejection_record().await.reason, "no-certificate");
}

#[tokio::test(flavor = "multi_thread")]
async fn dialler_rejects_a_server_with_another_identity() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let forged = world.ly.issue_for(&["spiffe://ma.rabat.example/node"], &[], days(-1, 1)).unwrap();
    let policy = Policy::Peers("ma.rabat.example".into());
    let served = Served::presenting(&world, &forged, folder, policy, Limits::EXCHANGE, MANY).await;
    let own = tempfile::tempdir().unwrap();
    let (rejection_records, on_rejected) = recorded();
    let connector = Connector {
        verifier: world.verifier(Policy::Peers("ly.rabat.example".into())),
        credentials: credentials(&own, &world.ly.issue("node", &[]).unwrap()),
        connections: Connections::default(),
        compress: Compress::Never,
        on_rejected,
    };
    let endpoint = served.address.to_string();
    assert!(connector.dial(&endpoint, SpiffeId::node("ma.rabat.example")).await.is_err());
    assert!(connector.dial(&endpoint, SpiffeId::node("ly.rabat.example")).await.is_err());
    let recorded = std::mem::take(&mut *rejection_records.lock());
    let recorded: Vec<_> = recorded
        .iter()
        .map(|rejection_record| (rejection_record.reason, rejection_record.actor.as_str(), rejection_record.at))
        .collect();
    let (ma, ly) = ("spiffe://ma.rabat.example/node", "spiffe://ly.rabat.example/node");
    assert_eq!(recorded, [("wrong-ca", ma, "dial"), ("identity-mismatch", ly, "dial")]);

    // An unreachable node is not a rejection.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    assert!(connector.dial(&free, SpiffeId::node("ma.rabat.example")).await.is_err());
    assert!(rejection_records.lock().is_empty());

    let honest = Served::for_peers(&world).await;
    let channel = connector.dial(&honest.address.to_string(), SpiffeId::node("ma.rabat.example")).await.unwrap();
    assert_eq!(connector.connections.len(), 1);

    // A dialled connection also ends when the other end is revoked.
    let revoked = honest.credentials.certificate().unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&revoked).unwrap();
    assert!(world.offer(&world.ma.revoke(&[parsed.raw_serial().to_vec()], 1).unwrap()));
    let ended = connector.connections.reverify(super::super::Which::All, UnixTime::now());
    assert_eq!((ended.len(), ended[0].reason, ended[0].actor.as_str(), ended[0].at), (1, "revoked", ma, "dial"));
    drop(channel);
}

#[tokio::test(flavor = "multi_thread")]
async fn live_stream_ends_when_its_certificate_is_revoked() {
    let world = World::new();
    let served = Served::for_peers(&world).await;
    let (gone, stays) = (world.ly.issue("node", &[]).unwrap(), world.ly.issue("node", &[]).unwrap());
    let mut stream = connect_as(served.address, &gone).await.unwrap();
    let mut other = connect_as(served.address, &stays).await.unwrap();
    assert!(world.offer(&world.ly.revoke(std::slice::from_ref(&gone.serial), 1).unwrap()));
    assert!(ends(&mut stream, ENDS_WITHIN).await);
    let rejection_record = served.rejection_record().await;
    assert_eq!(
        (rejection_record.reason, rejection_record.actor.as_str()),
        ("revoked", "spiffe://ly.rabat.example/node")
    );
    assert_eq!(served.connections.len(), 1);
    assert!(!ends(&mut other, Duration::from_millis(100)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn live_stream_ends_when_its_member_is_removed() {
    let world = World::new();
    let served = Served::for_peers(&world).await;
    let mut stream = connect_as(served.address, &world.ly.issue("node", &[]).unwrap()).await.unwrap();
    world.trust.replace(&roster(&[("ma", &[&world.ma])]));
    assert!(ends(&mut stream, ENDS_WITHIN).await);
    let rejection_record = served.rejection_record().await;
    assert_eq!(
        (rejection_record.reason, rejection_record.actor.as_str()),
        ("unknown-member", "spiffe://ly.rabat.example/node")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn live_stream_ends_when_its_certificate_expires() {
    let world = World::new();
    let served = Served::for_peers(&world).await;
    let short = world.ly.issue_for(&["spiffe://ly.rabat.example/node"], &[], seconds(-60, 3)).unwrap();
    let mut stream = connect_as(served.address, &short).await.unwrap();
    assert!(ends(&mut stream, DEADLINE).await);
    assert_eq!(served.rejection_record().await.reason, "expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_sessions_are_not_resumed() {
    let world = World::new();
    let served = Served::for_peers(&world).await;
    // The client stores sessions and would resume.
    let config = client(Some(&world.ly.issue("node", &[]).unwrap()), &[&rustls::version::TLS13]);
    for _ in 0..2 {
        let stream = connect(served.address, Arc::clone(&config)).await.unwrap();
        let kind = stream.get_ref().1.handshake_kind();
        assert!(matches!(kind, Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest)), "{kind:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_certificate_is_presented_without_a_restart() {
    let world = World::new();
    let served = Served::for_peers(&world).await;
    let node = world.ly.issue("node", &[]).unwrap();
    let presented =
        |stream: &TlsStream<TcpStream>| stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned();
    let mut before = connect_as(served.address, &node).await.unwrap();
    let renewed = world.ma.issue("node", &[]).unwrap();
    std::fs::write(served.folder.path().join("node.pem"), &renewed.certificate).unwrap();
    assert!(served.credentials.read().is_err(), "certificate and key do not belong together");
    assert_ne!(presented(&connect_as(served.address, &node).await.unwrap()), der(&renewed));
    std::fs::write(served.folder.path().join("node.key"), &renewed.key).unwrap();
    let read = served.credentials.read().unwrap();
    assert!(!served.credentials.is_current(&read));
    served.credentials.put(read);
    assert_eq!(presented(&connect_as(served.address, &node).await.unwrap()), der(&renewed));
    assert!(!ends(&mut before, Duration::from_millis(100)).await, "connected peers stay connected");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_bounded_per_identity_and_per_address() {
    let world = World::new();
    let limits = Limits { per_source_max: 3, ..Limits::API };
    let served = Served::for_clients(&world, limits, Bounds { total: 100, per_owner: 2, reserved: 0 }).await;
    let person = |name: &str| world.ma.issue(&format!("agency/{name}"), &[]).unwrap();
    let (one, other) = (person("one"), person("other"));
    let held = [connect_as(served.address, &one).await.unwrap(), connect_as(served.address, &one).await.unwrap()];
    assert!(connect_as(served.address, &one).await.is_err());
    let rejection_record = served.rejection_record().await;
    assert_eq!(rejection_record.reason, "too-many-connections");
    assert!(rejection_record.detail.contains("spiffe://ma.rabat.example/agency/one"), "{rejection_record:?}");
    let third = connect_as(served.address, &other).await.unwrap();
    assert!(connect_as(served.address, &other).await.is_err());
    assert!(served.rejection_record().await.detail.contains("this address"));
    drop((held, third));
    until("the closed ones are forgotten", || served.connections.is_empty()).await;
    connect_as(served.address, &one).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_are_evicted_for_operators_and_smaller_holders() {
    let world = World::new();
    let bounds = Bounds { total: 20, per_owner: 8, reserved: 2 };
    let served = Served::for_clients(&world, Limits { per_source_max: 20, ..Limits::API }, bounds).await;
    let person = |path: &str| world.ma.issue(path, &[]).unwrap();
    let mut held = Vec::new();
    for name in ["agency/one", "agency/two"] {
        for _ in 0..8 {
            held.push(connect_as(served.address, &person(name)).await.unwrap());
        }
    }
    // Very few without a grant.
    for _ in 0..4 {
        if let Ok(connection) = connect_as(served.address, &person("stranger/one")).await {
            held.push(connection);
        }
    }
    assert_eq!(served.connections.len(), 18, "all but the reserve");
    served.rejection_records.lock().clear();
    // Operators use the reserve, and then evict idle connections.
    for _ in 0..4 {
        held.push(connect_as(served.address, &person("operator/night-shift")).await.unwrap());
    }
    let gone = served.recorded(2).await;
    assert!(
        gone.iter().all(|ended| ended.reason == "connection-evicted" && ended.actor.ends_with("stranger/one")),
        "{gone:?}"
    );
    // A new identity is admitted too, in place of connections of identities that have most, until
    // the reserve is free again.
    held.push(connect_as(served.address, &person("focal-point/customs")).await.unwrap());
    let gone = served.recorded(3).await;
    assert!(
        gone.iter().all(|ended| ended.reason == "connection-evicted" && ended.actor.contains("/agency/")),
        "{gone:?}"
    );
    // They cannot reconnect in place of an identity that has fewer.
    assert!(connect_as(served.address, &person(gone[0].actor.rsplit("example/").next().unwrap())).await.is_err());
    assert!(connect_as(served.address, &person("stranger/two")).await.is_err());
    assert!(served.recorded(2).await.iter().all(|rejection_record| rejection_record.reason == "too-many-connections"));
}

#[tokio::test(flavor = "multi_thread")]
async fn useless_frame_flood_ends_the_connection_with_a_record() {
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
            let (mut reading, mut writing) = tokio::io::split(negotiated(stream, alpn.as_deref()));
            writing.write_all(PREFACE).await.unwrap();
            writing.flush().await.unwrap();
            // Read the replies, so that the flood does not stop for them.
            tokio::spawn(async move { tokio::io::copy(&mut reading, &mut tokio::io::sink()).await });
            let flood = frame.repeat(200);
            let flooding = async { while writing.write_all(&flood).await.is_ok() && writing.flush().await.is_ok() {} };
            assert!(tokio::time::timeout(DEADLINE, flooding).await.is_ok(), "{name} end the connection");
            let ended = served.rejection_record().await;
            assert_eq!((ended.reason, ended.at), ("frame-flood", "exchange"), "{name}");
            assert!(ended.actor.ends_with("ly.rabat.example/node"), "{ended:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_peer_is_disconnected_by_keep_alive() {
    let world = World::new();
    let keep_alive = Duration::from_millis(100);
    let limits = Limits { keep_alive_every: keep_alive, keep_alive_wait: keep_alive, ..Limits::EXCHANGE };
    let served = Served::start(&world, Policy::Peers("ma.rabat.example".into()), limits).await;
    // It has a TCP connection and never answers a PING.
    let _silent = connect_as(served.address, &world.ly.issue("node", &[]).unwrap()).await.unwrap();
    assert_eq!(served.connections.len(), 1);
    until("its connection is closed", || served.connections.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_settings_announce_the_limits() {
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
