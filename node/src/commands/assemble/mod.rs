//! `hdd-node assemble`: collects experts, tests them, trains the router, and serves pictures.

mod collector;
mod desk;

use crate::{
    Error, Result,
    node::Node,
    progress::Progress,
    settings::Settings,
    torch::{DeviceArgs, ImageArgs},
};
use collector::Collector;
use desk::Desk;
use hdd_protocol::{Charter, PublicKey, RouterRecipe, Verified};
use hdd_router_service::{Engine, EngineConfig, Policy, RouterStage};
use std::sync::Arc;

/// Whose experts are taken, and how they are served.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "The router is trained on this machine's images once, and kept in the data folder.\n\n\
                        Example:\n  hdd-node assemble --per-cluster 2 --listen /ip4/0.0.0.0/tcp/4801")]
pub struct Args {
    /// Take experts of this author only; repeat it for several
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    allow: Vec<PublicKey>,
    /// Never take experts of this author; repeat it for several
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    block: Vec<PublicKey>,
    /// Most experts a cluster, each of which takes memory; 0 is no limit
    #[arg(long, value_name = "N", default_value_t = 4)]
    per_cluster: usize,
    /// Largest held-out loss of an expert, as a multiple of that of its cluster's mean image
    #[arg(long, value_name = "RATIO", default_value_t = 1.0)]
    max_loss: f64,
    /// Requests that may wait
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    queue: u16,
    /// Steps of the router's training, if it has to be trained [default: the charter's]
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    router_steps: Option<u64>,
    /// Seed of the router's training
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Images to train the router on and to test experts with
    #[command(flatten)]
    images: ImageArgs,
    /// Where to compute
    #[command(flatten)]
    device: DeviceArgs,
}

/// Serves until it is stopped.
///
/// # Errors
/// A charter that no peer has; images that cannot be read; what training the router, the registry or the network met.
pub async fn run(args: Args, settings: Settings) -> Result<()> {
    if args.max_loss.is_nan() || args.max_loss <= 0.0 {
        return Err(Error::Usage(format!("--max-loss is {}, must be above 0", args.max_loss)));
    }
    let registry = settings.registry()?;
    let desk = Arc::new(Desk::new(settings.key()?));
    let node = Node::host(&settings, "assemble", registry, Some(desk.clone()), false).await?;
    let result = settings.shutdown.until(assemble(&node, args, &settings, &desk)).await;
    node.stop().await;
    // The device thread ends after the step at hand: its clients have left with the network.
    tokio::task::spawn_blocking(move || drop(desk)).await?;
    result
}

async fn assemble(node: &Node, args: Args, settings: &Settings, desk: &Arc<Desk>) -> Result<()> {
    node.greet().await?;
    let charter = node.charter().await?;
    let policy = Policy { allowed: args.allow.clone(), blocked: args.block.clone(), per_cluster: args.per_cluster };
    let engine = Arc::new(start_engine(args, settings, &charter).await?);
    let router = node.registry.import_file(&router_file(settings, &charter))?;
    desk.open(engine.clone(), charter.clone(), router.digest);
    node.client.provide_blob(router.digest).await.unwrap_or_else(|e| tracing::info!("router not in the DHT: {e}"));
    Collector::new(node, charter, policy, engine, desk.clone()).run().await
}

fn router_file(settings: &Settings, charter: &Verified<Charter>) -> std::path::PathBuf {
    settings.data.join("routers").join(format!("{}.safetensors", charter.digest()))
}

async fn start_engine(args: Args, settings: &Settings, charter: &Verified<Charter>) -> Result<Engine> {
    let (charter, file, shutdown) = (charter.clone(), router_file(settings, charter), settings.shutdown.clone());
    let start = move || {
        let folder = crate::files::folder(&file);
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        args.device.apply();
        let (images, _) = args.images.read(&charter)?;
        let router =
            RouterRecipe { steps: args.router_steps.unwrap_or(charter.router.steps), ..charter.router.clone() };
        let mut bar = Some(Progress::steps("training the router", router.steps));
        let on_router = move |stage: RouterStage| {
            match stage {
                RouterStage::Loaded => drop(bar.take()),
                RouterStage::Training { step, loss, .. } => {
                    if let Some(bar) = &bar {
                        bar.say(format!("cross-entropy {loss:.3}"));
                        bar.set(step);
                    }
                }
                RouterStage::Trained(accuracy) => {
                    let bins: Vec<String> = accuracy.per_bin.iter().map(|share| format!("{share:.2}")).collect();
                    if let Some(bar) = bar.take() {
                        bar.finish(&format!(
                            "done: right for {:.0}% of held-out names; by noise level, data to noise: {}",
                            100.0 * accuracy.mean,
                            bins.join(" ")
                        ));
                    }
                }
            }
            !shutdown.is_requested()
        };
        let config = EngineConfig {
            charter,
            images,
            router,
            router_file: file,
            seed: args.seed,
            device: args.device.device()?,
            threads: args.device.threads(),
            max_loss_ratio: args.max_loss,
            queue: usize::from(args.queue),
        };
        Ok(Engine::start(config, on_router)?)
    };
    tokio::task::spawn_blocking(start).await?
}
