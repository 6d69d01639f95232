//! Defects that are put in on purpose: each breaks one promise, and shows that its check can fail.

macro_rules! mutations {
    ($($(#[doc = $what:literal])+ $name:ident,)+) => {
        /// A defect put in on purpose: proves that the checks would notice it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutation {
            $($(#[doc = $what])+ $name,)+
        }

        impl Mutation {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// Its name.
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
    /// Nobody asks for the audience, neither who sends nor who receives.
    SkipAudience,
    /// A batch whose log is at fault is taken all the same.
    AcceptAnyRoot,
    /// The acknowledged cursor is lost in a crash.
    ForgetCursor,
    /// Receipts are released before the commit.
    ReleaseBeforeCommit,
    /// A batch with something odd in an entry is refused.
    StopAtFindings,
    /// A member without a link is waited for.
    NoRelay,
    /// Nobody asks for what a relay could not give.
    NoBackfill,
    /// What is missing is handed to whoever asks.
    HandToAnyone,
    /// Content that comes twice arrives twice.
    BackfillTwice,
    /// Content that comes later is not compared with its digest.
    BackfillAnything,
    /// A relay says that it withholds what it does not hold.
    BlameOthers,
    /// Content that comes later is kept and given to nobody.
    DropBackfill,
    /// Ids are forgotten in a crash, so that a publisher's repetition is published again.
    ForgetIds,
    /// A feed goes on although its store was restored from a backup.
    ContinueAfterRestore,
    /// A mark that a power cut left behind stays behind, while peers are shown what is beyond it.
    StaleHighWaterMark,
    /// An epoch is opened a second time after the store was restored.
    ReuseEpoch,
    /// What turns up of an epoch that is over is not named.
    NameNothing,
    /// The second of two histories is followed like the first.
    IgnoreForks,
    /// That a feed has two histories is forgotten in a crash.
    ForgetForks,
    /// Two histories are cried where a batch merely fails.
    FalseFork,
    /// A feed of which a batch was refused is never asked for again.
    NeverRetry,
    /// Batches are sent without regard to what is on its way.
    UnboundedInFlight,
    /// Work is queued without end.
    UnboundedQueue,
    /// What a peer claims is remembered of any feed.
    RememberAnything,
    /// A batch is said to be stored, and its content is lost.
    LoseContent,
    /// One entry of a batch is skipped.
    SkipEntry,
    /// An entry is delivered a second time under the next number.
    DeliverTwice,
    /// Arrivals are numbered anew after a crash.
    RenumberOffsets,
    /// Half a record at the end of the log is believed.
    BelieveTornTail,
    /// A commit that failed is released.
    ReleaseFailedCommit,
    /// The last entry is lost in a crash.
    LoseTail,
    /// Cosignatures bear the time of a clock that goes back.
    CosignByClock,
    /// A batch is cosigned before it is durable.
    CosignBeforeCommit,
    /// Nobody asks for newer rosters.
    NoRosters,
    /// What is urgent waits for its turn.
    NoPriority,
    /// What is urgent is sent ahead of the order to whoever follows.
    PriorityToAnyone,
    /// What comes ahead of the order is kept, whoever it is for.
    AcceptAnyPriority,
    /// What comes ahead of the order is kept without a proof.
    UnprovenPriority,
    /// What came ahead of the order arrives again with its feed.
    PriorityTwice,
    /// The content of what came ahead of the order is lost when the feed comes.
    DropPriority,
    /// What is held ahead of the order is lost in a crash.
    ForgetPriority,
    /// As much is ahead of the order as is sent.
    UnboundedPriority,
    /// Another entry than came ahead of the order is taken like the same one.
    IgnoreEntryEquivocation,
    /// What is asked for is wanted in full by the newest roster only.
    DiscloseByNewestRoster,
    /// Members take what they like of a disk.
    NoShares,
    /// A relay is not charged for what it brings.
    RelayForNothing,
    /// Whatever comes is committed while anything is free.
    NoTiers,
    /// What is urgent has no part of the reserve to itself.
    UrgentLikeAny,
    /// What is not asked for while a member is over its share is never asked for.
    NeverBackfill,
}
