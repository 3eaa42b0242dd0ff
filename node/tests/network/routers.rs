use crate::{
    fixtures::{Node, PATIENCE, charter, eventually, key, router},
    stranger::Stranger,
};
use hdd_node::network::Event;
use hdd_protocol::{Announcement, Revocation, RevocationTarget, RouterManifest, Signed, Verified, encode};

fn announcement(router: &Verified<RouterManifest>) -> Announcement {
    Announcement::Router(router.bytes().to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn routers_travel_by_gossip_and_to_late_joiners_as_manifests_do() {
    let middle = Node::start(1, &[]).await;
    let (author, third) = (Node::hidden(2, &[&middle]).await, Node::hidden(3, &[&middle]).await);
    author.registry.insert_charter(&charter()).unwrap();
    for node in [&author, &third] {
        node.client.wait_connected(PATIENCE).await.unwrap();
    }
    let mut events = third.client.events();
    let first = router(2, |_| {});
    author.client.announce(announcement(&first)).await.unwrap();
    eventually("the router arrives", || third.has(first.digest())).await;
    let arrived = async { while events.recv().await.unwrap() != Event::RouterArrived(first.digest()) {} };
    tokio::time::timeout(PATIENCE, arrived).await.unwrap();

    let second = router(2, |r| r.sequence = 2);
    author.client.announce(announcement(&second)).await.unwrap();
    eventually("its next version takes its place", || third.has(second.digest()) && !third.has(first.digest())).await;
    let late = Node::hidden(4, &[&middle]).await;
    eventually("a late joiner has it too", || late.has(second.digest())).await;

    let revocation = Revocation {
        charter: charter().digest(),
        author: key(2).public(),
        target: RevocationTarget::Manifest(second.digest()),
        reason: "wrong pictures".into(),
        issued_at: 1,
    };
    let revocation = Signed::sign(revocation, &key(2)).unwrap();
    author.client.announce(Announcement::Revocation(revocation.bytes().to_vec())).await.unwrap();
    eventually("it is taken back", || late.registry.routers(None).unwrap().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn routers_that_break_the_rules_are_neither_stored_nor_forwarded() {
    let node = Node::start(1, &[]).await;
    node.registry.insert_charter(&charter()).unwrap();
    let address = node.address.clone().unwrap();
    let listener = Stranger::meet(&address, None).await;
    let wrap = |router: Verified<RouterManifest>| encode(&announcement(&router)).unwrap();
    let mut altered = router(2, |_| {}).bytes().to_vec();
    *altered.last_mut().unwrap() ^= 1;
    let hostile = [
        ("an altered signature", encode(&Announcement::Router(altered)).unwrap()),
        (
            "a router in a manifest's place",
            encode(&Announcement::Manifest(router(2, |_| {}).bytes().to_vec())).unwrap(),
        ),
        ("another shape", wrap(router(2, |r| r.training.recipe.depth = 1))),
        ("clusters that the charter lacks", wrap(router(2, |r| r.training.prior = vec![0.5, 0.25, 0.25]))),
        ("weights too large to be a router's", wrap(router(2, |r| r.weights.size = 1 << 30))),
        ("another licence", wrap(router(2, |r| r.licence = "MIT".into()))),
        ("an expired one", wrap(router(2, |r| r.expires_at = r.issued_at + 1))),
    ];
    for (number, (what, bytes)) in (10u8..).zip(&hostile) {
        let stranger = Stranger::meet(&address, None).await;
        stranger.say(bytes.clone()).await;
        // The same stranger's next message shows that the first has been dealt with.
        let next = router(number, |_| {});
        stranger.say(wrap(next.clone())).await;
        eventually(what, || node.has(next.digest())).await;
    }
    let honest = Node::hidden(4, &[&node]).await;
    honest.registry.insert_charter(&charter()).unwrap();
    honest.client.wait_connected(PATIENCE).await.unwrap();
    let last = router(4, |_| {});
    honest.client.announce(announcement(&last)).await.unwrap();
    let last = wrap(last);
    eventually("the honest router is forwarded", || listener.has_heard(&last)).await;
    for (what, bytes) in &hostile {
        assert!(!listener.has_heard(bytes), "{what} was forwarded");
    }
    assert!(node.registry.routers(None).unwrap().iter().all(|r| r.author != key(2).public()));
}
