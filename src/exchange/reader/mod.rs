//! The reading task of a link: verifies what comes, hands it to the committer, and leaves the answers to the writer.

mod faults;
mod shown;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use barid_core::bulletin::TopicFilter;
use barid_core::follow::{self, Fault, FaultKind, FollowState, VerifiedBatch, VerifiedContent, VerifiedEntry};
use barid_core::gaps::is_missing;
use barid_core::limits::FILTERS_MAX;
use barid_core::names::{FeedId, Member};
use barid_core::proto;
use barid_core::proto::frame::Frame;
use barid_core::quota::Tier;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesOrdered, StreamExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::background;
use crate::committer::{Appended, CommitFailure};
use crate::exchange::adopt::{adopt, rosters_after};
use crate::exchange::answers::Signed;
use crate::exchange::express;
use crate::exchange::fills::{Answer, FillRequest};
use crate::exchange::findings::tell_findings;
use crate::exchange::follower::Follower;
use crate::exchange::forks;
use crate::exchange::link::LinkError;
use crate::exchange::outbox::Outbox;
use crate::exchange::own::LinkNumber;
use crate::exchange::provider::Provider;
use crate::exchange::relayed::Passing;
use crate::exchange::told;
use crate::exchange::work;
use crate::exchange::{COMMITTING_MAX, SILENCE_MAX, Shared};
use crate::telemetry::AuditEvent;
use faults::ELSEWHERE;

/// Batches of at most so many items are verified on the spot; longer ones would keep other links waiting.
const VERIFIED_AT_ONCE_MAX: usize = 16;
/// Pause before a feed is asked for again because another link was faster.
const STALE_PAUSE: Duration = Duration::from_millis(100);

type Committing = BoxFuture<'static, Committed>;

struct Committed {
    feed: FeedId,
    request: u64,
    first: u64,
    /// Entries whose content the peer did not hold; others may.
    lacks: u64,
    result: Result<Appended, CommitFailure>,
}

pub(crate) struct Reader {
    shared: Arc<Shared>,
    peer: Member,
    outbox: Arc<Outbox>,
    signed: mpsc::Sender<Signed>,
    answers: mpsc::Sender<Answer>,
    followers: BTreeMap<FeedId, Follower>,
    committing: FuturesOrdered<Committing>,
    roster_asked: u64,
    /// When to look again which feeds of others are followed here.
    look_again: Option<Instant>,
    heard_at: Instant,
    link: LinkNumber,
    /// When to look again which of our own feeds are followed here.
    own_again: Option<Instant>,
    passing: Passing,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shared.own.gone(self.link);
    }
}

impl Reader {
    pub(crate) fn new(
        shared: Arc<Shared>,
        peer: Member,
        outbox: Arc<Outbox>,
        signed: mpsc::Sender<Signed>,
        answers: mpsc::Sender<Answer>,
    ) -> Self {
        Self {
            shared,
            peer,
            outbox,
            signed,
            answers,
            look_again: None,
            followers: BTreeMap::new(),
            committing: FuturesOrdered::new(),
            roster_asked: 0,
            heard_at: Instant::now(),
            link: LinkNumber::next(),
            own_again: None,
            passing: Passing::new(),
        }
    }

