use crate::fixtures::{NOW, charter, charter_digest, key, manifest, manifest_until, revocation};
use hdd_protocol::{Announcement, Digest, Manifest, Revocation, RevocationTarget, Signed, Verified};
use hdd_registry::{Error, Inserted, Registry, RegistryOptions, Verdict, VerdictState};
use proptest::prelude::*;
use std::{fs, path::Path};

fn digests(store: &Registry) -> Vec<Digest> {
    store.manifests(None).unwrap().iter().map(Verified::digest).collect()
}

/// Everything that can be asked about records.
fn view(store: &Registry) -> String {
    let records = store.record_digests(None, usize::MAX).unwrap();
    format!("{:?} {records:?} {:?}", digests(store), store.equivocations().unwrap())
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entry = |e: std::io::Result<fs::DirEntry>| e.unwrap();
    let mut files: Vec<_> = fs::read_dir(folder.join("records"))
        .unwrap()
        .map(entry)
        .map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn records_come_back_as_they_were_signed() {
    let folder = tempfile::tempdir().unwrap();
    let store = Registry::open(folder.path()).unwrap();
    let (m, c) = (manifest(&key(1), "cats", 1, 0), charter(&key(2), "emoji"));
    let r = revocation(&key(1), RevocationTarget::Expert("dogs".into()), 5);
    assert_eq!(store.insert_manifest(&m, NOW).unwrap(), Inserted::New);
    assert_eq!(store.insert_revocation(&r).unwrap(), Inserted::New);
    store.insert_charter(&c).unwrap();
    drop(store);

    let store = Registry::open(folder.path()).unwrap();
    assert_eq!(store.manifest(m.digest()).unwrap().unwrap().bytes(), m.bytes());
    assert!(store.manifest(r.digest()).unwrap().is_none());
    assert_eq!(store.record(m.digest()).unwrap(), Some(Announcement::Manifest(m.bytes().to_vec())));
    assert_eq!(store.record(r.digest()).unwrap(), Some(Announcement::Revocation(r.bytes().to_vec())));
    assert_eq!(store.record(Digest::of(b"other")).unwrap(), None);
    assert_eq!(store.charter(c.digest()).unwrap().unwrap().bytes(), c.bytes());
    assert_eq!(store.charters().unwrap().len(), 1);
    assert_eq!(store.manifests(Some(charter_digest())).unwrap().len(), 1);
    assert!(store.manifests(Some(c.digest())).unwrap().is_empty());
}

#[test]
fn replays_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Registry::open(folder.path()).unwrap();
    let m = manifest(&key(1), "cats", 1, 0);
    store.insert_manifest(&m, NOW).unwrap();
    let before = files(folder.path());
    for _ in 0..1000 {
        assert_eq!(store.insert_manifest(&m, NOW).unwrap(), Inserted::Known);
    }
    assert_eq!(files(folder.path()), before);
}

#[test]
fn rollback_is_refused_before_and_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let store = Registry::open(folder.path()).unwrap();
    let version = |sequence| manifest(&key(1), "cats", sequence, sequence);
    store.insert_manifest(&version(2), NOW).unwrap();
    assert_eq!(store.insert_manifest(&version(3), NOW).unwrap(), Inserted::Replaced(version(2).digest()));
    assert!(store.manifest(version(2).digest()).unwrap().is_none());
    let refused = |store: &Registry| {
        let error = store.insert_manifest(&version(2), NOW).unwrap_err();
        assert!(matches!(error, Error::Stale { sequence: 2, highest: 3, .. }), "{error:?}");
        assert_eq!(digests(store), [version(3).digest()]);
        assert_eq!(store.next_sequence(key(1).public(), charter_digest(), "cats").unwrap(), 4);
    };
    refused(&store);
    drop(store);
    refused(&Registry::open(folder.path()).unwrap());
    // The ratchet is per author and name.
    let store = Registry::open(folder.path()).unwrap();
    assert_eq!(store.insert_manifest(&manifest(&key(1), "dogs", 1, 0), NOW).unwrap(), Inserted::New);
    assert_eq!(store.insert_manifest(&manifest(&key(2), "cats", 1, 0), NOW).unwrap(), Inserted::New);
    assert_eq!(store.next_sequence(key(3).public(), charter_digest(), "cats").unwrap(), 1);
}

