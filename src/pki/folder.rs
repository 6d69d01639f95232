//! Writes a set of files, all or none.
//!
//! In scope: writing new files, undoing it after a failure, and removing what a killed run left.
//! Out of scope: their content.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::PkiError;

/// Mode of a folder that others may list.
const FOLDER: u32 = 0o755;
/// Mode of a folder for its owner only: other files beside a node's keys are private too.
const PRIVATE_FOLDER: u32 = 0o700;
const PUBLIC: u32 = 0o644;
const SECRET: u32 = 0o600;

/// Files to write, in order.
pub(super) struct Files {
    /// Path of the list of files being written. By it a later run recognises, and removes, only
    /// files of an interrupted run.
    unfinished: PathBuf,
    private_folders: Vec<PathBuf>,
    files: Vec<(PathBuf, Vec<u8>, u32)>,
}

/// Files and folders created so far.
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

    /// Writes all files, overwriting none, then runs `then`. On any failure removes what was
    /// created.
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

    /// Removes the files of an earlier run that was killed.
    fn remove_unfinished(&self) -> Result<(), PkiError> {
        let Ok(paths) = fs::read(&self.unfinished) else { return Ok(()) };
        let written: Vec<PathBuf> = serde_json::from_slice(&paths).unwrap_or_default();
        // Only files that this run is about to write: any user may have changed the list.
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

    /// Creates a folder and its missing parents.
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

    /// Ignores what cannot be removed: the first failure is the one to report.
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
