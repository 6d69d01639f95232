//! Kind `feed-forked`: the publisher's node has proof that a feed's key signed two histories. Made by nodes, in any working group; people
//! publish none.
//!
//! Whoever reads one believes the evidence that it carries, by the roster, and nothing else in it.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::{Context, KindInfo, Labels, SearchKey};
use crate::bulletin::BulletinId;
use crate::bulletin::field::Report;
use crate::bulletin::vocabulary::{MsgType, Status};
use crate::follow::{Claims, Equivocation};
use crate::names::FeedId;
use crate::proto;
use crate::proto::body::Content;

/// The kind.
pub const KIND: KindInfo = KindInfo {
    name: "feed-forked",
    working_group: None,
    msg_types: &[MsgType::Alert],
    informs: true,
    by_nodes: true,
    labels: Labels { ar: "سجلّ بتاريخين", fr: "Journal à deux histoires", en: "Feed with two histories" },
    holds: |content| matches!(content, Content::FeedForked(_)),
    validate,
    search_keys,
    sample_json: include_str!("../../../../../examples/bulletins/feed-forked.json"),
};

fn validate(body: &proto::Body, context: &Context<'_>, report: &mut Report) {
    let Some(Content::FeedForked(forked)) = &body.content else { return };
    if Status::read(&context.header.status) == Some(Status::Actual) {
        report.add("header.status", &context.header.status, "System: it is about the network itself");
    }
    if forked.feed.parse::<FeedId>().is_err() {
        report.add("body.feed_forked.feed", &forked.feed, "a feed such as ly.rabat.example/feed/1");
    }
    let claims = match Claims::read(&forked.evidence) {
        Ok(claims) => claims,
        Err(error) => {
            let found = format_args!("{} bytes: {error}", forked.evidence.len());
            return report.add("body.feed_forked.evidence", found, "a file that proves two histories");
        }
    };
    let said = content(&claims, Bytes::new());
    let fits = [
        ("feed", said.feed == forked.feed),
        ("size", said.size == forked.size),
        ("root", said.root == forked.root),
        ("larger_size", said.larger_size == forked.larger_size),
        ("larger_root", said.larger_root == forked.larger_root),
        ("other_root", said.other_root == forked.other_root),
    ];
    for (field, _) in fits.into_iter().filter(|(_, fits)| !fits) {
        report.add(format_args!("body.feed_forked.{field}"), "another one", "what the evidence says");
    }
}

fn search_keys(body: &proto::Body) -> Vec<SearchKey> {
    let Some(Content::FeedForked(forked)) = &body.content else { return Vec::new() };
    vec![SearchKey::new("feed", &forked.feed)]
}

fn content(claims: &Claims, evidence: Bytes) -> proto::FeedForked {
    let Claims { smaller, larger, other_root } = claims;
    proto::FeedForked {
        feed: smaller.feed.to_string(),
        size: smaller.size,
        root: Bytes::copy_from_slice(&smaller.root.0),
        larger_size: larger.size,
        larger_root: Bytes::copy_from_slice(&larger.root.0),
        other_root: Bytes::copy_from_slice(&other_root.0),
        evidence,
    }
}

