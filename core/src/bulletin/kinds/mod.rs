//! The kinds of bulletin, one folder each, listed in [`REGISTRY`].
//!
//! In scope: what each kind provides. Out of scope: what all bodies share (`body`). To add a kind,
//! create its folder here and add the lines that name it, as CONTRIBUTING.md describes; a test
//! reports what is missing.

pub mod acknowledgement;
pub mod cancellation;
pub mod feed_closed;
pub mod feed_forked;
pub mod person_notice;
pub mod seizure_report;
pub mod situation_report;
pub mod travel_document_alert;

use super::field::Report;
use super::times::{Date, Time};
use super::topic::is_label;
use super::vocabulary::MsgType;
use crate::limits::{CLOCK_AHEAD_SECONDS_MAX, NAME_BYTES_MAX};
use crate::proto;
use crate::proto::body::Content;

/// Every kind that this version can publish.
pub const REGISTRY: &[KindInfo] = &[
    travel_document_alert::KIND,
    situation_report::KIND,
    seizure_report::KIND,
    person_notice::KIND,
    acknowledgement::KIND,
    cancellation::KIND,
    feed_closed::KIND,
    feed_forked::KIND,
];

/// Definition of a kind.
#[derive(Clone, Copy, Debug)]
pub struct KindInfo {
    /// Its name in `header.kind`: `seizure-report`.
    pub name: &'static str,
    /// The working group of its topics; `None` allows any.
    pub working_group: Option<&'static str>,
    /// The message types it allows.
    pub msg_types: &'static [MsgType],
    /// Whether it carries information of its own and so requires a text and a certainty.
    /// Acknowledgements and cancellations do not.
    pub informs: bool,
    /// Whether only nodes create it, about the network itself; people cannot publish it.
    pub node_only: bool,
    /// Its display name.
    pub labels: Labels,
    /// Returns whether a body's content is of this kind.
    pub holds: fn(&Content) -> bool,
    /// Reports every field of the content that breaks a rule.
    pub validate: fn(&proto::Body, &Context<'_>, &mut Report),
    /// Returns the keys under which a body can be found.
    pub search_keys: fn(&proto::Body) -> Vec<SearchKey>,
    /// A valid draft, in the JSON mapping of `Draft`.
    pub sample_json: &'static str,
}

/// Display name of a kind in the languages of the conference.
#[derive(Clone, Copy, Debug)]
pub struct Labels {
    /// Arabic.
    pub ar: &'static str,
    /// French.
    pub fr: &'static str,
    /// English.
    pub en: &'static str,
}

/// A key under which a bulletin can be found. It may be personal data, so an index stores a keyed
/// hash of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchKey {
    /// Type of the key: `document`, `locode`, `hs`.
    pub name: &'static str,
    /// Its value in normal form.
    pub value: String,
}

/// What a kind's validation may use besides the body.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The header with the node's defaults filled in; not necessarily valid.
    pub header: &'a proto::Header,
    /// The node's time.
    pub now: Time,
}

impl Context<'_> {
    /// Returns the latest instant that may already have passed, given that clocks differ.
    #[must_use]
    pub fn latest(&self) -> Time {
        self.now.plus_seconds(CLOCK_AHEAD_SECONDS_MAX)
    }

    /// Returns the latest day that may already have begun anywhere on earth, because a date has no
    /// time zone.
    #[must_use]
    pub fn latest_day(&self) -> Date {
        self.latest().latest_date()
    }
}

impl KindInfo {
    /// Returns the path of its content: `body.seizure_report`.
    #[must_use]
    pub fn arm(&self) -> String {
        format!("body.{}", self.name.replace('-', "_"))
    }

    /// Returns a valid fictional draft with status Exercise.
    ///
    /// # Errors
    /// If the sample is not the JSON mapping of a draft; a test parses each sample.
    pub fn sample(&self) -> Result<proto::Draft, serde_json::Error> {
        serde_json::from_str(self.sample_json)
    }
}

impl SearchKey {
    /// Creates a key.
    #[must_use]
    pub fn new(name: &'static str, value: impl Into<String>) -> Self {
        Self { name, value: value.into() }
    }
}

/// Returns the kind called `name`.
#[must_use]
pub fn find(name: &str) -> Option<&'static KindInfo> {
    REGISTRY.iter().find(|kind| kind.name == name)
}

/// Returns whether `text` can be the name of a kind, of this version or a newer one: a label such
/// as `seizure-report`.
#[must_use]
pub fn is_name(text: &str) -> bool {
    text.len() <= NAME_BYTES_MAX && is_label(text)
}

/// Returns the search keys of a body of any kind.
#[must_use]
pub fn search_keys(body: &proto::Body) -> Vec<SearchKey> {
    let kind = body.content.as_ref().and_then(|content| REGISTRY.iter().find(|kind| (kind.holds)(content)));
    kind.map_or_else(Vec::new, |kind| (kind.search_keys)(body))
}

