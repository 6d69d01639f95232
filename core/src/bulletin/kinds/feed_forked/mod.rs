//! Kind `feed-forked`: the publisher's node holds proof that one feed's key signed two trees. Only
//! nodes create it, in any working group.
//!
//! A receiver relies only on the evidence in it, verified against the roster, and on no other
//! field.

mod texts;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::{Context, KindInfo, Labels, SearchKey};
use crate::bulletin::BulletinId;
use crate::bulletin::field::Report;
use crate::bulletin::rules::Rule;
use crate::bulletin::vocabulary::{MsgType, Status};
use crate::follow::{CheckpointClaims, EntryClaims, EquivocationClaims, EquivocationEvidence};
use crate::ids::FeedId;
use crate::proto;
use crate::proto::body::Content;

/// The entry in the registry of kinds.
pub const KIND: KindInfo = KindInfo {
    name: "feed-forked",
    working_group: None,
    msg_types: &[MsgType::Alert],
    informs: true,
    node_only: true,
    labels: Labels { ar: "سجلّ بتاريخين", fr: "Journal à deux histoires", en: "Forked feed" },
    holds: |content| matches!(content, Content::FeedForked(_)),
    validate,
    search_keys,
    sample_json: include_str!("../../../../../examples/bulletins/feed-forked.json"),
};

fn validate(body: &proto::Body, context: &Context<'_>, report: &mut Report) {
    let Some(Content::FeedForked(forked)) = &body.content else { return };
    if Status::read(&context.header.status) == Some(Status::Actual) {
        report.add("header.status", &context.header.status, Rule::SystemStatus);
    }
    if forked.feed.parse::<FeedId>().is_err() {
        report.add("body.feed_forked.feed", &forked.feed, Rule::FeedName);
    }
    let claims = match EquivocationClaims::read(&forked.evidence) {
        Ok(claims) => claims,
        Err(error) => {
            let found = format_args!("{} bytes: {error}", forked.evidence.len());
            return report.add("body.feed_forked.evidence", found, Rule::ForkEvidence);
        }
    };
    let expected = content(&claims, Bytes::new());
    let fits = [
        ("feed", expected.feed == forked.feed),
        ("size", expected.size == forked.size),
        ("root", expected.root == forked.root),
        ("larger_size", expected.larger_size == forked.larger_size),
        ("larger_root", expected.larger_root == forked.larger_root),
        ("other_root", expected.other_root == forked.other_root),
        ("index", expected.index == forked.index),
        ("digest", expected.digest == forked.digest),
        ("other_digest", expected.other_digest == forked.other_digest),
    ];
    for (field, _) in fits.into_iter().filter(|(_, fits)| !fits) {
        report.add(format_args!("body.feed_forked.{field}"), "another one", Rule::AsEvidence);
    }
}

fn search_keys(body: &proto::Body) -> Vec<SearchKey> {
    let Some(Content::FeedForked(forked)) = &body.content else { return Vec::new() };
    vec![SearchKey::new("feed", &forked.feed)]
}

fn content(claims: &EquivocationClaims, evidence: Bytes) -> proto::FeedForked {
    let bytes = Bytes::copy_from_slice;
    let [smaller, larger] = claims.checkpoints();
    let expected = proto::FeedForked {
        feed: smaller.feed.to_string(),
        size: smaller.size,
        root: bytes(&smaller.root.0),
        larger_size: larger.size,
        larger_root: bytes(&larger.root.0),
        evidence,
        ..proto::FeedForked::default()
    };
    match claims {
        EquivocationClaims::Trees(CheckpointClaims { other_root, .. }) => {
            proto::FeedForked { other_root: bytes(&other_root.0), ..expected }
        }
        EquivocationClaims::Entries(EntryClaims { index, one, other }) => proto::FeedForked {
            index: *index,
            digest: bytes(&one.digest.0),
            other_digest: bytes(&other.digest.0),
            ..expected
        },
    }
}

