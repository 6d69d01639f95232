//! Waits until other members store a bulletin in full, as their custody notes attest.
//!
//! In scope: the requirement of a publish request, and the wait. Out of scope: verifying and
//! storing custody notes (`exchange`, `committer`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use barid_core::bulletin::Rule;
use barid_core::bulletin::audience::{audience, may_read};
use barid_core::bulletin::field::Report;
use barid_core::ids::{FeedId, Member};
use barid_core::proto;
use tokio::sync::broadcast::error::RecvError;
use tonic::Status;

use super::{Api, errors};
use crate::store::ReadError;

/// Timeout if the request gives none.
const WAIT_DEFAULT: Duration = Duration::from_secs(30);
/// Longest timeout of a call.
const WAIT_MAX: Duration = Duration::from_secs(600);

/// A validated `WaitFor`.
#[derive(Clone, Debug)]
pub(super) struct StoredRequirement {
    count: usize,
    /// With their positions in the request.
    members: BTreeMap<Member, usize>,
    timeout: Duration,
}

impl StoredRequirement {
    pub(super) fn read(wait: &proto::WaitFor, api: &Api) -> Result<Self, Status> {
        let roster = api.rosters.load().newest_shared();
        let others = roster.entries().count().saturating_sub(1);
        if wait.members.len() > others {
            let found = format!("{} members", wait.members.len());
            return Err(errors::argument("wait_for.members", found, Rule::OthersAtMost { max: others }));
        }
        let mut members = BTreeMap::new();
        for (n, code) in wait.members.iter().enumerate() {
            let field = format!("wait_for.members[{n}]");
            let member: Member = code.parse().map_err(|_| errors::argument(&field, code, Rule::Member))?;
            if member == *api.me() || roster.member(&member).is_none() {
                return Err(errors::argument(&field, code, Rule::ListedOtherMember));
            }
            members.entry(member).or_insert(n);
        }
        if wait.count == 0 && wait.members.is_empty() {
            return Err(errors::argument("wait_for.count", 0, Rule::WaitCount));
        }
        if wait.count as usize > others {
            return Err(errors::argument("wait_for.count", wait.count, Rule::OthersAtMost { max: others }));
        }
        let timeout = match wait.timeout_ms {
            0 => WAIT_DEFAULT,
            ms => Duration::from_millis(ms.into()).min(WAIT_MAX),
        };
        Ok(Self { count: wait.count as usize, members, timeout })
    }

    /// Rejects a requirement that cannot be met. Only members that may read the bulletin, by its
    /// own roster and by the newest, receive it in full. Whether such a member subscribes to the
    /// topic is not known here.
    pub(super) fn check_possible(&self, header: &proto::Header, api: &Api) -> Result<(), Status> {
        let rosters = api.rosters.load();
        let newest = rosters.newest();
        let readers = audience(header, rosters.at(header.roster_version).unwrap_or(newest));
        let reads = |member: &Member| member != api.me() && may_read(header, member, newest);
        let readers: BTreeSet<Member> = readers.into_iter().filter(reads).collect();
        let mut report = Report::default();
        for (member, n) in self.members.iter().filter(|(member, _)| !readers.contains(member)) {
            let listed = newest.member(member).is_some();
            let rule = if listed { Rule::InAudience } else { Rule::ListedMember };
            report.add(format_args!("wait_for.members[{n}]"), member, rule);
        }
        if self.count > readers.len() {
            report.add("wait_for.count", self.count, Rule::AudienceAtMost { max: readers.len() });
        }
        errors::check(report)
    }

    fn reached(&self, holders: &BTreeMap<Member, u64>) -> bool {
        holders.len() >= self.count && self.members.keys().all(|member| holders.contains_key(member))
    }
}

impl Api {
    /// Returns the members that hold an entry of one of this member's feeds in full, with the times
    /// of their custody notes. Blocks.
    pub(super) fn holders(&self, feed: &FeedId, index: u64) -> Result<BTreeMap<Member, u64>, ReadError> {
        let notes = self.store().custody_covering(feed, index)?;
        Ok(notes.into_iter().map(|note| (note.holder, note.time)).collect())
    }

    /// Waits until the requirement is met or timed out. Returns the members that hold the entry,
    /// and whether the requirement is met.
    pub(super) async fn wait_stored(
        &self,
        feed: &FeedId,
        index: u64,
        requirement: &StoredRequirement,
    ) -> Result<(Vec<proto::StoredBy>, bool), Status> {
        let held = || {
            let feed = feed.clone();
            self.reading(move |api| api.holders(&feed, index))
        };
        let mut notes = self.committer.custody_notes();
        let mut holders = held().await?;
        let deadline = tokio::time::Instant::now() + requirement.timeout;
        while !requirement.reached(&holders) {
            let news = tokio::select! {
                news = tokio::time::timeout_at(deadline, notes.recv()) => news,
                // The entry is durable here. The caller can ask later which members hold it.
                () = self.stopped() => break,
            };
            match news {
                Ok(Ok(new)) => {
                    for note in new.iter().filter(|note| note.feed == *feed && note.holds(index)) {
                        holders.entry(note.holder.clone()).or_insert(note.time);
                    }
                }
                Ok(Err(RecvError::Lagged(_))) => holders = held().await?,
                Ok(Err(RecvError::Closed)) | Err(_) => break,
            }
        }
        let reached = requirement.reached(&holders);
        Ok((stored_by(holders), reached))
    }
}

pub(super) fn stored_by(holders: BTreeMap<Member, u64>) -> Vec<proto::StoredBy> {
    let one = |(member, time): (Member, u64)| proto::StoredBy { member: member.to_string(), at: Some(seconds(time)) };
    holders.into_iter().map(one).collect()
}

/// Converts Unix seconds to a timestamp.
pub(super) fn seconds(time: u64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: i64::try_from(time).unwrap_or(i64::MAX), nanos: 0 }
}
