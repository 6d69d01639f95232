//! Get and History: which entries are visible to whom, with which flags and state.

use barid_core::bulletin::times::Time;
use barid_core::proto;
use tonic::Code;

use super::world::{CUSTOMS, OPERATOR, POLICE, POST, World, about, bulletin, careless, draft, fields, now, red};
use crate::access::Access;
use crate::telemetry::captured::CapturedRecords;

fn strict(header: &mut proto::Header) {
    header.handling.as_mut().unwrap().tlp = "TLP:AMBER+STRICT".into();
}

fn offsets(page: &proto::HistoryResponse) -> Vec<u64> {
    page.deliveries.iter().map(|delivery| delivery.offset).collect()
}

#[tokio::test]
async fn red_and_strict_are_denied_to_agencies_with_a_record() {
    let audited = CapturedRecords::start();
    let world = World::start().await;
    let open = world.published(draft(|_| {})).await;
    let closed = [world.published(draft(red)).await, world.published(draft(strict)).await];
    world.peer_appends("tn", vec![bulletin("tn", 1, red).envelope, bulletin("tn", 2, strict).envelope]).await;
    world.peer_appends("tn", vec![bulletin("tn", 3, |_| {}).envelope]).await;
    assert!(world.get(POST, "ma", &open.id).await.is_ok());
    for receipt in &closed {
        assert!(world.get(POLICE, "ma", &receipt.id).await.is_ok());
        assert_eq!(audited.take(), [""; 0]);
        let denied = world.get(POST, "ma", &receipt.id).await.unwrap_err();
        assert_eq!(denied.code(), Code::NotFound, "a bulletin that is not visible does not exist for it");
        assert_eq!(audited.take(), [format!("call-denied agency {POST} FocalPoint.Get")]);
    }
    let unknown = world.get(POST, "ma", "01971f5a-3c00-7a10-8b5e-000000000001").await.unwrap_err();
    let not_visible = world.get(CUSTOMS, "ma", &open.id).await.unwrap_err();
    assert_eq!(
        (unknown.code(), unknown.details()),
        (not_visible.code(), not_visible.details()),
        "both responses are equal"
    );
    assert_eq!(unknown.message(), not_visible.message());
    assert_eq!(audited.records()[0].detail, format!("ma/{}", open.id), "the record names the denied bulletin");
    assert_eq!(audited.take(), [format!("call-denied working-group {CUSTOMS} FocalPoint.Get")]);
    let all = world.history(POST, proto::HistoryRequest::default()).await.unwrap();
    assert_eq!(offsets(&all), [6, 1]);
    let all = world.history(POLICE, proto::HistoryRequest::default()).await.unwrap();
    assert_eq!(offsets(&all), [6, 5, 4, 3, 2, 1]);
    assert_eq!(offsets(&world.history(CUSTOMS, proto::HistoryRequest::default()).await.unwrap()), [0; 0]);
    assert_eq!(offsets(&world.history(OPERATOR, proto::HistoryRequest::default()).await.unwrap()), [0; 0]);
    let mut agency = world.follow(POST).await;
    assert_eq!(agency.delivery().await.offset, 1);
    assert_eq!(agency.delivery().await.offset, 6);
}

#[tokio::test]
async fn operators_read_network_bulletins_only() {
    let audited = CapturedRecords::start();
    let world = World::start().await;
    let network_bulletin = |number: u8, kind: &'static str, change: fn(&mut proto::Header)| {
        careless("tn", number, move |_, header| {
            (header.kind, header.topic, header.status) = (kind.into(), "information.feeds".into(), "System".into());
            change(header);
        })
    };
    let sent = vec![
        network_bulletin(1, "feed-forked", |_| {}),
        network_bulletin(2, "feed-closed", |header| header.topic = "customs.feeds".into()),
        bulletin("tn", 3, |_| {}).envelope,
        network_bulletin(4, "feed-forked", red),
        network_bulletin(5, "feed-forked-as-if", |_| {}),
    ];
    let ids: Vec<String> = sent.iter().map(|sent| barid_core::envelope::header_of(sent).unwrap().id).collect();
    world.peer_appends("tn", sent).await;
    let all = proto::HistoryRequest::default;
    for groups in ["[]", "[\"security\", \"information\", \"customs\", \"justice\"]"] {
        let text = format!("[[grant]]\npath = \"{OPERATOR}\"\nroles = [\"operator\"]\nworking_groups = {groups}\n");
        let auditor = "[[grant]]\npath = \"auditor/one\"\nroles = [\"auditor\"]\nworking_groups = [\"information\"]\n";
        world.access.store(std::sync::Arc::new(Access::parse(&(text + auditor)).unwrap()));
        assert_eq!(offsets(&world.history(OPERATOR, all()).await.unwrap()), [2, 1], "{groups}");
        let mut stream = world.follow(OPERATOR).await;
        assert_eq!((stream.delivery().await.offset, stream.delivery().await.offset), (1, 2));
        assert!(world.get(OPERATOR, "tn", &ids[0]).await.is_ok());
        for (id, reason) in [(2, "working-group"), (3, "agency"), (4, "working-group")] {
            assert_eq!(world.get(OPERATOR, "tn", &ids[id]).await.unwrap_err().code(), Code::NotFound);
            assert_eq!(audited.take(), [format!("call-denied {reason} {OPERATOR} FocalPoint.Get")]);
        }
        let draft = world.publish(OPERATOR, draft(|_| {})).await.unwrap_err();
        assert_eq!((draft.code(), audited.take().len()), (Code::PermissionDenied, 1));
    }
    let denied = world.history("auditor/one", all()).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert_eq!(audited.take(), ["call-denied role auditor/one FocalPoint.History"]);
}

