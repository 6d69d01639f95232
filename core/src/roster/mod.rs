//! The roster: the signed list of members, their trust anchors, keys, endpoints and working groups.
//!
//! In scope: a valid [`Roster`] (see `read` for the rules), its queries, the rule of succession
//! between versions ([`RosterChain`]), and drafts that governors sign ([`Draft`]). Out of scope:
//! fetching and storing rosters. Format: docs/protocol.md §6.

mod authority;
mod chain;
mod draft;
mod invariants;
mod read;
pub mod text;

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest as _, Sha256};

pub use chain::{ChainError, RosterChain, could_follow, follows};
pub use draft::{Draft, SignError, Signer};
use text::RosterText;

use crate::bulletin::audience::Directory;
use crate::bulletin::vocabulary::Tlp;
use crate::certificate::{self, Purpose, Unfit};
use crate::feed::cosignature::claimed_time;
use crate::feed::note::{Note, NoteSignature, VerifierKey};
use crate::ids::{ExchangeName, FeedId, Hash, Member};
use crate::limits::{CLOCK_AHEAD_SECONDS_MAX, ROSTER_BYTES_MAX};

/// How far a governor's clock may be behind the clock of a newly created authority, in seconds.
const AUTHORITY_SKEW_SECONDS: i64 = CLOCK_AHEAD_SECONDS_MAX;
/// Format of the text that this version reads.
pub const ROSTER_FORMAT: u32 = 1;

/// Kind of member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// A full member: counts towards quorums.
    Full,
    /// Observer.
    Observer,
    /// Partner.
    Partner,
}

impl MemberKind {
    /// All kinds with their names.
    pub const ALL: [(Self, &'static str); 3] =
        [(Self::Full, "full"), (Self::Observer, "observer"), (Self::Partner, "partner")];

    /// Returns its name in rosters.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("full", |(_, name)| name)
    }
}

/// Role of a key.
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

impl Role {
    /// Returns its name in rosters, without the epoch.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Feed(_) => "feed",
            Self::Mirror => "mirror",
            Self::Custody => "custody",
            Self::Journal => "journal",
            Self::Witness => "witness",
        }
    }
}

/// A key with its role and its validity.
#[derive(Clone, Debug)]
pub struct MemberKey {
    /// Its role.
    pub role: Role,
    /// The key.
    pub key: VerifierKey,
    /// First roster version with which it may be used; 0 if the roster gives none.
    pub from_version: u64,
    /// Unix seconds after which its signatures no longer count, if it was retired or stolen: the
    /// earlier of the two.
    pub until: Option<i64>,
    /// Whether it was stolen.
    pub compromised: bool,
    /// Unix seconds at which it was retired, if it was.
    pub retired: Option<i64>,
}

impl MemberKey {
    /// Returns whether a signature that it made at `time`, in Unix seconds, counts. For a stolen
    /// key this is only as reliable as the time, which the signer alone states.
    #[must_use]
    pub fn counts_at(&self, time: u64) -> bool {
        self.until.is_none_or(|until| i64::try_from(time).is_ok_and(|time| time <= until))
    }
}

/// A closed epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClosedFeed {
    /// Epoch.
    pub epoch: u32,
    /// Final size.
    pub size: u64,
    /// Root at that size.
    pub root: Hash,
}

/// A member.
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

/// A listed certificate that is unfit for an authority.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct UnfitAuthority {
    /// Path: `members.ma.ca_certificates[0]`.
    pub field: String,
    /// Why.
    pub reason: Unfit,
}

/// A valid roster. Whether its signatures suffice is decided by [`RosterChain`].
///
/// # Examples
/// ```
/// use barid_core::roster::Roster;
///
/// let (roster, note) = Roster::read(include_bytes!("../../../tests/golden/roster-1.note"))?;
/// assert_eq!((roster.version(), roster.quorum()), (1, 2));
/// assert_eq!((roster.threshold(), note.signatures.len()), (2, 2));
/// let niger = roster.member(&"ne".parse()?);
/// assert!(niger.is_some_and(|entry| entry.working_groups.contains("customs")));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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

/// Why a text is not a valid roster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    /// Not a signed note.
    #[error("the roster is not a signed note: {0}")]
    Note(String),
    /// Not TOML of the expected form.
    #[error("the roster's text cannot be read: {0}")]
    Toml(String),
    /// A field is invalid.
    #[error("{field}: `{found}` is not {expected}")]
    Field {
        /// Path: `members.ma.keys[2].role`.
        field: String,
        /// Value found.
        found: String,
        /// What was expected.
        expected: &'static str,
    },
    /// A value that must be unique occurs twice.
    #[error("{field}: the same {what} is in {other}")]
    Twice {
        /// Path of the second occurrence.
        field: String,
        /// Path of the first occurrence.
        other: String,
        /// Type of value: "key", "authority", "endpoint".
        what: &'static str,
    },
}

impl Roster {
    /// Parses a roster note without verifying its signatures.
    ///
    /// # Errors
    /// See [`RosterError`].
    pub fn read(note: &[u8]) -> Result<(Self, Note), RosterError> {
        let note = Note::parse_bounded(note, ROSTER_BYTES_MAX).map_err(|error| RosterError::Note(error.to_string()))?;
        let roster = Self::from_text(&note.text)?;
        Ok((roster, note))
    }

    /// Parses a roster's text.
    ///
    /// # Errors
    /// See [`RosterError`].
    pub fn from_text(text: &str) -> Result<Self, RosterError> {
        let read: RosterText = toml::from_str(text).map_err(|error| RosterError::Toml(error.to_string()))?;
        read::build(&read, Hash(Sha256::digest(text.as_bytes()).into()))
    }

