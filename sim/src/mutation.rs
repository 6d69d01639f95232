//! Defects that are injected on purpose. Each violates one invariant, and shows that its check can
//! fail.

macro_rules! mutations {
    ($($(#[doc = $what:literal])+ $name:ident,)+) => {
        /// A defect injected on purpose, which the checks must detect.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutation {
            $($(#[doc = $what])+ $name,)+
        }

        impl Mutation {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// Returns its name.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }
        }
    };
}

mutations! {
    /// Neither sender nor receiver checks the audience.
    SkipAudience,
    /// A batch with a log fault is accepted.
    AcceptAnyRoot,
    /// The acknowledged cursor is lost in a crash.
    ForgetCursor,
    /// Receipts are sent before the commit.
    ReleaseBeforeCommit,
    /// A batch with a finding about an entry is rejected.
    StopAtFindings,
    /// The feed of a member without a link is not followed at a relay.
    NoRelay,
    /// Content that a relay could not serve is not requested.
    NoBackfill,
    /// Missing content is served to any peer.
    HandToAnyone,
    /// Content that is received twice gets two offsets.
    BackfillTwice,
    /// Backfilled content is not compared with its digest.
    BackfillAnything,
    /// A relay reports digests that it does not hold as withheld.
    BlameOthers,
    /// Backfilled content is stored but not delivered.
    DropBackfill,
    /// Ids are lost in a crash, so that a publisher's retry is published again.
    ForgetIds,
    /// A feed continues although its store was restored from a backup.
    ContinueAfterRestore,
    /// A high-water mark that a power cut left behind is not updated, while peers receive entries
    /// beyond it.
    StaleHighWaterMark,
    /// An epoch is opened a second time after the store was restored.
    ReuseEpoch,
    /// Entries that turn up in a closed epoch are not announced.
    NameNothing,
    /// The second tree of a forked feed is followed like the first.
    IgnoreForks,
    /// Forks are lost in a crash.
    ForgetForks,
    /// An invalid batch is taken for a fork.
    FalseFork,
    /// A feed is not requested again after its batch was rejected.
    NeverRetry,
    /// Batches are sent without a bound on what is in flight.
    UnboundedInFlight,
    /// Work is queued without a bound.
    UnboundedQueue,
    /// Unsigned claims of a peer are stored for any feed.
    RememberAnything,
    /// A batch is reported as stored, but its content is lost.
    LoseContent,
    /// One entry of a batch is skipped.
    SkipEntry,
    /// An entry is delivered a second time under the next number.
    DeliverTwice,
    /// Entries get other offsets after a crash.
    RenumberOffsets,
    /// Half a record at the end of the log is accepted.
    BelieveTornTail,
    /// Receipts of a failed commit are sent.
    ReleaseFailedCommit,
    /// The last entry is lost in a crash.
    LoseTail,
    /// Cosignatures carry the time of a clock that is set back.
    CosignByClock,
    /// A batch is cosigned before it is durable.
    CosignBeforeCommit,
    /// Newer rosters are not requested.
    NoRosters,
    /// Urgent entries are sent in order only.
    NoPriority,
    /// Priority entries are sent to any peer that follows the feed.
    PriorityToAnyone,
    /// Priority entries are stored, whatever their audience.
    AcceptAnyPriority,
    /// Priority entries are stored without a proof.
    UnprovenPriority,
    /// A priority entry gets a second offset when its feed reaches it.
    PriorityTwice,
    /// The content of a priority entry is lost when its feed reaches it.
    DropPriority,
    /// Entries held out of order are lost in a crash.
    ForgetPriority,
    /// Entries held out of order are not bounded.
    UnboundedPriority,
    /// An entry that conflicts with a priority entry is accepted.
    IgnoreEntryEquivocation,
    /// The audience is decided by the newest roster only.
    DiscloseByNewestRoster,
    /// Members are not limited to a share of a disk.
    NoShares,
    /// A relay is not charged for the content that it sends.
    RelayForNothing,
    /// Everything is committed while any space is free.
    NoTiers,
    /// Urgent entries have no part of the reserve to themselves.
    PriorityLikeAny,
    /// Content that is not requested while a member is over its share is never requested.
    NeverBackfill,
}
