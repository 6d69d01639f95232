//! Why the store does not do what it is asked to.

use barid_core::ids::{Digest, FeedId};

/// Why a commit was refused. Nothing of it is visible.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Another commit came first.
    #[error("another commit came first: expected to follow {expected}, the store is at {found}")]
    Fenced {
        /// What the caller expected.
        expected: u64,
        /// What the store is at.
        found: u64,
    },
    /// Free space has fallen below the reserve, or the file system makes no new files; reading goes on, and a later commit may succeed.
    #[error("{}", disk_full_reason(*.available_bytes, *.reserve_bytes))]
    DiskFull {
        /// Left.
        available_bytes: u64,
        /// Kept.
        reserve_bytes: u64,
    },
    /// The view cannot be written for now, and as much waits for it as may; reading goes on, and a later commit may succeed.
    #[error("the index database is too far behind: {0}")]
    IndexBehind(String),
    /// A part of the commit does not fit the store: a defect of the caller.
    #[error("commit does not fit: {0}")]
    Invalid(String),
    /// The disk failed: this commit failed for ever, and the store must be opened again.
    #[error("the commit log cannot be written")]
    Io(#[source] std::io::Error),
    /// The store has failed before and must be opened again.
    #[error("the store has stopped: {0}")]
    Stopped(String),
}

/// An entry whose content is not what was written, found by whoever wanted to read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedEntry {
    /// Its offset.
    pub offset: u64,
    /// Its feed and index, and the digest that its content had; `None` where its whole record cannot be read.
    pub entry: Option<(FeedId, u64, Digest)>,
    /// What is damaged, for operators.
    pub what: String,
}

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Files could not be read.
    #[error("the store cannot be read")]
    Io(#[source] std::io::Error),
    /// Bytes on disk are not what was written.
    #[error("damage: {0}")]
    Damaged(String),
    /// An entry that is held in full cannot be read; those around it can.
    #[error("damage: {}", .0.what)]
    DamagedEntry(Box<DamagedEntry>),
    /// The view is being rebuilt from the log, or waits for room on the disk; a later attempt succeeds.
    #[error("the index database is behind: {0}")]
    Behind(String),
    /// Nothing of the kind asked for is held.
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
        /// Whose store it is.
        found: String,
        /// Who wanted to open it.
        expected: String,
    },
    /// A newer version of this program wrote it.
    #[error("the store has version {found}, this program knows versions up to {known}")]
    Newer {
        /// The store's version.
        found: u32,
        /// The newest version known.
        known: u32,
    },
    /// Something that was confirmed is not as it was written.
    #[error("damage: {0}")]
    Damaged(String),
    /// The view cannot be built.
    #[error("the index database cannot be built")]
    IndexDb(#[source] std::io::Error),
}

/// A file system that takes no more has no bytes left, or no inodes, or none for this user: only the first shows in its free bytes.
fn disk_full_reason(available_bytes: u64, reserve_bytes: u64) -> String {
    if available_bytes < reserve_bytes {
        return format!("free space of {available_bytes} bytes is below the reserve of {reserve_bytes} bytes");
    }
    format!(
        "the file system makes no new files although {available_bytes} bytes are free: it has no inodes left (`df -i`), or the quota of \
         this user is used up"
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
