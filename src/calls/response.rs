//! Response bodies: hold the charge for each piece until HTTP/2 has sent its last byte.
//!
//! HTTP/2 takes one piece and holds it until the window allows sending it, so each piece carries
//! its charge. Out of scope: charges made before a message is built ([`Call::charge_response`]).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::HeaderMap;
use hyper::body::{Body, Frame};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;

use super::progress::Progress;
use super::{Call, deadline_exceeded};
use crate::budgets::Charge;

/// Bytes passed to HTTP/2 at once. Each sent piece shows that the client reads.
const PIECE_BYTES: usize = 64 << 10;

/// The body of a response.
pub(super) struct ResponseBody<B> {
    /// `None` after the deadline.
    body: Option<B>,
    call: Call,
    progress: Option<Arc<Progress>>,
    /// The rest of a frame that is sent in pieces, and its charges.
    rest: Bytes,
    charges: Option<Arc<Vec<Charge>>>,
    /// Waits until a frame without a charge fits.
    room: Option<BoxFuture<'static, Charge>>,
    deadline: Option<Pin<Box<Sleep>>>,
}

/// Bytes being sent, with their charge.
struct Piece {
    bytes: Bytes,
    progress: Option<Arc<Progress>>,
    _charges: Option<Arc<Vec<Charge>>>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if let Some(progress) = &self.progress {
            progress.piece_sent();
        }
    }
}

impl<B> ResponseBody<B> {
    pub(super) fn new(body: B, call: Call, progress: Option<Arc<Progress>>, deadline: Option<Instant>) -> Self {
        Self {
            body: Some(body),
            call,
            progress,
            rest: Bytes::new(),
            charges: None,
            room: None,
            deadline: deadline.map(|at| Box::pin(sleep_until(at))),
        }
    }

    fn piece(&mut self) -> Frame<Bytes> {
        let bytes = self.rest.split_to(self.rest.len().min(PIECE_BYTES));
        if let Some(progress) = &self.progress {
            progress.piece_queued();
        }
        let piece = Piece { bytes, progress: self.progress.clone(), _charges: self.charges.clone() };
        if self.rest.is_empty() {
            self.charges = None;
        }
        Frame::data(Bytes::from_owner(piece))
    }
}

impl<B: Body<Data = Bytes, Error = Status> + Unpin> Body for ResponseBody<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let me = &mut *self;
        let Some(body) = &mut me.body else { return Poll::Ready(None) };
        if me.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(context).is_ready()) {
            me.body = None;
            me.rest = Bytes::new();
            let mut trailers = HeaderMap::new();
            // The status has only valid header characters, so this cannot fail.
            let _ = deadline_exceeded("DEADLINE", "the deadline of the call has passed").add_header(&mut trailers);
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        if let Some(room) = &mut me.room {
            let charge = ready!(room.as_mut().poll(context));
            me.room = None;
            me.charges = Some(Arc::new(vec![charge]));
        }
        if !me.rest.is_empty() {
            return Poll::Ready(Some(Ok(me.piece())));
        }
        let frame = match ready!(Pin::new(body).poll_frame(context)) {
            Some(Ok(frame)) => frame,
            other => return Poll::Ready(other),
        };
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
        };
        let mut charges = me.call.take_response_charges();
        me.rest = data;
        // The earlier charge may have been larger than the message.
        let mut needed = me.rest.len() as u64;
        for charge in &mut charges {
            let needed_here = needed.min(charge.amount());
            charge.shrink(charge.amount() - needed_here);
            needed -= needed_here;
        }
        if charges.is_empty() && !me.rest.is_empty() {
            let (call, bytes) = (me.call.clone(), me.rest.len() as u64);
            me.room = Some(Box::pin(async move { call.charge_response(bytes).await }));
            return self.poll_frame(context);
        }
        me.charges = (!charges.is_empty()).then(|| Arc::new(charges));
        Poll::Ready(Some(Ok(me.piece())))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.as_ref().is_none_or(Body::is_end_stream)
    }
}
