//! Alarms: what an operator must look at, as values.
//!
//! In scope: every kind of alarm with its code, severity, text and subject. Out of scope: which of them are active (`active`), and when there is one;
//! the place that knows raises and clears it.

mod active;

use std::fmt;

use barid_core::ids::{FeedId, Member};

use super::escape::Foreign;
pub use active::{ActiveAlarm, Alarms};

/// Reason of every record of an alarm (`event` is `alarm`).
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
    /// Now: something does not work, or is not what it should be.
    Critical,
    /// Today: something does not work for others, or will not work soon.
    Warning,
    /// In time.
    Info,
}

impl Severity {
    /// A stable word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

/// Something that needs an operator. Times are texts as they are shown.
// The fields are the values in the texts.
#[allow(missing_docs)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// Others reject the certificate of this node.
    CertificateRejected { why: String },
    /// It has expired.
    CertificateExpired { since: String },
    /// It expires soon.
    CertificateExpiring { at: String },
    /// The last reload changed nothing, as a file cannot be used.
    ReloadRejected { why: String },
    /// The certificate of an authority has expired.
    AuthorityExpired { domain: String, since: String },
    /// It expires soon.
    AuthorityExpiring { domain: String, at: String },
    /// A revocation list and its grace time have expired.
    CrlExpired { domain: String, since: String },
    /// A revocation list has expired, and its grace time has not.
    CrlInGrace { domain: String, since: String },
    /// A revocation list expires soon.
    CrlExpiring { domain: String, at: String },
    /// Our clock is behind our own last cosignature.
    OwnClockBehind { last: String },
    /// A peer's clock is ahead of ours.
    PeerClockAhead { peer: Member },
    /// A peer's clock is behind ours.
    PeerClockBehind { peer: Member },
    /// One key signed two trees: the feed is not followed.
    Fork { feed: FeedId, why: String, by: Option<Member> },
    /// The governors have ended a feed with another tree than is held.
    RosterForkConflict { feed: FeedId },
    /// This node has cosigned another tree of a feed than it holds.
    CosignatureConflict { feed: FeedId },
    /// No room for entries.
    DiskFull { why: String },
    /// Room for own entries only.
    DiskLow { free_mib: u64 },
    /// A member has brought its share of the room: its entries are held as digests.
    MemberOverShare { member: Member, entries: u64 },
    /// Bulletins wait for a roster version.
    RosterMissing { member: Member, version: u64 },
    /// This node does not publish.
    NeedsRecovery { why: String },
    /// A peer holds more of this node's feed than it does itself.
    OwnFeedBehind { peer: Member, feed: FeedId, size: u64 },
    /// The commit log is damaged.
    LogDamaged { why: String },
    /// The index database is damaged.
    IndexDamaged,
    /// Two rosters of one version are validly signed.
    RosterFork { version: u64, by: Member },
    /// A roster that enough governors signed takes back what was settled.
    RosterRejected { why: String, by: Member },
    /// Two nodes use a peer's identity.
    DuplicateIdentity { peer: Member },
    /// Another node uses this node's identity.
    OwnIdentityInUse { peer: Member },
    /// Entries that a peer sent are not as they must be; the newest one.
    Entry { finding: &'static str, feed: FeedId, index: u64, by: Member },
}

/// What an alarm is made of.
struct Parts {
    code: &'static str,
    reason: &'static str,
    severity: Severity,
    /// English; `{}` is a value.
    text: &'static str,
    values: Vec<String>,
    /// What it is about: of one code and subject there is one alarm.
    resource: String,
}

impl Alarm {
    /// A stable code, to have it in other words.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.parts().code
    }

