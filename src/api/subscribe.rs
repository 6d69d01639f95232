//! Live subscriptions: sends entries as they arrive.
//!
//! In scope: following the offsets from a start for as long as the client reads, in bounded memory,
//! with a cursor for each event. Out of scope: where a stream starts (`subscriptions`), what it
//! asks for (`filter`) and what is visible to its caller (`visibility`).

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use barid_core::limits::{CURSOR_BYTES_MAX, ENVELOPE_BYTES_MAX};
use barid_core::proto;
use barid_core::proto::subscribe_response::Event;
use barid_core::roster::RosterChain;
use futures::stream::Stream;
use prost::Message as _;
use tokio::time::Instant;
use tonic::Status;

use super::bulletin_state::Work;
use super::caller::Caller;
use super::cursor::{Cursor, CursorBuilder, StreamStart};
use super::filter::Filter;
use super::methods::SUBSCRIBE;
use super::rate_limit::OpenStream;
use super::subscriptions::{Named, Opened};
use super::visibility::{NotVisible, damaged_of};
use super::{Api, errors};
use crate::budgets::Charge;
use crate::calls::{Call, Responses};
use crate::store::{Columns, Content, Entry, HeldBack, ReadError, Store};

/// Messages buffered for a subscriber: one read, so that the next read runs while these are sent.
/// A subscriber that has stopped reading costs no more than these.
const WAITING_MAX: usize = READ_MAX.0;
/// Encoded bytes of these messages. One envelope always fits.
const WAITING_BYTES_MAX: u32 = 2 << 20;
/// Entries and bytes of envelopes read from the store at once. They stay in memory while their
/// subscriber is slow.
const READ_MAX: (usize, usize) = (256, 256 << 10);
/// Bytes charged before such a read. One envelope always fits.
const READ_CHARGED_BYTES: u64 = (ENVELOPE_BYTES_MAX + (64 << 10)) as u64;
/// Largest number of bytes of a message around its delivery, with the cursor.
const MESSAGE_BYTES: u64 = 16 + 2 + CURSOR_BYTES_MAX as u64;
/// Newest entries that are in memory and read on the async thread. For a single bulletin, moving to
/// a blocking thread costs more than everything else done here.
const LIVE_MAX: u64 = 16;
/// Scanned offsets that the cursor may lag behind. While nothing is found, it is not rebuilt for
/// each offset.
const LAG_MAX: u64 = 256;
/// Entries scanned without a match before the subscriber is sent its position.
const POSITION_EVERY: u64 = 10_000;
/// How often the grant of an idle subscriber is checked.
const GRANT_CHECK: Duration = Duration::from_secs(1);
/// Interval without other events after which a position is sent. A client that receives nothing for
/// several intervals has lost its connection.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// How often an open stream records that its name is used. Name limits are in days.
const USED_EVERY: Duration = Duration::from_secs(6 * 60 * 60);

type Message = Result<proto::SubscribeResponse, Status>;

