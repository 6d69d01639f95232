//! Reading as bulletins arrive.
//!
//! In scope: following arrivals from a cursor for as long as somebody reads, in bounded memory. Out of scope: what is asked for
//! (`filter`) and who may have it (`deliver`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use barid_core::limits::ENVELOPE_BYTES_MAX;
use barid_core::proto;
use barid_core::proto::subscribe_response::Event;
use futures::stream::Stream;
use prost::Message as _;
use tokio::time::Instant;
use tonic::Status;

use super::caller::Caller;
use super::deliver::{Hidden, damaged_of};
use super::filter::Filter;
use super::methods::SUBSCRIBE;
use super::pace::OpenStream;
use super::standing::Work;
use super::{Api, errors};
use crate::budgets::Charge;
use crate::calls::{Call, Responses};
use crate::store::{Columns, Content, DamagedEntry, ReadError};

/// Messages between the reader of the store and a subscriber; one that has stopped reading costs no more than these.
const WAITING_MAX: usize = 64;
/// Encoded bytes in these; one envelope always fits.
const WAITING_BYTES_MAX: u32 = 2 << 20;
/// Arrivals, and bytes of envelopes, read from the store at once: held while their subscriber is slow.
const READ_MAX: (usize, usize) = (256, 256 << 10);
/// What is charged for these before they are read: one envelope always fits.
const READ_CHARGED_BYTES: u64 = (ENVELOPE_BYTES_MAX + (64 << 10)) as u64;
/// Bytes of a message around its delivery, at most.
const MESSAGE_BYTES: u64 = 16;
/// So many of the newest arrivals lie in memory and are read at once: going to a blocking thread costs a lone bulletin more than all
/// else that is done for it here.
const LIVE_MAX: u64 = 16;
/// Arrivals looked at before a subscriber is told its position, if none of them match.
const POSITION_EVERY: u64 = 10_000;
/// How often the grant of a quiet subscriber is looked at.
const GRANT_CHECK: Duration = Duration::from_secs(1);
/// After so long without anything else a position is sent: a client that hears nothing for some of these has lost its line.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Bulletins passed over of which a subscriber is remembered to lack; older ones it finds by their history.
const PASSED_MAX: usize = 1_024;

type Message = Result<proto::SubscribeResponse, Status>;