    /// Reason of its record; one of [`REASONS`].
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.parts().reason
    }

    /// How soon an operator must act.
    #[must_use]
    pub fn severity(&self) -> Severity {
        self.parts().severity
    }

    /// Values in the text, in order.
    #[must_use]
    pub fn values(&self) -> Vec<String> {
        self.parts().values.iter().map(|value| Foreign(value).to_string()).collect()
    }

    /// This one, raised while `earlier` of the same code and subject is active.
    fn merged_with(self, earlier: &Self) -> Self {
        match (self, earlier) {
            // The cause is over when the newest of them is there.
            (Self::RosterMissing { member, version }, Self::RosterMissing { version: earlier, .. }) => {
                Self::RosterMissing { member, version: version.max(*earlier) }
            }
            (newest, _) => newest,
        }
    }

    /// Whether its cause is looked at again and again: then it is cleared by [`Alarms::sync_watched`].
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

    /// Who caused it, for the record.
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

    /// What it concerns, for the record.
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
                "the certificate of this node is refused by others: {}",
                &"",
                &[why],
            ),
            Self::CertificateExpired { since } => parts(
                "certificate-expired",
                "validity",
                Critical,
                "the certificate of this node ended: it is refused since {}",
                &"",
                &[since],
            ),
            Self::CertificateExpiring { at } => {
                parts("certificate-expiring", "validity", Info, "the certificate of this node ends on {}", &"", &[at])
            }
            Self::ReloadRejected { why } => parts(
                "reload-rejected",
                "reload",
                Warning,
                "the last reload changed nothing, and the next start may fail: {}",
                &"",
                &[why],
            ),
            Self::AuthorityExpired { domain, since } => parts(
                "authority-expired",
                "validity",
                Critical,
                "the certificate of an authority of {} ended on {}",
                domain,
                &[domain, since],
            ),
            Self::AuthorityExpiring { domain, at } => parts(
                "authority-expiring",
                "validity",
                Info,
                "the certificate of an authority of {} ends on {}",
                domain,
                &[domain, at],
            ),
            Self::CrlExpired { domain, since } => parts(
                "crl-expired",
                "validity",
                Critical,
                "the revocation list of {} was due: its people and its node are refused, known revocations stay in force; since {}",
                domain,
                &[domain, since],
            ),
            Self::CrlInGrace { domain, since } => parts(
                "crl-in-grace",
                "validity",
                Warning,
                "the revocation list of {} was due: its people are refused, its node is let in for the grace time, known revocations stay in force; since {}",
                domain,
                &[domain, since],
            ),
            Self::CrlExpiring { domain, at } => {
                parts("crl-expiring", "validity", Info, "the revocation list of {} is due on {}", domain, &[domain, at])
            }
            Self::OwnClockBehind { last } => parts(
                "own-clock-behind",
                "clock",
                Critical,
                "the clock of this node is more than 5 minutes behind {}, when it cosigned last: it takes entries and cosigns nothing until the clock is right",
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
                "{} is no longer followed: {}; `barid feed` shows what proves it and resumes it",
                feed,
                &[feed, why],
            ),
            Self::RosterForkConflict { feed } => parts(
                "fork-conflict",
                "fork-conflict",
                Critical,
                "the governors have ended {} with another history than is held here: what is read of it here may be what they rejected",
                feed,
                &[feed],
            ),
            Self::CosignatureConflict { feed } => parts(
                "cosignature-conflict",
                "fork-conflict",
                Critical,
                "this node has cosigned another history of {} than it holds: it says nothing of this one",
                feed,
                &[feed],
            ),
            Self::DiskFull { why } => parts(
                "disk-full",
                "disk-full",
                Critical,
                "the disk is full: nothing is published here but what is urgent and Actual, while the reserve lasts, and no entries are taken from peers; both go on by themselves once there is room; {}",
                &"",
                &[why],
            ),
            Self::DiskLow { free_mib } => parts(
                "disk-low",
                "disk-low",
                Warning,
                "little room is left on the disk ({} MiB free): the content of other members' bulletins is not stored for now, and is fetched by itself once there is room",
                &"",
                &[free_mib],
            ),
            Self::MemberOverShare { member, entries } => parts(
                "member-over-share",
                "member-over-share",
                Warning,
                "{} has brought its share of the room on the disk: of {} of its entries only digests are stored for now, and their content is fetched by itself later",
                member,
                &[member, entries],
            ),
            Self::RosterMissing { member, version } => parts(
                "roster-missing",
                "roster-missing",
                Warning,
                "{} publishes by roster version {}, which no peer has shown: such bulletins wait until it comes, and nothing else does",
                member,
                &[member, version],
            ),
            Self::NeedsRecovery { why } => parts(
                "needs-recovery",
                "needs-recovery",
                Critical,
                "this node does not publish: {}; run `barid recover`",
                &"",
                &[why],
            ),
            Self::OwnFeedBehind { peer, feed, size } => parts(
                "own-feed-behind",
                "needs-recovery",
                Critical,
                "{} holds a valid checkpoint of {} at size {} that this node does not",
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
                "the view cannot be read in part: start this node again, and it is rebuilt from the log",
                &"",
                &[],
            ),
            Self::RosterFork { version, by } => parts(
                "roster-fork",
                "roster-conflict",
                Critical,
                "two rosters of version {} are signed; {} sent the one not held",
                by,
                &[version, by],
            ),
            Self::RosterRejected { why, by } => {
                parts("roster-rejected", "roster-conflict", Critical, "a newer roster is refused: {}", by, &[why])
            }
            Self::DuplicateIdentity { peer } => parts(
                "duplicate-identity",
                "duplicate-identity",
                Warning,
                "two nodes use the identity of {}: they take the link from each other; the one that is open stays. Ask that member which one is right",
                peer,
                &[peer],
            ),
            Self::OwnIdentityInUse { peer } => parts(
                "own-identity-in-use",
                "duplicate-identity",
                Critical,
                "another node uses this member's identity: {} has a link with it and ends ours. Stop one of the two, and see the operator's guide on copied machines",
                peer,
                &[peer],
            ),
            Self::Entry { finding, feed, index, by } => {
                let text = match *finding {
                    "excluded" => "{}: excluded, from {}",
                    "undecodable-header" => "{}: undecodable-header, from {}",
                    "not-understood" => "{}: not-understood, from {}",
                    "misdirected" => "{}: misdirected, from {}",
                    _ => "{}: wrongly-withheld, from {}",
                };
                parts(finding, finding, Warning, text, by, &[&format_args!("{feed} {index}"), by])
            }
        }
    }
}

/// In English.
impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut texts, values) = (self.parts().text.split("{}"), self.values());
        f.write_str(texts.next().unwrap_or_default())?;
        texts.zip(values).try_for_each(|(text, value)| write!(f, "{value}{text}"))
    }
}

/// One alarm of every kind, with values that can be told apart.
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
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_alarm_has_a_unique_code_a_known_reason_and_its_values_in_its_text() {
        let examples = examples();
        let codes: BTreeSet<&str> = examples.iter().map(Alarm::code).collect();
        assert_eq!(codes.len(), examples.len());
        for alarm in examples {
            assert!(REASONS.contains(&alarm.reason()), "{alarm:?}");
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
