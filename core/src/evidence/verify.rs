//! Verifies an evidence file against one trusted roster.
//!
//! In scope: the whole verdict, without clock, store or network. Out of scope: whether the bulletin
//! is still in force, and whether its content is plausible.
//!
//! The deciding roster is the newer of the trusted roster and the newest roster in the file that is
//! linked to it. A key that only an earlier roster of that chain lists makes a signature known, but
//! the signature does not count. An unknown signature makes the file invalid.

use std::collections::{BTreeMap, BTreeSet};

use super::{EvidenceError, EvidenceParts};
use crate::bulletin::BulletinId;
use crate::bulletin::times::Time;
use crate::envelope;
use crate::feed::checkpoint::{Checkpoint, SignedCheckpoint};
use crate::feed::cosignature::verified_lines;
use crate::feed::custody::{CustodyError, CustodyNote};
use crate::feed::note::{Note, NoteSignature, VerifierKey};
use crate::feed::tree::verify_consistency;
use crate::ids::{Digest, FeedId, Hash, Member};
use crate::limits::ROSTER_BYTES_MAX;
use crate::proto;
use crate::roster::{MemberKey, MemberKind, Role, Roster, RosterChain, follows};

/// The result for one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Its outcome.
    pub outcome: Outcome,
    /// The findings; absent for an invalid or undecided file.
    pub report: Option<Report>,
}

/// Outcome of verifying a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Signed by the publisher and cosigned by the quorum of other full members, at times at which
    /// their keys and the publisher's were valid.
    Witnessed,
    /// Signed by the publisher, not cosigned by a quorum.
    SignedOnly,
    /// Signed by a key of the publisher, but disputed according to the roster. At least one reason.
    Disputed(Vec<Dispute>),
    /// The trusted roster is too old to decide. The file may be valid.
    Undecided(EvidenceError),
    /// Not valid evidence.
    Invalid(EvidenceError),
}

/// Why a signed bulletin is disputed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Dispute {
    /// The feed's key was stolen or retired before a quorum had cosigned.
    #[error("the publisher's key was {} before a quorum had cosigned", if *.compromised { "stolen" } else { "retired" })]
    FeedKeyExpired {
        /// Whether stolen.
        compromised: bool,
        /// Unix seconds from which the key no longer counts.
        until: i64,
    },
    /// The governors closed the feed before this entry.
    #[error("the governors closed the feed at {size} entries; this is entry {index}, counted from 0")]
    Closed {
        /// Final size.
        size: u64,
        /// Index of the entry.
        index: u64,
    },
    /// A member or the governors have signed another root for the same size.
    #[error("a conflicting tree of the feed at {size} entries is signed by {by}")]
    Fork {
        /// The size.
        size: u64,
        /// "the governors" or a member.
        by: String,
    },
    /// The newest roster no longer lists a key of the feed.
    #[error("the newest roster lists no key for this feed any more")]
    FeedKeyGone,
    /// There is no quorum without the cosignatures made after their keys had expired.
    #[error("there is no quorum without the cosignatures made after their keys had expired")]
    CosignerKeyExpired,
}

/// Findings for human readers. Times of cosigners are in seconds since the Unix epoch, by the
/// cosigner's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The publishing member.
    pub member: Member,
    /// Its id.
    pub id: BulletinId,
    /// Its kind, according to the header.
    pub kind: String,
    /// The publishing focal point, according to the header.
    pub issuer: String,
    /// Its topic, according to the header.
    pub topic: String,
    /// CAP status: whether it is an exercise.
    pub status: String,
    /// When the publisher's node accepted it, by its own clock.
    pub sent_at: Option<Time>,
    /// Its feed.
    pub feed: FeedId,
    /// Its index in the feed.
    pub index: u64,
    /// Its entry digest.
    pub digest: Digest,
    /// Sizes of the checkpoints in which its inclusion is proven, ascending.
    pub sizes: Vec<u64>,
    /// Each member that cosigned, with its earliest cosignature that counts.
    pub cosigners: Vec<Cosigner>,
    /// Number of cosigners that count.
    pub counted: usize,
    /// Number of cosigners required.
    pub quorum: usize,
    /// Members that attest that they hold it in full.
    pub custody: Vec<CustodyHolder>,
    /// Version of the deciding roster.
    pub roster_version: u64,
    /// Whether the file's rosters are linked to the trusted one. If not, they were not used.
    pub rosters_tied: bool,
}

