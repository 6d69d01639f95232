//! Checks the host of a metrics request, and negotiates the text format. Pure.
//!
//! A web page can make its own host name resolve to this machine to read local services (DNS
//! rebinding). The browser then sends that host name, which is denied.

use std::net::IpAddr;

use http::{HeaderMap, header};

/// Media type of OpenMetrics 1.0.
pub(super) const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Media type of the Prometheus text format.
pub(super) const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Host names that requests may use.
#[derive(Clone, Debug)]
pub(super) struct Hosts {
    names: Vec<String>,
}

impl Hosts {
    /// Takes the host of the configured address, and further names from the configuration.
    pub(super) fn new(listen: &str, further: &[String]) -> Self {
        let own = listen.rsplit_once(':').map_or(listen, |(host, _)| host);
        let names = further.iter().map(String::as_str).chain([own]).map(bare).filter(|name| !name.is_empty()).collect();
        Self { names }
    }

    /// Whether a request names an allowed host, this machine, or the address it arrived at.
    pub(super) fn allow(&self, headers: &HeaderMap, local_address: Option<IpAddr>) -> bool {
        let mut values = headers.get_all(header::HOST).iter();
        let (Some(Ok(host)), None) = (values.next().map(|value| value.to_str()), values.next()) else { return false };
        let host = bare(without_port(host));
        match host.parse::<IpAddr>() {
            Ok(address) => {
                let address = address.to_canonical();
                address.is_loopback()
                    || local_address.is_some_and(|local_address| local_address.to_canonical() == address)
                    || self.names.iter().any(|name| name.parse() == Ok(address) && !address.is_unspecified())
            }
            Err(_) => host == "localhost" || self.names.contains(&host),
        }
    }
}

/// Returns a host in lower case, without the brackets of an IPv6 address and the final dot.
fn bare(host: &str) -> String {
    host.trim_matches(['[', ']']).trim_end_matches('.').to_ascii_lowercase()
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}

/// Whether to respond with OpenMetrics rather than the Prometheus format: as the request prefers,
/// without a preference OpenMetrics (RFC 9110 §12.5.1).
pub(super) fn wants_openmetrics(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let read = |range: &str| {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        (media, weight.map_or(1.0, |weight| weight.parse::<f32>().unwrap_or(0.0)))
    };
    let ranges: Vec<(String, f32)> = lines.flat_map(|line| line.split(',')).map(read).collect();
    // A more specific media range takes precedence; of equal ones, the last.
    let weight = |media: &str| ranges.iter().rev().find(|(range, _)| range == media).map(|(_, weight)| *weight);
    let of = |media: [&str; 3]| media.into_iter().find_map(weight);
    match (of(["application/openmetrics-text", "application/*", "*/*"]), of(["text/plain", "text/*", "*/*"])) {
        (Some(open), Some(plain)) => open > 0.0 && open >= plain,
        (Some(open), None) => open > 0.0,
        (None, Some(plain)) => plain <= 0.0,
        (None, None) => true,
    }
}

/// Converts OpenMetrics to the Prometheus format: a counter's family has the suffix of its samples,
/// and there is no end marker.
pub(super) fn plain(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let kinds: std::collections::HashMap<&str, &str> =
        openmetrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    for line in openmetrics.lines() {
        let about = ["# HELP ", "# TYPE "].into_iter().find_map(|head| Some((head, line.strip_prefix(head)?)));
        match about.and_then(|(head, rest)| Some((head, rest.split_once(' ')?))) {
            Some((head, (name, rest))) => {
                let kind = kinds.get(name).copied().unwrap_or("untyped");
                let suffix = match kind {
                    "counter" => "_total",
                    "info" => "_info",
                    _ => "",
                };
                let rest = match (head, kind) {
                    ("# TYPE ", "info" | "stateset") => "gauge",
                    ("# TYPE ", "unknown") => "untyped",
                    _ => rest,
                };
                text.extend([head, name, suffix, " ", rest, "\n"]);
            }
            None if line.starts_with("# ") => {}
            None => text.extend([line, "\n"]),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn with(name: header::HeaderName, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers
    }

    #[test]
    fn hosts_are_loopback_and_configured_names_only() {
        let hosts = Hosts::new("metrics.ma.example:9464", &["Monitor.example.".into()]);
        let local_address = Some("192.0.2.7".parse().unwrap());
        for host in [
            "localhost",
            "LOCALHOST:9464",
            "127.0.0.1:9464",
            "127.8.8.8",
            "[::1]:9464",
            "[::1]",
            "metrics.ma.example",
            "metrics.ma.example.:1",
            "monitor.example",
            "192.0.2.7:9464",
            "[::ffff:192.0.2.7]",
        ] {
            assert!(hosts.allow(&with(header::HOST, host), local_address), "{host}");
        }
        for host in [
            "attacker.example",
            "localhost.attacker.example:9464",
            "192.0.2.8",
            "",
            "0.0.0.0",
            "[::]",
            "127.0.0.1.attacker.example",
            "localhost:x",
        ] {
            assert!(!hosts.allow(&with(header::HOST, host), local_address), "{host}");
        }
        assert!(!hosts.allow(&HeaderMap::new(), local_address), "HTTP/1.1 names a host");
        let mut two = with(header::HOST, "localhost");
        two.append(header::HOST, "attacker.example".parse().unwrap());
        assert!(!hosts.allow(&two, local_address));
    }

    #[test]
    fn format_is_what_the_request_prefers() {
        for (accept, expected) in [
            ("*/*", true),
            ("text/plain", false),
            ("text/plain; version=0.0.4", false),
            ("application/openmetrics-text", true),
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                true,
            ),
            ("text/plain;version=0.0.4;q=0.9,application/openmetrics-text;q=0.3", false),
            ("application/openmetrics-text;q=0, */*", false),
            ("text/plain;q=0", true),
            ("text/*, */*;q=0.1", false),
            ("text/html", true),
        ] {
            assert_eq!(wants_openmetrics(&with(header::ACCEPT, accept)), expected, "{accept}");
        }
        assert!(wants_openmetrics(&HeaderMap::new()));
    }

    #[test]
    fn prometheus_text_names_counters_with_their_suffix() {
        let text = "# HELP a_b Of a.\n# TYPE a_b counter\na_b_total{x=\"1\"} 4\n# HELP c The c.\n# TYPE c gauge\nc 1.0\n# HELP build The program.\n# TYPE build info\nbuild_info{version=\"1\"} 1\n# EOF\n";
        let expected = "# HELP a_b_total Of a.\n# TYPE a_b_total counter\na_b_total{x=\"1\"} 4\n# HELP c The c.\n# TYPE c gauge\nc 1.0\n# HELP build_info The program.\n# TYPE build_info gauge\nbuild_info{version=\"1\"} 1\n";
        assert_eq!(plain(text), expected);
    }
}
