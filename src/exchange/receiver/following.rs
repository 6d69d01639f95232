//! Chooses the feeds to follow over a link: the peer's own, those it relays, and our own after a
//! loss.

use std::time::Duration;

use barid_core::follow::FollowState;
use barid_core::ids::FeedId;
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::quota::Tier;
use tokio::time::Instant;

use super::LinkReceiver;
use super::faults::ELSEWHERE;
use crate::exchange::feed_receiver::FeedReceiver;

impl LinkReceiver {
    /// Requests every feed of the peer that the roster has put in force and that is not followed
    /// yet.
    pub(super) fn follow_peer_feeds(&mut self) {
        let rosters = self.shared.options.rosters.load();
        for feed in self.shared.feeds_in_force(&self.peer, rosters.newest()) {
            if !self.feed_receivers.contains_key(&feed) && !self.shared.stopped_feeds.contains(&feed) {
                self.start_following(feed);
            }
        }
        self.follow_upstream();
    }

    /// Requests the feeds of other members that are to be followed at this peer, and closes those
    /// that no longer are.
    pub(super) fn follow_upstream(&mut self) {
        let upstream_feeds = self.shared.upstream_feeds_at(&self.peer);
        self.next_check = upstream_feeds.next_check;
        for (feed, feed_receiver) in &mut self.feed_receivers {
            let owner = &feed.member;
            if *owner != self.peer
                && *owner != self.shared.me
                && !upstream_feeds.feeds.contains(feed)
                && !feed_receiver.is_closed()
            {
                feed_receiver.close();
                self.send_queue.fault(feed.to_string(), ELSEWHERE, String::new());
            }
        }
        for feed in upstream_feeds.feeds {
            if self.feed_receivers.get(&feed).is_none_or(FeedReceiver::is_closed) {
                self.start_following(feed);
            }
        }
    }

    pub(super) fn start_following(&mut self, feed: FeedId) {
        let state = self.follow_state(&feed);
        self.send_follow(&feed, &state);
        match self.feed_receivers.get_mut(&feed) {
            Some(feed_receiver) => feed_receiver.restart(state),
            None => _ = self.feed_receivers.insert(feed, FeedReceiver::requested(state)),
        }
    }

    /// Requests the part of our own feeds that the peer has and we lack, unless another link is
    /// fetching it.
    pub(super) fn follow_own(&mut self) {
        let (feeds, check_at) = self.shared.own_feeds_to_follow(&self.peer, self.link);
        self.own_check_at = check_at;
        for feed in feeds {
            if !self.feed_receivers.contains_key(&feed) {
                self.start_following(feed);
            }
        }
    }

    /// There is disk space again: retry paused feeds at once.
    pub(super) fn retry_paused(&mut self) {
        let now = Instant::now();
        self.feed_receivers.values_mut().filter(|feed_receiver| feed_receiver.retry_at().is_some()).for_each(
            |feed_receiver| {
                feed_receiver.pause_for(now, Duration::ZERO);
            },
        );
    }

    pub(super) fn retry_follows(&mut self) {
        let now = Instant::now();
        if *self.shared.options.committer.tier().borrow() < Tier::Digests {
            // Nothing could be committed, so nothing is requested.
            let expired = self
                .feed_receivers
                .values_mut()
                .filter(|feed_receiver| feed_receiver.retry_at().is_some_and(|retry_at| retry_at <= now));
            expired.for_each(|feed_receiver| _ = feed_receiver.pause(now));
            return;
        }
        let may_retry = |feed_receiver: &FeedReceiver| feed_receiver.retry_at().is_some_and(|retry_at| retry_at <= now);
        self.feed_receivers
            .retain(|feed, feed_receiver| !may_retry(feed_receiver) || !self.shared.stopped_feeds.contains(feed));
        let feeds: Vec<FeedId> = self
            .feed_receivers
            .iter()
            .filter(|(_, feed_receiver)| may_retry(feed_receiver))
            .map(|(feed, _)| feed.clone())
            .collect();
        for feed in feeds {
            let state = self.follow_state(&feed);
            self.send_follow(&feed, &state);
            if let Some(feed_receiver) = self.feed_receivers.get_mut(&feed) {
                feed_receiver.restart(state);
            }
        }
    }

    pub(super) fn follow_state(&self, feed: &FeedId) -> FollowState {
        let compact_range = self.shared.store().feed(feed).map(|state| state.compact_range).unwrap_or_default();
        // Our own entries are charged to ourselves, whichever peer returns them.
        let upstream = if feed.member == self.shared.me { &self.shared.me } else { &self.peer };
        FollowState::new(feed.clone(), compact_range).at(upstream.clone())
    }

    pub(super) fn send_follow(&self, feed: &FeedId, state: &FollowState) {
        self.send_queue.push(Frame::Follow(proto::Follow {
            feed: feed.to_string(),
            from: state.compact_range.size(),
            // Of its own feeds a member follows every topic.
            topics: if feed.member == self.shared.me { Vec::new() } else { self.topics() },
            ranges: Vec::new(),
        }));
    }

    pub(super) fn topics(&self) -> Vec<String> {
        self.shared.options.topics.iter().map(|filter| filter.as_str().to_owned()).collect()
    }
}