/// A member that cosigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cosigner {
    /// The member.
    pub member: Member,
    /// Time of the cosignature.
    pub time: u64,
    /// Why it does not count; `None` if it counts.
    pub uncounted: Option<Uncounted>,
}

/// Why a valid cosignature does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Uncounted {
    /// By the publisher itself.
    #[error("the publisher's own")]
    Publisher,
    /// By an observer or partner.
    #[error("not a full member")]
    NotFull,
    /// By a key that only an earlier roster lists.
    #[error("a key of an earlier roster")]
    Earlier,
    /// Made after the cosigner's key had expired.
    #[error("made after the key had expired")]
    KeyExpired,
    /// Made after the publisher's key had expired.
    #[error("made after the publisher's key had expired")]
    FeedKeyExpired,
}

/// A member that holds the bulletin in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustodyHolder {
    /// The member.
    pub member: Member,
    /// Time of the custody note.
    pub time: u64,
    /// Whether its key was valid at that time.
    pub valid: bool,
}

impl Outcome {
    /// Returns "witnessed", "signed-only", "disputed", "undecided" or "invalid": for programs, the
    /// same in every language.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Witnessed => "witnessed",
            Self::SignedOnly => "signed-only",
            Self::Disputed(_) => "disputed",
            Self::Undecided(_) => "undecided",
            Self::Invalid(_) => "invalid",
        }
    }
}

impl Verdict {
    /// Returns the exit code: 0 witnessed, 10 signed only, 11 disputed, 12 invalid, 13 undecided.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.outcome {
            Outcome::Witnessed => 0,
            Outcome::SignedOnly => 10,
            Outcome::Disputed(_) => 11,
            Outcome::Invalid(_) => 12,
            Outcome::Undecided(_) => 13,
        }
    }
}

/// Verifies a file. `trusted` is the only input that is trusted.
///
/// # Examples
/// ```
/// use barid_core::evidence::{Outcome, verify};
/// use barid_core::roster::Roster;
///
/// let (trusted, _) = Roster::read(include_bytes!("../../../tests/golden/roster-1.note"))?;
/// let mut file = include_bytes!("../../../tests/golden/evidence.barid").to_vec();
/// assert_eq!(verify(&file, &trusted).outcome, Outcome::Witnessed);
/// file[8_000] ^= 1;
/// assert_eq!(verify(&file, &trusted).outcome.as_str(), "invalid");
/// # Ok::<(), barid_core::roster::RosterError>(())
/// ```
#[must_use]
pub fn verify(file: &[u8], trusted: &Roster) -> Verdict {
    match judge(file, trusted) {
        Ok((outcome, report)) => Verdict { outcome, report: Some(report) },
        Err(error @ (EvidenceError::RosterGap { .. } | EvidenceError::RosterTooOld { .. })) => {
            Verdict { outcome: Outcome::Undecided(error), report: None }
        }
        Err(error) => Verdict { outcome: Outcome::Invalid(error), report: None },
    }
}

