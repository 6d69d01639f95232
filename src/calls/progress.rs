//! Ends calls whose responses are not read.
//!
//! HTTP/2 asks a response for more only while its window is open, so the response body cannot
//! notice that the client has stopped reading. The task that runs the stream checks from outside,
//! and drops the stream, which resets it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};

use super::Call;

/// Longest time without any progress in sending a response. With pieces of 64 KiB, a client that
/// reads a little more than 1 KiB/s keeps a call open.
pub(super) const NOT_READ_MAX: Duration = Duration::from_secs(60);
/// The same while another response waits for room that this call's owner uses. A client that
/// stopped reading then does not block other responses of the same caller.
const NOT_READ_MAX_FULL: Duration = Duration::from_secs(5);
/// A call's status is sent at its deadline. If it cannot be sent, the stream is reset after this
/// delay.
const RESET_AFTER: Duration = Duration::from_secs(1);

tokio::task_local! {
    static CURRENT: Arc<Progress>;
}

/// Progress of one call, observed from outside its body.
pub(super) struct Progress {
    state: Mutex<State>,
}

struct State {
    /// Pieces passed to HTTP/2 and not sent yet.
    outstanding: usize,
    /// When a piece was last sent, or passed on while none was outstanding.
    last_progress: Instant,
    deadline: Option<Instant>,
    call: Option<Call>,
}

/// When a call must end.
struct End {
    at: Instant,
    /// Whether the reason is that its response is not read.
    not_read: bool,
}

impl Progress {
    /// Returns the progress of the current call.
    pub(super) fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Records that a piece of the response was passed to HTTP/2.
    pub(super) fn piece_queued(&self) {
        let mut state = self.state.lock();
        if state.outstanding == 0 {
            state.last_progress = Instant::now();
        }
        state.outstanding += 1;
    }

    /// Records that a piece was sent or dropped.
    pub(super) fn piece_sent(&self) {
        let mut state = self.state.lock();
        state.outstanding = state.outstanding.saturating_sub(1);
        state.last_progress = Instant::now();
    }

    /// Sets the deadline, and the call that is reported if its response is not read.
    pub(super) fn watch(&self, deadline: Option<Instant>, call: Call) {
        let mut state = self.state.lock();
        state.deadline = deadline.map(|deadline| deadline + RESET_AFTER);
        state.call = Some(call);
    }

    /// Returns when the call must end as known at `now`, or when to check again.
    fn end(&self, now: Instant) -> Option<End> {
        let state = self.state.lock();
        let not_read = (state.outstanding > 0).then(|| {
            let early = state.last_progress + NOT_READ_MAX_FULL;
            let waited_for = || state.call.as_ref().is_some_and(Call::blocks_responses);
            let at = if early > now || waited_for() {
                early
            } else {
                (state.last_progress + NOT_READ_MAX).min(now + NOT_READ_MAX_FULL)
            };
            End { at, not_read: true }
        });
        let deadline = state.deadline.map(|at| End { at, not_read: false });
        [not_read, deadline].into_iter().flatten().min_by_key(|end| end.at)
    }

    fn report(&self) {
        if let Some(call) = &self.state.lock().call {
            (call.0.report)("NOT_READ");
        }
    }
}

/// Runs the stream of one call until it ends or must end.
pub(super) async fn supervised(stream: impl Future<Output = ()>) {
    let state = State { outstanding: 0, last_progress: Instant::now(), deadline: None, call: None };
    let progress = Arc::new(Progress { state: Mutex::new(state) });
    let mut stream = pin!(CURRENT.scope(Arc::clone(&progress), stream));
    let mut timer = pin!(None::<Sleep>);
    poll_fn(move |context| {
        if stream.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        loop {
            let now = Instant::now();
            let Some(End { at, not_read }) = progress.end(now) else { return Poll::Pending };
            if at <= now {
                if not_read {
                    progress.report();
                }
                return Poll::Ready(());
            }
            // An earlier timer may stay: it only checks sooner.
            match timer.as_mut().as_pin_mut() {
                Some(sleep) if sleep.deadline() <= at => {
                    if sleep.poll(context).is_pending() {
                        return Poll::Pending;
                    }
                    timer.set(Some(sleep_until(at)));
                }
                _ => timer.set(Some(sleep_until(at))),
            }
        }
    })
    .await;
}
