use crate::{
    fixtures::{NOW, Node, PATIENCE, announcement, charter, config, eventually, listening, manifest},
    stranger::Stranger,
};
use futures::{AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _, future::BoxFuture};
use hdd_node::network::NetworkConfig;
use hdd_protocol::{Announcement, Digest, SyncRequest, SyncResponse, decode, encode, protocols};
use libp2p::Stream;
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

/// Holds a record of a later wire version, one with a broken signature and a good one.
fn hand_over(mut stream: Stream) -> BoxFuture<'static, ()> {
    async move {
        let mut length = [0; 4];
        stream.read_exact(&mut length).await.unwrap();
        let mut request = vec![0; u32::from_le_bytes(length) as usize];
        stream.read_exact(&mut request).await.unwrap();
        let altered = |name: &str, change: fn(&mut Vec<u8>)| {
            let mut bytes = manifest(9, name, |_| {}).bytes().to_vec();
            change(&mut bytes);
            Announcement::Manifest(bytes)
        };
        let response = match decode("request", &request, SyncRequest::LIMIT).unwrap() {
            SyncRequest::Digests { .. } => {
                let mut digests: Vec<_> = (0..3).map(|number: u8| Digest::of(&[number])).collect();
                digests.sort();
                SyncResponse::Digests(digests)
            }
            SyncRequest::Records(_) => SyncResponse::Records(vec![
                altered("later", |bytes| bytes[0] = 2), // the envelope's first field is the version
                altered("broken", |bytes| *bytes.last_mut().unwrap() ^= 1),
                altered("good", |_| {}),
            ]),
            SyncRequest::Charter(_) => SyncResponse::Charter(None),
        };
        let bytes = encode(&response).unwrap();
        stream.write_all(&(bytes.len() as u32).to_le_bytes()).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.close().await.unwrap();
    }
    .boxed()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_record_that_cannot_be_taken_does_not_hold_up_the_others() {
    let node = Node::start(1, &[]).await;
    node.registry.insert_charter(&charter()).unwrap();
    let _stranger = Stranger::meet(node.address.as_ref().unwrap(), Some((protocols::SYNC, hand_over))).await;
    eventually("the good record", || node.has(manifest(9, "good", |_| {}).digest())).await;
    assert_eq!(node.registry.manifests(None).unwrap().len(), 1);
}