fn judge(file: &[u8], trusted: &Roster) -> Result<(Outcome, Report), EvidenceError> {
    let parts = EvidenceParts::read(file)?;
    let chain = chain(&parts.rosters)?;
    let rosters = Rosters::tie(&chain, &parts.rosters, trusted)?;
    let bulletin = Bulletin::read(&parts)?;
    let (needed, newest) = (bulletin.header.roster_version, rosters.newest.version());
    // A roster that is too old may lack keys. Any other failure makes the file invalid under every
    // roster.
    let entry = match Entry::verify(&parts, &bulletin, &rosters) {
        Ok(_) | Err(EvidenceError::NoFeedKeys(_)) if needed > newest => {
            return Err(EvidenceError::RosterTooOld { needed, newest });
        }
        entry => entry?,
    };
    let (custody, mut disputes) = custody(&parts, &entry, &rosters)?;
    consistency(&parts, &entry.heads(&custody))?;

    let newest = rosters.newest;
    let cosigners = entry.cosigners(newest);
    let counted = cosigners.iter().filter(|cosigner| cosigner.uncounted.is_none()).count();
    disputes.extend(entry.closed(newest));
    if !entry.keys.current {
        disputes.push(Dispute::FeedKeyGone);
    }
    if counted < newest.quorum() {
        if let Some((until, compromised)) = entry.keys.ended
            && (compromised || !entry.within_closed(newest, entry.index + 1))
        {
            disputes.push(Dispute::FeedKeyExpired { compromised, until });
        }
        let late = cosigners.iter().filter(|cosigner| cosigner.uncounted == Some(Uncounted::KeyExpired)).count();
        if counted + late >= newest.quorum() {
            disputes.push(Dispute::CosignerKeyExpired);
        }
    }
    let outcome = match (disputes.is_empty(), counted >= newest.quorum()) {
        (false, _) => Outcome::Disputed(disputes),
        (true, true) => Outcome::Witnessed,
        (true, false) => Outcome::SignedOnly,
    };
    let report = Report {
        member: bulletin.member,
        id: bulletin.id,
        kind: plain(&bulletin.header.kind),
        issuer: plain(&bulletin.header.issuer),
        topic: plain(&bulletin.header.topic),
        status: plain(&bulletin.header.status),
        sent_at: bulletin.header.sent_at.as_ref().and_then(Time::from_proto),
        sizes: entry.proven.iter().map(|(signed, _)| signed.checkpoint.size).collect(),
        feed: entry.feed,
        index: entry.index,
        digest: bulletin.digest,
        cosigners,
        counted,
        quorum: newest.quorum(),
        custody: custody.into_iter().map(|(holder, _)| holder).collect(),
        roster_version: newest.version(),
        rosters_tied: rosters.tied,
    };
    Ok((outcome, report))
}

/// Returns the rosters in the file. Each must be signed as required, and by no other keys.
fn chain(notes: &[(u64, bytes::Bytes)]) -> Result<RosterChain, EvidenceError> {
    let mut notes = notes.iter();
    let (version, first) = notes.next().ok_or(EvidenceError::Count { what: "rosters", found: 0 })?;
    let mut chain = RosterChain::start(first)?;
    if chain.newest().version() != *version {
        return Err(EvidenceError::OtherRoster(*version));
    }
    signed_by_governors(first, &[chain.newest()])?;
    for (version, note) in notes {
        let before = chain.newest_shared();
        let new = chain.extend(note)?;
        if !new || chain.newest().version() != *version {
            return Err(EvidenceError::OtherRoster(*version));
        }
        signed_by_governors(note, &[&before, chain.newest()])?;
    }
    Ok(chain)
}

fn signed_by_governors(note: &[u8], rosters: &[&Roster]) -> Result<(), EvidenceError> {
    let note = Note::parse_bounded(note, ROSTER_BYTES_MAX)?;
    for line in &note.signatures {
        let mut keys = rosters.iter().flat_map(|roster| roster.governors());
        let key = keys.find(|key| line.is_by(key)).ok_or_else(|| unknown(line))?;
        note.verify(key)?;
    }
    Ok(())
}

/// The rosters that are trusted.
struct Rosters<'a> {
    /// The deciding roster.
    newest: &'a Roster,
    /// Other rosters linked to the trusted one, newest first.
    earlier: Vec<&'a Roster>,
    tied: bool,
}

