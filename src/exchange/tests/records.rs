//! What a peer can have a node write down, and raise.

use barid_core::bulletin::ValidBulletin;
use barid_core::envelope;
use barid_core::proto;
use barid_core::proto::frame::Frame;
use bytes::Bytes;

use super::malformed::{asked_from, headed};
use super::world::{Actor, Node, alarms, bulletin, connect, feed, honest, member, roster, until};
use crate::exchange::adopt::adopt;
use crate::telemetry::alarms::{Alarm, Severity};
use crate::telemetry::heard::Heard;
use crate::telemetry::{RECORDED_SINGLY_MAX, counted};

fn fault(feed: &str, reason: &str, detail: &str) -> Frame {
    Frame::Fault(proto::Fault { feed: feed.into(), reason: reason.into(), detail: detail.into() })
}

/// An entry with these exact bytes, as a node would publish that checks nothing.
fn unchecked(envelope: Bytes) -> ValidBulletin {
    let digest = envelope::digest(&envelope);
    ValidBulletin { envelope, digest, ..bulletin(&member("ly"), &|_| {}) }
}

#[tokio::test]
async fn faults_of_feeds_that_are_none_of_the_links_are_the_peers_own_fault_and_counted() {
    let heard = Heard::listen();
    let (ly, before) = (Node::start("ly"), counted().get(&("refused-frame", "malformed")).copied().unwrap_or(0));
    let mut ma = Actor::greet(&ly, "ma").await;
    asked_from(&mut ma).await;
    let long = format!("\u{1b}[2J\nforged {}", "x".repeat(1 << 20));
    for n in 0..100 {
        let strange = [long.clone(), feed("tn").to_string(), format!("ma.rabat.example/feed/{}", 7 + n)];
        for feed in strange {
            ma.say(fault(&feed, "bad-root", &long)).await;
        }
    }
    let all = || counted().get(&("refused-frame", "malformed")).copied().unwrap_or(0) - before;
    until("all are counted", || all() >= 300).await;
    let records = heard.so_far();
    assert!(
        records.iter().all(|record| record.what != "fault"),
        "{:?}",
        records.iter().map(|r| &r.what).collect::<Vec<_>>()
    );
    let singly = records.iter().filter(|record| (record.what.as_str(), record.who.as_str()) == ("refused-frame", "ma"));
    assert_eq!(singly.count() as u64, RECORDED_SINGLY_MAX);
    // The link goes on.
    ma.say(Frame::Heads(proto::Heads::default())).await;
    assert!(ly.exchange.peers().linked(&member("ma")));
}

#[tokio::test]
async fn faults_of_a_feed_that_is_asked_for_are_counted_with_a_reason_of_the_protocol() {
    let heard = Heard::listen();
    let ly = Node::start("ly");
    let mut ma = Actor::greet(&ly, "ma").await;
    for (reason, recorded) in [("busy", "busy"), ("\u{1b}[2J\nalarm", "unknown"), ("elsewhere", "")] {
        asked_from(&mut ma).await;
        ma.say(fault(&feed("ma").to_string(), reason, "no")).await;
        let found = || heard.so_far().iter().any(|record| record.what == "fault" && record.reason == recorded);
        if !recorded.is_empty() {
            until("it is recorded", found).await;
        }
    }
    let faults: Vec<String> = heard.take().into_iter().filter(|record| record.starts_with("fault ")).collect();
    assert_eq!(faults, ["fault busy ma ma.rabat.example/feed/1", "fault unknown ma ma.rabat.example/feed/1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_cannot_be_read_are_one_alarm_and_hide_no_fork() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    let _cable = connect(&ma, &ly, honest(), honest());
    let liar = Actor::greet(&ma, "tn").await;
    ly.publish(3, |_| {}).await;
    until("ma holds ly's", || ma.size(&ly.feed()) == 3).await;
    let nonsense = |n: usize| unchecked(Bytes::from(format!("no envelope {n}")));
    ly.committer.publish((0..960).map(nonsense).collect()).await.unwrap();
    until("ma holds them", || ma.size(&ly.feed()) == 963).await;
    liar.say(super::head("ly", 2)).await;
    until("ly's feed is stopped", || ma.exchange.stopped_feeds().contains(&ly.feed())).await;
    until("the evidence is stored", || !ma.store.forks().unwrap().is_empty()).await;
    let active = ma.exchange.alarms().snapshot();
    assert_eq!(active.len(), 2, "{active:?}");
    let [fork, entries] = [&active[0], &active[1]];
    assert!(matches!(&fork.alarm, Alarm::Fork { feed, .. } if *feed == ly.feed()), "{fork:?}");
    assert_eq!((fork.alarm.severity(), entries.alarm.severity()), (Severity::Critical, Severity::Warning));
    let newest = Alarm::Entry { what: "undecodable-header", feed: ly.feed(), index: 962, by: ly.me.clone() };
    assert_eq!((&entries.alarm, entries.count), (&newest, 960));
    until("the evidence is kept", || !ma.store.forks().unwrap().is_empty()).await;
    // It is over by what ends it, and the other one stays.
    assert!(ma.exchange.resume_feed(&ly.feed()).await.unwrap());
    assert_eq!(ma.exchange.alarms().snapshot().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roster_that_nobody_has_is_an_alarm_at_once_until_it_comes() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    let _cable = connect(&ma, &ly, honest(), honest());
    let naming = |version: u64| unchecked(headed(|header| header.roster_version = version));
    // Once publishing is open.
    ma.publish(0, |_| {}).await;
    ma.committer.publish(vec![naming(2), naming(9), naming(3)]).await.unwrap();
    until("ly's operators know", || !alarms(&ly).is_empty()).await;
    let missing = |version| vec![Alarm::RosterMissing { member: ma.me.clone(), version }];
    let active = || ly.exchange.alarms().snapshot().into_iter().map(|active| active.alarm).collect::<Vec<_>>();
    until("of the newest version", || active() == missing(9)).await;
    let second = roster(2, Some(ly.rosters.load().newest().text_hash()));
    adopt(&ly.exchange.shared, &member("tn"), &[second]).await;
    assert_eq!(active(), missing(9), "that one is still missing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_roster_that_comes_ends_the_alarm() {
    let (ma, ly) = (Node::start("ma"), Node::start("ly"));
    let _cable = connect(&ma, &ly, honest(), honest());
    ma.committer.publish(vec![unchecked(headed(|header| header.roster_version = 2))]).await.unwrap();
    until("ly's operators know", || alarms(&ly).iter().any(|alarm| alarm.contains("roster version 2"))).await;
    let second = roster(2, Some(ly.rosters.load().newest().text_hash()));
    adopt(&ly.exchange.shared, &member("tn"), &[second]).await;
    assert!(alarms(&ly).is_empty(), "{:?}", alarms(&ly));
}