/// Returns the names of all kinds, for error messages.
pub(super) fn names() -> String {
    REGISTRY.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;
    use std::path::Path;

    use prost::Message as _;

    use super::*;
    use crate::bulletin::prepare::tests::defaults;
    use crate::bulletin::{Topic, prepare};
    use crate::envelope;

    #[test]
    fn every_registered_kind_has_every_part() {
        let mut names = BTreeSet::new();
        for kind in REGISTRY {
            assert!(names.insert(kind.name), "{} is registered twice", kind.name);
            for label in [kind.labels.ar, kind.labels.fr, kind.labels.en] {
                assert!(!label.is_empty(), "{} lacks a label", kind.name);
            }
            assert!(kind.labels.ar.chars().any(|c| ('\u{600}'..'\u{700}').contains(&c)), "{}: Arabic", kind.name);
            assert!(!kind.msg_types.is_empty(), "{} cannot be the content of a message", kind.name);
            let draft = kind.sample().unwrap_or_else(|error| panic!("sample of {}: {error}", kind.name));
            let body = draft.body.clone().unwrap();
            assert!((kind.holds)(body.content.as_ref().unwrap()), "the sample of {} holds another kind", kind.name);
            let holders = REGISTRY.iter().filter(|other| (other.holds)(body.content.as_ref().unwrap())).count();
            assert_eq!(holders, 1, "{}: content belongs to one kind", kind.name);
            let languages: Vec<&str> = body.texts.iter().map(|text| text.language.as_str()).collect();
            assert_eq!(languages, ["ar", "fr", "en"], "{}", kind.name);
            let valid = prepare(&draft, &defaults(), [1; 16])
                .unwrap_or_else(|error| panic!("sample of {}: {error}", kind.name));
            assert_eq!(valid.header.kind, kind.name);
            let group = valid.header.topic.working_group().to_owned();
            assert!(kind.working_group.is_none_or(|expected| expected == group));
            assert!(!search_keys(&body).is_empty(), "{} has no search keys", kind.name);

            // Empty content must be rejected under the kind's own path; otherwise its validation
            // checks nothing.
            let mut emptied = draft;
            emptied.body = envelope::body_of(&valid.envelope).ok();
            let body = emptied.body.as_mut().unwrap();
            body.content = emptied_content(body.content.as_ref().unwrap());
            assert!(
                (kind.holds)(body.content.as_ref().unwrap()),
                "{}: its message has no field number of its own",
                kind.name
            );
            let rejection = prepare(&emptied, &defaults(), [1; 16]).expect_err(kind.name);
            assert!(rejection.0.iter().any(|error| error.field.starts_with(&kind.arm())), "{}: {rejection}", kind.name);
        }
    }

    /// Returns empty content of the same kind: the arm's field number with length 0.
    fn emptied_content(content: &Content) -> Option<Content> {
        let mut encoded = proto::Body { content: Some(content.clone()), ..Default::default() }.encode_to_vec();
        encoded.truncate(2);
        encoded.push(0);
        assert_eq!(encoded[1] >> 7, 0, "arms have numbers of two bytes");
        proto::Body::decode(encoded.as_slice()).unwrap().content
    }

    /// Each kind has its folder, registration, schema and example.
    #[test]
    fn every_kind_has_folder_registration_schema_and_example() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let named = |kind: &str| REGISTRY.iter().any(|registered| registered.name == kind);
        for entry in std::fs::read_dir(root.join("src/bulletin/kinds")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().replace('_', "-");
            assert!(!path.is_dir() || named(&name), "kinds/{name} is a folder without a line in REGISTRY");
        }
        let schema = std::fs::read_to_string(root.join("../proto/barid/v1/bulletin.proto")).unwrap();
        let (_, content) = schema.split_once("oneof content {").unwrap();
        let fields = content.split('}').next().unwrap().lines().filter_map(|line| line.split_once(" = "));
        let arms: Vec<String> =
            fields.filter_map(|(field, _)| Some(field.rsplit_once(' ')?.1.replace('_', "-"))).collect();
        for arm in &arms {
            assert!(named(arm), "Body.content has an arm for {arm}, which is not in REGISTRY");
        }
        for kind in REGISTRY {
            let folder = kind.name.replace('-', "_");
            assert!(
                root.join("src/bulletin/kinds").join(&folder).is_dir(),
                "{} has no folder kinds/{folder}",
                kind.name
            );
            assert!(arms.iter().any(|arm| arm == kind.name), "Body.content has no arm {folder}");
            let example = root.join("../examples/bulletins").join(format!("{}.json", kind.name));
            assert!(example.is_file(), "{} has no example", kind.name);
        }
    }

    #[test]
    fn every_example_can_be_published() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/bulletins");
        let mut names = BTreeSet::new();
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let draft: proto::Draft =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let header = draft.header.as_ref().unwrap();
            assert_eq!(header.status, "Exercise", "{}: fictional data is marked", path.display());
            assert!(header.topic.parse::<Topic>().is_ok());
            prepare(&draft, &defaults(), [1; 16]).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            names.insert(path.file_stem().unwrap().to_string_lossy().into_owned());
        }
        assert!(names.contains("stolen-passport.fr"));
        assert!(REGISTRY.iter().all(|kind| names.contains(kind.name)), "one example per kind: {names:?}");
    }
}
