//! Invariants of rosters: what a version must not change from the version before it.
//!
//! Evidence and every member's replicas depend on them: the final size of a feed's epoch, the keys
//! of an epoch, and the time at which a key ended. The rule compares two consecutive versions and
//! nothing else, so every node reaches the same result wherever its chain begins.
//!
//! In scope: the comparison. Out of scope: signatures (`chain`).

use std::collections::{BTreeMap, BTreeSet};

use super::{MemberEntry, MemberKey, Role, Roster};

/// A changed invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InvariantViolation {
    /// Path: `members.ma.closed_feeds`, and the item.
    pub(super) field: String,
    /// Value in the version before.
    pub(super) was: String,
    /// Value in the new version.
    pub(super) is: String,
}

/// Compares `next` with the version before it. The invariants of a member that has left no longer
/// apply.
pub(super) fn check(before: &Roster, next: &Roster) -> Result<(), InvariantViolation> {
    for held in before.entries() {
        let Some(new) = next.member(&held.code) else { continue };
        closed_feeds(held, new)?;
        epoch_keys(held, new)?;
        for (place, key) in held.keys.iter().enumerate() {
            let field = format!("members.{}.keys[{place}] ({})", held.code, key.key.name());
            match new.keys.iter().find(|other| other.key == key.key && other.role == key.role) {
                Some(other) => same_key(&field, (before, key), (next, other))?,
                None if key.until.is_some() => return Err(violation(field, ended(key), "not listed")),
                None => {}
            }
        }
    }
    check_key_owners(before, next)
}

fn closed_feeds(held: &MemberEntry, new: &MemberEntry) -> Result<(), InvariantViolation> {
    for closed in &held.closed_feeds {
        let field = format!("members.{}.closed_feeds, epoch {}", held.code, closed.epoch);
        let describe = |closed: &super::ClosedFeed| format!("{} entries, root {}", closed.size, closed.root);
        match new.closed_feeds.iter().find(|other| other.epoch == closed.epoch) {
            Some(other) if other == closed => {}
            Some(other) => return Err(violation(field, describe(closed), describe(other))),
            None => return Err(violation(field, describe(closed), "not closed")),
        }
    }
    Ok(())
}

fn epoch_keys(held: &MemberEntry, new: &MemberEntry) -> Result<(), InvariantViolation> {
    let (held_epochs, new_epochs) = (epochs(held), epochs(new));
    for (epoch, keys) in &held_epochs {
        let others = new_epochs.get(epoch);
        if others != Some(keys) {
            let describe = |keys: &BTreeSet<String>| keys.iter().cloned().collect::<Vec<_>>().join(", ");
            let field = format!("members.{}.keys, epoch {epoch}", held.code);
            return Err(violation(field, describe(keys), others.map_or_else(|| "not listed".to_owned(), describe)));
        }
    }
    Ok(())
}

fn epochs(entry: &MemberEntry) -> BTreeMap<u32, BTreeSet<String>> {
    let mut epochs: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    for key in &entry.keys {
        if let Role::Feed(epoch) = key.role {
            epochs.entry(epoch).or_default().insert(key.key.to_string());
        }
    }
    epochs
}

/// Checks one key. A key in force stays in force, its time of retirement does not change, and its
/// time of compromise can only become earlier.
fn same_key(
    field: &str,
    (before, held): (&Roster, &MemberKey),
    (next, new): (&Roster, &MemberKey),
) -> Result<(), InvariantViolation> {
    if held.from_version <= before.version() && new.from_version > next.version() {
        return Err(violation(field, "in force", format!("from version {} on", new.from_version)));
    }
    let retired_otherwise = held.retired.is_some() && new.retired != held.retired;
    let returned = held.compromised && (!new.compromised || new.until > held.until);
    if retired_otherwise || returned {
        return Err(violation(field, ended(held), ended(new)));
    }
    Ok(())
}

/// Checks that each key keeps its name, and so its member and role. Otherwise its old signatures
/// would be attributed to somebody else.
fn check_key_owners(before: &Roster, next: &Roster) -> Result<(), InvariantViolation> {
    let (held, new) = (owners(before), owners(next));
    for (public, owner) in &held {
        if let Some(other) = new.get(public).filter(|other| *other != owner) {
            return Err(violation("the place of a key".to_owned(), owner.clone(), other.clone()));
        }
    }
    Ok(())
}

fn owners(roster: &Roster) -> BTreeMap<&[u8], String> {
    let governors = roster.governors().iter();
    let members = roster.entries().flat_map(|entry| &entry.keys).map(|key| &key.key);
    governors.chain(members).map(|key| (key.public_bytes(), key.name().to_owned())).collect()
}

fn ended(key: &MemberKey) -> String {
    match (key.retired, key.compromised, key.until) {
        (_, _, None) => "not ended".to_owned(),
        (None, _, Some(until)) => format!("compromised since {until}"),
        (Some(retired), false, Some(_)) => format!("retired at {retired}"),
        (Some(retired), true, Some(until)) => format!("retired at {retired}, counts until {until}, compromised"),
    }
}

fn violation(field: impl Into<String>, was: impl Into<String>, is: impl Into<String>) -> InvariantViolation {
    InvariantViolation { field: field.into(), was: was.into(), is: is.into() }
}
