//! Replication between nodes: where each feed is followed, and which batches are accepted.
//!
//! In scope: core's decisions, the state around them, and the injected defects. Out of scope:
//! serving (`serve`), the network (`network`), backfill (`backfill`), forks (`forks`), own feeds
//! (`epochs`), priority entries (`priority`).

use barid_core::follow::{Fault, FaultKind, FollowState, verify_entries};
use barid_core::ids::{FeedId, Member};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::upstream::RELAY_GRACE_MS;
use bytes::Bytes;
use prost::Message;

use crate::live::Following;
use crate::node::{Followed, Work};
use crate::world::{Event, UNIT_MS, World};
use crate::{Mutation, defects, future_version, serve};

/// How long a feed of which a peer announces more may deliver nothing before it is requested again.
const RETRY_AFTER: u64 = 90;
/// Pause after a rejection; it doubles up to the maximum.
const PAUSE: u64 = 10;
const PAUSE_MAX: u64 = 200;

impl World {
    /// Checks a node's links, and the feeds that it follows over them.
    pub(crate) fn tick(&mut self, node: usize) {
        for peer in (0..self.nodes.len()).filter(|peer| *peer != node) {
            let linked = self.nodes[node].is_member() && self.can_link(node, peer);
            match (self.nodes[node].live.linked.contains(&peer), linked) {
                (false, true) => self.link_up(node, peer),
                (true, false) => self.link_down(node, peer),
                _ => {}
            }
            if !linked {
                let now = self.now;
                self.nodes[node].live.away.entry(peer).or_insert(now);
            }
        }
        if !self.nodes[node].is_member() {
            return;
        }
        for peer in self.nodes[node].live.linked.clone() {
            self.follow_wanted(node, peer);
            self.announce_heads(node, peer);
            self.request_backfill(node, peer);
            if self.nodes[node].nature.newer && self.random.chance(3) {
                self.carry(node, peer, future_version::unknown_frame(), false);
            }
        }
        self.follow_relayed(node);
        self.fetch_own(node);
        self.retry_following(node);
        self.compare_again(node);
        self.name_closed(node);
    }

    /// Opens a link, for both sides.
    fn link_up(&mut self, node: usize, peer: usize) {
        for (here, there) in [(node, peer), (peer, node)] {
            let live = &mut self.nodes[here].live;
            live.linked.insert(there);
            live.away.remove(&there);
            self.forget_link(here, there);
        }
    }

    /// Ends a link, for both sides.
    fn link_down(&mut self, node: usize, peer: usize) {
        self.count("link down");
        for (here, there) in [(node, peer), (peer, node)] {
            self.nodes[here].live.linked.remove(&there);
            self.forget_link(here, there);
        }
    }

    /// Drops the state of a link.
    pub(crate) fn forget_link(&mut self, node: usize, peer: usize) {
        let live = &mut self.nodes[node].live;
        live.serving.retain(|(to, _), _| *to != peer);
        live.unmatched.remove(&peer);
        live.announced.retain(|(to, _), _| *to != peer);
        live.announced_roster.remove(&peer);
        live.peer_rosters.remove(&peer);
        live.advertised.retain(|(_, by), _| *by != peer);
        live.ahead.retain(|(_, by), _| *by != peer);
        live.following.retain(|_, following| following.at != peer);
        live.fetching.values_mut().filter(|fetch| fetch.at == Some(peer)).for_each(|fetch| fetch.at = None);
        if let Some(number) = live.requests.get(&peer).map(|request| request.number) {
            self.put_off(node, peer, number);
        }
    }

    /// After a newer roster: ends links to members that it no longer lists.
    pub(crate) fn roster_adopted(&mut self, node: usize) {
        for peer in self.nodes[node].live.linked.clone() {
            if !self.can_link(node, peer) {
                self.link_down(node, peer);
            }
        }
        let here = &mut self.nodes[node];
        let chain = &here.disk.chain;
        here.live.following.retain(|feed, _| !chain.newest().feed_keys(feed).is_empty());
        here.live.announced_roster.clear();
    }

    /// Follows a linked member's own feeds over its link.
    fn follow_wanted(&mut self, node: usize, peer: usize) {
        for epoch in 1..=self.exchange.epochs[peer] {
            let feed = self.exchange.feed(peer, epoch);
            if self.is_behind(node, peer, &feed) {
                self.count("owner behind a relay");
                self.follow_at_relay(node, &feed);
                continue;
            }
            let live = &mut self.nodes[node].live;
            live.relays.remove(&feed);
            if live.following.get(&feed).is_none_or(|following| following.at != peer) && !live.stopped.contains(&feed) {
                self.begin(node, &feed, peer);
            }
        }
    }

