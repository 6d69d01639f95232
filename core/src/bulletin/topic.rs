//! Topics, and filters that match them.
//!
//! In scope: syntax and matching (NATS wildcards). Out of scope: which working groups exist (the
//! roster), and which topics a member follows.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::rules::Rule;
use crate::limits::{TOPIC_BYTES_MAX, TOPIC_LABELS_MAX};

/// A dotted path under a working group: `customs.seizures`. Two to eight labels of lower-case
/// letters, digits and inner hyphens, 128 bytes at most. Cheap to clone.
///
/// # Examples
/// ```
/// use barid_core::bulletin::Topic;
///
/// let topic: Topic = "customs.seizures".parse()?;
/// assert_eq!(topic.working_group(), "customs");
/// assert!("customs".parse::<Topic>().is_err());
/// # Ok::<(), barid_core::bulletin::topic::TopicError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Arc<str>);

/// A pattern of topics. A label matches itself, `*` exactly one label, a final `>` one or more
/// labels: `customs.>`, `*.documents`, `>`.
///
/// # Examples
/// ```
/// use barid_core::bulletin::{Topic, TopicFilter};
///
/// let topic: Topic = "customs.seizures".parse()?;
/// let filter: TopicFilter = "customs.>".parse()?;
/// assert!(filter.matches(&topic));
/// assert!(!"*.documents".parse::<TopicFilter>()?.matches(&topic));
/// # Ok::<(), barid_core::bulletin::topic::TopicError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicFilter(Arc<str>);

/// Text that is not a topic or filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not {expected}")]
pub struct TopicError {
    /// The text found, cut at 80 characters.
    pub found: String,
    /// What was expected.
    pub expected: Rule,
}

impl TopicError {
    fn new(found: &str, expected: Rule) -> Self {
        Self { found: found.chars().take(80).collect(), expected }
    }
}

impl From<TopicError> for Rule {
    fn from(error: TopicError) -> Self {
        error.expected
    }
}

impl Topic {
    /// Returns the topic as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the first label.
    #[must_use]
    pub fn working_group(&self) -> &str {
        self.0.split('.').next().unwrap_or_default()
    }
}

impl TopicFilter {
    /// Returns the filter as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the filter that every topic matches: `>`.
    #[must_use]
    pub fn all() -> Self {
        Self(">".into())
    }

    /// Returns whether `topic` matches.
    #[must_use]
    pub fn matches(&self, topic: &Topic) -> bool {
        self.matches_text(&topic.0)
    }

    /// Returns whether a header's topic, still unparsed, matches. Invalid topics match nothing.
    #[must_use]
    pub fn matches_header(&self, topic: &str) -> bool {
        is_topic(topic) && self.matches_text(topic)
    }

    fn matches_text(&self, topic: &str) -> bool {
        let mut labels = topic.split('.');
        for pattern in self.0.split('.') {
            match (pattern, labels.next()) {
                (_, None) => return false,
                (">", Some(_)) => return true,
                ("*", Some(_)) => {}
                (same, Some(label)) if same == label => {}
                _ => return false,
            }
        }
        labels.next().is_none()
    }
}

/// Returns the working group of a header's topic, or `None` if the text is not a topic.
#[must_use]
pub fn working_group(topic: &str) -> Option<&str> {
    if is_topic(topic) { topic.split('.').next() } else { None }
}

fn is_topic(text: &str) -> bool {
    text.len() <= TOPIC_BYTES_MAX
        && (2..=TOPIC_LABELS_MAX).contains(&text.split('.').count())
        && text.split('.').all(is_label)
}

/// Returns whether `text` is one label: lower-case letters, digits and inner hyphens.
pub(super) fn is_label(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

impl FromStr for Topic {
    type Err = TopicError;

    fn from_str(text: &str) -> Result<Self, TopicError> {
        if is_topic(text) { Ok(Self(text.into())) } else { Err(TopicError::new(text, Rule::Topic)) }
    }
}

impl FromStr for TopicFilter {
    type Err = TopicError;

    fn from_str(text: &str) -> Result<Self, TopicError> {
        let count = text.split('.').count();
        let label = |(n, label): (usize, &str)| is_label(label) || label == "*" || (label == ">" && n + 1 == count);
        if text.len() <= TOPIC_BYTES_MAX && count <= TOPIC_LABELS_MAX && text.split('.').enumerate().all(label) {
            Ok(Self(text.into()))
        } else {
            Err(TopicError::new(text, Rule::TopicFilter))
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_topic_is_a_dotted_path_under_a_group() {
        for good in ["customs.seizures", "security.documents", "a.b.c.d.e.f.g.h", "justice.persons-2"] {
            assert_eq!(good.parse::<Topic>().unwrap().as_str(), good);
        }
        assert_eq!("customs.seizures.sea".parse::<Topic>().unwrap().working_group(), "customs");
        let long = format!("customs.{}", "a".repeat(TOPIC_BYTES_MAX));
        for bad in [
            "",
            "customs",
            "customs.",
            ".x",
            "customs..x",
            "Customs.x",
            "customs.*",
            "customs.>",
            "a.-b",
            "a.b-",
            "a. b",
        ] {
            assert!(bad.parse::<Topic>().is_err(), "{bad}");
        }
        assert!(long.parse::<Topic>().is_err());
        assert!("a.b.c.d.e.f.g.h.i".parse::<Topic>().is_err());
    }

    #[test]
    fn a_filter_may_hold_wildcards_in_their_places() {
        for good in [">", "*", "*.*", "customs.>", "*.documents", "customs.*.>", "customs.seizures", "customs"] {
            assert_eq!(good.parse::<TopicFilter>().unwrap().as_str(), good);
        }
        for bad in ["", ">.x", "customs.>.x", "customs.**", "customs.a*", "customs.", "Customs.>"] {
            assert!(bad.parse::<TopicFilter>().is_err(), "{bad}");
        }
    }

    #[test]
    fn more_than_one_label_is_needed_after_the_group() {
        let filter: TopicFilter = "customs.>".parse().unwrap();
        assert!(filter.matches_header("customs.seizures"));
        assert!(filter.matches_header("customs.seizures.sea"));
        assert!(!filter.matches_header("customs"));
        assert!(!filter.matches_header("security.seizures"));
        assert!(!TopicFilter::all().matches_header("not a topic"));
    }

    /// Recursive matching over label lists, as the NATS documentation describes it.
    fn naive(pattern: &[&str], labels: &[&str]) -> bool {
        match (pattern, labels) {
            ([], []) => true,
            ([">"], [_, ..]) => true,
            (["*", rest @ ..], [_, more @ ..]) => naive(rest, more),
            ([first, rest @ ..], [label, more @ ..]) => first == label && naive(rest, more),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matching_equals_the_naive_matcher(
            labels in prop::collection::vec("[ab]", 2..6),
            pattern in prop::collection::vec("[ab*]", 1..6),
            rest in any::<bool>(),
        ) {
            let mut pattern: Vec<&str> = pattern.iter().map(String::as_str).collect();
            if rest {
                pattern.push(">");
            }
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            let filter: TopicFilter = pattern.join(".").parse().unwrap();
            let topic: Topic = labels.join(".").parse().unwrap();
            prop_assert_eq!(filter.matches(&topic), naive(&pattern, &labels));
        }

        #[test]
        fn no_text_makes_parsing_fail_badly(text in ".{0,200}") {
            let _ = text.parse::<Topic>();
            let _ = text.parse::<TopicFilter>();
        }
    }
}