impl Api {
    /// Sends the entries after the offset where a subscription begins, stored and new ones, for as
    /// long as the client reads.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(super) async fn stream_events(
        self,
        caller: Caller,
        call: &Call,
        open: OpenStream,
        (filter, warnings): (Filter, Vec<proto::FilterWarning>),
        opened: Opened,
    ) -> Result<impl Stream<Item = Message> + Send + 'static, Status> {
        let Opened { start: StreamStart { offset, held, reset }, name } = opened;
        let reading = self.reading(move |api| Reading::begin(&**api.store(), offset, held)).await?;
        let (responses, messages) = Responses::new(call, WAITING_MAX, WAITING_BYTES_MAX);
        let mut subscription = OpenSubscription {
            api: self,
            caller,
            filter: Arc::new(filter),
            warnings,
            cursor: reading.cursor,
            reading,
            name,
            finds_nothing: true,
            used: Instant::now(),
            last_sent: Instant::now(),
            call: call.clone(),
            responses,
        };
        tokio::spawn(async move {
            let _open = open;
            let api = subscription.api.clone();
            let end = tokio::select! {
                end = subscription.run(reset) => end,
                () = api.stopped() => Err(Some(errors::stopping())),
            };
            // A closed connection needs no status.
            if let Err(Some(status)) = end {
                subscription.responses.send(Err(status), None).await;
            }
        });
        Ok(messages)
    }

    /// Reads the next entries that the caller asks for and may read, as many as one read returns.
    /// Blocks.
    fn event_page(
        &self,
        caller: &Caller,
        filter: &Filter,
        reading: &mut Reading,
        units: usize,
    ) -> Result<EventPage, ReadError> {
        let (mut found, mut cursors, mut work) = (Vec::new(), Vec::new(), Work::new(units));
        let mut event_page = self.scan(caller, filter, reading, &mut found, &mut cursors)?;
        let deliveries = self.deliveries(caller, found, &mut work)?;
        event_page.events.extend(deliveries.into_iter().map(Event::Delivery).zip(cursors));
        event_page.whole = !work.is_exhausted();
        Ok(event_page)
    }

    /// Collects matching entries, each with its cursor, or the damaged entry before them.
    fn scan(
        &self,
        caller: &Caller,
        filter: &Filter,
        reading: &mut Reading,
        found: &mut Vec<Entry>,
        cursors: &mut Vec<Cursor>,
    ) -> Result<EventPage, ReadError> {
        let (store, rosters) = (&**self.store(), self.rosters.load());
        let last = reading.next.saturating_add(POSITION_EVERY);
        let mut event_page = EventPage::default();
        while found.is_empty() && event_page.events.is_empty() && reading.next < last {
            let entries = match reading.read(store) {
                Err(ReadError::DamagedEntry(damaged)) => {
                    reading.next = damaged.offset + 1;
                    if self.is_requested(caller, filter, damaged.offset) {
                        reading.move_to(store, damaged.offset)?;
                        event_page.events.push((Event::Damaged(damaged_of(*damaged)), reading.cursor));
                    }
                    continue;
                }
                read => read?,
            };
            if entries.is_empty() {
                break;
            }
            for entry in entries {
                let offset = entry.offset.unwrap_or(reading.next);
                reading.next = offset + 1;
                // The filter comes first: it is cheap and rejects most entries for most streams.
                let Content::Disclosed { header: Some(header), .. } = &entry.content else { continue };
                if !filter.matches(header) {
                    continue;
                }
                match self.not_visible_by(caller, &entry, &rosters) {
                    None => {
                        reading.move_to(store, offset)?;
                        found.push(entry);
                        cursors.push(reading.cursor);
                    }
                    // The entry is sent once that roster arrives. Other entries do not wait for it.
                    Some(NotVisible::PendingRoster) => {
                        let roster_version = rosters.newest().version();
                        reading.held.get_or_insert(HeldBack { from: offset, roster_version });
                    }
                    Some(_) => {}
                }
            }
        }
        // The cursor must also cover entries that did not match.
        if reading.lag() >= LAG_MAX {
            reading.catch_up(store)?;
        }
        Ok(event_page)
    }

    /// Returns whether a damaged entry matches the filter and the caller's grant, by its columns in
    /// the index. Without columns it counts as matching.
    fn is_requested(&self, caller: &Caller, filter: &Filter, offset: u64) -> bool {
        let requested = std::cell::Cell::new(true);
        let predicate = |columns: &Columns| {
            requested.set(caller.reads(&columns.kind, &columns.topic) && filter.matches_columns(columns));
            false
        };
        _ = self.store().history(offset + 1, 1, 1, &predicate);
        requested.get()
    }

    /// Reads the entries in `range` that were held back at roster version `version`. Returns those
    /// that match the filter and are visible by `rosters`, as many as one read returns. Blocks.
    fn released(
        &self,
        caller: &Caller,
        filter: &Filter,
        rosters: &RosterChain,
        version: u64,
        range: Range<u64>,
    ) -> Result<Released, ReadError> {
        let mut released = Released { events: Vec::new(), next: range.end, waiting: None };
        let entries = match self.store().entries_from(range.start, READ_MAX.0, READ_MAX.1) {
            Err(ReadError::DamagedEntry(damaged)) => {
                released.next = damaged.offset + 1;
                if self.is_requested(caller, filter, damaged.offset) {
                    released.events.push((damaged.offset, Event::Damaged(damaged_of(*damaged))));
                }
                return Ok(released);
            }
            read => read?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let Some(offset) = entry.offset.filter(|offset| range.contains(offset)) else { break };
            released.next = offset + 1;
            let Content::Disclosed { header: Some(header), .. } = &entry.content else { continue };
            if entry.feed.member == *self.me() || header.roster_version <= version || !filter.matches(header) {
                continue;
            }
            match self.not_visible_by(caller, &entry, rosters) {
                None => found.push(entry),
                Some(NotVisible::PendingRoster) => _ = released.waiting.get_or_insert(offset),
                Some(_) => {}
            }
        }
        let deliveries = self.deliveries(caller, found, &mut Work::new(Work::EVENT_PAGE))?;
        released.events = deliveries.into_iter().map(|it| (it.offset, Event::Delivery(it))).collect();
        Ok(released)
    }
}

