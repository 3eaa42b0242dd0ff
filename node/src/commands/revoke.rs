//! `hdd-node revoke`.

use crate::{
    Error, Result,
    clock::unix_now,
    control::{Reply, Request},
    node::Source,
    settings::Settings,
};
use hdd_protocol::{Announcement, Digest, Revocation, RevocationTarget, Signed};

/// What is taken back.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Every version under the name is taken back, earlier and later ones: the name cannot be used again.\n\n\
                  Example:\n  hdd-node revoke apples --reason 'trained on pictures that I may not use'"
)]
pub struct Args {
    /// Name of an expert of yours, or the whole digest (64 digits) of one manifest of yours, of an expert or a router
    name: String,
    /// Why, for others to read; at most 200 bytes
    #[arg(long)]
    reason: String,
    /// Revoke even if no such expert of yours is known here
    #[arg(long)]
    force: bool,
}

/// Signs the revocation and publishes it.
///
/// # Errors
/// [`Error::Usage`] if no expert of this key has the name; the protocol's for a reason that is too long.
pub async fn run(args: Args, settings: Settings) -> Result<()> {
    let key = settings.key()?;
    let target = match args.name.parse::<Digest>() {
        Ok(digest) => RevocationTarget::Manifest(digest),
        Err(_) => RevocationTarget::Expert(args.name.clone()),
    };
    let charter = settings.charter_digest()?;
    let revocation = Revocation { charter, author: key.public(), target, reason: args.reason, issued_at: unix_now() };
    let signed = Signed::sign(revocation, &key)?;

    let source = Source::find(&settings).await?;
    if let (false, Reply::Experts(experts)) = (args.force, source.ask(Request::Experts).await?) {
        let routers = match source.ask(Request::Routers).await? {
            Reply::Routers(routers) => routers,
            _ => Vec::new(),
        };
        let covered = experts.iter().any(|e| signed.covers(charter, e.author, &e.name, e.manifest))
            || routers.iter().any(|r| signed.covers(charter, r.author, "", r.manifest));
        if !covered {
            source.close().await;
            let name = args.name;
            return Err(Error::Usage(format!(
                "no expert of yours is named '{name}' here, and no router is; `hdd-node experts` and `hdd-node routers` list them, \
                 --force revokes anyway"
            )));
        }
    }
    let record = hex::encode(hdd_protocol::encode(&Announcement::Revocation(signed.bytes().to_vec()))?);
    let reply = source.ask(Request::Announce { record }).await;
    source.close().await;
    let Reply::Announced(peers) = reply? else { return Ok(()) };
    match peers {
        0 => eprintln!("revoked here; no peer was connected, others learn of it when this node next meets one"),
        _ => eprintln!("revoked; told {peers} peers"),
    }
    Ok(())
}
