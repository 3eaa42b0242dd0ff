//! What cannot work: each is one error that says what to do, and leaves nothing behind.

use crate::fixtures::{Home, Manner, addresses, charter, hdd_node};
use hdd_node::{Error, keys};
use std::{fs, os::unix::fs::PermissionsExt as _};

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregator_that_fails_or_lies_leaves_an_error_and_no_file() {
    let charter = charter();
    for (manner, word) in [
        (Manner::WrongSeed, "seed 7 where 0"),
        (Manner::TooMany, "more pictures"),
        (Manner::HalfAPicture, "do not fit its sides"),
        (Manner::EndsEarly, "1 of 2 pictures"),
        (Manner::Vanishes, "lost the connection"),
        (Manner::Refuses, "come back at noon"),
    ] {
        let served = Home::new(&charter, &[]);
        let aggregator = served.aggregator(&charter, manner).await;
        let client = Home::new(&charter, &addresses(&aggregator).await);
        let out = client.path("a.png").display().to_string();
        let error = client.run(&["sample", "--prompt", "x", "--count", "2", "--out", &out]).await.unwrap_err();
        assert!(error.chain().contains(word), "{word}: {}", error.chain());
        assert!(!client.path("a.png").exists());
        aggregator.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_checked_against_the_offer_and_the_waiting_for_an_aggregator_ends() {
    let charter = charter();
    let served = Home::new(&charter, &[]);
    let aggregator = served.aggregator(&charter, Manner::Honest).await;
    let client = Home::new(&charter, &addresses(&aggregator).await);
    let error = client.run(&["sample", "--prompt", "x", "--count", "9"]).await.unwrap_err();
    assert!(error.chain().contains("count is 9, must be 1 to 8"), "{}", error.chain());
    aggregator.stop().await;

    let quiet = Home::new(&charter, &[]);
    let host = quiet.host(&charter).await;
    let client = Home::new(&charter, &addresses(&host).await);
    let error = client.run(&["sample", "--prompt", "x", "--wait", "1"]).await.unwrap_err();
    assert!(matches!(error, Error::NoAggregator { .. }), "{error}");
    assert!(error.to_string().contains("found in 1 s") && error.to_string().contains("hdd-node assemble"), "{error}");
    host.stop().await;

    let alone = Home::new(&charter, &[]);
    let error = alone.run(&["sample", "--prompt", "x"]).await.unwrap_err();
    assert!(matches!(error, Error::NoPeers), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_that_cannot_be_written_are_refused_before_any_waiting() {
    let charter = charter();
    let home = Home::new(&charter, &[]);
    for out in ["a.jpg", "no/such/folder/a.png"] {
        let out = home.path(out).display().to_string();
        let error = home.run(&["sample", "--prompt", "x", "--out", &out]).await.unwrap_err();
        assert!(matches!(error, Error::Usage(_)), "{error}");
        assert!(!home.data().exists());
    }
}

#[test]
fn the_process_reports_errors_on_standard_error_and_in_its_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().display().to_string();
    let run = |words: &[&str]| {
        let output = hdd_node(words).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let (code, out, _) = run(&[]);
    assert!(code == 0 && out.contains("Three roles"), "{out}");
    let (code, out, _) = run(&["--version"]);
    assert!(code == 0 && out.contains("wire version 1") && out.contains("libtorch"), "{out}");
    let (code, out, _) = run(&["key", "show", "--data", &data]);
    assert!(code == 0 && out.contains("peer id  12D3Koo"), "{out}");

    let key = keys::path(folder.path());
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let (code, out, err) = run(&["key", "show", "--data", &data]);
    assert!(code == 1 && out.is_empty() && err.starts_with("error: ") && err.contains("chmod 600"), "{err}");
    let (code, _, err) = run(&["key", "import", "/no/such/file", "--data", &data]);
    assert!(code == 1 && err.contains("\n  caused by: "), "{err}");
    let (code, _, err) = run(&["sample", "--prompt", "x", "--mode", "full", "--k", "3", "--data", &data]);
    assert!(code == 2 && err.contains("--mode topk"), "{err}");
}

/// What cannot be is said before the network is joined, in one error, and leaves neither a key nor a file.
#[cfg(feature = "torch")]
#[test]
fn flags_and_paths_are_refused_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (data, empty, lone, out) = (path("data"), path("empty"), path("lone.safetensors"), path("out"));
    fs::create_dir(&empty).unwrap();
    fs::write(&lone, "weights without a description").unwrap();
    let nowhere = path("no/such/folder/out");
    let table: [(&[&str], &str); 15] = [
        (&["contribute", "--cluster", "9"], "no cluster 9; charter emoji32 has 0 to 3"),
        (&["contribute", "--limit", "0"], "--limit"),
        (&["contribute", "--steps", "0"], "steps must be 1 to"),
        (&["contribute", "--learning-rate", "-1"], "learning_rate is -1, must be"),
        (&["contribute", "--width", "33"], "width is 33"),
        (&["contribute", "--licence", "GPL-3.0"], "CC-BY-4.0"),
        (&["contribute", "--init", &empty], "holds no config.json; give the folder of an import or of a checkpoint"),
        (&["predict", "--checkpoint", &empty, "--inputs", &lone, "--output", &out], "holds no config.json"),
        (&["predict", "--checkpoint", &empty, "--inputs", &lone, "--output", &nowhere], "its folder does not exist"),
        (&["encode", "text", "--model", &empty, "--prompt", "x", "--output", &out], "holds no config.json"),
        (&["import", "--from", "hdd", &lone, "--out", &out], "holds no config.json"),
        (&["import", "--from", "dit", &lone, "--out", &empty], "exists already"),
        (&["fetch", "0123456789", "--out", &nowhere], "its folder does not exist"),
        (&["evaluate", "--prompt", "noto nothing of the kind", "--out", &path("a.png")], "names no image"),
        (&["evaluate", "--prompt", "noto red apple", "--report", &nowhere], "its folder does not exist"),
    ];
    for (line, word) in table {
        let output = hdd_node(&[line, &["--data", &data]].concat()).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(error.matches("error:").count(), 1, "{line:?}: {error}");
        assert!(!output.status.success() && error.contains(word), "{line:?}: {error}");
        assert!(!keys::path(data.as_ref()).exists(), "{line:?} made a key");
    }
    let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(
        left.iter().filter(|name| !["data", "empty", "lone.safetensors"].iter().any(|n| name == n)).count(),
        0,
        "{left:?}"
    );
}

#[cfg(feature = "torch")]
#[test]
fn a_router_file_that_is_refused_is_named_and_not_taken_in() {
    let folder = tempfile::tempdir().unwrap();
    let (data, file) = (folder.path().join("data"), folder.path().join("router.safetensors"));
    fs::write(&file, "no weights at all").unwrap();
    let words = ["assemble", "--no-images", "--listen", "/ip4/127.0.0.1/tcp/0", "--router"].map(String::from);
    let paths = [file.display().to_string(), "--data".into(), data.display().to_string()];
    let line: Vec<&str> = words.iter().chain(&paths).map(String::as_str).collect();
    let output = hdd_node(&line).env("HDD_THREADS", "1").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(2) && error.contains(&format!("error: --router {}: refused", paths[0])),
        "{error}"
    );
    assert_eq!(fs::read_dir(data.join("blobs")).unwrap().count(), 0);
}
