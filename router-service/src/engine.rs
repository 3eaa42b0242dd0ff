//! The thread that owns the device. Everything with tensors happens there; callers send jobs over a bounded channel.
//!
//! Participants: callers on any thread ([`Engine`]), one thread named `device` ([`Worker`]), and a sink a request that
//! hears its events. A panic inside libtorch ends the job, not the thread.

use crate::{
    Ensemble, Error, HeldOut, Member, Report, Result, Router, RouterAccuracy, RouterExamples, admission::test_expert,
    train_router,
};
use hdd_expert_runtime::{
    Condition, Guidance, PIXEL_CLAMP, VAE_CLAMP,
    data::{self, Images},
    sampler,
};
use hdd_protocol::{
    Charter, Codec, Digest, ErrorCode, Manifest, Provenance, RouterRecipe, SampleEvent, SampleRequest, ServiceResponse,
    Verified,
};
use std::{
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
};
use tch::{Device, Tensor};

/// Pictures that are denoised together.
const MICRO_BATCH: usize = 16;

/// Hears a request's events in order; returns false when the client has left.
pub type SampleSink = Box<dyn FnMut(ServiceResponse) -> bool + Send>;
/// Hears the verdict on an expert.
pub type AdmitReply = Box<dyn FnOnce(Result<Option<Report>>) + Send>;

/// Where the router comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum RouterStage {
    /// Trained before: read from disk.
    Loaded,
    /// In training.
    Training {
        /// Steps done.
        step: u64,
        /// Steps in all.
        of: u64,
        /// Cross-entropy.
        loss: f64,
    },
    /// Trained and saved.
    Trained(RouterAccuracy),
}

/// What an engine is made of.
pub struct EngineConfig {
    /// The network that is served.
    pub charter: Verified<Charter>,
    /// Images of the aggregator's own: the router is trained on them, held-out names test experts.
    pub images: Images,
    /// How the router is trained, if it has to be; its shape must be the charter's.
    pub router: RouterRecipe,
    /// Weights of the router; read if present, written otherwise.
    pub router_file: PathBuf,
    /// Seed of the router's training.
    pub seed: u64,
    /// Where tensors live.
    pub device: Device,
    /// Threads that libtorch may use; 0 leaves its default.
    pub threads: usize,
    /// Largest held-out loss of an expert as a share of its cluster's floor.
    pub max_loss_ratio: f64,
    /// Requests that may wait.
    pub queue: usize,
}

enum Job {
    Admit { manifest: Box<Verified<Manifest>>, weights: PathBuf, reply: AdmitReply },
    Remove(Digest),
    Sample { request: SampleRequest, sink: SampleSink },
}

/// A handle to the device thread. Dropping it ends the thread after the job at hand.
pub struct Engine {
    jobs: Option<SyncSender<Job>>,
    waiting: Arc<AtomicU32>,
    limits: hdd_protocol::SampleLimits,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts the thread, which reads or trains the router and then takes jobs. Returns when it takes them;
    /// `on_router` hears of the router from the device thread and stops the start by returning false.
    ///
    /// # Errors
    /// What reading, training or saving the router met; [`Error::Ended`] if it was stopped.
    pub fn start(config: EngineConfig, on_router: impl FnMut(RouterStage) -> bool + Send + 'static) -> Result<Self> {
        let (jobs, received) = sync_channel(config.queue.max(1));
        let (ready, started) = sync_channel(1);
        let waiting = Arc::new(AtomicU32::new(0));
        let (limits, counter) = (config.charter.limits.sample, waiting.clone());
        let body = move || {
            let prepared = catch_unwind(AssertUnwindSafe(|| Worker::prepare(config, on_router))).unwrap_or_else(failed);
            match prepared {
                Ok(mut worker) => {
                    let _ = ready.send(Ok(()));
                    worker.run(received, &counter);
                }
                Err(e) => {
                    let _ = ready.send(Err(e));
                }
            }
        };
        let thread = std::thread::Builder::new().name("device".into()).spawn(body);
        let thread = thread.map_err(|e| Error::Ended(format!("it could not be started: {e}")))?;
        started.recv().map_err(|_| Error::Ended("it stopped while preparing".into()))??;
        Ok(Self { jobs: Some(jobs), waiting, limits, thread: Some(thread) })
    }

    /// Queues the test of an expert; `reply` hears the outcome from the device thread. Blocks while the queue is full.
    ///
    /// # Errors
    /// [`Error::Ended`].
    pub fn admit(&self, manifest: Verified<Manifest>, weights: PathBuf, reply: AdmitReply) -> Result<()> {
        self.send(Job::Admit { manifest: Box::new(manifest), weights, reply })
    }

