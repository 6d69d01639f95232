//! Parts of the store in memory: what refers to what, and reading within bounds.

use std::collections::{BTreeMap, HashMap};

use barid_core::names::{FeedId, Member};
use barid_core::proto;
use uuid::Uuid;

use super::super::references::{Person, Role};
use super::super::view::answers::{self, Answer};
use super::super::view::references::Referrer;
use super::super::{Content, Entry, Location, Refers, admit};

/// What refers to bulletins.
#[derive(Default)]
pub(super) struct References {
    pub(super) others: HashMap<(Member, Uuid, Refers), Vec<Location>>,
    pub(super) answers: HashMap<(Member, Uuid), BTreeMap<(FeedId, Person), Answer>>,
}

impl References {
    pub(super) fn add(&mut self, at: &Location, header: Option<&proto::Header>) {
        for (member, id, role) in admit::references(&at.feed, header) {
            match role {
                Role::Other(how) => self.others.entry((member, id, how)).or_default().push(at.clone()),
                Role::Answer(person) => {
                    let answers = self.answers.entry((member, id)).or_default();
                    let referrer = Referrer { arrival: at.arrival, index: at.index, feed: 0 };
                    let answer = answers::add(answers.get(&(at.feed.clone(), person)).copied(), &referrer);
                    answers.insert((at.feed.clone(), person), answer);
                }
            }
        }
    }
}

/// Takes entries until a bound is met, but always one.
pub(super) fn bounded(entries: impl Iterator<Item = Entry>, entries_max: usize, bytes_max: usize) -> Vec<Entry> {
    let mut bytes = 0;
    let mut taken = Vec::new();
    for entry in entries {
        let size = match &entry.content {
            Content::Disclosed { envelope, .. } => envelope.len(),
            Content::Undisclosed(_) => 0,
        };
        if !taken.is_empty() && (taken.len() >= entries_max || bytes + size > bytes_max) {
            break;
        }
        bytes += size;
        taken.push(entry);
    }
    taken
}
