//! What one person has answered to a bulletin: the first answer, the newest, and how many there are.
//!
//! In scope: the key and the value. One value for each person, so that nobody's answers stand in the way of another's. Key: bulletin's member
//! and id, feed of the answers (u32), person (u64). Value, after the version: arrival and index of the first, arrival and index of the newest,
//! count (u64 each).

use barid_core::names::Member;
use uuid::Uuid;

use super::references::Referrer;
use crate::store::keys::{self, FeedNumber, Fields, Key, Value};
use crate::store::references::Person;

/// The answers of one person in one feed. Each place is an arrival and an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Answer {
    pub(in crate::store) first: (u64, u64),
    pub(in crate::store) newest: (u64, u64),
    pub(in crate::store) count: u64,
}

/// With one more, unless it is among them: arrivals come in order.
pub(in crate::store) fn add(held: Option<Answer>, referrer: &Referrer) -> Answer {
    let place = (referrer.arrival, referrer.index);
    match held {
        None => Answer { first: place, newest: place, count: 1 },
        Some(held) if referrer.arrival > held.newest.0 => Answer { newest: place, count: held.count + 1, ..held },
        Some(held) => held,
    }
}

pub(in crate::store) fn key(member: &Member, id: Uuid, feed: FeedNumber, person: Person) -> Key {
    Key::new(keys::ANSWER).member(member).id(id).u32(feed).u64(person.0)
}

/// Feed and person of a key.
pub(in crate::store) fn read_key(key: &[u8]) -> Option<(FeedNumber, Person)> {
    let mut fields = Fields::of_key(key)?;
    fields.member()?;
    fields.array::<16>()?;
    Some((fields.key_u32()?, Person(fields.key_u64()?)))
}

pub(in crate::store) fn encode(answer: Answer) -> Vec<u8> {
    let Answer { first, newest, count } = answer;
    Value::new().u64(first.0).u64(first.1).u64(newest.0).u64(newest.1).u64(count).bytes()
}

pub(in crate::store) fn decode(value: &[u8]) -> Option<Answer> {
    let mut fields = Fields::of_value(value)?;
    let mut place = || Some((fields.u64()?, fields.u64()?));
    let (first, newest) = (place()?, place()?);
    Some(Answer { first, newest, count: fields.u64()? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn answer_keeps_the_first_and_the_newest_and_is_read_as_it_was_written() {
        let referrer = |arrival| Referrer { arrival, index: arrival + 100, feed: 7 };
        let answer = [3, 5, 9, 9, 5].iter().fold(None, |held, arrival| Some(add(held, &referrer(*arrival)))).unwrap();
        assert_eq!(answer, Answer { first: (3, 103), newest: (9, 109), count: 3 });
        assert_eq!(decode(&encode(answer)), Some(answer));
        assert_eq!(decode(&encode(answer)[..40]), None);
        let key = key(&"ma".parse().unwrap(), Uuid::from_u128(1), 7, Person(8));
        assert_eq!(read_key(key.as_ref()), Some((7, Person(8))));
    }
}
