//! The table of budgets, and the budgets that each call, frame and note is charged to.
//!
//! In scope: names, bounds and their reasons. `docs/limits.md` contains this table, and a test
//! compares them. Out of scope: bounds of single values (`barid_core::limits`), and of queues that
//! no caller or peer can fill.

use super::{Bounds, Rate};

/// Specification of one budget.
#[derive(Debug, PartialEq, Eq)]
pub struct BudgetSpec {
    /// Name in status, metrics and errors.
    pub name: &'static str,
    /// Unit: "bytes", "calls", "connections".
    pub unit: &'static str,
    /// Kind of owner: "address", "identity", "member", "source".
    pub of: &'static str,
    /// Default bounds.
    pub bounds: Bounds,
    /// Number of shares of the reserve. When only the reserve is left, an owner may use one share.
    /// 1 if all owners that may use it are trusted.
    pub reserve_shares: u64,
    /// Bytes of memory that one unit may use. 0 if the units are not in memory.
    pub memory_bytes: u64,
    /// Reason for the bounds.
    pub reason: &'static str,
}

const MIB: u64 = 1 << 20;

/// API calls in progress.
pub static API_CALLS: BudgetSpec = BudgetSpec {
    name: "api_calls",
    unit: "calls",
    of: "identity",
    bounds: Bounds { total: 4_096, per_owner: 1_024, reserved: 256 },
    reserve_shares: 8,
    // Headers, task and buffers of one HTTP/2 stream.
    memory_bytes: 16 << 10,
    reason: "One system may have as many calls as a commit has entries. The reserve is for operators and publishing",
};

/// Bytes of requests without a response yet.
pub static API_REQUEST_BYTES: BudgetSpec = BudgetSpec {
    name: "api_request_bytes",
    unit: "bytes",
    of: "identity",
    bounds: Bounds { total: 128 * MIB, per_owner: 32 * MIB, reserved: 32 * MIB },
    reserve_shares: 8,
    // Encoded and decoded.
    memory_bytes: 2,
    reason: "Fifty officers with a large attachment list each, and one system at full speed (1,024 calls of 32 KiB). \
             The reserve is for publishing and operators",
};

/// Bytes of responses that clients have not read yet.
pub static API_RESPONSE_BYTES: BudgetSpec = BudgetSpec {
    name: "api_response_bytes",
    unit: "bytes",
    of: "identity",
    bounds: Bounds { total: 256 * MIB, per_owner: 32 * MIB, reserved: 32 * MIB },
    reserve_shares: 8,
    // The largest possible size is charged before a response is built, and released when HTTP/2 has
    // sent the last byte.
    memory_bytes: 1,
    reason: "Thirty full pages of one identity at once. A client that does not read holds no more. The reserve is \
             for responses to publishers",
};

/// Large reads of the store: pages of history, bulletins with their state.
pub static API_READS: BudgetSpec = BudgetSpec {
    name: "api_reads",
    unit: "bytes",
    of: "identity",
    bounds: Bounds { total: 48 * MIB, per_owner: 16 * MIB, reserved: 8 * MIB },
    reserve_shares: 8,
    memory_bytes: 1,
    reason: "Each read is charged 8 MiB: the entries read before invisible ones are dropped. A page may scan 50,000 \
             entries, so two reads per caller leave the processor to publishing; other reads wait, callers in turn",
};

/// Evidence files that are being assembled.
pub static API_EVIDENCE: BudgetSpec = BudgetSpec {
    name: "api_evidence",
    unit: "bytes",
    of: "identity",
    bounds: Bounds { total: 128 * MIB, per_owner: 128 * MIB, reserved: 0 },
    reserve_shares: 1,
    memory_bytes: 1,
    reason: "One file at a time: up to 64 MiB and its parts are read, hashed and verified in some ten milliseconds. \
             Others wait",
};

/// Operators' calls to the operator service.
pub static OPERATOR_CALLS: BudgetSpec = BudgetSpec {
    name: "operator_calls",
    unit: "calls",
    of: "identity",
    bounds: Bounds { total: 128, per_owner: 32, reserved: 0 },
    reserve_shares: 1,
    memory_bytes: 16 << 10,
    reason: "Operators can read the status of an overloaded node: no other caller is charged here",
};

