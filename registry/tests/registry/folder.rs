//! The folder as a whole: lock, layout, and an index in every state of decay.

use crate::fixtures::{NOW, key, manifest, noise, revocation};
use hdd_protocol::{Digest, Manifest, RevocationTarget, Verified};
use hdd_registry::{Error, Registry, write_atomically};
use std::{
    fs,
    path::{Path, PathBuf},
};

const RANDOM_DAMAGES: u64 = 100;

#[test]
fn a_folder_has_one_owner_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let first = Registry::open(folder.path()).unwrap();
    let error = Registry::open(folder.path()).err().unwrap();
    assert!(matches!(&error, Error::InUse { folder: f } if f == folder.path()), "{error:?}");
    assert!(error.to_string().contains(folder.path().to_str().unwrap()), "{error}");
    drop(first);
    Registry::open(folder.path()).unwrap();
}

#[test]
fn a_folder_of_a_later_version_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("version"), "2\n").unwrap();
    let error = Registry::open(folder.path()).err().unwrap();
    assert!(matches!(&error, Error::Layout { found, supported: 1, .. } if found == "2"), "{error:?}");
    assert!(!folder.path().join("records").exists());
}

#[test]
fn a_file_in_the_place_of_the_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    fs::write(&path, b"").unwrap();
    let error = Registry::open(&path).err().unwrap();
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
}

fn index_files(folder: &Path) -> Vec<PathBuf> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.join("index")]);
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_dir() { folders.push(entry) } else { files.push(entry) }
        }
    }
    files.sort();
    files
}

#[test]
fn an_index_in_any_state_is_rebuilt_from_the_records() {
    let folder = tempfile::tempdir().unwrap();
    let store = Registry::open(folder.path()).unwrap();
    let mut expected: Vec<Digest> = Vec::new();
    for n in 0..30 {
        let m = manifest(&key(n % 7), &format!("expert-{n}"), 3, 0);
        store.insert_manifest(&m, NOW).unwrap();
        expected.push(m.digest());
    }
    store.insert_revocation(&revocation(&key(0), RevocationTarget::Expert("expert-0".into()), 1)).unwrap();
    expected.remove(0);
    expected.sort();
    drop(store);
    let (broken, mut moved_aside) = (folder.path().join("index.broken"), 0);
    let mut check = |damage: &str| {
        let store = Registry::open(folder.path()).unwrap_or_else(|e| panic!("{damage}: {e}"));
        let mut current: Vec<_> = store.manifests(None).unwrap().iter().map(Verified::digest).collect();
        current.sort();
        assert_eq!(current, expected, "{damage}");
        let stale = store.insert_manifest(&manifest(&key(1), "expert-1", 2, 0), NOW);
        assert!(matches!(stale, Err(Error::Stale { .. })), "{damage}");
        moved_aside += usize::from(fs::remove_dir_all(&broken).is_ok());
    };
    check("none");
    let names: Vec<_> = index_files(folder.path());
    assert!(names.len() >= 2, "{names:?}");
    type Damage = fn(&Path, Vec<u8>);
    let kinds: [(&str, Damage); 7] = [
        ("deleted", |path, _| fs::remove_file(path).unwrap()),
        ("emptied", |path, _| fs::write(path, b"").unwrap()),
        ("halved", |path, bytes| fs::write(path, &bytes[..bytes.len() / 2]).unwrap()),
        ("shortened by one", |path, bytes| fs::write(path, &bytes[..bytes.len().saturating_sub(1)]).unwrap()),
        ("noise", |path, bytes| fs::write(path, noise(9, bytes.len())).unwrap()),
        ("ones", |path, bytes| fs::write(path, vec![0xff; bytes.len()]).unwrap()),
        ("a byte in a hundred flipped", |path, mut bytes| {
            bytes.iter_mut().step_by(100).for_each(|byte| *byte ^= 0x55);
            fs::write(path, bytes).unwrap();
        }),
    ];
    for (kind, damage) in kinds {
        for number in 0..names.len() {
            let files = index_files(folder.path());
            let Some(path) = files.get(number) else { continue };
            damage(path, fs::read(path).unwrap());
            check(&format!("{} {kind}", path.display()));
        }
    }
    for seed in 0..RANDOM_DAMAGES {
        let random = noise(seed, 40);
        let number =
            |at: usize| usize::from(random[at]) << 16 | usize::from(random[at + 1]) << 8 | usize::from(random[at + 2]);
        let files = index_files(folder.path());
        let path = &files[number(0) % files.len()];
        let mut bytes = fs::read(path).unwrap();
        // Near the beginning, where the entries are.
        let start = number(3) % bytes.len().clamp(1, 8192);
        let replaced = bytes.iter_mut().skip(start).zip(&random[8..8 + number(6) % 32]);
        replaced.for_each(|(byte, new)| *byte = *new);
        fs::write(path, bytes).unwrap();
        check(&format!("{} written over with seed {seed}", path.display()));
    }
    fs::remove_dir_all(folder.path().join("index")).unwrap();
    check("folder deleted");
    fs::remove_dir_all(folder.path().join("index")).unwrap();
    fs::write(folder.path().join("index"), b"a file").unwrap();
    check("folder replaced by a file");
    assert!(moved_aside > 0, "the damage was never such that the index did not open");
}

#[test]
fn an_index_from_an_older_backup_catches_up_with_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let store = Registry::open(folder.path()).unwrap();
    let (old, new, gone) =
        (manifest(&key(1), "cats", 1, 0), manifest(&key(1), "cats", 2, 0), manifest(&key(2), "x", 1, 0));
    let path = |m: &Verified<Manifest>| folder.path().join("records").join(m.digest().to_string());
    store.insert_manifest(&old, NOW).unwrap();
    store.insert_manifest(&gone, NOW).unwrap();
    drop(store);
    // As after a kill between the new file and the index, and with a file that someone deleted.
    fs::write(path(&new), new.bytes()).unwrap();
    fs::remove_file(path(&gone)).unwrap();
    fs::write(folder.path().join("records/.tmp-unfinished"), b"half").unwrap();
    let store = Registry::open(folder.path()).unwrap();
    assert_eq!(store.record_digests(None, 10).unwrap(), [new.digest()]);
    assert!(!path(&old).exists() && !folder.path().join("records/.tmp-unfinished").exists());
}

#[test]
fn files_are_replaced_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    write_atomically(&path, b"one").unwrap();
    write_atomically(&path, b"three").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"three");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    let error = write_atomically(&folder.path().join("no/file"), b"x").unwrap_err();
    assert!(error.to_string().contains("no"), "{error}");
}
