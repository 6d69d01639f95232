//! Why a node does not start, or does not go on.

use std::path::PathBuf;

use barid_core::roster::ChainError;

use crate::access::AccessError;
use crate::committer::{CommitFailure, StartError};
use crate::store::{OpenError, ReadError};
use crate::transport::CrlError;

/// Why a node did not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A file could not be read.
    #[error("{path} cannot be read")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The roster is not one, or does not follow the one held.
    #[error("the roster {path} cannot be used")]
    Roster {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ChainError,
    },
    /// A revocation list cannot be used.
    #[error("the revocation list {path} cannot be used")]
    List {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: CrlError,
    },
    /// What the node begins with could not be kept.
    #[error("the first roster cannot be kept")]
    Persist(#[from] CommitFailure),
    /// The roster does not list this node as it is configured.
    #[error("the roster does not list {0}")]
    NotListed(String),
    /// A key file does not hold the key that the roster lists.
    #[error("{path} holds no key that the roster lists: {reason}")]
    Key {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// What this process writes there the node could not read.
    #[error("{path} belongs to user {owner}, and this runs as user {user}")]
    OtherUser {
        /// The folder.
        path: PathBuf,
        /// Its owner, by number.
        owner: u32,
        /// Who runs this, by number.
        user: u32,
    },
    /// An empty store would put the feed in doubt for good, and perhaps its disk is only not there yet.
    #[error(
        "there is no store in {data}, and the mark beside the keys says that this node has published {size} entries"
    )]
    StoreMissing {
        /// Where it should be.
        data: PathBuf,
        /// Entries of its feed.
        size: u64,
    },
    /// The store could not be opened.
    #[error("the store cannot be opened")]
    Store(#[from] OpenError),
    /// The store could not be read.
    #[error("the store cannot be read")]
    Read(#[from] ReadError),
    /// The committer did not start.
    #[error("the feed cannot be opened")]
    Start(#[from] StartError),
    /// The access rules could not be read.
    #[error("the access rules cannot be used")]
    Access(#[from] AccessError),
    /// Certificates could not be used.
    #[error("the certificates cannot be used: {0}")]
    Transport(String),
    /// A listener could not be opened.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Figures would be for everybody.
    #[error(
        "figures are not shown on {0}, beyond this machine: set metrics.allow_non_loopback if something else keeps strangers out"
    )]
    MetricsNonLoopback(String),
    /// SIGHUP cannot be heard.
    #[error("signals cannot be heard")]
    Signal(#[source] std::io::Error),
    /// The store failed while the node ran.
    #[error(
        "{0}; nothing of what was not answered is stored for certain: start the node again, it goes on from what the disk holds"
    )]
    Stopped(String),
}
