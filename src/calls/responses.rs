//! A channel of response messages from a method to HTTP/2, bounded in number and bytes, and
//! charged.

use std::sync::Arc;

use futures::stream::{Stream, StreamExt as _};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Call;
use crate::budgets::Charge;

/// The sender of a stream of messages. Cheap to clone.
#[derive(Clone)]
pub struct Responses<T> {
    out: mpsc::Sender<QueuedMessage<T>>,
    room: Arc<Semaphore>,
    bytes_max: u32,
    call: Call,
}

struct QueuedMessage<T> {
    message: Result<T, Status>,
    charge: Option<Charge>,
    _room: Option<OwnedSemaphorePermit>,
}

impl<T: Message + Send + 'static> Responses<T> {
    /// Creates a channel that buffers at most `messages_max` messages and `bytes_max` encoded
    /// bytes. One message always fits.
    pub fn new(
        call: &Call,
        messages_max: usize,
        bytes_max: u32,
    ) -> (Self, impl Stream<Item = Result<T, Status>> + Send + 'static) {
        let (out, waiting) = mpsc::channel(messages_max);
        let (call, receiver_call) = (call.clone(), call.clone());
        let messages = ReceiverStream::new(waiting).map(move |waiting: QueuedMessage<T>| {
            if let Some(charge) = waiting.charge {
                receiver_call.attach(charge);
            }
            waiting.message
        });
        (Self { out, room: Arc::new(Semaphore::new(bytes_max as usize)), bytes_max, call }, messages)
    }

    /// Sends a message; waits for room. Returns `false` if the receiver has gone. `charged` is an
    /// existing charge for the message; without one, it is charged here.
    pub async fn send(&self, message: Result<T, Status>, charged: Option<Charge>) -> bool {
        let bytes = message.as_ref().map_or(0, Message::encoded_len);
        let admitted = async {
            let permits = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.bytes_max);
            let room = Arc::clone(&self.room).acquire_many_owned(permits).await.ok();
            let charge = match charged {
                Some(charge) => Some(charge),
                None if bytes == 0 => None,
                None => Some(self.call.charge_response(bytes as u64).await),
            };
            (charge, room)
        };
        let (charge, room) = tokio::select! {
            biased;
            admitted = admitted => admitted,
            () = self.out.closed() => return false,
        };
        self.out.send(QueuedMessage { message, charge, _room: room }).await.is_ok()
    }

    /// Returns when the receiver has gone.
    pub async fn closed(&self) {
        self.out.closed().await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;
    use crate::budgets::{Budget, Class, Owner, table};
    use crate::calls::Terms;

    fn call(responses: &Budget) -> Call {
        let owner = Owner::Identity("agency/border-post".into());
        let call = Budget::new(&table::API_CALLS).try_charge(&owner, Class::Ordinary, 1).unwrap();
        let requests = Budget::new(&table::API_REQUEST_BYTES);
        let report: crate::calls::Report = Arc::new(|_| {});
        let (class, responses) = (Class::Ordinary, responses.clone());
        Call::direct(Terms {
            owner,
            class,
            call,
            requests,
            responses,
            request_bytes_max: 0,
            one_request: true,
            response_bytes: 0,
            report,
        })
    }

    /// Returns how many messages of `bytes` are buffered before the sender must wait.
    async fn buffered(bytes: usize) -> usize {
        let call = call(&Budget::new(&table::API_RESPONSE_BYTES));
        let (responses, _messages) = Responses::new(&call, 64, 2 << 20);
        let mut count = 0;
        while tokio::time::timeout(Duration::from_secs(1), responses.send(Ok(vec![7_u8; bytes]), None)).await.is_ok() {
            count += 1;
        }
        count
    }

    #[tokio::test(start_paused = true)]
    async fn unread_responses_are_bounded_in_messages_and_bytes() {
        assert_eq!(buffered(10).await, 64);
        assert_eq!(buffered(1_000_000).await, 2);
        assert_eq!(buffered(600_000).await, 3);
        assert_eq!(buffered(10 << 20).await, 1, "one always fits");
    }

    #[tokio::test]
    async fn capacity_returns_as_messages_are_read_and_a_closed_reader_is_detected() {
        let budget = Budget::new(&table::API_RESPONSE_BYTES);
        let (responses, mut messages) = Responses::new(&call(&budget), 64, 2 << 20);
        for _ in 0..10 {
            assert!(responses.send(Ok(vec![7_u8; 1 << 20]), None).await);
            assert!(messages.next().await.is_some());
        }
        assert!(budget.usage().high_water < 2 << 20, "each charge is released when its response is sent");
        assert!(responses.send(Ok(vec![7; 2 << 20]), None).await);
        let (sent, ()) = tokio::join!(responses.send(Ok(vec![7]), None), async { drop(messages) });
        assert!(!sent);
    }
}
