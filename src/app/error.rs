//! Errors that stop a node, or keep it from starting.

use std::path::PathBuf;

use barid_core::roster::ChainError;

use crate::committer::{CommitFailure, StartError};
use crate::files::FileError;
use crate::store::{OpenError, ReadError};
use crate::transport::CrlError;

/// Why a node did not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A file could not be read.
    #[error("{path} cannot be read")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The roster is not valid, or does not follow the one held.
    #[error("the roster {path} cannot be used")]
    Roster {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: ChainError,
    },
    /// A CRL cannot be used.
    #[error("the CRL {path} cannot be used")]
    List {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: CrlError,
    },
    /// The node's first roster could not be persisted.
    #[error("the first roster cannot be persisted")]
    Persist(#[from] CommitFailure),
    /// The roster does not list this node as configured.
    #[error("the roster does not list {0}")]
    NotListed(String),
    /// A key file does not hold the key that the roster lists.
    #[error("{path} contains no key that the roster lists: {reason}")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The node could not read what this process writes there.
    #[error("{path} belongs to user {owner}, but this process runs as user {user}")]
    OtherUser {
        /// The folder.
        path: PathBuf,
        /// Owner, by user id.
        owner: u32,
        /// User of this process, by user id.
        user: u32,
    },
    /// The store is missing but the high-water mark is not. An empty store would make the feed need
    /// recovery, and the disk may only be unmounted.
    #[error("there is no store in {data}, but by the high-water mark this node has published {size} entries")]
    StoreMissing {
        /// The expected folder.
        data: PathBuf,
        /// Size of its feed by the high-water mark.
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
    Access(#[from] FileError),
    /// Certificates could not be used.
    #[error("the certificates cannot be used: {0}")]
    Transport(String),
    /// A listener could not be opened.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The metrics would be readable by anyone.
    #[error(
        "metrics are not served on {0}, not a loopback address: set metrics.allow_non_loopback if access is \
         restricted otherwise"
    )]
    MetricsNonLoopback(String),
    /// The handler of SIGHUP cannot be installed.
    #[error("the signal handler cannot be installed")]
    Signal(#[source] std::io::Error),
    /// The store failed while the node ran.
    #[error("{0}; work without a reply may be lost: restart the node, it continues from the state on the disk")]
    Stopped(String),
}
