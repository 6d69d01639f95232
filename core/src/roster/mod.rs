//! The roster: the signed list of members, their anchors, keys, endpoints and working groups.
//!
//! In scope: reading a roster's text into a [`Roster`] that makes sense, asking it, and the rule by which one version follows
//! another ([`RosterChain`]). Out of scope: fetching and storing rosters. Format: docs/protocol.md §6.

mod chain;
pub mod text;

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};

pub use chain::{ChainError, RosterChain};
use text::{KeyText, MemberText, RosterText, unix_seconds};

use crate::bulletin::audience::Directory;
use crate::bulletin::vocabulary::Tlp;
use crate::feed::note::{Algorithm, Note, VerifierKey};
use crate::limits::ROSTER_BYTES_MAX;
use crate::names::{ExchangeName, FeedId, Hash, Member};

/// Format of the text that this version reads.
pub const ROSTER_FORMAT: u32 = 1;

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// A full member: counts towards quorums.
    Full,
    /// Observer.
    Observer,
    /// Partner.
    Partner,
}

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Signs checkpoints of one epoch of the member's feed.
    Feed(u32),
    /// Cosigns other feeds.
    Mirror,
    /// Signs custody notes.
    Custody,
    /// Signs checkpoints of the node's journal.
    Journal,
    /// Cosigns as a witness only.
    Witness,
}

/// A key and when it holds.
#[derive(Clone, Debug)]
pub struct MemberKey {
    /// What for.
    pub role: Role,
    /// The key.
    pub key: VerifierKey,
    /// First roster version with which it may be used.
    pub from_version: u64,
    /// Unix seconds after which signatures no longer count, if it was retired or stolen.
    pub until: Option<i64>,
    /// Whether it was stolen.
    pub compromised: bool,
}

/// An epoch that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosedFeed {
    /// Epoch.
    pub epoch: u32,
    /// Final size.
    pub size: u64,
    /// Root at that size.
    pub root: Hash,
}

/// One member.
#[derive(Clone, Debug)]
pub struct MemberEntry {
    /// Code.
    pub code: Member,
    /// Kind.
    pub kind: MemberKind,
    /// Names in ar, fr and en.
    pub names: text::NamesText,
    /// `host:port` of its exchange listener.
    pub endpoints: Vec<String>,
    /// SPIFFE trust domain.
    pub trust_domain: String,
    /// PEM certificates of its authorities.
    pub ca_certificates: Vec<String>,
    /// Working groups (full members).
    pub working_groups: BTreeSet<String>,
    /// Highest label by working group (observers and partners).
    pub ceilings: BTreeMap<String, Tlp>,
    /// Keys.
    pub keys: Vec<MemberKey>,
    /// Closed epochs.
    pub closed_feeds: Vec<ClosedFeed>,
}

/// A roster that makes sense. Whether its signatures suffice is [`RosterChain`]'s to say.
#[derive(Clone, Debug)]
pub struct Roster {
    exchange: ExchangeName,
    version: u64,
    previous: Option<Hash>,
    text_hash: Hash,
    issued: i64,
    review_by: i64,
    quorum: usize,
    threshold: usize,
    governors: Vec<VerifierKey>,
    working_groups: BTreeSet<String>,
    members: BTreeMap<Member, MemberEntry>,
}

/// Why a text is no roster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    /// Not a signed note.
    #[error("the roster is no signed note: {0}")]
    Note(String),
    /// Not the TOML that is expected.
    #[error("the roster's text cannot be read: {0}")]
    Toml(String),
    /// A field is wrong.
    #[error("{field}: `{found}` is not {expected}")]
    Field {
        /// Path: `members.ma.keys[2].role`.
        field: String,
        /// What stands there.
        found: String,
        /// What was expected.
        expected: &'static str,
    },
}

impl Roster {
    /// Reads a roster note, without looking at its signatures.
    ///
    /// # Errors
    /// See [`RosterError`].
    pub fn read(note: &[u8]) -> Result<(Self, Note), RosterError> {
        let note = Note::parse_bounded(note, ROSTER_BYTES_MAX).map_err(|error| RosterError::Note(error.to_string()))?;
        let roster = Self::from_text(&note.text)?;
        Ok((roster, note))
    }

