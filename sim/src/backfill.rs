//! Backfill: requests content of entries held as digests, responds to such requests, and commits
//! what arrives.
//!
//! In scope: one request in flight to each peer, as in a node. Out of scope: which content is worth
//! requesting (core).

use std::collections::BTreeMap;
use std::convert::Infallible;

use barid_core::backfill::{BackfillContext, NotHeld, rotate_feeds};
use barid_core::bulletin::TopicFilter;
use barid_core::follow::{Finding, FindingKind, verify_backfills};
use barid_core::ids::{FeedId, Member};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::quota::ContentSource;
use barid_core::serve;
use bytes::Bytes;

use crate::live::Request;
use crate::node::{Content, Log, Work};
use crate::world::{Event, World};
use crate::{Mutation, defects};

/// Ranges in one request, and entries in one response: few, so that there are several of each.
const BACKFILL_ENTRIES_MAX: usize = 6;
/// Timeout of a response.
const RESPONSE_TIMEOUT: u64 = 100;
/// First delay of a postponed round, and how often it doubles.
const PAUSE_MS: u64 = 5_000;
const DOUBLINGS: u32 = 3;

fn pause_ms(attempt: u32) -> u64 {
    PAUSE_MS << attempt.min(DOUBLINGS)
}

impl World {
    /// Requests missing content from a peer, unless a request is in flight.
    pub(crate) fn request_backfill(&mut self, node: usize, peer: usize) {
        if self.has(Mutation::NoBackfill) {
            return;
        }
        if let Some(request) = self.nodes[node].live.requests.get(&peer) {
            let (number, waited) = (request.number, self.now - request.since);
            if waited <= RESPONSE_TIMEOUT {
                return;
            }
            self.put_off(node, peer, number);
        }
        let (now, now_ms) = (self.now, self.now_ms());
        let here = &mut self.nodes[node];
        let roster = here.disk.chain.newest().version();
        let logs = &here.disk.logs;
        let mut feeds: Vec<(&FeedId, &Log)> = logs.iter().collect();
        let last = here.live.last_requested.get(&peer);
        rotate_feeds(&mut feeds, |(feed, _)| *feed, last);
        for (feed, log) in feeds {
            let size = log.tree.size();
            let owner = self.exchange.members[peer] == feed.member;
            let later = |other: &FeedId| other.member == feed.member && other.epoch > feed.epoch;
            let superseded = logs.iter().any(|(other, log)| later(other) && log.tree.size() > 0);
            let settled = here.live.settled.get(feed).filter(|(version, _)| *version == roster && !superseded);
            let settled = settled.map_or(0, |(_, scanned_to)| *scanned_to);
            let context = BackfillContext {
                size,
                roster,
                settled,
                owner,
                own: feed.member == here.me,
                all_topics: here.topics.is_empty(),
            };
            let key = (peer, feed.clone());
            let backfill_schedule = here.live.backfill_schedule.entry(key.clone()).or_default();
            let quota = &mut here.live.quota;
            let source =
                ContentSource { me: &here.me, owner: &feed.member, sender_member: &self.exchange.members[peer] };
            let never = self.mutation == Some(Mutation::NeverBackfill) && quota.barred.contains(&key);
            // Content that could not be committed is not requested.
            if never || !quota.shares.may_request_in(quota.tier, source) {
                quota.barred.insert(key);
                continue;
            }
            if quota.barred.remove(&key) {
                backfill_schedule.retry_now();
            }
            let held = |from| Ok::<_, Infallible>(not_held(log, from));
            let Ok(found) = backfill_schedule.next(context, now_ms, held, pause_ms);
            let Some(found) = found else {
                if let Some(scanned_to) = backfill_schedule.settled(size).filter(|_| owner) {
                    here.live.settled.insert(feed.clone(), (roster, scanned_to));
                }
                continue;
            };
            here.live.requested += 1;
            here.live.last_requested.insert(peer, feed.clone());
            // Of its own feeds a member requests every topic.
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
            let request = Request { feed: feed.clone(), found, since: now, scanned_to: 0, number: here.live.requested };
            here.live.requests.insert(peer, request);
            return self.send(node, peer, Frame::Follow(follow));
        }
    }

    /// Postpones the round after a missing or incorrect response.
    pub(crate) fn put_off(&mut self, node: usize, peer: usize, number: u64) {
        let now_ms = self.now_ms();
        let live = &mut self.nodes[node].live;
        if live.requests.get(&peer).is_some_and(|request| request.number == number)
            && let Some(request) = live.requests.remove(&peer)
        {
            live.backfill_schedule.entry((peer, request.feed)).or_default().back_off(now_ms, pause_ms);
        }
    }

    /// Responds to a peer's backfill request.
    pub(crate) fn receive_backfill_request(
        &mut self,
        from: usize,
        to: usize,
        feed: &FeedId,
        ranges: &[proto::IndexRange],
        filters: &[TopicFilter],
    ) {
        let reader = self.exchange.members[from].clone();
        let backfills = if self.has(Mutation::HandToAnyone) {
            defects::anything(self.nodes[to].log_for(feed, from), feed, ranges)
        } else {
            self.backfill_response(to, from, feed, ranges, &reader, filters)
        };
        let history = self.nodes[to].nature.leaky;
        if !history {
            let disclosed: Vec<Bytes> = backfills.items.iter().map(|backfill| backfill.envelope.clone()).collect();
            self.check_disclosed(to, &reader, &disclosed);
        }
        self.send(to, from, Frame::BackfillResponse(backfills));
    }

