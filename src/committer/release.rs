//! Answers that wait for a commit, and giving them.
//!
//! In scope: who is told what, once. Out of scope: when (`run`).

use barid_core::feed::checkpoint::SignedCheckpoint;
use tokio::sync::oneshot;

use super::{Appended, CommitFailure, Expressed, Filled, Permit, Published, PublishedGroup, Work};

/// Answers that wait for the commit.
pub(super) enum Release {
    Publish {
        reply: oneshot::Sender<Result<PublishedGroup, CommitFailure>>,
        outcomes: Vec<Pending>,
        _permit: Permit,
    },
    Append {
        reply: oneshot::Sender<Result<Appended, CommitFailure>>,
        appended: Appended,
        _permit: Permit,
    },
    Fill {
        reply: oneshot::Sender<Result<Filled, CommitFailure>>,
        filled: Filled,
        _permit: Permit,
    },
    Express {
        reply: oneshot::Sender<Result<Expressed, CommitFailure>>,
        result: Result<Expressed, CommitFailure>,
        _permit: Permit,
    },
    Keep {
        reply: oneshot::Sender<Result<(), CommitFailure>>,
        _permit: Permit,
    },
}

/// As [`Published`], before the store has numbered arrivals.
pub(super) enum Pending {
    New { index: u64, nth: u64 },
    Done(Published),
}

/// What was committed is durable. Arrivals of what was published begin at `first_arrival`; `checkpoint` includes it all.
pub(super) fn release(releases: Vec<Release>, first_arrival: u64, checkpoint: Option<&SignedCheckpoint>) {
    for release in releases {
        match release {
            Release::Publish { reply, outcomes, .. } => {
                let outcomes = outcomes
                    .into_iter()
                    .map(|pending| match pending {
                        Pending::New { index, nth } => Published::New { index, arrival: first_arrival + nth },
                        Pending::Done(done) => done,
                    })
                    .collect();
                let Some(checkpoint) = checkpoint.cloned() else { continue };
                let _ = reply.send(Ok(PublishedGroup { outcomes, checkpoint }));
            }
            Release::Append { reply, appended, .. } => {
                let _ = reply.send(Ok(appended));
            }
            Release::Fill { reply, filled, .. } => {
                let _ = reply.send(Ok(filled));
            }
            Release::Express { reply, result, .. } => {
                let _ = reply.send(result);
            }
            Release::Keep { reply, .. } => {
                let _ = reply.send(Ok(()));
            }
        }
    }
}

/// What is not tried at all.
pub(super) fn refuse(work: Work, failure: &CommitFailure) {
    match work {
        Work::Publish(_, reply, _) => drop(reply.send(Err(failure.clone()))),
        Work::Append(_, reply, _) => drop(reply.send(Err(failure.clone()))),
        Work::Fill(_, reply, _) => drop(reply.send(Err(failure.clone()))),
        Work::Express(_, reply, _) => drop(reply.send(Err(failure.clone()))),
        Work::Keep(_, reply, _) => drop(reply.send(Err(failure.clone()))),
        Work::Stop(reply) => drop(reply.send(())),
    }
}

/// What was not committed.
pub(super) fn fail_all(releases: Vec<Release>, failure: &CommitFailure) {
    for release in releases {
        match release {
            Release::Publish { reply, .. } => drop(reply.send(Err(failure.clone()))),
            Release::Append { reply, .. } => drop(reply.send(Err(failure.clone()))),
            Release::Fill { reply, .. } => drop(reply.send(Err(failure.clone()))),
            Release::Express { reply, .. } => drop(reply.send(Err(failure.clone()))),
            Release::Keep { reply, .. } => drop(reply.send(Err(failure.clone()))),
        }
    }
}
