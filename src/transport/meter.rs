//! Counts HTTP/2 frames that carry nothing, and ends connections that send too many.
//!
//! In scope: the 9-byte header of each frame (RFC 9113 §4.1), which gives its kind and size. Out of
//! scope: what frames mean, which the HTTP/2 library checks. The library answers or ignores useless
//! frames one by one without reporting them, so they are counted below it. A correct client stays
//! far below the bounds, because message bytes do not count.

use tokio::time::Instant;

use super::rejection::Rejection;
use crate::budgets::{Rate, TokenBucket};

/// Length of the client's connection preface (RFC 9113 §3.4).
const PREFACE_BYTES: usize = 24;
/// Length of a frame header.
const HEADER_BYTES: usize = 9;
/// Rate of useless frames of one connection. A client that cancels all its calls resets a thousand
/// streams; SETTINGS come once.
const USELESS: Rate = Rate { per_second: 1_000.0, burst: 4_000.0 };
/// Rate of PING and WINDOW_UPDATE frames. They are part of normal traffic, but each costs a reply
/// or a pass over all streams. Clients that measure bandwidth send one for each frame that they
/// receive.
const CONTROL: Rate = Rate { per_second: 10_000.0, burst: 10_000.0 };
/// Payload bytes of a useless frame that count as one more frame. At most 1 MiB of them passes in a
/// second.
const USELESS_UNIT_BYTES: u32 = 1 << 10;
/// DATA frames below this size, except the last of a stream, count as useless. The smallest message
/// of a stream is larger, and each unread frame uses some hundred bytes of memory, whatever its
/// size.
const DATA_BYTES_MIN: u32 = 16;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
/// END_STREAM of DATA and HEADERS, ACK of SETTINGS and PING.
const FLAG_END_OR_ACK: u8 = 1;
const FLAG_PADDED: u8 = 8;

/// Counts the frames in one direction of a connection.
pub(super) struct FrameMeter {
    /// Bytes until the next header: the preface, or the rest of a frame.
    skip: usize,
    header: [u8; HEADER_BYTES],
    /// Bytes of the header received so far.
    have: usize,
    useless: TokenBucket,
    control: TokenBucket,
}

impl FrameMeter {
    /// Creates a meter for what a client sends, which begins with the preface, or a server.
    pub(super) fn new(from_client: bool) -> Self {
        let now = Instant::now();
        Self {
            skip: if from_client { PREFACE_BYTES } else { 0 },
            header: [0; HEADER_BYTES],
            have: 0,
            useless: TokenBucket::full(USELESS, now),
            control: TokenBucket::full(CONTROL, now),
        }
    }

    /// Counts the frames in received bytes.
    ///
    /// # Errors
    /// The connection has sent more useless frames than it may.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<(), Rejection> {
        // Read the clock once for all frames of one read.
        let now = Instant::now();
        loop {
            let passed = self.skip.min(bytes.len());
            self.skip -= passed;
            bytes = bytes.get(passed..).unwrap_or_default();
            if bytes.is_empty() {
                return Ok(());
            }
            for (place, byte) in self.header.iter_mut().skip(self.have).zip(bytes) {
                *place = *byte;
            }
            let copied = (HEADER_BYTES - self.have).min(bytes.len());
            self.have += copied;
            bytes = bytes.get(copied..).unwrap_or_default();
            if self.have == HEADER_BYTES {
                let [a, b, c, kind, flags, ..] = self.header;
                let length = u32::from_be_bytes([0, a, b, c]);
                (self.have, self.skip) = (0, length as usize);
                self.count(kind, flags, length, now)?;
            }
        }
    }

    fn count(&mut self, kind: u8, flags: u8, length: u32, now: Instant) -> Result<(), Rejection> {
        let ends = flags & FLAG_END_OR_ACK != 0;
        let within = match kind {
            // Calls and their header blocks: HTTP/2 and the budget of calls bound them.
            HEADERS => true,
            CONTINUATION if length > 0 => true,
            DATA if ends || length >= DATA_BYTES_MIN && flags & FLAG_PADDED == 0 => true,
            WINDOW_UPDATE | PING => self.control.spend(CONTROL, 1.0, now).is_zero(),
            _ => self.useless.spend(USELESS, f64::from(1 + length / USELESS_UNIT_BYTES), now).is_zero(),
        };
        if within {
            return Ok(());
        }
        let detail =
            format!("too many frames of kind {kind} or similar kinds on one connection; the last has {length} bytes");
        Err(Rejection::new("frame-flood", detail))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    fn frame(kind: u8, flags: u8, length: u32) -> Vec<u8> {
        let mut frame = length.to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 1]);
        frame.resize(HEADER_BYTES + length as usize, 7);
        frame
    }

    /// Returns how many of these frames pass at once, at most `most`.
    fn passed(frame: &[u8], most: usize) -> usize {
        let mut meter = FrameMeter::new(false);
        (0..most).take_while(|_| meter.read(frame).is_ok()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn frames_without_use_are_bounded_by_number_and_by_size() {
        let burst = 4_000;
        for (name, bytes) in [
            ("of an unknown kind", frame(0xbe, 0, 0)),
            ("empty DATA", frame(DATA, 0, 0)),
            ("one byte of DATA", frame(DATA, 0, 1)),
            ("padded DATA", frame(DATA, FLAG_PADDED, 200)),
            ("SETTINGS", frame(4, 0, 6)),
            ("PRIORITY", frame(2, 0, 5)),
            ("RST_STREAM", frame(3, 0, 4)),
            ("empty CONTINUATION", frame(CONTINUATION, 0, 0)),
        ] {
            assert_eq!(passed(&bytes, 2 * burst), burst, "{name}");
        }
        assert_eq!(passed(&frame(0xbe, 0, 63 << 10), 2 * burst), burst / 64, "large frames cost more");
        assert_eq!(passed(&frame(PING, 0, 8), 100_000), 10_000);
        assert_eq!(passed(&frame(WINDOW_UPDATE, 0, 4), 100_000), 10_000);
    }

    #[tokio::test(start_paused = true)]
    async fn useful_frames_pass_in_any_segmentation() {
        for bytes in
            [frame(DATA, 0, 300), frame(DATA, FLAG_END_OR_ACK, 5), frame(HEADERS, 5, 40), frame(DATA, 0, 16 << 10)]
        {
            assert_eq!(passed(&bytes, 100_000), 100_000);
        }
        let mut meter = FrameMeter::new(true);
        let all: Vec<u8> = [vec![b'P'; PREFACE_BYTES], frame(0xbe, 0, 3).repeat(4_000)].concat();
        for piece in all.chunks(7) {
            meter.read(piece).unwrap();
        }
        let rejected = meter.read(&frame(0xbe, 0, 3)).unwrap_err();
        assert_eq!(rejected.reason, "frame-flood");
        tokio::time::advance(Duration::from_secs(1)).await;
        meter.read(&frame(0xbe, 0, 3).repeat(900)).unwrap();
    }
}