/// Read position of a stream.
#[derive(Clone, Debug)]
struct Reading {
    /// The first offset that was not scanned.
    next: u64,
    /// Entries before `next` that wait for a roster.
    held: Option<HeldBack>,
    builder: CursorBuilder,
    /// The cursor for offset `at`: of the last match, or later.
    cursor: Cursor,
    /// The offset that the cursor covers.
    at: u64,
}

impl Reading {
    fn begin(store: &dyn Store, offset: u64, held: Option<HeldBack>) -> Result<Self, ReadError> {
        let mut builder = CursorBuilder::new(store);
        let cursor = builder.at_or_unproven(store, offset, held)?;
        Ok(Self { next: offset + 1, held, builder, cursor, at: offset })
    }

    fn read(&mut self, store: &dyn Store) -> Result<Vec<Entry>, ReadError> {
        let (entries, links) = store.linked_entries_from(self.next, READ_MAX.0, READ_MAX.1)?;
        self.builder.note(links);
        Ok(entries)
    }

    /// Moves the cursor to an offset up to which all was scanned. If the commit that holds it is
    /// damaged, the previous cursor remains.
    fn move_to(&mut self, store: &dyn Store, offset: u64) -> Result<(), ReadError> {
        if let Some(cursor) = self.builder.at(store, offset, self.held)? {
            self.cursor = cursor;
        }
        self.at = offset;
        Ok(())
    }

    /// Returns the number of offsets scanned beyond the cursor, without a match.
    fn lag(&self) -> u64 {
        self.next - 1 - self.at
    }

    /// Moves the cursor to the last scanned offset.
    fn catch_up(&mut self, store: &dyn Store) -> Result<(), ReadError> {
        if self.lag() > 0 { self.move_to(store, self.next - 1) } else { Ok(()) }
    }
}

/// The events of one read.
#[derive(Default)]
struct EventPage {
    /// Events, each with the cursor after it.
    events: Vec<(Event, Cursor)>,
    /// Whether states and references of the bulletins were looked up completely.
    whole: bool,
}

/// Held-back entries of one read.
struct Released {
    /// Events, each with its offset.
    events: Vec<(u64, Event)>,
    /// The first offset that was not scanned.
    next: u64,
    /// The first offset that is still held back.
    waiting: Option<u64>,
}

/// One open subscription.
struct OpenSubscription {
    api: Api,
    caller: Caller,
    filter: Arc<Filter>,
    /// Filter warnings to send with the first event.
    warnings: Vec<proto::FilterWarning>,
    reading: Reading,
    /// The cursor after the last event that was sent.
    cursor: Cursor,
    /// Its name, if it is a named subscription.
    name: Option<Named>,
    /// Whether the last read found nothing for it, or nothing was read yet. A stream that scans
    /// much and finds nothing reads at low priority.
    finds_nothing: bool,
    /// When its use was last recorded.
    used: Instant,
    /// When an event was last sent.
    last_sent: Instant,
    call: Call,
    responses: Responses<proto::SubscribeResponse>,
}

