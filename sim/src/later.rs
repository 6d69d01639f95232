//! Content that comes later: asking peers for what is held as digests, answering them, taking what comes.
//!
//! In scope: one request on its way to each peer, as a node has it. What is worth asking for is decided by core.

use std::collections::BTreeMap;
use std::convert::Infallible;

use barid_core::bulletin::TopicFilter;
use barid_core::follow::{Finding, What, verify_fills};
use barid_core::gaps::{NotHeld, Stand, take_turns};
use barid_core::names::{FeedId, Member};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::provide;
use barid_core::quota::Source;
use bytes::Bytes;

use crate::live::Request;
use crate::node::{Content, Log, Work};
use crate::world::{Event, World};
use crate::{Mutation, defects};

/// Ranges in one request, and entries in one answer: few, so that there are several.
const FILLS_MAX: usize = 6;
/// How long an answer is waited for.
const ANSWER_WAIT: u64 = 100;
/// First pause of a round that was put off, and how often it doubles.
const PAUSE_MS: u64 = 5_000;
const DOUBLINGS: u32 = 3;

fn pause_ms(attempt: u32) -> u64 {
    PAUSE_MS << attempt.min(DOUBLINGS)
}

impl World {
    /// Asks a peer for content that is missing here, unless it has not answered yet.
    pub(crate) fn ask_for_missing(&mut self, node: usize, peer: usize) {
        if self.has(Mutation::NoFills) {
            return;
        }
        if let Some(request) = self.nodes[node].live.requests.get(&peer) {
            let (number, waited) = (request.number, self.now - request.since);
            if waited <= ANSWER_WAIT {
                return;
            }
            self.put_off(node, peer, number);
        }
        let (now, now_ms) = (self.now, self.now_ms());
        let here = &mut self.nodes[node];
        let roster = here.disk.chain.newest().version();
        let logs = &here.disk.logs;
        let mut feeds: Vec<(&FeedId, &Log)> = logs.iter().collect();
        let last = here.live.asked_last.get(&peer);
        take_turns(&mut feeds, |(feed, _)| *feed, last);
        for (feed, log) in feeds {
            let size = log.tree.size();
            let owner = self.exchange.members[peer] == feed.member;
            let later = |other: &FeedId| other.member == feed.member && other.epoch > feed.epoch;
            let over = logs.iter().any(|(other, log)| later(other) && log.tree.size() > 0);
            let settled = here.live.settled.get(feed).filter(|(version, _)| *version == roster && !over);
            let settled = settled.map_or(0, |(_, through)| *through);
            let stand =
                Stand { size, roster, settled, owner, own: feed.member == here.me, everything: here.topics.is_empty() };
            let key = (peer, feed.clone());
            let asked = here.live.asked.entry(key.clone()).or_default();
            let quota = &mut here.live.quota;
            let source = Source { me: &here.me, owner: &feed.member, bringer: &self.exchange.members[peer] };
            let never = self.mutation == Some(Mutation::NeverBackfill) && quota.barred.contains(&key);
            // What could not be taken is not asked for.
            if never || !quota.shares.may_ask_in(quota.tier, source) {
                quota.barred.insert(key);
                continue;
            }
            if quota.barred.remove(&key) {
                asked.retry_now();
            }
            let held = |from| Ok::<_, Infallible>(not_held(log, from));
            let Ok(found) = asked.next(stand, now_ms, held, pause_ms);
            let Some(found) = found else {
                if let Some(through) = asked.settled(size).filter(|_| owner) {
                    here.live.settled.insert(feed.clone(), (roster, through));
                }
                continue;
            };
            here.live.requested += 1;
            here.live.asked_last.insert(peer, feed.clone());
            // Of its own a member wants everything back.
            let filters = here.topics.iter().filter(|_| feed.member != here.me);
            let follow = proto::Follow {
                feed: feed.to_string(),
                from: size,
                topics: filters.map(|filter| filter.as_str().to_owned()).collect(),
                ranges: found
                    .ranges
                    .iter()
                    .map(|range| proto::IndexRange { start: range.start, end: range.end })
                    .collect(),
            };
            let request = Request { feed: feed.clone(), found, since: now, through: 0, number: here.live.requested };
            here.live.requests.insert(peer, request);
            return self.send(node, peer, Frame::Follow(follow));
        }
    }

    /// A request is not answered, or not rightly.
    pub(crate) fn put_off(&mut self, node: usize, peer: usize, number: u64) {
        let now_ms = self.now_ms();
        let live = &mut self.nodes[node].live;
        if live.requests.get(&peer).is_some_and(|request| request.number == number)
            && let Some(request) = live.requests.remove(&peer)
        {
            live.asked.entry((peer, request.feed)).or_default().put_off(now_ms, pause_ms);
        }
    }

    /// A peer asks for content that it lacks.
    pub(crate) fn asked_for(
        &mut self,
        from: usize,
        to: usize,
        feed: &FeedId,
        ranges: &[proto::IndexRange],
        filters: &[TopicFilter],
    ) {
        let reader = self.exchange.members[from].clone();
        let fills = if self.has(Mutation::HandToAnyone) {
            defects::anything(self.nodes[to].log_for(feed, from), feed, ranges)
        } else {
            self.answer(to, from, feed, ranges, &reader, filters)
        };
        let history = self.nodes[to].nature.leaky;
        if !history {
            let shown: Vec<Bytes> = fills.items.iter().map(|fill| fill.envelope.clone()).collect();
            self.check_shown(to, &reader, &shown);
        }
        self.send(to, from, Frame::Fills(fills));
    }

