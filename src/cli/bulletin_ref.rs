//! Bulletins as users name them: by id, by the beginning of an id, or by offset.
//!
//! In scope: parsing, the search for the whole id in the history that the caller may read, and the
//! short ids in lists. Out of scope: ids in drafts, receipts and JSON, which are always whole.
//!
//! A UUIDv7 begins with the time of its creation, so that its beginning also bounds when the
//! bulletin was sent.

use std::collections::BTreeSet;
use std::str::FromStr;

use barid_core::bulletin::BulletinId;
use barid_core::ids::Member;
use barid_core::limits::CLOCK_AHEAD_SECONDS_MAX;
use barid_core::{envelope, proto};
use prost_types::Timestamp;

use super::Failure;
use super::client::Client;
use super::expected::Expected;

/// Characters of an id.
const ID_CHARS: usize = "01976f6e-7c00-7000-8000-000000000001".len();
/// Characters of a short id, if more are not needed: all of the time, in milliseconds.
const SHORT_CHARS: usize = "01976f6e-7c00".len();
/// Fewest characters that are searched for.
const BEGINNING_CHARS_MIN: usize = 4;
/// Digits of the time at the beginning of an id, in hexadecimal.
const TIME_DIGITS: usize = 12;
/// Last second that a node accepts as a time: the end of the year 9999.
const SECONDS_MAX: i64 = 253_402_300_799;
/// Pages of history that a search reads: some seconds on a fast link.
const SEARCH_PAGES_MAX: usize = 50;
/// Bulletins on a page of a search: the most that a node sends. It sends fewer if they are large.
const SEARCH_PAGE_SIZE: u32 = 1_000;
/// Bulletins that the error for an ambiguous beginning lists.
const LISTED_MAX: usize = 5;

/// A bulletin on the command line: `ne/0197…`, with or without its publishing member; or its offset,
/// `#7`, which a shell takes for a comment unless it is quoted, or `7`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BulletinRef {
    /// Publishing member, if given.
    member: Option<Member>,
    named: Named,
}

/// What names it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Named {
    Id(BulletinId),
    Sought(Sought),
}

/// What must be searched for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sought {
    /// The beginning of an id.
    Beginning(String),
    Offset(u64),
}

/// A bulletin by its whole id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WholeRef {
    /// Publishing member, if known.
    pub(super) member: Option<Member>,
    /// Its id.
    pub(super) id: BulletinId,
}

impl FromStr for BulletinRef {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        let (member, name) = match text.split_once('/') {
            Some((member, id)) => (Some(member.parse::<Member>()?), id),
            None => (None, text),
        };
        if let Ok(id) = name.parse() {
            return Ok(Self { member, named: Named::Id(id) });
        }
        // Ids of this age begin with a zero, and a number does not.
        let digits = name.strip_prefix('#').unwrap_or(name);
        if member.is_none()
            && !digits.starts_with(['0', '+'])
            && let Ok(offset) = digits.parse()
        {
            return Ok(Self { member, named: Named::Sought(Sought::Offset(offset)) });
        }
        if !is_beginning(name) {
            return Err(Expected::Bulletin);
        }
        Ok(Self { member, named: Named::Sought(Sought::Beginning(name.to_owned())) })
    }
}

/// Returns whether a text can be the beginning of an id.
fn is_beginning(text: &str) -> bool {
    let fits = |(at, c): (usize, char)| match at {
        8 | 13 | 18 | 23 => c == '-',
        14 => c == '7',
        19 => matches!(c, '8' | '9' | 'a' | 'b'),
        _ => c.is_ascii_digit() || ('a'..='f').contains(&c),
    };
    (BEGINNING_CHARS_MIN..ID_CHARS).contains(&text.len()) && text.char_indices().all(fits)
}