/// Why a subscription ends; `None` if the client has gone.
type End = Option<Status>;

impl OpenSubscription {
    async fn run(&mut self, reset: Option<proto::Reset>) -> Result<(), End> {
        let (mut end_offset, mut rosters) = (self.api.committer.watch_end_offset(), self.api.rosters.watch());
        if let Some(reset) = reset {
            self.send(Event::Reset(reset), "", None).await?;
        }
        let outcome = self.name.as_ref().map_or("", |name| name.outcome);
        self.send(Event::Position(self.reading.next - 1), outcome, None).await?;
        loop {
            end_offset.mark_unchanged();
            rosters.mark_unchanged();
            self.api.renew(&mut self.caller, &SUBSCRIBE)?;
            self.catch_up().await?;
            tokio::select! {
                changed = end_offset.changed() => changed.map_err(|_| None)?,
                changed = rosters.changed() => changed.map_err(|_| None)?,
                () = self.responses.closed() => return Err(None),
                () = tokio::time::sleep(GRANT_CHECK) => {}
            }
            self.check_name().await?;
            if self.last_sent.elapsed() >= HEARTBEAT {
                self.position().await?;
            }
        }
    }

    /// Records that the name is used while its stream is open. Ends a stream that started from the
    /// name alone if the store may have gone back: its offset is no longer certain.
    async fn check_name(&mut self) -> Result<(), End> {
        let Some(name) = &self.name else { return Ok(()) };
        if name.by_name_only && self.api.needs_recovery() {
            return Err(Some(errors::unknown_subscription(name.name(), Some(self.reading.next - 1))));
        }
        if self.used.elapsed() >= USED_EVERY {
            self.used = Instant::now();
            self.api.touch(&name.key).await?;
        }
        Ok(())
    }

