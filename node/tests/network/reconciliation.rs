use crate::fixtures::{NOW, Node, PATIENCE, announcement, charter, config, eventually, listening, manifest};
use hdd_node::network::NetworkConfig;
use std::{sync::Arc, time::Duration};
use tempfile::TempDir;

#[tokio::test(flavor = "multi_thread")]
async fn late_joiners_and_nodes_that_were_away_catch_up() {
    let first = Node::start(1, &[]).await;
    first.registry.insert_charter(&charter()).unwrap();
    let early: Vec<_> = (0..150).map(|i| manifest(9, &format!("early-{i}"), |_| {})).collect();
    for manifest in &early {
        assert_eq!(first.client.announce(announcement(manifest)).await.unwrap(), 0);
    }
    let late = Node::hidden(2, &[&first]).await;
    eventually("all early manifests", || early.iter().all(|m| late.has(m.digest()))).await;

    let folder = late.stop().await;
    let missed = manifest(9, "missed", |_| {});
    first.client.announce(announcement(&missed)).await.unwrap();
    let back = Node::with(2, folder, config(&[&first]), None).await;
    eventually("what was missed", || back.has(missed.digest())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_node_catches_up_on_travels_on_to_its_peers() {
    let middle = Node::start(1, &[]).await;
    let third = Node::hidden(2, &[&middle]).await;
    third.client.wait_connected(PATIENCE).await.unwrap();
    let author = Node::with(3, TempDir::new().unwrap(), config(&[]), None).await;
    author.registry.insert_charter(&charter()).unwrap();
    let manifest = manifest(3, "cats", |_| {});
    author.client.announce(announcement(&manifest)).await.unwrap();
    let author = Node::with(3, author.stop().await, config(&[&middle]), None).await;
    eventually("the manifest arrives", || third.has(manifest.digest())).await;
    assert!(author.has(manifest.digest()));
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_judged_by_this_nodes_clock_and_rules_whoever_sends_them() {
    let first = Node::start(1, &[]).await;
    first.registry.insert_charter(&charter()).unwrap();
    let (short, long) = (manifest(9, "short", |_| {}), manifest(9, "long", |m| m.expires_at = NOW + 100_000));
    for manifest in [&short, &long] {
        first.client.announce(announcement(manifest)).await.unwrap();
    }
    let later = NetworkConfig { now: Arc::new(|| NOW + 50_000), ..config(&[&first]) };
    let later = Node::with(2, TempDir::new().unwrap(), later, None).await;
    eventually("what is still valid", || later.has(long.digest())).await;
    // Both came in one answer or in the order of their digests: a moment later the other would be here too.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!later.has(short.digest()), "expired there");

    // A registry that took what its own door would not let in does not spread it.
    let foreign = manifest(9, "foreign", |m| m.spec.cluster = 7);
    first.registry.insert_manifest(&foreign, NOW).unwrap();
    let same = Node::hidden(3, &[&first]).await;
    same.client.wait_connected(PATIENCE).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!same.has(foreign.digest()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_charter_is_found_at_a_peer() {
    let founder = Node::start(1, &[]).await;
    let joiner = Node::with(2, TempDir::new().unwrap(), listening(&[&founder]), None).await;
    joiner.client.wait_connected(PATIENCE).await.unwrap();
    let error = joiner.client.charter(charter().digest()).await.unwrap_err();
    assert!(error.to_string().contains("1 connected peers"), "{error}");
    founder.registry.insert_charter(&charter()).unwrap();
    let found = joiner.client.charter(charter().digest()).await.unwrap();
    assert_eq!(found.bytes(), charter().bytes());
}
