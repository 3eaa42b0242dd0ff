//! `hdd-node contribute`: trains one expert on one cluster, publishes it and keeps it available.
//!
//! The node joins the network first and stays in it while a thread of its own trains. Run again, the same command goes on
//! where it was: training from the last checkpoint, publishing if the weights are new, then serving them.

mod args;
mod publish;
mod recipe;
mod training;

pub use args::Args;
pub(super) use training::on_thread;

use crate::{Error, Result, node::Node, settings::Settings};
use training::{Job, Outcome};

/// Trains, publishes, and serves until it is stopped.
///
/// # Errors
/// [`Error::Usage`] for flags that the charter or an earlier run under the name excludes; what training, the registry or
/// the network met.
pub async fn run(args: Args, settings: Settings) -> Result<()> {
    let registry = settings.registry()?;
    if let Some(charter) = settings.local_charter(&registry)? {
        args.check(&charter)?; // before the network is joined
    }
    let node = Node::host(&settings, "contribute", registry, None, false).await?;
    let result = contribute(&node, args, &settings).await;
    node.stop().await;
    result
}

async fn contribute(node: &Node, args: Args, settings: &Settings) -> Result<()> {
    node.greet().await?;
    let charter = settings.shutdown.interrupts(node.charter()).await?;
    args.check(&charter)?;
    eprintln!("charter {} ({}): {}", charter.name, charter.digest().short(), charter.data_terms);
    // What the network knows decides the cluster and the next sequence number.
    let join = async {
        node.connected().await?;
        node.settled().await;
        Ok(())
    };
    match settings.shutdown.interrupts(join).await {
        Ok(()) => {}
        Err(Error::Interrupted) => return Err(Error::Interrupted),
        Err(error) => eprintln!("training without the network for now: {}", error.chain()),
    }
    let now = crate::clock::unix_now();
    let mut known = node.registry.manifests(Some(charter.digest()))?;
    known.retain(|m| m.check_against(&charter, now).is_ok());
    let folder = settings.data.join("experts").join(&args.name);
    let (shutdown, plan) = (settings.shutdown.clone(), args.clone());
    let (own_charter, own_folder) = (charter.clone(), folder.clone());
    // Training owns its thread and polls for the stop, so that it can save before it ends.
    let outcome =
        training::on_thread(move || Job::prepare(&plan, &own_charter, &known, &own_folder)?.run(&shutdown)).await?;
    let checkpoint = match outcome {
        Outcome::Finished(checkpoint) => checkpoint,
        Outcome::Interrupted(checkpoint) => {
            let step = checkpoint.config.step;
            eprintln!("stopped and saved at step {step}; run the same command again to go on");
            return Ok(());
        }
    };
    if args.no_publish {
        eprintln!("trained and not published; the checkpoint is {}", checkpoint.folder.display());
        return Ok(());
    }
    let manifest = publish::publish(node, &charter, &args, checkpoint).await?;
    eprintln!(
        "published {} as {}, licensed {}; serving it until stopped with Ctrl-C",
        manifest.name,
        manifest.digest().short(),
        manifest.licence
    );
    settings.shutdown.until(publish::keep_available(node, &charter, manifest)).await
}

impl From<training::Died> for Error {
    fn from(_: training::Died) -> Self {
        Self::Training("its thread ended without a word; the last checkpoint is kept, run the command again".into())
    }
}