    /// Whether a linked owner has long announced no more than is held here, while another peer
    /// announces more.
    fn is_behind(&mut self, node: usize, owner: usize, feed: &FeedId) -> bool {
        let (now_ms, here) = (self.now_ms(), &mut self.nodes[node]);
        let held = here.disk.size(feed);
        let advertised = |peer: usize| here.live.advertised.get(&(feed.clone(), peer)).copied().unwrap_or(0);
        let others = here.live.linked.iter().filter(|peer| **peer != owner).map(|peer| advertised(*peer)).max();
        let owner_shows = here.live.heads_of.contains(&owner).then(|| advertised(owner));
        let behind = here.live.behind.entry(feed.clone()).or_default();
        behind.update(held, owner_shows, others.unwrap_or(0), now_ms)
    }

    /// Follows the feeds of members without a link at relays.
    fn follow_relayed(&mut self, node: usize) {
        let away: Vec<(usize, u64)> = self.nodes[node].live.away.iter().map(|(peer, since)| (*peer, *since)).collect();
        for (owner, since) in away {
            let member = &self.exchange.members[owner];
            let early = (self.now - since) * UNIT_MS < RELAY_GRACE_MS;
            if early || !self.nodes[node].knows(member) || self.has(Mutation::NoRelay) {
                continue;
            }
            for epoch in 1..=self.exchange.epochs[owner] {
                let feed = self.exchange.feed(owner, epoch);
                if !self.nodes[node].live.stopped.contains(&feed) {
                    self.follow_at_relay(node, &feed);
                }
            }
        }
    }

    fn follow_at_relay(&mut self, node: usize, feed: &FeedId) {
        let (now_ms, here) = (self.now_ms(), &mut self.nodes[node]);
        let live = &mut here.live;
        let size = |peer: &usize| live.advertised.get(&(feed.clone(), *peer)).copied().unwrap_or(0);
        let member = |peer: usize| &self.exchange.members[peer];
        let others = live.linked.iter().filter(|peer| *member(**peer) != feed.member);
        let advertised: Vec<(Member, u64)> = others.map(|peer| (member(*peer).clone(), size(peer))).collect();
        let held = here.disk.size(feed);
        let relay = live.relays.entry(feed.clone()).or_default();
        let before = relay.at().cloned();
        let at = relay.choose(held, &advertised, now_ms).cloned();
        let left = before.is_some() && before != at;
        let at = at.and_then(|at| self.exchange.position(&at));
        if left {
            self.count("relay replaced by another");
        }
        let following = self.nodes[node].live.following.get(feed).map(|following| following.at);
        match at {
            Some(at) if following != Some(at) => self.begin(node, feed, at),
            Some(_) => {}
            None => drop(self.nodes[node].live.following.remove(feed)),
        }
    }

    /// Requests a feed from a peer, from the committed size on.
    pub(crate) fn begin(&mut self, node: usize, feed: &FeedId, at: usize) {
        let here = &mut self.nodes[node];
        let compact_range = here.disk.logs.get(feed).map(|log| log.tree.compact_range().clone()).unwrap_or_default();
        // Our own entries are charged to ourselves, whichever peer returns them.
        let own = feed.member == here.me;
        let feed_sender = if own { here.me.clone() } else { self.exchange.members[at].clone() };
        let state = FollowState::new(feed.clone(), compact_range).at(feed_sender);
        let from = state.compact_range.size();
        let before = here.live.following.remove(feed);
        let (rejections, request) = before.map_or((0, 0), |before| (before.rejections, before.request));
        let following = Following {
            state,
            at,
            since: self.now,
            paused_until: None,
            rejections,
            request: request + 1,
            committing: 0,
        };
        here.live.following.insert(feed.clone(), following);
        // Of its own feeds a member follows every topic.
        let filters = here.topics.iter().filter(|_| !own);
        let topics = filters.map(|filter| filter.as_str().to_owned()).collect();
        let follow = proto::Follow { feed: feed.to_string(), from, topics, ..proto::Follow::default() };
        self.send(node, at, Frame::Follow(follow));
    }

