//! Errors of proofs, signatures and rosters in the reader's language.
//!
//! In scope: the reasons that `verify` and `roster verify` give to experts. Their English texts are
//! those of `core`; the other catalogues have them as `detail-<error>`. Out of scope: the sentence
//! for other readers (`verify::faults`).

use barid_core::evidence::EvidenceError;
use barid_core::evidence::zip::ZipError;
use barid_core::feed::checkpoint::CheckpointError;
use barid_core::feed::cosignature::CosignatureError;
use barid_core::feed::custody::CustodyError;
use barid_core::feed::note::NoteError;
use barid_core::feed::tlog_proof::TlogProofError;
use barid_core::feed::tree::ProofError;
use barid_core::follow::EquivocationError;
use barid_core::limits::{EVIDENCE_BYTES_MAX, EVIDENCE_PARTS_MAX, NOTE_SIGNATURES_MAX};
use barid_core::roster::{ChainError, RosterError};
use fluent_bundle::FluentArgs;

use super::messages::{Arg, Messages};

/// Returns why a file is not evidence, if its error has a cause.
pub(super) fn evidence(messages: &Messages, error: &EvidenceError) -> Option<String> {
    match error {
        EvidenceError::Zip(error) => zip(messages, *error),
        EvidenceError::Proof(error) => proof(messages, error),
        EvidenceError::Consistency { source, .. } => tree(messages, source),
        EvidenceError::Note(error) => note(messages, error),
        EvidenceError::Cosignature(error) => cosignature(messages, error),
        EvidenceError::Custody { source, .. } => custody(messages, source),
        EvidenceError::Rosters(error) => chain(messages, error),
        EvidenceError::Roster(error) => roster(messages, error),
        _ => None,
    }
}

/// Returns why a file does not prove an equivocation.
pub(super) fn equivocation(messages: &Messages, error: &EquivocationError) -> Option<String> {
    match error {
        EquivocationError::Form(part) => form(messages, "file", part),
        EquivocationError::Note(error) => note(messages, error),
        EquivocationError::Checkpoint(error) => checkpoint(messages, error),
        EquivocationError::TwoFeeds(one, other) => find(messages, "two-feeds", &[&one.to_string(), &other.to_string()]),
        EquivocationError::NotProven => find(messages, "not-proven", &[]),
    }
}

/// Returns why a roster does not follow.
pub(super) fn chain(messages: &Messages, error: &ChainError) -> Option<String> {
    match error {
        ChainError::Roster(error) => roster(messages, error),
        ChainError::Threshold { version, whose, found, needed } => {
            let id = match *whose {
                "its own" => "threshold-own",
                "the version before's" => "threshold-before",
                _ => "threshold-held",
            };
            find(messages, id, &[&version.to_string(), &found.to_string(), &needed.to_string()])
        }
        ChainError::Gap { held, found } => find(messages, "gap", &[&found.to_string(), &held.to_string()]),
        ChainError::Previous(version) => find(messages, "previous", &[&version.to_string()]),
        ChainError::InvariantChanged { version, field, was, is } => {
            find(messages, "invariant-changed", &[&version.to_string(), field, was, is])
        }
        ChainError::Fork { version, .. } => find(messages, "fork", &[&version.to_string()]),
    }
}

fn roster(messages: &Messages, error: &RosterError) -> Option<String> {
    match error {
        RosterError::Note(_) => find(messages, "roster-note", &[]),
        RosterError::Toml(_) => find(messages, "roster-toml", &[]),
        RosterError::Field { field, found, .. } => find(messages, "roster-field", &[field, found]),
        RosterError::Twice { field, other, .. } => find(messages, "roster-twice", &[field, other]),
    }
}

fn zip(messages: &Messages, error: ZipError) -> Option<String> {
    match error {
        ZipError::TooLarge(bytes) => {
            find(messages, "too-large", &[&bytes.to_string(), &EVIDENCE_BYTES_MAX.to_string()])
        }
        ZipError::TooMany => find(messages, "zip-too-many", &[&EVIDENCE_PARTS_MAX.to_string()]),
        ZipError::Name => find(messages, "zip-name", &[]),
        ZipError::Form => find(messages, "zip-form", &[]),
    }
}

