//! The cache of fetched servers, outside the source tree and shared by all checkouts.
//!
//! Must never show a half-made entry: an entry is made in a folder of its own and renamed into place, under a file lock.

use crate::{DevstackError, io};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The cache's folder: `$TALLYHOUSE_CACHE`, else `tallyhouse-devstack` in `$XDG_CACHE_HOME` or `~/.cache`.
pub fn folder() -> PathBuf {
    let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    from("TALLYHOUSE_CACHE").unwrap_or_else(|| {
        let base = from("XDG_CACHE_HOME").or_else(|| from("HOME").map(|home| home.join(".cache")));
        base.unwrap_or_else(std::env::temp_dir).join("tallyhouse-devstack")
    })
}

/// The entry `name` of the cache at `folder`, made by `make` in the folder it is given if it is not there yet. Several
/// processes may ask at once: one makes it, the others wait.
///
/// # Errors
/// Those of `make`, and failures of the file system.
pub fn entry(
    folder: &Path,
    name: &str,
    make: impl FnOnce(&Path) -> Result<(), DevstackError>,
) -> Result<PathBuf, DevstackError> {
    let path = folder.join(name);
    fs::create_dir_all(folder).map_err(io(format!("creating {}", folder.display())))?;
    let lock = File::create(folder.join(format!("{name}.lock"))).map_err(io("creating the cache's lock"))?;
    lock.lock().map_err(io("locking the cache"))?;
    if !path.exists() {
        let temporary = tempfile::tempdir_in(folder).map_err(io("creating a temporary folder in the cache"))?;
        make(temporary.path())?;
        fs::rename(temporary.keep(), &path).map_err(io(format!("renaming into {}", path.display())))?;
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn eight_at_once_make_an_entry_once_and_a_failed_one_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let fail = |_: &Path| Err(DevstackError::Failed { program: "x", output: String::new() });
        assert!(entry(folder.path(), "e", fail).is_err());
        assert!(!folder.path().join("e").exists());
        let made = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let path = entry(folder.path(), "e", |path| {
                        made.fetch_add(1, Ordering::Relaxed);
                        fs::write(path.join("file"), "whole").map_err(io("writing"))
                    });
                    assert_eq!(fs::read_to_string(path.unwrap().join("file")).unwrap(), "whole");
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }
}
