//! Named subscriptions, and where any subscription begins.
//!
//! In scope: where a request asks to begin, and opening, acknowledging, listing, removing and
//! expiring names. Out of scope: what cursors prove (`cursor`) and what is sent (`subscribe`).
//!
//! A name belongs to its caller. It records an offset in the history of this store. A recovered
//! node may have gone back to an earlier state. Its names are *stale* then: the caller must give a
//! cursor or choose where to begin.

use std::time::Duration;

use barid_core::bulletin::Rule;
use barid_core::bulletin::field::Report;
use barid_core::bulletin::times::Time;
use barid_core::limits::MESSAGE_BYTES_MAX;
use barid_core::proto;
use bytes::Bytes;
use prost::Message as _;
use proto::subscribe_request::Start;
use tokio::time::Instant;
use tonic::Status;

use super::caller::Caller;
use super::cursor::{Cursor, StreamStart};
use super::filter::{self, Filter};
use super::methods::{DELETE_SUBSCRIPTION, SUBSCRIBE};
use super::{Api, errors};
use crate::clock;
use crate::committer::{PublishState, Records};
use crate::store::{CursorRecord, Subscription, SubscriptionRecord};
use crate::telemetry::{AuditEvent, audit};

/// Longest name of a subscription, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// Subscriptions on one page.
const PAGE_MAX: usize = 256;
/// Subscriptions read from the store at once.
const READ_MAX: usize = 256;
/// Subscriptions that expire in one commit.
const EXPIRED_MAX: usize = 256;
/// Bytes of a subscription's record in the log, without its key and filter.
const NAME_RECORD_BYTES: usize = 192;
/// How often expired subscriptions are looked for. Their limits are in days.
const EXPIRY_CHECK_EVERY: Duration = Duration::from_secs(60 * 60);
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// Where a request asks to begin.
#[derive(Clone, Debug)]
pub(super) enum Begin {
    Now,
    Beginning,
    At(Cursor),
}

/// A validated Subscribe request.
#[derive(Clone, Debug)]
pub(super) struct Opening {
    pub(super) filter: Filter,
    /// Key of the named subscription: caller and name.
    name: Option<String>,
    begin: Option<Begin>,
    replace_filter: bool,
}

/// An open subscription: where its stream starts, and its name.
#[derive(Clone, Debug, Default)]
pub(super) struct Opened {
    pub(super) start: StreamStart,
    pub(super) name: Option<Named>,
}

/// The name of an open subscription.
#[derive(Clone, Debug)]
pub(super) struct Named {
    /// Caller and name.
    pub(super) key: String,
    /// "created", "resumed" or "restarted".
    pub(super) outcome: &'static str,
    /// Whether the request gave a name, but no cursor and no `begin`.
    pub(super) by_name_only: bool,
}

impl Named {
    /// The name without the caller.
    pub(super) fn name(&self) -> &str {
        parts(&self.key).1
    }
}

impl Opening {
    /// Parses and validates a request.
    pub(super) fn read(caller: &Caller, request: proto::SubscribeRequest) -> Result<Self, Status> {
        let proto::SubscribeRequest { filter, start, cursor, begin, replace_filter } = request;
        let mut report = Report::default();
        let filter = Filter::read(filter, &mut report);
        let (mut name, mut begins) = (None, Vec::new());
        match start {
            None => {}
            Some(Start::After(0)) => begins.push(Begin::Beginning),
            Some(Start::After(offset)) => report.add("after", offset, Rule::CursorNotOffset),
            Some(Start::Subscription(text)) => name = key(caller, &text, &mut report),
        }
        if !cursor.is_empty() {
            match Cursor::decode(&cursor) {
                Some(cursor) => begins.push(Begin::At(cursor)),
                None => report.add("cursor", hex::encode(&cursor), Rule::Cursor),
            }
        }
        match begin.as_str() {
            "" => {}
            _ if !begins.is_empty() => report.add("begin", &begin, Rule::OneStart),
            "now" => begins.push(Begin::Now),
            "beginning" => begins.push(Begin::Beginning),
            other => report.add("begin", other, Rule::OneOf { values: "now, beginning".to_owned() }),
        }
        if begins.len() > 1 {
            report.add("cursor", hex::encode(&cursor), Rule::OneStart);
        }
        errors::check(report)?;
        Ok(Self { filter, name, begin: begins.pop(), replace_filter })
    }
}

/// Returns the key of a caller's subscription.
fn key(caller: &Caller, name: &str, report: &mut Report) -> Option<String> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(fits) {
        report.add("subscription", name, Rule::SubscriptionName { max: NAME_BYTES_MAX });
        return None;
    }
    Some(format!("{}/{name}", caller.path))
}

