//! Metrics of a node: exactly those that the operator's guide names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::world::{World, example, text, until};

/// Sends a request and returns the whole response.
fn http_request(port: u16, request: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

fn metrics(port: u16) -> String {
    let response = http_request(port, "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    assert!(response.contains("application/openmetrics-text; version=1.0.0; charset=utf-8"), "{response}");
    response.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// Returns the value of one sample, by its name and labels.
fn value(metrics: &str, sample: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok())
}

/// Returns the metric names as they appear in samples.
fn names(metrics: &str) -> BTreeSet<String> {
    let types: BTreeMap<&str, &str> =
        metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let ending = |kind: &str| match kind {
        "counter" => "_total",
        "info" => "_info",
        _ => "",
    };
    types.into_iter().map(|(name, kind)| format!("{name}{}", ending(kind))).collect()
}

#[test]
fn metrics_match_operator_guide_and_follow_events() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut world = World::configured("info", |member, config| match member {
        "ma" => format!("{config}\n[metrics]\nlisten = \"127.0.0.1:{port}\"\n"),
        _ => config,
    });
    let guide = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operator.md")).unwrap();
    let named = guide.lines().filter_map(|line| line.strip_prefix("| `barid_")?.split('`').next());
    let named: BTreeSet<String> = named.map(|name| format!("barid_{}", name.split('{').next().unwrap())).collect();
    assert_eq!(names(&metrics(port)), named);

    let draft = world.draft("alert.json", &example("stolen-passport.fr.json", |_| ()));
    for _ in 0..3 {
        world.json("ma", "police-hq", &["publish", &draft, "--wait-for", "3"]);
    }
    until("the metrics change", || {
        let metrics = metrics(port);
        value(&metrics, "barid_feed_entries{feed=\"ma.rabat.example/feed/1\"}") == Some(3.0)
            && value(&metrics, "barid_link_up{peer=\"tn\"}") == Some(1.0)
            && value(&metrics, "barid_cosigned_entries{peer=\"tn\"}") == Some(3.0)
            && value(&metrics, "barid_publish_state{state=\"open\"}") == Some(1.0)
    });
    let samples = metrics(port);
    assert!(value(&samples, "barid_log_fsync_seconds_count") >= Some(3.0), "{samples}");
    assert!(value(&samples, "barid_disk_free_bytes") > Some(0.0));
    assert!(value(&samples, "barid_cosignature_age_seconds{peer=\"tn\"}").is_some_and(|age| age < 600.0));
    let end = "barid_expiry_timestamp_seconds{credential=\"node\",trust_domain=\"ma.rabat.example\"}";
    assert!(value(&samples, end) > Some(1.7e9), "{samples}");

    // A denied call is counted, and the end of a link changes its metric.
    let before = value(&samples, "barid_rejections_total{event=\"call-denied\",reason=\"role\"}").unwrap_or(0.0);
    assert!(!world.client("ma", "auditor", &["publish", &draft, "--timeout", "1"]).status.success());
    world.kill("tn");
    until("the rejection and the closed link are counted", || {
        let metrics = metrics(port);
        value(&metrics, "barid_rejections_total{event=\"call-denied\",reason=\"role\"}") > Some(before)
            && value(&metrics, "barid_link_up{peer=\"tn\"}") == Some(0.0)
    });

    // Nothing else is served; an invalid request is closed.
    assert!(http_request(port, "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").starts_with("HTTP/1.1 404 "));
    assert!(http_request(port, "POST /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").starts_with("HTTP/1.1 405 "));
    let long = format!("GET /metrics HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(64 << 10));
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    // The node may close the connection before everything is sent.
    let _ = stream.write_all(long.as_bytes());
    let mut response = Vec::new();
    let _ = stream.read_to_end(&mut response);
    assert!(!text(&response).contains(" 200 "));
    // More silent connections than are served at a time do not block others for long.
    let silent: Vec<TcpStream> = (0..10).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    assert!(names(&metrics(port)).contains("barid_publish_state"));
    drop(silent);
}

#[test]
fn metrics_beyond_loopback_require_configuration() {
    let mut world = World::logging("info");
    world.kill("ma");
    let path = world.folder("ma").join("node.toml");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{config}\n[metrics]\nlisten = \"0.0.0.0:0\"\n")).unwrap();
    let mut node = Command::new(env!("CARGO_BIN_EXE_barid"));
    let ended = node.args(["node", "--config"]).arg(&path).env("BARID_LANG", "en").output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(text(&ended.stderr).contains("allow_non_loopback"), "{}", text(&ended.stderr));
    fs::write(&path, format!("{config}\n[metrics]\nlisten = \"0.0.0.0:0\"\nallow_non_loopback = true\n")).unwrap();
    world.run("ma");
}
