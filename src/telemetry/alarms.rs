//! Alarms, as values: conditions that an operator must look at.
//!
//! In scope: every kind of alarm with its code, severity, text and subject. Out of scope: which are
//! active (`active`), and when they are raised and cleared (the module that detects the condition).

mod active;

use std::fmt;

use barid_core::ids::{FeedId, Member};

use super::escape::Foreign;
pub use active::{ActiveAlarm, Alarms};

/// Reasons of the audit records of alarms (`event` is `alarm`).
pub const REASONS: [&str; 18] = [
    "fork-conflict",
    "clock",
    "damage",
    "disk-full",
    "disk-low",
    "duplicate-identity",
    "equivocation",
    "excluded",
    "needs-recovery",
    "member-over-share",
    "misdirected",
    "not-understood",
    "reload",
    "roster-conflict",
    "roster-missing",
    "undecodable-header",
    "validity",
    "wrongly-withheld",
];

/// How soon an operator must act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Now: something does not work, or is not as it must be.
    Critical,
    /// Today: something does not work for others, or will soon fail.
    Warning,
    /// In time.
    Info,
}

impl Severity {
    /// Returns a stable name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

/// A condition that needs an operator. Times are formatted texts.
// The fields are the values in the texts.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// Peers reject the certificate of this node.
    CertificateRejected { why: String },
    /// The certificate of this node has expired.
    CertificateExpired { since: String },
    /// The certificate of this node expires soon.
    CertificateExpiring { at: String },
    /// The last reload changed nothing, because a file cannot be used.
    ReloadRejected { why: String },
    /// The certificate of an authority has expired.
    AuthorityExpired { domain: String, since: String },
    /// The certificate of an authority expires soon.
    AuthorityExpiring { domain: String, at: String },
    /// A revocation list and its grace time have expired.
    CrlExpired { domain: String, since: String },
    /// A revocation list has expired, and its grace time has not.
    CrlInGrace { domain: String, since: String },
    /// A revocation list expires soon.
    CrlExpiring { domain: String, at: String },
    /// This node's clock is behind its last cosignature.
    OwnClockBehind { last: String },
    /// A peer's clock is ahead of this node's.
    PeerClockAhead { peer: Member },
    /// A peer's clock is behind this node's.
    PeerClockBehind { peer: Member },
    /// One key signed two trees: the feed is no longer followed.
    Fork { feed: FeedId, why: String, by: Option<Member> },
    /// The governors have closed a feed with another tree than the one held.
    RosterForkConflict { feed: FeedId },
    /// This node has cosigned another tree of a feed than the one it holds.
    CosignatureConflict { feed: FeedId },
    /// No disk space for entries.
    DiskFull { why: String },
    /// Disk space for own entries only.
    DiskLow { free_mib: u64 },
    /// A member has used its share of the disk: its entries are held as digests.
    MemberOverShare { member: Member, entries: u64 },
    /// Bulletins wait for a roster version.
    RosterMissing { member: Member, version: u64 },
    /// This node does not publish until its feed is recovered.
    NeedsRecovery { why: String },
    /// A peer holds more of this node's feed than this node.
    OwnFeedBehind { peer: Member, feed: FeedId, size: u64 },
    /// The commit log is damaged.
    LogDamaged { why: String },
    /// The index database is damaged.
    IndexDamaged,
    /// Two rosters of one version have valid signatures.
    RosterFork { version: u64, by: Member },
    /// Member `by` sent a roster that has enough signatures, but changes what no later roster may
    /// change, such as the size of a closed feed. It is rejected.
    RosterRejected { why: String, by: Member },
    /// Two nodes use a peer's identity.
    DuplicateIdentity { peer: Member },
    /// Another node uses this node's identity.
    OwnIdentityInUse { peer: Member },
    /// Entries that a peer sent break a rule; names the newest one.
    Entry { finding: &'static str, feed: FeedId, index: u64, by: Member },
}

/// The parts of an alarm.
struct Parts {
    code: &'static str,
    reason: &'static str,
    severity: Severity,
    /// English text; `{}` marks a value.
    text: &'static str,
    values: Vec<String>,
    /// The subject: there is one alarm for each code and subject.
    resource: String,
}

impl Alarm {
    /// Returns the stable code, by which the text is localized.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.parts().code
    }