/// Splits a key into the caller's path and the name.
fn parts(key: &str) -> (&str, &str) {
    key.rsplit_once('/').unwrap_or(("", key))
}

impl Api {
    /// Opens a subscription.
    pub(super) async fn open(&self, caller: &Caller, opening: &Opening) -> Result<Opened, Status> {
        match &opening.name {
            None => Ok(Opened { start: self.start(opening.begin.as_ref().unwrap_or(&Begin::Now)).await?, name: None }),
            Some(key) => self.open_named(caller, key, opening).await,
        }
    }

    async fn open_named(&self, caller: &Caller, key: &str, opening: &Opening) -> Result<Opened, Status> {
        let filter = opening.filter.to_bytes();
        let opened = |start, outcome| {
            let by_name_only = opening.begin.is_none();
            Ok(Opened { start, name: Some(Named { key: key.to_owned(), outcome, by_name_only }) })
        };
        let created = |start: &StreamStart| self.subscription_at(start, &filter, clock::unix_ms());
        // One change at a time: concurrent new names are all counted against the limit, and no name
        // changes between its check and its write.
        let _turn = self.naming.lock().await;
        let Some(held) = self.subscription_of(key) else {
            let begin = opening.begin.as_ref().ok_or_else(|| errors::unknown_subscription(parts(key).1, None))?;
            self.expire_at_limit(caller).await?;
            let start = self.start(begin).await?;
            self.name(key, Some(created(&start)), SUBSCRIBE.name).await?;
            return opened(start, "created");
        };
        if let Some(recorded) = held.filter.as_ref().filter(|recorded| **recorded != filter) {
            let begin = match (opening.replace_filter, &opening.begin) {
                (false, _) => {
                    return Err(errors::filter_differs(&filter::describe(recorded), &filter::describe(&filter)));
                }
                (true, None) => {
                    return Err(errors::argument("begin", "", Rule::NewStart));
                }
                (true, Some(begin)) => begin,
            };
            let start = self.start(begin).await?;
            self.name(key, Some(created(&start)), SUBSCRIBE.name).await?;
            return opened(start, "restarted");
        }
        let stale = self.is_stale(&held);
        // A cursor of another history begins where the common history ends, even if the named
        // subscription has been acknowledged further. The acknowledged entries are sent again,
        // because offsets beyond that point meant other entries to the holder of the cursor.
        let start = match (&opening.begin, stale) {
            (None, true) => return Err(errors::unknown_subscription(parts(key).1, Some(held.offset))),
            (Some(begin @ (Begin::Now | Begin::Beginning)), true) => {
                let start = self.start(begin).await?;
                self.name(key, Some(created(&start)), SUBSCRIBE.name).await?;
                return opened(start, "restarted");
            }
            (Some(begin @ Begin::At(_)), _) => self.start(begin).await?,
            (_, false) => StreamStart { offset: held.offset, held: held.held, reset: None },
        };
        if stale || held.filter.is_none() {
            let offset = if stale { start.offset } else { held.offset };
            let state = Subscription { offset, ..created(&start) };
            let created_unix_ms = if held.created_unix_ms == 0 { state.created_unix_ms } else { held.created_unix_ms };
            self.name(key, Some(Subscription { created_unix_ms, ..state }), SUBSCRIBE.name).await?;
        } else {
            self.touch(key).await?;
        }
        opened(start, "resumed")
    }

    /// Returns where a stream starts.
    async fn start(&self, begin: &Begin) -> Result<StreamStart, Status> {
        match begin.clone() {
            Begin::Now => Ok(StreamStart { offset: self.store().end_offset() - 1, ..StreamStart::default() }),
            Begin::Beginning => Ok(StreamStart::default()),
            Begin::At(cursor) => self.reading(move |api| cursor.locate(&**api.store())).await,
        }
    }

    /// Returns a named subscription that has not expired.
    fn subscription_of(&self, key: &str) -> Option<Subscription> {
        let held = self.store().subscription(key)?;
        (clock::unix_ms() < self.expires(key, &held)).then_some(held)
    }

    fn expires(&self, key: &str, held: &Subscription) -> u64 {
        let days = self.access.load().limits(parts(key).0).subscription_days;
        held.used_unix_ms.saturating_add(u64::from(days) * DAY_MS)
    }

    /// Returns whether the subscription was recorded before this node was recovered. Its offset is
    /// valid in this store's history, but its caller may have read another history meanwhile. Epoch
    /// 0 is a record of an earlier version, which did not record the epoch, and counts as epoch 1.
    fn is_stale(&self, held: &Subscription) -> bool {
        self.needs_recovery() || held.epoch.max(1) != self.committer.feed().epoch
    }