    /// Reads a roster's text.
    ///
    /// # Errors
    /// See [`RosterError`].
    pub fn from_text(text: &str) -> Result<Self, RosterError> {
        let read: RosterText = toml::from_str(text).map_err(|error| RosterError::Toml(error.to_string()))?;
        Self::build(&read, Hash(Sha256::digest(text.as_bytes()).into()))
    }

    fn build(read: &RosterText, text_hash: Hash) -> Result<Self, RosterError> {
        if read.format != ROSTER_FORMAT {
            return Err(wrong("format", read.format, "1"));
        }
        let exchange: ExchangeName =
            read.exchange.parse().map_err(|_| wrong("exchange", &read.exchange, "a DNS name in lower case"))?;
        if read.version == 0 {
            return Err(wrong("version", 0, "1 or more"));
        }
        let previous = match (&read.previous, read.version) {
            (None, 1) => None,
            (Some(text), version) if version > 1 => {
                Some(hash(text).ok_or_else(|| wrong("previous", text, "a SHA-256 in hex"))?)
            }
            (found, _) => {
                return Err(wrong("previous", found.clone().unwrap_or_default(), "present exactly from version 2 on"));
            }
        };
        let time = |field: &str, value: &toml::value::Datetime| {
            unix_seconds(value).ok_or_else(|| wrong(field, value, "a date and time with offset"))
        };
        let governors = read
            .governors
            .keys
            .iter()
            .map(|text| key("governors.keys", text, |algorithm| algorithm == Algorithm::Ed25519))
            .collect::<Result<Vec<_>, _>>()?;
        let distinct: BTreeSet<_> = governors.iter().map(VerifierKey::public_bytes).collect();
        if distinct.len() != governors.len() {
            return Err(wrong("governors.keys", governors.len(), "all different"));
        }
        let threshold = read.governors.threshold as usize;
        if threshold == 0 || threshold > governors.len() {
            return Err(wrong("governors.threshold", threshold, "between 1 and the number of keys"));
        }
        let working_groups: BTreeSet<String> = read.working_groups.iter().cloned().collect();
        if let Some(bad) = working_groups.iter().find(|name| !is_label(name)) {
            return Err(wrong("working_groups", bad, "lower-case letters, digits and hyphens"));
        }
        let mut roster = Self {
            exchange,
            version: read.version,
            previous,
            text_hash,
            issued: time("issued", &read.issued)?,
            review_by: time("review_by", &read.review_by)?,
            quorum: read.quorum as usize,
            threshold,
            governors,
            working_groups,
            members: BTreeMap::new(),
        };
        let mut authorities: BTreeMap<&str, &str> = BTreeMap::new();
        for member in &read.members {
            let entry = roster.member_entry(member)?;
            for pem in &member.ca_certificates {
                if let Some(other) = authorities.insert(pem.trim(), &member.code).filter(|other| *other != member.code)
                {
                    let field = format!("members.{}.ca_certificates", member.code);
                    return Err(wrong(&field, format!("also of {other}"), "an authority of one member only"));
                }
            }
            if roster.members.insert(entry.code.clone(), entry).is_some() {
                return Err(wrong("members.code", &member.code, "listed once"));
            }
        }
        let full = roster.full_members().count();
        if roster.quorum == 0 || roster.quorum >= full.max(2) {
            return Err(wrong("quorum", roster.quorum, "at least 1 and fewer than the full members"));
        }
        Ok(roster)
    }

