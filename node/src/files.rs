//! Files that a person asked for: whole or untouched, and with the permissions that the person's umask gives.

use crate::{Error, Result};
use std::{
    fs::{File, Permissions},
    io,
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

/// The folder that `path` stands in.
pub fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Refuses a path that no file can be written to, before any work is done for it.
///
/// # Errors
/// [`Error::Usage`].
pub fn check_target(path: &Path) -> Result<()> {
    if folder(path).is_dir() && !path.is_dir() {
        return Ok(());
    }
    let path = path.display();
    Err(Error::Usage(format!("cannot write {path}: it is a folder, or its folder does not exist")))
}

/// Refuses a folder without `config.json`, which describes a model, and says what was to be given instead.
///
/// # Errors
/// [`Error::Usage`].
pub fn check_model(folder: &Path, expected: &str) -> Result<()> {
    if folder.join("config.json").is_file() {
        return Ok(());
    }
    Err(Error::Usage(format!("{} holds no config.json; give {expected}", folder.display())))
}

/// What [`check_model`] expects for an expert.
pub const EXPERT_FOLDER: &str =
    "the folder of an import or of a checkpoint, such as experts/NAME/checkpoints/step-00001000";

/// Fills a temporary file beside `path`, then gives it that name in place of what had it.
///
/// # Errors
/// [`Error::Io`] with the path; the old file is then untouched.
pub fn replace(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let failed = || Error::io("write", path);
    let mut builder = tempfile::Builder::new();
    builder.permissions(Permissions::from_mode(0o666));
    let mut file = builder.tempfile_in(folder(path)).map_err(failed())?;
    fill(file.as_file_mut()).and_then(|()| file.as_file().sync_all()).map_err(failed())?;
    file.persist(path).map(drop).map_err(|e| failed()(e.error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, io::Write as _};

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().join("a");
        replace(&path, |file| file.write_all(b"old")).unwrap();
        let failed = replace(&path, |file| file.write_all(b"half").and(Err(io::ErrorKind::StorageFull.into())));
        assert!(failed.unwrap_err().to_string().contains("cannot write"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        replace(&path, |file| file.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(data.path()).unwrap().count(), 1, "a temporary file was left behind");
        fs::write(data.path().join("plain"), b"").unwrap();
        let mode = |name| fs::metadata(data.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode("a"), mode("plain"), "the umask decides");
    }
}
