//! Writes the metrics in the text format of OpenMetrics 1.0, which Prometheus reads too.
//!
//! In scope: names, labels and help. The operator's guide has the same names; a test compares it
//! with a node's output.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::MetricsSnapshot;
use crate::store::FSYNC_BOUNDS_MICROS;
use crate::telemetry::alarms::REASONS;

/// States of publishing. All are exported; the current one is 1.
const PUBLISH_STATES: [&str; 5] = ["disk-full", "needs-recovery", "open", "starting", "stopped"];

/// Returns the metrics as text.
pub(super) fn write(metrics: MetricsSnapshot) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(metrics));
    let mut text = String::new();
    // Writing into a string does not fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn all<'l, T>(
        &mut self,
        (name, help): (&str, &str),
        kind: MetricType,
        samples: impl IntoIterator<Item = (Labels<'l>, T)>,
        mut write: impl FnMut(&mut MetricEncoder<'_>, &T) -> fmt::Result,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in samples {
            if labels.is_empty() {
                write(&mut metric, &value)?;
            } else {
                write(&mut metric.encode_family(&labels)?, &value)?;
            }
        }
        Ok(())
    }

    fn gauges<'l>(&mut self, about: (&str, &str), samples: impl IntoIterator<Item = (Labels<'l>, f64)>) -> fmt::Result {
        let write = |metric: &mut MetricEncoder<'_>, value: &f64| {
            let value: f64 = *value;
            metric.encode_gauge(&value)
        };
        self.all(about, MetricType::Gauge, samples, write)
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.gauges((name, help), [(Vec::new(), float(value))])
    }

    fn counters<'l>(
        &mut self,
        about: (&str, &str),
        samples: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> fmt::Result {
        self.all(about, MetricType::Counter, samples, |metric, value| {
            metric.encode_counter::<NoLabelSet, u64, u64>(value, None)
        })
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.counters((name, help), [(Vec::new(), value)])
    }
}

/// Above 2^53 the precision is sufficient.
fn float(value: u64) -> f64 {
    value as f64
}

fn signed(value: i64) -> f64 {
    value as f64
}

impl Collector for MetricsSnapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(encoder);
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        let about = ("barid_build", "The program");
        out.all(about, MetricType::Info, [(Vec::new(), ())], |metric, ()| metric.encode_info(&version))?;
        self.feeds(&mut out)?;
        self.store(&mut out)?;
        self.peers(&mut out)?;
        self.state(&mut out)
    }
}

impl MetricsSnapshot {
    fn feeds(&self, out: &mut Out<'_>) -> fmt::Result {
        let feeds: Vec<_> = self.feeds.iter().map(|(feed, metrics)| (feed.to_string(), *metrics)).collect();
        let about = ("barid_feed_entries", "Entries held of a feed, as digests or in full");
        out.gauges(about, feeds.iter().map(|(feed, (size, ..))| (vec![("feed", feed.as_str())], float(*size))))?;
        let about = ("barid_feed_disclosed_entries", "Entries held of a feed in full");
        out.gauges(about, feeds.iter().map(|(feed, (_, full, _))| (vec![("feed", feed.as_str())], float(*full))))?;
        let about = ("barid_feed_committed_bytes", "Bytes of bulletins of a feed committed since the start");
        out.counters(about, feeds.iter().map(|(feed, (.., bytes))| (vec![("feed", feed.as_str())], *bytes)))
    }

