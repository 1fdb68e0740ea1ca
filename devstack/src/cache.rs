//! The folder that keeps fetched servers, one sub-folder for each version, shared by every process of this user.
//!
//! ```text
//! absent ──lock──> absent ──fill──> NAME.partial-XXXX ──rename──> NAME
//!   │ (another process filled it meanwhile: use it)      │
//!   └────────────────────────────────────────────> NAME  └ fill failed or killed: swept by the next to hold the lock
//! ```
//!
//! Must never let a half-filled folder be used, and must never lie inside the source tree.

use crate::error::{Context, Result};
use std::{
    env, fs,
    fs::File,
    path::{Path, PathBuf},
};

const FOLDER: &str = "tallyhouse-devstack";

/// The cache folder, with one sub-folder for each version.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the cache at `$TALLYHOUSE_CACHE`, else `$XDG_CACHE_HOME/tallyhouse-devstack`, else
    /// `~/.cache/tallyhouse-devstack`. Fails when the folder cannot be made.
    pub fn open() -> Result<Cache> {
        let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = set("TALLYHOUSE_CACHE")
            .or_else(|| Some(set("XDG_CACHE_HOME")?.join(FOLDER)))
            .or_else(|| Some(env::home_dir()?.join(".cache").join(FOLDER)))
            .unwrap_or_else(|| env::temp_dir().join(FOLDER));
        Cache::at(root)
    }

    /// Opens the cache at `root`. Fails when the folder cannot be made.
    pub fn at(root: impl Into<PathBuf>) -> Result<Cache> {
        let root = root.into();
        fs::create_dir_all(&root).context("make the cache folder", &root)?;
        Ok(Cache { root })
    }

    /// Returns the path of the cache.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the folder `name` (which must carry a version). `fill` fills the folder if it does not exist yet.
    ///
    /// `fill` gets an empty folder to write to. It runs in one process at a time, and the others wait for its result.
    /// Fails as `fill` fails, and then keeps nothing.
    pub fn ensure(&self, name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let ready = self.root.join(name);
        if ready.is_dir() {
            return Ok(ready);
        }
        let lock_path = self.root.join(format!("{name}.lock"));
        let lock = File::create(&lock_path).context("create", &lock_path)?;
        lock.lock().context("lock", &lock_path)?;
        if ready.is_dir() {
            return Ok(ready);
        }
        let partial_prefix = format!("{name}.partial-");
        self.sweep(&partial_prefix)?;
        let partial = tempfile::Builder::new()
            .prefix(&partial_prefix)
            .tempdir_in(&self.root)
            .context("make a folder in", &self.root)?;
        fill(partial.path())?;
        fs::rename(partial.path(), &ready).context("rename the fetched folder to", &ready)?;
        Ok(ready)
    }

    /// Removes the remains of a killed process. Only the holder of the lock may call it.
    fn sweep(&self, partial_prefix: &str) -> Result<()> {
        for entry in fs::read_dir(&self.root).context("list", &self.root)? {
            let path = entry.context("list", &self.root)?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(partial_prefix)) {
                fs::remove_dir_all(&path).context("remove", &path)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;
    use std::{
        sync::{
            Barrier,
            atomic::{AtomicUsize, Ordering},
        },
        thread,
    };

    fn cache() -> (tempfile::TempDir, Cache) {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::at(root.path().join("cache")).unwrap();
        (root, cache)
    }

    #[test]
    fn concurrent_callers_share_one_filling() {
        let (_root, cache) = cache();
        let (fills, start) = (AtomicUsize::new(0), Barrier::new(4));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    let ready = cache
                        .ensure("thing-1.0", |folder| {
                            fills.fetch_add(1, Ordering::SeqCst);
                            fs::write(folder.join("a"), "a").unwrap();
                            thread::yield_now();
                            fs::write(folder.join("b"), "b").unwrap();
                            Ok(())
                        })
                        .unwrap();
                    assert_eq!(fs::read_to_string(ready.join("b")).unwrap(), "b");
                });
            }
        });
        assert_eq!(fills.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_failed_filling_leaves_nothing_and_can_be_repeated() {
        let (_root, cache) = cache();
        let failed = cache.ensure("thing-1.0", |folder| {
            fs::write(folder.join("half"), "half").unwrap();
            Err(Error::InitNotCalled)
        });
        assert!(matches!(failed, Err(Error::InitNotCalled)));
        let ready = cache.ensure("thing-1.0", |_| Ok(())).unwrap();
        assert!(!ready.join("half").exists());
    }

    #[test]
    fn what_a_killed_process_left_is_swept_and_never_used() {
        let (_root, cache) = cache();
        let left = cache.root().join("thing-1.0.partial-dead");
        fs::create_dir(&left).unwrap();
        let ready = cache.ensure("thing-1.0", |_| Ok(())).unwrap();
        assert!(!left.exists());
        assert!(ready.is_dir());
    }
}
