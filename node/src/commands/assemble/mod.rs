//! `hdd-node assemble`: collects experts, tests them, trains the router or takes another's, and serves pictures.

mod args;
mod collector;
mod desk;
mod publish;
mod router;
mod tenure;
mod weights;

pub use args::Args;

use crate::{Error, Result, node::Node, settings::Settings};
use collector::{Collector, not_announced};
use desk::Desk;
use hdd_protocol::{Charter, Verified};
use hdd_router_service::{Engine, EngineConfig};
use router::{Appointed, Search};
use std::sync::Arc;

/// Serves until it is stopped.
///
/// # Errors
/// A charter that no peer has; images that cannot be read; a router that is refused; what training the router, the registry
/// or the network met.
pub async fn run(args: Args, settings: Settings) -> Result<()> {
    args.check()?;
    let registry = settings.registry()?;
    let desk = Arc::new(Desk::new(settings.key()?));
    let node = Node::host(&settings, "assemble", registry, Some(desk.clone()), false).await?;
    let result = assemble(&node, &args, &settings, &desk).await;
    node.stop().await;
    // The device thread ends after the step at hand: its clients have left with the network.
    tokio::task::spawn_blocking(move || drop(desk)).await?;
    match result {
        Err(Error::Interrupted) => Ok(()), // a stop is how this work is meant to end
        result => result,
    }
}

async fn assemble(node: &Node, args: &Args, settings: &Settings, desk: &Arc<Desk>) -> Result<()> {
    let join = async {
        node.greet().await?;
        node.charter().await
    };
    let charter = settings.shutdown.interrupts(join).await?;
    let engine = Arc::new(start_engine(args.clone(), charter.clone()).await?);
    // Training polls for the stop, so that it can save before it ends.
    let search = Search { node, charter: &charter, args, engine: &engine, settings };
    let mut collector = Collector::new(node, charter.clone(), args.policy(), engine.clone(), desk.clone());
    loop {
        let Appointed { weights, manifest } = search.run().await?;
        desk.open(engine.clone(), charter.clone(), weights);
        node.client.provide_blob(weights).await.unwrap_or_else(not_announced);
        let serve = async {
            tokio::select! {
                ended = collector.run() => ended.map(|()| true),
                given_up = tenure::tend(node, &charter, manifest) => given_up.map(|()| false),
            }
        };
        if settings.shutdown.interrupts(serve).await? {
            return Ok(());
        }
        desk.close();
    }
}

async fn start_engine(args: Args, charter: Verified<Charter>) -> Result<Engine> {
    let start = move || {
        args.device.apply();
        let images = args.images(&charter)?;
        let config = EngineConfig {
            images,
            charter,
            device: args.device.device()?,
            threads: args.device.threads(),
            max_loss_ratio: args.max_loss,
            queue: usize::from(args.queue),
        };
        Ok(Engine::start(config)?)
    };
    tokio::task::spawn_blocking(start).await?
}
