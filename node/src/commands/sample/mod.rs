//! `hdd-node sample`: text in, pictures out. The request goes to an aggregator that is found through the network.

mod aggregator;
mod args;
mod output;

pub use args::{Args, ConversionName};

use crate::{Error, Result, network::Client, node::Node, progress::Progress, settings::Settings};
use aggregator::Aggregator;
use hdd_protocol::{Charter, Picture, Provenance, SampleEvent, SampleRequest, Verified};
pub use output::Made;
use output::Output;

/// Asks for the pictures and writes them.
///
/// # Errors
/// [`Error::Usage`] and the protocol's for a request that cannot be; [`Error::NoAggregator`]; the network's; the
/// aggregator's own refusal with its code; [`Error::Picture`] and [`Error::Io`] when writing.
pub async fn run(args: Args, settings: Settings) -> Result<()> {
    let made = make(&args, &settings).await?;
    for file in write(&args, made).await? {
        crate::table::print(&format!("{}\n", file.display()))?;
    }
    Ok(())
}

/// Asks for the pictures; flags and paths are checked before any network.
///
/// # Errors
/// As [`run`], but for writing.
pub async fn make(args: &Args, settings: &Settings) -> Result<Made> {
    let requests = args.requests()?;
    Output::new(args)?;
    if settings.charter == crate::settings::CharterChoice::BuiltIn {
        check(&requests, &crate::charters::built_in()?)?;
    }
    let node = Node::visit(settings).await?;
    let result = sample(&node, args, &requests).await;
    node.stop().await;
    result
}

/// Writes the pictures and names the files.
///
/// # Errors
/// [`Error::Picture`] and [`Error::Io`].
pub async fn write(args: &Args, made: Made) -> Result<Vec<std::path::PathBuf>> {
    let output = Output::new(args)?;
    tokio::task::spawn_blocking(move || output.write(&made)).await?
}

fn check(requests: &[SampleRequest], charter: &Verified<Charter>) -> Result<()> {
    Ok(requests.iter().try_for_each(|request| request.check(&charter.limits.sample))?)
}

async fn sample(node: &Node, args: &Args, requests: &[SampleRequest]) -> Result<Made> {
    node.connected().await?;
    let charter = node.charter().await?;
    check(requests, &charter)?;
    let aggregators = aggregator::find(&node.client, &charter, args.aggregator, args.patience()).await?;
    eprintln!("the aggregator reads the prompts and sees this node's address");
    let mut made = Made { charter, rows: Vec::new() };
    for (i, request) in requests.iter().enumerate() {
        let label = format!("picture {} of {}:", i + 1, requests.len());
        made.rows.push(ask_in_turn(&node.client, &aggregators, request, &label, &made.charter).await?);
    }
    Ok(made)
}

/// The first aggregator that serves the request; the next is asked when one fails.
async fn ask_in_turn(
    client: &Client,
    aggregators: &[Aggregator],
    request: &SampleRequest,
    label: &str,
    charter: &Verified<Charter>,
) -> Result<output::Row> {
    let mut last = None;
    for aggregator in aggregators {
        if let Some(error) = last.take() {
            let error: Error = error;
            eprintln!("{}\nasking {} instead", error.chain(), aggregator.peer);
        }
        match ask(client, aggregator, request, label, charter).await {
            Ok(pictures) => {
                return Ok(output::Row { request: request.clone(), aggregator: aggregator.peer.to_string(), pictures });
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| Error::Usage("no aggregator was given".into())))
}

async fn ask(
    client: &Client,
    aggregator: &Aggregator,
    request: &SampleRequest,
    label: &str,
    charter: &Verified<Charter>,
) -> Result<Vec<(Picture, Provenance)>> {
    request.check(&aggregator.offer.limits)?;
    let bar = Progress::steps(label, request.steps.into());
    let mut events = client.sample(aggregator.peer, request.clone()).await?;
    let wrong = |why: String| Error::BadAnswer { aggregator: aggregator.peer.to_string(), why };
    let mut pictures = Vec::new();
    while let Some(event) = events.recv().await {
        match event? {
            SampleEvent::Queued { ahead: 0 } => bar.say("accepted"),
            SampleEvent::Queued { ahead } => bar.say(format!("queued, {ahead} before it")),
            SampleEvent::Step { done, of } => bar.set_of(done.into(), of.into()),
            SampleEvent::Picture { picture, provenance } => {
                let seed = request.seed + pictures.len() as u64; // `check` bounds the sum
                expected(&provenance, charter, seed, pictures.len() < request.count as usize).map_err(wrong)?;
                pictures.push((picture, provenance));
            }
            SampleEvent::Done if pictures.len() == request.count as usize => {
                bar.finish("done");
                return Ok(pictures);
            }
            SampleEvent::Done => break,
        }
    }
    Err(wrong(format!("it ended after {} of {} pictures", pictures.len(), request.count)))
}

fn expected(provenance: &Provenance, charter: &Verified<Charter>, seed: u64, wanted: bool) -> Result<(), String> {
    if !wanted {
        return Err("it sent more pictures than were asked for".into());
    }
    if provenance.charter != charter.digest() || provenance.seed != seed {
        return Err(format!("a picture of seed {} where {seed} was due, or of another charter", provenance.seed));
    }
    Ok(())
}
