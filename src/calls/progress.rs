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

use super::Report;

/// How long nothing at all of what a call sends may be taken: at 64 KiB a piece, a line of 1 KiB/s keeps a call open.
pub(super) const NOT_READ_MAX: Duration = Duration::from_secs(60);
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
    moved: Instant,
    deadline: Option<Instant>,
    report: Option<Report>,
}

impl Progress {
    /// Of the call that runs.
    pub(super) fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// A piece of the response is given to HTTP/2.
    pub(super) fn given(&self) {
        let mut state = self.state.lock();
        if state.outstanding == 0 {
            state.moved = Instant::now();
        }
        state.outstanding += 1;
    }

    /// A piece was sent, or dropped.
    pub(super) fn taken(&self) {
        let mut state = self.state.lock();
        state.outstanding = state.outstanding.saturating_sub(1);
        state.moved = Instant::now();
    }

    /// The call has to be over by then; `report` hears if nobody reads its response.
    pub(super) fn watch(&self, deadline: Option<Instant>, report: Report) {
        let mut state = self.state.lock();
        state.deadline = deadline.map(|deadline| deadline + RESET_AFTER);
        state.report = Some(report);
    }

    fn ends_at(&self) -> Option<Instant> {
        let state = self.state.lock();
        let stalls = (state.outstanding > 0).then(|| state.moved + NOT_READ_MAX);
        [stalls, state.deadline].into_iter().flatten().min()
    }

    fn report(&self) {
        let state = self.state.lock();
        if state.outstanding > 0
            && state.moved + NOT_READ_MAX <= Instant::now()
            && let Some(report) = &state.report
        {
            report("NOT_READ");
        }
    }
}

/// Runs the stream of one call to its end, or until it has to end.
pub(super) async fn supervised(stream: impl Future<Output = ()>) {
    let state = State { outstanding: 0, moved: Instant::now(), deadline: None, report: None };
    let progress = Arc::new(Progress { state: Mutex::new(state) });
    let mut stream = pin!(CURRENT.scope(Arc::clone(&progress), stream));
    let mut alarm = pin!(None::<Sleep>);
    poll_fn(move |context| {
        if stream.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        loop {
            let Some(at) = progress.ends_at() else { return Poll::Pending };
            // One that is set earlier looks again by then.
            match alarm.as_mut().as_pin_mut() {
                Some(sleep) if sleep.deadline() <= at => match sleep.poll(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(()) if Instant::now() >= at => {
                        progress.report();
                        return Poll::Ready(());
                    }
                    Poll::Ready(()) => alarm.set(Some(sleep_until(at))),
                },
                _ => alarm.set(Some(sleep_until(at))),
            }
        }
    })
    .await;
}