    fn store(&self, out: &mut Out<'_>) -> fmt::Result {
        out.counter("barid_commits", "Commits since the store was created", self.commits)?;
        out.counter("barid_stored_bulletins", "Bulletins stored since the store was created", self.stored_bulletins)?;
        out.gauge("barid_commit_queue_entries", "Entries and records that wait to be committed", self.waiting)?;
        let buckets: Vec<(f64, u64)> = FSYNC_BOUNDS_MICROS
            .iter()
            .map(|micros| float(*micros) / 1e6)
            .chain([f64::INFINITY])
            .zip(self.syncs.counts)
            .collect();
        let (sum, count) = (float(self.syncs.sum_micros) / 1e6, self.syncs.counts.iter().sum());
        let about = ("barid_log_fsync_seconds", "Duration of an fdatasync of the commit log");
        out.all(about, MetricType::Histogram, [(Vec::new(), ())], |metric, ()| {
            metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
        })?;
        let about = "Flipped bits of the commit log that were corrected since the start";
        out.counter("barid_log_corrected_bits", about, self.corrected_bits)?;
        out.gauge("barid_log_bytes", "Bytes of the commit log, as written", self.disk.log)?;
        out.gauge("barid_index_bytes", "Bytes of the index database", self.disk.index_db)?;
        out.gauge("barid_disk_free_bytes", "Bytes free on the disk of the store", self.disk.free)?;
        let about = ("barid_member_share_used_ratio", "Used part of a member's share of the disk space");
        let used = self.share_used.iter();
        out.gauges(about, used.map(|(member, used)| (vec![("peer", member.as_str())], float(*used) / 1e3)))?;
        out.gauge("barid_disk_min_free_bytes", "Free bytes below which no entries are accepted", self.min_free_bytes)?;
        out.gauge("barid_index_lag_commits", "Commits that are not in the index database yet", self.index_lag)
    }

    fn peers(&self, out: &mut Out<'_>) -> fmt::Result {
        let peers = || self.peers.iter().map(|(member, peer)| (vec![("peer", member.as_str())], peer));
        let age = |time: u64| float(self.now.saturating_sub(time));
        let about = ("barid_link_up", "Whether a link to a peer is open");
        out.gauges(about, peers().map(|(labels, peer)| (labels, f64::from(u8::from(peer.linked)))))?;
        let about = ("barid_lag_entries", "Entries of a peer's feed that exist and are not held here");
        out.gauges(
            about,
            peers().map(|(labels, peer)| (labels, float(peer.known_size.saturating_sub(peer.held_size)))),
        )?;
        let about = ("barid_lag_seconds", "Seconds since entries of a peer's feed are missing here");
        let lag = |peer: &super::PeerStatus| match peer.behind_since_unix_ms {
            0 => 0.0,
            since => age(since / 1_000),
        };
        out.gauges(about, peers().map(|(labels, peer)| (labels, lag(peer))))?;
        let about = ("barid_cosigned_entries", "Entries of our feed that a peer has cosigned");
        out.gauges(about, peers().map(|(labels, peer)| (labels, float(peer.cosigned_size))))?;
        let about = ("barid_cosignature_age_seconds", "Age of a peer's last cosignature on our feed");
        let cosigned = peers().filter(|(_, peer)| peer.cosigned_time > 0);
        out.gauges(about, cosigned.map(|(labels, peer)| (labels, age(peer.cosigned_time))))?;
        let about = ("barid_heartbeat_age_seconds", "Age of a peer's last heartbeat");
        let beats = peers().filter(|(_, peer)| peer.heartbeat_time > 0);
        out.gauges(about, beats.map(|(labels, peer)| (labels, age(peer.heartbeat_time))))?;
        let about = ("barid_clock_ahead_seconds", "Seconds that a linked peer's clock is ahead of ours");
        let linked = peers().filter(|(_, peer)| peer.linked);
        out.gauges(about, linked.map(|(labels, peer)| (labels, signed(peer.clock_ahead_ms) / 1e3)))
    }