    /// Returns the exchange name.
    #[must_use]
    pub fn exchange(&self) -> &ExchangeName {
        &self.exchange
    }

    /// Returns the version; versions count from 1.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Returns the SHA-256 of the text, without signatures. The next version names it as
    /// `previous`.
    #[must_use]
    pub fn text_hash(&self) -> Hash {
        self.text_hash
    }

    /// Returns the hash that this version names as the version before.
    #[must_use]
    pub fn previous(&self) -> Option<Hash> {
        self.previous
    }

    /// Returns the Unix seconds of issue.
    #[must_use]
    pub fn issued(&self) -> i64 {
        self.issued
    }

    /// Returns the Unix seconds after which nodes raise an alarm.
    #[must_use]
    pub fn review_by(&self) -> i64 {
        self.review_by
    }

    /// Returns how many cosigners, other than the publisher, make a bulletin witnessed.
    #[must_use]
    pub fn quorum(&self) -> usize {
        self.quorum
    }

    /// Returns the governors' keys.
    #[must_use]
    pub fn governors(&self) -> &[VerifierKey] {
        &self.governors
    }

    /// Returns how many governors must sign.
    #[must_use]
    pub fn threshold(&self) -> usize {
        self.threshold
    }

    /// Returns the working groups of the exchange.
    #[must_use]
    pub fn working_groups(&self) -> &BTreeSet<String> {
        &self.working_groups
    }

    /// Returns the members, by code.
    pub fn entries(&self) -> impl Iterator<Item = &MemberEntry> {
        self.members.values()
    }

    /// Returns one member.
    #[must_use]
    pub fn member(&self, member: &Member) -> Option<&MemberEntry> {
        self.members.get(member)
    }

    /// Returns the members of kind `full`.
    pub fn full_members(&self) -> impl Iterator<Item = &MemberEntry> {
        self.members.values().filter(|entry| entry.kind == MemberKind::Full)
    }

    /// Returns the keys of one epoch of a feed; all of them must sign. Empty for a feed of another
    /// exchange.
    ///
    /// Expired keys are included, because a checkpoint has no time. Only the times of cosignatures,
    /// or the closing of the epoch, show what was signed before a key expired.
    #[must_use]
    pub fn feed_keys(&self, feed: &FeedId) -> Vec<VerifierKey> {
        if feed.exchange != self.exchange {
            return Vec::new();
        }
        self.keys(&feed.member, Role::Feed(feed.epoch)).map(|key| key.key.clone()).collect()
    }

    /// Returns a member's cosigning keys that can verify these lines. An expired key is included
    /// only if a line by it has a time before its expiry; the time is covered by the signature, so
    /// it is reliable once the line is verified.
    #[must_use]
    pub fn mirror_keys(&self, member: &Member, lines: &[NoteSignature]) -> Vec<VerifierKey> {
        let in_time = |key: &MemberKey| {
            let mut own = lines.iter().filter(|line| line.is_by(&key.key)).filter_map(claimed_time);
            key.until.is_none() || own.any(|time| key.counts_at(time))
        };
        self.keys(member, Role::Mirror).filter(|key| in_time(key)).map(|key| key.key.clone()).collect()
    }

    /// Returns a member's custody keys that count for a note with this `time`, in Unix seconds,
    /// according to the note itself.
    #[must_use]
    pub fn custody_keys(&self, member: &Member, time: u64) -> Vec<VerifierKey> {
        self.keys(member, Role::Custody).filter(|key| key.counts_at(time)).map(|key| key.key.clone()).collect()
    }

    /// Returns a member's keys for a role that may be used with this version, including expired
    /// ones.
    pub fn keys(&self, member: &Member, role: Role) -> impl Iterator<Item = &MemberKey> {
        self.members
            .get(member)
            .into_iter()
            .flat_map(|entry| &entry.keys)
            .filter(move |key| key.role == role && key.from_version <= self.version)
    }

    /// Returns the listed certificates that `before` does not list, in PEM, each with its path:
    /// `members.ma.ca_certificates[0]`.
    pub fn new_authorities<'a>(&'a self, before: Option<&'a Roster>) -> impl Iterator<Item = (String, &'a str)> {
        self.entries().flat_map(move |entry| {
            let listed = before.and_then(|before| before.member(&entry.code));
            let is_new = move |pem: &String| listed.is_none_or(|listed| !listed.ca_certificates.contains(pem));
            let certificates = entry.ca_certificates.iter().enumerate().filter(move |(_, pem)| is_new(pem));
            let path = move |place: usize| format!("members.{}.ca_certificates[{place}]", entry.code);
            certificates.map(move |(place, pem)| (path(place), pem.as_str()))
        })
    }

    /// Returns the listed certificates that are unfit for an authority at `now`, in Unix seconds.
    ///
    /// Certificates that `before` lists already are left out: a roster that other members need must
    /// not wait for a member whose authority has expired. An unfit authority certifies nothing,
    /// which affects only its member. It is no reason to reject a roster that governors have
    /// signed, but governors do not sign a roster that adds one ([`Draft`]).
    #[must_use]
    pub fn unfit_authorities(&self, before: Option<&Roster>, now: i64) -> Vec<UnfitAuthority> {
        let unfit = |(field, pem): (String, &str)| {
            let checked = certificate::check_pem(pem, Purpose::Authority);
            let reason = checked.and_then(|validity| validity.with_skew(AUTHORITY_SKEW_SECONDS).at(now)).err()?;
            Some(UnfitAuthority { field, reason })
        };
        self.new_authorities(before).filter_map(unfit).collect()
    }

    /// Returns the number of governors of this roster with a valid signature on a note.
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

#[cfg(test)]
mod tests;
