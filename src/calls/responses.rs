//! Messages of a response between the method that produces them and HTTP/2: bounded in number, and charged.

use std::sync::Arc;

use futures::stream::{Stream, StreamExt as _};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Call;
use crate::budgets::Charge;

/// The producing end of a stream of messages. Cheap to clone.
#[derive(Clone)]
pub struct Responses<T> {
    out: mpsc::Sender<Waiting<T>>,
    room: Arc<Semaphore>,
    bytes_max: u32,
    call: Call,
}

struct Waiting<T> {
    message: Result<T, Status>,
    charge: Option<Charge>,
    _room: Option<OwnedSemaphorePermit>,
}

impl<T: Message + Send + 'static> Responses<T> {
    /// A stream of which at most `messages_max` messages with `bytes_max` encoded bytes wait to be taken; one message always fits.
    pub fn new(
        call: &Call,
        messages_max: usize,
        bytes_max: u32,
    ) -> (Self, impl Stream<Item = Result<T, Status>> + Send + 'static) {
        let (out, waiting) = mpsc::channel(messages_max);
        let (call, taken_by) = (call.clone(), call.clone());
        let messages = ReceiverStream::new(waiting).map(move |waiting: Waiting<T>| {
            if let Some(charge) = waiting.charge {
                taken_by.attach(charge);
            }
            waiting.message
        });
        (Self { out, room: Arc::new(Semaphore::new(bytes_max as usize)), bytes_max, call }, messages)
    }

    /// Sends a message, waiting for room; `false` when nobody reads any more. `charged` is what has been charged for it; without, it is charged
    /// here.
    pub async fn send(&self, message: Result<T, Status>, charged: Option<Charge>) -> bool {
        let bytes = message.as_ref().map_or(0, Message::encoded_len);
        let admitted = async {
            let wanted = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.bytes_max);
            let room = Arc::clone(&self.room).acquire_many_owned(wanted).await.ok();
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
        self.out.send(Waiting { message, charge, _room: room }).await.is_ok()
    }

    /// Returns when nobody reads any more.
    pub async fn closed(&self) {
        self.out.closed().await;
    }
}
