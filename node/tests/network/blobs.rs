use crate::{
    fixtures::{Node, PATIENCE, config, eventually, listening, noise},
    stranger::Stranger,
};
use futures::{AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _, future::BoxFuture};
use hdd_node::network::{Error, NetworkConfig, Progress};
use hdd_protocol::{Blob, Digest, protocols};
use libp2p::Stream;
use std::{
    io::{Seek as _, SeekFrom, Write as _},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;

const SIZE: usize = (5 << 20) + 12_345;

/// Small pieces and one round, so that what breaks shows at once.
fn careful(bootstrap: &[&Node]) -> NetworkConfig {
    let mut config = listening(bootstrap);
    (config.limits.piece, config.limits.rounds) = (1 << 20, 1);
    config
}

async fn provider(number: u8, bootstrap: &[&Node], bytes: &[u8]) -> (Node, Blob) {
    let node = Node::start(number, bootstrap).await;
    let blob = node.registry.import_bytes(bytes).unwrap();
    if !bootstrap.is_empty() {
        node.client.wait_connected(PATIENCE).await.unwrap();
    }
    node.client.provide_blob(blob.digest).await.unwrap();
    (node, blob)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_found_through_the_dht_by_nodes_that_know_only_the_bootstrap() {
    let bootstrap = Node::start(1, &[]).await;
    let bytes = noise(1, SIZE);
    let (_provider, blob) = provider(2, &[&bootstrap], &bytes).await;
    let node = Node::start(3, &[&bootstrap]).await;
    node.client.wait_connected(PATIENCE).await.unwrap();
    let seen = Mutex::new(Vec::new());
    let path = fetch_patiently(&node, blob, |p| seen.lock().unwrap().push(p)).await;
    assert!(std::fs::read(&path).unwrap() == bytes);
    let seen = seen.into_inner().unwrap();
    assert_eq!(seen.last().map(|p| (p.done, p.size)), Some((blob.size, blob.size)));
    assert!(seen.is_sorted_by_key(|p| p.done));
    let calls = Mutex::new(0);
    node.client.fetch(blob, |_| *calls.lock().unwrap() += 1).await.unwrap();
    assert_eq!(calls.into_inner().unwrap(), 0, "what is here is not fetched");
}

/// The provider's record may be on its way still.
async fn fetch_patiently(node: &Node, blob: Blob, progress: impl Fn(Progress) + Send + Sync) -> std::path::PathBuf {
    let start = std::time::Instant::now();
    loop {
        match node.client.fetch(blob, &progress).await {
            Ok(path) => return path,
            Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_fetch_goes_on_at_another_provider_where_the_first_died() {
    let bootstrap = Node::start(1, &[]).await;
    let bytes = noise(2, SIZE);
    let (first, blob) = provider(2, &[&bootstrap], &bytes).await;
    let node = Node::with(3, TempDir::new().unwrap(), careful(&[&bootstrap, &first]), None).await;
    while node.client.peers().await.unwrap().len() < 2 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (stop, stopped) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    // Holds the fetch after its second piece until the provider is dead.
    let (stopping, gone) = (stop.clone(), stopped.clone());
    let hold = move |progress: Progress| {
        if progress.done >= 2 << 20 {
            stopping.store(true, Ordering::SeqCst);
            tokio::task::block_in_place(|| {
                while !gone.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
        }
    };
    let client = node.client.clone();
    let fetching = tokio::spawn(async move { client.fetch(blob, hold).await });
    eventually("two pieces arrive", || stop.load(Ordering::SeqCst)).await;
    first.stop().await;
    stopped.store(true, Ordering::SeqCst);
    let fetched = fetching.await.unwrap();
    let Err(Error::ProviderFailed { done, .. }) = fetched else { panic!("{fetched:?}") };
    assert!((2 << 20..blob.size).contains(&done), "{done}");

    let (_second, _) = provider(4, &[&bootstrap], &bytes).await;
    let least = Mutex::new(u64::MAX);
    let note = |p: Progress| {
        let mut least = least.lock().unwrap();
        *least = p.done.min(*least);
    };
    let path = fetch_patiently(&node, blob, note).await;
    assert!(std::fs::read(&path).unwrap() == bytes);
    assert!(least.into_inner().unwrap() > done, "goes on where it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_whose_file_has_rotted_does_not_spread_it() {
    let bytes = noise(3, SIZE);
    let (rotten, blob) = provider(1, &[], &bytes).await;
    let path = rotten.registry.blob_path(blob.digest).unwrap();
    let mut permissions = std::fs::metadata(&path).unwrap().permissions();
    #[allow(clippy::permissions_set_readonly_false)]
    permissions.set_readonly(false);
    std::fs::set_permissions(&path, permissions).unwrap();
    let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(3 << 20)).unwrap();
    file.write_all(&[!bytes[3 << 20]]).unwrap();
    let node = Node::with(2, TempDir::new().unwrap(), careful(&[&rotten]), None).await;
    node.client.wait_connected(PATIENCE).await.unwrap();
    let error = node.client.fetch(blob, |_| {}).await.unwrap_err();
    assert!(matches!(error, Error::ProviderFailed { done, .. } if done >= 3 << 20), "{error}");
    let (_sound, _) = provider(3, &[&rotten], &bytes).await;
    let path = fetch_patiently(&node, blob, |_| {}).await;
    assert!(std::fs::read(path).unwrap() == bytes);
}

/// Says that it has everything, and sends noise.
fn lie(mut stream: Stream) -> BoxFuture<'static, ()> {
    async move {
        let mut request = [0; 4 + 64];
        let _ = stream.read(&mut request).await;
        let mut answer = hdd_protocol::encode(&(0u8, SIZE as u64)).unwrap(); // the first variant: here
        answer.splice(0..0, (answer.len() as u32).to_le_bytes());
        let garbage = noise(9, 64 << 10);
        let mut frame = (garbage.len() as u32).to_le_bytes().to_vec();
        frame.extend(garbage);
        let _ = stream.write_all(&answer).await;
        while stream.write_all(&frame).await.is_ok() {}
    }
    .boxed()
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_told_from_other_failures_and_an_honest_provider_still_serves() {
    let node = Node::with(1, TempDir::new().unwrap(), careful(&[]), None).await;
    let bytes = noise(4, SIZE);
    let blob = Blob { digest: Digest::of(&bytes), size: SIZE as u64 };
    let error = node.client.fetch(blob, |_| {}).await.unwrap_err();
    assert!(matches!(error, Error::NoProvider { asked: 0, .. }), "{error}");

    let _liar = Stranger::meet(node.address.as_ref().unwrap(), Some((protocols::BLOB, lie))).await;
    node.client.wait_connected(PATIENCE).await.unwrap();
    let error = node.client.fetch(blob, |_| {}).await.unwrap_err();
    assert!(matches!(error, Error::WrongBytes { .. }), "{error}");

    let (_honest, _) = provider(2, &[&node], &bytes).await;
    let path = fetch_patiently(&node, blob, |_| {}).await;
    assert!(std::fs::read(path).unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_the_disk_cannot_hold_is_refused_before_anything_moves() {
    let node = Node::with(1, TempDir::new().unwrap(), config(&[]), None).await;
    let error = node.client.fetch(Blob { digest: Digest::of(b"huge"), size: 1 << 50 }, |_| {}).await.unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_frames_end_their_stream_and_nothing_else() {
    let bytes = noise(5, SIZE);
    let (node, blob) = provider(1, &[], &bytes).await;
    let stranger = Stranger::meet(node.address.as_ref().unwrap(), None).await;
    for frame in [&[255, 255, 255, 255, 0][..], &[65, 0, 0, 0], &[2, 0, 0, 0, 7, 7]] {
        let mut stream = stranger.open(node.client.peer_id(), protocols::BLOB).await;
        stream.write_all(frame).await.unwrap();
        stream.flush().await.unwrap();
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok() && answer.is_empty(), "{frame:?}: {answer:?}");
    }
    let other = Node::start(2, &[&node]).await;
    other.client.wait_connected(PATIENCE).await.unwrap();
    let path = other.client.fetch(blob, |_| {}).await.unwrap();
    assert!(std::fs::read(path).unwrap() == bytes);
}

/// Has everything, and sends a byte now and then.
fn dribble(mut stream: Stream) -> BoxFuture<'static, ()> {
    async move {
        let mut answer = hdd_protocol::encode(&(0u8, SIZE as u64)).unwrap(); // the first variant: here
        answer.splice(0..0, (answer.len() as u32).to_le_bytes());
        let _ = stream.write_all(&answer).await;
        while stream.write_all(&[1, 0, 0, 0, 0]).await.is_ok() && stream.flush().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    .boxed()
}

/// At least 1 MiB a second.
fn impatient() -> NetworkConfig {
    let mut config = careful(&[]);
    (config.limits.slowest, config.limits.slowest_over) = (1 << 20, Duration::from_millis(300));
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_dribbles_is_given_up() {
    let node = Node::with(1, TempDir::new().unwrap(), impatient(), None).await;
    let _dribbler = Stranger::meet(node.address.as_ref().unwrap(), Some((protocols::BLOB, dribble))).await;
    node.client.wait_connected(PATIENCE).await.unwrap();
    let blob = Blob { digest: Digest::of(b"slow"), size: SIZE as u64 };
    let fetched = tokio::time::timeout(PATIENCE, node.client.fetch(blob, |_| {})).await;
    let error = fetched.expect("given up in time").unwrap_err();
    assert!(matches!(&error, Error::ProviderFailed { why, .. } if why.contains("bytes a second")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_downloader_that_dawdles_is_given_up() {
    let node = Node::with(1, TempDir::new().unwrap(), impatient(), None).await;
    let blob = node.registry.import_bytes(&noise(6, SIZE)).unwrap();
    let stranger = Stranger::meet(node.address.as_ref().unwrap(), None).await;
    let mut stream = stranger.open(node.client.peer_id(), protocols::BLOB).await;
    let mut request = hdd_protocol::encode(&(blob.digest, 0u64, blob.size)).unwrap();
    request.splice(0..0, (request.len() as u32).to_le_bytes());
    stream.write_all(&request).await.unwrap();
    stream.flush().await.unwrap();
    let (mut buffer, mut total) = ([0; 1 << 10], 0);
    let reading = async {
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            total += count;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("given up in time");
    assert!((1..SIZE).contains(&total), "{total}");
}
