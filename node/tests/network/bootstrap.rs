use crate::fixtures::{Node, PATIENCE, config, eventually, key, listening};
use hdd_node::network::{self, Direction, Error, Event, Multiaddr, NetworkConfig};
use std::{net::TcpListener, sync::Arc, time::Duration};
use tempfile::TempDir;

fn at(port: u16) -> Multiaddr {
    format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_bootstrap_is_named_with_its_cause_and_found_when_it_comes_back() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let joining = NetworkConfig { bootstrap: vec![at(port)], ..config(&[]) };
    let node = Node::with(1, TempDir::new().unwrap(), joining, None).await;
    let mut events = node.client.events();
    let error = node.client.wait_connected(Duration::from_millis(1500)).await.unwrap_err().to_string();
    assert!(error.contains(&at(port).to_string()) && error.contains("refused"), "{error}");
    let event = events.recv().await.unwrap();
    assert!(matches!(&event, Event::BootstrapFailed { addr, cause } if *addr == at(port) && cause.contains("refused")));

    let back = NetworkConfig { listen: vec![at(port)], ..config(&[]) };
    let back = Node::with(2, TempDir::new().unwrap(), back, None).await;
    assert_eq!(node.client.wait_connected(PATIENCE).await.unwrap(), 1);
    let peers = node.client.peers().await.unwrap();
    assert_eq!((peers[0].id, peers[0].direction), (back.client.peer_id(), Direction::Outbound));
    assert!(peers[0].agent.starts_with("hdd-node/"), "{peers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_bootstrap_the_error_says_what_to_do() {
    let node = Node::hidden(1, &[]).await;
    let error = node.client.wait_connected(Duration::from_millis(100)).await.unwrap_err();
    assert!(error.to_string().contains("--bootstrap"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_an_error_that_names_it() {
    let taken = Node::start(1, &[]).await;
    let port = taken.address.clone().unwrap().into_iter().take(2).collect::<Multiaddr>();
    let folder = TempDir::new().unwrap();
    let registry = Arc::new(hdd_registry::Registry::open(folder.path()).unwrap());
    let config = NetworkConfig { listen: vec![port.clone()], ..config(&[]) };
    let Err(error) = network::start(config, &key(2), registry, None).await else { panic!("two nodes on {port}") };
    assert!(matches!(&error, Error::Listen { address, .. } if *address == port), "{error}");
    assert!(error.to_string().contains("another"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_are_remembered_and_found_again_without_a_bootstrap() {
    let other = Node::start(1, &[]).await;
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("peers.json");
    let first = NetworkConfig { peers_file: Some(file.clone()), ..config(&[&other]) };
    let node = Node::with(2, folder, first, None).await;
    node.client.wait_connected(PATIENCE).await.unwrap();
    let folder = node.stop().await;
    let again = NetworkConfig { peers_file: Some(file), ..config(&[]) };
    let node = Node::with(2, folder, again, None).await;
    assert_eq!(node.client.wait_connected(PATIENCE).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn quic_connects_as_well() {
    let quic = NetworkConfig { listen: vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()], ..listening(&[]) };
    let other = Node::with(1, TempDir::new().unwrap(), quic, None).await;
    let node = Node::hidden(2, &[&other]).await;
    assert_eq!(node.client.wait_connected(PATIENCE).await.unwrap(), 1);
    drop(node);
    let start = std::time::Instant::now();
    while !other.client.peers().await.unwrap().is_empty() {
        assert!(start.elapsed() < PATIENCE, "a node that is dropped leaves");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    eventually("the address is QUIC", || other.address.clone().unwrap().to_string().contains("quic-v1")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_calls_is_not_remembered() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("peers.json");
    let host = NetworkConfig { peers_file: Some(file.clone()), ..listening(&[]) };
    let host = Node::with(1, folder, host, None).await;
    let visitor = Node::start(2, &[&host]).await;
    host.client.wait_connected(PATIENCE).await.unwrap();
    let _folder = host.stop().await;
    let remembered = std::fs::read_to_string(file).unwrap_or_default();
    assert!(!remembered.contains(&visitor.client.peer_id().to_string()), "{remembered}");
}