    /// Reads until the link ends, and says why.
    pub(crate) async fn run(
        mut self,
        their_roster: u64,
        mut incoming: BoxStream<'static, Result<proto::Frame, String>>,
    ) -> LinkError {
        match self.read(their_roster, &mut incoming).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn read(
        &mut self,
        their_roster: u64,
        incoming: &mut BoxStream<'static, Result<proto::Frame, String>>,
    ) -> Result<std::convert::Infallible, LinkError> {
        let mut rosters = self.shared.options.rosters.watch();
        let mut links = self.shared.peers.watch();
        let (mut own, mut gate) = (self.shared.own.watch(), self.shared.options.committer.gate());
        let mut tier = self.shared.options.committer.tier();
        self.newer_roster(their_roster);
        self.follow_wanted();
        self.follow_own();
        self.ask_for_answers().await;
        loop {
            let due = self.followers.values().filter_map(Follower::due).min();
            let open = self.committing.len() < COMMITTING_MAX;
            tokio::select! {
                biased;
                Some(done) = self.committing.next() => self.committed(done)?,
                changed = rosters.changed() => {
                    if changed.is_err() {
                        return Err(LinkError::Stopped);
                    }
                    if self.shared.options.rosters.load().newest().member(&self.peer).is_none() {
                        return Err(LinkError::Expelled);
                    }
                    self.follow_wanted();
                }
                () = sleep_until(due) => self.follow_due(),
                _ = links.changed() => self.follow_wanted(),
                () = sleep_until(self.look_again) => self.follow_relayed(),
                _ = own.changed() => self.follow_own(),
                _ = gate.changed() => self.follow_own(),
                _ = tier.changed() => {
                    if *tier.borrow_and_update() >= Tier::Digests {
                        // What was said meanwhile may not have been kept.
                        self.ask_for_answers().await;
                        self.go_on();
                    }
                }
                () = sleep_until(self.own_again) => self.follow_own(),
                frame = incoming.next(), if open => match frame {
                    Some(Ok(frame)) => {
                        self.heard_at = Instant::now();
                        self.take(frame).await?;
                    }
                    Some(Err(error)) => return Err(LinkError::Broken(error)),
                    None => return Err(LinkError::Closed),
                },
                () = tokio::time::sleep_until(self.heard_at + SILENCE_MAX), if open => return Err(LinkError::Silent),
            }
            if self.outbox.overflown() {
                return Err(LinkError::Flood);
            }
        }
    }

    async fn take(&mut self, frame: proto::Frame) -> Result<(), LinkError> {
        if let Some(frame) = &frame.frame {
            self.shared.work.charge(&self.peer, work::price(frame)).await;
        }
        match frame.frame {
            Some(Frame::Entries(entries)) => self.entries(entries).await?,
            Some(Frame::Express(express)) => self.express(express).await,
            Some(Frame::Stored(stored)) => match stored.feed.parse() {
                Ok(feed) => self.outbox.acknowledged(&feed, stored.size),
                Err(_) => self.malformed(&stored.feed, "the feed's name"),
            },
            Some(Frame::Cosigned(cosigned)) if cosigned.heartbeat_feed.is_empty() => {
                self.sign(Signed::Cosigned(cosigned.note)).await;
            }
            Some(Frame::Cosigned(beat)) => self.sign(Signed::Heartbeat(beat)).await,
            Some(Frame::Custody(custody)) => self.sign(Signed::Custody(custody.note)).await,
            Some(Frame::Heads(heads)) => self.heads(heads).await,
            Some(Frame::Follow(follow)) => self.followed(&follow),
            Some(Frame::RosterRequest(request)) => {
                let rosters = rosters_after(&self.shared.options.rosters.load(), request.after);
                if !rosters.notes.is_empty() {
                    self.outbox.push(Frame::Rosters(rosters));
                }
            }
            Some(Frame::Rosters(rosters)) => {
                adopt(&self.shared, &self.peer, &rosters.notes).await;
                self.roster_asked = 0;
            }
            Some(Frame::Fills(fills)) => {
                // One that was not asked for, while another one is still being taken, is passed over.
                let _ = self.answers.try_send(Answer::Fills(fills));
            }
            Some(Frame::ConsistencyRequest(request)) => {
                let shared = Arc::clone(&self.shared);
                let answer = tokio::task::spawn_blocking(move || shared.consistency_of(&request)).await;
                if let Ok(Some(answer)) = answer {
                    self.outbox.push(Frame::Consistency(answer));
                }
            }
            Some(Frame::Consistency(shown)) => self.sign(Signed::Consistency(Box::new(shown))).await,
            Some(Frame::AnswersRequest(request)) => self.answer_again(&request).await,
            Some(Frame::RelayedCustodyRequest(request)) => {
                let feed = request.feed.clone();
                if let Err(expected) = self.passing.requested(&self.shared, &self.peer, &self.outbox, request) {
                    self.record_malformed(&feed, expected);
                }
            }
            Some(Frame::RelayedCustody(message)) => {
                let feed = message.feed.clone();
                match self.passing.said(&self.shared, &self.peer, message) {
                    Ok(Some(signed)) => self.sign(signed).await,
                    Ok(None) => {}
                    Err(expected) => self.record_malformed(&feed, expected),
                }
            }
            Some(Frame::Fault(fault)) => self.fault(&fault)?,
            // A second greeting says nothing; what a newer version says is not for us.
            Some(Frame::Hello(_)) | None => {}
        }
        Ok(())
    }

    async fn sign(&mut self, note: Signed) {
        // The other end goes with the link.
        let _ = self.signed.send(note).await;
    }

    // Following.

    /// Asks for every feed of the peer that the roster has put in force and that is not followed yet.
    fn follow_wanted(&mut self) {
        let rosters = self.shared.options.rosters.load();
        for feed in self.shared.wanted(&self.peer, rosters.newest()) {
            if !self.followers.contains_key(&feed) && !self.shared.stopped_feeds.contains(&feed) {
                self.begin(feed);
            }
        }
        self.follow_relayed();
    }

    /// Asks for the feeds of members that cannot be reached and are to be followed here, and leaves those that are no longer.
    fn follow_relayed(&mut self) {
        let relayed = self.shared.relayed_by(&self.peer);
        self.look_again = relayed.look_again;
        for (feed, follower) in &mut self.followers {
            let owner = &feed.member;
            if *owner != self.peer && *owner != self.shared.me && !relayed.feeds.contains(feed) && !follower.has_left()
            {
                follower.leave();
                self.outbox.fault(feed.to_string(), ELSEWHERE, String::new());
            }
        }
        for feed in relayed.feeds {
            if self.followers.get(&feed).is_none_or(Follower::has_left) {
                self.begin(feed);
            }
        }
    }

    fn begin(&mut self, feed: FeedId) {
        let state = self.held(&feed);
        self.ask(&feed, &state);
        match self.followers.get_mut(&feed) {
            Some(follower) => follower.ask_again(state),
            None => _ = self.followers.insert(feed, Follower::asked(state)),
        }
    }

    /// Asks for what the peer has of our own feeds and we have not, where nobody else serves it.
    fn follow_own(&mut self) {
        let (feeds, again) = self.shared.own_at(&self.peer, self.link);
        self.own_again = again;
        for feed in feeds {
            if !self.followers.contains_key(&feed) {
                self.begin(feed);
            }
        }
    }

    /// There is room again: what pauses may begin again at once.
    fn go_on(&mut self) {
        let now = Instant::now();
        self.followers.values_mut().filter(|follower| follower.due().is_some()).for_each(|follower| {
            follower.pause_for(now, Duration::ZERO);
        });
    }

    fn follow_due(&mut self) {
        let now = Instant::now();
        if *self.shared.options.committer.tier().borrow() < Tier::Digests {
            // Nothing could be taken: nothing is sent over the line.
            let due = self.followers.values_mut().filter(|follower| follower.due().is_some_and(|due| due <= now));
            due.for_each(|follower| _ = follower.pause(now));
            return;
        }
        let due = |follower: &Follower| follower.due().is_some_and(|due| due <= now);
        self.followers.retain(|feed, follower| !due(follower) || !self.shared.stopped_feeds.contains(feed));
        let feeds: Vec<FeedId> =
            self.followers.iter().filter(|(_, follower)| due(follower)).map(|(feed, _)| feed.clone()).collect();
        for feed in feeds {
            let state = self.held(&feed);
            self.ask(&feed, &state);
            if let Some(follower) = self.followers.get_mut(&feed) {
                follower.ask_again(state);
            }
        }
    }

    fn held(&self, feed: &FeedId) -> FollowState {
        let frontier = self.shared.store().feed(feed).map(|state| state.frontier).unwrap_or_default();
        // Our own is ours, whoever gives it back.
        let provider = if feed.member == self.shared.me { &self.shared.me } else { &self.peer };
        FollowState::new(feed.clone(), frontier).at(provider.clone())
    }

    fn ask(&self, feed: &FeedId, state: &FollowState) {
        self.outbox.push(Frame::Follow(proto::Follow {
            feed: feed.to_string(),
            from: state.frontier.size(),
            // Of its own a member wants everything.
            topics: if feed.member == self.shared.me { Vec::new() } else { self.topics() },
            ranges: Vec::new(),
        }));
    }

    fn topics(&self) -> Vec<String> {
        self.shared.options.topics.iter().map(|filter| filter.as_str().to_owned()).collect()
    }

    async fn entries(&mut self, entries: proto::Entries) -> Result<(), LinkError> {
        let Ok(feed) = entries.feed.parse::<FeedId>() else {
            self.malformed(&entries.feed, "the feed's name");
            return Ok(());
        };
        let Some(follower) = self.followers.get_mut(&feed) else {
            self.outbox.fault(entries.feed, "not-allowed", "this feed was not asked for".into());
            return Ok(());
        };
        if self.shared.stopped_feeds.contains(&feed) {
            self.followers.remove(&feed);
            self.outbox.fault(entries.feed, "equivocation", "two histories of this feed were seen".into());
            return Ok(());
        }
        if !follower.takes(entries.first) {
            return Ok(());
        }
        let request = follower.request;
        let state = follower.state.clone();
        match self.verify(state, entries).await {
            Ok((state, batch)) => {
                tell_findings(&self.shared, &self.peer, &feed, &batch.findings);
                told::heed_batch(&self.shared, &feed, &batch);
                self.progress(&feed, batch.checkpoint.checkpoint.size, None);
                if let Some(follower) = self.followers.get_mut(&feed) {
                    follower.state = state;
                }
                let own = feed.member == self.shared.me;
                let lacking = |entry: &VerifiedEntry| matches!(entry.content, VerifiedContent::Undisclosed(reason) if is_missing(reason, own));
                let (first, lacks) = (batch.first, batch.entries.iter().filter(|entry| lacking(entry)).count() as u64);
                let answer = self.shared.options.committer.appending(batch).await;
                self.committing.push_back(Box::pin(async move {
                    let stopped = || CommitFailure::Stopped("the committer has ended".into());
                    let result = match answer {
                        Ok(answer) => answer.await.unwrap_or_else(|_| Err(stopped())),
                        Err(failure) => Err(failure),
                    };
                    Committed { feed, request, first, lacks, result }
                }));
            }
            Err(fault) => self.refuse(&feed, &fault),
        }
        Ok(())
    }

    async fn express(&mut self, message: proto::Express) {
        let Ok(feed) = message.feed.parse::<FeedId>() else {
            self.malformed(&message.feed, "the feed's name");
            return;
        };
        let newest = match self.followers.get(&feed) {
            // Our own comes in order only.
            Some(follower) if !follower.has_left() && feed.member != self.shared.me => follower.state.newest.clone(),
            Some(_) => return,
            None => {
                self.outbox.fault(message.feed, "not-allowed", "this feed was not asked for".into());
                return;
            }
        };
        if let Err(fault) = express::take(&self.shared, &self.peer, &feed, newest, message).await {
            self.refuse(&feed, &fault);
        }
    }

    async fn verify(
        &mut self,
        mut state: FollowState,
        entries: proto::Entries,
    ) -> Result<(FollowState, VerifiedBatch), Fault> {
        let (rosters, me) = (self.shared.options.rosters.load(), self.shared.me.clone());
        let short = entries.items.len() <= VERIFIED_AT_ONCE_MAX;
        let verify = move || {
            let batch = follow::verify_entries(&state, &entries, &rosters, &me)?;
            state.advance(&batch);
            Ok((state, batch))
        };
        if short {
            return verify();
        }
        match background::run(verify).await {
            Ok(result) => result,
            Err(_) => Err(Fault { kind: FaultKind::Malformed, detail: "verifying it ended in a panic".into() }),
        }
    }

    fn committed(&mut self, done: Committed) -> Result<(), LinkError> {
        let Committed { feed, request, first, lacks, result } = done;
        let Some(follower) = self.followers.get_mut(&feed) else { return Ok(()) };
        let now = Instant::now();
        match result {
            Ok(Appended { size, reduced }) => {
                let lacks = lacks + reduced;
                follower.succeeded();
                self.progress(&feed, size, Some(size));
                self.shared.gaps.served(&self.peer, &feed, first, size, lacks);
                if reduced > 0 {
                    self.shared.gaps.not_taken(&self.peer, &feed, first);
                }
                if lacks > 0 {
                    self.shared.new_gaps.send_modify(|count| *count += 1);
                }
                self.outbox.stored(feed, size);
            }
            Err(CommitFailure::Stopped(why)) => return Err(LinkError::Store(why)),
            // What a refused batch pulled down with it.
            Err(_) if request != follower.request => {}
            Err(CommitFailure::AnotherEntry { index, shown }) => {
                follower.pause(now);
                self.outbox.fault(feed.to_string(), "equivocation", format!("another entry is held at index {index}"));
                let (shared, peer) = (Arc::clone(&self.shared), self.peer.clone());
                let shown = shown.map(|shown| *shown);
                tokio::spawn(async move { express::another_entry(&shared, &peer, &feed, index, shown).await });
            }
            Err(failure @ CommitFailure::Stale { .. }) => {
                tracing::debug!(%feed, %failure, "asking again");
                follower.pause_for(now, STALE_PAUSE);
                self.outbox.fault(feed.to_string(), "busy", String::new());
            }
            // There was room for the content of others when it came; now there is for digests.
            Err(CommitFailure::DiskFull(_)) if *self.shared.options.committer.tier().borrow() >= Tier::Digests => {
                follower.pause_for(now, STALE_PAUSE);
                self.outbox.fault(feed.to_string(), "busy", String::new());
            }
            Err(failure) => {
                let pause = follower.pause(now);
                tracing::warn!(%feed, %failure, pause_ms = pause.as_millis(), "following pauses");
                self.outbox.fault(feed.to_string(), "busy", failure.to_string());
            }
        }
        Ok(())
    }

    fn progress(&self, feed: &FeedId, known: u64, held: Option<u64>) {
        if feed.member != self.shared.me {
            self.shared.peers.progress(feed, known, held);
        }
    }

    /// Refuses a batch whole: the feed pauses, the others go on.
    fn refuse(&mut self, feed: &FeedId, fault: &Fault) {
        let reason = fault.kind.word();
        let event = AuditEvent { what: "refused-batch", reason, who: &self.peer, subject: feed, detail: &fault.detail };
        self.shared.record(&self.peer, &event);
        if matches!(fault.kind, FaultKind::BadProof | FaultKind::BadRoot) {
            // A lie, or another history: that of the two which it is, the peer may prove.
            forks::ask(&self.shared, &self.peer, feed);
        }
        if let FaultKind::Equivocation(evidence) = &fault.kind {
            let (shared, evidence, by) = (Arc::clone(&self.shared), evidence.as_ref().clone(), self.peer.clone());
            tokio::spawn(async move { forks::found(&shared, evidence.into(), by).await });
        }
        if feed.member == self.shared.me {
            self.followers.remove(feed);
            if !matches!(fault.kind, FaultKind::Equivocation(_)) {
                self.shared.own.refused(feed, &self.peer);
            }
        } else if let Some(follower) = self.followers.get_mut(feed) {
            follower.pause(Instant::now());
        }
        self.outbox.fault(feed.to_string(), reason, fault.detail.clone());
    }

    // Providing.

    fn followed(&self, follow: &proto::Follow) {
        let rosters = self.shared.options.rosters.load();
        let Ok(feed) = follow.feed.parse::<FeedId>() else {
            self.malformed(&follow.feed, "the feed's name");
            return;
        };
        let known = rosters.newest().member(&self.peer).is_some() && !rosters.newest().feed_keys(&feed).is_empty();
        if !known {
            self.outbox.fault(follow.feed.clone(), "not-allowed", "the roster has no such feed".into());
            return;
        }
        let filters: Result<Vec<TopicFilter>, _> = follow.topics.iter().map(|topic| topic.parse()).collect();
        match filters {
            Ok(filters) if filters.len() <= FILTERS_MAX && !follow.ranges.is_empty() => {
                match FillRequest::read(&follow.ranges, filters).map(|request| self.outbox.fill(feed, request)) {
                    Ok(true) => {}
                    Ok(false) => {
                        self.outbox.fault(follow.feed.clone(), "not-allowed", "too many feeds are asked for".into());
                    }
                    Err(what) => self.malformed(&follow.feed, what),
                }
            }
            Ok(filters) if filters.len() <= FILTERS_MAX => {
                if !self.outbox.follow(feed, Provider::new(follow.from, filters)) {
                    self.outbox.fault(follow.feed.clone(), "not-allowed", "too many feeds are followed".into());
                }
            }
            _ => self.malformed(&follow.feed, "the topic filters"),
        }
    }

    fn malformed(&self, feed: &str, what: &str) {
        self.record_malformed(feed, what);
        let feed: String = feed.chars().take(300).collect();
        self.outbox.fault(feed, "malformed", format!("{what} cannot be read"));
    }

    /// What ends neither a feed nor the link.
    fn record_malformed(&self, feed: &str, what: &str) {
        self.shared.record(
            &self.peer,
            &AuditEvent { what: "refused-frame", reason: "malformed", who: &self.peer, subject: &feed, detail: &what },
        );
    }
}

pub(crate) async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
