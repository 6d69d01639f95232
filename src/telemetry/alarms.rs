//! Alarms by name: a stable code for each text, so that programs and catalogues can say it in other words.
//!
//! In scope: the table, and which alarm a text is. Out of scope: when there is one; that is said where it is found. A text that the table
//! lacks has no code and is told as it is.

use barid_core::bulletin::rules::values;
use barid_core::proto;

/// An alarm with its code, if it has one.
#[must_use]
pub fn coded(text: &str) -> proto::Alarm {
    let found = ALARMS.iter().find_map(|(code, words)| Some((*code, values(words, text)?)));
    let (code, values) = found.unwrap_or_default();
    proto::Alarm { text: text.to_owned(), code: code.to_owned(), values }
}

/// Reason of every record of an alarm (`what` is `alarm`).
pub const REASONS: [&str; 16] = [
    "another-history",
    "clock",
    "damage",
    "disk-full",
    "disk-low",
    "double-identity",
    "equivocation",
    "excluded",
    "in-doubt",
    "member-over-share",
    "misdirected",
    "not-understood",
    "roster-missing",
    "undecodable-header",
    "validity",
    "wrongly-withheld",
];

/// Code and text of every alarm; `{}` is a value.
pub const ALARMS: &[(&str, &str)] = &[
    ("certificate-refused", "the certificate of this node is refused by others: {}"),
    ("certificate-ended", "the certificate of this node ended: it is refused since {}"),
    ("certificate-ends", "the certificate of this node ends on {}"),
    ("reload-refused", "the last reload changed nothing, and the next start may fail: {}"),
    ("authority-ended", "the certificate of an authority of {} ended on {}"),
    ("authority-ends", "the certificate of an authority of {} ends on {}"),
    (
        "list-over",
        "the revocation list of {} was due: its people and its node are refused, known revocations stay in force; since {}",
    ),
    (
        "list-overdue",
        "the revocation list of {} was due: its people are refused, its node is let in for the grace time, known revocations stay in force; since {}",
    ),
    ("list-due", "the revocation list of {} is due on {}"),
    (
        "clock-behind",
        "the clock of this node is more than 5 minutes behind {}, when it cosigned last: it takes entries and cosigns nothing until the clock is right",
    ),
    ("peer-clock-ahead", "the clock of {} is more than 5 minutes ahead of ours: one of them is wrong"),
    ("peer-clock-behind", "the clock of {} is more than 5 minutes behind ours: one of them is wrong"),
    ("two-histories", "{} is no longer followed: {}; `barid feed` shows what proves it and resumes it"),
    (
        "another-history",
        "the governors have ended {} with another history than is held here: what is read of it here may be what they rejected",
    ),
    ("another-cosigned", "this node has cosigned another history of {} than it holds: it says nothing of this one"),
    (
        "disk-full",
        "the disk is full: nothing is published here and no entries are taken from peers, and both go on by themselves once there is room; {}",
    ),
    (
        "disk-low",
        "little room is left on the disk ({} MiB free): the content of other members' bulletins is not stored for now, and is fetched by itself once there is room",
    ),
    (
        "member-over-share",
        "{} has brought its share of the room on the disk: of {} of its entries only digests are stored for now, and their content is fetched by itself later",
    ),
    (
        "roster-missing",
        "{} publishes by roster version {}, which no peer has shown: such bulletins are passed over until it comes",
    ),
    ("in-doubt", "this node does not publish: {}; run `barid recover`"),
    ("own-checkpoint", "{} holds a valid checkpoint of {} at size {} that this node does not"),
    ("log-damaged", "the store is damaged: {}; stop this node and run `barid repair`"),
    ("view-damaged", "the view cannot be read in part: start this node again, and it is rebuilt from the log"),
    ("two-rosters", "two rosters of version {} are signed; {} sent the one not held"),
    ("roster-refused", "a newer roster is refused: {}"),
    (
        "double-peer",
        "two nodes use the identity of {}: they take the link from each other; the one that is open stays. Ask that member which one is right",
    ),
    (
        "double-own",
        "another node uses this member's identity: {} has a link with it and ends ours. Stop one of the two, and see the operator's guide on copied machines",
    ),
    ("excluded", "{}: excluded, from {}"),
    ("undecodable-header", "{}: undecodable-header, from {}"),
    ("not-understood", "{}: not-understood, from {}"),
    ("misdirected", "{}: misdirected, from {}"),
    ("wrongly-withheld", "{}: wrongly-withheld, from {}"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_its_own_alarm_and_others_are_told_as_they_are() {
        for (code, words) in ALARMS {
            let values: Vec<String> = (1..=words.matches("{}").count()).map(|n| format!("v{n}")).collect();
            let text = values.iter().fold((*words).to_owned(), |text, value| text.replacen("{}", value, 1));
            assert_eq!(coded(&text), proto::Alarm { text, code: (*code).to_owned(), values });
        }
        assert_eq!(coded("something else"), proto::Alarm { text: "something else".into(), ..Default::default() });
    }
}
