//! Content of single entries from one peer, for a node that does not run: its log is being repaired.
//!
//! In scope: one link that asks and takes, and says nothing of its own. Out of scope: whether what came is what was wanted: its digest tells.

use std::collections::BTreeMap;
use std::ops::Range;

use barid_core::limits::FILL_RANGES_MAX;
use barid_core::names::FeedId;
use barid_core::proto;
use barid_core::proto::frame::Frame;
use bytes::Bytes;
use futures::stream::StreamExt;
use tonic::transport::Channel;

use super::link::Wire;
use super::{FILL_WAIT_MAX, PROTOCOL, dial};
use crate::clock;

/// Asks over `channel` for these entries, and gives `take` what comes of them.
///
/// # Errors
/// Why the peer gave nothing, or no more.
pub async fn fetch(
    channel: Channel,
    exchange: String,
    roster_version: u64,
    wanted: &BTreeMap<FeedId, Vec<u64>>,
    mut take: impl FnMut(&FeedId, u64, Bytes),
) -> Result<(), String> {
    let mut wire = dial::open(channel, None).await?;
    let hello = proto::Hello {
        protocol: PROTOCOL,
        exchange,
        software: concat!("barid ", env!("CARGO_PKG_VERSION")).into(),
        roster_version,
        now_unix_ms: clock::unix_ms(),
    };
    say(&wire, Frame::Hello(hello)).await?;
    for (feed, indexes) in wanted {
        let mut left = ranges(indexes);
        while !left.is_empty() {
            let asked: Vec<Range<u64>> = left.iter().take(FILL_RANGES_MAX).cloned().collect();
            let end = asked.last().map_or(0, |range| range.end);
            let range = |range: &Range<u64>| proto::IndexRange { start: range.start, end: range.end };
            let follow = proto::Follow {
                feed: feed.to_string(),
                from: end,
                topics: Vec::new(),
                ranges: asked.iter().map(range).collect(),
            };
            say(&wire, Frame::Follow(follow)).await?;
            let answer = tokio::time::timeout(FILL_WAIT_MAX, answer(&mut wire, feed));
            let Some(fills) = answer.await.map_err(|_| "no answer in time".to_owned())?? else { break };
            for fill in fills.items {
                take(feed, fill.index, fill.envelope);
            }
            let through = fills.through.min(end);
            let before = left.clone();
            left = left
                .into_iter()
                .filter_map(|range| Some(range.start.max(through)..range.end).filter(|range| !range.is_empty()))
                .collect();
            if left == before {
                break;
            }
        }
    }
    Ok(())
}

async fn say(wire: &Wire, frame: Frame) -> Result<(), String> {
    let frame = proto::Frame { frame: Some(frame) };
    wire.outgoing.send(frame).await.map_err(|_| "the link broke".to_owned())
}

/// What the peer says to the request for a feed; `None` if it refuses. All else is passed over.
async fn answer(wire: &mut Wire, feed: &FeedId) -> Result<Option<proto::Fills>, String> {
    while let Some(frame) = wire.incoming.next().await {
        match frame?.frame {
            Some(Frame::Fills(fills)) if fills.feed.parse().as_ref() == Ok(feed) => return Ok(Some(fills)),
            Some(Frame::Fault(fault)) if fault.feed.is_empty() => {
                return Err(format!("{}: {}", fault.reason, fault.detail));
            }
            Some(Frame::Fault(fault)) if fault.feed.parse().as_ref() == Ok(feed) => return Ok(None),
            _ => {}
        }
    }
    Err("the peer closed the link".into())
}

/// Ascending numbers as ranges.
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