    /// Takes an expert out of service before the next request.
    ///
    /// # Errors
    /// [`Error::Ended`].
    pub fn remove(&self, manifest: Digest) -> Result<()> {
        self.send(Job::Remove(manifest))
    }

    /// Queues a request whose events go to `sink`, the first of them from here. Never blocks, if `sink` does not.
    ///
    /// # Errors
    /// [`Error::Invalid`] before anything is queued; [`Error::Busy`]; [`Error::Ended`].
    pub fn sample(&self, request: SampleRequest, mut sink: SampleSink) -> Result<()> {
        request.check(&self.limits)?;
        let ahead = self.waiting.fetch_add(1, Ordering::SeqCst);
        sink(ServiceResponse::Event(SampleEvent::Queued { ahead }));
        let sent = match &self.jobs {
            Some(jobs) => jobs.try_send(Job::Sample { request, sink }),
            None => return Err(ended()),
        };
        sent.map_err(|e| {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            match e {
                TrySendError::Full(_) => Error::Busy(ahead),
                TrySendError::Disconnected(_) => ended(),
            }
        })
    }

    fn send(&self, job: Job) -> Result<()> {
        self.jobs.as_ref().ok_or_else(ended)?.send(job).map_err(|_| ended())
    }
}

fn ended() -> Error {
    Error::Ended("see the log above for the cause".into())
}

impl Drop for Engine {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn failed<T>(panic: Box<dyn std::any::Any + Send>) -> Result<T> {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    Err(Error::Device(text.unwrap_or("unknown panic").lines().next().unwrap_or_default().to_owned()))
}

struct Worker {
    charter: Verified<Charter>,
    ensemble: Ensemble,
    held_out: HeldOut,
    router_digest: Digest,
    device: Device,
    max_loss_ratio: f64,
}

impl Worker {
    fn prepare(config: EngineConfig, on_router: impl FnMut(RouterStage) -> bool) -> Result<Self> {
        if config.threads > 0 {
            tch::set_num_threads(config.threads as i32);
        }
        let EngineConfig { charter, images, router: recipe, router_file, seed, device, max_loss_ratio, .. } = config;
        let labels = data::assign(&data::features(&charter.extractor, &images)?, &charter.centroids);
        let (held, kept): (Vec<usize>, Vec<usize>) = (0..images.len()).partition(|&i| data::held_out(&images.names[i]));
        let held_out = HeldOut {
            latents: images.select(&held).tensor(device)?,
            labels: held.iter().map(|&i| labels[i]).collect(),
        };
        let examples = |rows: &[usize]| -> Result<RouterExamples> {
            let images = images.select(rows);
            let of = rows.iter().map(|&i| i64::from(labels[i])).collect::<Vec<_>>();
            Ok(RouterExamples {
                latents: images.tensor(device)?,
                text: data::encode(&charter.text, &images.captions, device)?,
                labels: Tensor::from_slice(&of).to_device(device),
            })
        };
        let sets = (&examples(&kept)?, &examples(&held)?);
        let router = obtain_router(&charter, &recipe, &router_file, seed, device, sets, on_router)?;
        let bytes = std::fs::read(&router_file).map_err(|source| hdd_expert_runtime::Error::Io {
            action: "read",
            path: router_file,
            source,
        })?;
        let paper_clamp = match charter.latent.codec {
            Codec::Pixels => PIXEL_CLAMP,
            Codec::StableDiffusionVae { .. } => VAE_CLAMP,
        };
        let clamp = f64::from(charter.latent.clamp);
        let ensemble = Ensemble { router, members: Vec::new(), clamp, paper_clamp };
        Ok(Self { charter, ensemble, held_out, router_digest: Digest::of(&bytes), device, max_loss_ratio })
    }

    fn run(&mut self, jobs: Receiver<Job>, waiting: &AtomicU32) {
        for job in jobs {
            match job {
                Job::Admit { manifest, weights, reply } => {
                    let outcome = catch_unwind(AssertUnwindSafe(|| self.admit(&manifest, &weights)));
                    reply(outcome.unwrap_or_else(failed));
                }
                Job::Remove(manifest) => self.ensemble.members.retain(|m| m.manifest != manifest),
                Job::Sample { request, mut sink } => {
                    let outcome = catch_unwind(AssertUnwindSafe(|| self.sample(&request, &mut sink)));
                    waiting.fetch_sub(1, Ordering::SeqCst);
                    if let Err(e) = outcome.unwrap_or_else(failed) {
                        tracing::warn!(error = %e, "request failed");
                        let message = if e.code() == ErrorCode::Internal {
                            "the aggregator failed".into()
                        } else {
                            e.to_string()
                        };
                        sink(ServiceResponse::Refused { code: e.code(), message });
                    }
                }
            }
        }
    }