fn proof(messages: &Messages, error: &TlogProofError) -> Option<String> {
    match error {
        TlogProofError::TooLarge(bytes) => find(messages, "proof-too-large", &[&bytes.to_string()]),
        TlogProofError::Form(part) => form(messages, "proof", part),
        TlogProofError::Checkpoint(error) => checkpoint(messages, error),
        TlogProofError::Inclusion(error) => tree(messages, error),
    }
}

fn tree(messages: &Messages, error: &ProofError) -> Option<String> {
    match error {
        ProofError::Index { index, size } => find(messages, "tree-index", &[&index.to_string(), &size.to_string()]),
        ProofError::Sizes { old, new } => find(messages, "tree-sizes", &[&old.to_string(), &new.to_string()]),
        ProofError::Length(hashes) => find(messages, "tree-length", &[&hashes.to_string()]),
        ProofError::Root => find(messages, "tree-root", &[]),
        ProofError::OldRoot => find(messages, "tree-old-root", &[]),
    }
}

fn checkpoint(messages: &Messages, error: &CheckpointError) -> Option<String> {
    match error {
        CheckpointError::Note(error) => note(messages, error),
        CheckpointError::Text(part) => form(messages, "checkpoint", part),
        CheckpointError::NoKeys(feed) => find(messages, "no-keys", &[&feed.to_string()]),
        CheckpointError::KeyName { feed, name } => find(messages, "key-of-feed", &[name, &feed.to_string()]),
    }
}

fn cosignature(messages: &Messages, error: &CosignatureError) -> Option<String> {
    match error {
        CosignatureError::Checkpoint(error) => checkpoint(messages, error),
        CosignatureError::KeyName(name) => find(messages, "mirror-key", &[name]),
        CosignatureError::Time => find(messages, "cosignature-time", &[]),
        CosignatureError::Heartbeat => find(messages, "heartbeat", &[]),
        CosignatureError::Unsigned => find(messages, "cosignature-unsigned", &[]),
    }
}

fn custody(messages: &Messages, error: &CustodyError) -> Option<String> {
    match error {
        CustodyError::Note(error) => note(messages, error),
        CustodyError::Text(part) => form(messages, "custody", part),
        CustodyError::KeyName(name) => find(messages, "custody-key", &[name]),
        CustodyError::Unsigned => find(messages, "custody-unsigned", &[]),
    }
}

fn note(messages: &Messages, error: &NoteError) -> Option<String> {
    match error {
        NoteError::TooLarge { max, found } => find(messages, "too-large", &[&found.to_string(), &max.to_string()]),
        NoteError::NotText => find(messages, "note-not-text", &[]),
        NoteError::Form => find(messages, "note-form", &[]),
        NoteError::TooManySignatures => find(messages, "note-signatures", &[&NOTE_SIGNATURES_MAX.to_string()]),
        NoteError::SignatureLine(line) => find(messages, "note-line", &[&line.to_string()]),
        NoteError::Unsigned(name) => find(messages, "note-unsigned", &[name]),
        NoteError::SignedTwice(name) => find(messages, "note-twice", &[name]),
        NoteError::BadSignature(name) => find(messages, "note-signature", &[name]),
        NoteError::Key(_) => find(messages, "note-key", &[]),
    }
}

/// Returns that a part of a proof is not valid.
fn form(messages: &Messages, whole: &str, part: &str) -> Option<String> {
    find(messages, &format!("form-{whole}"), &[&messages.term("detail-part", part)])
}

