//! The training of one expert, on a thread of its own, with what a person sees of it.

use super::Args;
use crate::{
    Error, Result, files,
    picture::{Grid, Row, save_png},
    progress::Progress,
    shutdown::Shutdown,
};
use hdd_expert_runtime::{
    Checkpoint, Condition, Expert, Guidance,
    data::{self, Images},
    import::{self, Beginning},
    last_good_checkpoint, latest_checkpoint, panic_message, sampler,
    train::{self, Compute, Examples, Footprint, Stop, Trainer, available_memory},
};
use hdd_protocol::{Architecture, Charter, Conversion, ExpertSpec, Manifest, Recipe, Solver, TimestepMap, Verified};
use std::{
    collections::HashMap,
    fs::{self, File},
    io::Write as _,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::Instant,
};
use tch::{Device, Tensor};
use tokio::sync::oneshot;

/// A line of `metrics.jsonl` comes this often, steps.
const METRICS_EVERY: u64 = 10;
/// Prompts of a preview, and pictures of each.
const PREVIEW: (usize, usize) = (8, 4);
/// Solver steps of a preview.
const PREVIEW_STEPS: u32 = 30;
/// Guidance of a preview.
const PREVIEW_GUIDANCE: f64 = 3.0;

/// How training ended.
pub enum Outcome {
    /// All steps are done.
    Finished(Checkpoint),
    /// A stop was asked for, and everything is saved.
    Interrupted(Checkpoint),
}

/// The thread is gone without a result.
pub struct Died;

/// Runs `work` on a named thread that may use libtorch.
pub async fn on_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (done, result) = oneshot::channel();
    let body = move || {
        let outcome = catch_unwind(AssertUnwindSafe(work))
            .unwrap_or_else(|panic| Err(Error::Training(format!("libtorch failed: {}", panic_message(&*panic)))));
        let _ = done.send(outcome);
    };
    std::thread::Builder::new()
        .name("training".into())
        .spawn(body)
        .map_err(Error::io("start a thread for", "training"))?;
    result.await.map_err(|_| Error::from(Died))?
}

/// A run that is ready to go.
pub struct Job {
    trainer: Trainer,
    images: Images,
    charter: Verified<Charter>,
    folder: PathBuf,
    device: Device,
    save_every: u64,
    preview_every: u64,
}

impl Job {
    /// Chooses images and cluster, and finds what an earlier run under the name left in `folder`.
    ///
    /// # Errors
    /// [`Error::Usage`] if there is nothing to train on, or the earlier run was for something else.
    pub fn prepare(
        args: &Args,
        charter: &Verified<Charter>,
        known: &[Verified<Manifest>],
        folder: &Path,
    ) -> Result<Self> {
        args.device.apply();
        let device = args.device.device()?;
        let recipe = args.recipe(charter)?;
        // Before hours of work, not after.
        args.licence(charter)?;
        let beginning = args.init.as_deref().map(import::open).transpose()?;
        if let Some(beginning) = &beginning {
            args.check_beginning(&beginning.spec, charter)?;
        }
        let architecture = match &beginning {
            Some(beginning) => beginning.spec.architecture.clone(),
            None => args.architecture(charter)?,
        };
        let (parameters, most) = (architecture.parameters(), charter.limits.parameters);
        if parameters > most {
            return Err(Error::Usage(format!(
                "this architecture has {parameters} parameters, charter {} allows {most}; choose a smaller --architecture or --width",
                charter.name
            )));
        }
        let (images, clusters) = args.images.read(charter)?;
        let earlier = latest_checkpoint(&folder.join("checkpoints"))?;
        let cluster = match (args.cluster, &earlier) {
            (Some(cluster), _) => cluster,
            (None, Some(checkpoint)) => checkpoint.config.spec.cluster,
            (None, None) => beginning
                .as_ref()
                .and_then(|b| b.cluster)
                .unwrap_or_else(|| recommend(&clusters, charter.clusters(), known)),
        };
        if cluster >= charter.clusters() {
            let last = charter.clusters() - 1;
            return Err(Error::Usage(format!(
                "there is no cluster {cluster}; charter {} has 0 to {last}",
                charter.name
            )));
        }
        let chosen = data::subset(&images, &clusters, cluster, args.limit, args.seed);
        if chosen.is_empty() {
            let spread = (0..charter.clusters()).map(|k| clusters.iter().filter(|c| **c == k).count().to_string());
            let spread = spread.collect::<Vec<_>>().join(", ");
            return Err(Error::Usage(format!(
                "none of the {} images may be trained on in cluster {cluster} (images by cluster: {spread}; one name in 20 is held out); \
                 give more images or another --cluster",
                images.len()
            )));
        }
        let images = images.select(&chosen);
        let spec = ExpertSpec {
            architecture,
            objective: args.objective(),
            schedule: args.schedule(beginning.as_ref().map(|b| &b.spec)),
            cluster,
            timestep_map: beginning.as_ref().map_or(TimestepMap::default(), |b| b.spec.timestep_map),
            preconditioning: beginning.as_ref().map_or(args.precondition, |b| b.spec.preconditioning),
        };
        let mut trainer = match earlier {
            Some(checkpoint) => go_on(args, charter, &spec, &recipe, &checkpoint, device, folder)?,
            None => new_run(args, charter, &spec, &recipe, images.len() as u64, device)?,
        };
        if let Some(beginning) = &beginning {
            begin(&mut trainer, beginning, &args.name)?;
        }
        fs::create_dir_all(folder.join("samples")).map_err(Error::io("create", folder.join("samples")))?;
        let parameters = spec.architecture.parameters();
        eprintln!(
            "expert {}: {} on the {} path, cluster {cluster}, {parameters} parameters, {} images, step {} of {}, on {device:?}",
            args.name,
            spec.objective,
            spec.schedule,
            images.len(),
            trainer.config().step,
            trainer.config().recipe.steps
        );
        Ok(Self {
            trainer,
            images,
            charter: charter.clone(),
            folder: folder.to_owned(),
            device,
            save_every: args.save_every,
            preview_every: args.preview_every,
        })
    }

