//! Files that are written all or not at all.
//!
//! In scope: writing new files, undoing that when it fails, and removing what a run that was killed has left. Out of scope: what they hold.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::PkiError;

/// Rights of a folder that others may look into.
const FOLDER: u32 = 0o755;
/// Rights of a folder for its owner alone: what a node keeps beside its keys is nobody else's business either.
const PRIVATE_FOLDER: u32 = 0o700;
const PUBLIC: u32 = 0o644;
const SECRET: u32 = 0o600;

/// Files to write, in their order.
pub(super) struct Files {
    /// Lists them while they are being written: of these, and of no others, a later run knows that they are an earlier one's.
    unfinished: PathBuf,
    private_folders: Vec<PathBuf>,
    files: Vec<(PathBuf, Vec<u8>, u32)>,
}

/// What was made so far.
#[derive(Default)]
struct Made {
    folders: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

impl Files {
    pub(super) fn new(unfinished: PathBuf) -> Self {
        Self { unfinished, private_folders: Vec::new(), files: Vec::new() }
    }

    pub(super) fn public(&mut self, path: PathBuf, content: impl Into<Vec<u8>>) {
        self.files.push((path, content.into(), PUBLIC));
    }

    pub(super) fn secret(&mut self, path: PathBuf, content: impl Into<Vec<u8>>) {
        self.files.push((path, content.into(), SECRET));
    }

    pub(super) fn private_folder(&mut self, path: PathBuf) {
        self.private_folders.push(path);
    }

    /// Writes all files, none over another, and then does what is left. If any of it fails, what was made is removed.
    pub(super) fn write(&self, then: impl FnOnce() -> Result<(), PkiError>) -> Result<(), PkiError> {
        self.remove_unfinished()?;
        if let Some((path, ..)) = self.files.iter().find(|(path, ..)| path.symlink_metadata().is_ok()) {
            return Err(PkiError::Exists(path.clone()));
        }
        let mut made = Made::default();
        let result = self.write_into(&mut made).and_then(|()| then());
        if result.is_err() {
            made.undo();
        }
        match fs::remove_file(&self.unfinished) {
            Err(error) if result.is_ok() => Err(failed(&self.unfinished, error)),
            _ => result,
        }
    }

    fn write_into(&self, made: &mut Made) -> Result<(), PkiError> {
        let paths: Vec<String> = self.files.iter().map(|(path, ..)| path.display().to_string()).collect();
        let paths = serde_json::to_vec(&paths).map_err(|error| PkiError::Text(error.to_string()))?;
        made.file(&self.unfinished, &paths, PUBLIC)?;
        for folder in &self.private_folders {
            made.folder(folder, PRIVATE_FOLDER)?;
            let rights = fs::Permissions::from_mode(PRIVATE_FOLDER);
            fs::set_permissions(folder, rights).map_err(|error| failed(folder, error))?;
        }
        self.files.iter().try_for_each(|(path, content, mode)| made.file(path, content, *mode))
    }

    /// Removes what an earlier run was killed over.
    fn remove_unfinished(&self) -> Result<(), PkiError> {
        let Ok(paths) = fs::read(&self.unfinished) else { return Ok(()) };
        let written: Vec<PathBuf> = serde_json::from_slice(&paths).unwrap_or_default();
        // Only what this run is about to write: the list is a file that anybody may have changed.
        for (path, ..) in self.files.iter().filter(|(path, ..)| written.contains(path)) {
            remove(path)?;
        }
        remove(&self.unfinished)
    }
}

impl Made {
    fn file(&mut self, path: &Path, content: &[u8], mode: u32) -> Result<(), PkiError> {
        if let Some(folder) = path.parent() {
            self.folder(folder, FOLDER)?;
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)
            .map_err(|error| failed(path, error))?;
        self.files.push(path.to_owned());
        file.write_all(content).map_err(|error| failed(path, error))
    }

    /// A folder and those above it, so far as they are missing.
    fn folder(&mut self, path: &Path, mode: u32) -> Result<(), PkiError> {
        if path.as_os_str().is_empty() || path.is_dir() {
            return Ok(());
        }
        if let Some(above) = path.parent() {
            self.folder(above, FOLDER)?;
        }
        fs::DirBuilder::new().mode(mode).create(path).map_err(|error| failed(path, error))?;
        self.folders.push(path.to_owned());
        Ok(())
    }

    /// What cannot be removed stays: the failure that is reported is the first one.
    fn undo(self) {
        for path in self.files.iter().rev() {
            let _ = fs::remove_file(path);
        }
        for path in self.folders.iter().rev() {
            let _ = fs::remove_dir(path);
        }
    }
}

fn remove(path: &Path) -> Result<(), PkiError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, error)),
        _ => Ok(()),
    }
}

fn failed(path: &Path, source: io::Error) -> PkiError {
    PkiError::File { path: path.to_owned(), source }
}
