//! Replies that wait for a commit.
//!
//! In scope: which caller gets which reply, exactly once. Out of scope: when (`writer`).

use barid_core::feed::checkpoint::SignedCheckpoint;
use tokio::sync::oneshot;

use super::{Appended, Backfilled, CommitFailure, Permit, PriorityOutcome, PublishOutcome, PublishedGroup, Work};

/// A reply that waits for the commit.
pub(super) enum Completion {
    Publish {
        reply: oneshot::Sender<Result<PublishedGroup, CommitFailure>>,
        outcomes: Vec<PendingPublish>,
        _permit: Permit,
    },
    Append {
        reply: oneshot::Sender<Result<Appended, CommitFailure>>,
        appended: Appended,
        _permit: Permit,
    },
    Backfill {
        reply: oneshot::Sender<Result<Backfilled, CommitFailure>>,
        backfilled: Backfilled,
        _permit: Permit,
    },
    Priority {
        reply: oneshot::Sender<Result<PriorityOutcome, CommitFailure>>,
        result: Result<PriorityOutcome, CommitFailure>,
        _permit: Permit,
    },
    Records {
        reply: oneshot::Sender<Result<(), CommitFailure>>,
        _permit: Permit,
    },
}

/// As [`PublishOutcome`], before the store has assigned offsets.
pub(super) enum PendingPublish {
    New { index: u64, nth: u64 },
    Done(PublishOutcome),
}

/// Replies after the commit is durable. The offsets of the published entries begin at
/// `first_offset`; `checkpoint` includes all of them.
pub(super) fn complete(completions: Vec<Completion>, first_offset: u64, checkpoint: Option<&SignedCheckpoint>) {
    for completion in completions {
        match completion {
            Completion::Publish { reply, outcomes, .. } => {
                let outcomes = outcomes
                    .into_iter()
                    .map(|pending| match pending {
                        PendingPublish::New { index, nth } => PublishOutcome::New { index, offset: first_offset + nth },
                        PendingPublish::Done(done) => done,
                    })
                    .collect();
                let Some(checkpoint) = checkpoint.cloned() else { continue };
                let _ = reply.send(Ok(PublishedGroup { outcomes, checkpoint }));
            }
            Completion::Append { reply, appended, .. } => {
                let _ = reply.send(Ok(appended));
            }
            Completion::Backfill { reply, backfilled, .. } => {
                let _ = reply.send(Ok(backfilled));
            }
            Completion::Priority { reply, result, .. } => {
                let _ = reply.send(result);
            }
            Completion::Records { reply, .. } => {
                let _ = reply.send(Ok(()));
            }
        }
    }
}

/// Replies to work that was not tried.
pub(super) fn reject(work: Work, failure: &CommitFailure) {
    match work {
        Work::Publish(_, reply, _) => drop(reply.send(Err(failure.clone()))),
        Work::Append(_, reply, _) => drop(reply.send(Err(failure.clone()))),
        Work::Backfill(_, reply, _) => drop(reply.send(Err(failure.clone()))),
        Work::Priority(_, reply, _) => drop(reply.send(Err(failure.clone()))),
        Work::Records(_, reply, _) => drop(reply.send(Err(failure.clone()))),
        Work::Stop(reply) => drop(reply.send(())),
    }
}

/// Replies to work whose commit failed.
pub(super) fn fail_completions(completions: Vec<Completion>, failure: &CommitFailure) {
    for completion in completions {
        match completion {
            Completion::Publish { reply, .. } => drop(reply.send(Err(failure.clone()))),
            Completion::Append { reply, .. } => drop(reply.send(Err(failure.clone()))),
            Completion::Backfill { reply, .. } => drop(reply.send(Err(failure.clone()))),
            Completion::Priority { reply, .. } => drop(reply.send(Err(failure.clone()))),
            Completion::Records { reply, .. } => drop(reply.send(Err(failure.clone()))),
        }
    }
}