/// Bytes of operators' requests and responses.
pub static OPERATOR_BYTES: BudgetSpec = BudgetSpec {
    name: "operator_bytes",
    unit: "bytes",
    of: "identity",
    bounds: Bounds { total: 32 * MIB, per_owner: 16 * MIB, reserved: 0 },
    reserve_shares: 1,
    memory_bytes: 1,
    reason: "Several statuses and fork evidence at once, for two operators",
};

/// Calls that need no grant: health and reflection.
pub static OPEN_CALLS: BudgetSpec = BudgetSpec {
    name: "open_calls",
    unit: "calls",
    of: "identity",
    bounds: Bounds { total: 512, per_owner: 32, reserved: 256 },
    reserve_shares: 8,
    memory_bytes: 16 << 10,
    reason: "Every certificate holder may check health. A load balancer watches each service once per worker. The \
             reserve is for callers with a grant",
};

/// Connections to the API.
pub static API_CONNECTIONS: BudgetSpec = BudgetSpec {
    name: "api_connections",
    unit: "connections",
    of: "identity",
    bounds: Bounds { total: 512, per_owner: 64, reserved: 16 },
    reserve_shares: 1,
    // 640 KiB of received data that is not read yet, and buffers of TLS and HTTP/2.
    memory_bytes: 704 << 10,
    reason: "Hundreds of posts. One connection carries all calls of a system; 64 allow one per worker. The reserve \
             is for operators",
};

/// Connections of peers.
pub static EXCHANGE_CONNECTIONS: BudgetSpec = BudgetSpec {
    name: "exchange_connections",
    unit: "connections",
    of: "member",
    bounds: Bounds { total: 192, per_owner: 8, reserved: 0 },
    reserve_shares: 1,
    // 1 MiB of received data that is not read yet, and buffers of TLS, Zstandard and HTTP/2.
    memory_bytes: 1_152 << 10,
    reason: "A hundred members with one link each, a second one while it is replaced, and broken ones not noticed yet",
};

/// Bytes of a peer's frames that are not committed yet.
pub static LINK_BYTES: BudgetSpec = BudgetSpec {
    name: "link_bytes",
    unit: "bytes",
    of: "member",
    bounds: Bounds { total: 256 * MIB, per_owner: 24 * MIB, reserved: 0 },
    reserve_shares: 1,
    memory_bytes: 2,
    reason: "Batches in flight (8 MiB), in the receiver and at the committer. Beyond it the link is not read, and \
             the peer waits",
};

/// Links that peers have opened.
pub static LINK_CALLS: BudgetSpec = BudgetSpec {
    name: "link_calls",
    unit: "calls",
    of: "member",
    bounds: Bounds { total: 512, per_owner: 8, reserved: 0 },
    reserve_shares: 1,
    memory_bytes: 16 << 10,
    reason: "A hundred members with one link each, a second one while it is replaced, and broken ones not noticed yet",
};

/// Bytes of frames sent to a peer that dialled, until the peer has received them.
pub static LINK_SENT_BYTES: BudgetSpec = BudgetSpec {
    name: "link_sent_bytes",
    unit: "bytes",
    of: "member",
    bounds: Bounds { total: 128 * MIB, per_owner: 16 * MIB, reserved: 0 },
    reserve_shares: 1,
    memory_bytes: 1,
    reason: "Two batches on each of a member's links. The next is built when HTTP/2 has sent them",
};

/// Bytes of log lines in a minute.
pub static LOG_BYTES: BudgetSpec = BudgetSpec {
    name: "log_bytes",
    unit: "bytes",
    of: "source",
    bounds: Bounds { total: MIB, per_owner: 64 << 10, reserved: 256 << 10 },
    reserve_shares: 1,
    memory_bytes: 0,
    reason: "One minute of log lines: some hundred per source, 1.5 GB a day under attack. Further lines are only \
             counted. The reserve is for alarms and errors",
};