    fn member_entry(&self, read: &MemberText) -> Result<MemberEntry, RosterError> {
        let path = |part: &str| format!("members.{}.{part}", read.code);
        let code: Member = read.code.parse().map_err(|_| wrong("members.code", &read.code, "a member code"))?;
        let kind = match read.kind.as_str() {
            "full" => MemberKind::Full,
            "observer" => MemberKind::Observer,
            "partner" => MemberKind::Partner,
            other => return Err(wrong(&path("kind"), other, "full, observer or partner")),
        };
        let trust_domain = format!("{code}.{}", self.exchange);
        if read.trust_domain != trust_domain {
            return Err(wrong(&path("trust_domain"), &read.trust_domain, "`<code>.<exchange>`"));
        }
        if read.ca_certificates.is_empty() {
            return Err(wrong(&path("ca_certificates"), "", "at least one certificate"));
        }
        for group in read.working_groups.iter().chain(read.ceilings.keys()) {
            if !self.working_groups.contains(group) {
                return Err(wrong(&path("working_groups"), group, "a working group of this roster"));
            }
        }
        if kind == MemberKind::Full && !read.ceilings.is_empty() {
            return Err(wrong(&path("ceilings"), "", "empty for a full member"));
        }
        if kind != MemberKind::Full && !read.working_groups.is_empty() {
            return Err(wrong(&path("working_groups"), "", "empty for an observer or partner, who has ceilings"));
        }
        let ceilings = read
            .ceilings
            .iter()
            .map(|(group, label)| {
                let tlp = Tlp::read(label).ok_or_else(|| wrong(&path("ceilings"), label, "a TLP 2.0 label"))?;
                Ok((group.clone(), tlp))
            })
            .collect::<Result<_, RosterError>>()?;
        let keys = read
            .keys
            .iter()
            .enumerate()
            .map(|(place, text)| self.member_key(&code, &path(&format!("keys[{place}]")), text))
            .collect::<Result<Vec<_>, _>>()?;
        for (role, name) in [(Role::Mirror, "mirror"), (Role::Custody, "custody")] {
            if !keys.iter().any(|key| key.role == role) {
                return Err(wrong(
                    &path("keys"),
                    "",
                    if name == "mirror" { "with a mirror key" } else { "with a custody key" },
                ));
            }
        }
        let closed_feeds = read
            .closed_feeds
            .iter()
            .map(|closed| {
                let root =
                    hash(&closed.root).ok_or_else(|| wrong(&path("closed_feeds"), &closed.root, "a SHA-256 in hex"))?;
                Ok(ClosedFeed { epoch: closed.epoch, size: closed.size, root })
            })
            .collect::<Result<Vec<_>, RosterError>>()?;
        Ok(MemberEntry {
            code,
            kind,
            names: read.names.clone(),
            endpoints: read.endpoints.clone(),
            trust_domain,
            ca_certificates: read.ca_certificates.clone(),
            working_groups: read.working_groups.iter().cloned().collect(),
            ceilings,
            keys,
            closed_feeds,
        })
    }

    fn member_key(&self, code: &Member, path: &str, read: &KeyText) -> Result<MemberKey, RosterError> {
        let host = format!("{code}.{}", self.exchange);
        let cosigning = |algorithm| matches!(algorithm, Algorithm::CosignatureEd25519 | Algorithm::CosignatureMlDsa44);
        let noting = |algorithm| algorithm == Algorithm::Ed25519;
        let log = |algorithm| matches!(algorithm, Algorithm::Ed25519 | Algorithm::CosignatureMlDsa44);
        let field = format!("{path}.key");
        let (role, name, parsed) = match (read.role.as_str(), read.epoch) {
            ("feed", Some(epoch)) if epoch > 0 => {
                (Role::Feed(epoch), format!("{host}/feed/{epoch}"), key(&field, &read.key, log)?)
            }
            ("mirror", None) => (Role::Mirror, format!("{host}/mirror"), key(&field, &read.key, cosigning)?),
            ("custody", None) => (Role::Custody, format!("{host}/custody"), key(&field, &read.key, noting)?),
            ("journal", None) => (Role::Journal, format!("{host}/journal"), key(&field, &read.key, log)?),
            ("witness", None) => (Role::Witness, format!("{host}/witness"), key(&field, &read.key, cosigning)?),
            _ => {
                let expected = "feed with an epoch from 1, or mirror, custody, journal or witness without one";
                return Err(wrong(&format!("{path}.role"), &read.role, expected));
            }
        };
        if parsed.name() != name {
            return Err(wrong(&field, parsed.name(), "named after its member, exchange and role"));
        }
        let until = [&read.retired, &read.compromised]
            .into_iter()
            .flatten()
            .map(|value| unix_seconds(value).ok_or_else(|| wrong(path, value, "a date and time with offset")))
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .min();
        Ok(MemberKey {
            role,
            key: parsed,
            from_version: read.from_version.unwrap_or(0),
            until,
            compromised: read.compromised.is_some(),
        })
    }

    /// Exchange name.
    #[must_use]
    pub fn exchange(&self) -> &ExchangeName {
        &self.exchange
    }

    /// Version, from 1.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// SHA-256 of the text, without signatures: what the next version names as `previous`.
    #[must_use]
    pub fn text_hash(&self) -> Hash {
        self.text_hash
    }

    /// What this version names as the one before.
    #[must_use]
    pub fn previous(&self) -> Option<Hash> {
        self.previous
    }