impl BulletinRef {
    /// Returns the bulletin by its whole id. Anything but an id is searched for in the history;
    /// `chosen` is the member that an option names.
    ///
    /// # Errors
    /// Returns an error if there is no such bulletin, or there are several, among those that were
    /// searched.
    pub(super) async fn resolve(&self, client: &Client, chosen: Option<&Member>) -> Result<WholeRef, Failure> {
        let member = match (&self.member, chosen) {
            (Some(written), Some(chosen)) if written != chosen => {
                return Err(Failure::usage("two-members").with("written", written).with("chosen", chosen));
            }
            (written, chosen) => written.as_ref().or(chosen),
        };
        let sought = match &self.named {
            Named::Id(id) => return Ok(WholeRef { member: member.cloned(), id: *id }),
            Named::Sought(sought) => sought,
        };
        let mut search = Search::new(sought, self.member.as_ref(), member);
        let mut page_token = String::new();
        for _ in 0..SEARCH_PAGES_MAX {
            let page = client.history(search.request(page_token)).await?;
            let is_complete = search.examine(&page)? || page.next_page_token.is_empty();
            if is_complete {
                return search.result(true);
            }
            page_token = page.next_page_token;
        }
        search.result(false)
    }
}

/// A search through the history, newest first.
struct Search<'a> {
    sought: &'a Sought,
    /// The member that is written with the bulletin.
    written: Option<&'a Member>,
    /// The member whose bulletins are searched: as written, or chosen by an option.
    member: Option<&'a Member>,
    found: BTreeSet<(Member, BulletinId)>,
    /// Bulletins looked at.
    examined: usize,
    /// Whether an entry was damaged: its id is not known.
    is_damaged: bool,
}

impl<'a> Search<'a> {
    fn new(sought: &'a Sought, written: Option<&'a Member>, member: Option<&'a Member>) -> Self {
        Self { sought, written, member, found: BTreeSet::new(), examined: 0, is_damaged: false }
    }

    fn request(&self, page_token: String) -> proto::HistoryRequest {
        let since = match self.sought {
            Sought::Beginning(beginning) => sent_since(beginning),
            Sought::Offset(_) => None,
        };
        let members = self.member.iter().map(ToString::to_string).collect();
        let filter = Some(proto::Filter { members, ..proto::Filter::default() });
        proto::HistoryRequest { filter, since, until: None, page_size: SEARCH_PAGE_SIZE, page_token }
    }

    /// Examines a page, and returns whether the search is complete.
    fn examine(&mut self, page: &proto::HistoryResponse) -> Result<bool, Failure> {
        let wanted = match self.sought {
            Sought::Offset(offset) => Some(*offset),
            Sought::Beginning(_) => None,
        };
        if page.damaged.iter().any(|damaged| Some(damaged.offset) == wanted) {
            return Err(Failure::new("damaged"));
        }
        // An id names the first bulletin of its publisher that has it.
        let reuses_id = |delivery: &&proto::Delivery| {
            Some(delivery.offset) == wanted && delivery.flags.iter().any(|flag| flag == "duplicate-id")
        };
        if let Some(delivery) = page.deliveries.iter().find(reuses_id) {
            return Err(Failure::usage("reused-id").with("offset", &delivery.offset));
        }
        self.is_damaged |= !page.damaged.is_empty();
        self.examined += page.deliveries.len();
        for delivery in &page.deliveries {
            let named = envelope::header_of(&delivery.envelope).ok().and_then(|header| {
                let is_named = match self.sought {
                    Sought::Beginning(beginning) => header.id.starts_with(beginning.as_str()),
                    Sought::Offset(offset) => delivery.offset == *offset,
                };
                let id = || Some((header.member.parse::<Member>().ok()?, header.id.parse::<BulletinId>().ok()?));
                if is_named { id() } else { None }
            });
            self.found.extend(named);
        }
        // Offsets fall from page to page, so that later pages cannot have it.
        let passed = page.deliveries.iter().any(|delivery| wanted.is_some_and(|wanted| delivery.offset <= wanted));
        Ok(passed || self.found.len() > LISTED_MAX)
    }

