//! `hdd-node key`.

use crate::{Error, Result, keys, settings::Settings, table};
use clap::Subcommand;
use libp2p::PeerId;
use std::path::PathBuf;

/// What to do with the key.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  hdd-node key show")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print the public key and the peer id; makes the key if there is none
    #[command(after_help = "Example:\n  hdd-node key show --json")]
    Show,
    /// Copy the secret key to a file; keep it where nobody else reads it
    #[command(after_help = "Example:\n  hdd-node key export ~/backup/hdd.key")]
    Export {
        /// A file that does not exist yet
        file: PathBuf,
    },
    /// Take the secret key from a file that `key export` wrote
    #[command(after_help = "Example:\n  hdd-node key import ~/backup/hdd.key")]
    Import {
        /// A file of 64 hexadecimal digits that only you can read
        file: PathBuf,
        /// Replace the key that this data folder has
        #[arg(long)]
        force: bool,
    },
}

/// Does it.
///
/// # Errors
/// As [`keys::read`] and [`keys::write`].
pub async fn run(args: Args, settings: Settings) -> Result<()> {
    let path = keys::path(&settings.data);
    match args.action {
        Action::Show => {}
        Action::Export { file } => {
            keys::write(&file, &keys::read(&path)?, false)?;
            eprintln!("wrote the secret key to {}; whoever reads it can sign as you", file.display());
        }
        Action::Import { file, force } => {
            let key = keys::read(&file)?;
            std::fs::create_dir_all(&settings.data).map_err(Error::io("make the data folder", &settings.data))?;
            keys::write(&path, &key, force)?;
        }
    }
    let author = settings.key()?.public();
    let peer = crate::network::peer_id(author).ok_or_else(|| Error::KeyFormat { path })?;
    if settings.json {
        return table::print_json(&serde_json::json!({ "author": author, "peer_id": PeerId::to_string(&peer) }));
    }
    table::print(&format!("author   {author}\npeer id  {peer}\n"))
}
