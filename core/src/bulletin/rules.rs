//! The rules of fields, as values.
//!
//! In scope: every rule with its stable code, the values in its text, and its text in English.
//! Programs and message catalogues phrase a rule in other words by its code and values
//! (`src/cli/messages`). Out of scope: checking the rules, each beside the field that it is about.

use std::fmt;

use super::times::{Date, NotADate, Time};

/// Declares the rules: variant, values, code and text. The text follows the word "expected"; a name
/// in braces stands for its value.
macro_rules! rules {
    ($($name:ident $({ $($value:ident: $type:ty),+ })?, $code:literal, $text:literal;)+) => {
        /// A rule that a field breaks. Its text in English follows the word "expected".
        // The fields are the values in the texts.
        #[allow(missing_docs)]
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Rule {
            $(#[doc = $text] $name $({ $($value: $type),+ })?,)+
        }

        impl Rule {
            /// Code and English text of every rule. In a text a name in braces stands for a value.
            pub const TEXTS: &'static [(&'static str, &'static str)] = &[$(($code, $text)),+];

            /// The text of every rule with the names of its values, in the order of the fields.
            #[cfg(test)]
            const VALUES: &'static [(&'static str, &'static [&'static str])] =
                &[$(($text, &[$($(stringify!($value)),+)?])),+];

            /// Returns the stable code, by which the text is localized.
            #[must_use]
            pub fn code(&self) -> &'static str {
                match self {
                    $(Self::$name { .. } => $code,)+
                }
            }

            /// Returns the values in the text, in order.
            #[must_use]
            pub fn values(&self) -> Vec<String> {
                match self {
                    $(Self::$name $({ $($value),+ })? => vec![$($($value.to_string()),+)?],)+
                }
            }
        }

        impl fmt::Display for Rule {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$name $({ $($value),+ })? => write!(f, $text),)+
                }
            }
        }
    };
}

