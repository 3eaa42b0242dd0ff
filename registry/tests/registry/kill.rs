//! A child process writes as fast as it can and says what was acknowledged; the parent kills it and looks.

use crate::fixtures::{NOW, charter_digest, key, manifest, noise};
use hdd_protocol::Digest;
use hdd_registry::Registry;
use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

const FOLDER: &str = "HDD_KILL_TEST_FOLDER";
const ROUNDS: u64 = 40;

#[test]
#[ignore = "the child of what_was_acknowledged_survives_a_kill, which starts it"]
fn child() {
    let folder = std::env::var(FOLDER).expect("started by what_was_acknowledged_survives_a_kill");
    let folder = Path::new(&folder);
    let store = Registry::open(folder).unwrap();
    let mut out = std::io::stdout();
    let source = folder.join("source");
    let mut sequence = store.next_sequence(key(1).public(), charter_digest(), "cats").unwrap();
    loop {
        let bytes = noise(sequence, (sequence as usize * 77_777) % 3_000_000);
        let blob = if sequence.is_multiple_of(2) {
            store.import_bytes(&bytes).unwrap()
        } else {
            write_source(&source, &bytes);
            store.import_file(&source).unwrap()
        };
        writeln!(out, "blob {}", blob.digest).unwrap();
        store.insert_manifest(&manifest(&key(1), "cats", sequence, 0), NOW).unwrap();
        writeln!(out, "sequence {sequence}").unwrap();
        sequence += 1;
    }
}

fn write_source(path: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let (mut blobs, mut sequence): (Vec<Digest>, u64) = Default::default();
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill::child", "--ignored", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut note = |line: String| match line.split_once(' ') {
            Some(("blob", digest)) => blobs.push(digest.parse().unwrap()),
            Some(("sequence", number)) => sequence = number.parse().unwrap(),
            _ => {}
        };
        // Up to the first acknowledgement, so that the kill falls into the writing.
        for line in lines.by_ref().map(Result::unwrap) {
            let begun = line.starts_with("blob ");
            note(line);
            if begun {
                break;
            }
        }
        std::thread::sleep(Duration::from_micros(u64::from(noise(round, 1)[0]) * 250));
        child.kill().unwrap();
        child.wait().unwrap();
        // A line may be cut by the kill, but then nothing was acknowledged by it.
        lines.map_while(Result::ok).filter(|l| l.len() == 69 || l.starts_with("sequence ")).for_each(&mut note);

        let store = Registry::open(folder.path()).unwrap();
        let lost: Vec<_> = blobs.iter().filter(|digest| store.has_blob(**digest).is_none()).collect();
        assert!(lost.is_empty(), "round {round}: lost {lost:?}");
        for blob in store.blobs().unwrap() {
            let bytes = fs::read(store.blob_path(blob.digest).unwrap()).unwrap();
            assert_eq!(Digest::of(&bytes), blob.digest, "round {round}");
            if blob.size > 0 {
                let reader = store.reader(blob.digest).unwrap().unwrap();
                reader.encode_range(blob.size - 1, 1, &mut std::io::sink()).unwrap();
            }
        }
        let [current] = &store.manifests(None).unwrap()[..] else { panic!("round {round}: no manifest") };
        assert!(current.sequence >= sequence, "round {round}: {} is back to {}", sequence, current.sequence);
        assert_eq!(store.record_digests(None, 9).unwrap(), [current.digest()]);
        let leftovers = |name: &str| fs::read_dir(folder.path().join(name)).unwrap().count();
        assert_eq!((leftovers("partial"), leftovers("records")), (0, 1), "round {round}");
        // Room for the next round; the blobs have been looked at.
        blobs.clear();
        drop(store);
        fs::read_dir(folder.path().join("blobs")).unwrap().for_each(|e| fs::remove_file(e.unwrap().path()).unwrap());
    }
    assert!(sequence > ROUNDS, "the child got to {sequence} only: the kills did not fall into its writing");
}