    /// Returns whether the store may have gone back to an earlier state.
    pub(super) fn needs_recovery(&self) -> bool {
        matches!(&*self.committer.publish_state().borrow(), PublishState::NeedsRecovery(_))
    }

    fn subscription_at(&self, start: &StreamStart, filter: &Bytes, now: u64) -> Subscription {
        Subscription {
            offset: start.offset,
            held: start.held,
            filter: Some(filter.clone()),
            created_unix_ms: now,
            used_unix_ms: now,
            epoch: self.committer.feed().epoch,
        }
    }

    /// Records or removes a named subscription.
    async fn name(&self, key: &str, state: Option<Subscription>, method: &'static str) -> Result<(), Status> {
        let filter = state.as_ref().and_then(|state| state.filter.as_ref()).map_or(0, Bytes::len);
        self.call_limiter.name_bytes(parts(key).0, NAME_RECORD_BYTES + key.len() + filter, method, Instant::now())?;
        let record = SubscriptionRecord { subscription: key.to_owned(), state };
        self.persist(Records { subscriptions: vec![record], ..Records::default() }).await
    }

    async fn persist(&self, records: Records) -> Result<(), Status> {
        self.committer.persist(records).await.map_err(|error| errors::commit(&error))
    }

    /// Records that a subscription is used, unless that was recorded within the last hour.
    pub(super) async fn touch(&self, key: &str) -> Result<(), Status> {
        let Some(held) = self.store().subscription(key) else { return Ok(()) };
        let (offset, held_back, epoch) = (held.offset, held.held, held.epoch);
        self.advance(&held, CursorRecord { subscription: key.to_owned(), offset, held: held_back, epoch }).await
    }

    async fn advance(&self, held: &Subscription, record: CursorRecord) -> Result<(), Status> {
        if held.is_advanced_by(&record, clock::unix_ms()) {
            self.persist(Records { cursors: vec![record], ..Records::default() }).await?;
        }
        Ok(())
    }

    /// Removes a caller's expired names if it has as many as it may. Fails if it still has that
    /// many.
    async fn expire_at_limit(&self, caller: &Caller) -> Result<(), Status> {
        let limits = &caller.grant.limits;
        let prefix = format!("{}/", caller.path);
        let count = |api: &Self| api.keys_under(&prefix).count();
        if count(self) >= limits.subscriptions as usize {
            let keys: Vec<String> = self.keys_under(&prefix).map(|(key, _)| key).collect();
            self.expire(keys).await?;
        }
        if count(self) >= limits.subscriptions as usize {
            let now = Instant::now();
            return Err(self.call_limiter.too_many_names(&caller.path, limits, SUBSCRIBE.name, now));
        }
        Ok(())
    }

