//! The congestion window of a link: enough bytes in flight to keep the line full, but not so many
//! that urgent entries wait behind them.
//!
//! In scope: one window for a link, adjusted by the time until acknowledgement. Pure: times are
//! arguments. Out of scope: choosing what is sent (`send_queue`).
//!
//! The time from handing a batch to the transport until it is durable at the peer, less the
//! shortest time seen, is time spent in queues: on the line, in the system's buffers, at the peer.
//! The window grows while that is short and shrinks when it is long (after TCP Vegas).

use std::time::Duration;

/// Allowed queueing delay of a batch. An urgent entry waits in the same queues, except for the
/// peer's committer.
const QUEUEING_DELAY_MAX: Duration = Duration::from_millis(1);
/// On a long line the allowed delay is this fraction of the shortest time, if that is longer: the
/// time to transmit the batch itself is part of it.
const QUEUEING_DELAY_DIVISOR: u32 = 4;
/// Smallest window: a few bulletins, two seconds of a 64 kbit/s line.
const WINDOW_BYTES_MIN: usize = 16 << 10;
/// First window of a link, adjusted as acknowledgements arrive.
const WINDOW_BYTES_INITIAL: usize = 128 << 10;
/// If the queueing delay exceeds the allowed one by this factor, the line has changed: the window
/// is halved.
const HALVING_THRESHOLD: u32 = 8;
/// Batches in a window: one is always in flight while another is being committed.
const BATCHES_PER_WINDOW: usize = 4;
/// Smallest size limit of a batch.
const BATCH_BYTES_MIN: usize = WINDOW_BYTES_MIN / BATCHES_PER_WINDOW;
/// The shortest time grows by this fraction with each acknowledgement, since lines change.
const MIN_RTT_DECAY: u32 = 256;

/// The window of one link.
#[derive(Clone, Debug)]
pub(crate) struct CongestionWindow {
    window_bytes: usize,
    min_rtt: Option<Duration>,
}

impl Default for CongestionWindow {
    fn default() -> Self {
        Self { window_bytes: WINDOW_BYTES_INITIAL, min_rtt: None }
    }
}

impl CongestionWindow {
    /// Whether more may be sent while this many bytes are in flight.
    pub(crate) fn has_room(&self, in_flight_bytes: usize) -> bool {
        in_flight_bytes < self.window_bytes
    }

    /// Returns the envelope bytes of the next batch, at most `bytes_max`.
    pub(crate) fn batch_bytes(&self, bytes_max: usize) -> usize {
        (self.window_bytes / BATCHES_PER_WINDOW).clamp(BATCH_BYTES_MIN, bytes_max)
    }

    /// Adjusts the window: a batch of `bytes` is durable at the peer, `elapsed` after it was handed
    /// to the transport. `in_flight_bytes` includes the batch. The window is at most
    /// `window_bytes_max`.
    pub(crate) fn acknowledged(
        &mut self,
        bytes: usize,
        in_flight_bytes: usize,
        elapsed: Duration,
        window_bytes_max: usize,
    ) {
        let min_rtt = self.min_rtt.map_or(elapsed, |min_rtt| (min_rtt + min_rtt / MIN_RTT_DECAY).min(elapsed));
        self.min_rtt = Some(min_rtt);
        let (queueing_delay, allowed) = (elapsed - min_rtt, QUEUEING_DELAY_MAX.max(min_rtt / QUEUEING_DELAY_DIVISOR));
        // Traffic that does not fill the window shows nothing about it.
        if queueing_delay <= allowed / 2 && in_flight_bytes * 2 >= self.window_bytes {
            self.window_bytes = (self.window_bytes + bytes).min(window_bytes_max);
        } else if queueing_delay > allowed {
            let divisor = if queueing_delay > allowed * HALVING_THRESHOLD { 2 } else { 8 };
            self.window_bytes = (self.window_bytes - self.window_bytes / divisor).max(WINDOW_BYTES_MIN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 8 << 20;

    /// Sends for `seconds` over a line with this rate and round-trip time. Returns the window at
    /// the end.
    fn simulate(
        mut congestion_window: CongestionWindow,
        seconds: f64,
        bytes_per_second: f64,
        rtt: f64,
    ) -> CongestionWindow {
        let mut in_flight: std::collections::VecDeque<(usize, f64, f64)> = std::collections::VecDeque::new();
        let (mut now, mut line_free_at) = (0.0_f64, 0.0_f64);
        while now < seconds {
            let bytes: usize = in_flight.iter().map(|(bytes, ..)| bytes).sum();
            if congestion_window.has_room(bytes) {
                let bytes = congestion_window.batch_bytes(1 << 20);
                let transmit_seconds = bytes as f64 / bytes_per_second;
                line_free_at = line_free_at.max(now) + transmit_seconds;
                in_flight.push_back((bytes, now, line_free_at + rtt));
                continue;
            }
            let Some((bytes_done, sent, done)) = in_flight.pop_front() else { break };
            now = done;
            congestion_window.acknowledged(bytes_done, bytes, Duration::from_secs_f64(done - sent), MAX);
        }
        congestion_window
    }

    #[test]
    fn window_saturates_fast_line_with_short_queues() {
        // 100 MB/s and 0.2 ms: the queue stays within 2 ms, which is 200 kB, plus a batch or two.
        let congestion_window = simulate(CongestionWindow::default(), 2.0, 100e6, 0.000_2);
        assert!((64 << 10..1 << 20).contains(&congestion_window.window_bytes), "{}", congestion_window.window_bytes);
        // 20 MB/s and 100 ms: 2 MB are on the line alone.
        let congestion_window = simulate(CongestionWindow::default(), 20.0, 20e6, 0.1);
        assert!(congestion_window.window_bytes > 1_000_000, "{}", congestion_window.window_bytes);
    }

    #[test]
    fn window_stays_small_on_slow_line_and_grows_with_it() {
        let congestion_window = simulate(CongestionWindow::default(), 300.0, 8e3, 0.6);
        assert!(congestion_window.window_bytes <= 3 * WINDOW_BYTES_MIN, "{}", congestion_window.window_bytes);
        assert!(congestion_window.batch_bytes(1 << 20) <= 12 << 10);
        // When the line gets faster, the window opens again.
        let congestion_window = simulate(congestion_window, 30.0, 10e6, 0.05);
        assert!(congestion_window.window_bytes > 256 << 10, "{}", congestion_window.window_bytes);
    }

    #[test]
    fn window_is_unchanged_by_unfilled_batches() {
        let mut congestion_window = CongestionWindow::default();
        for _ in 0..1_000 {
            congestion_window.acknowledged(1_000, 1_000, Duration::from_millis(1), MAX);
        }
        assert_eq!(congestion_window.window_bytes, WINDOW_BYTES_INITIAL);
        congestion_window.acknowledged(1_000, 1_000, Duration::from_secs(1), MAX);
        assert!(congestion_window.window_bytes < WINDOW_BYTES_INITIAL);
    }
}
