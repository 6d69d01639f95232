//! Benchmarks: metrics have the names that benchmarks of other brokers use.

use serde_json::Value;

use crate::world::{barid, text};

#[test]
fn bench_prints_one_metric_per_line() {
    let args = ["--json", "bench", "flood", "catchup", "history", "--messages", "2000", "--catchup", "2000"];
    let output = barid(&[&args[..], &["--history", "2000"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let metrics: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for name in [
        "barid.e2e_flood.rate",
        "barid.e2e_flood.rate.drained",
        "barid.catchup.rate_since_start_of_b",
        "barid.catchup.servers_cpu",
        "barid.replay_on_b.rate",
        "barid.history.rss_peak_b",
        "barid.history.wire",
        "barid.disk_b.log",
        "barid.disk_b.index",
    ] {
        let metric = metrics.iter().find(|metric| metric["name"] == name);
        assert!(metric.is_some_and(|metric| metric["value"].as_f64().is_some_and(|value| value > 0.0)), "{name}");
    }
}