impl Api {
    /// Sends what arrives from arrival `next` on, for as long as somebody reads.
    pub(super) fn follow_arrivals(
        self,
        caller: Caller,
        call: &Call,
        open: OpenStream,
        (filter, warnings): (Filter, Vec<proto::FilterWarning>),
        next: u64,
    ) -> impl Stream<Item = Message> + Send + 'static {
        let (responses, messages) = Responses::new(call, WAITING_MAX, WAITING_BYTES_MAX);
        let mut follower = Follower {
            api: self,
            caller,
            filter: Arc::new(filter),
            warnings,
            next,
            passed: BTreeSet::new(),
            spoke: Instant::now(),
            call: call.clone(),
            responses,
        };
        tokio::spawn(async move {
            let _open = open;
            let api = follower.api.clone();
            let end = tokio::select! {
                end = follower.run() => end,
                () = api.stopped() => Err(Some(errors::stopping())),
            };
            // A line that has ended needs no reason.
            if let Err(Some(status)) = end {
                follower.responses.send(Err(status), None).await;
            }
        });
        messages
    }

    /// What a caller asks for and may have, from arrival `next` on, as much as is read at once. Blocks.
    fn stretch(&self, caller: &Caller, filter: &Filter, mut next: u64, units: usize) -> Result<Stretch, ReadError> {
        let (mut found, mut passed, last) = (Vec::new(), Vec::new(), next.saturating_add(POSITION_EVERY));
        let end = |found, next, passed, damaged| {
            let mut work = Work::new(units);
            let deliveries = self.deliveries(caller, found, &mut work)?;
            Ok(Stretch { deliveries, next, passed, damaged, whole: !work.is_exhausted() })
        };
        while found.is_empty() && next < last {
            let entries = match self.store().arrivals(next, READ_MAX.0, READ_MAX.1) {
                Err(ReadError::DamagedEntry(damaged)) => {
                    next = damaged.arrival + 1;
                    if self.asks_for(caller, filter, damaged.arrival) {
                        return end(found, next, passed, Some(*damaged));
                    }
                    continue;
                }
                read => read?,
            };
            if entries.is_empty() {
                break;
            }
            for entry in entries {
                let arrival = entry.arrival.unwrap_or(next);
                let asked = match &entry.content {
                    Content::Disclosed { header: Some(header), .. } => filter.wants(header),
                    _ => false,
                };
                match self.hidden(caller, &entry) {
                    None if asked => found.push(entry),
                    // It is sent when that roster has come; nothing else waits for it.
                    Some(Hidden::NotYet) if asked => passed.push(arrival),
                    _ => {}
                }
                next = arrival + 1;
            }
        }
        end(found, next, passed, None)
    }

    /// Whether a caller reads and asks for what arrived there, by what is known of it without reading it; if nothing is, it is told of it.
    fn asks_for(&self, caller: &Caller, filter: &Filter, arrival: u64) -> bool {
        let asked = std::cell::Cell::new(true);
        let wanted = |columns: &Columns| {
            asked.set(caller.reads(&columns.kind, &columns.topic) && filter.wants_columns(columns));
            false
        };
        _ = self.store().history(arrival + 1, 1, 1, &wanted);
        asked.get()
    }

    /// A bulletin that was passed over, if its roster has come and the caller may have it; and whether it still waits. Blocks.
    fn come_after_all(&self, caller: &Caller, arrival: u64) -> Result<(Option<Event>, bool), ReadError> {
        let entries = match self.store().arrivals(arrival, 1, 0) {
            Err(ReadError::DamagedEntry(damaged)) => return Ok((Some(Event::Damaged(damaged_of(*damaged))), false)),
            read => read?,
        };
        let Some(entry) = entries.into_iter().next() else { return Ok((None, false)) };
        match self.hidden(caller, &entry) {
            None => {
                let delivery = self.deliveries(caller, vec![entry], &mut Work::new(Work::STRETCH))?;
                Ok((delivery.into_iter().next().map(Event::Delivery), false))
            }
            Some(Hidden::NotYet) => Ok((None, true)),
            Some(_) => Ok((None, false)),
        }
    }
}

/// Part of what arrived.
struct Stretch {
    deliveries: Vec<proto::Delivery>,
    /// The first arrival that was not looked at.
    next: u64,
    /// Arrivals that wait for a roster.
    passed: Vec<u64>,
    /// What comes after the deliveries and cannot be read.
    damaged: Option<DamagedEntry>,
    /// Whether all that there was to say of the deliveries was looked up.
    whole: bool,
}

/// One open subscription.
struct Follower {
    api: Api,
    caller: Caller,
    filter: Arc<Filter>,
    /// What is to be said of it with the first event.
    warnings: Vec<proto::FilterWarning>,
    /// The first arrival that was not looked at.
    next: u64,
    /// Arrivals before it that wait for a roster: the newest [`PASSED_MAX`].
    passed: BTreeSet<u64>,
    /// When something was last sent.
    spoke: Instant,
    call: Call,
    responses: Responses<proto::SubscribeResponse>,
}

/// Why a subscription ends; `None`: nobody reads any more.
type End = Option<Status>;

impl Follower {
    async fn run(&mut self) -> Result<(), End> {
        let (mut arrivals, mut rosters) = (self.api.committer.watch_arrivals(), self.api.rosters.watch());
        self.position().await?;
        let mut looked_by = self.api.rosters.load().newest().version();
        loop {
            arrivals.mark_unchanged();
            rosters.mark_unchanged();
            let version = self.api.rosters.load().newest().version();
            if version != looked_by {
                looked_by = version;
                self.come_after_all().await?;
            }
            self.api.renew(&mut self.caller, &SUBSCRIBE)?;
            self.catch_up().await?;
            tokio::select! {
                changed = arrivals.changed() => changed.map_err(|_| None)?,
                changed = rosters.changed() => changed.map_err(|_| None)?,
                () = self.responses.closed() => return Err(None),
                () = tokio::time::sleep(GRANT_CHECK) => {}
            }
            if self.spoke.elapsed() >= HEARTBEAT {
                self.position().await?;
            }
        }
    }

