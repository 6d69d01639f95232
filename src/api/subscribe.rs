//! Filters, and reading as bulletins arrive.

use std::sync::Arc;
use std::time::Duration;

use barid_core::bulletin::TopicFilter;
use barid_core::bulletin::vocabulary::Severity;
use barid_core::follow::{Delivery, delivery};
use barid_core::limits::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, FILTERS_MAX};
use barid_core::names::Member;
use barid_core::proto;
use bytes::Bytes;
use tokio::sync::mpsc;
use tonic::Status;

use super::caller::Caller;
use super::{Api, errors};
use crate::access::Role;
use crate::store::{Columns, Content, Entry};

/// Bulletins between the reader of the store and a subscriber; one that has stopped reading costs no more than these.
const WAITING_MAX: usize = 64;
/// How often the grant of a quiet subscriber is looked at.
const GRANT_CHECK: Duration = Duration::from_secs(1);
/// A subscriber is told its position after so many arrivals that did not match.
const POSITION_EVERY: u64 = 10_000;

/// Which bulletins, checked. Everything absent does not narrow.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    topics: Vec<TopicFilter>,
    kinds: Vec<String>,
    severity: Option<Severity>,
    members: Vec<Member>,
}

impl Filter {
    pub(super) fn read(filter: Option<proto::Filter>) -> Result<Self, Status> {
        let proto::Filter { topics, kinds, min_severity, members } = filter.unwrap_or_default();
        if topics.len() + kinds.len() + members.len() > FILTERS_MAX {
            let expected = format!("at most {FILTERS_MAX} topics, kinds and members together");
            return Err(errors::argument(
                "filter",
                &(topics.len() + kinds.len() + members.len()).to_string(),
                &expected,
            ));
        }
        let parse_topic = |(n, text): (usize, &String)| {
            let expected = "a topic filter such as `customs.>`";
            text.parse().map_err(|_| errors::argument(&format!("filter.topics[{n}]"), text, expected))
        };
        let parse_member = |(n, text): (usize, &String)| {
            text.parse().map_err(|_| errors::argument(&format!("filter.members[{n}]"), text, "a member code"))
        };
        let severity =
            match min_severity.as_str() {
                "" => None,
                text => Some(Severity::read(text).ok_or_else(|| {
                    errors::argument("filter.min_severity", text, "Minor, Moderate, Severe or Extreme")
                })?),
            };
        Ok(Self {
            topics: topics.iter().enumerate().map(parse_topic).collect::<Result<_, _>>()?,
            kinds,
            severity,
            members: members.iter().enumerate().map(parse_member).collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn wants(&self, member: &str, topic: &str, kind: &str, severity: &str) -> bool {
        (self.topics.is_empty() || self.topics.iter().any(|filter| filter.matches_header(topic)))
            && (self.kinds.is_empty() || self.kinds.iter().any(|wanted| wanted == kind))
            && (self.members.is_empty() || self.members.iter().any(|wanted| wanted.as_str() == member))
            && self.severity.is_none_or(|least| Severity::read(severity).is_some_and(|found| at_least(found, least)))
    }

    pub(super) fn wants_columns(&self, columns: &Columns) -> bool {
        self.wants(&columns.member, &columns.topic, &columns.kind, &columns.severity)
    }
}

/// CAP 1.2 severities from least to most; Unknown is never as severe as what is asked for.
fn at_least(found: Severity, least: Severity) -> bool {
    let rank = |severity| match severity {
        Severity::Extreme => 4,
        Severity::Severe => 3,
        Severity::Moderate => 2,
        Severity::Minor => 1,
        Severity::Unknown => 0,
    };
    rank(found) >= rank(least) && rank(found) > 0
}

impl Api {
    /// Whether a caller may be given an entry.
    pub(super) fn may_deliver(&self, caller: &Caller, entry: &Entry) -> bool {
        let allowed = self.allowed(caller, entry);
        allowed.is_some_and(
            |allowed| {
                if caller.is_focal_point() { allowed.to_focal_points() } else { allowed.to_agencies() }
            },
        )
    }

    /// To whom here an entry may be given; `None` if the caller's working groups do not include its own.
    pub(super) fn allowed(&self, caller: &Caller, entry: &Entry) -> Option<Delivery> {
        let Content::Disclosed { header: Some(header), .. } = &entry.content else { return None };
        let group = header.topic.split('.').next().unwrap_or_default();
        let own = entry.feed.member == *self.me();
        caller.grant.working_groups.contains(group).then(|| match own {
            true => own_delivery(header),
            false => delivery(&entry.feed.member, Some(header), self.me(), &self.rosters.load()),
        })
    }

    /// Sends what arrives from arrival `next` on, for as long as somebody reads.
    pub(super) fn follow_arrivals(
        self,
        mut caller: Caller,
        filter: Filter,
        mut next: u64,
    ) -> mpsc::Receiver<Result<proto::SubscribeResponse, Status>> {
        let (out, receiver) = mpsc::channel(WAITING_MAX);
        tokio::spawn(async move {
            let mut commits = self.committer.watch();
            let mut told = next.saturating_sub(1);
            if out.send(Ok(position(told))).await.is_err() {
                return;
            }
            loop {
                commits.mark_unchanged();
                // The rules may have been read again since: whoever lost its grant gets nothing more.
                match self.access.load().grant(&caller.path) {
                    Some(grant) if grant.has(Role::FocalPoint) || grant.has(Role::Agency) => {
                        caller.grant = grant.clone();
                    }
                    _ => {
                        let status =
                            self.denied(&caller.path, "FocalPoint.Subscribe", "NO_GRANT", "the grant was withdrawn");
                        return drop(out.send(Err(status)).await);
                    }
                }
                while next < self.store().end_arrival() {
                    let store = Arc::clone(self.store());
                    let read =
                        tokio::task::spawn_blocking(move || store.arrivals(next, BATCH_ENTRIES_MAX, BATCH_BYTES_MAX));
                    let entries = match read.await {
                        Ok(Ok(entries)) => entries,
                        Ok(Err(error)) => return drop(out.send(Err(errors::read(&error))).await),
                        Err(_) => return drop(out.send(Err(Status::internal("a defect of the node"))).await),
                    };
                    let Some(last) = entries.last().and_then(|entry| entry.arrival) else { break };
                    for entry in entries {
                        let wanted = match &entry.content {
                            Content::Disclosed { header: Some(header), .. } => {
                                filter.wants(&header.member, &header.topic, &header.kind, &header.severity)
                            }
                            _ => false,
                        };
                        if wanted && self.may_deliver(&caller, &entry) {
                            told = entry.arrival.unwrap_or(told);
                            let event = proto::subscribe_response::Event::Delivery(self.delivery_of(entry));
                            if out.send(Ok(proto::SubscribeResponse { event: Some(event) })).await.is_err() {
                                return;
                            }
                        }
                    }
                    next = last + 1;
                    if last.saturating_sub(told) >= POSITION_EVERY {
                        told = last;
                        if out.send(Ok(position(last))).await.is_err() {
                            return;
                        }
                    }
                }
                tokio::select! {
                    changed = commits.changed() => if changed.is_err() { return },
                    () = out.closed() => return,
                    () = tokio::time::sleep(GRANT_CHECK) => {}
                }
            }
        });
        receiver
    }

    /// An entry as it is shown to callers.
    pub(super) fn delivery_of(&self, entry: Entry) -> proto::Delivery {
        let Entry { feed, index, digest, content, arrival } = entry;
        let (envelope, flags) = match content {
            Content::Disclosed { envelope, header } => {
                let kind = header.as_ref().map_or("", |header| header.kind.as_str());
                let unknown = barid_core::bulletin::kinds::find(kind).is_none();
                (envelope, unknown.then(|| "unknown-kind".to_owned()).into_iter().collect())
            }
            Content::Undisclosed(_) => (Bytes::new(), Vec::new()),
        };
        proto::Delivery {
            arrival: arrival.unwrap_or(0),
            feed: feed.to_string(),
            index,
            digest: Bytes::copy_from_slice(&digest.0),
            envelope,
            flags,
        }
    }
}

/// The owner is in the audience of what it published; agencies only see what agencies may.
fn own_delivery(header: &proto::Header) -> Delivery {
    if barid_core::bulletin::audience::agencies_may_read(header) { Delivery::Everyone } else { Delivery::FocalPoints }
}

fn position(arrival: u64) -> proto::SubscribeResponse {
    proto::SubscribeResponse { event: Some(proto::subscribe_response::Event::Position(arrival)) }
}
