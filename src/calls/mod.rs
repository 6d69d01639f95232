//! gRPC calls as both listeners serve them: what a call may hold of its caller's budgets, and when it has to end.
//!
//! In scope, for every method alike: HTTP/2 over verified connections ([`serve`]); the content type and the deadline of a call, its admission when
//! its headers have come and before anything of its body is read ([`Calls`]); bytes of requests until they are handled and of responses until
//! HTTP/2 has sent them; the end of bodies that do not come and of responses that are not read. Out of scope: who is admitted and on which terms
//! ([`Admission`]), and what the methods do.

mod deadline;
mod progress;
mod request;
mod response;
mod responses;
mod serve;
mod service;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::VecDeque;
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
const DOMAIN: &str = "barid";
/// After how long a caller over its budget may try again: what it holds is given back when a call ends.
const BUDGET_RETRY: Duration = Duration::from_secs(1);
/// How long a call waits for room in the budget of responses before it is denied: some pages are made and sent in that time.
const RESPONSE_WAIT_MAX: Duration = Duration::from_secs(5);

/// Decides on calls by their headers.
pub trait Admission: Send + Sync + 'static {
    /// Admits a call of the method at `path` ("/package.Service/Method"), or says why not. `extensions` describe the caller; what the method wants
    /// to find there may be added.
    ///
    /// # Errors
    /// The status with which the call ends. Nothing of its body is read then.
    fn admit(&self, path: &str, extensions: &mut http::Extensions) -> Result<Terms, Status>;
}

/// The terms on which a call is admitted.
pub struct Terms {
    /// Who is charged.
    pub owner: Owner,
    /// Whether the reserves may be used.
    pub class: Class,
    /// The call itself, charged.
    pub call: Charge,
    /// Bytes of requests.
    pub requests: Budget,
    /// Bytes of responses.
    pub responses: Budget,
    /// Largest message taken.
    pub request_bytes_max: usize,
    /// Whether the request is one message; else a stream of them, which waits for room instead of being denied.
    pub one_request: bool,
    /// What the response may come to: charged before the call is handled. 0 where the method charges each message of it.
    pub response_bytes: u64,
    /// Records why this node ends the call, by a stable word.
    pub report: Report,
}

/// Records why a call is ended.
pub type Report = Arc<dyn Fn(&'static str) + Send + Sync>;

/// A call under way: what it holds. Cheap to clone.
#[derive(Clone)]
pub struct Call(Arc<Inner>);

struct Inner {
    owner: Owner,
    class: Class,
    requests: Budget,
    responses: Budget,
    report: Report,
    /// Charges of the messages received and not yet taken by the method, each for so many of them.
    received: Mutex<VecDeque<(Arc<Charge>, usize)>>,
    /// Charges of what was produced since the last frame of the response: they go with the next one.
    produced: Mutex<Vec<Charge>>,
    /// Whether it came without HTTP/2: its messages are whole, and what it produces is taken at once.
    direct: bool,
    _call: Charge,
}

impl Call {
    /// A call under way on these terms.
    #[must_use]
    pub fn new(terms: Terms) -> Self {
        Self::made(terms, false)
    }

    /// A call of a method from inside the program.
    #[must_use]
    pub fn direct(terms: Terms) -> Self {
        Self::made(terms, true)
    }

    fn made(terms: Terms, direct: bool) -> Self {
        let Terms { owner, class, call, requests, responses, report, .. } = terms;
        let (received, produced) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { owner, class, requests, responses, report, received, produced, direct, _call: call }))
    }

    /// The body of a response to a call that this node makes: a stream of messages of at most `bytes_max`, charged as requests are.
    #[must_use]
    pub fn charged(&self, body: Body, bytes_max: usize) -> Body {
        Body::new(request::RequestBody::new(body, self.clone(), bytes_max, false))
    }

    /// The charge of the next message received, for whoever handles it: dropping it says that the message has been handled.
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

    /// Who is charged, and whether reserves may be used.
    #[must_use]
    pub fn account(&self) -> (&Owner, Class) {
        (&self.0.owner, self.0.class)
    }

    /// Waits until a message of a response with so many bytes fits the caller's budget.
    pub async fn charge_response(&self, bytes: u64) -> Charge {
        self.0.responses.charge(&self.0.owner, self.0.class, bytes).await
    }

    /// Whether a response waits for room in a budget of which this call may hold some.
    fn blocks_responses(&self) -> bool {
        self.0.responses.blocks_waiters(&self.0.owner)
    }

    /// Has a charge go with what the method produces next, until HTTP/2 has sent it.
    pub fn attach(&self, charge: Charge) {
        if !self.0.direct {
            self.0.produced.lock().push(charge);
        }
    }

    /// Takes what was charged for the response before the call was handled: the method keeps it as long as what it produces from.
    #[must_use]
    pub fn take_response_charges(&self) -> Vec<Charge> {
        std::mem::take(&mut *self.0.produced.lock())
    }

    /// Charges more for the response, beyond what was charged before.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if the caller's budget has no room.
    pub fn grow_response(&self, bytes: u64) -> Result<(), Status> {
        let charge = self.0.responses.try_charge(&self.0.owner, self.0.class, bytes);
        self.attach(charge.map_err(|over| self.ended("BUDGET", over_budget(&over)))?);
        Ok(())
    }

    /// Reports why the call ends, and returns its status.
    fn ended(&self, reason: &'static str, status: Status) -> Status {
        (self.0.report)(reason);
        status
    }
}

/// The status of a caller over one of its budgets.
#[must_use]
pub fn over_budget(over: &crate::budgets::OverBudget) -> Status {
    let mut details = ErrorDetails::with_error_info("BUDGET", DOMAIN, [("budget".to_owned(), over.budget.to_owned())]);
    details.set_retry_info(Some(BUDGET_RETRY));
    Status::with_error_details(Code::ResourceExhausted, over.to_string(), details)
}

/// The status of a call whose time is over.
fn deadline_exceeded(reason: &str, message: impl Into<String>) -> Status {
    Status::with_error_details(Code::DeadlineExceeded, message, ErrorDetails::with_error_info(reason, DOMAIN, []))
}