#[tokio::test]
async fn irregular_bulletin_is_flagged() {
    let world = World::start().await;
    let plain = bulletin("tn", 1, |_| {});
    let twin = careless("tn", 2, |_, header| header.id.clone_from(&plain.proto_header.id));
    let broken = careless("tn", 3, |envelope, _| envelope.payload = vec![0xff; 9].into());
    let sealed = careless("tn", 4, |envelope, _| envelope.payload_type = "barid.sealed/1".into());
    let unknown_kind = careless("tn", 5, |_, header| header.kind = "weather-report".into());
    let both = careless("tn", 6, |envelope, header| {
        header.kind = "weather-report".into();
        envelope.payload = vec![0xff; 9].into();
        header.id.clone_from(&plain.proto_header.id);
    });
    world.peer_appends("tn", vec![plain.envelope.clone(), twin, broken, sealed, unknown_kind, both]).await;
    world.published(draft(|header| header.id.clone_from(&plain.proto_header.id))).await;
    let expected: [&[&str]; 7] = [
        &[],
        &["duplicate-id"],
        &["undecodable-body"],
        &["undecodable-body"],
        &["unknown-kind"],
        &["undecodable-body", "unknown-kind", "duplicate-id"],
        &[],
    ];
    let page = world.history(POLICE, proto::HistoryRequest::default()).await.unwrap();
    for (delivery, flags) in page.deliveries.iter().rev().zip(expected) {
        assert_eq!(delivery.flags, flags, "{} in history", delivery.index);
    }
    let mut live = world.follow(POLICE).await;
    for flags in expected {
        let delivery = live.delivery().await;
        assert_eq!(delivery.flags, flags, "{} as it arrives", delivery.index);
    }
    // Of several entries with one id, the first in the feed is the bulletin.
    let held = world.get(POLICE, "tn", &plain.proto_header.id).await.unwrap().delivery.unwrap();
    assert_eq!((held.index, held.flags.len()), (0, 0));
}

