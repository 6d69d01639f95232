//! Why an evidence file is invalid: one sentence for every reader, and the failed check for experts.

use barid_core::evidence::EvidenceError;

use crate::cli::messages::{Lang, Messages, clean};
use crate::cli::{localize, proof_errors};

/// Returns the reason as one sentence in the reader's language.
pub(super) fn sentence(messages: &Messages, error: &EvidenceError) -> String {
    use EvidenceError as E;
    match error {
        E::Zip(_) => messages.text("invalid-form"),
        E::Page => messages.text("invalid-page"),
        E::Part(part) => localize!(messages, "invalid-part", part = part),
        E::Count { what, found } => {
            localize!(messages, "invalid-count", what = messages.term("part", what), nFound = *found)
        }
        E::Bulletin(_) => messages.text("invalid-bulletin"),
        E::Proof(_) => messages.text("invalid-proof"),
        E::Feed { feed, member, exchange } => localize!(
            messages,
            "invalid-feed",
            feed = feed.to_string(),
            member = member.as_str(),
            exchange = exchange.as_str()
        ),
        E::NoFeedKeys(feed) => localize!(messages, "invalid-no-feed-keys", feed = feed.to_string()),
        E::Different => messages.text("invalid-different"),
        E::Untied => messages.text("invalid-untied"),
        E::Consistency { old, new, .. } => localize!(messages, "invalid-consistency", nOld = *old, nNew = *new),
        E::UnknownSignature(name) => localize!(messages, "invalid-unknown-signature", name = name),
        E::Note(_) | E::Cosignature(_) => messages.text("invalid-signature"),
        E::Custody { member, .. } => localize!(messages, "invalid-custody", member = member.as_str()),
        E::NotHeld(member) => localize!(messages, "invalid-not-held", member = member.as_str()),
        E::Rosters(_) | E::Roster(_) => messages.text("invalid-rosters"),
        E::OtherRoster(version) => localize!(messages, "invalid-other-roster", version = version.to_string()),
        E::RosterGap { first } => {
            let needed = first.saturating_sub(1);
            localize!(messages, "invalid-roster-gap", first = first.to_string(), needed = needed.to_string())
        }
        E::RosterTooOld { needed, newest } => {
            localize!(messages, "invalid-roster-too-old", needed = needed.to_string(), newest = newest.to_string())
        }
    }
}

/// Returns what to do about it.
pub(super) fn next(messages: &Messages, error: &EvidenceError) -> String {
    use EvidenceError as E;
    messages.text(match error {
        E::OtherRoster(_) | E::RosterGap { .. } | E::RosterTooOld { .. } | E::NoFeedKeys(_) | E::Feed { .. } => {
            "invalid-next-roster"
        }
        _ => "invalid-next-file",
    })
}

/// Returns the failed check, if it has more to it than the sentence.
pub(super) fn detail(messages: &Messages, error: &EvidenceError) -> Option<String> {
    match messages.lang() {
        Lang::En => Some(in_english(error)),
        _ => proof_errors::evidence(messages, error),
    }
}

/// Returns the failed check and its sources, in English.
pub(super) fn in_english(error: &EvidenceError) -> String {
    clean(&crate::error_chain::one_line(error))
}