    /// Requests feeds again whose pause is over, and those that deliver less than the peer
    /// announces.
    fn retry_following(&mut self, node: usize) {
        let (now, live) = (self.now, &self.nodes[node].live);
        let ready = |(feed, following): (&FeedId, &Following)| {
            let advertised = live.advertised.get(&(feed.clone(), following.at)).copied().unwrap_or(0);
            let silent = advertised > following.state.compact_range.size() && now - following.since > RETRY_AFTER;
            let ready = following.paused_until.map_or(silent, |until| until <= now);
            (ready && following.committing == 0).then(|| (feed.clone(), following.at))
        };
        let ready: Vec<(FeedId, usize)> = live.following.iter().filter_map(ready).collect();
        for (feed, at) in ready {
            self.begin(node, &feed, at);
        }
    }

    /// Discards the verified but uncommitted batches of a feed, and requests it again after a
    /// pause.
    pub(crate) fn restart_following(&mut self, node: usize, feed: &FeedId, pause: u64) {
        let until = self.now + pause;
        if let Some(following) = self.nodes[node].live.following.get_mut(feed) {
            (following.paused_until, following.committing) = (Some(until), 0);
            following.request += 1;
        }
    }

    // Receiving.

    pub(crate) fn entries(&mut self, from: usize, to: usize, message: &proto::Entries) {
        let Ok(feed) = message.feed.parse::<FeedId>() else { return };
        let (now, trouble, here) = (self.now, self.trouble(), &mut self.nodes[to]);
        if here.live.stopped.contains(&feed) {
            here.live.following.remove(&feed);
            return;
        }
        let room = here.live.has_room() || self.mutation == Some(Mutation::UnboundedQueue);
        // Batches of a feed that is followed elsewhere now are dropped.
        let Some(following) = here.live.following.get_mut(&feed).filter(|following| following.at == from) else {
            return;
        };
        // During the trouble frames are repeated. Afterwards it is a gap: a batch of an earlier
        // request was taken for the reply.
        if following.paused_until.is_some() || trouble && message.first < following.state.compact_range.size() {
            return;
        }
        if !room {
            self.count("queue full");
            return self.restart_following(to, &feed, 20);
        }
        let (chain, me) = (&here.disk.chain, &here.me);
        let verified = match verify_entries(&following.state, message, chain, me) {
            Err(fault) if self.mutation == Some(Mutation::AcceptAnyRoot) => {
                defects::unverified(&following.state, message, fault)
            }
            Ok(batch) if self.mutation == Some(Mutation::StopAtFindings) && !batch.findings.is_empty() => {
                Err(Fault { kind: FaultKind::Malformed, detail: "something in an entry".into() })
            }
            verified => verified,
        };
        match verified {
            Ok(mut batch) => {
                if self.mutation == Some(Mutation::SkipAudience) {
                    defects::accept_everything(&mut batch, message);
                }
                following.state.advance(&batch);
                following.since = now;
                following.committing += 1;
                let request = following.request;
                let (relayed, findings) = (self.exchange.members[from] != feed.member, batch.findings.clone());
                let early = (self.mutation == Some(Mutation::CosignBeforeCommit)).then(|| batch.checkpoint.clone());
                here.live.waiting.push(Work::Batch(Box::new(batch), from, request));
                self.soon(8, Event::Commit(to));
                self.count_findings(to, &feed, &findings);
                if relayed {
                    self.count("relayed");
                }
                if let Some(checkpoint) = early {
                    self.cosign(to, &checkpoint);
                }
            }
            Err(fault) => self.reject(from, to, &feed, &fault),
        }
    }

    /// Rejects a whole batch: the feed pauses, the others continue.
    pub(crate) fn reject(&mut self, from: usize, to: usize, feed: &FeedId, fault: &Fault) {
        self.count(match &fault.kind {
            FaultKind::BadSignature => "batch rejected: bad-signature",
            FaultKind::BadProof => "batch rejected: bad-proof",
            FaultKind::BadRoot => "batch rejected: bad-root",
            FaultKind::BadBounds => "batch rejected: bad-bounds",
            FaultKind::Malformed => "batch rejected: malformed",
            FaultKind::Gap => "batch rejected: gap",
            FaultKind::Equivocation(_) => "batch rejected: equivocation",
        });
        self.note("rejected", to, fault.kind.as_str().as_bytes());
        match &fault.kind {
            FaultKind::BadProof | FaultKind::BadRoot if self.has(Mutation::FalseFork) => {
                self.nodes[to].live.stopped.insert(feed.clone());
            }
            // The batch is invalid or of another fork. If it is a fork, the peer can prove it.
            FaultKind::BadProof | FaultKind::BadRoot => self.request_consistency(to, from, feed),
            FaultKind::Equivocation(evidence) => self.forked(to, evidence),
            _ => {}
        }
        let own = feed.member == self.nodes[to].me;
        if own {
            self.put_off_fetch(to, feed, from);
        }
        let (never, now) = (self.has(Mutation::NeverRetry), self.now);
        let live = &mut self.nodes[to].live;
        if own {
            live.following.remove(feed);
        } else if let Some(following) = live.following.get_mut(feed) {
            let out_of_order = matches!(fault.kind, FaultKind::Gap);
            let pause = if out_of_order { PAUSE } else { (PAUSE << following.rejections.min(8)).min(PAUSE_MAX) };
            following.rejections += u32::from(!out_of_order);
            following.paused_until = Some(if never { u64::MAX } else { now + pause });
            following.committing = 0;
            following.request += 1;
        }
    }

