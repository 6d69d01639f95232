//! Kind `feed-closed`: an epoch of the publisher's feed is closed. Only nodes create it, in any
//! working group.

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::{Context, KindInfo, Labels, SearchKey};
use crate::bulletin::BulletinId;
use crate::bulletin::field::Report;
use crate::bulletin::rules::Rule;
use crate::bulletin::vocabulary::{MsgType, Status};
use crate::feed::checkpoint::Checkpoint;
use crate::ids::{FeedId, Hash};
use crate::proto;
use crate::proto::body::Content;

/// The entry in the registry of kinds.
pub const KIND: KindInfo = KindInfo {
    name: "feed-closed",
    working_group: None,
    msg_types: &[MsgType::Alert],
    informs: true,
    node_only: true,
    labels: Labels { ar: "إغلاق سجلّ", fr: "Clôture d'un journal", en: "Feed closed" },
    holds: |content| matches!(content, Content::FeedClosed(_)),
    validate,
    search_keys,
    sample_json: include_str!("../../../../../examples/bulletins/feed-closed.json"),
};

fn validate(body: &proto::Body, context: &Context<'_>, report: &mut Report) {
    let Some(Content::FeedClosed(closed)) = &body.content else { return };
    if Status::read(&context.header.status) == Some(Status::Actual) {
        report.add("header.status", &context.header.status, Rule::SystemStatus);
    }
    let feed = closed.feed.parse::<FeedId>().ok();
    if feed.is_none_or(|feed| feed.member.as_str() != context.header.member) {
        report.add("body.feed_closed.feed", &closed.feed, Rule::FeedOfPublisher);
    }
    if closed.root.len() != 32 {
        report.add("body.feed_closed.root", format_args!("{} bytes", closed.root.len()), Rule::Bytes32);
    }
}

fn search_keys(body: &proto::Body) -> Vec<SearchKey> {
    let Some(Content::FeedClosed(closed)) = &body.content else { return Vec::new() };
    vec![SearchKey::new("feed", &closed.feed)]
}

/// Returns the draft with which a node announces `tree` as the longest known tree of a closed
/// epoch. Its audience is every member of `working_group`.
#[must_use]
pub fn draft(tree: &Checkpoint, working_group: &str) -> proto::Draft {
    let Checkpoint { feed, size, root } = tree;
    let text = |language: &str, headline: String, description: &str| proto::Text {
        language: language.to_owned(),
        headline,
        description: description.to_owned(),
        instruction: String::new(),
    };
    let texts = vec![
        text(
            "ar",
            format!("أُغلق السجلّ {feed} عند {size} قيدًا"),
            "لم يعد مؤكدًا أن العقدة تملك كل ما وقّعته في هذا السجلّ؛ وهي تنشر في الحقبة التالية. ما نُشر فيه يبقى صحيحًا.",
        ),
        text(
            "fr",
            format!("Le journal {feed} est clos à {size} entrées"),
            "Il n'était plus certain que le nœud possède tout ce qu'il y avait signé ; il publie désormais dans l'époque suivante. Ce qui y fut publié reste valable.",
        ),
        text(
            "en",
            format!("The feed {feed} is closed at {size} entries"),
            "It was no longer certain that the node holds all that it had signed there; it publishes in the next epoch now. What was published in it stays valid.",
        ),
    ];
    let content = proto::FeedClosed { feed: feed.to_string(), size: *size, root: Bytes::copy_from_slice(&root.0) };
    proto::Draft {
        header: Some(proto::Header {
            kind: KIND.name.to_owned(),
            id: id(tree).to_string(),
            topic: format!("{working_group}.feeds"),
            status: Status::System.as_str().to_owned(),
            msg_type: MsgType::Alert.as_str().to_owned(),
            handling: Some(proto::Handling { tlp: "TLP:GREEN".to_owned(), ..proto::Handling::default() }),
            urgency: "Past".to_owned(),
            severity: "Minor".to_owned(),
            ..proto::Header::default()
        }),
        body: Some(proto::Body {
            categories: vec!["Infra".to_owned()],
            certainty: "Observed".to_owned(),
            texts,
            content: Some(Content::FeedClosed(content)),
            ..proto::Body::default()
        }),
    }
}

/// Returns the id of the bulletin that announces `tree`. The id depends only on the tree, so that
/// each tree is announced once.
#[must_use]
pub fn id(tree: &Checkpoint) -> BulletinId {
    let Checkpoint { feed, size, root: Hash(root) } = tree;
    let hash = Sha256::new().chain_update(feed.to_string()).chain_update(size.to_be_bytes()).chain_update(root);
    let mut random = [0; 10];
    random.copy_from_slice(&hash.finalize()[..10]);
    BulletinId::new(0, &random)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::bulletin::prepare;
    use crate::bulletin::prepare::tests::{defaults, faults, sample};

    fn tree(feed: &str) -> Checkpoint {
        Checkpoint { feed: feed.parse().unwrap(), size: 7, root: Hash([5; 32]) }
    }

    #[test]
    fn feed_closed_draft_is_valid_and_has_a_stable_id() {
        let draft = draft(&tree("ne.rabat.example/feed/1"), "information");
        let valid = prepare(&draft, &defaults(), [1; 16]).unwrap();
        assert_eq!(valid.header.id, id(&tree("ne.rabat.example/feed/1")));
        assert_ne!(valid.header.id, id(&tree("ne.rabat.example/feed/2")));
        assert_eq!(valid.header.status, Status::System);
    }

    #[test]
    fn feed_closed_names_the_publishers_own_feed_and_is_not_actual() {
        let foreign = draft(&tree("ma.rabat.example/feed/1"), "information");
        assert_eq!(faults(&foreign), ["body.feed_closed.feed"]);
        let mut draft = sample("feed-closed");
        draft.header.as_mut().unwrap().status = "Actual".to_owned();
        if let Some(Content::FeedClosed(closed)) = draft.body.as_mut().unwrap().content.as_mut() {
            closed.root = Bytes::from_static(b"short");
        }
        assert_eq!(faults(&draft), ["header.status", "body.feed_closed.root"]);
    }
}