#[tokio::test]
async fn history_page_is_full_unless_it_is_the_last() {
    let world = World::start().await;
    // Every second bulletin is not for agencies.
    for n in 0..10 {
        world
            .published(draft(|header| {
                if n % 2 == 1 {
                    red(header);
                }
            }))
            .await;
    }
    let mut request = proto::HistoryRequest { page_size: 2, ..proto::HistoryRequest::default() };
    let mut pages = Vec::new();
    loop {
        let page = world.history(POST, request.clone()).await.unwrap();
        pages.push(offsets(&page));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(pages, [vec![9, 7], vec![5, 3], vec![1]], "newest first");
}

#[tokio::test]
async fn history_page_fits_its_response_charge() {
    let world = World::start().await;
    let large = |n| {
        let mut draft = draft(|_| {});
        draft.body.as_mut().unwrap().texts[0].description = format!("{n}").repeat(900_000);
        draft
    };
    for n in 0..6 {
        world.published(large(n)).await;
    }
    let mut request = proto::HistoryRequest { page_size: 1_000, ..proto::HistoryRequest::default() };
    let mut all = Vec::new();
    loop {
        let page = world.history(POLICE, request.clone()).await.unwrap();
        let bytes = prost::Message::encoded_len(&page) as u64;
        assert!(bytes <= crate::api::methods::HISTORY.response_bytes && !page.deliveries.is_empty(), "{bytes}");
        all.extend(offsets(&page));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(all, [6, 5, 4, 3, 2, 1]);
}

#[tokio::test]
async fn history_is_narrowed_by_topic_member_kind_severity_and_time() {
    let world = World::start().await;
    let began = now();
    world.published(draft(|header| header.topic = "information.border".into())).await;
    world.published(draft(|header| header.severity = "Extreme".into())).await;
    let sent = |ms: u64| Some(Time::from_unix_ms(ms).to_proto());
    let peer = [
        careless("tn", 1, |_, header| header.kind = "weather-report".into()),
        careless("tn", 2, |_, header| header.sent_at = sent(began - 100_000)),
        careless("ly", 3, |_, _| {}),
    ];
    world.peer_appends("tn", peer[..2].to_vec()).await;
    world.peer_appends("ly", peer[2..].to_vec()).await;
    let matching = async |change: &dyn Fn(&mut proto::HistoryRequest, &mut proto::Filter)| {
        let (mut request, mut filter) = (proto::HistoryRequest::default(), proto::Filter::default());
        change(&mut request, &mut filter);
        request.filter = Some(filter);
        offsets(&world.history(POLICE, request).await.unwrap())
    };
    assert_eq!(matching(&|_, _| {}).await, [5, 4, 3, 2, 1]);
    assert_eq!(matching(&|_, filter| filter.topics = vec!["*.border".into()]).await, [1]);
    assert_eq!(matching(&|_, filter| filter.topics = vec!["information.>".into()]).await, [5, 4, 3, 2, 1]);
    assert_eq!(matching(&|_, filter| filter.topics = vec!["customs.>".into()]).await, [0; 0]);
    assert_eq!(matching(&|_, filter| filter.members = vec!["tn".into(), "ly".into()]).await, [5, 4, 3]);
    assert_eq!(matching(&|_, filter| filter.kinds = vec!["weather-report".into()]).await, [3]);
    assert_eq!(matching(&|_, filter| filter.min_severity = "Severe".into()).await, [2]);
    assert_eq!(matching(&|request, _| request.since = sent(began)).await, [5, 3, 2, 1]);
    assert_eq!(matching(&|request, _| request.until = sent(began - 1)).await, [4]);
}

#[tokio::test]
async fn invalid_query_fields_are_each_reported() {
    let world = World::start().await;
    world.published(draft(|_| {})).await;
    let filter = proto::Filter {
        topics: vec!["customs.>".into(), "Customs.*".into()],
        kinds: vec!["weather-report".into(), "no kind".into(), String::new()],
        min_severity: "Unknown".into(),
        members: vec!["tn".into(), "Tunis".into()],
    };
    let at_fault =
        ["filter.topics[1]", "filter.kinds[1]", "filter.kinds[2]", "filter.min_severity", "filter.members[1]"];
    let history = proto::HistoryRequest { filter: Some(filter.clone()), ..proto::HistoryRequest::default() };
    assert_eq!(fields(world.history(POLICE, history).await), at_fault);
    let subscribe = proto::SubscribeRequest { filter: Some(filter), start: None, ..Default::default() };
    assert_eq!(fields(world.subscribe(POLICE, subscribe).await), at_fault);
    let filter = proto::Filter { kinds: vec!["weather-report".into(); 65], ..proto::Filter::default() };
    let history = proto::HistoryRequest { filter: Some(filter), ..proto::HistoryRequest::default() };
    assert_eq!(fields(world.history(POLICE, history).await), ["filter"]);
    for token in ["x", "0", "1", "3", "-1", "18446744073709551616", "2 ", "AAAA"] {
        let history = proto::HistoryRequest { page_token: token.into(), ..proto::HistoryRequest::default() };
        assert_eq!(fields(world.history(POLICE, history).await), ["page_token"], "{token}");
    }
    let wrong = Some(prost_types::Timestamp { seconds: i64::MAX, nanos: 0 });
    let history = proto::HistoryRequest { since: wrong, until: wrong, ..proto::HistoryRequest::default() };
    assert_eq!(fields(world.history(POLICE, history).await), ["since", "until"]);
    let at = |ms| Some(Time::from_unix_ms(ms).to_proto());
    let history = proto::HistoryRequest { since: at(2_000), until: at(1_000), ..proto::HistoryRequest::default() };
    assert_eq!(fields(world.history(POLICE, history).await), ["until"]);
    assert_eq!(fields(world.get(POLICE, "Tunis", "x").await), ["member", "id"]);
}

#[tokio::test]
async fn state_follows_updates_cancellations_acknowledgements_and_expiry() {
    let world = World::start().await;
    let state = async |id: &str| {
        let state = world.get(POLICE, "ma", id).await.unwrap().state.unwrap();
        (state.state, state.by.map(|by| by.id))
    };
    let original = draft(|_| {});
    let receipt = world.published(original.clone()).await;
    assert_eq!(state(&receipt.id).await, ("active".into(), None));
    let first = world.published(about("situation-report", &original, &receipt)).await;
    assert_eq!(state(&receipt.id).await, ("superseded".into(), Some(first.id)));
    let second = world.published(about("situation-report", &original, &receipt)).await;
    assert_eq!(state(&receipt.id).await, ("superseded".into(), Some(second.id.clone())));
    assert_eq!(state(&second.id).await, ("active".into(), None));
    world.published(about("acknowledgement", &original, &receipt)).await;
    let cancelled = world.published(about("cancellation", &original, &receipt)).await;
    world.published(about("situation-report", &original, &receipt)).await;
    world.published(about("cancellation", &original, &receipt)).await;
    assert_eq!(state(&receipt.id).await, ("cancelled".into(), Some(cancelled.id)), "by the first, and for good");
    let visible_state = world.get(POST, "ma", &receipt.id).await.unwrap().state.unwrap();
    assert_eq!(visible_state.acknowledged_by.len(), 1);
    assert!(!visible_state.partial);
    let past = Some(Time::from_unix_ms(now() - 1_000).to_proto());
    let expired = careless("tn", 1, |_, header| header.expires = past);
    let id = barid_core::envelope::header_of(&expired).unwrap().id;
    world.peer_appends("tn", vec![expired]).await;
    assert_eq!(world.get(POLICE, "tn", &id).await.unwrap().state.unwrap().state, "expired");
}
