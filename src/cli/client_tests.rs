//! Tests of commands against a scripted node, over real mutual TLS on loopback.
#![allow(clippy::unwrap_used)]

mod faults;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use barid_core::{envelope, proto};
use clap::Parser;
use futures::stream::{self, Stream, StreamExt};
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType};
use rustls::RootCertStore;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

use super::messages::{Lang, Messages};
use super::output::{Captured, Output};
use super::{Cli, Context, Exit, Failure, run_client, wrap};
use crate::rpc::focal_point_server::{FocalPoint, FocalPointServer};

const NODE: &str = "spiffe://ne.rabat.example/node";
const ID: &str = "01976f6e-7c00-7000-8000-000000000001";

/// The requests that the node has received, and how often it is unavailable before it answers.
#[derive(Clone, Default)]
struct Node {
    requests: Arc<Mutex<Vec<String>>>,
    unavailable: Arc<Mutex<u32>>,
    /// The clock and roster by which it rejects a bulletin's id or `wait_for`.
    rejects: Arc<Mutex<Option<faults::Rejects>>>,
    /// Publishers of a bulletin with [`ID`] besides ne.
    others: Arc<Mutex<Vec<String>>>,
}

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn delivery(offset: u64) -> proto::Delivery {
    let draft = barid_core::bulletin::kinds::REGISTRY[0].sample().unwrap();
    let header = proto::Header { format: 1, member: "ne".into(), id: ID.into(), ..draft.header.unwrap() };
    let envelope = envelope::encode(&header, draft.body.as_ref().unwrap(), [1; 16]);
    proto::Delivery { offset, index: offset, envelope, feed: "ne.rabat.example/feed/1".into(), ..Default::default() }
}

#[tonic::async_trait]
impl FocalPoint for Node {
    type PublishStreamStream = ResponseStream<proto::PublishStreamResponse>;
    type SubscribeStream = ResponseStream<proto::SubscribeResponse>;

    async fn publish(
        &self,
        request: Request<proto::PublishRequest>,
    ) -> Result<Response<proto::PublishResponse>, Status> {
        let request = request.into_inner();
        let header = request.draft.unwrap().header.unwrap();
        self.requests.lock().push(header.id.clone());
        if let Some(rejects) = &*self.rejects.lock() {
            rejects.judge(&header.id, request.wait_for.as_ref())?;
        }
        if *self.unavailable.lock() > 0 {
            *self.unavailable.lock() -= 1;
            return Err(Status::unavailable("starting"));
        }
        if header.topic == "refused.topic" {
            let details = ErrorDetails::with_bad_request_violation("header.topic", "`refused.topic` is no group of ne");
            return Err(Status::with_error_details(tonic::Code::InvalidArgument, "invalid", details));
        }
        let receipt =
            proto::Receipt { feed: "ne.rabat.example/feed/1".into(), index: 5, id: header.id, ..Default::default() };
        let stored = vec![proto::StoredBy { member: "tn".into(), at: None }];
        Ok(Response::new(proto::PublishResponse {
            receipt: Some(receipt),
            stored,
            wait_reached: header.incidents.is_empty(),
        }))
    }

    async fn publish_stream(
        &self,
        _: Request<Streaming<proto::PublishStreamRequest>>,
    ) -> Result<Response<Self::PublishStreamStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn get(&self, request: Request<proto::GetRequest>) -> Result<Response<proto::GetResponse>, Status> {
        match request.into_inner().member.as_str() {
            member if member == "ne" || self.others.lock().iter().any(|other| other == member) => {
                Ok(Response::new(proto::GetResponse { delivery: Some(delivery(7)), ..Default::default() }))
            }
            _ => Err(Status::not_found("")),
        }
    }

