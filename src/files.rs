//! Reads files that operators write and the program trusts: whole, with a size bound, and only if
//! no other user could have read or written them.
//!
//! The rule is that of ssh and of database servers for keys. A file must belong to the user of the
//! process or to root. Only its owner may read a secret; if root owns it (a mounted secret), its
//! group may read it too. The check is made on the open file. So a symbolic link is judged by its
//! target, and by who may change the folders of the link and of the target.
//!
//! In scope: who may read and write a file, its encoding, its size. Out of scope: its content.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Largest file that is read: a roster has at most 1 MiB, access rules of 10,000 people a little
/// more.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// UTF-8's byte order mark, which editors on some systems write at the start of a file.
const BOM: &[u8] = b"\xef\xbb\xbf";
/// UTF-16's byte order marks, in both orders.
const UTF16_BOMS: [&[u8]; 2] = [b"\xff\xfe", b"\xfe\xff"];
/// The user that may own any file.
const ROOT: u32 = 0;
const STICKY: u32 = 0o1000;

/// Which access other users may have to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Any: the content is public and signed.
    Public,
    /// Read, but not write: the content controls this program.
    Trusted,
    /// None: the content is a key.
    Secret,
}

/// Why a file is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error("other users may {may} it (mode {mode:04o}): run `chmod {right} {path}`")]
    Mode { path: String, may: &'static str, mode: u32, right: &'static str },
    #[error("it belongs to user {owner}, but this process runs as user {user}: run `chown {user} {path}`")]
    Owner { path: String, owner: u32, user: u32 },
    #[error(
        "other users may change the folder {path} (mode {mode:04o}) and so replace the file: run `chmod o-w {path}`"
    )]
    Folder { path: String, mode: u32 },
    #[error("it is text in UTF-16: save it as UTF-8")]
    Utf16,
    #[error("it is not text in UTF-8 (byte {0})")]
    NotUtf8(usize),
    #[error("it has more than {FILE_BYTES_MAX} bytes")]
    TooLarge,
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        let kind = match fault {
            Fault::Mode { .. } | Fault::Owner { .. } | Fault::Folder { .. } => io::ErrorKind::PermissionDenied,
            Fault::Utf16 | Fault::NotUtf8(_) | Fault::TooLarge => io::ErrorKind::InvalidData,
        };
        Self::new(kind, fault)
    }
}

/// Why a file of settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("{path} cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Its text is not valid.
    #[error("{path}: {reason}")]
    Text {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
}

/// Reads and parses a file of settings.
///
/// # Errors
/// See [`FileError`].
pub fn load<T>(path: &Path, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, FileError> {
    let text = read_text(path, Guard::Trusted).map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    parse(&text).map_err(|reason| FileError::Text { path: path.to_owned(), reason })
}

/// Reads a file.
///
/// # Errors
/// If it cannot be read, is too large, or is open to others beyond what `guard` allows; the error
/// says what to do.
pub fn read(path: &Path, guard: Guard) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    check_file(path, &file.metadata()?, guard)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(Fault::TooLarge.into());
    }
    Ok(bytes)
}

/// Reads a file of text, without its byte order mark.
///
/// # Errors
/// As [`read`], and if it is not UTF-8.
pub fn read_text(path: &Path, guard: Guard) -> io::Result<String> {
    let bytes = read(path, guard)?;
    if UTF16_BOMS.iter().any(|bom| bytes.starts_with(bom)) {
        return Err(Fault::Utf16.into());
    }
    let text = std::str::from_utf8(strip_bom(&bytes)).map_err(|error| Fault::NotUtf8(error.valid_up_to()))?;
    Ok(text.to_owned())
}

/// Returns the bytes without a leading byte order mark.
#[must_use]
pub fn strip_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BOM).unwrap_or(bytes)
}

/// Whether other users may read a file.
#[must_use]
pub fn is_readable_by_others(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.mode() & 0o004 != 0)
}

/// Checks a folder of secrets.
///
/// # Errors
/// If it does not exist, or other users may list or change it.
pub fn check_secret_folder(path: &Path) -> io::Result<()> {
    check_owner_and_mode(path, &std::fs::metadata(path)?, Guard::Secret)?;
    check_parent_folders(path)
}

fn check_file(path: &Path, found: &Metadata, guard: Guard) -> io::Result<()> {
    // The process that feeds a pipe knows its content anyway.
    if guard == Guard::Public || !found.is_file() {
        return Ok(());
    }
    check_owner_and_mode(path, found, guard)?;
    check_parent_folders(path)
}

fn check_owner_and_mode(path: &Path, found: &Metadata, guard: Guard) -> io::Result<()> {
    let (owner, user, mode) = (found.uid(), rustix::process::geteuid().as_raw(), found.mode() & 0o7777);
    let path = path.display().to_string();
    if owner != user && owner != ROOT {
        return Err(Fault::Owner { path, owner, user }.into());
    }
    let (forbidden, right) = match (guard, found.is_dir()) {
        (Guard::Public, _) => (0, "go-w"),
        (Guard::Trusted, _) => (0o022, "go-w"),
        (Guard::Secret, true) if owner == user => (0o077, "700"),
        (Guard::Secret, false) if owner == user => (0o077, "600"),
        (Guard::Secret, true) => (0o027, "750"),
        (Guard::Secret, false) => (0o037, "640"),
    };
    let may = if mode & forbidden & 0o022 != 0 { "write" } else { "read" };
    if mode & forbidden != 0 {
        return Err(Fault::Mode { path, may, mode: mode & 0o777, right }.into());
    }
    Ok(())
}

