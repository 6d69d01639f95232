//! The roster's text: TOML that people without technical training can read. Unknown keys are
//! rejected.
//!
//! In scope: the structure of the text. Out of scope: its validity ([`super::Roster`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use toml::value::Datetime;

/// The whole text.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct RosterText {
    /// Always 1.
    pub format: u32,
    /// Exchange name.
    pub exchange: String,
    /// Begins at 1 and increases by 1.
    pub version: u64,
    /// SHA-256 of the text (without signatures) of the version before, hex; absent for version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// When the governors issued it, with offset.
    pub issued: Datetime,
    /// After this time nodes raise an alarm; they never stop.
    pub review_by: Datetime,
    /// Cosigners, other than the publisher, that make a bulletin *witnessed*.
    pub quorum: u32,
    /// Working groups of the exchange.
    pub working_groups: Vec<String>,
    /// The keys that sign rosters.
    pub governors: GovernorsText,
    /// The participants.
    pub members: Vec<MemberText>,
}

/// The governors, who sign rosters.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct GovernorsText {
    /// Number of governors that must sign.
    pub threshold: u32,
    /// C2SP vkeys, Ed25519 (type 0x01).
    pub keys: Vec<String>,
}

/// One member.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct MemberText {
    /// Member code.
    pub code: String,
    /// full, observer or partner.
    pub kind: String,
    /// Display names.
    pub names: NamesText,
    /// `host:port` of its exchange listener; empty if it only dials.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// Its SPIFFE trust domain: `<code>.<exchange>`.
    pub trust_domain: String,
    /// PEM certificates of its authorities; a new one is listed one version before use.
    pub ca_certificates: Vec<String>,
    /// Working groups that a full member belongs to.
    #[serde(default)]
    pub working_groups: Vec<String>,
    /// For observers and partners: working group to the highest TLP label granted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ceilings: BTreeMap<String, String>,
    /// Its keys.
    pub keys: Vec<KeyText>,
    /// Closed epochs of its feed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub closed_feeds: Vec<ClosedFeedText>,
}

/// A member's name in the conference's languages.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct NamesText {
    /// Arabic.
    pub ar: String,
    /// French.
    pub fr: String,
    /// English.
    pub en: String,
}

/// One key of a member.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct KeyText {
    /// feed, mirror, custody, journal or witness.
    pub role: String,
    /// For feed keys: the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u32>,
    /// C2SP vkey.
    pub key: String,
    /// First roster version with which it may be used; if absent, the first that lists it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_version: Option<u64>,
    /// Retired: signatures after this time are not by the member.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retired: Option<Datetime>,
    /// Stolen: signatures after this time may be by anybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compromised: Option<Datetime>,
}

/// A closed epoch.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct ClosedFeedText {
    /// Epoch.
    pub epoch: u32,
    /// Its final size.
    pub size: u64,
    /// Root at that size, hex.
    pub root: String,
}

/// Returns the Unix seconds of a date and time with offset (RFC 3339); `None` for a value without
/// date, time or offset.
#[must_use]
pub fn unix_seconds(value: &Datetime) -> Option<i64> {
    let (date, time) = (value.date?, value.time?);
    let offset_minutes = match value.offset? {
        toml::value::Offset::Z => 0,
        toml::value::Offset::Custom { minutes } => i64::from(minutes),
    };
    let (year, month, day) = (i64::from(date.year), i64::from(date.month), i64::from(date.day));
    // Days since 1970-01-01 in the Gregorian calendar, counted in eras of 400 years that begin in
    // March.
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let of_era = shifted.rem_euclid(400);
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    let seconds = i64::from(time.hour) * 3_600 + i64::from(time.minute) * 60 + i64::from(time.second.unwrap_or(0));
    Some(days * 86_400 + seconds - offset_minutes * 60)
}
