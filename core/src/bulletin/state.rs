//! Computes the state of a bulletin: active, superseded, cancelled, expired.
//!
//! In scope: which updates, cancellations and acknowledgements count, and the state they lead to.
//! Out of scope: finding them (the store).
//!
//! Every node that may read the original computes the same state, in whatever order entries arrive,
//! for two reasons. First, a successor counts only if it copies the original's topic, handling and
//! roster version. Original and successor then have the same audience, and no state depends on
//! entries that some of the readers cannot see. Second, [`SuccessionState`] is a join: merging is
//! commutative, associative and idempotent. An update or cancellation that does not count remains
//! an ordinary bulletin and changes nothing.

use super::audience::{Directory, audience};
use super::field::{Invalid, Report};
use super::header::{BulletinId, Reference};
use super::rules::Rule;
use super::times::Time;
use super::vocabulary::{CancelReason, MsgType};
use crate::envelope;
use crate::ids::{Digest, Member};
use crate::proto;
use crate::proto::body::Content;

/// Position in the publishing member's feed: epoch, then index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    /// Epoch of the feed.
    pub epoch: u32,
    /// Index in it.
    pub index: u64,
}

/// An Update or Cancel that counts for one bulletin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Successor {
    /// Its position in the feed.
    pub position: Position,
    /// Reference to the successor itself.
    pub reference: Reference,
    /// Its effect.
    pub effect: Effect,
}

/// Effect of a successor on the original.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Replaces it.
    Supersedes,
    /// Cancels it; with the reason if the cancellation's body could be read.
    Cancels(Option<CancelReason>),
}

/// Every successor that counts for one bulletin so far. A join: the order of merging does not
/// matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SuccessionState {
    updated: Option<Successor>,
    cancelled: Option<Successor>,
}

/// State of a bulletin at an instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// In force.
    Active,
    /// Replaced by a newer bulletin, which has a state of its own.
    Superseded {
        /// The last update.
        by: Reference,
    },
    /// No longer in force. Final: a later update does not make it active again.
    Cancelled {
        /// The first cancellation.
        by: Reference,
        /// The reason, if the cancellation's body could be read.
        reason: Option<CancelReason>,
    },
    /// Its time of expiry has passed.
    Expired,
}

impl State {
    /// Returns the value on the wire (`State.state`).
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Superseded { .. } => "superseded",
            Self::Cancelled { .. } => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// Returns the bulletin that superseded or cancelled it, if any.
    #[must_use]
    pub fn by(&self) -> Option<&Reference> {
        match self {
            Self::Superseded { by } | Self::Cancelled { by, .. } => Some(by),
            Self::Active | Self::Expired => None,
        }
    }

    /// Returns the reason of a cancellation, if its body could be read.
    #[must_use]
    pub fn reason(&self) -> Option<CancelReason> {
        match self {
            Self::Cancelled { reason, .. } => *reason,
            Self::Active | Self::Superseded { .. } | Self::Expired => None,
        }
    }
}

impl Successor {
    /// Returns the entry at `position` of its member's feed as a successor, if it counts for the
    /// original. The reason of a cancellation is read from the envelope.
    #[must_use]
    pub fn of(original: &proto::Header, original_digest: &Digest, envelope: &[u8], position: Position) -> Option<Self> {
        let header = envelope::header_of(envelope).ok()?;
        let successor = Self::from_header(original, original_digest, &header, &envelope::digest(envelope), position)?;
        Some(successor.with_reason(envelope))
    }

    /// Adds the reason of a cancellation, read from its envelope.
    #[must_use]
    pub fn with_reason(mut self, envelope: &[u8]) -> Self {
        if let Effect::Cancels(reason) = &mut self.effect {
            *reason = match envelope::body_of(envelope).ok().and_then(|body| body.content) {
                Some(Content::Cancellation(cancellation)) => CancelReason::read(&cancellation.reason),
                _ => None,
            };
        }
        self
    }

    /// Like [`Self::of`], from a header alone and without the reason of a cancellation.
    #[must_use]
    pub fn from_header(
        original: &proto::Header,
        original_digest: &Digest,
        header: &proto::Header,
        digest: &Digest,
        position: Position,
    ) -> Option<Self> {
        let effect = match MsgType::read(&header.msg_type)? {
            MsgType::Update => Effect::Supersedes,
            MsgType::Cancel => Effect::Cancels(None),
            MsgType::Alert | MsgType::Ack | MsgType::Error => return None,
        };
        // A cancellation is final: it cannot be updated or cancelled itself.
        let counts = MsgType::read(&original.msg_type) != Some(MsgType::Cancel)
            && header.member == original.member
            && header.status == original.status
            && header.topic == original.topic
            && header.handling == original.handling
            && header.roster_version == original.roster_version
            && refers_to(header, original, original_digest);
        let reference = Reference { member: header.member.parse().ok()?, id: header.id.parse().ok()?, digest: *digest };
        counts.then_some(Self { position, reference, effect })
    }
}

