//! Stable codes for validation rules.
//!
//! In scope: the table of rules, and finding the rule of an error text. With the code and its
//! values a program or a message catalogue can phrase the rule in other words (`src/cli/messages`).
//! Out of scope: the rules themselves, each beside the field it checks. A rule whose text is not in
//! the table fails the test that breaks it.

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name, which never changes.
    pub code: &'static str,
    /// The values in its text in place of `{}`, in order.
    pub values: Vec<String>,
}

impl Rule {
    /// Returns the rule for this text of [`FieldError::expected`](super::FieldError), if the table
    /// has it.
    #[must_use]
    pub fn of(expected: &str) -> Option<Self> {
        RULES.iter().find_map(|(code, text)| Some(Self { code, values: values(text, expected)? }))
    }
}

/// Returns the parts of `found` in place of each `{}` in `text`, in order; `None` if the rest
/// differs.
#[must_use]
pub fn values(text: &str, found: &str) -> Option<Vec<String>> {
    let mut parts = text.split("{}").peekable();
    let mut rest = found.strip_prefix(parts.next()?)?;
    let mut values = Vec::new();
    while let Some(part) = parts.next() {
        let (value, after) = match parts.peek() {
            Some(_) => rest.split_once(part)?,
            None => (rest.strip_suffix(part)?, ""),
        };
        values.push(value.to_owned());
        rest = after;
    }
    rest.is_empty().then_some(values)
}

