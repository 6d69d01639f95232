//! Named subscriptions in a record.
//!
//! In scope: encoding and decoding a name and its progress. Out of scope: the rest of a record (the
//! parent module).

use barid_core::proto;

use crate::store::{CursorRecord, HeldBack, Subscription, SubscriptionRecord};

pub(super) fn encode(record: &SubscriptionRecord) -> proto::RecordSubscription {
    let SubscriptionRecord { subscription, state } = record;
    let Some(state) = state else {
        let removed = true;
        return proto::RecordSubscription { subscription: subscription.clone(), removed, ..Default::default() };
    };
    let (held_from, roster_version) = encode_held(state.held);
    proto::RecordSubscription {
        subscription: subscription.clone(),
        offset: state.offset,
        held_from,
        roster_version,
        epoch: state.epoch,
        filter: state.filter.clone(),
        created_unix_ms: state.created_unix_ms,
        removed: false,
    }
}

pub(super) fn decode(record: proto::RecordSubscription) -> SubscriptionRecord {
    let state = Subscription {
        offset: record.offset,
        held: decode_held(record.held_from, record.roster_version),
        filter: record.filter,
        created_unix_ms: record.created_unix_ms,
        used_unix_ms: 0,
        epoch: record.epoch,
    };
    SubscriptionRecord { subscription: record.subscription, state: (!record.removed).then_some(state) }
}

pub(super) fn encode_cursor(cursor: &CursorRecord) -> proto::RecordCursor {
    let (held_from, roster_version) = encode_held(cursor.held);
    let (subscription, offset, epoch) = (cursor.subscription.clone(), cursor.offset, cursor.epoch);
    proto::RecordCursor { subscription, offset, held_from, roster_version, epoch }
}

pub(super) fn decode_cursor(cursor: proto::RecordCursor) -> CursorRecord {
    let proto::RecordCursor { subscription, offset, held_from, roster_version, epoch } = cursor;
    CursorRecord { subscription, offset, held: decode_held(held_from, roster_version), epoch }
}

/// Offsets start at 1, so 0 means none.
fn encode_held(held: Option<HeldBack>) -> (u64, u64) {
    held.map_or((0, 0), |held| (held.from, held.roster_version))
}

fn decode_held(from: u64, roster_version: u64) -> Option<HeldBack> {
    (from > 0).then_some(HeldBack { from, roster_version })
}