/// Returns the message `detail-<id>` with values `v1`, `v2` …, if the catalogue has it.
fn find(messages: &Messages, id: &str, values: &[&str]) -> Option<String> {
    let mut args = FluentArgs::new();
    for (place, value) in (1..).zip(values) {
        args.set(format!("v{place}"), value.arg());
    }
    messages.find(&format!("detail-{id}"), Some(&args))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::messages::Lang;

    #[test]
    fn causes_are_localized_with_their_values() {
        let feed = || "ma.rabat.example/feed/1".parse::<barid_core::ids::FeedId>().unwrap();
        let name = || "name/one".to_owned();
        let notes = [
            NoteError::TooLarge { max: 7, found: 8 },
            NoteError::NotText,
            NoteError::Form,
            NoteError::TooManySignatures,
            NoteError::SignatureLine(3),
            NoteError::Unsigned(name()),
            NoteError::SignedTwice(name()),
            NoteError::BadSignature(name()),
        ];
        let trees = [
            ProofError::Index { index: 1, size: 2 },
            ProofError::Sizes { old: 1, new: 2 },
            ProofError::Length(3),
            ProofError::Root,
            ProofError::OldRoot,
        ];
        let checkpoints = [
            CheckpointError::Text("origin"),
            CheckpointError::NoKeys(feed()),
            CheckpointError::KeyName { feed: feed(), name: name() },
        ];
        let mut errors: Vec<EvidenceError> = notes.into_iter().map(EvidenceError::Note).collect();
        errors.extend(trees.map(|error| EvidenceError::Proof(TlogProofError::Inclusion(error))));
        errors.extend(checkpoints.map(|error| EvidenceError::Proof(TlogProofError::Checkpoint(error))));
        errors.extend([TlogProofError::TooLarge(9), TlogProofError::Form("index")].map(EvidenceError::Proof));
        let zips = [ZipError::TooLarge(9), ZipError::TooMany, ZipError::Name, ZipError::Form];
        errors.extend(zips.map(EvidenceError::Zip));
        let cosignatures = [
            CosignatureError::KeyName(name()),
            CosignatureError::Time,
            CosignatureError::Heartbeat,
            CosignatureError::Unsigned,
        ];
        errors.extend(cosignatures.map(EvidenceError::Cosignature));
        let custody = [CustodyError::Text("time"), CustodyError::KeyName(name()), CustodyError::Unsigned];
        let member = || "ly".parse::<barid_core::ids::Member>().unwrap();
        errors.extend(custody.map(|source| EvidenceError::Custody { member: member(), source }));
        let threshold = |whose| ChainError::Threshold { version: 2, whose, found: 1, needed: 2 };
        let changed = ChainError::InvariantChanged { version: 2, field: name(), was: "one".into(), is: "two".into() };
        let field = RosterError::Field { field: name(), found: "x".into(), expected: "one" };
        let chains = [
            threshold("its own"),
            threshold("the version before's"),
            threshold("the held version's"),
            ChainError::Gap { held: 1, found: 3 },
            ChainError::Previous(2),
            changed,
            ChainError::Fork { version: 2, held: Default::default(), other: Default::default() },
            RosterError::Note(name()).into(),
            RosterError::Toml(name()).into(),
            field.into(),
            RosterError::Twice { field: name(), other: name(), what: "key" }.into(),
        ];
        errors.extend(chains.map(EvidenceError::Rosters));
        for lang in [Lang::Fr, Lang::Ar] {
            let messages = Messages::new(lang);
            for error in &errors {
                let text = evidence(&messages, error).unwrap_or_else(|| panic!("{lang:?} lacks {error:?}"));
                for english in ["the ", "not ", "detail-"] {
                    assert!(!text.contains(english), "{lang:?}: {text}");
                }
            }
            for error in [
                EquivocationError::Form("heading"),
                EquivocationError::Note(NoteError::Form),
                EquivocationError::Checkpoint(CheckpointError::Text("size")),
                EquivocationError::TwoFeeds(feed(), feed()),
                EquivocationError::NotProven,
            ] {
                assert!(equivocation(&messages, &error).is_some(), "{lang:?} lacks {error:?}");
            }
            let text = evidence(&messages, &EvidenceError::Note(NoteError::BadSignature(name()))).unwrap();
            assert!(text.contains("name/one"), "{text}");
        }
        assert_eq!(evidence(&Messages::new(Lang::En), &EvidenceError::Note(NoteError::Form)), None);
    }
}
