//! Fetches the content of single entries from one peer, for a node that is not running because its
//! log is being repaired.
//!
//! In scope: a link that only requests content and sends nothing else. Out of scope: checking the
//! content against its digest (the caller).

use std::collections::BTreeMap;
use std::ops::Range;

use barid_core::ids::FeedId;
use barid_core::limits::BACKFILL_RANGES_MAX;
use barid_core::proto;
use barid_core::proto::frame::Frame;
use bytes::Bytes;
use futures::stream::StreamExt;
use tonic::transport::Channel;

use super::link::Wire;
use super::{BACKFILL_TIMEOUT, PROTOCOL, dial};
use crate::clock;

/// Requests these entries over `channel`, and passes each received one to `on_entry`.
///
/// # Errors
/// Why the peer served nothing, or stopped.
pub async fn fetch(
    channel: Channel,
    exchange: String,
    roster_version: u64,
    wanted: &BTreeMap<FeedId, Vec<u64>>,
    mut on_entry: impl FnMut(&FeedId, u64, Bytes),
) -> Result<(), String> {
    let mut wire = dial::open(channel, None).await?;
    let hello = proto::Hello {
        protocol: PROTOCOL,
        exchange,
        software: concat!("barid ", env!("CARGO_PKG_VERSION")).into(),
        roster_version,
        now_unix_ms: clock::unix_ms(),
    };
    send(&wire, Frame::Hello(hello)).await?;
    for (feed, indexes) in wanted {
        let mut remaining = ranges(indexes);
        while !remaining.is_empty() {
            let requested: Vec<Range<u64>> = remaining.iter().take(BACKFILL_RANGES_MAX).cloned().collect();
            let end = requested.last().map_or(0, |range| range.end);
            let range = |range: &Range<u64>| proto::IndexRange { start: range.start, end: range.end };
            let follow = proto::Follow {
                feed: feed.to_string(),
                from: end,
                topics: Vec::new(),
                ranges: requested.iter().map(range).collect(),
            };
            send(&wire, Frame::Follow(follow)).await?;
            let reply = tokio::time::timeout(BACKFILL_TIMEOUT, reply(&mut wire, feed));
            let Some(backfills) = reply.await.map_err(|_| "no response in time".to_owned())?? else { break };
            for entry in backfills.items {
                on_entry(feed, entry.index, entry.envelope);
            }
            let scanned_to = backfills.scanned_to.min(end);
            let before = remaining.clone();
            remaining = remaining
                .into_iter()
                .filter_map(|range| Some(range.start.max(scanned_to)..range.end).filter(|range| !range.is_empty()))
                .collect();
            if remaining == before {
                break;
            }
        }
    }
    Ok(())
}

async fn send(wire: &Wire, frame: Frame) -> Result<(), String> {
    let frame = proto::Frame { frame: Some(frame) };
    wire.outgoing.send(frame).await.map_err(|_| "the link broke".to_owned())
}

/// Returns the peer's response for a feed, or `None` if the peer rejects the request. Other frames
/// are ignored.
async fn reply(wire: &mut Wire, feed: &FeedId) -> Result<Option<proto::BackfillResponse>, String> {
    while let Some(frame) = wire.incoming.next().await {
        match frame?.frame {
            Some(Frame::BackfillResponse(backfills)) if backfills.feed.parse().as_ref() == Ok(feed) => {
                return Ok(Some(backfills));
            }
            Some(Frame::Fault(fault)) if fault.feed.is_empty() => {
                return Err(format!("{}: {}", fault.reason, fault.detail));
            }
            Some(Frame::Fault(fault)) if fault.feed.parse().as_ref() == Ok(feed) => return Ok(None),
            _ => {}
        }
    }
    Err("the peer closed the link".into())
}

/// Merges ascending indexes into ranges.
fn ranges(indexes: &[u64]) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for index in indexes {
        match ranges.last_mut() {
            Some(range) if range.end == *index => range.end += 1,
            _ => ranges.push(*index..index + 1),
        }
    }
    ranges
}
