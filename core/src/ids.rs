//! Identifiers used everywhere: members, the exchange, feeds, digests.
//!
//! In scope: parsing and printing. Out of scope: which members exist (the roster) and the content
//! of feeds.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::bulletin::countries::is_alpha2;
use crate::bulletin::rules::Rule;

/// A participant of the exchange: an ISO 3166-1 alpha-2 code in lower case (`ma`), or `x-` and a
/// name of 2 to 32 letters, digits and hyphens for an organisation (`x-au`). Cheap to clone.
///
/// Parsing checks the form only: ISO assigns and withdraws codes, and signed data must stay
/// readable. A new member needs a code that [is assigned](Member::is_assigned).
///
/// # Examples
/// ```
/// use barid_core::ids::Member;
///
/// let country: Member = "ma".parse()?;
/// let organisation: Member = "x-au".parse()?;
/// assert!(country.is_assigned() && organisation.is_assigned());
/// assert!("MA".parse::<Member>().is_err());
/// # Ok::<(), barid_core::ids::NameError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member(Arc<str>);

/// Name of the whole federation: a DNS name in lower case such as `rabat.example`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExchangeName(Arc<str>);

/// One epoch of one member's feed. Printed as its C2SP origin and key name:
/// `ma.rabat.example/feed/1`.
///
/// # Examples
/// ```
/// use barid_core::ids::FeedId;
///
/// let feed: FeedId = "ma.rabat.example/feed/1".parse()?;
/// assert_eq!((feed.member.as_str(), feed.epoch), ("ma", 1));
/// assert_eq!(FeedId::new(feed.member, feed.exchange, 2).to_string(), "ma.rabat.example/feed/2");
/// # Ok::<(), barid_core::ids::NameError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FeedId {
    /// The feed's owner.
    pub member: Member,
    /// The exchange.
    pub exchange: ExchangeName,
    /// Epoch, from 1.
    pub epoch: u32,
}

/// Text that is not a valid name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{value}` is not {expected}")]
pub struct NameError {
    /// Type of name: "member", "exchange", "feed".
    pub what: &'static str,
    /// The text found, cut at 80 characters.
    pub value: String,
    /// What was expected.
    pub expected: Rule,
}

impl NameError {
    fn new(what: &'static str, value: &str, expected: Rule) -> Self {
        Self { what, value: value.chars().take(80).collect(), expected }
    }
}

impl From<NameError> for Rule {
    fn from(error: NameError) -> Self {
        error.expected
    }
}

impl Member {
    /// Returns the code as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Member {
    /// Returns whether it is an organisation, or a country to which ISO 3166-1 assigns its code.
    #[must_use]
    pub fn is_assigned(&self) -> bool {
        self.0.starts_with("x-") || is_alpha2(&self.0.to_ascii_uppercase())
    }
}

impl ExchangeName {
    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FeedId {
    /// Returns epoch `epoch` of `member`'s feed.
    #[must_use]
    pub fn new(member: Member, exchange: ExchangeName, epoch: u32) -> Self {
        Self { member, exchange, epoch }
    }

    /// Returns `<member>.<exchange>/mirror`, the key name of `member`'s cosignatures (C2SP
    /// tlog-cosignature).
    #[must_use]
    pub fn mirror_key_name(member: &Member, exchange: &ExchangeName) -> String {
        format!("{member}.{exchange}/mirror")
    }

    /// Returns `<member>.<exchange>/custody`, the key name of `member`'s custody notes.
    #[must_use]
    pub fn custody_key_name(member: &Member, exchange: &ExchangeName) -> String {
        format!("{member}.{exchange}/custody")
    }
}

impl FromStr for Member {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let country = text.len() == 2 && text.bytes().all(|b| b.is_ascii_lowercase());
        let organisation = text.strip_prefix("x-").is_some_and(|name| {
            (2..=32).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !name.starts_with('-')
                && !name.ends_with('-')
        });
        if country || organisation { Ok(Self(text.into())) } else { Err(NameError::new("member", text, Rule::Member)) }
    }
}

impl FromStr for ExchangeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // RFC 3696 §2: a last label of digits only would make it an IP address.
        let address = text.rsplit('.').next().is_none_or(|last| last.bytes().all(|b| b.is_ascii_digit()));
        if text.len() <= 200 && text.contains('.') && text.split('.').all(label) && !address {
            Ok(Self(text.into()))
        } else {
            Err(NameError::new("exchange", text, Rule::Exchange))
        }
    }
}

