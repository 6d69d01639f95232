//! Bounds on the records and alarms that a peer can cause.

use barid_core::bulletin::ValidBulletin;
use barid_core::envelope;
use barid_core::proto;
use barid_core::proto::frame::Frame;
use bytes::Bytes;

use super::malformed::{headed, next_follow};
use super::world::{Actor, Node, alarms, bulletin, connect, feed, honest, member, roster, until};
use crate::exchange::roster_sync::adopt_rosters;
use crate::telemetry::alarms::{Alarm, Severity};
use crate::telemetry::captured::CapturedRecords;
use crate::telemetry::{INDIVIDUAL_RECORDS_MAX, event_counts};

fn fault(feed: &str, reason: &str, detail: &str) -> Frame {
    Frame::Fault(proto::Fault { feed: feed.into(), reason: reason.into(), detail: detail.into() })
}

/// An entry with these exact bytes, as a node without checks would publish it.
fn unchecked(envelope: Bytes) -> ValidBulletin {
    let digest = envelope::digest(&envelope);
    ValidBulletin { envelope, digest, ..bulletin(&member("ly"), &|_| {}) }
}

#[tokio::test]
async fn faults_of_unrelated_feeds_are_counted_as_malformed_frames() {
    let captured = CapturedRecords::start();
    let (ly, before) = (Node::start("ly"), event_counts().get(&("frame-rejected", "malformed")).copied().unwrap_or(0));
    let mut ma = Actor::handshake(&ly, "ma").await;
    next_follow(&mut ma).await;
    let long = format!("\u{1b}[2J\nforged {}", "x".repeat(1 << 20));
    for n in 0..100 {
        let strange = [long.clone(), feed("tn").to_string(), format!("ma.rabat.example/feed/{}", 7 + n)];
        for feed in strange {
            ma.send(fault(&feed, "bad-root", &long)).await;
        }
    }
    let all = || event_counts().get(&("frame-rejected", "malformed")).copied().unwrap_or(0) - before;
    until("all are counted", || all() >= 300).await;
    let records = captured.records();
    assert!(
        records.iter().all(|record| record.event != "fault-received"),
        "{:?}",
        records.iter().map(|r| &r.event).collect::<Vec<_>>()
    );
    let singly =
        records.iter().filter(|record| (record.event.as_str(), record.actor.as_str()) == ("frame-rejected", "ma"));
    assert_eq!(singly.count() as u64, INDIVIDUAL_RECORDS_MAX);
    // The link continues.
    ma.send(Frame::TreeHeads(proto::TreeHeads::default())).await;
    assert!(ly.exchange.peers().linked(&member("ma")));
}

#[tokio::test]
async fn faults_of_requested_feed_are_recorded_with_protocol_reason() {
    let captured = CapturedRecords::start();
    let ly = Node::start("ly");
    let mut ma = Actor::handshake(&ly, "ma").await;
    for (reason, recorded) in [("busy", "busy"), ("\u{1b}[2J\nalarm", "unknown"), ("elsewhere", "")] {
        next_follow(&mut ma).await;
        ma.send(fault(&feed("ma").to_string(), reason, "no")).await;
        let found =
            || captured.records().iter().any(|record| record.event == "fault-received" && record.reason == recorded);
        if !recorded.is_empty() {
            until("it is recorded", found).await;
        }
    }
    let faults: Vec<String> =
        captured.take().into_iter().filter(|record| record.starts_with("fault-received ")).collect();
    assert_eq!(
        faults,
        ["fault-received busy ma ma.rabat.example/feed/1", "fault-received unknown ma ma.rabat.example/feed/1"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn undecodable_entries_raise_one_alarm_beside_the_fork_alarm() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    let _cable = connect(&ma, &ly, honest(), honest());
    let liar = Actor::handshake(&ma, "tn").await;
    ly.publish(3, |_| {}).await;
    until("ma holds ly's", || ma.size(&ly.feed()) == 3).await;
    let nonsense = |n: usize| unchecked(Bytes::from(format!("no envelope {n}")));
    ly.committer.publish((0..960).map(nonsense).collect()).await.unwrap();
    until("ma holds them", || ma.size(&ly.feed()) == 963).await;
    liar.send(super::head("ly", 2)).await;
    until("ly's feed is stopped", || ma.exchange.stopped_feeds().contains(&ly.feed())).await;
    until("the evidence is stored", || !ma.store.forks().unwrap().is_empty()).await;
    let active = ma.exchange.alarms().snapshot();
    assert_eq!(active.len(), 2, "{active:?}");
    let [fork, entries] = [&active[0], &active[1]];
    assert!(matches!(&fork.alarm, Alarm::Fork { feed, .. } if *feed == ly.feed()), "{fork:?}");
    assert_eq!((fork.alarm.severity(), entries.alarm.severity()), (Severity::Critical, Severity::Warning));
    let newest = Alarm::Entry { finding: "undecodable-header", feed: ly.feed(), index: 962, by: ly.me.clone() };
    assert_eq!((&entries.alarm, entries.count), (&newest, 960));
    until("the evidence is still stored", || !ma.store.forks().unwrap().is_empty()).await;
    // The decision clears the fork's alarm, and the other one stays.
    assert!(ma.exchange.resume_feed(&ly.feed()).await.unwrap());
    assert_eq!(ma.exchange.alarms().snapshot().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_roster_raises_alarm_of_newest_version() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    let _cable = connect(&ma, &ly, honest(), honest());
    let naming = |version: u64| unchecked(headed(|header| header.roster_version = version));
    // Waits until publishing is open.
    ma.publish(0, |_| {}).await;
    ma.committer.publish(vec![naming(2), naming(9), naming(3)]).await.unwrap();
    until("ly's operators know", || !alarms(&ly).is_empty()).await;
    let missing = |version| vec![Alarm::RosterMissing { member: ma.me.clone(), version }];
    let active = || ly.exchange.alarms().snapshot().into_iter().map(|active| active.alarm).collect::<Vec<_>>();
    until("of the newest version", || active() == missing(9)).await;
    let second = roster(2, Some(ly.rosters.load().newest().text_hash()));
    adopt_rosters(&ly.exchange.shared, &member("tn"), &[second]).await;
    assert_eq!(active(), missing(9), "that one is still missing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn received_roster_clears_missing_roster_alarm() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    let _cable = connect(&ma, &ly, honest(), honest());
    ma.committer.publish(vec![unchecked(headed(|header| header.roster_version = 2))]).await.unwrap();
    until("ly's operators know", || alarms(&ly).iter().any(|alarm| alarm.contains("roster version 2"))).await;
    let second = roster(2, Some(ly.rosters.load().newest().text_hash()));
    adopt_rosters(&ly.exchange.shared, &member("tn"), &[second]).await;
    assert!(alarms(&ly).is_empty(), "{:?}", alarms(&ly));
}