    /// Sends all that has arrived.
    async fn catch_up(&mut self) -> Result<(), End> {
        'reading: while self.next < self.api.store().end_arrival() {
            let rules = self.api.access.load_full();
            let (caller, filter, next) = (self.caller.clone(), Arc::clone(&self.filter), self.next);
            let live = self.api.store().end_arrival() - next <= LIVE_MAX;
            // The newest lie in memory for all; what is read for this one alone is charged before.
            let mut charge = None;
            let at_once = live.then(|| self.api.stretch(&caller, &filter, next, Work::NONE));
            let at_once = at_once.transpose().map_err(|error| errors::read(&error))?.filter(|stretch| stretch.whole);
            let Stretch { deliveries, next, passed, damaged, whole: _ } = match at_once {
                Some(stretch) => stretch,
                None => {
                    let room = tokio::select! {
                        room = self.call.charge_response(READ_CHARGED_BYTES) => room,
                        () = self.responses.closed() => return Err(None),
                    };
                    let room = charge.insert(room);
                    let read = self.api.reading(move |api| api.stretch(&caller, &filter, next, Work::STRETCH)).await?;
                    let bytes = read.deliveries.iter().map(|delivery| delivery.encoded_len() as u64 + MESSAGE_BYTES);
                    room.shrink(room.amount().saturating_sub(bytes.sum()));
                    read
                }
            };
            let empty = deliveries.is_empty() && damaged.is_none();
            for delivery in deliveries {
                // The rules were read again: what was let pass by the old ones is looked at once more.
                if !Arc::ptr_eq(&rules, &self.api.access.load()) {
                    self.next = delivery.arrival;
                    self.api.renew(&mut self.caller, &SUBSCRIBE)?;
                    continue 'reading;
                }
                let arrival = delivery.arrival;
                let bytes = delivery.encoded_len() as u64 + MESSAGE_BYTES;
                let charged = charge.as_mut().map(|charge| charge.split(bytes));
                self.tell(Event::Delivery(delivery), charged).await?;
                self.next = arrival + 1;
            }
            if let Some(damaged) = damaged {
                self.tell(Event::Damaged(damaged_of(damaged)), None).await?;
            }
            self.next = next;
            self.passed.extend(passed);
            while self.passed.len() > PASSED_MAX {
                self.passed.pop_first();
            }
            if empty && next < self.api.store().end_arrival() {
                self.position().await?;
                self.api.renew(&mut self.caller, &SUBSCRIBE)?;
            }
        }
        Ok(())
    }

    /// Sends what was passed over and whose roster has come now.
    async fn come_after_all(&mut self) -> Result<(), End> {
        for arrival in std::mem::take(&mut self.passed) {
            let caller = self.caller.clone();
            let (come, waits) = self.api.reading(move |api| api.come_after_all(&caller, arrival)).await?;
            if let Some(event) = come {
                self.tell(event, None).await?;
            } else if waits {
                self.passed.insert(arrival);
            }
        }
        Ok(())
    }

    /// All before the next arrival was looked at.
    async fn position(&mut self) -> Result<(), End> {
        self.tell(Event::Position(self.next.saturating_sub(1)), None).await
    }

    async fn tell(&mut self, event: Event, charged: Option<Charge>) -> Result<(), End> {
        let warnings = std::mem::take(&mut self.warnings);
        let message = Ok(proto::SubscribeResponse { event: Some(event), warnings });
        let sent = self.responses.send(message, charged).await;
        self.spoke = Instant::now();
        if sent { Ok(()) } else { Err(None) }
    }
}
