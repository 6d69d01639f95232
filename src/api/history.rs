//! History: pages of entries in reverse order of arrival.
//!
//! In scope: parsing the request and building a page of the entries that the caller may read. Out
//! of scope: the index behind it (`store`).

use barid_core::bulletin::Rule;
use barid_core::bulletin::field::Report;
use barid_core::bulletin::times::Time;
use barid_core::limits::ENVELOPE_BYTES_MAX;
use barid_core::proto;
use prost::Message as _;
use tonic::Status;

use super::bulletin_state::Work;
use super::caller::Caller;
use super::cursor::{Cursor, CursorBuilder, Mismatch};
use super::filter::Filter;
use super::visibility::damaged_of;
use super::{Api, errors};
use crate::store::{Columns, ReadError, Store};

/// Default and largest number of entries on a page.
const PAGE: (usize, usize) = (50, 1_000);
/// Encoded bytes of a page, charged before it is built. One entry always fits.
const PAGE_BYTES_MAX: usize = ENVELOPE_BYTES_MAX;
/// Entries that one call scans before it returns the page so far with a token.
const SCAN_MAX: u64 = 50_000;
/// Entries read from the store at once. It bounds the memory they use before the invisible ones are
/// dropped.
const READ_MAX: usize = 8;

/// A validated request for a page.
#[derive(Clone, Debug)]
pub(super) struct HistoryQuery {
    filter: Filter,
    /// Unix milliseconds, both ends included.
    since: Option<u64>,
    until: Option<u64>,
    page_size: usize,
    /// One past the offset at which the page begins.
    before: u64,
    /// The page token, as a cursor; `None` for the first page.
    token: Option<Cursor>,
}

impl HistoryQuery {
    /// Parses a request at a node whose next offset is `end`.
    pub(super) fn read(request: proto::HistoryRequest, end: u64) -> Result<Self, Status> {
        let proto::HistoryRequest { filter, since, until, page_size, page_token } = request;
        let mut report = Report::default();
        let filter = Filter::read(filter, &mut report);
        let mut ms = |field: &str, at: Option<prost_types::Timestamp>| {
            let time = Time::from_proto(&at?);
            if time.is_none() {
                report.add(field, "a timestamp out of range", Rule::InstantInRange);
            }
            time.map(Time::unix_ms)
        };
        let (since, until) = (ms("since", since), ms("until", until));
        if let (Some(since), Some(until)) = (since, until)
            && until < since
        {
            report.add("until", Time::from_unix_ms(until), Rule::SinceOrder);
        }
        let token = Cursor::parse(&page_token);
        if token.is_none() && !page_token.is_empty() {
            report.add("page_token", &page_token, Rule::PageToken);
        }
        errors::check(report)?;
        let before = token.as_ref().map_or(end, |token| token.offset() + 1);
        let page_size = if page_size == 0 { PAGE.0 } else { (page_size as usize).min(PAGE.1) };
        Ok(Self { filter, since, until, page_size, before, token })
    }

    /// Rejects a token from another history of the store, where its offset means another entry. A
    /// token that cannot be verified because the store is damaged there is accepted: the damage is
    /// in the history that the page is of. Blocks.
    pub(super) fn check(&self, store: &dyn Store) -> Result<(), Status> {
        let mismatch = self.token.as_ref().map(|token| token.mismatch(store)).transpose();
        match mismatch.map_err(|error| errors::read(&error))?.flatten() {
            None | Some(Mismatch::Unknown) => Ok(()),
            Some(mismatch) => Err(errors::cursor_mismatch("page_token", mismatch.as_str())),
        }
    }

    pub(super) fn filter(&self) -> &Filter {
        &self.filter
    }

    fn matches(&self, caller: &Caller, columns: &Columns) -> bool {
        // Times before 1970 count as 1970.
        let at = u64::try_from(columns.sent_at_unix_ms).unwrap_or(0);
        self.since.is_none_or(|since| at >= since)
            && self.until.is_none_or(|until| at <= until)
            && caller.reads(&columns.kind, &columns.topic)
            && self.filter.matches_columns(columns)
    }
}

impl Api {
    /// Builds a page: full, or with a token for the next page, or the last page. Blocks.
    pub(super) fn page(&self, caller: &Caller, query: &HistoryQuery) -> Result<proto::HistoryResponse, ReadError> {
        let predicate = |columns: &Columns| query.matches(caller, columns);
        let (mut page, mut bytes) = (proto::HistoryResponse::default(), 0);
        let (mut next, mut left) = (Some(query.before), SCAN_MAX);
        let mut work = Work::new(Work::PAGE);
        while let Some(before) = next
            && page.deliveries.len() + page.damaged.len() < query.page_size
            && left > 0
        {
            let count = (query.page_size - page.deliveries.len() - page.damaged.len()).min(READ_MAX);
            let (entries, rest) = match self.store().history(before, count, left, &predicate) {
                Err(ReadError::DamagedEntry(damaged)) => {
                    let offset = damaged.offset;
                    page.damaged.push(damaged_of(*damaged));
                    (Vec::new(), (offset > 1).then_some(offset))
                }
                read => read?,
            };
            left = left.saturating_sub(before - rest.unwrap_or(1).min(before));
            next = rest;
            let visible = entries.into_iter().filter(|entry| self.may_deliver(caller, entry)).collect();
            for delivery in self.deliveries(caller, visible, &mut work)? {
                // The field's tag and length.
                bytes += delivery.encoded_len() + 8;
                if bytes > PAGE_BYTES_MAX && !page.deliveries.is_empty() {
                    page.next_page_token = self.token(delivery.offset + 1)?;
                    return Ok(page);
                }
                page.deliveries.push(delivery);
            }
        }
        page.next_page_token = next.map(|before| self.token(before)).transpose()?.unwrap_or_default();
        Ok(page)
    }

    /// Returns the token of the page that begins before an offset.
    fn token(&self, before: u64) -> Result<String, ReadError> {
        Ok(CursorBuilder::new(&**self.store())
            .at_or_unproven(&**self.store(), before.saturating_sub(1), None)?
            .to_text())
    }
}
