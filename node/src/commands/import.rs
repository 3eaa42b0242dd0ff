//! `hdd-node import`: weights from elsewhere, as the beginning of an expert that `contribute --init` trains.

use super::{
    contribute::on_thread,
    names::{ObjectiveName, ScheduleName, TimestepMapName},
};
use crate::{Error, Result, files, settings::Settings, table};
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
    /// Noising path [default: the source's, for DiT's own final layer linear-beta; for another objective linear for velocity, cosine
    /// for the others]
    #[arg(long, value_enum)]
    schedule: Option<ScheduleName>,
    /// How the network reads the time [default: the source's; paper]
    #[arg(long, value_enum)]
    timestep_map: Option<TimestepMapName>,
    /// Cluster of the charter that `contribute --init` is to train on [default: its choice; of a folder of Paris the expert's
    /// number]
    #[arg(long, value_name = "K")]
    cluster: Option<u16>,
    /// Attention heads of DiT or Paris, 1 to 64, which weights do not show [default: those of the published size of this width]
    #[arg(long)]
    heads: Option<u32>,
    /// Channels of a text token, for DiT [default: 768]
    #[arg(long)]
    text_width: Option<u32>,
    /// Text tokens, for DiT and Paris [default: 77]
    #[arg(long)]
    text_length: Option<u32>,
    /// With --from dit: keep the final layer's noise rows, for an expert of the objective epsilon
    #[arg(long)]
    keep_final: bool,
    /// With a folder of Paris: which of its experts [default: 0]
    #[arg(long, value_name = "K")]
    expert: Option<u16>,
    /// With Paris: its router instead of an expert
    #[arg(long, conflicts_with_all = ROUTER_HAS_NONE)]
    router: bool,
    /// Seed of what is drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// What is said of an expert and of no router.
const ROUTER_HAS_NONE: [&str; 8] =
    ["expert", "objective", "schedule", "timestep_map", "cluster", "heads", "text_length", "seed"];

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
    args.check()?;
    if args.out.exists() {
        let out = args.out.display();
        return Err(Error::Usage(format!("{out} exists already; choose another --out or remove it")));
    }
    let json = settings.json;
    if args.router {
        let file = on_thread(move || router(&args)).await?;
        return match json {
            true => table::print_json(&serde_json::json!({ "router": file })),
            false => table::print(&format!("{}\n{ROUTER_NOTE}\n", file.display())),
        };
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

impl Args {
    fn is_folder_of_paris(&self) -> bool {
        self.from == Source::Paris && self.source.is_dir()
    }

    /// # Errors
    /// [`Error::Usage`] for a flag that says nothing about the source.
    fn check(&self) -> Result<()> {
        let (dit, paris) = (self.from == Source::Dit, self.from == Source::Paris);
        let flags = [
            ("--keep-final", self.keep_final, dit, "--from dit; other sources keep their final layer anyway"),
            ("--text-width", self.text_width.is_some(), dit, "--from dit; other weights show it"),
            ("--text-length", self.text_length.is_some(), dit || paris, "--from dit or paris"),
            ("--heads", self.heads.is_some(), dit || paris, "--from dit or paris"),
            ("--router", self.router, paris, "--from paris"),
            ("--expert", self.expert.is_some(), self.is_folder_of_paris(), "--from paris and a folder"),
        ];
        match flags.into_iter().find(|(_, is_given, applies, _)| *is_given && !applies) {
            Some((flag, .., place)) => Err(Error::Usage(format!("{flag} goes with {place}"))),
            None => Ok(()),
        }
    }
}

fn read(args: &Args, settings: &Settings) -> Result<Imported> {
    let (paris, number) = (args.is_folder_of_paris(), args.expert.unwrap_or(0));
    let choice = Choice {
        objective: args.objective.map(Into::into),
        schedule: args.schedule.map(Into::into),
        timestep_map: args.timestep_map.map(Into::into),
        cluster: args.cluster.or(paris.then_some(number)),
        heads: args.heads,
        text: [args.text_width.unwrap_or(PUBLISHED.text_width), args.text_length.unwrap_or(PUBLISHED.text_length)],
        keep_final: args.keep_final,
        seed: args.seed,
    };
    Ok(match args.from {
        Source::Dit => import::from_dit(&args.source, &choice)?,
        Source::Paris => {
            let expert = || args.source.join(format!("expert_{number}/diffusion_pytorch_model.safetensors"));
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
        files::check_model(source, files::EXPERT_FOLDER)?;
        let beginning = import::open(source)?;
        return Ok((beginning.model, beginning.spec));
    }
    if source.exists() {
        files::check_model(files::folder(source), files::EXPERT_FOLDER)?;
        return Ok((source.to_owned(), import::open(files::folder(source))?.spec));
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

/// What a router of Paris loses here.
const ROUTER_NOTE: &str = "it was trained on times of 0 to 1000 and may have another LayerNorm epsilon; routers here read 0 to 999 with 1e-6, so that its \
     probabilities differ a little: `hdd-node assemble --router` measures it on your images";

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
