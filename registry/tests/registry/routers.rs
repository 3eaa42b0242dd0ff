use crate::fixtures::{NOW, charter_digest, key, manifest, revocation, router};
use hdd_protocol::{Announcement, Digest, RevocationTarget};
use hdd_registry::{Error, Inserted, Registry, RegistryOptions, Verdict, VerdictState};
use std::fs;

#[test]
fn routers_come_back_as_they_were_signed_beside_experts() {
    let folder = tempfile::tempdir().unwrap();
    let store = Registry::open(folder.path()).unwrap();
    let (expert, one, two) = (manifest(&key(1), "router", 1, 0), router(&key(1), 1, 0), router(&key(2), 1, 0));
    store.insert_manifest(&expert, NOW).unwrap();
    for router in [&one, &two] {
        assert_eq!(store.insert_router(router, NOW).unwrap(), Inserted::New);
        assert_eq!(store.insert_router(router, NOW).unwrap(), Inserted::Known);
    }
    let verdict = Verdict {
        state: VerdictState::Refused,
        reason: "shuffled".into(),
        held_out_loss: None,
        baseline_loss: None,
        checked_at: NOW,
    };
    store.set_verdict(one.digest(), &verdict).unwrap();
    let check = |store: &Registry| {
        let mut found: Vec<Digest> =
            store.routers(Some(charter_digest())).unwrap().iter().map(|r| r.digest()).collect();
        found.sort();
        let mut wanted = [one.digest(), two.digest()];
        wanted.sort();
        assert_eq!(found, wanted);
        assert_eq!(store.manifests(None).unwrap().len(), 1, "an expert may be named so; a router is none");
        assert!(store.routers(Some(Digest::of(b"other"))).unwrap().is_empty());
        assert_eq!(store.router(one.digest()).unwrap().unwrap().bytes(), one.bytes());
        assert!(store.router(expert.digest()).unwrap().is_none() && store.manifest(one.digest()).unwrap().is_none());
        assert_eq!(store.record(one.digest()).unwrap(), Some(Announcement::Router(one.bytes().to_vec())));
        assert_eq!(store.record_digests(None, 10).unwrap().len(), 3, "peers are told of all");
        assert_eq!(store.verdict(one.digest()).unwrap().as_ref(), Some(&verdict));
    };
    check(&store);
    drop(store);
    check(&Registry::open(folder.path()).unwrap());
    fs::remove_dir_all(folder.path().join("index")).unwrap();
    check(&Registry::open(folder.path()).unwrap());
}

#[test]
fn a_router_is_replaced_revoked_and_distrusted_as_an_expert_is() {
    let folder = tempfile::tempdir().unwrap();
    let store = Registry::open(folder.path()).unwrap();
    let next = |number| store.next_router_sequence(key(number).public(), charter_digest()).unwrap();
    let (first, second) = (router(&key(1), 1, 0), router(&key(1), 2, 0));
    assert_eq!(next(1), 1);
    store.insert_router(&first, NOW).unwrap();
    assert_eq!(store.insert_router(&second, NOW).unwrap(), Inserted::Replaced(first.digest()));
    assert_eq!(next(1), 3);
    let error = store.insert_router(&first, NOW).unwrap_err();
    assert!(matches!(&error, Error::Stale { name, sequence: 1, highest: 2, .. } if name == "router"), "{error}");

    store.insert_revocation(&revocation(&key(1), RevocationTarget::Manifest(second.digest()), 1)).unwrap();
    assert!(store.routers(None).unwrap().is_empty());
    assert!(matches!(store.insert_router(&second, NOW), Err(Error::Revoked { .. })));
    store.insert_router(&router(&key(1), 3, 0), NOW).unwrap();

    store.insert_router(&router(&key(2), 1, 0), NOW).unwrap();
    let error = store.insert_router(&router(&key(2), 1, 1), NOW).unwrap_err();
    assert!(matches!(error, Error::Equivocation { .. }), "{error}");
    assert_eq!(store.routers(None).unwrap().len(), 1, "what that key signed is left out");
}

#[test]
fn a_router_counts_in_its_authors_quota() {
    let folder = tempfile::tempdir().unwrap();
    let options = RegistryOptions { records_per_author: 2, ..Default::default() };
    let store = Registry::open_with(folder.path(), options).unwrap();
    store.insert_router(&router(&key(1), 1, 0), NOW).unwrap();
    store.insert_manifest(&manifest(&key(1), "a", 1, 0), NOW).unwrap();
    let error = store.insert_manifest(&manifest(&key(1), "b", 1, 0), NOW).unwrap_err();
    assert!(matches!(error, Error::Quota { limit: 2, .. }), "{error}");
    store.insert_router(&router(&key(1), 2, 0), NOW).unwrap();
    store.insert_router(&router(&key(2), 1, 0), NOW).unwrap();
}
