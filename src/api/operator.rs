//! The Operator service: status, rosters, forks, reload and resuming feeds.

use std::sync::Arc;

use barid_core::bulletin::Rule;
use barid_core::proto;
use bytes::Bytes;
use tonic::{Request, Response, Status};

use super::{Api, errors, methods, stored_wait};
use crate::budgets::{Owner, Usage};
use crate::clock;
use crate::committer::PublishState;
use crate::rpc::operator_server::Operator;
use crate::telemetry::alarms::ActiveAlarm;
use crate::telemetry::{AuditEvent, audit};

fn budget_usage(usage: Usage) -> proto::BudgetUsage {
    let owner = |(owner, used): (Owner, u64)| proto::OwnerUsage { owner: owner.to_string(), used };
    proto::BudgetUsage {
        name: usage.spec.name.to_owned(),
        unit: usage.spec.unit.to_owned(),
        used: usage.used,
        total: usage.bounds.total,
        per_owner: usage.bounds.per_owner,
        reserved: usage.bounds.reserved,
        high_water: usage.high_water,
        denied: usage.denied,
        owners: usage.owners.into_iter().map(owner).collect(),
    }
}

#[tonic::async_trait]
impl Operator for Api {
    async fn get_status(
        &self,
        request: Request<proto::GetStatusRequest>,
    ) -> Result<Response<proto::GetStatusResponse>, Status> {
        let _begun = self.begin(request.extensions(), &methods::GET_STATUS)?;
        let (store, feed, node) = (Arc::clone(self.store()), self.committer.feed().clone(), Arc::clone(&self.node));
        let gathered = tokio::task::spawn_blocking(move || {
            // A lost store has no entry for this node's feed. The status still names it.
            let (compact_range, disclosed) =
                store.feed(&feed).map_or_else(Default::default, |state| (state.compact_range, state.disclosed));
            let root = Bytes::copy_from_slice(&compact_range.root().0);
            let own = Some(proto::FeedStatus { feed: feed.to_string(), size: compact_range.size(), root, disclosed });
            let newest_offset = store.end_offset().saturating_sub(1);
            (own, node.peers(), node.alarms(), newest_offset, store.index_lag(), store.corrected_bits())
        });
        let (own, peers, alarms, newest_offset, index_lag_commits, corrected_bits) =
            gathered.await.map_err(|_| errors::defect())?;
        let full = self.committer.disk_full().borrow().clone();
        let publishing = match &*self.committer.publish_state().borrow() {
            PublishState::Open | PublishState::Starting if full.is_some() => {
                format!("disk-full: {}", full.unwrap_or_default())
            }
            PublishState::Open => "yes".to_owned(),
            PublishState::Starting => "starting".to_owned(),
            PublishState::NeedsRecovery(reason) => format!("needs-recovery: {reason}"),
            PublishState::Stopped(_) => "stopped: the store has failed".to_owned(),
        };
        let roster_version = self.rosters.load().newest().version();
        let coded_alarms: Vec<proto::Alarm> = alarms.iter().map(ActiveAlarm::to_proto).collect();
        let alarms = coded_alarms.iter().map(|alarm| alarm.text.clone()).collect();
        let feed = self.committer.feed();
        Ok(Response::new(proto::GetStatusResponse {
            member: feed.member.to_string(),
            exchange: feed.exchange.to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
            now: Some(stored_wait::seconds(clock::unix_seconds())),
            own,
            publishing,
            newest_offset,
            roster_version,
            peers,
            alarms,
            coded_alarms,
            index_lag_commits,
            corrected_bits,
            budgets: self.budgets.usage().into_iter().map(budget_usage).collect(),
        }))
    }

    async fn get_roster(
        &self,
        request: Request<proto::GetRosterRequest>,
    ) -> Result<Response<proto::GetRosterResponse>, Status> {
        let _begun = self.begin(request.extensions(), &methods::GET_ROSTER)?;
        let rosters = self.rosters.load();
        let note = rosters.notes().last().map(|(_, note)| note.clone()).unwrap_or_default();
        Ok(Response::new(proto::GetRosterResponse { note }))
    }

    async fn reload(&self, request: Request<proto::ReloadRequest>) -> Result<Response<proto::ReloadResponse>, Status> {
        let (caller, _call) = self.begin(request.extensions(), &methods::RELOAD)?;
        let changes = self.node.reload(&caller.path).await.map_err(Status::failed_precondition)?;
        Ok(Response::new(proto::ReloadResponse { changes }))
    }

    async fn get_forks(
        &self,
        request: Request<proto::GetForksRequest>,
    ) -> Result<Response<proto::GetForksResponse>, Status> {
        let _begun = self.begin(request.extensions(), &methods::GET_FORKS)?;
        let mut forks = self.reading(|api| api.store().forks()).await?;
        // For each feed, undecided forks come first.
        forks.sort_by(|a, b| (&a.feed, a.resumed).cmp(&(&b.feed, b.resumed)));
        let fork = |fork: crate::store::ForkRecord| proto::Fork {
            feed: fork.feed.to_string(),
            evidence: fork.evidence,
            resumed: fork.resumed,
        };
        Ok(Response::new(proto::GetForksResponse { forks: forks.into_iter().map(fork).collect() }))
    }

    async fn resume_feed(
        &self,
        request: Request<proto::ResumeFeedRequest>,
    ) -> Result<Response<proto::ResumeFeedResponse>, Status> {
        let (caller, _call) = self.begin(request.extensions(), &methods::RESUME_FEED)?;
        let text = &request.get_ref().feed;
        let feed = text.parse().map_err(|_| errors::argument("feed", text, Rule::FeedName))?;
        if !self.node.resume_feed(&feed).await.map_err(Status::unavailable)? {
            return Err(errors::argument("feed", text, Rule::RecordedFork));
        }
        audit(&AuditEvent {
            event: "feed-resumed",
            reason: "operator",
            actor: &caller.path,
            resource: &feed,
            detail: &"",
        });
        Ok(Response::new(proto::ResumeFeedResponse {}))
    }
}