    /// Returns the bulletin that was found; `is_complete` is whether the whole history was searched.
    fn result(mut self, is_complete: bool) -> Result<WholeRef, Failure> {
        let name = self.name();
        if self.found.len() > 1 {
            let ids: Vec<String> = self.found.iter().map(|(_, id)| id.to_string()).collect();
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            let all = self.found.iter().zip(short_among(&ids)).take(LISTED_MAX);
            let mut all = all.map(|((member, _), id)| format!("{member}/{id}")).collect::<Vec<_>>().join(", ");
            if self.found.len() > LISTED_MAX {
                all.push_str(", …");
            }
            return Err(Failure::usage("ambiguous-id").with("beginning", &name).with("ids", &all));
        }
        match self.found.pop_first() {
            Some((member, id)) if is_complete => Ok(WholeRef { member: Some(member), id }),
            None if self.is_damaged && matches!(self.sought, Sought::Beginning(_)) => Err(Failure::new("damaged")),
            None if is_complete => Err(Failure::new("no-such-bulletin").with("bulletin", &name)),
            // A bulletin that was not searched may have the same beginning.
            Some(_) | None => Err(Failure::new("id-not-searched")
                .with("bulletin", &name)
                .with("nExamined", &self.examined)
                .with("nPages", &SEARCH_PAGES_MAX)),
        }
    }

    /// Returns what was searched for, as the user may write it.
    fn name(&self) -> String {
        let member = self.written.map(|member| format!("{member}/")).unwrap_or_default();
        match self.sought {
            Sought::Beginning(beginning) => format!("{member}{beginning}"),
            Sought::Offset(offset) => format!("#{offset}"),
        }
    }
}

/// Returns a time since which every bulletin was sent whose id begins so: a node publishes no id that
/// is further ahead of its clock. A hostile member can sign another one; its offset finds it.
fn sent_since(beginning: &str) -> Option<Timestamp> {
    let digits: String = beginning.chars().filter(|c| *c != '-').take(TIME_DIGITS).collect();
    let earliest_ms = u64::from_str_radix(&format!("{digits:0<TIME_DIGITS$}"), 16).ok()?;
    let seconds = i64::try_from(earliest_ms / 1_000).ok()?.saturating_sub(CLOCK_AHEAD_SECONDS_MAX);
    (seconds <= SECONDS_MAX).then_some(Timestamp { seconds, nanos: 0 })
}

/// Returns the beginning of an id that is shown for it; it names one bulletin unless another was
/// made in the same millisecond. A text that is no id is returned whole.
#[must_use]
pub(super) fn short(id: &str) -> &str {
    beginning(id, SHORT_CHARS)
}

/// Returns the beginning of each id that is unique among them, at least as long as [`short`].
#[must_use]
pub(super) fn short_among<'a>(ids: &[&'a str]) -> Vec<&'a str> {
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let unique = |id: &&'a str| {
        let place = sorted.binary_search(id).unwrap_or(0);
        let neighbours = [place.checked_sub(1), place.checked_add(1)];
        let others = neighbours.into_iter().flatten().filter_map(|place| sorted.get(place));
        let shared = others.map(|other| id.bytes().zip(other.bytes()).take_while(|(one, two)| one == two).count());
        beginning(id, shared.max().map_or(SHORT_CHARS, |shared| SHORT_CHARS.max(shared + 1)))
    };
    ids.iter().map(unique).collect()
}

