use crate::fixtures::noise;
use hdd_protocol::{Blob, Digest};
use hdd_registry::{Download, Error, GROUP, Registry};
use proptest::prelude::*;
use std::{fs, path::Path};

const PIECE: u64 = 4 * GROUP;

fn store() -> (tempfile::TempDir, Registry) {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::open(folder.path()).unwrap();
    (folder, registry)
}

fn encoded(from: &Registry, digest: Digest, start: u64, len: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.reader(digest).unwrap().unwrap().encode_range(start, len, &mut bytes).unwrap();
    bytes
}

fn fetch(from: &Registry, download: &mut Download, digest: Digest) {
    while let Some(range) = download.missing(PIECE) {
        let bytes = encoded(from, digest, range.start, range.end - range.start);
        assert_eq!(download.write_range(range.clone(), &mut &bytes[..]).unwrap(), range.end - range.start);
    }
}

/// Every byte on disk of an unfinished download is the right one or has never been written.
fn assert_only_right_bytes(folder: &Path, blob: Blob, right: &[u8]) {
    let partial = fs::read(folder.join("partial").join(format!("{}.data", blob.digest))).unwrap();
    assert_eq!(partial.len(), right.len());
    assert!(partial.iter().zip(right).all(|(have, want)| have == want || *have == 0));
}