#[test]
fn equivocation_is_kept_as_evidence_and_ends_trust_in_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (manifest(&key(1), "cats", 5, 0), manifest(&key(1), "cats", 5, 1));
    let other = manifest(&key(2), "cats", 5, 0);
    let evidence = [one.digest().min(two.digest()), one.digest().max(two.digest())];
    let store = Registry::open(folder.path()).unwrap();
    store.insert_manifest(&other, NOW).unwrap();
    store.insert_manifest(&manifest(&key(1), "dogs", 1, 0), NOW).unwrap();
    store.insert_manifest(&one, NOW).unwrap();
    let check = |store: &Registry| {
        for m in [&one, &two, &manifest(&key(1), "cats", 6, 0), &manifest(&key(1), "birds", 1, 0)] {
            let error = store.insert_manifest(m, NOW).unwrap_err();
            assert!(matches!(error, Error::Equivocation { evidence: e, .. } if e == evidence), "{error:?}");
        }
        assert_eq!(store.equivocations().unwrap(), [(key(1).public(), evidence)]);
        assert_eq!(digests(store), [other.digest()]);
        for digest in evidence {
            let Some(Announcement::Manifest(bytes)) = store.record(digest).unwrap() else { panic!("no evidence") };
            assert_eq!(Signed::<Manifest>::from_bytes(&bytes).unwrap().verify().unwrap().author, key(1).public());
        }
    };
    store.insert_manifest(&two, NOW).unwrap_err();
    check(&store);
    drop(store);
    check(&Registry::open(folder.path()).unwrap());
    fs::remove_dir_all(folder.path().join("index")).unwrap();
    check(&Registry::open(folder.path()).unwrap());
}

#[test]
fn a_revocation_wins_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let version = |sequence| manifest(&key(1), "cats", sequence, sequence);
    let by_name = revocation(&key(1), RevocationTarget::Expert("cats".into()), 7);
    let store = Registry::open(folder.path()).unwrap();
    store.insert_manifest(&version(1), NOW).unwrap();
    // By another key it says nothing.
    let by_other = revocation(&key(2), RevocationTarget::Expert("cats".into()), 7);
    store.insert_revocation(&by_other).unwrap();
    assert_eq!(digests(&store), [version(1).digest()]);
    store.insert_revocation(&by_name).unwrap();
    assert_eq!(store.insert_revocation(&by_name).unwrap(), Inserted::Known);
    let check = |store: &Registry| {
        assert!(digests(store).is_empty());
        for sequence in [1, 2, u64::MAX] {
            let error = store.insert_manifest(&version(sequence), NOW).unwrap_err();
            assert!(matches!(error, Error::Revoked { revocation, .. } if revocation == by_name.digest()), "{error:?}");
        }
        let page = store.record_digests(None, 10).unwrap();
        assert!(page.contains(&by_name.digest()) && !page.contains(&version(1).digest()));
    };
    check(&store);
    drop(store);
    check(&Registry::open(folder.path()).unwrap());
    // A node that hears of the revocation first.
    let late = tempfile::tempdir().unwrap();
    let store = Registry::open(late.path()).unwrap();
    store.insert_revocation(&by_name).unwrap();
    check(&store);
}

#[test]
fn one_manifest_revoked_leaves_later_versions_but_no_way_back() {
    let folder = tempfile::tempdir().unwrap();
    let version = |sequence| manifest(&key(1), "cats", sequence, sequence);
    let store = Registry::open(folder.path()).unwrap();
    store.insert_manifest(&version(2), NOW).unwrap();
    store.insert_revocation(&revocation(&key(1), RevocationTarget::Manifest(version(2).digest()), 7)).unwrap();
    assert!(matches!(store.insert_manifest(&version(2), NOW), Err(Error::Revoked { .. })));
    assert!(matches!(store.insert_manifest(&version(1), NOW), Err(Error::Stale { .. })));
    assert_eq!(store.insert_manifest(&version(3), NOW).unwrap(), Inserted::Replaced(version(2).digest()));
    assert_eq!(digests(&store), [version(3).digest()]);
}

#[test]
fn two_revocations_of_one_thing_end_as_the_same_on_every_node() {
    let target = RevocationTarget::Expert("cats".into());
    let mut two = [revocation(&key(1), target.clone(), 1), revocation(&key(1), target, 2)];
    two.sort_by_key(Verified::digest);
    let [low, high] = two;
    for order in [[&low, &high], [&high, &low]] {
        let folder = tempfile::tempdir().unwrap();
        let store = Registry::open(folder.path()).unwrap();
        for r in order {
            store.insert_revocation(r).unwrap();
        }
        assert_eq!(store.record_digests(None, 10).unwrap(), [low.digest()]);
        assert_eq!(files(folder.path()).len(), 1);
    }
}