    /// Returns the reason of its audit record; one of [`REASONS`].
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.parts().reason
    }

    /// Returns how soon an operator must act.
    #[must_use]
    pub fn severity(&self) -> Severity {
        self.parts().severity
    }

    /// Returns the values in the text, in order.
    #[must_use]
    pub fn values(&self) -> Vec<String> {
        self.parts().values.iter().map(|value| Foreign(value).to_string()).collect()
    }

    /// Returns this alarm, raised while `earlier` of the same code and subject is active.
    fn merged_with(self, earlier: &Self) -> Self {
        match (self, earlier) {
            // The condition ends when the newest version has arrived.
            (Self::RosterMissing { member, version }, Self::RosterMissing { version: earlier, .. }) => {
                Self::RosterMissing { member, version: version.max(*earlier) }
            }
            (newest, _) => newest,
        }
    }

    /// Whether its condition is polled. Such an alarm is cleared by [`Alarms::sync_watched`].
    fn is_watched(&self) -> bool {
        !matches!(
            self,
            Self::Fork { .. }
                | Self::RosterMissing { .. }
                | Self::OwnFeedBehind { .. }
                | Self::RosterFork { .. }
                | Self::RosterRejected { .. }
                | Self::DuplicateIdentity { .. }
                | Self::OwnIdentityInUse { .. }
                | Self::Entry { .. }
        )
    }

    /// Returns the member that caused it, for the audit record.
    fn by(&self) -> Option<&Member> {
        match self {
            Self::Fork { by, .. } => by.as_ref(),
            Self::RosterMissing { member: by, .. }
            | Self::OwnFeedBehind { peer: by, .. }
            | Self::RosterFork { by, .. }
            | Self::RosterRejected { by, .. }
            | Self::DuplicateIdentity { peer: by }
            | Self::OwnIdentityInUse { peer: by }
            | Self::PeerClockAhead { peer: by }
            | Self::PeerClockBehind { peer: by }
            | Self::MemberOverShare { member: by, .. }
            | Self::Entry { by, .. } => Some(by),
            _ => None,
        }
    }

    /// Returns its resource, for the audit record.
    fn resource(&self) -> String {
        match self {
            Self::Fork { feed, .. }
            | Self::OwnFeedBehind { feed, .. }
            | Self::RosterForkConflict { feed }
            | Self::CosignatureConflict { feed } => feed.to_string(),
            Self::Entry { feed, index, .. } => format!("{feed} {index}"),
            Self::AuthorityExpired { domain, .. }
            | Self::AuthorityExpiring { domain, .. }
            | Self::CrlExpired { domain, .. }
            | Self::CrlInGrace { domain, .. }
            | Self::CrlExpiring { domain, .. } => domain.clone(),
            _ => String::new(),
        }
    }

    fn parts(&self) -> Parts {
        use Severity::{Critical, Info, Warning};
        let parts = |code, reason, severity, text, resource: &dyn fmt::Display, values: &[&dyn fmt::Display]| Parts {
            code,
            reason,
            severity,
            text,
            values: values.iter().map(ToString::to_string).collect(),
            resource: resource.to_string(),
        };
        match self {
            Self::CertificateRejected { why } => parts(
                "certificate-rejected",
                "validity",
                Critical,
                "peers reject the certificate of this node: {}. Install another certificate and reload",
                &"",
                &[why],
            ),
            Self::CertificateExpired { since } => parts(
                "certificate-expired",
                "validity",
                Critical,
                "the certificate of this node has expired: peers reject it since {}. Install a new certificate and reload",
                &"",
                &[since],
            ),
            Self::CertificateExpiring { at } => parts(
                "certificate-expiring",
                "validity",
                Info,
                "the certificate of this node expires on {}. Install a new one before then",
                &"",
                &[at],
            ),
            Self::ReloadRejected { why } => parts(
                "reload-rejected",
                "reload",
                Warning,
                "the last reload was rejected and changed nothing; the next start may fail, too: {}",
                &"",
                &[why],
            ),
            Self::AuthorityExpired { domain, since } => parts(
                "authority-expired",
                "validity",
                Critical,
                "the certificate of an authority of {} expired on {}",
                domain,
                &[domain, since],
            ),
            Self::AuthorityExpiring { domain, at } => parts(
                "authority-expiring",
                "validity",
                Info,
                "the certificate of an authority of {} expires on {}",
                domain,
                &[domain, at],
            ),
            Self::CrlExpired { domain, since } => parts(
                "crl-expired",
                "validity",
                Critical,
                "the revocation list (CRL) of {} expired on {} and its grace time is over: its people and its node are rejected; known revocations stay in force. Its authority must issue a new list",
                domain,
                &[domain, since],
            ),
            Self::CrlInGrace { domain, since } => parts(
                "crl-in-grace",
                "validity",
                Warning,
                "the revocation list (CRL) of {} expired on {}: its people are rejected, its node is accepted until the grace time ends; known revocations stay in force. Its authority must issue a new list",
                domain,
                &[domain, since],
            ),
            Self::CrlExpiring { domain, at } => parts(
                "crl-expiring",
                "validity",
                Info,
                "the revocation list (CRL) of {} expires on {}",
                domain,
                &[domain, at],
            ),
            Self::OwnClockBehind { last } => parts(
                "own-clock-behind",
                "clock",
                Critical,
                "the clock of this node is more than 5 minutes behind its last cosignature ({}): the node accepts entries, but signs no cosignature, custody note or heartbeat until the clock is right",
                &"",
                &[last],
            ),
            Self::PeerClockAhead { peer } => parts(
                "peer-clock-ahead",
                "clock",
                Info,
                "the clock of {} is more than 5 minutes ahead of ours: one of them is wrong",
                peer,
                &[peer],
            ),
            Self::PeerClockBehind { peer } => parts(
                "peer-clock-behind",
                "clock",
                Info,
                "the clock of {} is more than 5 minutes behind ours: one of them is wrong",
                peer,
                &[peer],
            ),
            Self::Fork { feed, why, .. } => parts(
                "fork",
                "equivocation",
                Critical,
                "{} is forked and no longer followed: {}. `barid feed evidence` writes the evidence, `barid feed resume` follows the feed again",
                feed,
                &[feed, why],
            ),
            Self::RosterForkConflict { feed } => parts(
                "roster-fork-conflict",
                "fork-conflict",
                Critical,
                "the governors closed {} with a fork that is not held here: what this node shows of that feed may have been rejected by them. The operator's guide describes how to fetch the governors' fork",
                feed,
                &[feed],
            ),
            Self::CosignatureConflict { feed } => parts(
                "cosignature-conflict",
                "fork-conflict",
                Critical,
                "this node has cosigned a fork of {} that it does not hold: it signs no attestation for the one that it holds. The operator's guide describes what to do",
                feed,
                &[feed],
            ),
            Self::DiskFull { why } => parts(
                "disk-full",
                "disk-full",
                Critical,
                "the disk is full: {}. While the reserve lasts, only urgent bulletins of status Actual are published; no entries are accepted from peers. Both resume automatically when there is room",
                &"",
                &[why],
            ),
            Self::DiskLow { free_mib } => parts(
                "disk-low",
                "disk-low",
                Warning,
                "disk space is low ({} MiB free): of other members' bulletins only digests are stored now; their content is backfilled automatically when there is room",
                &"",
                &[free_mib],
            ),
            Self::MemberOverShare { member, entries } => parts(
                "member-over-share",
                "member-over-share",
                Warning,
                "{} has used up its share of the disk space: of {} of its entries only digests are stored now; their content is backfilled automatically later",
                member,
                &[member, entries],
            ),
            Self::RosterMissing { member, version } => parts(
                "roster-missing",
                "roster-missing",
                Warning,
                "bulletins of {} name roster version {}, which no peer has sent: they are not visible until it arrives; nothing else waits. Ask that member which roster it holds",
                member,
                &[member, version],
            ),
            Self::NeedsRecovery { why } => parts(
                "needs-recovery",
                "needs-recovery",
                Critical,
                "the feed of this node needs recovery and the node does not publish: {}; run `barid recover`",
                &"",
                &[why],
            ),
            Self::OwnFeedBehind { peer, feed, size } => parts(
                "own-feed-behind",
                "needs-recovery",
                Critical,
                "{} holds a valid checkpoint of {} at size {} that this node does not hold",
                peer,
                &[peer, feed, size],
            ),
            Self::LogDamaged { why } => parts(
                "log-damaged",
                "damage",
                Critical,
                "the store is damaged: {}; stop this node and run `barid repair`",
                &"",
                &[why],
            ),
            Self::IndexDamaged => parts(
                "index-damaged",
                "damage",
                Warning,
                "part of the index database cannot be read: restart this node, and it rebuilds the index database from the log",
                &"",
                &[],
            ),
            Self::RosterFork { version, by } => parts(
                "roster-fork",
                "roster-conflict",
                Critical,
                "two rosters of version {} are validly signed; {} sent the one that is not held here. Ask the governors",
                by,
                &[version, by],
            ),
            Self::RosterRejected { why, by } => {
                parts("roster-rejected", "roster-conflict", Critical, "a newer roster was rejected: {}", by, &[why])
            }
            Self::DuplicateIdentity { peer } => parts(
                "duplicate-identity",
                "duplicate-identity",
                Warning,
                "two nodes use the identity of {} and take the link from each other; the link that is open stays. Ask that member which node is the right one",
                peer,
                &[peer],
            ),
            Self::OwnIdentityInUse { peer } => parts(
                "own-identity-in-use",
                "duplicate-identity",
                Critical,
                "another node uses this member's identity: {} has a link with it and closes ours. Stop one of the two, and see the operator's guide on copied machines",
                peer,
                &[peer],
            ),
            Self::Entry { finding, feed, index, by } => {
                let text = match *finding {
                    "excluded" => {
                        "{}: sent by {}, although this member is not in its audience; its content was dropped"
                    }
                    "undecodable-header" => "{}: from {}, its header cannot be read",
                    "not-understood" => "{}: from {}, its header is not understood by this version",
                    "misdirected" => {
                        "{}: from {}, the entry names another member as its publisher; it is never delivered"
                    }
                    _ => "{}: wrongly withheld from this member, received later from {}",
                };
                parts(finding, finding, Warning, text, by, &[&format_args!("{feed} {index}"), by])
            }
        }
    }
}

