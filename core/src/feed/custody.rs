//! Custody notes: a member's signed statement, to a feed's owner only, of which entries it holds in
//! full.
//!
//! In scope: the format `barid custody v1`, signing and verifying it. Out of scope: the recipient,
//! which entries count as stored, and which keys belong to a member (`roster`).
//!
//! The note text has these lines, each with exactly one spelling:
//!
//! ```text
//! barid custody v1
//! ma.rabat.example/feed/1                        the feed's origin
//! 1280                                           size of the checkpoint that the range lies in
//! CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=   its root
//! time 1679315147                                seconds since the Unix epoch, holder's clock
//! range 1024 1280                                the entries covered: first, one past the last
//! digest-only 1030 1032 withheld                 entries among them not held in full, and why
//! ```
//!
//! There is one `digest-only` line per range. The ranges are ascending, within the range above, and
//! do not overlap; adjacent ranges have different reasons. Only the reasons of v1 are allowed; a
//! new reason needs a new version.

use std::ops::Range;

use bytes::Bytes;

use super::checkpoint::Checkpoint;
use super::note::{KeyError, Note, NoteError, SigningKey, VerifierKey};
use super::text::{base64, decimal, hash};
use super::tree::TREE_SIZE_MAX;
use crate::ids::{ExchangeName, FeedId, Hash, Member, Undisclosed};
use crate::limits::CUSTODY_RANGES_MAX;

const FIRST_LINE: &str = "barid custody v1";

/// The reasons of v1. A later reason is written as `unknown`; adding one here needs a new version
/// of the format.
const REASONS: [Undisclosed; 8] = [
    Undisclosed::Withheld,
    Undisclosed::Unfollowed,
    Undisclosed::NotHeld,
    Undisclosed::Purged,
    Undisclosed::Excluded,
    Undisclosed::TooLarge,
    Undisclosed::NotUnderstood,
    Undisclosed::Unknown,
];

/// Which entries of a range a member holds in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CustodyNote {
    /// The feed.
    pub feed: FeedId,
    /// Size of a checkpoint of the feed, in which the range lies.
    pub size: u64,
    /// Root of that checkpoint.
    pub root: Hash,
    /// Time of the statement, in seconds since the Unix epoch by the holder's clock.
    pub time: u64,
    /// The entries covered; not empty.
    pub range: Range<u64>,
    /// The covered entries that are held only as digests, with the reason. Ascending, not empty,
    /// not overlapping, at most [`CUSTODY_RANGES_MAX`]; adjacent ranges have different reasons.
    pub not_held: Vec<(Range<u64>, Undisclosed)>,
}

/// Why a custody note is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CustodyError {
    /// Not a note, or with an invalid signature.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The text is not that of a custody note; names the invalid part.
    #[error("the custody note has no valid {0}")]
    Text(&'static str),
    /// A key whose name is not `<member>.<exchange>/custody` in the feed's exchange.
    #[error("key `{0}` is not a custody key of the feed's exchange")]
    KeyName(String),
    /// Not signed by any of the keys.
    #[error("the custody note is not signed by any of these keys")]
    Unsigned,
}

impl From<KeyError> for CustodyError {
    fn from(error: KeyError) -> Self {
        Self::Note(error.into())
    }
}

impl CustodyNote {
    /// Creates a note on the entries of `range` held at `time`. The range lies in the tree of
    /// `checkpoint`.
    ///
    /// `not_held` is ascending and may extend beyond the range; adjacent ranges with the same
    /// reason are joined. If more than [`CUSTODY_RANGES_MAX`] lines are needed, the note covers
    /// only the beginning of the range, and its own `range` ends there; the rest needs another
    /// note.
    pub fn new(
        checkpoint: &Checkpoint,
        time: u64,
        mut range: Range<u64>,
        not_held: impl IntoIterator<Item = (Range<u64>, Undisclosed)>,
    ) -> Result<Self, CustodyError> {
        let mut ranges: Vec<(Range<u64>, Undisclosed)> = Vec::new();
        for (part, reason) in not_held {
            let part = part.start.max(range.start)..part.end.min(range.end);
            if part.is_empty() {
                continue;
            }
            if let Some((last, same)) = ranges.last_mut()
                && last.end == part.start
                && *same == reason
            {
                last.end = part.end;
            } else if ranges.len() < CUSTODY_RANGES_MAX {
                ranges.push((part, reason));
            } else {
                range.end = part.start;
                break;
            }
        }
        let Checkpoint { feed, size, root } = checkpoint.clone();
        let note = Self { feed, size, root, time, range, not_held: ranges };
        note.check()?;
        Ok(note)
    }