/// Returns whether `ack` acknowledges exactly this original, with the same status.
#[must_use]
pub fn acknowledges(ack: &proto::Header, original: &proto::Header, original_digest: &Digest) -> bool {
    MsgType::read(&ack.msg_type) == Some(MsgType::Ack)
        && ack.status == original.status
        && refers_to(ack, original, original_digest)
}

fn refers_to(header: &proto::Header, original: &proto::Header, digest: &Digest) -> bool {
    let same = |other: &proto::Reference| {
        other.member == original.member && other.id == original.id && other.digest == digest.0[..]
    };
    header.references.iter().any(same)
}

impl SuccessionState {
    /// Adds one successor.
    pub fn add(&mut self, successor: Successor) {
        if self.would_change(&successor) {
            match successor.effect {
                Effect::Supersedes => self.updated = Some(successor),
                Effect::Cancels(_) => self.cancelled = Some(successor),
            }
        }
    }

    /// Returns whether adding this successor changes the state. A cancellation whose reason has not
    /// been read counts as one without a reason.
    #[must_use]
    pub fn would_change(&self, new: &Successor) -> bool {
        match new.effect {
            Effect::Supersedes => self.updated.as_ref().is_none_or(|old| new.rank() > old.rank()),
            Effect::Cancels(_) => self.cancelled.as_ref().is_none_or(|old| new.rank() < old.rank()),
        }
    }

    /// Adds every successor of another state.
    pub fn merge(&mut self, other: Self) {
        for successor in other.updated.into_iter().chain(other.cancelled) {
            self.add(successor);
        }
    }

    /// Returns the state at `now` of a bulletin that expires at `expires`. A cancellation takes
    /// precedence over an update, and both over expiry.
    #[must_use]
    pub fn state(&self, expires: Option<Time>, now: Time) -> State {
        if let Some(Successor { reference, effect: Effect::Cancels(reason), .. }) = &self.cancelled {
            State::Cancelled { by: reference.clone(), reason: *reason }
        } else if let Some(successor) = &self.updated {
            State::Superseded { by: successor.reference.clone() }
        } else if expires.is_some_and(|expires| expires <= now) {
            State::Expired
        } else {
            State::Active
        }
    }
}

impl Successor {
    /// Returns the sort key: feed order. Two entries at one position are equivocation; ordering
    /// them by digest gives every node the same result. A cancellation with its reason read ranks
    /// before one without.
    fn rank(&self) -> (Position, Digest, bool) {
        (self.position, self.reference.digest, self.effect == Effect::Cancels(None))
    }
}

/// Checks an Update, Cancel or Ack against its original, on the publisher's node: same status,
/// topic and roster version, and same handling, except that an Ack's audience may be narrowed to a
/// part of the original's.
///
/// # Errors
/// [`Invalid`] with every field that differs.
pub fn check_successor(
    header: &proto::Header,
    original: &proto::Header,
    original_digest: &Digest,
    directory: &impl Directory,
) -> Result<(), Invalid> {
    let mut report = Report::default();
    let mut same = |field: &str, found: &str, expected: &str| {
        if found != expected {
            report.add(field, found, Rule::AsOriginal { value: expected.to_owned() });
        }
    };
    same("header.status", &header.status, &original.status);
    same("header.topic", &header.topic, &original.topic);
    same("header.roster_version", &header.roster_version.to_string(), &original.roster_version.to_string());
    let (empty, none) = (proto::Handling::default(), proto::Handling::default());
    let (found, expected) = (header.handling.as_ref().unwrap_or(&empty), original.handling.as_ref().unwrap_or(&none));
    same("header.handling.tlp", &found.tlp, &expected.tlp);
    same("header.handling.codes", &found.codes.join(", "), &expected.codes.join(", "));
    same("header.handling.codes_note", &found.codes_note, &expected.codes_note);
    same("header.handling.personal_data", &found.personal_data.to_string(), &expected.personal_data.to_string());
    same("header.handling.purpose", &found.purpose, &expected.purpose);
    if MsgType::read(&header.msg_type) == Some(MsgType::Ack) {
        let readers = audience(original, directory);
        let field = "header.handling.releasable_to";
        if found.releasable_to.is_empty() {
            report.missing(field, Rule::AckReaders { publisher: original.member.clone() });
        }
        for (n, code) in found.releasable_to.iter().enumerate() {
            if !code.parse::<Member>().is_ok_and(|member| readers.contains(&member)) {
                report.add(format_args!("{field}[{n}]"), code, Rule::AckReader);
            }
        }
    } else {
        same("header.member", &header.member, &original.member);
        same("header.handling.releasable_to", &found.releasable_to.join(", "), &expected.releasable_to.join(", "));
    }
    if !refers_to(header, original, original_digest) {
        let rule = Rule::ReferenceDigest { digest: original_digest.to_string(), id: original.id.clone() };
        report.add("header.references", "another content", rule);
    }
    report.into_result()
}