impl<'a> Rosters<'a> {
    fn tie(chain: &'a RosterChain, notes: &[(u64, bytes::Bytes)], trusted: &'a Roster) -> Result<Self, EvidenceError> {
        let (first, last) = (notes.first().map_or(0, |(version, _)| *version), chain.newest());
        let version = trusted.version();
        let other = |version| Err(EvidenceError::OtherRoster(version));
        if last.exchange() != trusted.exchange() {
            return other(last.version());
        }
        let tied = if let Some(same) = chain.at(version) {
            if same.text_hash() != trusted.text_hash() {
                return other(version);
            }
            true
        } else if first == version + 1 {
            succeeds(chain, &notes[0].1, trusted)?;
            true
        } else if version == last.version() + 1 {
            if trusted.previous() != Some(last.text_hash()) {
                return other(last.version());
            }
            true
        } else if first > version {
            return Err(EvidenceError::RosterGap { first });
        } else {
            false
        };
        let newest = if last.version() > version { last } else { trusted };
        let earlier = notes.iter().rev().filter(|_| tied).filter_map(|(version, _)| chain.at(*version));
        Ok(Self { newest, earlier: earlier.chain([trusted]).collect(), tied })
    }

    /// Returns the key that a signature line names, and whether the deciding roster lists it.
    fn key(&self, member: &Member, role: Role, line: &NoteSignature) -> Option<(&'a MemberKey, bool)> {
        let of = |roster: &'a Roster| roster.keys(member, role).find(|key| line.is_by(&key.key));
        let current = of(self.newest).map(|key| (key, true));
        current.or_else(|| self.earlier.iter().find_map(|roster| of(roster)).map(|key| (key, false)))
    }
}

/// Checks that the first roster in the file succeeds the trusted one.
fn succeeds(chain: &RosterChain, note: &[u8], trusted: &Roster) -> Result<(), EvidenceError> {
    let version = trusted.version() + 1;
    let first = chain.at(version).filter(|first| first.previous() == Some(trusted.text_hash()));
    let first = first.ok_or(EvidenceError::OtherRoster(version))?;
    Ok(follows(trusted, first, &Note::parse_bounded(note, ROSTER_BYTES_MAX)?)?)
}

struct Bulletin {
    header: proto::Header,
    member: Member,
    id: BulletinId,
    digest: Digest,
}

impl Bulletin {
    fn read(parts: &EvidenceParts) -> Result<Self, EvidenceError> {
        let wrong = |what: String| EvidenceError::Bulletin(what);
        let header = envelope::header_of(&parts.envelope).map_err(|error| wrong(error.to_string()))?;
        let member = header.member.parse().map_err(|_| wrong("header.member is not a member code".to_owned()))?;
        let id = header.id.parse().map_err(|_| wrong("header.id is not a UUIDv7".to_owned()))?;
        Ok(Self { digest: envelope::digest(&parts.envelope), header, member, id })
    }
}

/// The entry in its feed, with inclusion proven.
struct Entry {
    feed: FeedId,
    index: u64,
    keys: FeedKeys,
    /// By ascending size, each with its cosignatures.
    proven: Vec<(SignedCheckpoint, Vec<Cosigned>)>,
}

struct FeedKeys {
    keys: Vec<VerifierKey>,
    /// Earliest expiry of any of the keys, in Unix seconds, and whether one was stolen.
    ended: Option<(i64, bool)>,
    current: bool,
}

struct Cosigned {
    member: Member,
    time: u64,
    /// Unix seconds after which the key no longer counts.
    until: Option<i64>,
    current: bool,
}