    fn admit(&mut self, manifest: &Verified<Manifest>, weights: &std::path::Path) -> Result<Option<Report>> {
        let (expert, report) = test_expert(
            &manifest.spec,
            weights,
            &self.held_out,
            self.ensemble.clamp,
            self.max_loss_ratio,
            self.device,
        )?;
        self.ensemble.members.retain(|m| m.manifest != manifest.digest());
        self.ensemble.members.push(Member { manifest: manifest.digest(), expert });
        Ok(report)
    }

    /// Denoises a request in micro-batches. Ends early, without an error, when the client leaves.
    fn sample(&self, request: &SampleRequest, sink: &mut SampleSink) -> Result<()> {
        let _guard = tch::no_grad_guard();
        if self.ensemble.members.is_empty() {
            return Err(Error::NoExpert(self.charter.digest()));
        }
        let times = sampler::time_grid(request.steps, 1.0);
        let seeds: Vec<u64> = (0..u64::from(request.count)).map(|i| request.seed + i).collect();
        let batches = seeds.len().div_ceil(MICRO_BATCH) as u32;
        let of = request.steps * batches;
        for (index, seeds) in (0u32..).zip(seeds.chunks(MICRO_BATCH)) {
            let condition = self.condition(request, seeds.len())?;
            let latent = &self.charter.latent;
            let shape = [latent.channels, latent.size, latent.size].map(i64::from);
            let noise = sampler::noise(seeds, shape, self.device);
            let fusion =
                self.ensemble.fusion(request.selection, request.conversion, request.converted_below, seeds.len());
            let on_step = |done: u32| {
                let done = done + index * request.steps;
                match sink(ServiceResponse::Event(SampleEvent::Step { done, of })) {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            };
            let Some(x0) = sampler::sample(&fusion, noise, &condition, &times, request.solver, on_step)? else {
                return Ok(());
            };
            for ((picture, experts), &seed) in sampler::to_pictures(&x0)?.into_iter().zip(fusion.shares()).zip(seeds) {
                let provenance =
                    Provenance { charter: self.charter.digest(), router: Some(self.router_digest), seed, experts };
                if !sink(ServiceResponse::Event(SampleEvent::Picture { picture, provenance })) {
                    return Ok(());
                }
            }
        }
        sink(ServiceResponse::Event(SampleEvent::Done));
        Ok(())
    }

    fn condition(&self, request: &SampleRequest, batch: usize) -> Result<Condition> {
        let encode = |prompt: &str| -> Result<Option<Tensor>> {
            if prompt.trim().is_empty() {
                return Ok(None);
            }
            let text = data::encode(&self.charter.text, &[prompt], self.device)?;
            Ok(Some(text.expand([batch as i64, -1, -1], false)))
        };
        let guided = request.guidance != 1.0;
        let guidance =
            Guidance { scale: vec![f64::from(request.guidance); batch], negative: encode(&request.negative)? };
        Ok(Condition { text: encode(&request.prompt)?, guidance: guided.then_some(guidance) })
    }
}

/// Reads the router's file, or trains one and writes it.
fn obtain_router(
    charter: &Charter,
    recipe: &RouterRecipe,
    file: &std::path::Path,
    seed: u64,
    device: Device,
    (kept, held_out): (&RouterExamples, &RouterExamples),
    mut on_router: impl FnMut(RouterStage) -> bool,
) -> Result<Router> {
    let mut router = Router::of_charter(charter, seed, device);
    if file.exists() {
        match router.read(file) {
            Ok(()) => {
                on_router(RouterStage::Loaded);
                return Ok(router);
            }
            Err(e) => tracing::warn!(error = %e, "the router's file is damaged; training it again"),
        }
    }
    let mut finished = true;
    train_router(&router, recipe, kept, seed, |step, loss| {
        finished = on_router(RouterStage::Training { step, of: recipe.steps, loss });
        finished
    })?;
    if !finished {
        return Err(Error::Ended("it was stopped while training the router".into()));
    }
    let aside = file.with_extension("partial");
    let io = |source| hdd_expert_runtime::Error::Io { action: "write", path: file.to_owned(), source };
    let _ = std::fs::remove_file(&aside); // left by a process that was killed
    router.save(&aside)?;
    std::fs::rename(&aside, file).map_err(io)?;
    on_router(RouterStage::Trained(router.accuracy(held_out, recipe.text)?));
    router.freeze();
    Ok(router)
}