    fn answer(
        &self,
        node: usize,
        peer: usize,
        feed: &FeedId,
        ranges: &[proto::IndexRange],
        reader: &Member,
        filters: &[TopicFilter],
    ) -> proto::Fills {
        let here = &self.nodes[node];
        let mut fills = proto::Fills { feed: feed.to_string(), ..proto::Fills::default() };
        fills.through = ranges.last().map_or(0, |range| range.end);
        let Some(log) = here.log_for(feed, peer) else { return fills };
        for range in ranges.iter().take(barid_core::limits::FILL_RANGES_MAX) {
            for index in range.start..range.end.min(log.tree.size()) {
                if fills.items.len() >= FILLS_MAX {
                    fills.through = index;
                    return fills;
                }
                let Some(entry) = log.entry(index) else { break };
                let history = here.nature.leaky && *feed == here.feed;
                if !here.nature.withholds {
                    let held = [(index, entry.held())];
                    fills.items.extend(provide::fills(held, reader, filters, &here.disk.chain, history));
                }
            }
        }
        fills
    }

    /// What a peer handed over.
    pub(crate) fn fills(&mut self, from: usize, to: usize, message: &proto::Fills) {
        let Ok(feed) = message.feed.parse::<FeedId>() else { return };
        let here = &mut self.nodes[to];
        let Some(request) = here.live.requests.get(&from).filter(|request| request.feed == feed) else { return };
        let number = request.number;
        if here.live.waiting.iter().any(|work| matches!(work, Work::Fill(_, peer, _) if *peer == from)) {
            return;
        }
        let lacking = here.lacking(&feed, message);
        // Our own is ours, whoever gives it back.
        let provider = if feed.member == here.me { &here.me } else { &self.exchange.members[from] };
        let (chain, me) = (&here.disk.chain, &here.me);
        let verified = verify_fills(&feed, provider, message, &request.found.ranges, &lacking, chain, me);
        let verified = match verified {
            Err(_) if self.mutation == Some(Mutation::FillAnything) => {
                Ok(defects::unverified_fills(&feed, message, &lacking))
            }
            Ok(_) if self.mutation == Some(Mutation::HandToAnyone) => {
                Ok(defects::unverified_fills(&feed, message, &lacking))
            }
            verified => verified,
        };
        let Ok(fills) = verified else {
            self.count("fills refused");
            self.note("fills refused", to, &[]);
            return self.put_off(to, from, number);
        };
        self.count_findings(to, &feed, &fills.findings);
        if !self.nodes[to].live.has_room() {
            return self.put_off(to, from, number);
        }
        let live = &mut self.nodes[to].live;
        if let Some(request) = live.requests.get_mut(&from) {
            request.through = message.through;
        }
        if fills.entries.is_empty() {
            return self.filled(to, &feed, from, number, 0);
        }
        live.waiting.push(Work::Fill(Box::new(fills), from, number));
        self.soon(8, Event::Commit(to));
    }

    /// What came is durable: the peer is asked for the next.
    pub(crate) fn filled(&mut self, node: usize, feed: &FeedId, from: usize, number: u64, got: u64) {
        if got > 0 {
            self.coverage.add("filled", got);
            if self.exchange.members[from] != feed.member {
                self.coverage.add("filled by another member than the owner", got);
            }
        }
        let live = &mut self.nodes[node].live;
        if live.requests.get(&from).is_some_and(|request| request.number == number)
            && let Some(request) = live.requests.remove(&from)
        {
            let asked = live.asked.entry((from, feed.clone())).or_default();
            asked.answered(&request.found, request.through, got);
            if self.nodes[node].live.linked.contains(&from) {
                self.ask_for_missing(node, from);
            }
        }
    }

    pub(crate) fn count_findings(&mut self, node: usize, feed: &FeedId, findings: &[Finding]) {
        for finding in findings {
            self.count(match &finding.what {
                What::Excluded => "entry found: excluded",
                What::UndecodableHeader => "entry found: undecodable-header",
                What::NotUnderstood => "entry found: not-understood",
                What::Misdirected => "entry found: misdirected",
                What::TooLarge => "entry found: too-large",
                What::NewerRoster(_) => "entry found: newer-roster",
                What::WronglyWithheld => "entry found: wrongly-withheld",
            });
            if finding.what == What::WronglyWithheld {
                self.model.blamed.push((node, (feed.clone(), finding.index)));
            }
        }
    }
}

/// What is held as digests from an index on, in ranges of one reason.
fn not_held(log: &Log, from: u64) -> NotHeld {
    let mut ranges: NotHeld = Vec::new();
    let start = usize::try_from(from).unwrap_or(usize::MAX);
    for (entry, index) in log.entries.iter().zip(0_u64..).skip(start) {
        let Content::Undisclosed(reason) = entry.content else { continue };
        let full = ranges.len() == FILLS_MAX;
        match ranges.last_mut() {
            Some((range, last)) if range.end == index && *last == reason => range.end = index + 1,
            _ if full => break,
            _ => ranges.push((index..index + 1, reason)),
        }
    }
    ranges
}

/// The entries of a message that are held as digests.
pub(crate) type Lacking = BTreeMap<u64, (barid_core::names::Digest, barid_core::names::Undisclosed)>;