impl Entry {
    fn verify(parts: &EvidenceParts, bulletin: &Bulletin, rosters: &Rosters<'_>) -> Result<Self, EvidenceError> {
        let first = parts.proofs.first().ok_or(EvidenceError::Count { what: "proofs", found: 0 })?;
        let claimed = Checkpoint::parse_text(&Note::parse(&first.checkpoint)?.text)
            .map_err(|error| EvidenceError::Proof(error.into()))?;
        let (feed, member) = (claimed.feed, &bulletin.member);
        let exchange = rosters.newest.exchange();
        if feed.member != *member || feed.exchange != *exchange {
            return Err(EvidenceError::Feed { feed, member: member.clone(), exchange: exchange.to_string() });
        }
        let keys = feed_keys(&feed, rosters)?;
        let mut entry = Self { index: first.index, keys, proven: Vec::new(), feed };
        for proof in &parts.proofs {
            let signed = proof.verify(&bulletin.digest, &entry.keys.keys)?;
            let ascends = entry.proven.last().is_none_or(|(last, _)| last.checkpoint.size < signed.checkpoint.size);
            if signed.checkpoint.feed != entry.feed || proof.index != entry.index || !ascends {
                return Err(EvidenceError::Different);
            }
            let note = Note::parse(&proof.checkpoint)?;
            let mut cosigned = Vec::new();
            for line in note.signatures.iter().filter(|line| !entry.keys.keys.iter().any(|key| line.is_by(key))) {
                let found = owner(line).and_then(|member| rosters.key(&member, Role::Mirror, line));
                let (key, current) = found.ok_or_else(|| unknown(line))?;
                for one in verified_lines(&note, &signed.checkpoint, std::slice::from_ref(&key.key))? {
                    cosigned.push(Cosigned { member: one.cosigner, time: one.time, until: key.until, current });
                }
            }
            entry.proven.push((signed, cosigned));
        }
        Ok(entry)
    }

    /// Returns the sizes and roots of all proofs and custody notes.
    fn heads(&self, custody: &[(CustodyHolder, (u64, Hash))]) -> BTreeMap<u64, Hash> {
        let proven = self.proven.iter().map(|(signed, _)| (signed.checkpoint.size, signed.checkpoint.root));
        // Proven heads come last and win: a custody note with another root leads to a dispute, not
        // to a consistency check.
        custody.iter().map(|(_, head)| *head).chain(proven).collect()
    }

    fn cosigners(&self, roster: &Roster) -> Vec<Cosigner> {
        let mut found: BTreeMap<&Member, (Option<Uncounted>, u64)> = BTreeMap::new();
        for (signed, cosigned) in &self.proven {
            for one in cosigned {
                let this = (self.uncounted(one, signed.checkpoint.size, roster), one.time);
                let best = found.entry(&one.member).or_insert(this);
                *best = this.min(*best);
            }
        }
        let cosigner = |(member, (uncounted, time)): (&Member, _)| Cosigner { member: member.clone(), time, uncounted };
        found.into_iter().map(cosigner).collect()
    }

    fn uncounted(&self, one: &Cosigned, size: u64, roster: &Roster) -> Option<Uncounted> {
        let full = roster.member(&one.member).is_some_and(|entry| entry.kind == MemberKind::Full);
        if one.member == self.feed.member {
            Some(Uncounted::Publisher)
        } else if !full {
            Some(Uncounted::NotFull)
        } else if !one.current {
            Some(Uncounted::Earlier)
        } else if after(one.time, one.until) {
            Some(Uncounted::KeyExpired)
        } else if self.keys.ended.is_some_and(|(until, compromised)| {
            after(one.time, Some(until)) && (compromised || !self.within_closed(roster, size))
        }) {
            Some(Uncounted::FeedKeyExpired)
        } else {
            None
        }
    }

    /// Returns whether the governors have closed the feed at `size` entries or more.
    fn within_closed(&self, roster: &Roster, size: u64) -> bool {
        let entry = roster.member(&self.feed.member);
        let closed = entry.and_then(|entry| entry.closed_feeds.iter().find(|closed| closed.epoch == self.feed.epoch));
        closed.is_some_and(|closed| size <= closed.size)
    }

    fn closed(&self, roster: &Roster) -> Vec<Dispute> {
        let mut disputes = Vec::new();
        let closed = roster.member(&self.feed.member).map(|entry| entry.closed_feeds.as_slice()).unwrap_or_default();
        for closed in closed.iter().filter(|closed| closed.epoch == self.feed.epoch) {
            if self.index >= closed.size {
                disputes.push(Dispute::Closed { size: closed.size, index: self.index });
            }
            let same = |signed: &SignedCheckpoint| signed.checkpoint.size == closed.size;
            if self.proven.iter().any(|(signed, _)| same(signed) && signed.checkpoint.root != closed.root) {
                disputes.push(Dispute::Fork { size: closed.size, by: "the governors".to_owned() });
            }
        }
        disputes
    }
}

