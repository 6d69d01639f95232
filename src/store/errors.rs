//! Errors of the store: committing, reading and opening.

use barid_core::ids::{Digest, FeedId};

/// Why a commit failed. Nothing of it is visible.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Another commit came first.
    #[error("another commit came first: expected to follow {expected}, the store is at {found}")]
    Fenced {
        /// The newest commit that the caller expected.
        expected: u64,
        /// The newest commit of the store.
        found: u64,
    },
    /// Free space has fallen below the reserve, or the file system makes no new files. Reading goes
    /// on, and a later commit may succeed.
    #[error("{}", disk_full_reason(*.available_bytes, *.reserve_bytes))]
    DiskFull {
        /// Bytes that are free.
        available_bytes: u64,
        /// Bytes that must stay free.
        reserve_bytes: u64,
    },
    /// The index database cannot be written for now, and the allowed backlog is full. Reading goes
    /// on, and a later commit may succeed.
    #[error("the index database is too far behind: {0}")]
    IndexBehind(String),
    /// A part of the commit does not fit the store: a defect of the caller.
    #[error("commit does not fit: {0}")]
    Invalid(String),
    /// The disk failed. This commit has failed permanently, and the store must be opened again.
    #[error("the commit log cannot be written")]
    Io(#[source] std::io::Error),
    /// The store has failed before and must be opened again.
    #[error("the store has stopped: {0}")]
    Stopped(String),
}

/// An entry whose content is damaged, found by reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedEntry {
    /// Its offset.
    pub offset: u64,
    /// Its feed, index and digest; `None` if its whole record cannot be read.
    pub entry: Option<(FeedId, u64, Digest)>,
    /// The damage, for operators.
    pub what: String,
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Files could not be read.
    #[error("the store cannot be read")]
    Io(#[source] std::io::Error),
    /// Bytes on disk are not what was written.
    #[error("damage: {0}")]
    Damaged(String),
    /// An entry that is held in full cannot be read; its neighbours can.
    #[error("damage: {}", .0.what)]
    DamagedEntry(Box<DamagedEntry>),
    /// The index database is being rebuilt from the log, or waits for disk space. A later attempt
    /// succeeds.
    #[error("the index database is behind: {0}")]
    Behind(String),
    /// The requested item is not held.
    #[error("{0} is not held")]
    Missing(String),
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Files could not be read or written.
    #[error("the store's files cannot be read or written{}", exhausted_resource(.0))]
    Io(#[from] std::io::Error),
    /// Another process has it open.
    #[error("another process has the store open: {0}")]
    Locked(String),
    /// It belongs to another node: `<member>.<exchange>`.
    #[error("the store belongs to {found}, this node is {expected}")]
    Foreign {
        /// The owner of the store.
        found: String,
        /// The node that tried to open it.
        expected: String,
    },
    /// A newer version of this program wrote it.
    #[error("the store has version {found}, this program supports versions up to {known}")]
    Newer {
        /// The store's version.
        found: u32,
        /// The newest version known.
        known: u32,
    },
    /// Confirmed data is damaged.
    #[error("damage: {0}")]
    Damaged(String),
    /// The index database cannot be built.
    #[error("the index database cannot be built")]
    IndexDb(#[source] std::io::Error),
}

/// Returns why the file system takes no more data: no bytes left, no inodes left, or the user's
/// quota is used up. Only the first is visible in the free bytes.
fn disk_full_reason(available_bytes: u64, reserve_bytes: u64) -> String {
    if available_bytes < reserve_bytes {
        return format!("free space of {available_bytes} bytes is below the reserve of {reserve_bytes} bytes");
    }
    format!(
        "the file system creates no new files although {available_bytes} bytes are free: it has no inodes left \
         (`df -i`), or the quota of this user is used up"
    )
}

fn exhausted_resource(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::StorageFull => ": the disk has no bytes (`df -h`) or no inodes (`df -i`) left",
        std::io::ErrorKind::QuotaExceeded => ": the quota of this user is used up",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_full_error_distinguishes_inodes_from_bytes() {
        let text = |available_bytes| CommitError::DiskFull { available_bytes, reserve_bytes: 512 }.to_string();
        assert_eq!(text(511), "free space of 511 bytes is below the reserve of 512 bytes");
        assert!(text(512).contains("no inodes left") && !text(512).contains("below"));
    }
}