    fn state(&self, out: &mut Out<'_>) -> fmt::Result {
        let about = ("barid_publish_state", "Publish state of this node: the current state is 1");
        let gates = PUBLISH_STATES
            .iter()
            .map(|state| (vec![("state", *state)], f64::from(u8::from(*state == self.publish_state))));
        out.gauges(about, gates)?;
        let about = ("barid_alarms", "Active alarms, by kind");
        out.gauges(about, self.alarms.iter().map(|(kind, count)| (vec![("kind", *kind)], float(*count))))?;
        let about = ("barid_expiry_timestamp_seconds", "Unix time at which a certificate or a CRL expires");
        let expiries = self.expiries.iter();
        out.gauges(
            about,
            expiries.map(|(credential, of, end)| {
                (vec![("credential", *credential), ("trust_domain", of.as_str())], signed(*end))
            }),
        )?;
        let about = ("barid_streams", "Open streams of the API, by method");
        out.gauges(about, self.streams.iter().map(|(method, count)| (vec![("method", *method)], float(*count))))?;
        let budgets = || self.budgets.iter().map(|usage| (vec![("budget", usage.spec.name)], usage));
        let about = ("barid_budget_used", "Units in use by callers and peers, by budget");
        out.gauges(about, budgets().map(|(labels, usage)| (labels, float(usage.used))))?;
        let about = ("barid_budget_limit", "Units that all callers and peers together may use, by budget");
        out.gauges(about, budgets().map(|(labels, usage)| (labels, float(usage.bounds.total))))?;
        let about = ("barid_budget_high_water", "Most units in use at once since the start, by budget");
        out.gauges(about, budgets().map(|(labels, usage)| (labels, float(usage.high_water))))?;
        let about = ("barid_budget_exhausted", "Charges that did not fit a budget since the start");
        out.counters(about, budgets().map(|(labels, usage)| (labels, usage.denied)))?;
        out.gauge("barid_roster_version", "Version of the roster in force", self.roster_version)?;
        let about = ("barid_rejections", "Rejections and denials since the start, by event and reason");
        let events = || self.events.iter().map(|((event, reason), count)| (*event, *reason, *count));
        let rejected = events().filter(|(event, ..)| event.ends_with("-rejected") || event.ends_with("-denied"));
        out.counters(
            about,
            rejected.map(|(event, reason, count)| (vec![("event", event), ("reason", reason)], count)),
        )?;
        let about = ("barid_alarms_raised", "Alarms raised since the start, by reason");
        // Export every reason from the start: a rate misses the first event of a new series.
        let mut raised: BTreeMap<&str, u64> = REASONS.into_iter().map(|reason| (reason, 0)).collect();
        raised.extend(events().filter(|(event, ..)| *event == "alarm").map(|(_, reason, count)| (reason, count)));
        out.counters(about, raised.into_iter().map(|(reason, count)| (vec![("reason", reason)], count)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::PeerStatus;

    #[test]
    fn metrics_text_is_valid_openmetrics() {
        let mut metrics =
            MetricsSnapshot { now: 1_000, publish_state: "open", commits: 7, ..MetricsSnapshot::default() };
        metrics.feeds.insert("ma.rabat.example/feed/1".parse().expect("a feed"), (12, 10, 4_096));
        metrics.syncs.counts[1] = 3;
        metrics.syncs.sum_micros = 600;
        let peer =
            PeerStatus { linked: true, cosigned_time: 940, known_size: 9, held_size: 4, ..PeerStatus::default() };
        metrics.peers.insert("ly".into(), peer);
        metrics.events.insert(("call-denied", "rate"), 5);
        metrics.events.insert(("reloaded", "changed"), 2);
        metrics.events.insert(("alarm", "equivocation"), 2);
        metrics.events.insert(("alarm", "a-later-word"), 1);
        let text = write(metrics);
        let raised = text.lines().filter(|line| line.starts_with("barid_alarms_raised_total{"));
        assert_eq!(raised.count(), REASONS.len() + 1, "each has one metric from the start: {text}");
        for line in [
            "# TYPE barid_feed_entries gauge",
            "barid_feed_entries{feed=\"ma.rabat.example/feed/1\"} 12.0",
            "barid_feed_committed_bytes_total{feed=\"ma.rabat.example/feed/1\"} 4096",
            "barid_commits_total 7",
            "barid_log_fsync_seconds_bucket{le=\"0.0001\"} 0",
            "barid_log_fsync_seconds_bucket{le=\"0.00025\"} 3",
            "barid_log_fsync_seconds_bucket{le=\"+Inf\"} 3",
            "barid_log_fsync_seconds_sum 0.0006",
            "barid_link_up{peer=\"ly\"} 1.0",
            "barid_lag_entries{peer=\"ly\"} 5.0",
            "barid_cosignature_age_seconds{peer=\"ly\"} 60.0",
            "barid_publish_state{state=\"open\"} 1.0",
            "barid_publish_state{state=\"stopped\"} 0.0",
            "barid_rejections_total{event=\"call-denied\",reason=\"rate\"} 5",
            "barid_alarms_raised_total{reason=\"clock\"} 0",
            "barid_alarms_raised_total{reason=\"equivocation\"} 2",
            "barid_alarms_raised_total{reason=\"a-later-word\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("reloaded") && text.ends_with("# EOF\n"), "{text}");
    }
}
