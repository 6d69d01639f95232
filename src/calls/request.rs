//! Request bodies: charges each message before any of it is buffered, and ends bodies that do not
//! arrive in time.
//!
//! In scope: the 5-byte prefix of each message (gRPC over HTTP/2, "Length-Prefixed-Message"), which
//! gives its size. Out of scope: the content of messages.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Code, Status};
use tower::BoxError;

use super::{Call, deadline_exceeded, over_budget, status_with_reason};
use crate::budgets::Charge;

/// Longest pause within a message.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(20);
/// Longest time for a whole message: the largest at 16 KiB/s, a draft of 256 KiB at 1 KiB/s.
pub(super) const MESSAGE_TIME_MAX: Duration = Duration::from_secs(256);
/// Compression flag and length.
const PREFIX_BYTES: usize = 5;

/// The body of a request, or of a response to this node's own call, charged as it arrives.
pub(super) struct RequestBody<B> {
    body: B,
    call: Call,
    bytes_max: usize,
    one_request: bool,
    prefix: [u8; PREFIX_BYTES],
    /// Bytes of the prefix received so far.
    have: usize,
    /// Bytes of the current message still to come.
    left: usize,
    /// A frame that waits for room, and the number of messages that begin in it.
    waiting: Option<(Bytes, usize, BoxFuture<'static, Charge>)>,
    /// The status that ends the body, after all earlier data has been passed on.
    failed: Option<Status>,
    begun: Instant,
    last_progress: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<B> RequestBody<B> {
    pub(super) fn new(body: B, call: Call, bytes_max: usize, one_request: bool) -> Self {
        let now = Instant::now();
        let prefix = [0; PREFIX_BYTES];
        Self {
            body,
            call,
            bytes_max,
            one_request,
            prefix,
            have: 0,
            left: 0,
            waiting: None,
            failed: None,
            begun: now,
            last_progress: now,
            timer: None,
        }
    }

    /// Returns how many messages begin in `data`, their total length, and where a message begins
    /// that is too large.
    fn begin(&mut self, data: &[u8]) -> (usize, u64, Option<usize>) {
        let (mut bytes, mut count, mut sum) = (data, 0, 0);
        loop {
            let passed = self.left.min(bytes.len());
            self.left -= passed;
            bytes = bytes.get(passed..).unwrap_or_default();
            if bytes.is_empty() {
                return (count, sum, None);
            }
            let begins = data.len() - bytes.len();
            if self.have == 0 && !self.one_request {
                self.begun = Instant::now();
            }
            for (place, byte) in self.prefix.iter_mut().skip(self.have).zip(bytes) {
                *place = *byte;
            }
            let copied = (PREFIX_BYTES - self.have).min(bytes.len());
            self.have += copied;
            bytes = bytes.get(copied..).unwrap_or_default();
            if self.have == PREFIX_BYTES {
                let [_, a, b, c, d] = self.prefix;
                let length = u32::from_be_bytes([a, b, c, d]) as usize;
                if length > self.bytes_max {
                    self.failed = Some(self.call.ended("MESSAGE_TOO_LARGE", too_large(length, self.bytes_max)));
                    return (count, sum, Some(begins));
                }
                (self.have, self.left) = (0, length);
                count += 1;
                // The prefix counts too, because even an empty message uses memory.
                sum += (PREFIX_BYTES + length) as u64;
            }
        }
    }

    fn received(&self, count: usize, charge: Charge) {
        if count > 0 {
            self.call.0.received.lock().push_back((Arc::new(charge), count));
        }
    }

    /// Returns whether the sender has begun something that it must still complete.
    fn is_unfinished(&self) -> bool {
        self.one_request || self.have > 0 || self.left > 0
    }

    fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<Status> {
        let at = (self.last_progress + IDLE_MAX).min(self.begun + MESSAGE_TIME_MAX);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        ready!(timer.as_mut().poll(context));
        let status =
            deadline_exceeded("BODY_TIMEOUT", "request timeout: no data for 20 s, or not complete within 256 s");
        Poll::Ready(self.call.ended("BODY_TIMEOUT", status))
    }
}

fn too_large(found: usize, max: usize) -> Status {
    let message = format!("the message is too large: it has {found} bytes, at most {max} are accepted");
    status_with_reason(Code::ResourceExhausted, message, "MESSAGE_TOO_LARGE", [], None)
}

impl<B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin> Body for RequestBody<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let me = &mut *self;
        if let Some((data, count, room)) = &mut me.waiting {
            let charge = ready!(room.as_mut().poll(context));
            let (data, count) = (std::mem::take(data), *count);
            me.waiting = None;
            me.received(count, charge);
            // No data could arrive while the frame waited for room.
            me.last_progress = Instant::now();
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(status) = me.failed.take() {
            return Poll::Ready(Some(Err(status)));
        }
        let frame = match Pin::new(&mut me.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(Status::from_error(error.into())))),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending if me.is_unfinished() => return me.poll_late(context).map(|status| Some(Err(status))),
            Poll::Pending => return Poll::Pending,
        };
        me.last_progress = Instant::now();
        let mut data = match frame.into_data() {
            Ok(data) => data,
            Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
        };
        let (count, sum, too_large) = me.begin(&data);
        data.truncate(too_large.unwrap_or(data.len()));
        let Call(call) = &me.call;
        // Streams wait for room in turn. A call with one request is denied at once.
        let charged = if me.one_request {
            call.requests.try_charge(&call.owner, call.class, sum)
        } else {
            call.requests.try_charge_in_turn(&call.owner, call.class, sum)
        };
        match charged {
            Ok(charge) => me.received(count, charge),
            Err(error) if me.one_request => {
                return Poll::Ready(Some(Err(me.call.ended("BUDGET", over_budget(&error)))));
            }
            Err(_) => {
                let call = Arc::clone(call);
                let room = async move { call.requests.charge(&call.owner, call.class, sum).await };
                me.waiting = Some((data, count, Box::pin(room)));
                return self.poll_frame(context);
            }
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_none() && self.failed.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