    /// Returns whether the note attests that the entry at `index` is held in full.
    #[must_use]
    pub fn holds(&self, index: u64) -> bool {
        let next = self.not_held.partition_point(|(part, _)| part.end <= index);
        self.range.contains(&index) && self.not_held.get(next).is_none_or(|(part, _)| index < part.start)
    }

    /// Returns the note text.
    #[must_use]
    pub fn text(&self) -> String {
        use std::fmt::Write as _;
        let Self { feed, size, root, time, range, not_held } = self;
        let mut text = format!(
            "{FIRST_LINE}\n{feed}\n{size}\n{}\ntime {time}\nrange {} {}\n",
            base64(root),
            range.start,
            range.end
        );
        for (part, reason) in not_held {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "digest-only {} {} {}", part.start, part.end, reason.as_str());
        }
        text
    }

    /// Parses a note text. For every text accepted here, [`Self::text`] returns the same text.
    pub fn parse_text(text: &str) -> Result<Self, CustodyError> {
        let mut lines = text.strip_suffix('\n').ok_or(CustodyError::Text("last newline"))?.split('\n');
        let mut line = |what| lines.next().ok_or(CustodyError::Text(what));
        if line("first line")? != FIRST_LINE {
            return Err(CustodyError::Text("first line"));
        }
        let feed = line("feed")?.parse().map_err(|_| CustodyError::Text("feed"))?;
        let size = decimal(line("size")?).ok_or(CustodyError::Text("size"))?;
        let root = hash(line("root hash")?).ok_or(CustodyError::Text("root hash"))?;
        let time = line("time")?.strip_prefix("time ").and_then(decimal).ok_or(CustodyError::Text("time"))?;
        let range = line("range")?.strip_prefix("range ").and_then(parse_range).ok_or(CustodyError::Text("range"))?;
        let mut not_held = Vec::new();
        for line in lines {
            if not_held.len() == CUSTODY_RANGES_MAX {
                return Err(CustodyError::Text("number of digest-only lines"));
            }
            not_held.push(parse_digest_only(line).ok_or(CustodyError::Text("digest-only line"))?);
        }
        let note = Self { feed, size, root, time, range, not_held };
        note.check()?;
        Ok(note)
    }

    /// Signs with the holder's custody key, a plain Ed25519 key (type 0x01), and returns the whole
    /// note.
    pub fn sign(&self, key: &SigningKey) -> Result<Bytes, CustodyError> {
        self.check()?;
        holder(key.name(), &self.feed.exchange)?;
        Ok(Note::sign(&self.text(), key)?.to_bytes().into())
    }

    /// Verifies a custody note by at least one of `keys`, which are one member's custody keys.
    /// Every line by one of them must be valid; other lines are ignored.
    pub fn verify(note: &[u8], keys: &[VerifierKey]) -> Result<Self, CustodyError> {
        let note = Note::parse(note)?;
        let custody = Self::parse_text(&note.text)?;
        let mut signed = false;
        for key in keys {
            holder(key.name(), &custody.feed.exchange)?;
            if note.line_by(key)?.is_some() {
                note.verify(key)?;
                signed = true;
            }
        }
        if signed { Ok(custody) } else { Err(CustodyError::Unsigned) }
    }

    fn check(&self) -> Result<(), CustodyError> {
        if self.size > TREE_SIZE_MAX {
            return Err(CustodyError::Text("size"));
        }
        if !(1..=TREE_SIZE_MAX).contains(&self.time) {
            return Err(CustodyError::Text("time"));
        }
        if self.range.is_empty() || self.range.end > self.size {
            return Err(CustodyError::Text("range"));
        }
        if self.not_held.len() > CUSTODY_RANGES_MAX {
            return Err(CustodyError::Text("number of digest-only lines"));
        }
        let mut before: Option<&(Range<u64>, Undisclosed)> = None;
        for this in &self.not_held {
            let (part, reason) = this;
            let (earliest, joins) = match before {
                Some((last, same)) => (last.end, last.end == part.start && same == reason),
                None => (self.range.start, false),
            };
            if part.is_empty() || part.start < earliest || part.end > self.range.end || joins {
                return Err(CustodyError::Text("order of digest-only lines"));
            }
            before = Some(this);
        }
        Ok(())
    }
}