/// Returns publisher and id of each bulletin that a successor's references name.
#[must_use]
pub fn referred(header: &proto::Header) -> Vec<(Member, BulletinId)> {
    let read = |reference: &proto::Reference| Some((reference.member.parse().ok()?, reference.id.parse().ok()?));
    header.references.iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::bulletin::audience::tests::Table;
    use crate::bulletin::prepare::tests::{defaults, sample};
    use crate::bulletin::{DraftDefaults, ValidBulletin, prepare};

    const NOW: u64 = 1_763_927_044_250;

    fn original() -> ValidBulletin {
        prepare(&sample("situation-report"), &defaults(), [1; 16]).unwrap()
    }

    /// Sets the fields of an Update's, Cancel's or Ack's header that it must copy from the original,
    /// and the reference. An Ack is addressed to the original's publisher only.
    fn inherit(header: &mut proto::Header, original: &proto::Header, original_digest: &Digest) {
        header.topic.clone_from(&original.topic);
        header.status.clone_from(&original.status);
        header.handling.clone_from(&original.handling);
        header.retain_until.clone_from(&original.retain_until);
        header.roster_version = original.roster_version;
        header.references = vec![proto::Reference {
            member: original.member.clone(),
            id: original.id.clone(),
            digest: bytes::Bytes::copy_from_slice(&original_digest.0),
        }];
        if let (Some(MsgType::Ack), Some(handling)) = (MsgType::read(&header.msg_type), &mut header.handling) {
            handling.releasable_to = vec![original.member.clone()];
        }
    }

    /// Returns a successor of the original as its publisher would create it, with changes applied.
    fn entry(kind: &str, n: u8, change: impl FnOnce(&mut proto::Header)) -> ValidBulletin {
        let mut draft = sample(kind);
        let header = draft.header.as_mut().unwrap();
        if kind == "situation-report" {
            header.msg_type = "Update".to_owned();
        }
        inherit(header, &original().proto_header, &original().digest);
        change(header);
        let defaults = DraftDefaults { id: BulletinId::new(NOW, &[n + 100; 10]), ..defaults() };
        prepare(&draft, &defaults, [n; 16]).unwrap()
    }

    fn at(index: u64) -> Position {
        Position { epoch: 1, index }
    }

    fn counted(entry: &ValidBulletin, position: Position) -> Option<Successor> {
        let original = original();
        Successor::of(&original.proto_header, &original.digest, &entry.envelope, position)
    }

    fn state(succession: &SuccessionState) -> State {
        succession.state(None, Time::from_unix_ms(NOW))
    }

    #[test]
    fn update_supersedes_and_cancellation_gives_its_reason() {
        let mut succession = SuccessionState::default();
        assert_eq!(state(&succession), State::Active);
        let update = entry("situation-report", 1, |_| {});
        succession.add(counted(&update, at(5)).unwrap());
        assert_eq!(state(&succession).by().unwrap().digest, update.digest);
        succession.add(counted(&entry("situation-report", 2, |_| {}), at(4)).unwrap());
        assert_eq!(
            state(&succession).by().unwrap().digest,
            update.digest,
            "the last in the feed, not the last to arrive"
        );
        let cancel = entry("cancellation", 3, |_| {});
        succession.add(counted(&cancel, at(6)).unwrap());
        succession.add(counted(&entry("situation-report", 4, |_| {}), at(7)).unwrap());
        let State::Cancelled { by, reason } = state(&succession) else { panic!("cancelled is final") };
        assert_eq!((by.digest, reason), (cancel.digest, Some(CancelReason::Recovered)));
    }

    #[test]
    fn bulletin_without_successor_expires() {
        let succession = SuccessionState::default();
        let expires = Some(Time::from_unix_ms(NOW));
        assert_eq!(succession.state(expires, Time::from_unix_ms(NOW - 1)), State::Active);
        assert_eq!(succession.state(expires, Time::from_unix_ms(NOW)), State::Expired);
    }

    #[test]
    fn successor_with_differing_fields_does_not_count() {
        let position = at(9);
        let handling =
            |header: &mut proto::Header, change: fn(&mut proto::Handling)| change(header.handling.as_mut().unwrap());
        assert!(counted(&entry("cancellation", 1, |_| {}), position).is_some());
        assert!(counted(&entry("cancellation", 1, |h| h.status = "Actual".to_owned()), position).is_none());
        assert!(counted(&entry("cancellation", 1, |h| h.topic = "information.other".to_owned()), position).is_none());
        let narrowed = entry("cancellation", 1, |h| handling(h, |h| h.releasable_to = vec!["tn".to_owned()]));
        assert!(counted(&narrowed, position).is_none(), "other members could not see it");
        assert!(
            counted(&entry("cancellation", 1, |h| h.references[0].digest = vec![0; 32].into()), position).is_none()
        );
        assert!(counted(&entry("acknowledgement", 1, |_| {}), position).is_none());
        let original = original();
        let other = entry("cancellation", 1, |_| {});
        let mut foreign = other.proto_header.clone();
        foreign.member = "ma".to_owned();
        let by =
            |header| Successor::from_header(&original.proto_header, &original.digest, header, &other.digest, position);
        assert!(by(&other.proto_header).is_some());
        assert!(by(&foreign).is_none(), "only the publisher's member");
        let mut rostered = other.proto_header.clone();
        rostered.roster_version += 1;
        assert!(by(&rostered).is_none());
    }

    #[test]
    fn exercise_never_affects_an_actual_bulletin() {
        let exercise = original();
        let mut actual = exercise.proto_header.clone();
        actual.status = "Actual".to_owned();
        let cancel = entry("cancellation", 1, |_| {});
        assert_eq!(Successor::of(&actual, &exercise.digest, &cancel.envelope, at(1)), None);
        let ack = entry("acknowledgement", 2, |_| {});
        assert!(acknowledges(&ack.proto_header, &exercise.proto_header, &exercise.digest));
        assert!(!acknowledges(&ack.proto_header, &actual, &exercise.digest));
        assert!(!acknowledges(&ack.proto_header, &exercise.proto_header, &Digest([0; 32])), "exact content");
    }

    #[test]
    fn fields_that_differ_from_the_original_are_reported() {
        let original = original();
        let check = |header: &proto::Header| match check_successor(
            header,
            &original.proto_header,
            &original.digest,
            &Table::new(),
        ) {
            Ok(()) => Vec::new(),
            Err(Invalid(errors)) => errors.into_iter().map(|error| error.field).collect(),
        };
        assert!(check(&entry("situation-report", 1, |_| {}).proto_header).is_empty());
        let ack = entry("acknowledgement", 2, |_| {});
        assert!(check(&ack.proto_header).is_empty());
        let mut wide = ack.proto_header.clone();
        wide.handling.as_mut().unwrap().releasable_to = vec!["ne".to_owned(), "x-none".to_owned()];
        assert_eq!(check(&wide), ["header.handling.releasable_to[1]"], "never beyond the original's audience");
        let mut other = entry("cancellation", 3, |_| {}).proto_header;
        (other.topic, other.status, other.member) = ("information.x".to_owned(), "Test".to_owned(), "ma".to_owned());
        other.handling.as_mut().unwrap().tlp = "TLP:CLEAR".to_owned();
        other.references[0].digest = vec![0; 32].into();
        let expected = ["header.status", "header.topic", "header.handling.tlp", "header.member", "header.references"];
        assert_eq!(check(&other), expected);
    }

    prop_compose! {
        /// Generates up to a few distinct entries per position, as an equivocating publisher could
        /// create.
        fn successor()(index in 0u64..6, byte in 0u8..3, epoch in 1u32..3, kind in 0u8..4) -> Successor {
            let effect = match kind {
                0 | 1 => Effect::Supersedes,
                2 => Effect::Cancels(None),
                _ => Effect::Cancels(CancelReason::read(if byte == 0 { "error" } else { "recovered" })),
            };
            Successor {
                position: Position { epoch, index },
                reference: Reference {
                    member: "ne".parse().unwrap(),
                    id: BulletinId::new(NOW, &[byte; 10]),
                    digest: Digest([byte; 32]),
                },
                effect,
            }
        }
    }

    fn fold(successors: &[Successor]) -> SuccessionState {
        let mut succession = SuccessionState::default();
        successors.iter().cloned().for_each(|successor| succession.add(successor));
        succession
    }

    proptest! {
        #[test]
        fn state_is_independent_of_the_receive_order(
            successors in prop::collection::vec(successor(), 0..8).prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
            cut in 0usize..8,
        ) {
            let (all, shuffled) = successors;
            let expected = fold(&all);
            prop_assert_eq!(&fold(&shuffled), &expected);
            let twice: Vec<_> = all.iter().chain(&shuffled).cloned().collect();
            prop_assert_eq!(&fold(&twice), &expected, "nothing is counted twice");
            let (left, right) = shuffled.split_at(cut.min(shuffled.len()));
            let mut merged = fold(right);
            merged.merge(fold(left));
            prop_assert_eq!(&merged, &expected, "the parts merge into the whole");
        }
    }
}
