//! Connections that a node rejects or closes, and files that it reloads without a restart.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use barid::config::NodeConfig;
use barid::pki::{Authority, Issued};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use time::{Duration, OffsetDateTime};

use crate::world::{DEADLINE, MEMBERS, World, barid, example, text, until};

/// An HTTP/2 client's first bytes: preface and empty SETTINGS (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

fn authority(world: &World, member: &str) -> Authority {
    let read = |file: &str| fs::read_to_string(world.folder(member).join(file)).unwrap();
    Authority::load(&format!("{member}.rabat.example"), &read("tls/ca.pem"), &read("offline/ca.key")).unwrap()
}

fn days(from: i64, to: i64) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now + Duration::days(from), now + Duration::days(to))
}

fn serial(certificate: &Path) -> Vec<u8> {
    let der = CertificateDer::from_pem_file(certificate).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
    parsed.raw_serial().to_vec()
}

/// Accepts any server certificate: the test is about the server's verification.
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

/// A client of a listener.
struct Caller {
    /// Its own address, as the node sees it.
    address: String,
    stream: StreamOwned<ClientConnection, TcpStream>,
}

impl Caller {
    fn new(listener: &str, shows: Option<&Issued>, version: &'static rustls::SupportedProtocolVersion) -> Self {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[version])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AcceptAnyServer(provider)));
        let mut config = match shows {
            None => config.with_no_client_auth(),
            Some(issued) => {
                let chain = vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap();
                config.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tcp = TcpStream::connect(listener).unwrap();
        tcp.set_read_timeout(Some(DEADLINE)).unwrap();
        let address = tcp.local_addr().unwrap().to_string();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let tls = ClientConnection::new(Arc::new(config), name).unwrap();
        Self { address, stream: StreamOwned::new(tls, tcp) }
    }

    /// Returns whether the node answers over HTTP/2.
    fn is_let_in(&mut self) -> bool {
        let mut header = [0; 9];
        self.stream.write_all(PREFACE).is_ok() && self.stream.read_exact(&mut header).is_ok() && header[3] == 4
    }

    /// Returns the certificate that the node presents.
    fn presented(&mut self) -> CertificateDer<'static> {
        assert!(self.is_let_in());
        self.stream.conn.peer_certificates().unwrap()[0].clone().into_owned()
    }
}

/// Checks that exactly one audit record has this address, with this reason.
fn recorded(world: &World, member: &str, listener: &str, address: &str, reason: &str) {
    let of_it = || world.records(member, &[&format!(" actor={address} ")]);
    until(&format!("{member} records {reason}"), || !of_it().is_empty());
    let of_it = of_it();
    let (reason, subject) = (format!(" reason=\"{reason}\" "), format!(" resource={listener} "));
    let right = |record: &String| {
        record.contains(" event=\"connection-rejected\" ") && record.contains(&reason) && record.contains(&subject)
    };
    assert!(of_it.len() == 1 && of_it.iter().all(right), "{reason}: {of_it:?}");
}

#[test]
fn unauthorized_connections_are_rejected_by_both_listeners_and_audited() {
    let world = World::logging("info");
    let config = NodeConfig::load(&world.folder("tn").join("node.toml")).unwrap();
    let (exchange, api) = (config.text.listen_exchange.unwrap(), config.text.listen_api);
    let (ly, tn) = (authority(&world, "ly"), authority(&world, "tn"));
    let stranger = Authority::new("x-au.rabat.example").unwrap();
    let ly_node = "spiffe://ly.rabat.example/node";
    let for_ma = ly.issue_for(&["spiffe://ma.rabat.example/node"], &[], days(-1, 1)).unwrap();
    let person = tn.issue("agency/border-post", &[]).unwrap();
    let at_exchange = [
        ("wrong-ca", for_ma),
        ("expired", ly.issue_for(&[ly_node], &[], days(-3, -1)).unwrap()),
        ("not-yet-valid", ly.issue_for(&[ly_node], &[], days(1, 3)).unwrap()),
        ("unknown-member", stranger.issue("node", &[]).unwrap()),
        ("not-a-node", tn.issue("agency/border-post", &[]).unwrap()),
    ];
    for (reason, issued) in &at_exchange {
        let mut caller = Caller::new(&exchange, Some(issued), &rustls::version::TLS13);
        assert!(!caller.is_let_in(), "{reason}");
        recorded(&world, "tn", "exchange", &caller.address, reason);
    }
    for (reason, issued) in [
        ("not-our-member", ly.issue("node", &[]).unwrap()),
        ("is-a-node", tn.issue("node", &[]).unwrap()),
        ("wrong-ca", ly.issue_for(&["spiffe://tn.rabat.example/operator/operator"], &[], days(-1, 1)).unwrap()),
    ] {
        let mut caller = Caller::new(&api, Some(&issued), &rustls::version::TLS13);
        assert!(!caller.is_let_in(), "{reason}");
        recorded(&world, "tn", "api", &caller.address, reason);
    }
    for (listener, at) in [("exchange", &exchange), ("api", &api)] {
        let mut plain = TcpStream::connect(at).unwrap();
        plain.write_all(b"GET / HTTP/1.1\r\nHost: tn.rabat.example\r\n\r\n").unwrap();
        recorded(&world, "tn", listener, &plain.local_addr().unwrap().to_string(), "plain-text");
        let node = ly.issue("node", &[]).unwrap();
        let mut old = Caller::new(at, Some(&node), &rustls::version::TLS12);
        assert!(!old.is_let_in());
        recorded(&world, "tn", listener, &old.address, "tls-version");
        let mut nobody = Caller::new(at, None, &rustls::version::TLS13);
        assert!(!nobody.is_let_in());
        recorded(&world, "tn", listener, &nobody.address, "no-certificate");
    }

    assert!(Caller::new(&api, Some(&person), &rustls::version::TLS13).is_let_in());
    assert!(Caller::new(&exchange, Some(&ly.issue("node", &[]).unwrap()), &rustls::version::TLS13).is_let_in());

    // Authenticated, but not authorised for every call.
    let alert = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/bulletins/stolen-passport.fr.json");
    assert_eq!(world.client("tn", "operator", &["publish", alert]).status.code(), Some(1));
    let rejected = [" event=\"call-denied\" ", " reason=\"role\" ", " actor=operator/operator "];
    assert_eq!(world.records("tn", &rejected).len(), 1);
}

#[test]
fn revoked_certificate_is_disconnected_everywhere_and_replacement_works() {
    let mut world = World::logging("info");
    until("all are linked", || world.linked(&MEMBERS));
    let crl_records = [" event=\"crl-accepted\" ", " resource=ly.rabat.example "];
    until("all have Libya's list", || {
        ["ma", "tn", "ne"].iter().all(|other| world.records(other, &crl_records).len() == 1)
    });
    world.kill("ne");
    let (folder, ly) = (world.folder("ly"), authority(&world, "ly"));

    // A client watches in Tripoli.
    let alert = world.draft("alert.json", &example("stolen-passport.fr.json", |_| ()));
    world.json("ly", "police-hq", &["publish", &alert]);
    let profile = folder.join("clients/police-hq/client.toml");
    let mut watch = Command::new(env!("CARGO_BIN_EXE_barid"))
        .args(["--json", "--profile", profile.to_str().unwrap(), "watch", "--from", "0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(watch.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(!line.is_empty());

    // The client's certificate and the node's are stolen: both are revoked, and the node gets a new
    // one.
    let stolen = [serial(&folder.join("clients/police-hq/client.pem")), serial(&folder.join("tls/node.pem"))];
    fs::write(folder.join("tls/ca.crl"), ly.revoke(&stolen, 2).unwrap()).unwrap();
    let renewed = ly.issue("node", &["127.0.0.1".into()]).unwrap();
    fs::write(folder.join("tls/node.pem"), &renewed.certificate).unwrap();
    fs::write(folder.join("tls/node.key"), &renewed.key).unwrap();
    world.hang_up("ly");
    let person = " actor=spiffe://ly.rabat.example/focal-point/police-hq ";
    let ended = [" event=\"connection-closed\" ", " reason=\"revoked\" "];
    until("the watch has ended", || world.records("ly", &[ended[0], ended[1], person]).len() == 1);
    let reloaded = world.records("ly", &[" event=\"reloaded\" ", " reason=\"changed\" "]);
    assert_eq!(reloaded.len(), 1);
    assert!(reloaded[0].contains("certificate: ") && reloaded[0].contains("CRL of ly.rabat.example: "));
    assert_ne!(world.client("ly", "police-hq", &["history"]).status.code(), Some(0));
    until("the rejection is recorded", || {
        !world.records("ly", &[" event=\"connection-rejected\" ", " reason=\"revoked\" "]).is_empty()
    });
    watch.kill().unwrap();
    watch.wait().unwrap();

    // The others receive the CRL over the links, apply it at once, close them, and are linked again
    // with the new certificate.
    for other in ["ma", "tn"] {
        until(&format!("{other} has ended the old link"), || {
            !world.records(other, &[ended[0], ended[1], " actor=spiffe://ly.rabat.example/node "]).is_empty()
        });
    }
    until("they are linked again", || world.linked(&["ma", "ly", "tn"]));

    // A member that was offline receives the CRL from another member than Libya, and stores it
    // across a restart.
    world.kill("ly");
    world.run("ne");
    until("Niamey has the newer list", || world.records("ne", &crl_records).len() == 2);
    assert!(!world.records("ne", &crl_records)[1].contains(" actor=ly "));
    world.kill("ne");
    world.run("ne");
    until("Niamey is linked", || world.linked(&["ma", "tn", "ne"]));
    assert_eq!(world.records("ne", &crl_records).len(), 2, "it has it still");
    // Rabat has persisted an older list of Libya less than a minute ago. The newer one is persisted
    // after that minute, or when the node stops.
    for other in ["ma", "tn"] {
        world.stop(other);
        assert_eq!(world.records(other, &crl_records).len(), 2, "{other} has persisted it");
    }
}

#[test]
fn reload_is_atomic_and_audited() {
    let world = World::logging("info");
    let (folder, ma) = (world.folder("ma"), authority(&world, "ma"));
    let api = NodeConfig::load(&folder.join("node.toml")).unwrap().text.listen_api;
    let person = ma.issue("agency/border-post", &[]).unwrap();
    let presented = || Caller::new(&api, Some(&person), &rustls::version::TLS13).presented();
    let before = presented();

    world.hang_up("ma");
    let reloaded = |reason: &str| world.records("ma", &[" event=\"reloaded\" ", &format!(" reason=\"{reason}\" ")]);
    until("it has reloaded", || reloaded("nothing-new").len() == 1);

    // A new certificate, each time together with one invalid file.
    let renewed = ma.issue("node", &["127.0.0.1".into()]).unwrap();
    fs::write(folder.join("tls/node.pem"), &renewed.certificate).unwrap();
    fs::write(folder.join("tls/node.key"), &renewed.key).unwrap();
    let stranger = Authority::new("ma.rabat.example").unwrap();
    for (count, (file, bad)) in (1..).zip([
        ("access.toml", b"[[grant]]\npath = 1\n".to_vec()),
        ("tls/ca.crl", stranger.revoke(&[], 9).unwrap()),
        ("tls/node.key", stranger.issue("node", &[]).unwrap().key.into_bytes()),
        ("roster.note", b"no roster".to_vec()),
    ]) {
        let good = fs::read(folder.join(file)).unwrap();
        fs::write(folder.join(file), bad).unwrap();
        world.hang_up("ma");
        let rejected = || world.records("ma", &[" event=\"reload-rejected\" "]);
        until("it is rejected", || rejected().len() == count);
        assert!(rejected()[count - 1].contains(file), "{file}: {:?}", rejected());
        assert_eq!(presented(), before, "{file}");
        fs::write(folder.join(file), good).unwrap();
    }
    // A certificate that every peer would reject is not loaded either.
    let forged = stranger.issue("node", &[]).unwrap();
    fs::write(folder.join("tls/node.pem"), &forged.certificate).unwrap();
    fs::write(folder.join("tls/node.key"), &forged.key).unwrap();
    world.hang_up("ma");
    until("it is rejected", || world.records("ma", &[" event=\"reload-rejected\" ", "wrong-ca"]).len() == 1);
    fs::write(folder.join("tls/node.pem"), &renewed.certificate).unwrap();
    fs::write(folder.join("tls/node.key"), &renewed.key).unwrap();

    // All files are valid: the record names each.
    fs::write(folder.join("tls/ca.crl"), ma.revoke_for(&[], 7, days(-100, 20)).unwrap()).unwrap();
    let access = fs::read_to_string(folder.join("access.toml")).unwrap();
    fs::write(folder.join("access.toml"), access.replace("roles = [\"auditor\"]", "roles = [\"agency\"]")).unwrap();
    world.hang_up("ma");
    until("it is reloaded", || reloaded("changed").len() == 1);
    let record = reloaded("changed").remove(0);
    for part in [" actor=SIGHUP ", "certificate: ", "access rules: ", "CRL of ma.rabat.example: "] {
        assert!(record.contains(part), "{part}: {record}");
    }
    assert_eq!(presented(), CertificateDer::from_pem_slice(renewed.certificate.as_bytes()).unwrap());

    // The CRL is valid for 120 days and expires in 20: an alarm is raised.
    let status = world.json("ma", "operator", &["status"]).remove(0);
    let alarms = status["alarms"].to_string();
    assert!(alarms.contains("the revocation list (CRL) of ma.rabat.example expires on "), "{alarms}");
}

#[test]
fn removed_member_is_disconnected_everywhere() {
    let mut world = World::logging("info");
    until("all are linked", || world.linked(&MEMBERS));
    let alert = world.draft("alert.json", &example("stolen-passport.fr.json", |_| ()));
    let published = world.json("ma", "police-hq", &["publish", &alert, "--wait-for", "ne"]);
    assert_eq!(published[0]["waitReached"], true);

    // Version 2 removes Niger; two governors sign it, and Rabat's operator installs it.
    let trusted = world.roster();
    let home = trusted.parent().unwrap();
    let file = |name: &str| home.join(name).to_str().unwrap().to_owned();
    let note = fs::read_to_string(&trusted).unwrap();
    let (first, _) = note.split_once("\n\n— ").unwrap();
    let output = barid(&["--json", "roster", "show", &file("roster.note")]);
    let current: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut draft: toml::Table = first.parse().unwrap();
    draft["version"] = 2.into();
    draft.insert("previous".into(), current["textHash"].as_str().unwrap().into());
    draft["members"].as_array_mut().unwrap().retain(|member| member["code"].as_str() != Some("ne"));
    fs::write(file("second.toml"), draft.to_string()).unwrap();
    let trust = ["--trust", &file("roster.note")];
    for (number, draft) in [("1", "second.toml"), ("2", "second.note")] {
        let (draft, key) = (file(draft), file(&format!("governors/{number}.key")));
        let place = if number == "1" { vec![] } else { vec!["--in-place"] };
        let args = [&["roster", "sign", &draft, "--key", &key][..], &trust, &place].concat();
        let signed = barid(&args);
        assert!(signed.status.success(), "{}{}", text(&signed.stdout), text(&signed.stderr));
    }
    fs::copy(file("second.note"), world.folder("ma").join("roster.note")).unwrap();
    world.hang_up("ma");
    until("it is adopted", || world.records("ma", &[" event=\"reloaded\" ", "roster: version 2"]).len() == 1);

    let version = |member: &str| world.json(member, "operator", &["status"]).remove(0)["rosterVersion"].clone();
    until("it has reached all others", || ["ly", "tn"].iter().all(|member| version(member) == "2"));
    let peers = |member: &str| world.json(member, "operator", &["status"]).remove(0)["peers"].clone();
    until("no member is linked to Niamey", || {
        let linked = |member: &&str| {
            peers(member).as_array().unwrap().iter().any(|peer| peer["member"] == "ne" && peer["linked"] == true)
        };
        !["ma", "ly", "tn"].iter().any(linked)
    });
    // Niamey's connection, or its next attempt, was rejected as from an unknown member.
    until("its rejection is recorded", || {
        ["ma", "ly", "tn"].iter().any(|member| !world.records(member, &[" reason=\"unknown-member\" "]).is_empty())
    });
    until("the others stay linked", || world.linked(&["ma", "ly", "tn"]));

    // After a restart the new roster is in force, and bulletins published under the previous one
    // still exist.
    world.kill("ma");
    world.run("ma");
    assert_eq!(world.json("ma", "operator", &["status"]).remove(0)["rosterVersion"], "2");
    assert_eq!(world.json("ma", "police-hq", &["history"]).len(), 1);
    until("they are linked again", || world.linked(&["ma", "ly", "tn"]));
}