    /// Unix seconds of issue.
    #[must_use]
    pub fn issued(&self) -> i64 {
        self.issued
    }

    /// Unix seconds after which nodes warn.
    #[must_use]
    pub fn review_by(&self) -> i64 {
        self.review_by
    }

    /// Cosigners, other than the publisher, that make a bulletin witnessed.
    #[must_use]
    pub fn quorum(&self) -> usize {
        self.quorum
    }

    /// Governors' keys.
    #[must_use]
    pub fn governors(&self) -> &[VerifierKey] {
        &self.governors
    }

    /// How many governors must sign.
    #[must_use]
    pub fn threshold(&self) -> usize {
        self.threshold
    }

    /// Working groups of the exchange.
    #[must_use]
    pub fn working_groups(&self) -> &BTreeSet<String> {
        &self.working_groups
    }

    /// Members, by code.
    pub fn entries(&self) -> impl Iterator<Item = &MemberEntry> {
        self.members.values()
    }

    /// One member.
    #[must_use]
    pub fn member(&self, member: &Member) -> Option<&MemberEntry> {
        self.members.get(member)
    }

    /// Members of kind `full`.
    pub fn full_members(&self) -> impl Iterator<Item = &MemberEntry> {
        self.members.values().filter(|entry| entry.kind == MemberKind::Full)
    }

    /// Keys of one epoch of a feed; all of them must sign. Empty for another exchange's feed.
    #[must_use]
    pub fn feed_keys(&self, feed: &FeedId) -> Vec<VerifierKey> {
        if feed.exchange != self.exchange {
            return Vec::new();
        }
        self.keys(&feed.member, Role::Feed(feed.epoch)).map(|key| key.key.clone()).collect()
    }

    /// Cosigning keys of a member.
    #[must_use]
    pub fn mirror_keys(&self, member: &Member) -> Vec<VerifierKey> {
        self.keys(member, Role::Mirror).map(|key| key.key.clone()).collect()
    }

    /// Custody keys of a member.
    #[must_use]
    pub fn custody_keys(&self, member: &Member) -> Vec<VerifierKey> {
        self.keys(member, Role::Custody).map(|key| key.key.clone()).collect()
    }

    /// Keys of a member for a role that may be used with this version.
    pub fn keys(&self, member: &Member, role: Role) -> impl Iterator<Item = &MemberKey> {
        self.members
            .get(member)
            .into_iter()
            .flat_map(|entry| &entry.keys)
            .filter(move |key| key.role == role && key.from_version <= self.version)
    }

    /// Valid signatures of this roster's governors on a note, each governor counted once.
    #[must_use]
    pub fn approvals(&self, note: &Note) -> usize {
        self.governors.iter().filter(|key| note.verify(key).is_ok()).count()
    }
}

impl Directory for Roster {
    fn members(&self) -> Box<dyn Iterator<Item = &Member> + '_> {
        Box::new(self.members.keys())
    }

    fn is_member(&self, member: &Member) -> bool {
        self.members.contains_key(member)
    }

    fn is_full(&self, member: &Member) -> bool {
        self.members.get(member).is_some_and(|entry| entry.kind == MemberKind::Full)
    }

    fn in_group(&self, member: &Member, working_group: &str) -> bool {
        self.members.get(member).is_some_and(|entry| entry.working_groups.contains(working_group))
    }

    fn tlp_ceiling(&self, member: &Member, working_group: &str) -> Option<Tlp> {
        self.members.get(member)?.ceilings.get(working_group).copied()
    }
}

fn wrong(field: &str, found: impl std::fmt::Display, expected: &'static str) -> RosterError {
    RosterError::Field { field: field.into(), found: format!("{found}").chars().take(80).collect(), expected }
}

fn hash(text: &str) -> Option<Hash> {
    let bytes = hex::decode(text).ok().filter(|bytes| hex::encode(bytes) == *text)?;
    Some(Hash(bytes.try_into().ok()?))
}

fn key(field: &str, text: &str, fits: impl Fn(Algorithm) -> bool) -> Result<VerifierKey, RosterError> {
    let key: VerifierKey = text.parse().map_err(|_| wrong(field, text, "a C2SP verifier key"))?;
    if fits(key.algorithm()) { Ok(key) } else { Err(wrong(field, text, "a key of an algorithm that its role uses")) }
}

fn is_label(text: &str) -> bool {
    (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}
