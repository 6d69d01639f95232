//! Raises alarms while clocks are wrong: this node's clock behind its own signatures, and peers'
//! clocks far from this node's.

use barid_core::ids::Member;
use barid_core::limits::CLOCK_AHEAD_SECONDS_MAX;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Node;
use crate::telemetry::alarms::Alarm;

/// Largest difference of a peer's clock, with the transit time: as far as a publisher's may be
/// ahead.
const PEER_CLOCK_MS_MAX: u64 = CLOCK_AHEAD_SECONDS_MAX.unsigned_abs() * 1_000;

impl Node {
    /// Returns the clocks that are wrong now.
    pub(super) fn clock_alarms(&self) -> Vec<Alarm> {
        let own = self.committer.clock_behind().map(own_clock_alarm);
        let peers = self.exchange.peers().snapshot().into_iter();
        own.into_iter()
            .chain(peers.filter_map(|(member, peer)| peer_clock_alarm(&member, peer.clock_ahead_ms)))
            .collect()
    }
}

fn own_clock_alarm(last_unix_seconds: u64) -> Alarm {
    let last = i64::try_from(last_unix_seconds).ok().and_then(|last| OffsetDateTime::from_unix_timestamp(last).ok());
    let last = last.and_then(|last| last.format(&Rfc3339).ok()).unwrap_or_else(|| last_unix_seconds.to_string());
    Alarm::OwnClockBehind { last }
}

fn peer_clock_alarm(peer: &Member, ahead_ms: i64) -> Option<Alarm> {
    let is_off = ahead_ms.unsigned_abs() > PEER_CLOCK_MS_MAX;
    let alarm = |peer| if ahead_ms > 0 { Alarm::PeerClockAhead { peer } } else { Alarm::PeerClockBehind { peer } };
    is_off.then(|| alarm(peer.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_alarm_names_the_peer_beyond_five_minutes() {
        let ly: Member = "ly".parse().expect("a code");
        assert_eq!(peer_clock_alarm(&ly, 300_000), None);
        assert_eq!(peer_clock_alarm(&ly, -300_000), None);
        let ahead = "the clock of ly is more than 5 minutes ahead of ours: one of them is wrong";
        assert_eq!(peer_clock_alarm(&ly, 300_001).map(|alarm| alarm.to_string()).as_deref(), Some(ahead));
        assert!(peer_clock_alarm(&ly, i64::MIN).is_some_and(|alarm| alarm.to_string().contains("behind ours")));
        assert!(own_clock_alarm(1_800_000_000).to_string().contains("2027-01-15T08:00:00Z"));
    }
}