/// Returns at least `chars` characters of an id, without a hyphen at their end.
fn beginning(id: &str, chars: usize) -> &str {
    if id.parse::<BulletinId>().is_err() {
        return id;
    }
    let chars = if id.as_bytes().get(chars.saturating_sub(1)) == Some(&b'-') { chars + 1 } else { chars };
    id.get(..chars).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cli::Exit;

    const ONE: &str = "01976f6e-7c00-7000-8000-000000000001";
    const TWO: &str = "01976f6e-7c00-7000-8000-00000000000c";
    const LATER: &str = "01976f6e-7c01-7000-8000-000000000001";

    fn parse(text: &str) -> BulletinRef {
        text.parse().unwrap()
    }

    fn delivery(offset: u64, member: &str, id: &str) -> proto::Delivery {
        let draft = barid_core::bulletin::kinds::REGISTRY[0].sample().unwrap();
        let header = proto::Header { format: 1, member: member.into(), id: id.into(), ..draft.header.unwrap() };
        let envelope = envelope::encode(&header, draft.body.as_ref().unwrap(), [1; 16]);
        proto::Delivery { offset, envelope, ..Default::default() }
    }

    fn page(deliveries: &[(u64, &str, &str)]) -> proto::HistoryResponse {
        let deliveries = deliveries.iter().map(|(offset, member, id)| delivery(*offset, member, id)).collect();
        proto::HistoryResponse { deliveries, ..Default::default() }
    }

    /// Searches one page; `is_complete` is whether there is no other.
    fn searched(text: &str, page: &proto::HistoryResponse, is_complete: bool) -> Result<WholeRef, Failure> {
        let BulletinRef { member, named: Named::Sought(sought) } = parse(text) else { panic!("a whole id") };
        let mut search = Search::new(&sought, member.as_ref(), member.as_ref());
        let passed = search.examine(page)?;
        search.result(is_complete || passed)
    }

    #[test]
    fn bulletin_is_named_by_id_beginning_or_offset() {
        assert_eq!(parse(ONE).named, Named::Id(ONE.parse().unwrap()));
        let with = parse(&format!("ne/{ONE}"));
        assert_eq!((with.member.unwrap().as_str(), with.named), ("ne", Named::Id(ONE.parse().unwrap())));
        assert_eq!(parse("ne/01976f6e-7c00").named, Named::Sought(Sought::Beginning("01976f6e-7c00".to_owned())));
        assert_eq!(parse("0197").named, Named::Sought(Sought::Beginning("0197".to_owned())));
        for (text, offset) in [("#7", 7), ("7", 7), ("1300", 1_300), ("18446744073709551615", u64::MAX)] {
            assert_eq!(parse(text).named, Named::Sought(Sought::Offset(offset)), "{text}");
        }
        for bad in [
            "",
            "ne/",
            "x",
            "019",
            "#",
            "#0",
            "#x",
            "+7",
            "ne/7",
            "0197ABCD",
            "01976f6e7c00",
            "01976f6e-7c00-4",
            "01976f6e-7c00-7000-c",
            "NE/01976f6e-7c00-7000-8000-000000000001",
            "01976f6e-7c00-4000-8000-000000000001",
            "01976f6e-7c00-7000-8000-0000000000012",
        ] {
            assert!(bad.parse::<BulletinRef>().is_err(), "{bad}");
        }
    }

    #[test]
    fn beginning_of_id_finds_one_bulletin() {
        let page = page(&[(9, "ne", LATER), (8, "tn", ONE), (7, "ne", "not an id")]);
        let found = searched("01976f6e-7c01", &page, true).unwrap();
        assert_eq!((found.member.unwrap().as_str(), found.id.to_string().as_str()), ("ne", LATER));
        assert_eq!(searched("01976f6e-7c00", &page, true).unwrap().member.unwrap().as_str(), "tn");
        let failure = searched("01976f6e-7c00", &page, false).unwrap_err();
        assert_eq!(failure.id(), "id-not-searched", "an older bulletin may begin so, too");
        assert_eq!(searched("#8", &page, false).unwrap().id.to_string(), ONE);
        assert_eq!(searched("#6", &page, true).unwrap_err().id(), "no-such-bulletin");
        assert_eq!(searched("#7", &page, true).unwrap_err().id(), "no-such-bulletin", "its header names no id");
    }

    #[test]
    fn ambiguous_beginning_is_usage_error_with_candidates() {
        let page = page(&[(9, "ne", TWO), (8, "ne", ONE), (7, "ly", ONE)]);
        let failure = searched("01976f6e", &page, true).unwrap_err();
        assert_eq!((failure.id(), failure.exit_code()), ("ambiguous-id", Exit::Usage));
        let messages = crate::cli::Messages::new(crate::cli::Lang::En);
        let text = failure.heading(&messages);
        for part in ["01976f6e ", &format!("ne/{ONE}"), &format!("ly/{ONE}"), &format!("ne/{TWO}")] {
            assert!(text.contains(part), "one character distinguishes them: {text}");
        }
        let text = searched("01976f6e", &self::page(&[(9, "ne", LATER), (8, "ne", ONE)]), true).unwrap_err();
        assert!(text.heading(&messages).ends_with("ne/01976f6e-7c00, ne/01976f6e-7c01"), "{text}");
        assert_eq!(searched(&TWO[..35], &page, true).unwrap_err().id(), "ambiguous-id");
    }

    #[test]
    fn offset_of_a_bulletin_that_reuses_an_id_and_damage_are_errors() {
        let mut reused = page(&[(9, "ne", ONE), (8, "ne", ONE)]);
        reused.deliveries[0].flags.push("duplicate-id".to_owned());
        assert_eq!(searched("#9", &reused, true).unwrap_err().id(), "reused-id");
        assert_eq!(searched("#8", &reused, true).unwrap().id.to_string(), ONE);
        let damaged = proto::HistoryResponse {
            damaged: vec![proto::DamagedEntry { offset: 7, ..Default::default() }],
            ..page(&[(9, "ne", LATER)])
        };
        assert_eq!(searched("01976f6e-7c00", &damaged, true).unwrap_err().id(), "damaged");
        assert_eq!(searched("01976f6e-7c01", &damaged, true).unwrap().id.to_string(), LATER);
    }

    #[test]
    fn bound_of_search_is_stated() {
        let page = page(&[(9, "ne", LATER), (8, "tn", ONE)]);
        let failure = searched("01976f70", &page, false).unwrap_err();
        assert_eq!(failure.id(), "id-not-searched");
        for lang in crate::cli::Lang::ALL {
            let text = failure.heading(&crate::cli::Messages::new(lang));
            assert!(text.contains("01976f70") && text.contains('2'), "{text}");
        }
        assert_eq!(searched("01976f70", &page, true).unwrap_err().id(), "no-such-bulletin");
        assert_eq!(searched("#9", &page, false).unwrap().id.to_string(), LATER);
        assert_eq!(searched("#5", &page, false).unwrap_err().id(), "id-not-searched");
    }

    #[test]
    fn damaged_bulletin_is_reported_by_offset() {
        let damaged = vec![proto::DamagedEntry { offset: 8, ..Default::default() }];
        let page = proto::HistoryResponse { damaged, ..page(&[(9, "ne", LATER)]) };
        assert_eq!(searched("#8", &page, true).unwrap_err().id(), "damaged");
        assert!(searched("#9", &page, true).is_ok());
    }

    #[test]
    fn beginning_bounds_when_it_was_sent() {
        let id: BulletinId = ONE.parse().unwrap();
        let created = i64::try_from(id.unix_ms() / 1_000).unwrap();
        let since = |beginning: &str| sent_since(beginning).map(|at| at.seconds);
        assert_eq!(since("01976f6e-7c00-7"), Some(created - CLOCK_AHEAD_SECONDS_MAX));
        assert!(since("0197").unwrap() <= since("01976f6e").unwrap());
        assert!(since("01976f6e").unwrap() <= created);
        assert_eq!(since("0000"), Some(-CLOCK_AHEAD_SECONDS_MAX));
        assert_eq!(since("ffff"), None, "after the year 9999");
    }

    #[test]
    fn short_ids_are_unique_beginnings() {
        assert_eq!(short(ONE), "01976f6e-7c00");
        assert_eq!(short("not an id"), "not an id");
        assert_eq!(short_among(&[ONE, LATER]), ["01976f6e-7c00", "01976f6e-7c01"]);
        assert_eq!(short_among(&[ONE, TWO, ONE, "é"]), [ONE, TWO, ONE, "é"]);
        let other = "01976f6e-7c00-7100-8000-000000000001";
        assert_eq!(short_among(&[ONE, other]), ["01976f6e-7c00-70", "01976f6e-7c00-71"]);
        assert!(short_among(&[]).is_empty());
        for id in short_among(&[ONE, other, LATER]) {
            assert!(id.parse::<BulletinRef>().is_ok(), "{id}");
        }
    }
}