    /// Trains to the end or until a stop is asked for, and saves.
    ///
    /// # Errors
    /// [`hdd_expert_runtime::Error::Diverged`]; files that cannot be written. Checkpoints stay.
    pub fn run(mut self, shutdown: &Shutdown) -> Result<Outcome> {
        let checkpoints = self.folder.join("checkpoints");
        let text = || data::encode(&self.charter.text, &self.images.captions, Device::Cpu);
        let examples = Examples::new(&self.images.tensor(Device::Cpu)?, &text()?)?;
        estimate(&mut self.trainer, &examples, self.device)?;
        let recipe = self.trainer.config().recipe.clone();
        let before = self.trainer.config().step;
        let bar = Progress::steps("training", recipe.steps);
        let mut metrics = Metrics::open(&self.folder.join("metrics.jsonl"), before)?;
        let start = Instant::now();
        let mut failure = None;
        let watch = |trainer: &Trainer, p: train::Progress| -> hdd_expert_runtime::Result<bool> {
            let rate = ((p.step - before) * u64::from(recipe.batch)) as f64 / start.elapsed().as_secs_f64().max(1e-9);
            let loss = p.loss.map_or("skipped".into(), |loss| format!("loss {loss:.4}"));
            bar.say(format!("{loss}, {rate:.0} images/s"));
            bar.set(p.step);
            let written = || -> Result<()> {
                metrics.write(&p, rate)?;
                if p.step.is_multiple_of(self.preview_every) || p.step == recipe.steps {
                    preview(trainer.average(), &self.images, &self.charter, &self.folder.join("samples"), p.step)?;
                }
                Ok(())
            };
            if let Err(error) = { written }() {
                failure = Some(error); // carried out of the trainer, which knows nothing of these files
                return Ok(false);
            }
            if p.step.is_multiple_of(self.save_every) && p.step < recipe.steps {
                trainer.save(&checkpoints)?;
            }
            Ok(!shutdown.is_requested())
        };
        let stop = self.trainer.run(&examples, watch).map_err(|error| with_good_checkpoint(error, &checkpoints))?;
        if let Some(error) = failure {
            return Err(error);
        }
        let config = self.trainer.config();
        let checkpoint = match latest_checkpoint(&checkpoints)? {
            Some(last) if last.config == *config => last,
            _ => self.trainer.save(&checkpoints)?,
        };
        Ok(match stop {
            Stop::Finished => {
                bar.finish(&format!("done: {} steps, loss {:.4}", config.step, config.loss));
                Outcome::Finished(checkpoint)
            }
            Stop::Interrupted => Outcome::Interrupted(checkpoint),
        })
    }
}