/// Returns the draft with which a node announces an equivocation, with its evidence, to every
/// member of `working_group`.
///
/// Its urgency is Immediate, so it takes the priority lane (docs/protocol.md §11). Otherwise
/// members would keep accepting an untrustworthy feed until a backlog has been transferred.
#[must_use]
pub fn draft(evidence: &EquivocationEvidence, working_group: &str) -> proto::Draft {
    let (claims, file) = (evidence.claims(), Bytes::from(evidence.format()));
    proto::Draft {
        header: Some(proto::Header {
            kind: KIND.name.to_owned(),
            id: id(&file).to_string(),
            topic: format!("{working_group}.feeds"),
            status: Status::System.as_str().to_owned(),
            msg_type: MsgType::Alert.as_str().to_owned(),
            handling: Some(proto::Handling { tlp: "TLP:GREEN".to_owned(), ..proto::Handling::default() }),
            urgency: "Immediate".to_owned(),
            severity: "Severe".to_owned(),
            ..proto::Header::default()
        }),
        body: Some(proto::Body {
            categories: vec!["Infra".to_owned()],
            certainty: "Observed".to_owned(),
            texts: texts::of(&claims),
            content: Some(Content::FeedForked(content(&claims, file))),
            ..proto::Body::default()
        }),
    }
}

/// Returns the id of the bulletin that carries this evidence. The id depends only on the evidence,
/// also across members, so that each member announces it at most once.
#[must_use]
pub fn id(evidence: &[u8]) -> BulletinId {
    let mut random = [0; 10];
    random.copy_from_slice(&Sha256::digest(evidence)[..10]);
    BulletinId::new(0, &random)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::bulletin::prepare::tests::{faults, sample};

    /// Returns the sample; with evidence of two entries if `entries` is true.
    fn forked(entries: bool, change: impl Fn(&mut proto::FeedForked)) -> proto::Draft {
        let mut draft = sample("feed-forked");
        if let Some(Content::FeedForked(forked)) = draft.body.as_mut().unwrap().content.as_mut() {
            if entries {
                let file = include_bytes!("../../../../../tests/golden/equivocation-two-entries.txt");
                *forked = content(&EquivocationClaims::read(file).unwrap(), Bytes::from_static(file));
                assert!(forked.other_root.is_empty() && forked.digest.len() == 32);
            }
            change(forked);
        }
        draft
    }

    #[test]
    fn feed_forked_fields_must_match_its_evidence() {
        type Change = (&'static str, fn(&mut proto::FeedForked));
        let changes: [Change; 10] = [
            ("feed", |forked| forked.feed = "ne.rabat.example/feed/9".into()),
            ("size", |forked| forked.size += 1),
            ("root", |forked| forked.root = Bytes::from_static(&[7; 32])),
            ("larger_size", |forked| forked.larger_size += 1),
            ("larger_root", |forked| forked.larger_root.clear()),
            ("other_root", |forked| forked.other_root = Bytes::from_static(&[7; 32])),
            ("evidence", |forked| forked.evidence.truncate(100)),
            ("index", |forked| forked.index += 1),
            ("digest", |forked| forked.digest = Bytes::from_static(&[7; 32])),
            ("other_digest", |forked| forked.other_digest = Bytes::from_static(&[7; 32])),
        ];
        for entries in [false, true] {
            assert_eq!(faults(&forked(entries, |_| ())), [""; 0]);
            for (field, change) in changes {
                assert_eq!(faults(&forked(entries, change)), [format!("body.feed_forked.{field}")], "{entries}");
            }
            let mut actual = forked(entries, |_| ());
            actual.header.as_mut().unwrap().status = "Actual".to_owned();
            assert_eq!(faults(&actual), ["header.status"]);
        }
        // Checkpoints of two different feeds prove nothing, whatever else the evidence holds.
        let two_feeds = forked(true, |forked| {
            let file = String::from_utf8(forked.evidence.to_vec()).unwrap();
            let trees = include_str!("../../../../../tests/golden/equivocation-two-sizes.txt");
            let checkpoint = file.lines().find(|line| line.starts_with("checkpoint ")).unwrap();
            let other = trees.lines().find_map(|line| line.strip_prefix("smaller ")).unwrap();
            let note = String::from_utf8(base64(other)).unwrap().replace("ma.rabat", "ne.rabat");
            forked.evidence = file.replacen(checkpoint, &format!("checkpoint {}", base64_of(&note)), 1).into();
        });
        assert_eq!(faults(&two_feeds), ["body.feed_forked.evidence"]);
    }

    fn base64(text: &str) -> Vec<u8> {
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).unwrap()
    }

    fn base64_of(text: &str) -> String {
        base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text)
    }

    #[test]
    fn equal_evidence_has_equal_id() {
        assert_eq!(id(b"one"), id(b"one"));
        assert_ne!(id(b"one"), id(b"two"));
    }
}