/// All budgets, in the order of the documentation.
pub static BUDGETS: &[&BudgetSpec] = &[
    &API_CONNECTIONS,
    &API_CALLS,
    &API_REQUEST_BYTES,
    &API_RESPONSE_BYTES,
    &API_READS,
    &API_EVIDENCE,
    &OPERATOR_CALLS,
    &OPERATOR_BYTES,
    &OPEN_CALLS,
    &EXCHANGE_CONNECTIONS,
    &LINK_CALLS,
    &LINK_BYTES,
    &LINK_SENT_BYTES,
    &LOG_BYTES,
];

/// Specification of a rate: the amount per second, and the burst.
#[derive(Debug, PartialEq)]
pub struct RateSpec {
    /// Name in the records of rate-limited work.
    pub name: &'static str,
    /// Unit.
    pub unit: &'static str,
    /// Kind of owner: "identity", "member".
    pub of: &'static str,
    /// The rate.
    pub rate: Rate,
    /// Reason for the rate.
    pub reason: &'static str,
}

/// Work that a peer's frames cause.
pub static PEER_WORK: RateSpec = RateSpec {
    name: "peer_work",
    unit: "units of some 5 µs",
    of: "member",
    rate: Rate { per_second: 65_536.0, burst: 262_144.0 },
    reason: "A third of a processor. A peer that catches up at full speed with the longest notes stays below it. \
             Beyond it the link is not read",
};

/// Bytes of custody notes that add little.
pub static CUSTODY_BYTES: RateSpec = RateSpec {
    name: "custody_bytes",
    unit: "bytes above 1 KiB per note and 128 bytes per entry",
    of: "member",
    rate: Rate { per_second: 4_096.0, burst: 8_388_608.0 },
    reason: "Notes about scattered backfills list the missing ranges again, in up to 64 KiB. Beyond it notes are \
             dropped",
};

/// Custody notes that add nothing but an earlier time.
pub static EARLIER_CUSTODY: RateSpec = RateSpec {
    name: "earlier_custody",
    unit: "notes",
    of: "member",
    rate: Rate { per_second: 1.0 / 60.0, burst: 16.0 },
    reason: "Delayed notes: an honest holder's times ascend. Beyond it notes are dropped",
};

/// Bytes of CRLs that are verified.
pub static CRL_BYTES: RateSpec = RateSpec {
    name: "crl_bytes",
    unit: "bytes, at least 16 KiB per CRL",
    of: "member",
    rate: Rate { per_second: 1_048_576.0, burst: 8_388_608.0 },
    reason: "The largest CRL every second, and the CRLs of a whole exchange at once. If there are more, the newest \
             is verified first and takes effect within a second",
};

/// Bytes that named subscriptions add to the log.
pub static SUBSCRIPTION_BYTES: RateSpec = RateSpec {
    name: "subscription_bytes",
    unit: "bytes persisted",
    of: "identity",
    rate: Rate { per_second: 4_096.0, burst: 4_194_304.0 },
    reason: "Every name with the longest filter twice at once, or forty acknowledgements a second in the long run. \
             Beyond it changes of names are rate-limited, and acknowledgements wait",
};

/// All rates, in the order of the documentation.
pub static RATES: &[&RateSpec] = &[&SUBSCRIPTION_BYTES, &PEER_WORK, &CUSTODY_BYTES, &EARLIER_CUSTODY, &CRL_BYTES];