    /// Sends two bulletins on each stream, then cuts the connection.
    async fn subscribe(
        &self,
        request: Request<proto::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        use proto::subscribe_request::Start;
        use proto::subscribe_response::Event;
        let proto::SubscribeRequest { start, cursor, begin, .. } = request.into_inner();
        let name = if let Some(Start::Subscription(name)) = start { format!("{name} ") } else { String::new() };
        let after = cursor.first().map_or(10, |offset| u64::from(*offset));
        self.requests.lock().push(if cursor.is_empty() {
            format!("{name}{begin}")
        } else {
            format!("{name}after {after}")
        });
        let event = |event| {
            let (Event::Position(offset) | Event::Delivery(proto::Delivery { offset, .. })) = &event else {
                panic!("{event:?}")
            };
            let cursor = vec![u8::try_from(*offset).unwrap()].into();
            Ok(proto::SubscribeResponse { event: Some(event), cursor, ..Default::default() })
        };
        let events =
            [Event::Position(after), Event::Delivery(delivery(after + 1)), Event::Delivery(delivery(after + 2))];
        let cut = stream::once(async { Err(Status::unavailable("cut")) });
        Ok(Response::new(Box::pin(stream::iter(events).map(event).chain(cut))))
    }

    async fn acknowledge(
        &self,
        request: Request<proto::AcknowledgeRequest>,
    ) -> Result<Response<proto::AcknowledgeResponse>, Status> {
        self.requests.lock().push(format!("acknowledged {}", request.into_inner().cursor[0]));
        Ok(Response::new(proto::AcknowledgeResponse {}))
    }

    async fn list_subscriptions(
        &self,
        request: Request<proto::ListSubscriptionsRequest>,
    ) -> Result<Response<proto::ListSubscriptionsResponse>, Status> {
        let (name, next_page_token) = match request.into_inner().page_token.as_str() {
            "" => ("alerts", "alerts".to_owned()),
            _ => ("desk", String::new()),
        };
        let filter = Some(proto::Filter { topics: vec!["customs.>".into()], ..Default::default() });
        let subscription = proto::Subscription { name: name.into(), filter, offset: 5, ..Default::default() };
        let subscriptions = vec![subscription];
        Ok(Response::new(proto::ListSubscriptionsResponse { subscriptions, next_page_token, newest_offset: 12 }))
    }

    async fn delete_subscription(
        &self,
        request: Request<proto::DeleteSubscriptionRequest>,
    ) -> Result<Response<proto::DeleteSubscriptionResponse>, Status> {
        let name = request.into_inner().subscription;
        if name != "desk" {
            let info = [("subscription".to_owned(), name), ("cause".to_owned(), "unknown".to_owned())];
            let details = ErrorDetails::with_error_info("UNKNOWN_SUBSCRIPTION", "barid", info);
            return Err(Status::with_error_details(tonic::Code::NotFound, "no such name", details));
        }
        self.requests.lock().push(format!("removed {name}"));
        Ok(Response::new(proto::DeleteSubscriptionResponse {}))
    }

    async fn history(
        &self,
        request: Request<proto::HistoryRequest>,
    ) -> Result<Response<proto::HistoryResponse>, Status> {
        let before = request.into_inner().page_token.parse().unwrap_or(3);
        let next_page_token = if before > 2 { (before - 1).to_string() } else { String::new() };
        Ok(Response::new(proto::HistoryResponse {
            warnings: Vec::new(),
            deliveries: vec![delivery(before - 1)],
            next_page_token,
            damaged: Vec::new(),
        }))
    }
}

