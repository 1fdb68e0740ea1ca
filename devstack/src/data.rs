//! The data folder of a server: one of the caller's, or a temporary one that is removed when the server ends.
//!
//! A temporary folder is locked while it is used. A process killed with -9 cannot remove its own, so the next one to
//! make such a folder removes those that nobody has locked.
//!
//! Must never remove a folder that the caller named, nor one that another process uses.

use crate::error::{Context, Result};
use std::{
    env, fs,
    fs::File,
    path::{Path, PathBuf},
    sync::Once,
    time::Duration,
};
use tempfile::TempDir;

const PREFIX: &str = "tallyhouse-devstack-";
/// Minimum age of an abandoned folder. Younger folders may be between being made and being locked.
const ABANDONED_AFTER: Duration = Duration::from_secs(60);

/// A data folder, temporary or the caller's.
#[derive(Debug)]
pub(crate) enum DataFolder {
    /// A folder of this process: it is removed when dropped.
    Temporary { folder: TempDir, _lock: File },
    /// The caller's folder: it is kept.
    Kept(PathBuf),
}

impl DataFolder {
    /// Returns the folder at `directory`, made if need be, or a temporary one.
    pub(crate) fn make(directory: Option<&Path>) -> Result<DataFolder> {
        if let Some(path) = directory {
            fs::create_dir_all(path).context("make", path)?;
            return Ok(DataFolder::Kept(path.canonicalize().context("find", path)?));
        }
        static SWEEP: Once = Once::new();
        let root = env::temp_dir();
        SWEEP.call_once(|| sweep(&root));
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(&root).context("make a folder in", &root)?;
        let lock = File::open(folder.path()).context("open", folder.path())?;
        lock.lock().context("lock", folder.path())?;
        Ok(DataFolder::Temporary { folder, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            DataFolder::Temporary { folder, .. } => folder.path(),
            DataFolder::Kept(path) => path,
        }
    }

    /// Removes a temporary folder now, for an end of the process that drops nothing.
    pub(crate) fn remove_if_temporary(&self) {
        if let DataFolder::Temporary { folder, .. } = self {
            // Failing here leaves the folder to the next sweep.
            let _ = fs::remove_dir_all(folder.path());
        }
    }
}

/// Removes abandoned folders. Folders that cannot be removed (another user's, say) stay.
fn sweep(root: &Path) {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    for path in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)).map(|e| e.path()) {
        if is_abandoned(&path) {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

fn is_abandoned(path: &Path) -> bool {
    let Ok(folder) = File::open(path) else { return false };
    let age = folder.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|time| time.elapsed().ok());
    age.is_some_and(|age| age > ABANDONED_AFTER) && folder.try_lock().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_in_use_is_not_abandoned_and_goes_when_dropped() {
        let data = DataFolder::make(None).unwrap();
        let path = data.path().to_owned();
        File::open(&path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        assert!(!is_abandoned(&path));
        drop(data);
        assert!(!path.exists());
    }

    #[test]
    fn an_old_unlocked_folder_is_abandoned_and_a_young_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_abandoned(folder.path()));
        File::open(folder.path()).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        assert!(is_abandoned(folder.path()));
    }

    #[test]
    fn the_callers_folder_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        drop(DataFolder::make(Some(folder.path())).unwrap());
        assert!(folder.path().exists());
    }
}