/// The English text.
impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut texts, values) = (self.parts().text.split("{}"), self.values());
        f.write_str(texts.next().unwrap_or_default())?;
        texts.zip(values).try_for_each(|(text, value)| write!(f, "{value}{text}"))
    }
}

/// Returns one alarm of every kind, with distinct values.
#[cfg(test)]
pub(crate) fn examples() -> Vec<Alarm> {
    let text = || "some reason".to_owned();
    let (domain, at) = (|| "ma.rabat.example".to_owned(), || "2027-01-15T08:00:00Z".to_owned());
    let peer = || "ly".parse::<Member>().expect("a code");
    let feed = || "tn.rabat.example/feed/1".parse::<FeedId>().expect("a feed");
    let entries = ["excluded", "undecodable-header", "not-understood", "misdirected", "wrongly-withheld"];
    let mut examples = vec![
        Alarm::CertificateRejected { why: text() },
        Alarm::CertificateExpired { since: at() },
        Alarm::CertificateExpiring { at: at() },
        Alarm::ReloadRejected { why: text() },
        Alarm::AuthorityExpired { domain: domain(), since: at() },
        Alarm::AuthorityExpiring { domain: domain(), at: at() },
        Alarm::CrlExpired { domain: domain(), since: at() },
        Alarm::CrlInGrace { domain: domain(), since: at() },
        Alarm::CrlExpiring { domain: domain(), at: at() },
        Alarm::OwnClockBehind { last: at() },
        Alarm::PeerClockAhead { peer: peer() },
        Alarm::PeerClockBehind { peer: peer() },
        Alarm::Fork { feed: feed(), why: text(), by: Some(peer()) },
        Alarm::RosterForkConflict { feed: feed() },
        Alarm::CosignatureConflict { feed: feed() },
        Alarm::DiskFull { why: text() },
        Alarm::DiskLow { free_mib: 77 },
        Alarm::MemberOverShare { member: peer(), entries: 77 },
        Alarm::RosterMissing { member: peer(), version: 77 },
        Alarm::NeedsRecovery { why: text() },
        Alarm::OwnFeedBehind { peer: peer(), feed: feed(), size: 77 },
        Alarm::LogDamaged { why: text() },
        Alarm::IndexDamaged,
        Alarm::RosterFork { version: 77, by: peer() },
        Alarm::RosterRejected { why: text(), by: peer() },
        Alarm::DuplicateIdentity { peer: peer() },
        Alarm::OwnIdentityInUse { peer: peer() },
    ];
    examples.extend(entries.map(|finding| Alarm::Entry { finding, feed: feed(), index: 9, by: peer() }));
    examples
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;
    use std::path::Path;

    use super::*;

    /// Returns whether a text is a template with values in the places of `{}`.
    fn is_instance(text: &str, template: &str) -> bool {
        let mut fragments = template.split("{}");
        let Some(mut rest) = text.strip_prefix(fragments.next().unwrap()) else { return false };
        for fragment in fragments {
            if fragment.is_empty() {
                rest = "";
            } else {
                let Some((_, after)) = rest.split_once(fragment) else { return false };
                rest = after;
            }
        }
        rest.is_empty()
    }

    /// In the operator's guide a block that begins with "text alarm=" has codes, and one line for
    /// each of them.
    #[test]
    fn every_alarm_has_a_runbook_with_its_text() {
        let guide = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operator.md")).unwrap();
        let examples = examples();
        let alarms: BTreeMap<&str, Parts> = examples.iter().map(|alarm| (alarm.code(), alarm.parts())).collect();
        let mut documented = BTreeSet::new();
        for block in guide.split("```text alarm=").skip(1) {
            let (codes, rest) = block.split_once('\n').unwrap();
            let lines: Vec<&str> = rest.split("```").next().unwrap().lines().collect();
            assert_eq!(codes.split(',').count(), lines.len(), "{codes}");
            for (code, line) in codes.split(',').zip(lines) {
                let Parts { severity, text, .. } = &alarms[code];
                let start = format!("⚠ {}: ", severity.as_str());
                let found = line.strip_prefix(&start).is_some_and(|line| is_instance(line, text));
                assert!(found, "docs/operator.md, {code}: the text is {start}{text}");
                assert!(documented.insert(code), "{code} has two runbooks");
            }
        }
        assert_eq!(documented, alarms.keys().copied().collect::<BTreeSet<&str>>());
        for (code, Parts { reason, severity, .. }) in &alarms {
            let row = format!("\n| `{code}` | {} | `{reason}` | [", severity.as_str());
            assert!(guide.contains(&row), "docs/operator.md lacks the row {row}");
        }
    }

    #[test]
    fn instances_of_a_template_are_recognized() {
        assert!(is_instance("a b c", "a {} c") && is_instance("x, y: z", "{}, y: {}") && is_instance("none", "none"));
        assert!(!is_instance("a b d", "a {} c") && !is_instance("a b c.", "a {} c") && !is_instance("b", "a"));
    }

    #[test]
    fn every_alarm_has_a_unique_code_a_known_reason_and_its_values_in_its_text() {
        let examples = examples();
        let codes: BTreeSet<&str> = examples.iter().map(Alarm::code).collect();
        assert_eq!(codes.len(), examples.len());
        let reasons: BTreeSet<&str> = examples.iter().map(Alarm::reason).collect();
        assert_eq!(reasons, BTreeSet::from(REASONS));
        for alarm in examples {
            let text = alarm.to_string();
            assert_eq!(alarm.parts().text.matches("{}").count(), alarm.values().len());
            assert!(!text.contains("{}") && alarm.values().iter().all(|value| text.contains(value)), "{text}");
        }
    }

    #[test]
    fn foreign_values_are_escaped_and_truncated() {
        let why = format!("\u{1b}[2J\n{}", "x".repeat(1 << 20));
        let text = Alarm::RosterRejected { why, by: "ly".parse().expect("a code") }.to_string();
        assert!(text.len() < 2_000 && !text.contains(['\u{1b}', '\n']), "{text}");
    }
}