/// Checks the folders that contain a path and the file it resolves to: a user who may change them
/// can put another file in its place. In a folder such as /tmp only owners may.
fn check_parent_folders(path: &Path) -> io::Result<()> {
    let target = path.canonicalize()?;
    for folder in [path, &target].into_iter().filter_map(Path::parent) {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let mode = std::fs::metadata(folder)?.mode();
        if mode & 0o002 != 0 && mode & STICKY == 0 {
            return Err(Fault::Folder { path: folder.display().to_string(), mode: mode & 0o7777 }.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn file(&self, name: &str, bytes: &[u8], mode: u32) -> PathBuf {
            let path = self.0.path().join(name);
            fs::write(&path, bytes).unwrap();
            chmod(&path, mode);
            path
        }
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn rejection(path: &Path, guard: Guard) -> String {
        read(path, guard).unwrap_err().to_string()
    }

    #[test]
    fn secret_open_to_others_is_rejected_with_the_chmod_command() {
        let folder = Folder::new();
        for (mode, may) in [(0o644, "read"), (0o640, "read"), (0o604, "read"), (0o620, "write"), (0o602, "write")] {
            let path = folder.file("node.key", b"key", mode);
            let text = rejection(&path, Guard::Secret);
            assert!(text.contains(&format!("may {may} it (mode {mode:04o})")), "{text}");
            assert!(text.contains(&format!("`chmod 600 {}`", path.display())), "{text}");
        }
        for mode in [0o600, 0o400] {
            assert_eq!(read(&folder.file("good.key", b"key", mode), Guard::Secret).unwrap(), b"key");
        }
    }

    #[test]
    fn symlink_is_checked_at_its_target() {
        let folder = Folder::new();
        let (open, closed) = (folder.file("open.key", b"key", 0o644), folder.file("closed.key", b"key", 0o600));
        let link = folder.0.path().join("link.key");
        symlink(&open, &link).unwrap();
        assert!(rejection(&link, Guard::Secret).contains("0644"));
        fs::remove_file(&link).unwrap();
        symlink(&closed, &link).unwrap();
        assert!(read(&link, Guard::Secret).is_ok());
        let shared = folder.0.path().join("shared");
        fs::create_dir(&shared).unwrap();
        chmod(&shared, 0o777);
        symlink(&closed, shared.join("link.key")).unwrap();
        assert!(rejection(&shared.join("link.key"), Guard::Secret).contains("chmod o-w"));
        chmod(&shared, 0o1777);
        assert!(read(&shared.join("link.key"), Guard::Secret).is_ok(), "only its owner may replace a link there");
    }

    #[test]
    fn trusted_file_may_be_readable_but_not_writable_by_others() {
        let folder = Folder::new();
        for mode in [0o664, 0o646, 0o666] {
            assert!(
                rejection(&folder.file("access.toml", b"", mode), Guard::Trusted).contains("chmod go-w"),
                "{mode:o}"
            );
        }
        let path = folder.file("access.toml", b"", 0o644);
        assert!(read(&path, Guard::Trusted).is_ok() && is_readable_by_others(&path));
        assert!(read(&folder.file("ca.pem", b"", 0o666), Guard::Public).is_ok());
    }

    #[test]
    fn key_folder_open_to_others_is_rejected() {
        let folder = Folder::new();
        let keys = folder.0.path().join("keys");
        fs::create_dir(&keys).unwrap();
        for (mode, good) in [(0o700, true), (0o755, false), (0o770, false), (0o701, false)] {
            chmod(&keys, mode);
            assert_eq!(check_secret_folder(&keys).is_ok(), good, "{mode:o}");
        }
    }

    #[test]
    fn file_of_another_user_is_rejected() {
        // Only root can create such a file; otherwise a system file is used.
        let folder = Folder::new();
        let path = folder.file("feed.key", b"", 0o600);
        if std::os::unix::fs::chown(&path, Some(65_532), None).is_ok() {
            assert!(rejection(&path, Guard::Secret).contains("belongs to user 65532"));
        }
    }

    #[test]
    fn byte_order_mark_is_stripped_and_other_encodings_are_rejected() {
        let folder = Folder::new();
        let text = |bytes: &[u8]| read_text(&folder.file("x", bytes, 0o600), Guard::Secret);
        assert_eq!(text(b"\xef\xbb\xbfa = 1").unwrap(), "a = 1");
        assert!(text(b"\xff\xfea\0").unwrap_err().to_string().contains("UTF-16"));
        assert!(text(b"a\xe9").unwrap_err().to_string().contains("byte 1"));
        assert!(text(&vec![b' '; usize::try_from(FILE_BYTES_MAX).unwrap() + 1]).is_err());
    }
}
