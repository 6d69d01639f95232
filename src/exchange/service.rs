//! Serves `Exchange.Link` with tonic.
//!
//! In scope: admitting a call, its budgets, and converting messages to frames. Out of scope: the
//! link itself (`link`), verifying certificates (`transport`).

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use barid_core::ids::Member;
use barid_core::limits::MESSAGE_BYTES_MAX;
use barid_core::proto;
use futures::stream::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Code, Extensions, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{Exchange, FRAME_QUEUE_MAX, Wire};
use crate::budgets::{Class, Owner, Rate, RateLimiter, table};
use crate::calls::{Admission, Call, Calls, Report, Terms, over_budget};
use crate::rpc::exchange_server::{Exchange as ExchangeRpc, ExchangeServer};
use crate::telemetry::{AuditEvent, audit};

/// Returns the member that the caller's verified certificate names.
pub type Identify = Arc<dyn Fn(&Extensions) -> Option<Member> + Send + Sync>;

/// The only method of this service.
const LINK_PATH: &str = "/barid.v1.Exchange/Link";
/// Links that one member may open per second, and at once. After a link ends, the dialler backs off
/// before the next attempt.
const LINK_RATE: Rate = Rate { per_second: 2.0, burst: 32.0 };

/// Serves `Exchange.Link`.
#[derive(Clone)]
pub struct LinkService {
    exchange: Exchange,
    identify: Identify,
    rates: Arc<RateLimiter>,
}

/// Creates the calls of the listener for peers, with budgets for each member.
#[must_use]
pub fn calls(exchange: Exchange, identify: Identify) -> Calls {
    let service = LinkService { exchange, identify, rates: Arc::default() };
    Calls::new(Routes::new(mounted(service.clone())), Arc::new(service))
}

fn mounted(service: LinkService) -> ExchangeServer<LinkService> {
    ExchangeServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

impl Admission for LinkService {
    fn admit(&self, path: &str, extensions: &mut Extensions) -> Result<Terms, Status> {
        if path != LINK_PATH {
            return Err(Status::unimplemented("this method is not served here"));
        }
        let member = self.caller(extensions)?;
        let owner = Owner::Member(member.as_str().into());
        let limited = self.rates.take(&owner, LINK_RATE, 1.0, Instant::now());
        self.exchange.link_terms(&member, limited)
    }
}

impl Exchange {
    /// Returns the budgets of one link, whichever side opened it.
    pub(super) fn link_terms(&self, member: &Member, limited: Result<(), Duration>) -> Result<Terms, Status> {
        let report: Report = {
            let (shared, member) = (Arc::clone(&self.shared), member.clone());
            Arc::new(move |reason| {
                let event = AuditEvent {
                    event: "call-denied",
                    reason,
                    actor: &member,
                    resource: &"Exchange.Link",
                    detail: &"",
                };
                shared.record(&member, &event);
            })
        };
        if let Err(after) = limited {
            report("RATE");
            let details = ErrorDetails::with_retry_info(Some(after));
            let message = "the member opens too many links";
            return Err(Status::with_error_details(Code::ResourceExhausted, message, details));
        }
        let owner = Owner::Member(member.as_str().into());
        let of = |spec| self.shared.options.budgets.of(spec);
        let call = of(&table::LINK_CALLS).try_charge(&owner, Class::Ordinary, 1).map_err(|error| {
            report("BUDGET");
            over_budget(&error)
        })?;
        Ok(Terms {
            owner,
            class: Class::Ordinary,
            call,
            requests: of(&table::LINK_BYTES).clone(),
            responses: of(&table::LINK_SENT_BYTES).clone(),
            request_bytes_max: MESSAGE_BYTES_MAX,
            one_request: false,
            response_bytes: 0,
            report,
        })
    }
}

impl LinkService {
    fn caller(&self, extensions: &Extensions) -> Result<Member, Status> {
        let deny = |reason, actor: &dyn std::fmt::Display| {
            audit(&AuditEvent { event: "call-denied", reason, actor, resource: &"Exchange.Link", detail: &"" });
        };
        let Some(member) = (self.identify)(extensions) else {
            deny("unidentified", &"");
            return Err(Status::unauthenticated("a node certificate of a member is required"));
        };
        let shared = &self.exchange.shared;
        if member == shared.me || shared.options.rosters.load().newest().member(&member).is_none() {
            deny("not-a-peer", &member);
            return Err(Status::permission_denied("the roster does not list this peer"));
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
        let call = request.extensions().get::<Call>().cloned();
        let incoming = request.into_inner().map(move |message| {
            // It is decoded: from here on the receiver's own bounds apply.
            drop(call.as_ref().and_then(Call::received));
            match message {
                Ok(message) => Ok(message.frame.unwrap_or_default()),
                Err(status) => Err(status.message().to_owned()),
            }
        });
        let (outgoing, frames) = mpsc::channel(FRAME_QUEUE_MAX);
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
