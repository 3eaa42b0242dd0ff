//! The folders of a store and the lock on them.

use crate::{Error, Result, atomic};
use hdd_protocol::Digest;
use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A folder counts as in use once its lock was held for this long.
const LOCK_PATIENCE: Duration = Duration::from_millis(400);
/// Raised when files change their place or form, so that a later build can migrate this one's.
const VERSION: u32 = 1;

#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub root: PathBuf,
    pub records: PathBuf,
    pub charters: PathBuf,
    pub verdicts: PathBuf,
    pub blobs: PathBuf,
    pub partial: PathBuf,
    /// Damaged files are moved here.
    pub broken: PathBuf,
    pub index: PathBuf,
}

impl Layout {
    /// Creates what is missing, removes what a killed process left, and takes the lock, which lasts as long as the file.
    pub fn open(root: &Path) -> Result<(Self, File)> {
        let folder = |name: &str| root.join(name);
        let layout = Self {
            root: root.into(),
            records: folder("records"),
            charters: folder("charters"),
            verdicts: folder("verdicts"),
            blobs: folder("blobs"),
            partial: folder("partial"),
            broken: folder("broken"),
            index: folder("index"),
        };
        create(root)?;
        let lock = layout.lock()?;
        layout.check_version()?;
        for folder in [&layout.records, &layout.charters, &layout.verdicts, &layout.blobs, &layout.partial] {
            create(folder)?;
            atomic::remove_temporaries(folder)?;
        }
        create(&layout.broken)?;
        Ok((layout, lock))
    }

    fn lock(&self) -> Result<File> {
        let path = self.root.join("lock");
        let open = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = open.map_err(Error::io("open", &path))?;
        // A process that is just ending, or a child that has yet to close what it inherited, holds the lock for a moment.
        let patience = Instant::now() + LOCK_PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if Instant::now() < patience => std::thread::sleep(LOCK_PATIENCE / 20),
                Err(TryLockError::WouldBlock) => return Err(Error::InUse { folder: self.root.clone() }),
                Err(TryLockError::Error(e)) => return Err(Error::io("lock", &path)(e)),
            }
        }
    }

    fn check_version(&self) -> Result<()> {
        let path = self.root.join("version");
        match fs::read_to_string(&path) {
            Ok(text) if text.trim() == VERSION.to_string() => Ok(()),
            Ok(text) => {
                let found = text.trim().chars().take(20).collect();
                Err(Error::Layout { folder: self.root.clone(), found, supported: VERSION })
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                atomic::remove_temporaries(&self.root)?;
                atomic::write_atomically(&path, format!("{VERSION}\n").as_bytes())
            }
            Err(e) => Err(Error::io("read", &path)(e)),
        }
    }

    /// Moves a damaged file out of the way, with a warning.
    pub fn set_aside(&self, path: &Path, why: &str) -> Result<()> {
        let Some(name) = path.file_name() else { return Ok(()) };
        let to = self.broken.join(name);
        tracing::warn!(path = %path.display(), to = %to.display(), why, "moved a damaged file aside");
        match fs::rename(path, &to) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("move aside", path)(e)),
            _ => Ok(()),
        }
    }
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::io("create the folder", folder))
}

/// Files in `folder` named by a digest and `suffix`.
pub(crate) fn digests(folder: &Path, suffix: &str) -> Result<Vec<Digest>> {
    let digest = |name: &String| {
        let digest: Digest = name.strip_suffix(suffix)?.parse().ok()?;
        (format!("{digest}{suffix}") == *name).then_some(digest)
    };
    Ok(atomic::names(folder)?.iter().filter_map(digest).collect())
}
