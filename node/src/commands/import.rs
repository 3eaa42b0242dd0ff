//! `hdd-node import`: weights from elsewhere, as the beginning of an expert that `contribute --init` trains.

use super::{
    contribute::on_thread,
    names::{ObjectiveName, ScheduleName, TimestepMapName},
};
use crate::{Error, Result, settings::Settings, table};
use clap::ValueEnum;
use hdd_expert_runtime::{
    import::{self, Choice, Imported, Residual},
    weights,
};
use hdd_protocol::{Architecture, ExpertSpec};
use hdd_registry::Registry;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

/// Whose weights, and what is to become of them.
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "The folder holds config.json, model.safetensors and import.json, which tells where every tensor comes \
                        from.\n\nExample:\n  hdd-node import --from dit DiT-XL-2-256x256.pt --timestep-map snr --out imports/dit\n  \
                        hdd-node contribute --init imports/dit --cluster 2"
)]
pub struct Args {
    /// Whose weights
    #[arg(long, value_enum)]
    from: Source,
    /// The weights: a file (safetensors; of DiT also what torch.save wrote), Paris's folder, or for hdd the folder of a
    /// checkpoint or import, or the first 8 or more digits of a manifest whose weights are here
    source: PathBuf,
    /// The new folder
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// What the network is to predict; another objective than the source's draws the final layer anew [default: velocity for
    /// DiT, else the source's]
    #[arg(long, value_enum)]
    objective: Option<ObjectiveName>,
    /// Noising path [default: the source's; linear for velocity, cosine for the others]
    #[arg(long, value_enum)]
    schedule: Option<ScheduleName>,
    /// How the network reads the time [default: the source's; paper]
    #[arg(long, value_enum)]
    timestep_map: Option<TimestepMapName>,
    /// Cluster of the charter [default: the source's; Paris's expert; 0]
    #[arg(long, value_name = "K")]
    cluster: Option<u16>,
    /// Attention heads, for a width that is not among the published ones
    #[arg(long)]
    heads: Option<u32>,
    /// Channels of a text token, for DiT
    #[arg(long, default_value_t = PUBLISHED.text_width)]
    text_width: u32,
    /// Text tokens, for DiT and Paris
    #[arg(long, default_value_t = PUBLISHED.text_length)]
    text_length: u32,
    /// With --from dit: keep the final layer's noise rows, for an expert of the objective epsilon
    #[arg(long)]
    keep_final: bool,
    /// With a folder of Paris: which of its experts
    #[arg(long, value_name = "K", default_value_t = 0)]
    expert: u16,
    /// With a folder of Paris: its router instead of an expert
    #[arg(long, conflicts_with = "expert")]
    router: bool,
    /// Seed of what is drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Text of the published networks.
const PUBLISHED: Architecture = Architecture::new(1152, 28, 16, 2);

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Source {
    /// facebookresearch DiT
    Dit,
    /// The published experts of Paris
    Paris,
    /// Another expert of a network
    Hdd,
}

/// Reads the source, writes the folder, and tells what was kept and what drawn.
///
/// # Errors
/// [`Error::Usage`] for flags that do not go together; what is wrong with the source or the folder.
pub async fn run(args: Args, settings: Settings) -> Result<()> {
    if args.keep_final && args.from != Source::Dit {
        return Err(Error::Usage(
            "--keep-final goes with --from dit; other sources keep their final layer anyway".into(),
        ));
    }
    if args.router && args.from != Source::Paris {
        return Err(Error::Usage("--router goes with --from paris".into()));
    }
    let json = settings.json;
    if args.router {
        let file = on_thread(move || router(&args)).await?;
        return table::print(&format!("{}\n", file.display()));
    }
    let out = args.out.clone();
    let imported = on_thread(move || {
        let imported = read(&args, &settings)?;
        imported.save(&args.out)?;
        Ok(imported)
    });
    let imported = imported.await?;
    if json { table::print_json(&imported.record) } else { table::print(&summary(&imported, &out)) }
}

fn read(args: &Args, settings: &Settings) -> Result<Imported> {
    let paris = args.from == Source::Paris && args.source.is_dir();
    let choice = Choice {
        objective: args.objective.map(Into::into),
        schedule: args.schedule.map(Into::into),
        timestep_map: args.timestep_map.map(Into::into),
        cluster: args.cluster.or(paris.then_some(args.expert)),
        heads: args.heads,
        text: [args.text_width, args.text_length],
        keep_final: args.keep_final,
        seed: args.seed,
    };
    Ok(match args.from {
        Source::Dit => import::from_dit(&args.source, &choice)?,
        Source::Paris => {
            let expert = || args.source.join(format!("expert_{}/diffusion_pytorch_model.safetensors", args.expert));
            import::from_paris(&if paris { expert() } else { args.source.clone() }, &choice)?
        }
        Source::Hdd => {
            let (model, spec) = expert(&args.source, settings)?;
            import::from_hdd(&model, &spec, &choice)?
        }
    })
}

/// Weights and specification of an expert: those of a folder, of a file with its `config.json` beside it, or of a manifest.
fn expert(source: &Path, settings: &Settings) -> Result<(PathBuf, ExpertSpec)> {
    if source.is_dir() {
        let beginning = import::open(source)?;
        return Ok((beginning.model, beginning.spec));
    }
    if source.exists() {
        return Ok((source.to_owned(), import::open(crate::files::folder(source))?.spec));
    }
    let id = source.to_str().and_then(|text| super::fetch::parse_id(text).ok());
    let Some(id) = id else {
        let path = source.display();
        return Err(Error::Usage(format!("{path} is no file or folder here, nor the first 8 digits of a manifest")));
    };
    let registry = settings.registry()?;
    manifest(&id, &registry)
}

fn manifest(id: &str, registry: &Registry) -> Result<(PathBuf, ExpertSpec)> {
    let mut found = registry.manifests(None)?;
    found.retain(|manifest| manifest.digest().to_string().starts_with(id));
    let [manifest] = found.as_slice() else {
        let id = id.to_owned();
        return Err(if found.is_empty() { Error::Unknown { id, peers: 0 } } else { Error::Ambiguous { id } });
    };
    let path = registry.blob_path(manifest.weights.digest);
    let path = path.ok_or_else(|| Error::Usage(format!("its weights are not here yet: hdd-node fetch {id}")))?;
    Ok((path, manifest.spec.clone()))
}

/// Paris's router under this project's names.
fn router(args: &Args) -> Result<PathBuf> {
    let file = args.source.join("router/pytorch_model.safetensors");
    let router = import::paris_router(if args.source.is_dir() { &file } else { &args.source })?;
    std::fs::create_dir_all(&args.out).map_err(Error::io("create", &args.out))?;
    let out = args.out.join("router.safetensors");
    weights::write(&out, &router, HashMap::from([("format".into(), "pt".into())]))?;
    Ok(out)
}

fn summary(imported: &Imported, out: &Path) -> String {
    let (record, spec) = (&imported.record, imported.expert.spec());
    let a = &spec.architecture;
    let mut text = format!(
        "{}: {} on the {} path, {} blocks of {} channels, {} parameters, times by {}\n",
        out.display(),
        spec.objective,
        spec.schedule,
        a.depth,
        a.width,
        table::count(a.parameters()),
        spec.timestep_map
    );
    for (what, names) in [("kept", &record.kept), ("fitted", &record.fitted), ("drawn", &record.drawn)] {
        if !names.is_empty() {
            text.push_str(&format!("{what}: {}\n", names.join(", ")));
        }
    }
    let residuals = [("modulation", &record.modulation), ("final modulation", &record.final_modulation)];
    residuals
        .iter()
        .filter_map(|(what, r)| Some((what, r.as_ref()?)))
        .for_each(|(what, r)| text.push_str(&fit(what, r)));
    text
}

fn fit(what: &str, residual: &Residual) -> String {
    let at: Vec<String> = residual.at.iter().map(|(t, share)| format!("{share:.1e} at {t}")).collect();
    format!("{what}: off by {:.3} of the original's size over all of its times; {}\n", residual.overall, at.join(", "))
}
