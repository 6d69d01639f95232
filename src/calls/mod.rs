//! gRPC calls on both listeners: admission, charges to the caller's budgets, and deadlines.
//!
//! In scope, for every method alike: HTTP/2 over verified connections ([`serve`]); checking content
//! type and deadline and admitting the call by its headers, before its body is read ([`Calls`]);
//! charging bytes of requests until they are handled and bytes of responses until HTTP/2 has sent
//! them; ending calls whose request bodies do not arrive or whose responses are not read. Out of
//! scope: which calls are admitted, on which terms ([`Admission`]), and what the methods do.

mod deadline;
mod progress;
mod request;
mod response;
mod responses;
mod serve;
mod service;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::budgets::{Budget, Charge, Class, Owner};

pub use responses::Responses;
pub use serve::serve;
pub use service::Calls;

/// Domain of `ErrorInfo`.
pub(crate) const DOMAIN: &str = "barid";
/// Retry delay of a caller over its budget. Its charges are released when its calls end.
const BUDGET_RETRY: Duration = Duration::from_secs(1);
/// Longest wait of a call for room in the response budget, before it is denied. Some pages are
/// built and sent in that time.
const RESPONSE_WAIT_MAX: Duration = Duration::from_secs(5);

/// Admits calls by their headers.
pub trait Admission: Send + Sync + 'static {
    /// Admits a call of the method at `path` ("/package.Service/Method"), or rejects it.
    /// `extensions` describe the caller. The implementation may add values for the method.
    ///
    /// # Errors
    /// The status with which the call ends. Its body is not read.
    fn admit(&self, path: &str, extensions: &mut http::Extensions) -> Result<Terms, Status>;
}

/// The terms on which a call is admitted.
pub struct Terms {
    /// The owner that is charged.
    pub owner: Owner,
    /// Whether the reserves may be used.
    pub class: Class,
    /// The charge for the call itself.
    pub call: Charge,
    /// Budget for bytes of requests.
    pub requests: Budget,
    /// Budget for bytes of responses.
    pub responses: Budget,
    /// Largest message accepted, in bytes.
    pub request_bytes_max: usize,
    /// Whether the request is one message, which is denied if it does not fit the budget. A stream
    /// waits for room instead.
    pub one_request: bool,
    /// Largest possible response in bytes, charged before the call is handled. 0 if the method
    /// charges each message.
    pub response_bytes: u64,
    /// Records why this node ends the call, as a stable code.
    pub report: Report,
}

/// Records why a call is ended.
pub type Report = Arc<dyn Fn(&'static str) + Send + Sync>;

/// A call in progress, with its charges. Cheap to clone.
#[derive(Clone)]
pub struct Call(Arc<Inner>);

struct Inner {
    owner: Owner,
    class: Class,
    requests: Budget,
    responses: Budget,
    report: Report,
    /// Charges of messages that were received but not yet handled by the method, each with the
    /// number of messages it covers.
    received: Mutex<VecDeque<(Arc<Charge>, usize)>>,
    /// Charges of messages produced since the last frame of the response. They are attached to the
    /// next frame.
    produced: Mutex<Vec<Charge>>,
    /// Whether the call came from inside the program, without HTTP/2: its messages are whole, and
    /// its responses are received at once.
    direct: bool,
    _call: Charge,
}

impl Call {
    /// Creates a call in progress on these terms.
    #[must_use]
    pub fn new(terms: Terms) -> Self {
        Self::made(terms, false)
    }

    /// Creates a call from inside the program.
    #[must_use]
    pub fn direct(terms: Terms) -> Self {
        Self::made(terms, true)
    }

    fn made(terms: Terms, direct: bool) -> Self {
        let Terms { owner, class, call, requests, responses, report, .. } = terms;
        let (received, produced) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { owner, class, requests, responses, report, received, produced, direct, _call: call }))
    }

    /// Wraps the body of a response to this node's own call: a stream of messages of at most
    /// `bytes_max` bytes, charged like requests.
    #[must_use]
    pub fn charged(&self, body: Body, bytes_max: usize) -> Body {
        Body::new(request::RequestBody::new(body, self.clone(), bytes_max, false))
    }

    /// Returns the charge of the next received message. Dropping it means that the message has been
    /// handled.
    #[must_use]
    pub fn received(&self) -> Option<Arc<Charge>> {
        let mut received = self.0.received.lock();
        let (charge, left) = received.front_mut()?;
        let charge = Arc::clone(charge);
        *left -= 1;
        if *left == 0 {
            received.pop_front();
        }
        Some(charge)
    }

    /// Returns the owner that is charged, and whether it may use reserves.
    #[must_use]
    pub fn account(&self) -> (&Owner, Class) {
        (&self.0.owner, self.0.class)
    }

    /// Charges a response message of `bytes`; waits until it fits the caller's budget.
    pub async fn charge_response(&self, bytes: u64) -> Charge {
        self.0.responses.charge(&self.0.owner, self.0.class, bytes).await
    }

    /// Returns whether a response waits for room in a budget that this call's owner uses.
    fn blocks_responses(&self) -> bool {
        self.0.responses.blocks_waiters(&self.0.owner)
    }

    /// Attaches a charge to the next frame of the response, until HTTP/2 has sent it.
    pub fn attach(&self, charge: Charge) {
        if !self.0.direct {
            self.0.produced.lock().push(charge);
        }
    }

    /// Takes the charges made for the response before the call was handled. The method holds them
    /// as long as the data it responds from.
    #[must_use]
    pub fn take_response_charges(&self) -> Vec<Charge> {
        std::mem::take(&mut *self.0.produced.lock())
    }

    /// Charges more for the response, beyond the earlier charges.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if the caller's budget has no room.
    pub fn grow_response(&self, bytes: u64) -> Result<(), Status> {
        let charge = self.0.responses.try_charge(&self.0.owner, self.0.class, bytes);
        self.attach(charge.map_err(|error| self.ended("BUDGET", over_budget(&error)))?);
        Ok(())
    }

    /// Reports why the call ends, and returns its status.
    fn ended(&self, reason: &'static str, status: Status) -> Status {
        (self.0.report)(reason);
        status
    }
}

/// Status of a caller over one of its budgets.
#[must_use]
pub fn over_budget(error: &crate::budgets::OverBudget) -> Status {
    let info = [("budget".to_owned(), error.budget.to_owned())];
    status_with_reason(Code::ResourceExhausted, error.to_string(), "BUDGET", info, Some(BUDGET_RETRY))
}

/// Status of a call whose time has run out.
fn deadline_exceeded(reason: &str, message: impl Into<String>) -> Status {
    status_with_reason(Code::DeadlineExceeded, message, reason, [], None)
}

/// Builds a status with its reason and `info` for programs, and the delay before a retry if there
/// is one.
pub(crate) fn status_with_reason(
    code: Code,
    message: impl Into<String>,
    reason: &str,
    info: impl Into<HashMap<String, String>>,
    retry_delay: Option<Duration>,
) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, info);
    if retry_delay.is_some() {
        details.set_retry_info(retry_delay);
    }
    Status::with_error_details(code, message, details)
}
