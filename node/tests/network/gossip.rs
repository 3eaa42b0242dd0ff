use crate::{
    fixtures::{Node, PATIENCE, announcement, charter, eventually, key, manifest},
    stranger::Stranger,
};
use hdd_node::network::Event;
use hdd_protocol::{Announcement, Revocation, RevocationTarget, Signed, encode};

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_reaches_a_third_node_through_the_middle() {
    let middle = Node::start(1, &[]).await;
    let (author, third) = (Node::hidden(2, &[&middle]).await, Node::hidden(3, &[&middle]).await);
    author.registry.insert_charter(&charter()).unwrap();
    for node in [&author, &third] {
        node.client.wait_connected(PATIENCE).await.unwrap();
    }
    let mut events = third.client.events();
    let manifest = manifest(2, "cats", |_| {});
    author.client.announce(announcement(&manifest)).await.unwrap();
    eventually("the manifest arrives", || third.has(manifest.digest())).await;
    assert!(third.registry.charter(charter().digest()).unwrap().is_some(), "with the charter, asked of the sender");

    let revocation = Revocation {
        charter: charter().digest(),
        author: key(2).public(),
        target: RevocationTarget::Expert("cats".into()),
        reason: "wrong pictures".into(),
        issued_at: 1,
    };
    let revocation = Signed::sign(revocation, &key(2)).unwrap();
    author.client.announce(Announcement::Revocation(revocation.bytes().to_vec())).await.unwrap();
    eventually("the revocation arrives", || third.has(revocation.digest())).await;
    assert!(third.registry.manifests(None).unwrap().is_empty());
    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        seen.push(event);
    }
    assert!(seen.contains(&Event::ManifestArrived(manifest.digest())), "{seen:?}");
    assert!(seen.contains(&Event::RevocationArrived(revocation.digest())), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_the_rules_is_neither_stored_nor_forwarded() {
    let node = Node::start(1, &[]).await;
    node.registry.insert_charter(&charter()).unwrap();
    let address = node.address.clone().unwrap();
    let listener = Stranger::meet(&address, None).await;

    let good = manifest(2, "cats", |_| {});
    let wrap = |bytes: Vec<u8>| encode(&Announcement::Manifest(bytes)).unwrap();
    let altered = |at: usize| {
        let mut bytes = good.bytes().to_vec();
        bytes[at] ^= 1;
        wrap(bytes)
    };
    let mut trailing = wrap(good.bytes().to_vec());
    trailing.push(0);
    let hostile = [
        ("no message at all", vec![0xff; 100]),
        ("an altered payload", altered(40)),
        ("an altered signature", altered(good.bytes().len() - 1)),
        ("a trailing byte", trailing),
        ("a manifest in a revocation's place", encode(&Announcement::Revocation(good.bytes().to_vec())).unwrap()),
        ("a cluster that the charter lacks", wrap(manifest(2, "a", |m| m.spec.cluster = 2).bytes().to_vec())),
        ("another licence", wrap(manifest(2, "b", |m| m.licence = "MIT".into()).bytes().to_vec())),
        ("an expired manifest", wrap(manifest(2, "c", |m| m.expires_at = m.issued_at + 1).bytes().to_vec())),
        ("one from the future", wrap(manifest(2, "d", |m| m.issued_at += 800).bytes().to_vec())),
        ("an oversized message", vec![0; 200 << 10]),
    ];
    for (number, (what, bytes)) in hostile.iter().enumerate() {
        let stranger = Stranger::meet(&address, None).await;
        stranger.say(bytes.clone()).await;
        // The same stranger's next message shows that the first has been dealt with.
        let next = manifest(3, &format!("next-{number}"), |_| {});
        stranger.say(wrap(next.bytes().to_vec())).await;
        let arrived = || node.has(next.digest());
        if *what != "an oversized message" {
            eventually(what, arrived).await;
        }
    }
    let honest = Node::hidden(4, &[&node]).await;
    honest.registry.insert_charter(&charter()).unwrap();
    honest.client.wait_connected(PATIENCE).await.unwrap();
    honest.client.announce(announcement(&good)).await.unwrap();
    eventually("the honest manifest is forwarded", || listener.has_heard(&wrap(good.bytes().to_vec()))).await;
    for (what, bytes) in &hostile {
        assert!(!listener.has_heard(bytes), "{what} was forwarded");
    }
    let authors_own = node.registry.manifests(None).unwrap().into_iter().filter(|m| m.author == key(2).public());
    assert_eq!(authors_own.map(|m| m.digest()).collect::<Vec<_>>(), [good.digest()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn this_nodes_own_records_pass_the_same_door() {
    let node = Node::start(1, &[]).await;
    let good = manifest(1, "cats", |_| {});
    let error = node.client.announce(announcement(&good)).await.unwrap_err();
    assert!(error.to_string().contains("charter"), "{error}");
    node.registry.insert_charter(&charter()).unwrap();
    let error = node.client.announce(announcement(&manifest(1, "cats", |m| m.spec.cluster = 9))).await.unwrap_err();
    assert!(error.to_string().contains("cluster"), "{error}");
    assert_eq!(node.client.announce(announcement(&good)).await.unwrap(), 0, "no peers is no error");
    assert_eq!(node.client.announce(announcement(&good)).await.unwrap(), 0, "nor is saying it twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_announced_just_before_a_stop_gets_out() {
    let node = Node::start(1, &[]).await;
    node.registry.insert_charter(&charter()).unwrap();
    let visitor = Node::hidden(2, &[&node]).await;
    visitor.registry.insert_charter(&charter()).unwrap();
    visitor.client.wait_connected(PATIENCE).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(500)).await; // until both take part in gossip
    let last = manifest(2, "last-words", |_| {});
    assert_eq!(visitor.client.announce(announcement(&last)).await.unwrap(), 1);
    visitor.stop().await;
    eventually("the last announcement", || node.has(last.digest())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_one_peer_arrives_whole_though_few_are_judged_at_once() {
    let node = Node::start(1, &[]).await;
    node.registry.insert_charter(&charter()).unwrap();
    let author = Node::hidden(2, &[&node]).await;
    author.registry.insert_charter(&charter()).unwrap();
    author.client.wait_connected(PATIENCE).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let burst: Vec<_> = (0..60).map(|i| manifest(2, &format!("burst-{i}"), |_| {})).collect();
    for manifest in &burst {
        author.client.announce(announcement(manifest)).await.unwrap();
    }
    eventually("the whole burst", || burst.iter().all(|manifest| node.has(manifest.digest()))).await;
}