impl FromStr for FeedId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let bad = || NameError::new("feed", text, Rule::FeedName);
        let (host, epoch) = text.split_once("/feed/").ok_or_else(bad)?;
        let (member, exchange) = host.split_once('.').ok_or_else(bad)?;
        let number: u32 = epoch.parse().map_err(|_| bad())?;
        if number == 0 || number.to_string() != epoch {
            return Err(bad());
        }
        Ok(Self {
            member: member.parse().map_err(|_| bad())?,
            exchange: exchange.parse().map_err(|_| bad())?,
            epoch: number,
        })
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ExchangeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for FeedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}/feed/{}", self.member, self.exchange, self.epoch)
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for ExchangeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for FeedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Returns whether a character ends a paragraph (U+2028, U+2029) or embeds, overrides or isolates
/// the direction of text (Unicode Standard Annex #9). Such a character changes how the surrounding
/// text is displayed.
#[must_use]
pub fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// A SHA-256 value: an RFC 6962 tree hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash(pub [u8; 32]);

/// SHA-256 of an envelope's exact bytes: the record in a feed's tree.
///
/// # Examples
/// ```
/// use barid_core::envelope;
///
/// let digest = envelope::digest(b"the bytes of an envelope");
/// assert_ne!(digest, envelope::digest(b"The bytes of an envelope"));
/// assert_eq!(digest.to_string().len(), 64);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a node holds only the digest of an entry. Codes as on the wire (`DigestRun.reason`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Undisclosed {
    /// According to the sender, this member is not in the audience.
    Withheld,
    /// This member did not request its topic.
    Unfollowed,
    /// The sender did not hold the content itself.
    NotHeld,
    /// Erased because of its age or by order.
    Purged,
    /// It was sent to this member, which is not in its audience; the content was dropped on
    /// receipt.
    Excluded,
    /// The content arrived, but it is larger than this version stores, so only its digest is
    /// stored.
    TooLarge,
    /// It was sent, but its header cannot be decoded or is not understood, so nobody here may read
    /// it.
    NotUnderstood,
    /// The sender gave a reason that this version does not know.
    Unknown,
}

impl Undisclosed {
    /// All reasons with their codes and their numbers on disk.
    pub const ALL: [(Self, &'static str, u8); 8] = [
        (Self::Withheld, "withheld", 1),
        (Self::Unfollowed, "unfollowed", 2),
        (Self::NotHeld, "not_held", 3),
        (Self::Purged, "purged", 4),
        (Self::Excluded, "excluded", 5),
        (Self::TooLarge, "too_large", 6),
        (Self::NotUnderstood, "not_understood", 7),
        (Self::Unknown, "unknown", 8),
    ];

    /// Returns the code on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(reason, ..)| *reason == self).map_or("unknown", |(_, code, _)| code)
    }

    /// Returns the number on disk. 0 is never used; it means disclosed.
    #[must_use]
    pub fn number(self) -> u8 {
        Self::ALL.iter().find(|(reason, ..)| *reason == self).map_or(8, |(.., number)| *number)
    }

    /// Parses a code from the wire. An unknown code, or one that only receivers use locally, gives
    /// [`Self::Unknown`] instead of an error.
    #[must_use]
    pub fn from_code(code: &str) -> Self {
        let sent = [Self::Withheld, Self::Unfollowed, Self::NotHeld, Self::Purged];
        sent.into_iter().find(|reason| reason.as_str() == code).unwrap_or(Self::Unknown)
    }

    /// Returns the reason with this number on disk.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.iter().find(|(.., known)| *known == number).map(|(reason, ..)| *reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_a_country_that_iso_3166_1_assigns_or_an_organisation() {
        let assigned = |text: &str| text.parse::<Member>().is_ok_and(|member| member.is_assigned());
        for good in ["ma", "ly", "tn", "ne", "gb", "gr", "ss", "x-au", "x-interpol-2", "x-un"] {
            assert!(assigned(good), "{good}");
        }
        // Reserved, withdrawn, user-assigned, never assigned, and strings that are not codes.
        for bad in [
            "uk", "el", "eu", "un", "ac", "an", "su", "yu", "tp", "xk", "zz", "aa", "xx", "qq", "MA", "Ma", "m", "mar",
            "", "é", "x-", "x-a", "x--a", "x-a-", "X-au", "x-é",
        ] {
            assert!(!assigned(bad), "{bad}");
        }
    }

    #[test]
    fn an_exchange_is_a_name_and_no_address() {
        for good in ["rabat.example", "127.example", "a.b", "xn--mgbc0a.xn--mgbab2bd", "1.2.3.4a", "example.x1"] {
            assert!(good.parse::<ExchangeName>().is_ok(), "{good}");
        }
        for bad in [
            "127.0.0.1",
            "10.1",
            "example.1",
            "0.0",
            "example",
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "A.example",
            "-a.example",
            "::1",
        ] {
            assert!(bad.parse::<ExchangeName>().is_err(), "{bad}");
        }
        assert!("ma.127.0.0.1/feed/1".parse::<FeedId>().is_err());
    }
}
