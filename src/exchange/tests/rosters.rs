//! How a node handles rosters and keys that peers send.

use barid_core::feed::note::{Algorithm, Note, SigningKey};
use barid_core::roster::RosterChain;
use bytes::Bytes;

use super::world::{Node, alarms, connect, governor, honest, key, member, roster, until};
use crate::exchange::roster_sync::adopt_rosters;

/// A roster with changed text, under another signature.
fn rewritten(note: &Bytes, by: &SigningKey, change: impl FnOnce(String) -> String) -> Bytes {
    let text = change(Note::parse(note).unwrap().text);
    Note::sign(&text, by).unwrap().to_bytes().into()
}

fn second(node: &Node) -> Bytes {
    roster(2, Some(node.rosters.load().newest().text_hash()))
}

async fn alarms_after_adopting(node: &Node, note: Bytes) -> Vec<String> {
    adopt_rosters(&node.exchange.shared, &member("tn"), &[note]).await;
    alarms(node)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_roster_raises_no_alarm_and_signed_fork_does() {
    let ma = Node::start("ma");
    let held = second(&ma);
    assert!(alarms_after_adopting(&ma, held.clone()).await.is_empty());
    assert_eq!(ma.rosters.load().newest().version(), 2);
    let stranger = SigningKey::from_seed("governors.example/one", Algorithm::Ed25519, [9; 32]).unwrap();
    let own_governor =
        |text: String| text.replace(&governor().verifier().to_string(), &stranger.verifier().to_string());
    assert!(alarms_after_adopting(&ma, rewritten(&held, &stranger, own_governor)).await.is_empty());
    let rival = rewritten(&held, &governor(), |text| text.replacen("ar = \"x\"", "ar = \"y\"", 1));
    let alarms = alarms_after_adopting(&ma, rival).await;
    assert!(alarms.len() == 1 && alarms[0].contains("two rosters of version 2"), "{alarms:?}");
    assert_eq!(ma.rosters.load().notes().last().unwrap().1, &held, "the held one stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roster_that_breaks_invariants_raises_alarm() {
    let ma = Node::start("ma");
    let other = SigningKey::from_seed("ly.rabat.example/feed/1", Algorithm::Ed25519, [9; 32]).unwrap();
    let settled = key("ly", "feed/1", Algorithm::Ed25519).verifier().to_string();
    let taking_back =
        rewritten(&second(&ma), &governor(), |text| text.replace(&settled, &other.verifier().to_string()));
    let alarms = alarms_after_adopting(&ma, taking_back).await;
    assert!(alarms.len() == 1 && alarms[0].contains("epoch 1"), "{alarms:?}");
    assert_eq!(ma.rosters.load().newest().version(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cosignatures_of_retired_key_are_not_persisted() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    let mirror = key("ly", "mirror", Algorithm::CosignatureEd25519).verifier().to_string();
    let retired = rewritten(&second(&ma), &governor(), |text| {
        text.replace(&format!("\"{mirror}\""), &format!("\"{mirror}\", retired = 2025-06-01T00:00:00Z"))
    });
    for node in [&ma, &ly] {
        let mut chain = RosterChain::clone(&node.rosters.load());
        assert!(chain.extend(&retired).unwrap());
        node.rosters.replace(chain);
    }
    let _cable = connect(&ma, &ly, honest(), honest());
    for size in 1..=2 {
        ma.publish(1, |_| {}).await;
        until("ly has custody of it", || !ma.store.custody_covering(&ma.feed(), size - 1).unwrap().is_empty()).await;
    }
    assert!(ma.store.cosigned_newest(&ma.feed()).unwrap().iter().all(|note| note.cosigner != ly.me));
    // In the other direction the key is in force.
    ly.publish(1, |_| {}).await;
    until("ma's cosignature is stored", || {
        ly.store.cosigned_newest(&ly.feed()).unwrap().iter().any(|note| note.cosigner == ma.me)
    })
    .await;
}