rules! {
    // Any field.
    ItemsAtMost { max: usize }, "items-at-most", "at most {max} items";
    BytesAtMost { max: usize }, "bytes-at-most", "at most {max} bytes";
    SizeRange { max: u64 }, "size-range", "1 to {max} bytes";
    Bytes32, "bytes-32", "32 bytes";
    Once, "once", "each value once";
    OneOf { values: String }, "one-of", "one of {values}";
    SetByNode { value: String }, "set-by-node", "`{value}` or nothing: the node sets it";
    Line { max: usize }, "line", "one line of at most {max} characters";
    LineNeeded { max: usize }, "line-needed", "text of 1 to {max} characters";
    Paragraph, "paragraph", "text without control characters";
    ParagraphVisible, "paragraph-visible", "no text, or text with visible characters";
    Direction, "direction", "text that overrides no direction and ends every embedding and isolate that it begins";
    Language, "language", "a BCP 47 tag such as `ar`, `fr` or `en`";
    MediaType, "media-type", "a media type such as `image/jpeg`";
    Quantity, "quantity", "a decimal number above 0 such as `12.5`";

    // Names.
    Member, "member", "a country of ISO 3166-1 alpha-2 in lower case, or `x-` and a name";
    Exchange, "exchange", "a DNS name in lower case such as `rabat.example`";
    FeedName, "feed-name", "a feed such as ly.rabat.example/feed/1";
    FocalPoint, "focal-point", "a focal point such as `customs-hq`";
    KindName, "kind-name", "a kind such as `situation-report`";
    Id, "id", "a UUIDv7 in lower-case text form";
    Topic, "topic", "a dotted path of 2 to 8 labels of lower-case letters, digits and hyphens, \
        the first the working group: `customs.seizures`";
    TopicFilter, "topic-filter", "a topic whose labels may be `*`, the last one `>`: `customs.>`, `*.documents`, `>`";

    // Times and places.
    Instant, "instant", "an instant";
    InstantInRange, "instant-in-range", "an instant of the years 1 to 9999";
    InstantPassed, "instant-passed", "an instant that has passed";
    LeapSecond, "leap-second", "a time without a leap second: write second 59, or second 0 of the next minute";
    Day, "day", "a day written YYYY-MM-DD";
    DayPassed, "day-passed", "a day that is not in the future";
    Birth, "birth", "YYYY-MM-DD, YYYY-MM or YYYY";
    ClockAhead { seconds: i64, clock: Time }, "clock-ahead", "at most {seconds} s ahead of this node's clock, {clock}";
    AfterSent { sent_at: Time }, "after-sent", "after it is sent, {sent_at}";
    EffectiveOrder { effective: Time }, "effective-order", "not before header.effective, {effective}";
    ExpiresOrder { expires: Time }, "expires-order", "not after header.expires, {expires}";
    PeriodOrder { start: Time }, "period-order", "not before periodStart, {start}";
    IssueOrder { issue: Date }, "issue-order", "not before dateOfIssue, {issue}";
    Point, "point", "`lat,lon` in decimal degrees (WGS 84), -90 to 90 and -180 to 180";
    Polygon, "polygon", "`lat,lon lat,lon …`: 4 to 1,000 points in decimal degrees, the last equal to the first";
    Circle, "circle", "`lat,lon radius`, the radius in km from 0 to 20,038";
    Locode, "locode", "a UN/LOCODE such as `TNTUN`";
    LocodeOrPoint, "locode-or-point", "a UN/LOCODE such as `TNTUN`, or coordinates";
    LocodeOrCountry, "locode-or-country", "a UN/LOCODE such as `TNTUN`, or an ISO 3166-1 alpha-2 code such as `TN`";

    // Header.
    Draft, "draft", "a draft";
    Header, "header", "a header";
    HeaderFormat { format: u32 }, "header-format", "{format}";
    KindOfPeople, "kind-of-people", "a kind that people publish";
    AcceptedAt, "accepted-at", "the instant at which the node accepted it";
    TopicOfRoster, "topic-of-roster", "a dotted path under a working group of the roster";
    TopicOfKind { group: &'static str, kind: &'static str },
        "topic-of-kind", "a topic under `{group}`, the working group of {kind}";
    TopicGranted, "topic-granted", "under a working group in which the node's access rules let you publish";
    MsgTypeOfKind { msg_types: String, kind: &'static str },
        "msg-type-of-kind", "one of {msg_types} for the kind {kind}";
    SystemStatus, "system-status", "System: it is about the network itself";
    Incident { max: usize }, "incident", "1 to {max} characters on one line";
    TlpAtLeast, "tlp-at-least", "a TLP label at least";
    RedReleasable, "red-releasable", "at least one member: TLP:RED goes to exactly these";
    H3Note, "h3-note", "a sentence that explains what H3 means here";
    NoH3Note, "no-h3-note", "nothing without the code H3";
    Purpose, "purpose", "a purpose: personal data is not shared without one";
    WithoutPersonalData, "without-personal-data", "nothing, or header.handling.personalData to be true";
    RetainUntil, "retain-until", "the last day on which the personal data may be retained, YYYY-MM-DD";
    RetainBeforeSent { sent: Date }, "retain-before-sent", "the day it is sent, {sent}, or later";
    ListedMember, "listed-member", "a member that the roster lists";

    // References.
    ReferenceNeeded { msg_type: &'static str }, "reference-needed", "the bulletin that this {msg_type} is about";
    ReferenceOther, "reference-other", "another bulletin than this one";
    ReferenceOwn { member: String }, "reference-own", "`{member}`: only its publisher may update or cancel a bulletin";
    ReferenceHeld, "reference-held", "a bulletin held here";
    ReferenceDigest { digest: String, id: String }, "reference-digest", "digest {digest} of {id}";
    AsOriginal { value: String }, "as-original", "`{value}`, as in the bulletin it refers to";
    AckReader, "ack-reader", "a member who may read the bulletin it refers to";
    AckReaders { publisher: String },
        "ack-readers", "members who may read the original, by default its publisher: `{publisher}`";

    // Body.
    Body, "body", "a body";
    BodyReadable, "body-readable", "a body that every reader can decode";
    ContentOfKind { kind: &'static str }, "content-of-kind", "the content that header.kind names: {kind}";
    TextNeeded, "text-needed", "at least one text: `ar`, `fr`, `en` or another language";
    GradeOfScheme { grades: String, scheme: &'static str }, "grade-of-scheme", "one of {grades} ({scheme})";
    ObservationNeeded, "observation-needed", "at least one observation";
    FeedOfPublisher, "feed-of-publisher", "a feed of the publisher";
    ForkEvidence, "fork-evidence", "a file that proves a fork";
    AsEvidence, "as-evidence", "the value in the evidence";
    SeizurePersonalData, "seizure-personal-data", "false: a seizure report names no person (WCO CEN practice)";
    GoodsNeeded, "goods-needed", "at least one line of goods";
    HsCode, "hs-code", "a WCO HS code of 2, 4 or 6 digits, chapters 01 to 97 without 77";
    Unit, "unit", "a UN/CEFACT Recommendation 20 code such as `KGM`, `LTR` or `C62`";
    NoticePersonalData, "notice-personal-data", "true: a person notice names a person";
    Nationality, "nationality", "an ISO 3166-1 alpha-3 code such as `TUN`, or XXA, XXB, XXC, XXX (ICAO Doc 9303-3)";
    ChargeNeeded, "charge-needed", "at least one charge: a Red notice is for prosecution or to serve a sentence";

    // Travel documents and their machine readable zones.
    DocumentNumber { max: usize }, "document-number", "1 to {max} of A to Z and 0 to 9, without fillers and spaces";
    DocumentCode, "document-code",
        "an ICAO document code: P, V, I, A, C or one of them and a letter or digit, not AV, CV, IV";
    IssuingState, "issuing-state", "a state or organisation of ICAO Doc 9303-3 such as `NER`, `D` or `XPO`";
    AsZone { value: String }, "as-zone", "`{value}`, as in the machine readable zone";
    ExpiryAsZone { date: String }, "expiry-as-zone", "YYMMDD {date}, as in the machine readable zone";
    ZonePersonalData, "zone-personal-data", "true: a machine readable zone names a person";
    ZoneLayout, "zone-layout", "3 lines of 30, 2 of 36 or 2 of 44 characters (TD1, TD2, TD3, MRV-A, MRV-B)";
    ZoneAlphabet, "zone-alphabet", "A to Z, 0 to 9 and `<` only";
    ZoneDocumentCode { letters: String }, "zone-document-code",
        "a document code that begins with {letters} in this layout and, on a card, is not followed by V";
    ZoneNumber { place: usize }, "zone-number", "a document number from position {place}";
    ZoneNumberOrOverflow { place: usize }, "zone-number-or-overflow",
        "a check digit at position {place}, or a longer number with its check digit in the optional field";
    ZoneOverflowDigit { digit: char }, "zone-overflow-digit",
        "check digit {digit} of the document number at the end of its overflow";
    ZoneCheckDigit { digit: char, part: &'static str, place: usize }, "zone-check-digit",
        "check digit {digit} of the {part} at position {place}";
    ZoneDate { part: &'static str, place: usize }, "zone-date",
        "{part} as YYMMDD, `<` where unknown, from position {place}";
    ZoneSex { place: usize }, "zone-sex", "M, F or `<` at position {place}";
    ZoneName, "zone-name", "a name of letters and fillers";
    ZoneNationality, "zone-nationality", "a nationality of ICAO Doc 9303-3 such as `NER`, `D` or `XXA`";

    // Calls.
    WaitCount, "wait-count", "at least 1, where no members are named";
    OthersAtMost { max: usize }, "others-at-most", "at most the {max} other members";
    AudienceAtMost { max: usize }, "audience-at-most", "at most the {max} other members in the bulletin's audience";
    InAudience, "in-audience", "a member in the bulletin's audience";
    ListedOtherMember, "listed-other-member", "another member that the roster lists";
    FilterAtMost { max: usize }, "filter-at-most", "at most {max} topics, kinds and members together";
    ReadingGranted, "reading-granted", "something that the node's access rules let you read";
    SinceOrder, "since-order", "an instant not before `since`";
    PageToken, "page-token", "the next_page_token of a previous page";
    SubscriptionName { max: usize }, "subscription-name", "1 to {max} letters, digits, `-`, `_` or `.`";
    Cursor, "cursor", "the cursor of an event on a subscription";
    CursorNotOffset, "cursor-not-offset",
        "0: an offset alone does not identify the state of the store; give a cursor";
    OneStart, "one-start", "nothing: only one of `after`, `cursor` and `begin` can be given";
    NewStart, "new-start", "`now` or `beginning`, or a cursor: a changed filter needs a new start";
    RecordedFork, "recorded-fork", "a feed with a recorded fork";
}

impl From<NotADate> for Rule {
    fn from(NotADate: NotADate) -> Self {
        Self::Day
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_code_is_unique() {
        let codes: BTreeSet<&str> = Rule::TEXTS.iter().map(|(code, _)| *code).collect();
        assert_eq!(codes.len(), Rule::TEXTS.len());
    }

    #[test]
    fn values_appear_in_the_text_in_order() {
        let rule = Rule::ZoneCheckDigit { digit: '2', part: "date of birth", place: 7 };
        assert_eq!(rule.code(), "zone-check-digit");
        assert_eq!(rule.values(), ["2", "date of birth", "7"]);
        assert_eq!(rule.to_string(), "check digit 2 of the date of birth at position 7");
        assert_eq!((Rule::Bytes32.to_string().as_str(), Rule::Bytes32.values().len()), ("32 bytes", 0));
        // Translations name the values by their position.
        for (text, values) in Rule::VALUES {
            let named: Vec<&str> = text.split('{').skip(1).filter_map(|part| Some(part.split_once('}')?.0)).collect();
            assert_eq!(named, *values, "{text}");
        }
        let topic = Rule::Topic.to_string();
        assert!(topic.contains("hyphens, the first") && Rule::TEXTS.contains(&("topic", topic.as_str())), "{topic}");
    }
}