/// Adds to a divergence which checkpoint is worth beginning from.
fn with_good_checkpoint(error: hdd_expert_runtime::Error, checkpoints: &Path) -> Error {
    match (&error, last_good_checkpoint(checkpoints)) {
        (hdd_expert_runtime::Error::Diverged { .. }, Ok(Some(good))) => {
            let folder = good.folder.display();
            Error::Training(format!("{error}; the last good checkpoint is kept, --init {folder} begins from it"))
        }
        _ => error.into(),
    }
}

/// A run from its beginning.
fn new_run(
    args: &Args,
    charter: &Verified<Charter>,
    spec: &ExpertSpec,
    recipe: &Recipe,
    images: u64,
    device: Device,
) -> Result<Trainer> {
    let compute = compute(args, &spec.architecture, recipe, images, device);
    let mut trainer = Trainer::new(charter.digest(), spec, recipe, args.seed, device)?;
    trainer.set_compute(compute);
    if args.zero_modulation {
        trainer.zero_modulation();
    }
    Ok(trainer)
}

/// A run that goes on, if the flags fit it.
fn go_on(
    args: &Args,
    charter: &Verified<Charter>,
    spec: &ExpertSpec,
    recipe: &Recipe,
    checkpoint: &Checkpoint,
    device: Device,
    folder: &Path,
) -> Result<Trainer> {
    let config = &checkpoint.config;
    let same_recipe = Recipe { steps: config.recipe.steps, ..recipe.clone() } == config.recipe;
    let same_beginning = config.seed == args.seed && config.zero_modulation == args.zero_modulation;
    if config.charter != charter.digest() || config.spec != *spec || !same_recipe || !same_beginning {
        return Err(Error::Usage(format!(
            "expert '{}' was begun with other flags ({} on {}, cluster {}, seed {}); repeat those, choose another --name, or remove {}",
            args.name,
            config.spec.objective,
            config.spec.schedule,
            config.spec.cluster,
            config.seed,
            folder.display()
        )));
    }
    let mut trainer = Trainer::resume(checkpoint, device)?;
    if let Some(steps) = args.steps() {
        trainer.set_steps(steps);
    }
    // What was chosen for the run is kept: the same parts of a batch give the same bits.
    let begun = trainer.config().compute;
    trainer.set_compute(Compute {
        micro_batch: args.compute.micro_batch.unwrap_or(begun.micro_batch),
        recompute: args.compute.recompute || begun.recompute,
    });
    Ok(trainer)
}

/// Gives a new run its first weights; one that goes on must have begun from the same.
fn begin(trainer: &mut Trainer, beginning: &Beginning, name: &str) -> Result<()> {
    match trainer.config() {
        config if config.parent == Some(beginning.parent) => Ok(()),
        config if config.step == 0 => Ok(trainer.start_from(&beginning.model, beginning.parent)?),
        _ => Err(Error::Usage(format!(
            "expert '{name}' was begun from other weights than those of --init; choose another --name"
        ))),
    }
}

/// How a new run computes its batches: as the flags say, else as the device's free memory allows.
fn compute(args: &Args, architecture: &Architecture, recipe: &Recipe, images: u64, device: Device) -> Compute {
    let recompute = args.compute.recompute;
    match (args.compute.micro_batch, available_memory(device)) {
        (Some(micro_batch), _) => Compute { micro_batch, recompute },
        (None, Some(free)) => Compute::choose(architecture, recipe, images, device, free, recompute),
        (None, None) => Compute { recompute, ..Compute::whole(recipe) },
    }
}

/// Says what the run will take before its first step.
fn estimate(trainer: &mut Trainer, examples: &Examples, device: Device) -> Result<()> {
    // Timing comes first: it also finds out whether the memory is enough.
    let Some(speed) = trainer.speed(examples)? else { return Ok(()) };
    let config = trainer.config();
    let (recipe, Compute { micro_batch, recompute }) = (&config.recipe, config.compute);
    let footprint = Footprint::of(&config.spec.architecture, recipe, examples.len() as u64, recompute, device);
    let hours = ((recipe.steps - config.step) * u64::from(recipe.batch)) as f64 / speed / 3600.0;
    let way = if recompute { ", activations recomputed" } else { "" };
    eprintln!(
        "estimate: {:.1} GB, {hours:.2} h ({speed:.0} images/s, {micro_batch} of {} at a time{way})",
        footprint.bytes(micro_batch) as f64 / 1e9,
        recipe.batch
    );
    Ok(())
}