    /// A batch is durable: its sender may send the next.
    pub(crate) fn stored(&mut self, node: usize, done: &Followed) {
        let Followed { feed, from, request, served, missing, reduced } = done;
        let (now, size) = (self.now, self.nodes[node].size(feed));
        let live = &mut self.nodes[node].live;
        if let Some(following) = live.following.get_mut(feed).filter(|following| following.request == *request) {
            following.rejections = 0;
            following.committing = following.committing.saturating_sub(1);
            following.since = now;
        }
        if let Some(fetch) = live.fetching.get_mut(feed) {
            fetch.since = now;
        }
        let backfill_schedule = live.backfill_schedule.entry((*from, feed.clone())).or_default();
        backfill_schedule.on_batch(served.start, served.end, *missing);
        if *reduced {
            backfill_schedule.dropped_from(served.start);
        }
        self.send(node, *from, Frame::ReplicationProgress(proto::ReplicationProgress { feed: feed.to_string(), size }));
        if feed.member == self.nodes[node].me {
            self.count("own feed fetched from a peer");
        }
        if *missing > 0 {
            for peer in self.nodes[node].live.linked.clone() {
                self.request_backfill(node, peer);
            }
        }
    }

    /// Handles a frame from the network.
    pub(crate) fn receive(&mut self, from: usize, to: usize, bytes: Bytes) {
        let peer = &self.exchange.members[from];
        // Frames from a node that the newest roster does not list are ignored.
        if !self.nodes[to].knows(peer) || !self.nodes[to].is_member() {
            return;
        }
        if !self.nodes[to].live.linked.contains(&from) && self.can_link(to, from) {
            self.link_up(to, from);
        }
        // An unreadable frame ends the link; the next tick opens another one.
        let Ok(proto::Frame { frame }) = proto::Frame::decode(bytes) else {
            self.count("frame unreadable");
            return self.end_link(to, from);
        };
        if let Some(frame) = &frame {
            self.log_event(|| format!("{to} receives from {from}: {}", serve::describe(frame)));
        }
        match frame {
            Some(Frame::Follow(follow)) => self.followed(from, to, &follow),
            Some(Frame::Entries(entries)) => self.entries(from, to, &entries),
            Some(Frame::PriorityEntry(priority)) => self.priority(from, to, &priority),
            Some(Frame::BackfillResponse(backfills)) => self.backfills(from, to, &backfills),
            Some(Frame::ReplicationProgress(stored)) => self.peer_stored(from, to, &stored),
            Some(Frame::TreeHeads(heads)) => self.heads(from, to, &heads),
            Some(Frame::Cosigned(cosigned)) => self.cosigned(from, to, &cosigned),
            Some(Frame::ConsistencyRequest(request)) => self.receive_consistency_request(from, to, &request),
            Some(Frame::Consistency(advertised)) => self.receive_consistency(to, &advertised),
            Some(Frame::RosterRequest(request)) => {
                let notes = self.nodes[to].disk.chain.notes().filter(|(version, _)| *version > request.after);
                let notes: Vec<Bytes> = notes.map(|(_, note)| note.clone()).collect();
                if !notes.is_empty() && !self.nodes[to].nature.mute {
                    self.send(to, from, Frame::Rosters(proto::Rosters { notes }));
                }
            }
            Some(Frame::Rosters(rosters)) => {
                for note in rosters.notes.into_iter().take(8) {
                    if self.nodes[to].live.has_room() {
                        self.nodes[to].live.waiting.push(Work::Roster(note));
                    }
                }
                self.soon(6, Event::Commit(to));
            }
            Some(_) => {}
            // A frame of a newer version.
            None => self.count("frame unknown"),
        }
    }

    fn end_link(&mut self, node: usize, peer: usize) {
        if self.nodes[node].live.linked.contains(&peer) {
            self.link_down(node, peer);
        }
    }
}