#[test]
fn blobs_of_every_shape_travel_whole() {
    let ((folder, from), (_guard, to)) = (store(), store());
    let group = GROUP as usize;
    let mut held = Vec::new();
    for size in [0, 1, 1023, 1024, 1025, group - 1, group, group + 1, 2 * group, 5 * group + 7, 64 * group, 1_000_003] {
        let bytes = noise(size as u64, size);
        let path = folder.path().join("source");
        fs::write(&path, &bytes).unwrap();
        let blob = from.import_file(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(blob, Blob { digest: Digest::of(&bytes), size: size as u64 });
        assert_eq!(from.import_bytes(&bytes).unwrap(), blob);
        assert_eq!(from.has_blob(blob.digest), Some(blob));

        let mut download = to.begin_download(blob).unwrap();
        assert!(to.has_blob(blob.digest).is_none() && to.reader(blob.digest).unwrap().is_none());
        fetch(&from, &mut download, blob.digest);
        assert_eq!((download.done(), download.size()), (blob.size, blob.size));
        assert_eq!(download.finish().unwrap(), blob);
        assert_eq!(fs::read(to.blob_path(blob.digest).unwrap()).unwrap(), bytes);
        // What was fetched can be passed on, its tree included.
        if size > 0 {
            let (start, len) = (blob.size / 2, blob.size - blob.size / 2);
            assert_eq!(encoded(&to, blob.digest, start, len), encoded(&from, blob.digest, start, len));
        }
        held.push(blob);
    }
    held.sort_by_key(|blob| blob.digest);
    assert_eq!(to.blobs().unwrap(), held);
    assert_eq!(fs::read_dir(to.folder().join("partial")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(from.folder().join("partial")).unwrap().count(), 0);
}

#[test]
fn a_download_goes_on_where_it_stopped() {
    let ((_a, from), (folder, to)) = (store(), store());
    let bytes = noise(1, 20 * GROUP as usize + 5);
    let blob = from.import_bytes(&bytes).unwrap();
    let mut download = to.begin_download(blob).unwrap();
    for range in [0..PIECE, 2 * PIECE..3 * PIECE, 20 * GROUP..blob.size] {
        let piece = encoded(&from, blob.digest, range.start, range.end - range.start);
        download.write_range(range, &mut &piece[..]).unwrap();
    }
    let done = download.done();
    assert_eq!(done, 2 * PIECE + 5);
    assert!(matches!(to.begin_download(blob), Err(Error::Busy { .. })));
    assert!(matches!(download.finish(), Err(Error::Incomplete { .. })));
    drop(to);
    // A byte that rots in the meantime is noticed: its group is fetched again.
    let path = folder.path().join("partial").join(format!("{}.data", blob.digest));
    let mut partial = fs::read(&path).unwrap();
    partial[3] ^= 1;
    fs::write(&path, partial).unwrap();

    let to = Registry::open(folder.path()).unwrap();
    let mut download = to.begin_download(blob).unwrap();
    assert_eq!(download.done(), done - GROUP);
    assert_eq!(download.missing(PIECE), Some(0..GROUP));
    fetch(&from, &mut download, blob.digest);
    download.finish().unwrap();
    assert_eq!(fs::read(to.blob_path(blob.digest).unwrap()).unwrap(), bytes);
    // And a download of what is held is done at once.
    let download = to.begin_download(blob).unwrap();
    assert_eq!(download.missing(PIECE), None);
    assert_eq!(download.finish().unwrap(), blob);
    assert!(matches!(to.begin_download(Blob { size: 1, ..blob }), Err(Error::WrongSize { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn a_flipped_bit_anywhere_is_noticed_within_its_group(at in any::<prop::sample::Index>(), bit in 0u8..8, groups in 1usize..9) {
        let ((_a, from), (folder, to)) = (store(), store());
        let bytes = noise(7, groups * GROUP as usize + 77);
        let blob = from.import_bytes(&bytes).unwrap();
        let right = encoded(&from, blob.digest, 0, blob.size);
        let mut altered = right.clone();
        let at = at.index(altered.len());
        altered[at] ^= 1 << bit;
        let mut download = to.begin_download(blob).unwrap();
        let mut stream = &altered[..];
        let error = download.write_range(0..blob.size, &mut stream).unwrap_err();
        let Error::WrongBytes { offset, .. } = error else { panic!("{error:?}") };
        let read = altered.len() - stream.len();
        prop_assert!(read > at && read <= at + GROUP as usize, "noticed at {} after {}", read, at);
        prop_assert_eq!(download.done(), offset);
        assert_only_right_bytes(folder.path(), blob, &bytes);
        drop(download);
        let mut download = to.begin_download(blob).unwrap();
        prop_assert_eq!(download.done(), offset);
        fetch(&from, &mut download, blob.digest);
        download.finish().unwrap();
        prop_assert_eq!(fs::read(to.blob_path(blob.digest).unwrap()).unwrap(), bytes);
    }
}

#[test]
fn hostile_streams_and_claims_get_nowhere() {
    let ((_a, from), (folder, to)) = (store(), store());
    let bytes = noise(3, 9 * GROUP as usize);
    let blob = from.import_bytes(&bytes).unwrap();
    let other = from.import_bytes(&noise(4, 9 * GROUP as usize)).unwrap();
    let right = encoded(&from, blob.digest, 0, PIECE);
    let wrong = |download: &mut Download, stream: &[u8]| download.write_range(0..PIECE, &mut &*stream).unwrap_err();

    let mut download = to.begin_download(blob).unwrap();
    let of_another = encoded(&from, other.digest, 0, PIECE);
    let from_elsewhere = encoded(&from, blob.digest, PIECE, PIECE);
    for stream in [&of_another[..], &from_elsewhere, &vec![0; right.len()]] {
        assert!(matches!(wrong(&mut download, stream), Error::WrongBytes { offset: 0, .. }));
    }
    assert_eq!(download.done(), 0);
    for length in [0, 63, 64, right.len() - GROUP as usize, right.len() - 1] {
        let error = wrong(&mut download, &right[..length]);
        assert!(matches!(error, Error::Stream { .. }), "{length}: {error:?}");
    }
    assert_eq!(download.done(), 3 * GROUP);
    assert_only_right_bytes(folder.path(), blob, &bytes);
    for range in [1..GROUP, 0..GROUP + 1, 0..0, blob.size..blob.size + GROUP, 0..u64::MAX] {
        let error = download.write_range(range.clone(), &mut &right[..]).unwrap_err();
        assert!(matches!(error, Error::BadRange { .. }), "{range:?}: {error:?}");
    }
    drop(download);
    // The right bytes under another size are not the blob that was claimed; the last group shows it at the latest.
    let all = encoded(&from, blob.digest, 0, blob.size);
    for size in [blob.size - 1, blob.size + 1, 8 * GROUP, GROUP] {
        let mut download = to.begin_download(Blob { size, ..blob }).unwrap();
        let error = download.write_range(0..size, &mut &all[..]).unwrap_err();
        assert!(matches!(error, Error::WrongBytes { .. }), "{size}: {error:?}");
        assert!(matches!(download.finish(), Err(Error::Incomplete { .. })), "{size}");
    }
    let empty = to.begin_download(Blob { size: 0, ..blob }).unwrap();
    assert!(matches!(empty.finish(), Err(Error::WrongBytes { .. })));
    assert!(to.blobs().unwrap().is_empty());

    let reader = from.reader(blob.digest).unwrap().unwrap();
    for (start, len) in [(0, 0), (blob.size, 1), (0, blob.size + 1), (u64::MAX, 1), (1, u64::MAX)] {
        let error = reader.encode_range(start, len, &mut Vec::new()).unwrap_err();
        assert!(matches!(error, Error::BadRange { .. }), "{start} {len}: {error:?}");
    }
}

#[test]
fn a_blob_larger_than_the_disk_is_refused_before_anything_is_written() {
    let (folder, to) = store();
    for size in [1 << 60, u64::MAX] {
        let error = to.begin_download(Blob { digest: Digest::of(b"huge"), size }).err().unwrap();
        assert!(matches!(&error, Error::NoSpace { needed, free, .. } if *needed >= size && free < needed), "{error:?}");
        assert!(error.to_string().contains("bytes are needed"), "{error}");
    }
    assert_eq!(fs::read_dir(folder.path().join("partial")).unwrap().count(), 0);
}

#[test]
fn a_damaged_blob_is_not_sent_and_a_lost_tree_grows_again() {
    let (folder, from) = store();
    let blob = from.import_bytes(&noise(5, 9 * GROUP as usize)).unwrap();
    let file = |suffix: &str| folder.path().join("blobs").join(format!("{}.{suffix}", blob.digest));
    let right = encoded(&from, blob.digest, 0, blob.size);
    for tree in [None, Some(vec![]), Some(vec![0; 100])] {
        match tree {
            None => fs::remove_file(file("obao")).unwrap(),
            Some(bytes) => fs::write(file("obao"), bytes).unwrap(),
        }
        assert_eq!(encoded(&from, blob.digest, 0, blob.size), right);
    }
    let mut bytes = fs::read(file("data")).unwrap();
    bytes[4 * GROUP as usize] ^= 1;
    fs::write(file("data"), bytes).unwrap();
    let reader = from.reader(blob.digest).unwrap().unwrap();
    let mut sent = Vec::new();
    assert!(matches!(reader.encode_range(0, blob.size, &mut sent), Err(Error::Corrupt { .. })));
    assert_eq!(sent, right[..sent.len()]);
    fs::remove_file(file("obao")).unwrap();
    assert!(matches!(from.reader(blob.digest), Err(Error::Corrupt { .. })));
}

#[test]
fn a_damaged_blob_is_found_after_a_restart_and_comes_again() {
    let (folder, from) = store();
    let bytes = noise(6, 9 * GROUP as usize + 3);
    let source = folder.path().join("source");
    fs::write(&source, &bytes).unwrap();
    let blob = from.import_file(&source).unwrap();
    let right = encoded(&from, blob.digest, 0, blob.size);
    let file = |place: &str, suffix: &str| folder.path().join(place).join(format!("{}.{suffix}", blob.digest));
    let path = file("blobs", "data");
    assert_eq!(from.verify_blob(blob.digest).unwrap(), Some(path.clone()));
    assert_eq!(from.verify_blob(Digest::of(b"other")).unwrap(), None);
    drop(from);
    let flipped = |at: usize| {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        bytes
    };
    let mut longer = bytes.clone();
    longer.push(0);
    for damage in [flipped(0), flipped(bytes.len() - 1), bytes[1..].to_vec(), longer, vec![]] {
        fs::write(&path, &damage).unwrap();
        let store = Registry::open(folder.path()).unwrap();
        assert_eq!(store.verify_blob(blob.digest).unwrap(), None);
        assert!(store.has_blob(blob.digest).is_none() && !file("blobs", "obao").exists());
        assert_eq!(fs::read(file("broken", "data")).unwrap(), damage);
        assert_eq!(store.begin_download(blob).unwrap().done(), 0);
        store.import_bytes(&bytes).unwrap();
        assert_eq!(store.verify_blob(blob.digest).unwrap(), Some(path.clone()));
        // An import replaces what is damaged without being told.
        fs::write(&path, &damage).unwrap();
        assert_eq!(store.import_file(&source).unwrap(), blob);
        assert_eq!(fs::read(&path).unwrap(), bytes);
        assert_eq!(encoded(&store, blob.digest, 0, blob.size), right);
    }
}

#[test]
fn what_happens_to_a_file_after_its_import_does_not_reach_the_blob() {
    let (folder, store) = store();
    let (source, bytes) = (folder.path().join("source"), noise(8, 1000));
    fs::write(&source, &bytes).unwrap();
    let blob = store.import_file(&source).unwrap();
    fs::write(&source, b"changed in place").unwrap();
    assert_eq!(fs::read(store.verify_blob(blob.digest).unwrap().unwrap()).unwrap(), bytes);
}

#[test]
fn only_files_are_imported() {
    let (folder, store) = store();
    for path in [folder.path().to_path_buf(), folder.path().join("nothing")] {
        let error = store.import_file(&path).unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    #[cfg(unix)]
    {
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        fs::write(&target, b"weights").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let blob = store.import_file(&link).unwrap();
        assert_eq!(fs::read(store.blob_path(blob.digest).unwrap()).unwrap(), b"weights");
        assert!(link.is_symlink() && target.exists());
    }
}