/// The cluster with the fewest experts in the network; of several, the one with most of these images.
fn recommend(clusters: &[u16], k: u16, known: &[Verified<Manifest>]) -> u16 {
    let mut images = HashMap::<u16, usize>::new();
    clusters.iter().for_each(|&cluster| *images.entry(cluster).or_default() += 1);
    let experts = |cluster: u16| known.iter().filter(|m| m.spec.cluster == cluster).count();
    let best = (0..k).filter(|c| images.contains_key(c)).min_by_key(|c| (experts(*c), std::cmp::Reverse(images[c])));
    let best = best.unwrap_or(0);
    eprintln!(
        "cluster {best}: the network has {} experts for it, you have {} images of it; --cluster chooses another",
        experts(best),
        images.get(&best).unwrap_or(&0)
    );
    best
}

/// Draws the same prompts from the same noise each time, and saves the grid.
fn preview(expert: &Expert, images: &Images, charter: &Charter, folder: &Path, step: u64) -> Result<()> {
    let (prompts, each) = PREVIEW;
    let n = prompts.min(images.len());
    let prompts: Vec<&String> = (0..n).map(|i| &images.captions[i * images.len() / n]).collect();
    let batch: Vec<&String> = prompts.iter().flat_map(|p| std::iter::repeat_n(*p, each)).collect();
    let text: Tensor = data::encode(&charter.text, &batch, expert.device())?;
    let seeds: Vec<u64> = (0..batch.len() as u64).collect();
    let shape = [charter.latent.channels, charter.latent.size, charter.latent.size].map(i64::from);
    let guidance = Guidance { scale: vec![PREVIEW_GUIDANCE; batch.len()], negative: None };
    let x0 = sampler::sample(
        &expert.field(Conversion::DEFAULT, f64::from(charter.latent.clamp)),
        sampler::noise(&seeds, shape, expert.device()),
        &Condition { text: Some(text), guidance: Some(guidance) },
        &sampler::time_grid(PREVIEW_STEPS, 1.0),
        Solver::Euler,
        |_| ControlFlow::Continue(()),
    )?;
    let pictures = x0.map(|x0| sampler::to_pictures(&x0)).transpose()?.unwrap_or_default();
    let rows = prompts.iter().zip(pictures.chunks(each));
    let rows = rows.map(|(label, pictures)| Row { label: (*label).clone(), pictures: pictures.to_vec() }).collect();
    let grid = Grid { rows, scale: Grid::scale_for(charter.latent.size) }.draw()?;
    let title = format!("step {step} of a {} expert, cluster {}", expert.spec().objective, expert.spec().cluster);
    save_png(&folder.join(format!("step-{step:08}.png")), &grid, &[("Description", &title)])
}

/// `metrics.jsonl`: a line every ten steps.
struct Metrics(File);

impl Metrics {
    /// Opens the file and drops lines after `step`, which a run that was killed wrote and will write again.
    fn open(path: &Path, step: u64) -> Result<Self> {
        let kept: String = match fs::read_to_string(path) {
            Ok(text) => text
                .lines()
                .filter(|line| line_step(line).is_some_and(|s| s <= step))
                .fold(String::new(), |text, line| text + line + "\n"),
            Err(_) => String::new(),
        };
        files::replace(path, |file| file.write_all(kept.as_bytes()))?;
        Ok(Self(File::options().append(true).open(path).map_err(Error::io("open", path))?))
    }

    fn write(&mut self, p: &train::Progress, rate: f64) -> Result<()> {
        if !p.step.is_multiple_of(METRICS_EVERY) {
            return Ok(());
        }
        let line = serde_json::json!({
            "step": p.step, "loss": p.loss, "gradient_norm": p.gradient_norm,
            "learning_rate": p.learning_rate, "images_per_second": rate,
            "loss_scale": p.loss_scale, "skipped": p.skipped,
        });
        writeln!(self.0, "{line}").map_err(Error::io("write", "metrics.jsonl"))
    }
}

fn line_step(line: &str) -> Option<u64> {
    serde_json::from_str::<serde_json::Value>(line).ok()?.get("step")?.as_u64()
}
