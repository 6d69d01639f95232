//! The served side: `Exchange.Link` for tonic.

use std::pin::Pin;
use std::sync::Arc;

use barid_core::limits::MESSAGE_BYTES_MAX;
use barid_core::names::Member;
use barid_core::proto;
use futures::stream::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Extensions, Request, Response, Status, Streaming};

use super::{Exchange, FRAMES_WAITING_MAX, Wire};
use crate::rpc::exchange_server::{Exchange as ExchangeRpc, ExchangeServer};
use crate::telemetry::{AuditEvent, audit};

/// Who the caller is, by the certificate that the transport has verified.
pub type Identify = Arc<dyn Fn(&Extensions) -> Option<Member> + Send + Sync>;

/// Answers `Exchange.Link`.
pub struct LinkService {
    exchange: Exchange,
    identify: Identify,
}

/// The service to mount on the listener for peers.
#[must_use]
pub fn service(exchange: Exchange, identify: Identify) -> ExchangeServer<LinkService> {
    ExchangeServer::new(LinkService { exchange, identify })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

impl LinkService {
    fn caller(&self, extensions: &Extensions) -> Result<Member, Status> {
        let refuse = |reason, who: &dyn std::fmt::Display| {
            audit(&AuditEvent { what: "refused-call", reason, who, subject: &"Exchange.Link", detail: &"" });
        };
        let Some(member) = (self.identify)(extensions) else {
            refuse("unidentified", &"");
            return Err(Status::unauthenticated("a node certificate of a member is needed"));
        };
        let shared = &self.exchange.shared;
        if member == shared.me || shared.options.rosters.load().newest().member(&member).is_none() {
            refuse("not-a-peer", &member);
            return Err(Status::permission_denied("the roster lists no such peer"));
        }
        Ok(member)
    }
}

#[tonic::async_trait]
impl ExchangeRpc for LinkService {
    type LinkStream = Pin<Box<dyn Stream<Item = Result<proto::LinkResponse, Status>> + Send>>;

    async fn link(
        &self,
        request: Request<Streaming<proto::LinkRequest>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let peer = self.caller(request.extensions())?;
        let incoming = request.into_inner().map(|message| match message {
            Ok(message) => Ok(message.frame.unwrap_or_default()),
            Err(status) => Err(status.message().to_owned()),
        });
        let (outgoing, frames) = mpsc::channel(FRAMES_WAITING_MAX);
        let exchange = self.exchange.clone();
        tokio::spawn(async move {
            let wire = Wire { incoming: incoming.boxed(), outgoing };
            if let Err(error) = exchange.link(&peer, false, wire).await {
                tracing::info!(%peer, %error, "link ended");
            }
        });
        let frames = ReceiverStream::new(frames).map(|frame| Ok(proto::LinkResponse { frame: Some(frame) }));
        Ok(Response::new(Box::pin(frames)))
    }
}