fn feed_keys(feed: &FeedId, rosters: &Rosters<'_>) -> Result<FeedKeys, EvidenceError> {
    let of =
        |roster: &Roster| -> Vec<MemberKey> { roster.keys(&feed.member, Role::Feed(feed.epoch)).cloned().collect() };
    let mut found = of(rosters.newest);
    let current = !found.is_empty();
    if !current {
        let earlier = rosters.earlier.iter().map(|roster| of(roster)).find(|keys| !keys.is_empty());
        found = earlier.ok_or_else(|| EvidenceError::NoFeedKeys(feed.clone()))?;
    }
    let until = found.iter().filter_map(|key| key.until).min();
    let compromised = found.iter().any(|key| key.compromised);
    let keys = found.into_iter().map(|key| key.key).collect();
    Ok(FeedKeys { keys, ended: until.map(|until| (until, compromised)), current })
}

type HolderAt = (CustodyHolder, (u64, Hash));

fn custody(
    parts: &EvidenceParts,
    entry: &Entry,
    rosters: &Rosters<'_>,
) -> Result<(Vec<HolderAt>, Vec<Dispute>), EvidenceError> {
    let (mut holders, mut disputes, mut members) = (Vec::new(), Vec::new(), BTreeSet::new());
    let mut heads = entry.heads(&[]);
    for (member, bytes) in &parts.custody {
        if !members.insert(member) {
            return Err(EvidenceError::Part(format!("custody/{member}.note")));
        }
        let note = Note::parse(bytes)?;
        let mut valid = true;
        let mut keys = Vec::new();
        for line in &note.signatures {
            let found = rosters.key(member, Role::Custody, line);
            let (key, current) = found.ok_or_else(|| unknown(line))?;
            keys.push(key.key.clone());
            let time = CustodyNote::parse_text(&note.text).map(|custody| custody.time);
            valid &= current && time.is_ok_and(|time| !after(time, key.until));
        }
        let source = |source: CustodyError| EvidenceError::Custody { member: member.clone(), source };
        let custody = CustodyNote::verify(bytes, &keys).map_err(source)?;
        if custody.feed != entry.feed || !custody.holds(entry.index) {
            return Err(EvidenceError::NotHeld(member.clone()));
        }
        if *heads.entry(custody.size).or_insert(custody.root) != custody.root {
            disputes.push(Dispute::Fork { size: custody.size, by: member.to_string() });
        }
        holders
            .push((CustodyHolder { member: member.clone(), time: custody.time, valid }, (custody.size, custody.root)));
    }
    Ok((holders, disputes))
}

/// Checks that every two adjacent sizes have a consistency proof, and that there are no others.
fn consistency(parts: &EvidenceParts, heads: &BTreeMap<u64, Hash>) -> Result<(), EvidenceError> {
    let pairs = heads.iter().zip(heads.iter().skip(1));
    if pairs.len() != parts.consistency.len() {
        return Err(EvidenceError::Untied);
    }
    for (((old, old_root), (new, new_root)), tie) in pairs.zip(&parts.consistency) {
        if (tie.old, tie.new) != (*old, *new) {
            return Err(EvidenceError::Untied);
        }
        verify_consistency(*old, old_root, *new, new_root, &tie.proof)
            .map_err(|source| EvidenceError::Consistency { old: *old, new: *new, source })?;
    }
    Ok(())
}

fn after(time: u64, until: Option<i64>) -> bool {
    until.is_some_and(|until| i64::try_from(time).is_ok_and(|time| time > until))
}

/// Returns the member whose key the line names.
fn owner(line: &NoteSignature) -> Option<Member> {
    line.name.split_once('.')?.0.parse().ok()
}

fn unknown(line: &NoteSignature) -> EvidenceError {
    EvidenceError::UnknownSignature(line.name.clone())
}

/// Returns text of a foreign header in a form that is safe to print.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(crate::limits::ISSUER_BYTES_MAX).collect()
}