    /// Iterates over the named subscriptions of one caller.
    fn keys_under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (String, Subscription)> + 'a {
        let under = self.keys_after(prefix.to_owned()).take_while(move |(key, _)| key.starts_with(prefix));
        // Names contain no `/`. A key with another one belongs to a caller whose longer path has
        // this prefix.
        under.filter(move |(key, _)| !key[prefix.len()..].contains('/'))
    }

    /// Iterates over all named subscriptions after a key.
    fn keys_after(&self, after: String) -> impl Iterator<Item = (String, Subscription)> + '_ {
        let mut last = Some(after);
        let pages = std::iter::from_fn(move || {
            let page = self.store().subscriptions(&last.take()?, READ_MAX);
            last = page.last().map(|(key, _)| key.clone());
            Some(page)
        });
        pages.flatten()
    }

    /// Acknowledges a cursor.
    pub(super) async fn acknowledge_named(
        &self,
        caller: &Caller,
        request: proto::AcknowledgeRequest,
    ) -> Result<(), Status> {
        let proto::AcknowledgeRequest { subscription, offset, cursor } = request;
        let mut report = Report::default();
        let key = key(caller, &subscription, &mut report);
        if offset != 0 {
            report.add("offset", offset, Rule::CursorNotOffset);
        }
        let cursor = match Cursor::decode(&cursor) {
            Some(cursor) => Some(cursor),
            None if offset != 0 => None,
            None => {
                report.add("cursor", hex::encode(&cursor), Rule::Cursor);
                None
            }
        };
        errors::check(report)?;
        let (Some(key), Some(cursor)) = (key, cursor) else { return Err(errors::defect()) };
        // The pause comes before the lookup of the recorded offset, because a concurrent call may
        // acknowledge during it.
        let pause = self.call_limiter.acknowledgement(&caller.path, Instant::now());
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let held = self.subscription_of(&key).ok_or_else(|| errors::unknown_subscription(&subscription, None))?;
        let epoch = self.committer.feed().epoch;
        let record = CursorRecord { subscription: key, offset: cursor.offset(), held: cursor.held(), epoch };
        if let Some(mismatch) = self.reading(move |api| cursor.mismatch(&**api.store())).await? {
            return Err(errors::cursor_mismatch("cursor", mismatch.as_str()));
        }
        self.advance(&held, record).await
    }

    /// Returns a page of a caller's subscriptions.
    pub(super) fn list(
        &self,
        caller: &Caller,
        request: proto::ListSubscriptionsRequest,
    ) -> Result<proto::ListSubscriptionsResponse, Status> {
        let proto::ListSubscriptionsRequest { page_size, page_token } = request;
        let mut report = Report::default();
        let prefix = format!("{}/", caller.path);
        let after = if page_token.is_empty() { Some(prefix.clone()) } else { key(caller, &page_token, &mut report) };
        if after.is_none() {
            return Err(errors::argument("page_token", &page_token, Rule::PageToken));
        }
        let page_max = if page_size == 0 { PAGE_MAX } else { (page_size as usize).min(PAGE_MAX) };
        let newest_offset = self.store().end_offset() - 1;
        let mut page = proto::ListSubscriptionsResponse { newest_offset, ..Default::default() };
        let mut bytes = 0;
        let under = self.keys_after(after.unwrap_or_default()).take_while(|(key, _)| key.starts_with(&prefix));
        for (key, held) in under.filter(|(key, _)| *parts(key).0 == *caller.path) {
            let listed = self.listed(&key, &held);
            bytes += listed.encoded_len() + 8;
            if page.subscriptions.len() >= page_max || bytes > MESSAGE_BYTES_MAX / 2 {
                page.next_page_token = page.subscriptions.last().map(|last| last.name.clone()).unwrap_or_default();
                break;
            }
            page.subscriptions.push(listed);
        }
        Ok(page)
    }

    fn listed(&self, key: &str, held: &Subscription) -> proto::Subscription {
        let at = |ms: u64| (ms > 0).then(|| Time::from_unix_ms(ms).to_proto());
        proto::Subscription {
            name: parts(key).1.to_owned(),
            filter: held.filter.as_ref().and_then(|filter| proto::Filter::decode(filter.clone()).ok()),
            offset: held.offset,
            created_at: at(held.created_unix_ms),
            used_at: at(held.used_unix_ms),
            expires_at: at(self.expires(key, held)),
            stale: self.is_stale(held),
        }
    }

    /// Removes a named subscription of a caller.
    pub(super) async fn delete(
        &self,
        caller: &Caller,
        request: proto::DeleteSubscriptionRequest,
    ) -> Result<(), Status> {
        let mut report = Report::default();
        let key = key(caller, &request.subscription, &mut report);
        errors::check(report)?;
        let key = key.ok_or_else(errors::defect)?;
        let _turn = self.naming.lock().await;
        if self.store().subscription(&key).is_none() {
            return Err(errors::unknown_subscription(&request.subscription, None));
        }
        self.name(&key, None, DELETE_SUBSCRIPTION.name).await
    }

    /// Removes those of these subscriptions that have expired, with an audit record for each. The
    /// caller holds `naming`.
    async fn expire(&self, keys: Vec<String>) -> Result<(), Status> {
        let now = clock::unix_ms();
        let expired = keys.into_iter().filter_map(|key| Some((self.store().subscription(&key)?, key)));
        let expired: Vec<_> = expired.filter(|(held, key)| self.expires(key, held) <= now).collect();
        for part in expired.chunks(EXPIRED_MAX) {
            let removed = |(_, key): &(_, String)| SubscriptionRecord { subscription: key.clone(), state: None };
            self.persist(Records { subscriptions: part.iter().map(removed).collect(), ..Records::default() }).await?;
            for (held, key) in part {
                let (actor, name) = parts(key);
                let detail = format!("last used {}", Time::from_unix_ms(held.used_unix_ms));
                audit(&AuditEvent {
                    event: "subscription-expired",
                    reason: "unused",
                    actor: &actor,
                    resource: &name,
                    detail: &detail,
                });
            }
        }
        Ok(())
    }

    /// Removes subscriptions that were not used for the number of days in the access rules. Runs
    /// until the node stops.
    pub(super) async fn expire_unused(self) {
        loop {
            let keys: Vec<String> = self.keys_after(String::new()).map(|(key, _)| key).collect();
            let turn = self.naming.lock().await;
            if let Err(error) = self.expire(keys).await {
                tracing::warn!(%error, "unused subscriptions could not be removed; retrying later");
            }
            drop(turn);
            tokio::select! {
                () = self.stopped() => return,
                () = tokio::time::sleep(EXPIRY_CHECK_EVERY) => {}
            }
        }
    }
}