#[test]
fn a_key_has_a_quota_and_what_expired_makes_room() {
    let folder = tempfile::tempdir().unwrap();
    let store =
        Registry::open_with(folder.path(), RegistryOptions { records_per_author: 2, ..Default::default() }).unwrap();
    let old = manifest_until(&key(1), "a", 1, 0, NOW - 1);
    store.insert_manifest(&old, NOW - 10).unwrap();
    store.insert_manifest(&manifest(&key(1), "b", 1, 0), NOW - 10).unwrap();
    let third = manifest(&key(1), "c", 1, 0);
    assert!(matches!(store.insert_manifest(&third, NOW - 10), Err(Error::Quota { limit: 2, .. })));
    assert_eq!(files(folder.path()).len(), 2);
    store.insert_manifest(&third, NOW).unwrap();
    assert!(store.manifest(old.digest()).unwrap().is_none());
    assert_eq!(files(folder.path()).len(), 2);
    // New versions, other keys and revocations are not in the way of each other.
    store.insert_manifest(&manifest(&key(1), "c", 2, 0), NOW).unwrap();
    store.insert_manifest(&manifest(&key(2), "c", 1, 0), NOW).unwrap();
    let revoke = |name: &str| store.insert_revocation(&revocation(&key(1), RevocationTarget::Expert(name.into()), 1));
    revoke("b").unwrap();
    revoke("c").unwrap();
    assert!(matches!(revoke("d"), Err(Error::Quota { .. })));
}

#[test]
fn all_keys_together_have_a_quota_and_what_expired_makes_room() {
    let folder = tempfile::tempdir().unwrap();
    let options = RegistryOptions { records: 3, ..Default::default() };
    let store = Registry::open_with(folder.path(), options).unwrap();
    let old = manifest_until(&key(1), "a", 1, 0, NOW - 1);
    for m in [&old, &manifest(&key(2), "a", 1, 0), &manifest(&key(3), "a", 1, 0)] {
        store.insert_manifest(m, NOW - 10).unwrap();
    }
    let full = |store: &Registry, now| {
        let error = store.insert_manifest(&manifest(&key(4), "a", 1, 0), now).unwrap_err();
        assert!(matches!(error, Error::Quota { author: None, limit: 3 }), "{error:?}");
        assert!(error.to_string().contains("3 records"), "{error}");
        assert_eq!(files(folder.path()).len(), 3);
    };
    full(&store, NOW - 10);
    // A new version takes the place of the one before, and a restart does not forget what is there.
    store.insert_manifest(&manifest(&key(2), "a", 2, 0), NOW - 10).unwrap();
    full(&store, NOW - 10);
    drop(store);
    let store = Registry::open_with(folder.path(), options).unwrap();
    full(&store, NOW - 10);
    store.insert_manifest(&manifest(&key(5), "a", 1, 0), NOW).unwrap();
    assert!(store.manifest(old.digest()).unwrap().is_none());
    full(&store, NOW);
    // Revocations are not in the way of manifests, nor the other way round.
    let revoke = |n: u8| store.insert_revocation(&revocation(&key(n), RevocationTarget::Expert("a".into()), 1));
    assert!((1..=3).all(|n| revoke(n).unwrap() == Inserted::New));
    assert_eq!(revoke(3).unwrap(), Inserted::Known);
    assert!(matches!(revoke(4), Err(Error::Quota { author: None, limit: 3 })));
}

#[test]
fn evidence_of_equivocation_is_not_evicted() {
    let folder = tempfile::tempdir().unwrap();
    let store = Registry::open_with(folder.path(), RegistryOptions { records: 2, ..Default::default() }).unwrap();
    let two = [0, 1].map(|variant| manifest_until(&key(1), "a", 1, variant, NOW - 1));
    store.insert_manifest(&two[0], NOW - 10).unwrap();
    assert!(matches!(store.insert_manifest(&two[1], NOW - 10), Err(Error::Equivocation { .. })));
    assert!(matches!(store.insert_manifest(&manifest(&key(2), "a", 1, 0), NOW), Err(Error::Quota { .. })));
    assert!(two.iter().all(|m| store.record(m.digest()).unwrap().is_some()));
}