/// Budgets that each API call is charged to.
pub const CALLS: &[(&str, &[&str])] = &[
    ("FocalPoint.Publish", &["api_calls", "api_request_bytes", "api_response_bytes"]),
    ("FocalPoint.PublishStream", &["api_calls", "api_request_bytes", "api_response_bytes"]),
    ("FocalPoint.Get", &["api_calls", "api_request_bytes", "api_response_bytes", "api_reads"]),
    (
        "FocalPoint.Subscribe",
        &["api_calls", "api_request_bytes", "api_response_bytes", "api_reads", "subscription_bytes"],
    ),
    ("FocalPoint.Acknowledge", &["api_calls", "api_request_bytes", "api_response_bytes", "subscription_bytes"]),
    ("FocalPoint.ListSubscriptions", &["api_calls", "api_request_bytes", "api_response_bytes"]),
    ("FocalPoint.DeleteSubscription", &["api_calls", "api_request_bytes", "api_response_bytes", "subscription_bytes"]),
    ("FocalPoint.History", &["api_calls", "api_request_bytes", "api_response_bytes", "api_reads"]),
    ("Audit.ExportEvidence", &["api_calls", "api_request_bytes", "api_response_bytes", "api_evidence"]),
    (
        "Operator.GetStatus",
        &["operator_calls", "operator_bytes", "api_calls", "api_request_bytes", "api_response_bytes"],
    ),
    (
        "Operator.GetRoster",
        &["operator_calls", "operator_bytes", "api_calls", "api_request_bytes", "api_response_bytes"],
    ),
    ("Operator.Reload", &["operator_calls", "operator_bytes"]),
    (
        "Operator.GetForks",
        &["operator_calls", "operator_bytes", "api_calls", "api_request_bytes", "api_response_bytes"],
    ),
    ("Operator.ResumeFeed", &["operator_calls", "operator_bytes"]),
];

/// Budgets that each frame of a link is charged to.
pub const FRAMES: &[(&str, &[&str])] = &[
    ("hello", &["link_bytes", "peer_work"]),
    ("follow", &["link_bytes", "peer_work"]),
    ("entries", &["link_bytes", "peer_work"]),
    ("replication_progress", &["link_bytes", "peer_work"]),
    ("cosigned", &["link_bytes", "peer_work"]),
    ("custody", &["link_bytes", "peer_work"]),
    ("tree_heads", &["link_bytes", "peer_work"]),
    ("roster_request", &["link_bytes", "peer_work"]),
    ("rosters", &["link_bytes", "peer_work"]),
    ("fault", &["link_bytes", "peer_work"]),
    ("attestations_request", &["link_bytes", "peer_work"]),
    ("backfill_response", &["link_bytes", "peer_work"]),
    ("consistency_request", &["link_bytes", "peer_work"]),
    ("consistency", &["link_bytes", "peer_work"]),
    ("priority_entry", &["link_bytes", "peer_work"]),
    ("relayed_custody_request", &["link_bytes", "peer_work"]),
    ("relayed_custody", &["link_bytes", "peer_work"]),
];

