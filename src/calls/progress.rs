//! Whether what a call sends is taken, and the end of calls where it is not.
//!
//! HTTP/2 asks a response for more only while its window is open, so the response itself cannot notice that nobody reads it: whoever runs the
//! stream looks from outside, and drops it, which resets it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};

use super::Call;

/// How long nothing at all of what a call sends may be taken: at 64 KiB a piece, a line of 1 KiB/s keeps a call open.
pub(super) const NOT_READ_MAX: Duration = Duration::from_secs(60);
/// The same while a response waits for room that this one holds: readers that stopped do not keep another of the same caller waiting.
const NOT_READ_MAX_FULL: Duration = Duration::from_secs(5);
/// After a call's deadline its status is sent; where it cannot be, the stream is reset so much later.
const RESET_AFTER: Duration = Duration::from_secs(1);

tokio::task_local! {
    static CURRENT: Arc<Progress>;
}

/// What is known of one call from outside.
pub(super) struct Progress {
    state: Mutex<State>,
}

struct State {
    /// Pieces that were given to HTTP/2 and are not sent yet.
    outstanding: usize,
    /// When one was last sent, or given while there was none.
    last_progress: Instant,
    deadline: Option<Instant>,
    call: Option<Call>,
}

/// When a call has to end.
struct End {
    at: Instant,
    /// Whether because nobody reads it.
    not_read: bool,
}

impl Progress {
    /// Of the call that runs.
    pub(super) fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// A piece of the response is given to HTTP/2.
    pub(super) fn piece_queued(&self) {
        let mut state = self.state.lock();
        if state.outstanding == 0 {
            state.last_progress = Instant::now();
        }
        state.outstanding += 1;
    }

    /// A piece was sent, or dropped.
    pub(super) fn piece_sent(&self) {
        let mut state = self.state.lock();
        state.outstanding = state.outstanding.saturating_sub(1);
        state.last_progress = Instant::now();
    }

    /// The call has to be over by then; it is reported there if nobody reads its response.
    pub(super) fn watch(&self, deadline: Option<Instant>, call: Call) {
        let mut state = self.state.lock();
        state.deadline = deadline.map(|deadline| deadline + RESET_AFTER);
        state.call = Some(call);
    }

    /// When it has to end by what is known at `now`, or when to look again.
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

/// Runs the stream of one call to its end, or until it has to end.
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
            // One that is set earlier looks again by then.
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