/// The draft by which a node tells every member of `working_group` of two histories, with what proves them.
#[must_use]
pub fn draft(evidence: &Equivocation, working_group: &str) -> proto::Draft {
    let (feed, size) = (evidence.feed(), evidence.smaller.checkpoint.size);
    let text = |language: &str, headline: String, description: &str, instruction: String| proto::Text {
        language: language.to_owned(),
        headline,
        description: description.to_owned(),
        instruction,
    };
    let texts = vec![
        text(
            "ar",
            format!("للسجلّ {feed} تاريخان يفترقان قبل القيد {size}"),
            "وقّع مفتاح السجلّ شجرتين لا تمتدّ إحداهما من الأخرى: نُسخت الآلة، أو استُعيدت نسخة قديمة، أو سُرق المفتاح. الدليل مرفق.",
            format!("لا يُتابَع السجلّ حتى يقرّر المشغّل. للتحقق: barid feed evidence {feed} ثم barid verify."),
        ),
        text(
            "fr",
            format!("Le journal {feed} a deux histoires, qui diffèrent avant l'entrée {size}"),
            "La clé du journal a signé deux arbres dont aucun ne prolonge l'autre : une machine fut copiée, une sauvegarde continuée, ou la clé volée. La preuve est jointe.",
            format!(
                "Le journal n'est plus suivi tant qu'un opérateur n'a pas décidé. Vérifier : barid feed evidence {feed}, puis barid verify."
            ),
        ),
        text(
            "en",
            format!("The feed {feed} has two histories, which differ before entry {size}"),
            "The feed's key has signed two trees of which neither extends the other: a machine was copied, a backup was continued, or the key is stolen. The evidence is enclosed.",
            format!(
                "The feed is not followed until an operator decides. To verify: barid feed evidence {feed}, then barid verify."
            ),
        ),
    ];
    let claims = Claims {
        smaller: evidence.smaller.checkpoint.clone(),
        larger: evidence.larger.checkpoint.clone(),
        other_root: evidence.other_root,
    };
    let file = Bytes::from(evidence.format());
    proto::Draft {
        header: Some(proto::Header {
            kind: KIND.name.to_owned(),
            id: id(&file).to_string(),
            topic: format!("{working_group}.feeds"),
            status: Status::System.as_str().to_owned(),
            msg_type: MsgType::Alert.as_str().to_owned(),
            handling: Some(proto::Handling { tlp: "TLP:GREEN".to_owned(), ..proto::Handling::default() }),
            urgency: "Expected".to_owned(),
            severity: "Severe".to_owned(),
            ..proto::Header::default()
        }),
        body: Some(proto::Body {
            categories: vec!["Infra".to_owned()],
            certainty: "Observed".to_owned(),
            texts,
            content: Some(Content::FeedForked(content(&claims, file))),
            ..proto::Body::default()
        }),
    }
}

/// The id of the bulletin that carries this evidence: the same every time and at every member, so that each tells of it once at most.
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

    fn forked(change: impl Fn(&mut proto::FeedForked)) -> proto::Draft {
        let mut draft = sample("feed-forked");
        if let Some(Content::FeedForked(forked)) = draft.body.as_mut().unwrap().content.as_mut() {
            change(forked);
        }
        draft
    }

    #[test]
    fn what_it_says_is_what_its_evidence_says() {
        assert_eq!(faults(&forked(|_| ())), [""; 0]);
        let named = |change: fn(&mut proto::FeedForked)| faults(&forked(change));
        assert_eq!(named(|forked| forked.feed = "ne.rabat.example/feed/9".into()), ["body.feed_forked.feed"]);
        assert_eq!(named(|forked| forked.size += 1), ["body.feed_forked.size"]);
        assert_eq!(named(|forked| forked.root = Bytes::from_static(&[7; 32])), ["body.feed_forked.root"]);
        assert_eq!(named(|forked| forked.larger_size += 1), ["body.feed_forked.larger_size"]);
        assert_eq!(named(|forked| forked.larger_root.clear()), ["body.feed_forked.larger_root"]);
        assert_eq!(named(|forked| forked.other_root.clear()), ["body.feed_forked.other_root"]);
        assert_eq!(named(|forked| forked.evidence.truncate(100)), ["body.feed_forked.evidence"]);
        let mut actual = forked(|_| ());
        actual.header.as_mut().unwrap().status = "Actual".to_owned();
        assert_eq!(faults(&actual), ["header.status"]);
    }

    #[test]
    fn one_piece_of_evidence_has_one_id() {
        assert_eq!(id(b"one"), id(b"one"));
        assert_ne!(id(b"one"), id(b"two"));
    }
}