/// Starts a node on loopback with its authority, and writes the profile of a focal point.
async fn node(identity: &str) -> (Node, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let issue = |uri: &str| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &authority).unwrap(), key)
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let (person, person_key) = issue("spiffe://ne.rabat.example/focal-point/police-niamey");
    write("ca.pem", &authority.pem());
    write("me.pem", &person.pem());
    write("me.key", &person_key.serialize_pem());
    std::fs::set_permissions(folder.path().join("me.key"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let endpoint = listener.local_addr().unwrap();
    write(
        "client.toml",
        &format!(
            "exchange = \"rabat.example\"\nmember = \"ne\"\nendpoint = \"{endpoint}\"\ncertificate = \"me.pem\"\nkey = \"me.key\"\nca = \"ca.pem\"\n"
        ),
    );

    let (certificate, key) = issue(identity);
    let mut anchors = RootCertStore::empty();
    anchors.add(authority.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let people = WebPkiClientVerifier::builder_with_provider(anchors.into(), provider.clone()).build().unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(people)
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let incoming = stream::unfold((listener, acceptor), |(listener, acceptor)| async move {
        loop {
            let (tcp, _) = listener.accept().await.ok()?;
            if let Ok(tls) = acceptor.accept(tcp).await {
                let (plain, inner) = tokio::io::duplex(1 << 16);
                tokio::spawn(async move { copy_bidirectional(&mut { tls }, &mut { inner }).await });
                return Some((Ok::<_, std::io::Error>(plain), (listener, acceptor)));
            }
        }
    });
    let node = Node::default();
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<FocalPointServer<Node>>().await;
    let server = Server::builder().add_service(FocalPointServer::new(node.clone())).add_service(health);
    tokio::spawn(server.serve_with_incoming(incoming));
    (node, folder)
}

/// Runs one command line with the profile in `folder`.
async fn barid(folder: &Path, lang: Lang, args: &[&str]) -> (Result<Exit, Failure>, String) {
    barid_in(folder, lang, args, 100_000).await
}

/// As [`barid`], on a terminal of this width.
async fn barid_in(folder: &Path, lang: Lang, args: &[&str], width: usize) -> (Result<Exit, Failure>, String) {
    let cli = Cli::try_parse_from(std::iter::once("barid").chain(args.iter().copied())).unwrap();
    let (output, captured): (Output, Captured) = Output::captured(cli.json);
    let context = Context::new(Messages::new(lang), output.with_width(width), Some(folder.join("client.toml")));
    let result = run_client(&context, cli.command).await;
    if let Err(failure) = &result {
        failure.show(&context.messages, &context.output);
    }
    let text = String::from_utf8(captured.lock().clone()).unwrap();
    (result, text)
}

/// Sets another endpoint in the profile.
fn at_endpoint(folder: &Path, address: std::net::SocketAddr) {
    let profile = folder.join("client.toml");
    let text = std::fs::read_to_string(&profile).unwrap();
    let endpoint = text.lines().find(|line| line.starts_with("endpoint")).unwrap();
    std::fs::write(&profile, text.replace(endpoint, &format!("endpoint = \"{address}\""))).unwrap();
}

/// Adds a roster to the profile.
fn roster_beside(folder: &Path) {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/roster-1.note");
    let profile = folder.join("client.toml");
    let text = std::fs::read_to_string(&profile).unwrap();
    std::fs::write(&profile, format!("{text}roster = \"{golden}\"\n")).unwrap();
}

fn draft(folder: &Path, change: impl FnOnce(&mut proto::Header)) -> String {
    draft_of(folder, "draft.json", change)
}

fn draft_of(folder: &Path, name: &str, change: impl FnOnce(&mut proto::Header)) -> String {
    let mut draft = barid_core::bulletin::kinds::REGISTRY[0].sample().unwrap();
    let header = draft.header.get_or_insert_default();
    header.id.clear();
    header.incidents.clear();
    change(header);
    let path = folder.join(name);
    std::fs::write(&path, serde_json::to_string(&draft).unwrap()).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn publish_retries_are_idempotent() {
    let (node, folder) = node(NODE).await;
    *node.unavailable.lock() = 1;
    let draft = draft(folder.path(), |_| {});
    let (result, text) = barid(folder.path(), Lang::Fr, &["publish", &draft]).await;
    assert_eq!(result.unwrap(), Exit::Ok, "{text}");
    assert!(text.contains("Publié dans le journal ne.rabat.example/feed/1, à l'index 5."), "{text}");
    assert!(text.contains("✓ tn"), "{text}");
    let requests = node.requests.lock().clone();
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[0], requests[1], "a repetition keeps the id");
    assert!(!requests[0].is_empty());
}

#[tokio::test]
async fn wait_for_timeout_exits_with_3() {
    let (_node, folder) = node(NODE).await;
    let draft = draft(folder.path(), |header| header.incidents.push("slow".into()));
    let args = ["publish", &draft, "--wait-for", "tn,ma", "--timeout", "7"];
    let (result, text) = barid(folder.path(), Lang::En, &args).await;
    assert_eq!(result.unwrap(), Exit::NotReached);
    assert!(text.contains("Missing: ma"), "{text}");
    let (result, text) = barid(folder.path(), Lang::En, &["--json", "publish", &draft, "--wait-for", "2"]).await;
    assert_eq!(result.unwrap(), Exit::NotReached);
    let response: proto::PublishResponse = serde_json::from_str(&text).unwrap();
    assert_eq!(response.receipt.unwrap().index, 5);
}

#[tokio::test]
async fn invalid_argument_names_field() {
    let (_node, folder) = node(NODE).await;
    let draft = draft(folder.path(), |header| header.topic = "refused.topic".into());
    let (result, text) = barid(folder.path(), Lang::Ar, &["publish", &draft]).await;
    assert_eq!(result.unwrap_err().exit_code(), Exit::Failure);
    assert!(text.contains("header.topic") && text.contains("`refused.topic` is no group of ne"), "{text}");
}

#[tokio::test]
async fn watch_resumes_after_disconnect() {
    let (node, folder) = node(NODE).await;
    let (result, text) = barid(folder.path(), Lang::En, &["watch", "--json", "--count", "3"]).await;
    assert_eq!(result.unwrap(), Exit::Ok);
    let offsets: Vec<String> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .map(|object| object["offset"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(offsets, ["11", "12", "13"]);
    assert_eq!(*node.requests.lock(), ["", "after 12"]);
}

#[tokio::test]
async fn watch_acknowledges_named_subscription() {
    let (node, folder) = node(NODE).await;
    let args = ["watch", "--subscription", "desk", "--count", "2"];
    let (result, text) = barid(folder.path(), Lang::Fr, &args).await;
    assert_eq!(result.unwrap(), Exit::Ok);
    assert!(text.contains("EXERCICE"), "{text}");
    assert_eq!(*node.requests.lock(), ["desk ", "acknowledged 12"]);
    // It sends a start position only with --from.
    let args = ["watch", "--subscription", "desk", "--from", "beginning", "--count", "2"];
    barid(folder.path(), Lang::Fr, &args).await.0.unwrap();
    assert_eq!(node.requests.lock()[2], "desk beginning");
}

#[tokio::test]
async fn watch_with_cursor_file_resumes_without_duplicates() {
    let (node, folder) = node(NODE).await;
    let file = folder.path().join("cursor.json").display().to_string();
    let args = ["watch", "--json", "--cursor", &file, "--from", "beginning", "--count", "1"];
    let watch_once = async || {
        let (result, text) = barid(folder.path(), Lang::En, &args).await;
        assert_eq!(result.unwrap(), Exit::Ok, "{text}");
        let objects = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        objects.map(|object| (object["offset"].clone(), object["cursor"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(watch_once().await, [("11".into(), "Cw".into())]);
    assert_eq!(watch_once().await, [("12".into(), "DA".into())]);
    assert_eq!(*node.requests.lock(), ["beginning", "after 11"]);
    // The cursor is saved before the first bulletin is shown, so an unwritable file fails at once.
    let nowhere = folder.path().join("missing/cursor.json").display().to_string();
    let args = ["watch", "--cursor", &nowhere, "--from", "beginning", "--count", "1"];
    let (result, text) = barid(folder.path(), Lang::En, &args).await;
    assert_eq!(result.unwrap_err().id(), "cursor-file-unwritten");
    assert!(!text.contains("EXERCISE"), "{text}");
}

#[tokio::test]
async fn subscriptions_are_paged_and_deleted() {
    let (node, folder) = node(NODE).await;
    let (result, text) = barid(folder.path(), Lang::En, &["subscriptions", "list"]).await;
    assert_eq!(result.unwrap(), Exit::Ok);
    let rows: Vec<&str> = text.lines().collect();
    assert_eq!(rows.len(), 3, "{text}");
    assert!(rows[1].starts_with("alerts") && rows[2].starts_with("desk") && rows[2].contains("--topic customs.>"));
    let (_, text) = barid(folder.path(), Lang::En, &["subscriptions", "list", "--json"]).await;
    assert_eq!(text.lines().count(), 2, "{text}");
    barid(folder.path(), Lang::En, &["subscriptions", "remove", "desk"]).await.0.unwrap();
    assert_eq!(*node.requests.lock(), ["removed desk"]);
    for lang in Lang::ALL {
        let (result, text) = barid(folder.path(), lang, &["subscriptions", "remove", "other"]).await;
        let failure = result.unwrap_err();
        assert_eq!((failure.id(), failure.exit_code()), ("no-subscription", Exit::Failure));
        assert!(text.contains("other") && text.contains("barid subscriptions list"), "{text}");
    }
}

#[tokio::test]
async fn history_is_paged_and_show_finds_bulletin() {
    let (_node, folder) = node(NODE).await;
    let (result, text) = barid(folder.path(), Lang::En, &["history", "--json"]).await;
    assert_eq!(result.unwrap(), Exit::Ok);
    assert_eq!(text.lines().count(), 2);
    let (result, text) = barid(folder.path(), Lang::En, &["show", ID]).await;
    assert_eq!(result.unwrap(), Exit::Ok);
    assert!(text.contains("EXERCISE"), "{text}");
    let (result, text) = barid(folder.path(), Lang::En, &["show", &format!("ma/{ID}")]).await;
    assert_eq!(result.unwrap_err().id(), "no-such-bulletin");
    assert!(text.contains(&format!("ma/{ID}")), "{text}");
}

#[tokio::test]
async fn show_finds_bulletin_by_beginning_of_id_or_offset() {
    let (_node, folder) = node(NODE).await;
    for name in ["01976f6e-7c00", "0197", "ne/01976f6e-7c00-7", "#2", "1"] {
        let (result, text) = barid(folder.path(), Lang::En, &["show", name, "--json"]).await;
        assert_eq!(result.unwrap(), Exit::Ok, "{name}: {text}");
        assert!(text.contains(ID), "{name}: {text}");
    }
    for name in ["01976f70", "ne/0196", "#9"] {
        let (result, text) = barid(folder.path(), Lang::En, &["show", name]).await;
        assert_eq!(result.unwrap_err().id(), "no-such-bulletin", "{text}");
        assert!(text.contains(name), "{text}");
    }
    let (result, _) = barid(folder.path(), Lang::En, &["show", "ne/01976f6e-7c00", "--member", "tn"]).await;
    assert_eq!(result.unwrap_err().id(), "two-members");
}

#[tokio::test]
async fn text_fits_eighty_columns() {
    let (_node, folder) = node(NODE).await;
    let draft = draft(folder.path(), |_| {});
    let rejected = draft_of(folder.path(), "rejected.json", |header| header.topic = "refused.topic".into());
    for lang in Lang::ALL {
        for args in [
            &["history"][..],
            &["watch", "--from", "beginning", "--count", "2"],
            &["show", ID],
            &["publish", &draft],
            &["publish", &rejected],
            &["subscriptions", "list"],
            &["show", "ma/0196"],
        ] {
            let (_, text) = barid_in(folder.path(), lang, args, 80).await;
            for line in text.lines() {
                let is_command = line.trim_start().starts_with("barid ");
                let is_whole = is_command || line.contains(folder.path().to_str().unwrap());
                assert!(wrap::columns(line) <= 80 || is_whole, "{lang:?} {args:?}: {line}");
            }
        }
    }
}

#[tokio::test]
async fn history_prints_next_page_command() {
    let (_node, folder) = node(NODE).await;
    let args = ["history", "--limit", "1", "--topic", "security.>", "--since", "2026-11-23"];
    let (_, text) = barid(folder.path(), Lang::En, &args).await;
    let next = "history --topic 'security.>' --since 2026-11-23T00:00:00Z --limit 1 --before 2";
    assert!(text.contains(next), "{text}");
    let (_, text) = barid(folder.path(), Lang::En, &["history", "--json", "--limit", "1"]).await;
    let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last, serde_json::json!({"next": {"before": "2"}}));
    let (_, text) = barid(folder.path(), Lang::En, &["history", "--json", "--limit", "1", "--before", "2"]).await;
    assert_eq!(text.lines().count(), 1, "the last page: {text}");
    assert!(text.contains(r#""offset":"1""#), "{text}");
}

#[tokio::test]
async fn ambiguous_bulletin_id_is_rejected() {
    let (node, folder) = node(NODE).await;
    roster_beside(folder.path());
    let (result, _) = barid(folder.path(), Lang::En, &["show", ID]).await;
    assert_eq!(result.unwrap(), Exit::Ok);
    node.others.lock().push("tn".into());
    let (result, text) = barid(folder.path(), Lang::En, &["show", ID]).await;
    assert_eq!(result.unwrap_err().id(), "several-bulletins");
    assert!(text.contains("ne, tn") && text.contains("--member ne"), "{text}");
    let (result, _) = barid(folder.path(), Lang::En, &["show", ID, "--member", "tn"]).await;
    assert_eq!(result.unwrap(), Exit::Ok);
    let (result, _) = barid(folder.path(), Lang::En, &["show", &format!("ne/{ID}"), "--member", "tn"]).await;
    assert_eq!(result.unwrap_err().exit_code(), Exit::Usage);
}

#[tokio::test(start_paused = true)]
async fn timeout_bounds_whole_command_with_unresponsive_peer() {
    // A client waits in the listener's queue and never gets an answer.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (_node, folder) = node(NODE).await;
    let draft = draft(folder.path(), |_| {});
    at_endpoint(folder.path(), silent.local_addr().unwrap());
    for args in [
        &["health", "--timeout", "2"][..],
        &["status", "--timeout", "2"],
        &["history", "--timeout", "2"],
        &["show", ID, "--timeout", "2"],
        &["evidence", ID, "--timeout", "2"],
        &["feed", "--timeout", "2", "forks"],
        &["publish", &draft, "--timeout", "2"],
        &["watch", "--timeout", "2"],
    ] {
        let begun = tokio::time::Instant::now();
        let (result, text) = barid(folder.path(), Lang::En, args).await;
        assert_eq!(result.unwrap_err().exit_code(), Exit::NotReached, "{args:?}: {text}");
        // The test's clock is paused and advances only by what is waited for.
        let elapsed_ms = begun.elapsed().as_millis();
        assert!((1_900..=2_100).contains(&elapsed_ms), "{args:?} took {elapsed_ms} ms: {text}");
        let expected = if args[0] == "publish" { "--id " } else { "within 2 s" };
        assert!(text.contains(expected), "{args:?}: {text}");
    }
}

#[tokio::test]
async fn health_sets_exit_code() {
    let (_node, folder) = node(NODE).await;
    let (result, _) = barid(folder.path(), Lang::En, &["health"]).await;
    assert_eq!(result.unwrap(), Exit::Ok);
}

#[tokio::test]
async fn node_with_other_identity_is_rejected() {
    let (node, folder) = node("spiffe://ne.rabat.example/focal-point/someone").await;
    let draft = draft(folder.path(), |_| {});
    let args = ["publish", &draft, "--timeout", "1"];
    let (result, text) = barid(folder.path(), Lang::En, &args).await;
    let failure = result.unwrap_err();
    assert_eq!((failure.id(), failure.exit_code()), ("node-another", Exit::Usage), "{text}");
    assert!(text.contains("focal-point/someone") && !text.contains("trying again"), "{text}");
    assert!(node.requests.lock().is_empty());
}

#[tokio::test]
async fn rejected_client_certificate_is_explained_and_not_retried() {
    let (node, folder) = node(NODE).await;
    let draft = draft(folder.path(), |_| {});
    let stranger = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "somebody else");
    params.subject_alt_names =
        vec![SanType::URI("spiffe://ne.rabat.example/focal-point/police-niamey".try_into().unwrap())];
    std::fs::write(folder.path().join("me.pem"), params.self_signed(&stranger).unwrap().pem()).unwrap();
    std::fs::write(folder.path().join("me.key"), stranger.serialize_pem()).unwrap();
    for args in [&["history"][..], &["publish", &draft], &["watch"], &["health"]] {
        let (result, text) = barid(folder.path(), Lang::Fr, args).await;
        let failure = result.unwrap_err();
        assert_eq!((failure.id(), failure.exit_code()), ("certificate-unknown-authority", Exit::Failure), "{text}");
        assert!(text.contains("ne connaît pas l'autorité") && !text.contains("nouvel essai"), "{text}");
    }
    assert!(node.requests.lock().is_empty());
}

#[tokio::test]
async fn connection_refused_is_explained() {
    let (_node, folder) = node(NODE).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    at_endpoint(folder.path(), closed);
    let work = barid(folder.path(), Lang::Fr, &["health"]);
    let (result, text) = tokio::time::timeout(Duration::from_secs(20), work).await.unwrap();
    assert_eq!(result.unwrap_err().exit_code(), Exit::NotReached);
    assert!(text.contains("injoignable") && text.contains("que faire"), "{text}");
}