fn parse_range(text: &str) -> Option<Range<u64>> {
    let (start, end) = text.split_once(' ')?;
    Some(decimal(start)?..decimal(end)?)
}

fn parse_digest_only(line: &str) -> Option<(Range<u64>, Undisclosed)> {
    let (range, code) = line.strip_prefix("digest-only ")?.rsplit_once(' ')?;
    let reason = REASONS.into_iter().find(|reason| reason.as_str() == code)?;
    Some((parse_range(range)?, reason))
}

/// Returns the member to which a custody key of this name belongs.
fn holder(name: &str, exchange: &ExchangeName) -> Result<Member, CustodyError> {
    let member = name.split_once('.').and_then(|(member, _)| member.parse().ok());
    member
        .filter(|member| FeedId::custody_key_name(member, exchange) == name)
        .ok_or_else(|| CustodyError::KeyName(name.to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::note::Algorithm;
    use super::*;
    use crate::limits::NOTE_BYTES_MAX;
    use proptest::prelude::*;

    const TEXT: &str = "barid custody v1\nma.rabat.example/feed/1\n1280\n\
        CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\ntime 1679315147\nrange 1024 1280\n\
        digest-only 1030 1032 withheld\ndigest-only 1032 1033 purged\ndigest-only 1040 1280 withheld\n";

    fn checkpoint(size: u64) -> Checkpoint {
        Checkpoint { feed: "ma.rabat.example/feed/1".parse().unwrap(), size, root: Hash([5; 32]) }
    }

    fn key(name: &str, seed: u8) -> SigningKey {
        SigningKey::from_seed(name, Algorithm::Ed25519, [seed; 32]).unwrap()
    }

    #[test]
    fn the_text_is_read_and_written() {
        let note = CustodyNote::parse_text(TEXT).unwrap();
        assert_eq!((note.size, note.time, note.range.clone()), (1_280, 1_679_315_147, 1_024..1_280));
        assert_eq!(note.not_held[1], (1_032..1_033, Undisclosed::Purged));
        assert_eq!(note.text(), TEXT);
        let held: Vec<u64> = (1_020..1_290).filter(|index| note.holds(*index)).collect();
        assert_eq!(held, (1_024..1_030).chain(1_033..1_040).collect::<Vec<_>>());
    }

    #[test]
    fn other_spellings_are_rejected() {
        for (right, wrong) in [
            ("custody v1", "custody v2"),
            ("feed/1", "feed/01"),
            ("\n1280\n", "\n1279\n"),
            ("time 1679315147", "time 0"),
            ("time 1679315147", "time +1"),
            ("range 1024 1280", "range 1024 1281"),
            ("range 1024 1280", "range 1024  1280"),
            ("range 1024 1280", "range 1280 1280"),
            ("range 1024 1280", "range 1031 1280"),
            ("range 1024 1280", "range 1024 1279"),
            ("1030 1032 withheld", "1032 1030 withheld"),
            ("1030 1032 withheld", "1032 1032 withheld"),
            ("1030 1032 withheld", "1030 1033 withheld"),
            ("1030 1032 withheld", "1030 1032 purged"),
            ("1030 1032 withheld", "1030 1032 lost"),
            ("1030 1032 withheld", "1030 1032 withheld "),
            ("purged\n", "purged\n\n"),
            ("digest-only 1040 1280 withheld\n", "digest-only 1040 1280 withheld"),
        ] {
            let altered = TEXT.replacen(right, wrong, 1);
            assert_ne!(altered, TEXT);
            assert!(matches!(CustodyNote::parse_text(&altered), Err(CustodyError::Text(_))), "{right} as {wrong}");
        }
    }

    #[test]
    fn a_note_is_signed_and_verified_by_a_custody_key() {
        let custody = key("ly.rabat.example/custody", 1);
        let note = CustodyNote::parse_text(TEXT).unwrap();
        let bytes = note.sign(&custody).unwrap();
        let keys = [key("ly.rabat.example/custody", 2).verifier().clone(), custody.verifier().clone()];
        assert_eq!(CustodyNote::verify(&bytes, &keys), Ok(note.clone()));
        assert_eq!(CustodyNote::verify(&bytes, &keys[..1]), Err(CustodyError::Unsigned));
        assert_eq!(CustodyNote::verify(&bytes, &[]), Err(CustodyError::Unsigned));
        let altered = String::from_utf8(bytes.to_vec()).unwrap().replacen("1040", "1041", 1);
        assert!(matches!(
            CustodyNote::verify(altered.as_bytes(), &keys),
            Err(CustodyError::Note(NoteError::BadSignature(_)))
        ));
        for name in ["ly.rabat.example/mirror", "ly.tripoli.example/custody"] {
            assert!(matches!(note.sign(&key(name, 1)), Err(CustodyError::KeyName(_))));
            assert!(matches!(
                CustodyNote::verify(&bytes, &[key(name, 1).verifier().clone()]),
                Err(CustodyError::KeyName(_))
            ));
        }
    }

    #[test]
    fn digest_only_ranges_are_clipped_and_joined() {
        use Undisclosed::{Purged, Withheld};
        let parts = [(0..3, Withheld), (5..6, Withheld), (6..8, Withheld), (8..9, Purged), (9..30, Withheld)];
        let note = CustodyNote::new(&checkpoint(20), 7, 4..12, parts).unwrap();
        assert_eq!(note.not_held, [(5..8, Withheld), (8..9, Purged), (9..12, Withheld)]);
        assert!(CustodyNote::new(&checkpoint(20), 7, 4..12, [(6..8, Withheld), (5..6, Withheld)]).is_err());
        assert!(CustodyNote::new(&checkpoint(20), 7, 4..4, []).is_err());
        assert!(CustodyNote::new(&checkpoint(20), 7, 4..21, []).is_err());
        assert!(CustodyNote::new(&checkpoint(20), 0, 4..20, []).is_err());
    }

    #[test]
    fn too_many_lines_shorten_the_range_and_the_longest_note_fits() {
        let first = TREE_SIZE_MAX - 4_000;
        let odd = (first..TREE_SIZE_MAX).filter(|index| index % 2 == 1);
        let parts = odd.map(|index| (index..index + 1, Undisclosed::Unfollowed));
        let note = CustodyNote::new(&checkpoint(TREE_SIZE_MAX), TREE_SIZE_MAX, first..TREE_SIZE_MAX, parts).unwrap();
        assert_eq!(note.not_held.len(), CUSTODY_RANGES_MAX);
        assert!(note.range.end < TREE_SIZE_MAX && !note.holds(note.range.end) && note.holds(note.range.end - 1));
        let bytes = note.sign(&key("ly.rabat.example/custody", 1)).unwrap();
        assert!(bytes.len() < NOTE_BYTES_MAX);
        assert_eq!(CustodyNote::verify(&bytes, &[key("ly.rabat.example/custody", 1).verifier().clone()]), Ok(note));
    }

    proptest! {
        #[test]
        fn custody_note_lists_exactly_the_held_entries(held in prop::collection::vec(0..3_u8, 1..60), start in 0..1_000_u64) {
            use Undisclosed::{Purged, Withheld};
            let end = start + u64::try_from(held.len()).unwrap();
            let parts = (start..).zip(&held).filter(|(_, kind)| **kind > 0);
            let parts = parts.map(|(index, kind)| (index..index + 1, if *kind == 1 { Withheld } else { Purged }));
            let note = CustodyNote::new(&checkpoint(2_000), 7, start..end, parts).unwrap();
            for (index, kind) in (start..).zip(&held) {
                prop_assert_eq!(note.holds(index), *kind == 0);
            }
            prop_assert_eq!(CustodyNote::parse_text(&note.text()), Ok(note));
        }

        #[test]
        fn any_text_is_read_without_panic(text in "([ -~]{0,12}\n){0,9}") {
            prop_assert!(CustodyNote::parse_text(&text).is_err());
        }
    }
}