    /// Sends all entries that have arrived.
    async fn catch_up(&mut self) -> Result<(), End> {
        'reading: loop {
            self.release().await?;
            let behind = self.api.store().end_offset().saturating_sub(self.reading.next);
            if behind == 0 {
                return Ok(());
            }
            let rules = self.api.access.load_full();
            let mut live = (behind <= LIVE_MAX).then(|| self.reading.clone());
            // The newest entries are in memory for all subscribers. A read for one subscriber is
            // charged before it begins.
            let mut charge = None;
            let at_once =
                live.as_mut().map(|reading| self.api.event_page(&self.caller, &self.filter, reading, Work::NONE));
            let at_once =
                at_once.transpose().map_err(|error| errors::read(&error))?.filter(|event_page| event_page.whole);
            let EventPage { events, whole: _ } = match at_once {
                Some(event_page) => {
                    self.reading = live.unwrap_or_else(|| self.reading.clone());
                    event_page
                }
                None => {
                    let room = tokio::select! {
                        room = self.call.charge_response(READ_CHARGED_BYTES) => room,
                        () = self.responses.closed() => return Err(None),
                    };
                    let room = charge.insert(room);
                    let (caller, filter, mut reading) =
                        (self.caller.clone(), Arc::clone(&self.filter), self.reading.clone());
                    let read = move |api: &Api| {
                        Ok((api.event_page(&caller, &filter, &mut reading, Work::EVENT_PAGE)?, reading))
                    };
                    let event_page: EventPage;
                    (event_page, self.reading) = self.api.reading_for(&self.call, self.finds_nothing, read).await?;
                    self.finds_nothing = event_page.events.is_empty();
                    let bytes = event_page.events.iter().map(|(event, _)| bytes_of(event));
                    room.shrink(room.amount().saturating_sub(bytes.sum()));
                    event_page
                }
            };
            let empty = events.is_empty();
            for (event, cursor) in events {
                // The access rules were reloaded: check again what the old rules let pass.
                if !Arc::ptr_eq(&rules, &self.api.access.load()) {
                    let next = offset_of(&event).unwrap_or(self.reading.next);
                    self.reading.held = self.reading.held.filter(|held| held.from < next);
                    (self.reading.next, self.reading.cursor) = (next, self.cursor);
                    self.api.renew(&mut self.caller, &SUBSCRIBE)?;
                    continue 'reading;
                }
                self.cursor = cursor;
                let charged = charge.as_mut().map(|charge| charge.split(bytes_of(&event)));
                self.send(event, "", charged).await?;
            }
            self.cursor = self.reading.cursor;
            if empty && self.reading.next < self.api.store().end_offset() {
                self.position().await?;
                self.api.renew(&mut self.caller, &SUBSCRIBE)?;
            }
        }
    }

    /// Sends the held-back entries whose roster has arrived. If the stream breaks meanwhile, the
    /// next stream sends some of them again, and none is lost.
    async fn release(&mut self) -> Result<(), End> {
        while let Some(held) = self.reading.held {
            let rosters = self.api.rosters.load();
            if held.roster_version >= rosters.newest().version() {
                break;
            }
            let (mut from, end, mut waiting) = (held.from, self.reading.next, None);
            while from < end {
                let (caller, filter, by) = (self.caller.clone(), Arc::clone(&self.filter), Arc::clone(&rosters));
                let (version, range) = (held.roster_version, from..end);
                let read = move |api: &Api| api.released(&caller, &filter, &by, version, range);
                let released = self.api.reading_for(&self.call, false, read).await?;
                for (offset, event) in released.events {
                    self.hold(Some(HeldBack { from: waiting.unwrap_or(offset + 1), ..held })).await?;
                    self.send(event, "", None).await?;
                }
                waiting = waiting.or(released.waiting);
                from = released.next;
                self.api.renew(&mut self.caller, &SUBSCRIBE)?;
            }
            let roster_version = rosters.newest().version();
            self.hold(waiting.map(|from| HeldBack { from, roster_version })).await?;
        }
        Ok(())
    }

    /// Updates the held-back entries, and the cursor with them.
    async fn hold(&mut self, held: Option<HeldBack>) -> Result<(), End> {
        let mut reading = self.reading.clone();
        reading.held = held.filter(|held| held.from < reading.next);
        let moved = move |api: &Api| reading.move_to(&**api.store(), reading.next - 1).map(|()| reading);
        self.reading = self.api.reading(moved).await?;
        self.cursor = self.reading.cursor;
        Ok(())
    }

    /// Sends the position: all entries before the next offset were scanned.
    async fn position(&mut self) -> Result<(), End> {
        if self.reading.lag() > 0 {
            let mut reading = self.reading.clone();
            let moved = move |api: &Api| reading.catch_up(&**api.store()).map(|()| reading);
            self.reading = self.api.reading(moved).await?;
            self.cursor = self.reading.cursor;
        }
        self.send(Event::Position(self.reading.next - 1), "", None).await
    }

    async fn send(&mut self, event: Event, outcome: &str, charged: Option<Charge>) -> Result<(), End> {
        let (cursor, subscription) = (self.cursor.encode(), outcome.to_owned());
        let warnings = std::mem::take(&mut self.warnings);
        let response = proto::SubscribeResponse { event: Some(event), cursor, subscription, warnings };
        let sent = self.responses.send(Ok(response), charged).await;
        self.last_sent = Instant::now();
        if sent { Ok(()) } else { Err(None) }
    }
}

/// Returns the offset of a bulletin or damaged entry.
fn offset_of(event: &Event) -> Option<u64> {
    match event {
        Event::Delivery(delivery) => Some(delivery.offset),
        Event::Damaged(damaged) => Some(damaged.offset),
        Event::Position(_) | Event::Reset(_) => None,
    }
}

/// Returns the bytes of an event's message. Positions, resets and damaged entries are small and
/// count as 0.
fn bytes_of(event: &Event) -> u64 {
    if let Event::Delivery(delivery) = event { delivery.encoded_len() as u64 + MESSAGE_BYTES } else { 0 }
}
