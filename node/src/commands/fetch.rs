//! `hdd-node fetch`.

use crate::{Error, Result, files, node::Node, progress::Progress, settings::Settings, table};
use hdd_protocol::Blob;
use hdd_registry::Registry;
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

/// What to fetch.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  hdd-node fetch 3f9c02ab1d --out expert.safetensors --bootstrap /ip4/192.0.2.7/tcp/4801"
)]
pub struct Args {
    /// Digest of a manifest or of a file that one names, or its first 8 or more digits
    #[arg(value_parser = parse_id)]
    id: String,
    /// Also copy the file there
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// A digest's first 8 to 64 digits.
pub(super) fn parse_id(text: &str) -> Result<String, String> {
    let digits = text.bytes().all(|b| b.is_ascii_hexdigit());
    if digits && (8..=64).contains(&text.len()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("expected 8 to 64 hexadecimal digits".into())
    }
}

/// Fetches it, verified, and prints where it lies.
///
/// # Errors
/// [`Error::Unknown`], [`Error::Ambiguous`]; the network's: no provider, provider failed, wrong bytes, no space.
pub async fn run(args: Args, settings: Settings) -> Result<()> {
    args.out.as_deref().map_or(Ok(()), files::check_target)?;
    let node = Node::visit(&settings).await?;
    let result = fetch(&node, &args).await;
    node.stop().await;
    let (blob, path) = result?;
    if settings.json {
        return table::print_json(&serde_json::json!({ "digest": blob.digest, "size": blob.size, "path": path }));
    }
    table::print(&format!("{}\n", path.display()))
}

async fn fetch(node: &Node, args: &Args) -> Result<(Blob, PathBuf)> {
    if node.is_guest() && args.out.is_none() {
        return Err(Error::Usage("a running node has this data folder; say where to with --out FILE".into()));
    }
    let mut found = find(&node.registry, &args.id)?;
    if found.is_none_or(|blob| node.registry.has_blob(blob.digest).is_none()) {
        let peers = node.connected().await?;
        if found.is_none() {
            node.settled().await;
            found = find(&node.registry, &args.id)?;
        }
        if found.is_none() {
            return Err(Error::Unknown { id: args.id.clone(), peers });
        }
    }
    let Some(blob) = found else { return Err(Error::Unknown { id: args.id.clone(), peers: 0 }) };
    let bar = Progress::bytes(format!("fetch {}", blob.digest.short()), blob.size);
    let path = node.client.fetch(blob, |progress| bar.set(progress.done)).await?;
    bar.finish("is here and verified");
    match args.out.clone() {
        None => Ok((blob, path)),
        Some(out) => tokio::task::spawn_blocking(move || copy(&path, &out).map(|()| (blob, out))).await?,
    }
}

/// The blob that `id` begins, or whose manifest it begins.
fn find(registry: &Registry, id: &str) -> Result<Option<Blob>> {
    let mut found: Vec<Blob> =
        registry.blobs()?.into_iter().filter(|blob| blob.digest.to_string().starts_with(id)).collect();
    let experts = registry.manifests(None)?.into_iter().map(|m| (m.digest(), m.weights));
    let routers = registry.routers(None)?.into_iter().map(|m| (m.digest(), m.weights));
    for (manifest, weights) in experts.chain(routers) {
        if [manifest, weights.digest].iter().any(|digest| digest.to_string().starts_with(id)) {
            found.push(weights);
        }
    }
    found.dedup_by_key(|blob| blob.digest);
    match found.as_slice() {
        [] => Ok(None),
        [first, rest @ ..] if rest.iter().all(|blob| blob.digest == first.digest) => Ok(Some(*first)),
        _ => Err(Error::Ambiguous { id: id.into() }),
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut source = File::open(from).map_err(Error::io("read", from))?;
    files::replace(to, |file| io::copy(&mut source, file).map(drop))
}