#[test]
fn pages_list_everything_once_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let store = Registry::open(folder.path()).unwrap();
    let mut all: Vec<Digest> = (0..40)
        .map(|n| {
            let m = manifest(&key(n % 5), &format!("expert-{n}"), 1, 0);
            store.insert_manifest(&m, NOW).unwrap();
            m.digest()
        })
        .collect();
    all.sort();
    let (mut pages, mut after) = (Vec::<Digest>::new(), None);
    loop {
        let page = store.record_digests(after, 7).unwrap();
        after = page.last().copied();
        pages.extend(&page);
        if page.len() < 7 {
            break;
        }
    }
    assert_eq!(pages, all);
}

#[test]
fn a_damaged_record_counts_as_not_held_and_can_come_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = Registry::open(folder.path()).unwrap();
    let (m, other) = (manifest(&key(1), "cats", 1, 0), manifest(&key(2), "cats", 1, 0));
    let path = folder.path().join("records").join(m.digest().to_string());
    let flipped = |at: usize| {
        let mut bytes = m.bytes().to_vec();
        bytes[at] ^= 1;
        bytes
    };
    let last = m.bytes().len() - 1; // in the signature, which the digest does not cover
    for damage in [vec![], flipped(10), flipped(last), other.bytes().to_vec(), vec![0; 1 << 20]] {
        store.insert_manifest(&other, NOW).unwrap();
        assert_eq!(store.insert_manifest(&m, NOW).unwrap(), Inserted::New);
        fs::write(&path, damage).unwrap();
        assert_eq!(digests(&store), [other.digest()]);
        assert!(!path.exists());
    }
    store.insert_manifest(&m, NOW).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(store.record(m.digest()).unwrap().is_none());
    assert_eq!(store.insert_manifest(&m, NOW).unwrap(), Inserted::New);
}

#[test]
fn verdicts_last_as_long_as_their_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let store = Registry::open(folder.path()).unwrap();
    let m = manifest(&key(1), "cats", 1, 0);
    store.insert_manifest(&m, NOW).unwrap();
    let verdict = Verdict {
        state: VerdictState::Refused,
        reason: "held-out loss above the baseline".into(),
        held_out_loss: Some(0.5),
        baseline_loss: None,
        checked_at: NOW,
    };
    assert_eq!(store.verdict(m.digest()).unwrap(), None);
    store.set_verdict(m.digest(), &verdict).unwrap();
    drop(store);
    let store = Registry::open(folder.path()).unwrap();
    assert_eq!(store.verdict(m.digest()).unwrap(), Some(verdict.clone()));
    fs::write(folder.path().join("verdicts").join(format!("{}.json", m.digest())), b"{").unwrap();
    assert_eq!(store.verdict(m.digest()).unwrap(), None);
    store.set_verdict(m.digest(), &verdict).unwrap();
    store.insert_manifest(&manifest(&key(1), "cats", 2, 0), NOW).unwrap();
    drop(store);
    assert_eq!(Registry::open(folder.path()).unwrap().verdict(m.digest()).unwrap(), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever came in whatever order, the index rebuilt from the files answers as the live one.
    #[test]
    fn the_index_is_a_function_of_the_files(steps in prop::collection::vec((0u8..3, 0u8..2, 1u64..4, 0u64..2, 0u8..6), 1..25)) {
        let folder = tempfile::tempdir().unwrap();
        let store = Registry::open(folder.path()).unwrap();
        for (author, name, sequence, variant, kind) in steps {
            let (author, name) = (key(author), ["cats", "dogs"][usize::from(name)]);
            let m = manifest(&author, name, sequence, variant);
            let revoke = |target| -> Verified<Revocation> { revocation(&author, target, variant) };
            match kind {
                0 => drop(store.insert_revocation(&revoke(RevocationTarget::Expert(name.into()))).unwrap()),
                1 => drop(store.insert_revocation(&revoke(RevocationTarget::Manifest(m.digest()))).unwrap()),
                _ => drop(store.insert_manifest(&m, NOW)),
            }
        }
        let live = view(&store);
        drop(store);
        prop_assert_eq!(&view(&Registry::open(folder.path()).unwrap()), &live);
        fs::remove_dir_all(folder.path().join("index")).unwrap();
        prop_assert_eq!(&view(&Registry::open(folder.path()).unwrap()), &live);
    }
}