    fn backfill_response(
        &self,
        node: usize,
        peer: usize,
        feed: &FeedId,
        ranges: &[proto::IndexRange],
        reader: &Member,
        filters: &[TopicFilter],
    ) -> proto::BackfillResponse {
        let here = &self.nodes[node];
        let mut backfills = proto::BackfillResponse { feed: feed.to_string(), ..proto::BackfillResponse::default() };
        backfills.scanned_to = ranges.last().map_or(0, |range| range.end);
        let Some(log) = here.log_for(feed, peer) else { return backfills };
        for range in ranges.iter().take(barid_core::limits::BACKFILL_RANGES_MAX) {
            for index in range.start..range.end.min(log.tree.size()) {
                if backfills.items.len() >= BACKFILL_ENTRIES_MAX {
                    backfills.scanned_to = index;
                    return backfills;
                }
                let Some(entry) = log.entry(index) else { break };
                let history = here.nature.leaky && *feed == here.feed;
                if !here.nature.withholds {
                    let held = [(index, entry.held())];
                    backfills.items.extend(serve::backfills(held, reader, filters, &here.disk.chain, history));
                }
            }
        }
        backfills
    }

    /// Verifies a peer's response.
    pub(crate) fn backfills(&mut self, from: usize, to: usize, message: &proto::BackfillResponse) {
        let Ok(feed) = message.feed.parse::<FeedId>() else { return };
        let here = &mut self.nodes[to];
        let Some(request) = here.live.requests.get(&from).filter(|request| request.feed == feed) else { return };
        let number = request.number;
        if here.live.waiting.iter().any(|work| matches!(work, Work::Backfill(_, peer, _) if *peer == from)) {
            return;
        }
        let undisclosed = here.undisclosed(&feed, message);
        // Our own entries are charged to ourselves, whichever peer returns them.
        let feed_sender = if feed.member == here.me { &here.me } else { &self.exchange.members[from] };
        let (chain, me) = (&here.disk.chain, &here.me);
        let verified = verify_backfills(&feed, feed_sender, message, &request.found.ranges, &undisclosed, chain, me);
        let verified = match verified {
            Err(_) if self.mutation == Some(Mutation::BackfillAnything) => {
                Ok(defects::unverified_backfill(&feed, message, &undisclosed))
            }
            Ok(_) if self.mutation == Some(Mutation::HandToAnyone) => {
                Ok(defects::unverified_backfill(&feed, message, &undisclosed))
            }
            verified => verified,
        };
        let Ok(backfills) = verified else {
            self.count("backfill rejected");
            self.note("backfill rejected", to, &[]);
            return self.put_off(to, from, number);
        };
        self.count_findings(to, &feed, &backfills.findings);
        if !self.nodes[to].live.has_room() {
            return self.put_off(to, from, number);
        }
        let live = &mut self.nodes[to].live;
        if let Some(request) = live.requests.get_mut(&from) {
            request.scanned_to = message.scanned_to;
        }
        if backfills.entries.is_empty() {
            return self.backfilled(to, &feed, from, number, 0);
        }
        live.waiting.push(Work::Backfill(Box::new(backfills), from, number));
        self.soon(8, Event::Commit(to));
    }

    /// The content is durable: requests the next part.
    pub(crate) fn backfilled(&mut self, node: usize, feed: &FeedId, from: usize, number: u64, got: u64) {
        if got > 0 {
            self.coverage.add("backfilled", got);
            if self.exchange.members[from] != feed.member {
                self.coverage.add("backfilled by a member other than the owner", got);
            }
        }
        let live = &mut self.nodes[node].live;
        if live.requests.get(&from).is_some_and(|request| request.number == number)
            && let Some(request) = live.requests.remove(&from)
        {
            let backfill_schedule = live.backfill_schedule.entry((from, feed.clone())).or_default();
            backfill_schedule.on_response(&request.found, request.scanned_to, got);
            if self.nodes[node].live.linked.contains(&from) {
                self.request_backfill(node, from);
            }
        }
    }

    pub(crate) fn count_findings(&mut self, node: usize, feed: &FeedId, findings: &[Finding]) {
        for finding in findings {
            self.count(match &finding.kind {
                FindingKind::Excluded => "entry found: excluded",
                FindingKind::UndecodableHeader => "entry found: undecodable-header",
                FindingKind::NotUnderstood => "entry found: not-understood",
                FindingKind::Misdirected => "entry found: misdirected",
                FindingKind::TooLarge => "entry found: too-large",
                FindingKind::NewerRoster(_) => "entry found: newer-roster",
                FindingKind::WronglyWithheld => "entry found: wrongly-withheld",
            });
            if finding.kind == FindingKind::WronglyWithheld {
                self.model.blamed.push((node, (feed.clone(), finding.index)));
            }
        }
    }
}

/// Returns the ranges from an index on that are held as digests, each with one reason.
fn not_held(log: &Log, from: u64) -> NotHeld {
    let mut ranges: NotHeld = Vec::new();
    let start = usize::try_from(from).unwrap_or(usize::MAX);
    for (entry, index) in log.entries.iter().zip(0_u64..).skip(start) {
        let Content::Undisclosed(reason) = entry.content else { continue };
        let full = ranges.len() == BACKFILL_ENTRIES_MAX;
        match ranges.last_mut() {
            Some((range, last)) if range.end == index && *last == reason => range.end = index + 1,
            _ if full => break,
            _ => ranges.push((index..index + 1, reason)),
        }
    }
    ranges
}

/// The entries of a message that are held as digests.
pub(crate) type UndisclosedEntries = BTreeMap<u64, (barid_core::ids::Digest, barid_core::ids::Undisclosed)>;