/// Code and text of every rule. A more specific text comes before a more general one.
pub const RULES: &[(&str, &str)] = &[
    (
        "topic",
        "a dotted path of 2 to 8 labels of lower-case letters, digits and hyphens, the first the working group: `customs.seizures`",
    ),
    ("wait-count", "at least 1, where no members are named"),
    ("polygon", "`lat,lon lat,lon …`: 4 to 1,000 points in decimal degrees, the last equal to the first"),
    ("topic-filter", "a topic whose labels may be `*`, the last one `>`: `customs.>`, `*.documents`, `>`"),
    ("nationality", "an ISO 3166-1 alpha-3 code such as `TUN`, or XXA, XXB, XXC, XXX (ICAO Doc 9303-3)"),
    ("charge-needed", "at least one charge: a Red notice is for prosecution or to serve a sentence"),
    ("zone-layout", "3 lines of 30, 2 of 36 or 2 of 44 characters (TD1, TD2, TD3, MRV-A, MRV-B)"),
    ("locode-or-country", "a UN/LOCODE such as `TNTUN`, or an ISO 3166-1 alpha-2 code such as `TN`"),
    ("issuing-state", "a state or organisation of ICAO Doc 9303-3 such as `NER`, `D` or `XPO`"),
    ("zone-nationality", "a nationality of ICAO Doc 9303-3 such as `NER`, `D` or `XXA`"),
    ("direction", "text that overrides no direction and ends every embedding and isolate that it begins"),
    ("point", "`lat,lon` in decimal degrees (WGS 84), -90 to 90 and -180 to 180"),
    ("unit", "a UN/CEFACT Recommendation 20 code such as `KGM`, `LTR` or `C62`"),
    ("document-code", "an ICAO document code: P, V, I, A, C or one of them and a letter or digit, not AV, CV, IV"),
    ("retain-until", "the last day on which the personal data may be retained, YYYY-MM-DD"),
    ("hs-code", "a WCO HS code of 2, 4 or 6 digits, chapters 01 to 97 without 77"),
    ("member", "a country of ISO 3166-1 alpha-2 in lower case, or `x-` and a name"),
    ("seizure-personal-data", "false: a seizure report names no person (WCO CEN practice)"),
    ("text-needed", "at least one text: `ar`, `fr`, `en` or another language"),
    ("retain-without-personal-data", "nothing, or header.handling.personal_data to be true"),
    ("circle", "`lat,lon radius`, the radius in km from 0 to 20,038"),
    ("red-releasable", "at least one member: TLP:RED goes to exactly these"),
    ("purpose", "a purpose: personal data is not shared without one"),
    ("topic-of-roster", "a dotted path under a working group of the roster"),
    ("topic-granted", "under a working group in which the node's access rules let you publish"),
    ("reading-granted", "something that the node's access rules let you read"),
    ("ack-reader", "a member who may read the bulletin it refers to"),
    ("zone-personal-data", "true: a machine readable zone names a person"),
    ("locode-or-point", "a UN/LOCODE such as `TNTUN`, or coordinates"),
    ("accepted-at", "the instant at which the node accepted it"),
    ("notice-personal-data", "true: a person notice names a person"),
    ("h3-note", "a sentence that explains what H3 means here"),
    ("language", "a BCP 47 tag such as `ar`, `fr` or `en`"),
    ("quantity", "a decimal number above 0 such as `12.5`"),
    ("system-status", "System: it is about the network itself"),
    ("body-readable", "a body that every reader can decode"),
    ("nothing-without-personal-data", "nothing, or personal_data to be true"),
    ("listed-other-member", "another member that the roster lists"),
    ("in-audience", "a member in the bulletin's audience"),
    ("focal-point", "a focal point such as `customs-hq`"),
    ("kind-name", "a kind such as `situation-report`"),
    ("instant-in-range", "an instant of the years 1 to 9999"),
    ("media-type", "a media type such as `image/jpeg`"),
    ("id", "a UUIDv7 in lower-case text form"),
    ("paragraph-shown", "no text, or text with visible characters"),
    ("paragraph", "text without control characters"),
    ("reference-other", "another bulletin than this one"),
    ("listed-member", "a member that the roster lists"),
    ("zone-name", "a name of letters and fillers"),
    ("no-h3-note", "nothing without the code H3"),
    ("birth", "YYYY-MM-DD, YYYY-MM or YYYY"),
    ("locode", "a UN/LOCODE such as `TNTUN`"),
    ("zone-alphabet", "A to Z, 0 to 9 and `<` only"),
    ("kind-of-people", "a kind that people publish"),
    ("instant-passed", "an instant that has passed"),
    ("goods-needed", "at least one line of goods"),
    ("day", "a day written YYYY-MM-DD"),
    ("observation-needed", "at least one observation"),
    ("feed-of-publisher", "a feed of the publisher"),
    ("feed-name", "a feed such as ly.rabat.example/feed/1"),
    ("fork-evidence", "a file that proves a fork"),
    ("as-evidence", "the value in the evidence"),
    ("once-nationality", "each nationality once"),
    ("day-passed", "a day that has passed"),
    ("tlp-at-least", "a TLP label at least"),
    ("reference-held", "a bulletin held here"),
    ("day-come", "a day that has come"),
    ("once-category", "each category once"),
    ("once-language", "each language once"),
    ("once-bulletin", "each bulletin once"),
    ("hash-32", "a hash of 32 bytes"),
    ("once-member", "each member once"),
    ("once-code", "each code once"),
    ("member-code", "a member code"),
    ("instant", "an instant"),
    ("header", "a header"),
    ("bytes-32", "32 bytes"),
    ("draft", "a draft"),
    ("body", "a body"),
    ("header-format", "1"),
    (
        "zone-number-or-overflow",
        "a check digit in place {}, or a longer number and its check digit in the optional field",
    ),
    ("ack-readers", "members who may read the original, by default its publisher: `{}`"),
    ("zone-overflow-digit", "check digit {} of the document number at the end of its overflow"),
    ("reference-own", "`{}`: only its publisher may update or cancel a bulletin"),
    ("document-number", "1 to {} of A to Z and 0 to 9, without fillers and spaces"),
    ("audience-at-most", "at most the {} other members in the bulletin's audience"),
    ("zone-document-code", "a document code that begins with {} in this layout, and on a card has no V behind it"),
    ("expiry-as-zone", "YYMMDD {}, as in the machine readable zone"),
    ("zone-date", "{} as YYMMDD, `<` where unknown, from place {}"),
    ("clock-ahead", "at most {} s ahead of this node's clock, {}"),
    ("topic-of-kind", "a topic under `{}`, the working group of {}"),
    ("others-each-once", "at most the {} other members, each once"),
    ("as-zone", "`{}`, as in the machine readable zone"),
    ("content-of-kind", "the content that header.kind names: {}"),
    ("as-original", "`{}`, as in the bulletin it refers to"),
    ("filled-by-node", "`{}` or nothing: the node fills it"),
    ("reference-needed", "the bulletin that this {} is about"),
    ("retain-before-sent", "the day it is sent, {}, or later"),
    ("line", "one line of at most {} characters"),
    ("zone-check-digit", "check digit {} of the {} in place {}"),
    ("effective-order", "not before header.effective, {}"),
    ("zone-number", "a document number from place {}"),
    ("incident", "1 to {} characters on one line"),
    ("expires-order", "not after header.expires, {}"),
    ("issue-order", "not before date_of_issue, {}"),
    ("others-at-most", "at most the {} other members"),
    ("period-order", "not before period_start, {}"),
    ("line-needed", "text of 1 to {} characters"),
    ("zone-sex", "M, F or `<` in place {}"),
    ("after-sent", "after it is sent, {}"),
    ("bytes-at-most", "at most {} bytes"),
    ("items-at-most", "at most {} items"),
    ("msg-type-of-kind", "{} for the kind {}"),
    ("format-or-nothing", "{} or nothing"),
    ("size-range", "1 to {} bytes"),
    ("reference-digest", "digest {} of {}"),
    ("grade-of-scheme", "one of {} ({})"),
    ("one-of", "one of {}"),
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_text_is_its_own_rule_and_gives_its_values_back() {
        let codes: BTreeSet<&str> = RULES.iter().map(|(code, _)| *code).collect();
        assert_eq!(codes.len(), RULES.len(), "a code is listed twice");
        for (code, text) in RULES {
            let count = text.matches("{}").count();
            let given: Vec<String> = (1..=count).map(|n| format!("v{n}")).collect();
            let rendered = given.iter().fold((*text).to_owned(), |rendered, value| rendered.replacen("{}", value, 1));
            assert_eq!(Rule::of(&rendered), Some(Rule { code, values: given }), "{rendered}");
        }
        assert_eq!(Rule::of("something else"), None);
    }
}