/// Budgets that each kind of persisted note or list is charged to.
pub const NOTES: &[(&str, &[&str])] = &[
    ("checkpoint", &["link_bytes", "peer_work"]),
    ("cosignature", &["link_bytes", "peer_work"]),
    ("custody note", &["link_bytes", "peer_work", "custody_bytes", "earlier_custody"]),
    ("equivocation", &["link_bytes", "peer_work"]),
    ("CRL", &["link_bytes", "peer_work", "crl_bytes"]),
    ("roster", &["link_bytes", "peer_work"]),
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;
    use std::fmt::Write as _;
    use std::fs;
    use std::path::Path;

    use super::*;

    fn file(name: &str) -> String {
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
    }

    /// Formats an amount: `1,024`, or `32 MiB` of bytes.
    fn amount(value: u64, unit: &str) -> String {
        if unit == "bytes" && value > 0 && value.is_multiple_of(MIB) {
            return format!("{} MiB", value / MIB);
        }
        let digits = value.to_string();
        let groups: Vec<&str> =
            digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap()).collect();
        groups.join(",")
    }

    fn page() -> String {
        let mut page = String::from(
            "| budget | counts | of each | bound | all together | of it reserved | key | why |\n|---|---|---|---|---|---|---|---|\n",
        );
        for spec in BUDGETS {
            let BudgetSpec { name, unit, of, bounds, reason, .. } = spec;
            let key = if spec.memory_bytes > 0 { "`memory_mib`" } else { "fixed" };
            let [own, all, reserved] =
                [bounds.per_owner, bounds.total, bounds.reserved].map(|value| amount(value, unit));
            writeln!(page, "| `{name}` | {unit} | {of} | {own} | {all} | {reserved} | {key} | {reason} |").unwrap();
        }
        page.push_str("\n| rate | counts | of each | a second | at once | why |\n|---|---|---|---|---|---|\n");
        for RateSpec { name, unit, of, rate, reason } in RATES {
            let each =
                |value: f64| if value < 1.0 { format!("1 in {:.0} s", 1.0 / value) } else { format!("{value:.0}") };
            let [often, once] = [rate.per_second, rate.burst].map(each);
            writeln!(page, "| `{name}` | {unit} | {of} | {often} | {once} | {reason} |").unwrap();
        }
        for (heading, rows) in [("call", CALLS), ("frame", FRAMES), ("note", NOTES)] {
            write!(page, "\n| {heading} | charged to |\n|---|---|\n").unwrap();
            for (name, budgets) in rows {
                let budgets: Vec<String> = budgets.iter().map(|budget| format!("`{budget}`")).collect();
                writeln!(page, "| `{name}` | {} |", budgets.join(", ")).unwrap();
            }
        }
        page
    }

    const BEGIN: &str = "<!-- the table in src/budgets/table.rs -->\n";
    const END: &str = "<!-- end of the table -->";

    /// Compares the table in the documentation with this one. With `BARID_WRITE_DOCS=1`, writes it
    /// instead.
    #[test]
    fn limits_page_is_this_table() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/limits.md");
        let text = fs::read_to_string(&path).unwrap();
        let (before, rest) = text.split_once(BEGIN).unwrap();
        let (written, after) = rest.split_once(END).unwrap();
        if std::env::var_os("BARID_WRITE_DOCS").is_some() {
            fs::write(&path, format!("{before}{BEGIN}{}{END}{after}", page())).unwrap();
        } else {
            assert_eq!(written, page(), "BARID_WRITE_DOCS=1 cargo test -p barid --lib budgets:: writes it");
        }
    }

    #[test]
    fn every_call_frame_and_note_is_charged_to_budgets_of_the_table() {
        let mut calls = BTreeSet::new();
        for (name, service) in [("focal_point", "FocalPoint"), ("audit", "Audit"), ("operator", "Operator")] {
            let text = file(&format!("proto/barid/v1/{name}.proto"));
            let methods = text.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next());
            calls.extend(methods.map(|method| format!("{service}.{method}")));
        }
        let exchange = file("proto/barid/v1/exchange.proto");
        let (_, frames) = exchange.split_once("oneof frame {").unwrap();
        let frames = frames.split('}').next().unwrap().lines().map(str::trim).filter(|line| !line.starts_with("//"));
        let frames: BTreeSet<String> =
            frames.filter_map(|line| Some(line.split(" = ").next()?.split(' ').nth(1)?.to_owned())).collect();
        assert!(calls.len() > 10 && frames.len() > 15, "the test checks nothing: {calls:?} {frames:?}");
        let named = |rows: &[(&str, &[&str])]| rows.iter().map(|(name, _)| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(named(CALLS), calls);
        assert_eq!(named(FRAMES), frames);
        let rates = RATES.iter().map(|spec| spec.name);
        let known: BTreeSet<&str> = BUDGETS.iter().map(|spec| spec.name).chain(rates).collect();
        assert_eq!(known.len(), BUDGETS.len() + RATES.len(), "each name once");
        for (name, budgets) in CALLS.iter().chain(FRAMES).chain(NOTES) {
            assert!(!budgets.is_empty() && budgets.iter().all(|budget| known.contains(budget)), "{name}: {budgets:?}");
        }
    }

    /// A budget missing from the table would be in no status, and asking for it would panic.
    #[test]
    fn table_holds_every_budget_and_rate_that_is_defined() {
        let text = file("src/budgets/table.rs");
        for (sort, count) in [("BudgetSpec", BUDGETS.len()), ("RateSpec", RATES.len())] {
            let defined =
                text.lines().filter(|line| line.starts_with("pub static ") && line.contains(&format!(": {sort} =")));
            assert_eq!(defined.count(), count, "{sort}");
        }
    }

    #[test]
    fn bounds_of_one_owner_and_reserves_lie_within_the_total() {
        for BudgetSpec { name, bounds, .. } in BUDGETS {
            let Bounds { total, per_owner, reserved } = *bounds;
            assert!(0 < per_owner && per_owner <= total && reserved < total, "{name}");
        }
    }
}
