//! The key file: a node's identity in the network and the author of what it signs.
//!
//! `key.ed25519` in the data folder holds the secret seed as 64 hexadecimal digits and a newline, mode 0600. It is made at
//! first use. Whoever reads it can sign as this author; whoever loses it loses the identity, hence `key export`.

use crate::{Error, Result, files};
use hdd_protocol::SecretKey;
use rand::{TryRngCore as _, rngs::OsRng};
use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// The key file of a data folder.
pub fn path(data: &Path) -> PathBuf {
    data.join("key.ed25519")
}

/// The key of this data folder, made on first use from the system's randomness.
///
/// # Errors
/// As [`read`]; [`Error::Io`] if no file can be made.
pub fn load_or_create(data: &Path) -> Result<SecretKey> {
    let path = path(data);
    match read(&path) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        found => return found,
    }
    fs::create_dir_all(data).map_err(Error::io("make the data folder", data))?;
    match write(&path, &fresh()?, false) {
        Err(Error::KeyExists { .. }) => read(&path), // another process was faster
        Err(error) => Err(error),
        Ok(()) => {
            tracing::info!(path = %path.display(), "made a new key");
            read(&path)
        }
    }
}

/// A new key from the system's randomness.
///
/// # Errors
/// [`Error::Io`] if the system has none.
pub fn fresh() -> Result<SecretKey> {
    let mut seed = Zeroizing::new([0; 32]);
    OsRng.try_fill_bytes(&mut *seed).map_err(|e| Error::io("read", "the system's randomness")(io::Error::other(e)))?;
    Ok(SecretKey::from_seed(&seed))
}

/// Reads a key file.
///
/// # Errors
/// [`Error::Io`]; [`Error::KeyMode`] if anyone but the owner may read or write it; [`Error::KeyFormat`].
pub fn read(path: &Path) -> Result<SecretKey> {
    let mut file = File::open(path).map_err(Error::io("open the key file", path))?;
    let mode = file.metadata().map_err(Error::io("look at the key file", path))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Error::KeyMode { path: path.into(), mode });
    }
    let format = || Error::KeyFormat { path: path.into() };
    let mut text = Zeroizing::new([0; 66]); // 64 digits, a newline, and one byte that tells a longer file
    let mut length = 0;
    while length < text.len() {
        match file.read(&mut text[length..]).map_err(Error::io("read the key file", path))? {
            0 => break,
            n => length += n,
        }
    }
    let mut seed = Zeroizing::new([0; 32]);
    hex::decode_to_slice(text[..length].trim_ascii(), &mut *seed).map_err(|_| format())?;
    Ok(SecretKey::from_seed(&seed))
}

/// Writes a key file with mode 0600: whole or not at all, and over another only with `force`.
///
/// # Errors
/// [`Error::KeyExists`]; [`Error::Io`].
pub fn write(path: &Path, key: &SecretKey, force: bool) -> Result<()> {
    let folder = files::folder(path);
    let failed = || Error::io("write the key file", path);
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed())?; // mode 0600 from the start
    let mut text = Zeroizing::new([0; 65]);
    text[64] = b'\n';
    // 64 digits hold 32 bytes: the lengths always fit.
    hex::encode_to_slice(*key.seed(), &mut text[..64]).map_err(|_| Error::KeyFormat { path: path.into() })?;
    file.write_all(&*text).and_then(|()| file.as_file().sync_all()).map_err(failed())?;
    let kept = if force { file.persist(path) } else { file.persist_noclobber(path) };
    kept.map_err(|e| match e.error.kind() {
        io::ErrorKind::AlreadyExists => Error::KeyExists { path: path.into() },
        _ => failed()(e.error),
    })?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_key_is_made_once_private_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("new");
        let first = load_or_create(&data).unwrap().public();
        assert_eq!(fs::metadata(path(&data)).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load_or_create(&data).unwrap().public(), first);
        assert_ne!(load_or_create(&folder.path().join("other")).unwrap().public(), first);
        assert_eq!(fs::read_dir(&data).unwrap().count(), 1, "a temporary file was left behind");
    }

    #[test]
    fn a_key_that_others_can_reach_is_refused_with_the_remedy() {
        let data = tempfile::tempdir().unwrap();
        load_or_create(data.path()).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o666, 0o644] {
            set_mode(&path(data.path()), mode);
            let text = load_or_create(data.path()).unwrap_err().to_string();
            assert!(text.contains("chmod 600") && text.contains(&format!("{mode:o}")), "{text}");
        }
        for mode in [0o600, 0o400] {
            set_mode(&path(data.path()), mode);
            load_or_create(data.path()).unwrap();
        }
    }

    #[test]
    fn broken_key_files_are_refused_and_left_alone() {
        let data = tempfile::tempdir().unwrap();
        for text in ["", "ab", &"g".repeat(64), &"a".repeat(63), &"a".repeat(65), &"a".repeat(10_000)] {
            fs::write(path(data.path()), text).unwrap();
            set_mode(&path(data.path()), 0o600);
            assert!(matches!(load_or_create(data.path()), Err(Error::KeyFormat { .. })), "{text}");
            assert_eq!(fs::read_to_string(path(data.path())).unwrap(), *text);
        }
    }

    #[test]
    fn an_existing_key_is_overwritten_only_by_force() {
        let data = tempfile::tempdir().unwrap();
        let path = path(data.path());
        let (old, new) = (fresh().unwrap(), fresh().unwrap());
        write(&path, &old, false).unwrap();
        assert!(matches!(write(&path, &new, false), Err(Error::KeyExists { .. })));
        assert_eq!(read(&path).unwrap().public(), old.public());
        write(&path, &new, true).unwrap();
        assert_eq!(read(&path).unwrap().public(), new.public());
    }
}
