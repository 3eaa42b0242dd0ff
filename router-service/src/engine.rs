//! The thread that owns the device. Everything with tensors happens there; callers send jobs over a bounded channel.
//!
//! Participants: callers on any thread ([`Engine`]), one thread named `device` ([`Worker`]), and a sink a request that
//! hears its events. A panic inside libtorch ends the job, not the thread.

use crate::{
    Ensemble, Error, HeldOut, Member, Report, Result, RouterAccuracy, RouterExamples, RouterFile, RouterPlan,
    RouterProgress, TrainedRouter, admission::test_expert,
};
use hdd_expert_runtime::{
    Condition, Guidance,
    data::{self, Images},
    panic_message, sampler,
};
use hdd_protocol::{
    Charter, Digest, ErrorCode, Manifest, Provenance, SampleEvent, SampleRequest, ServiceResponse, Verified,
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

/// What an engine is made of.
pub struct EngineConfig {
    /// The network that is served.
    pub charter: Verified<Charter>,
    /// Images of the aggregator's own, which may be none: a router is trained on them, held-out names test experts and
    /// routers.
    pub images: Images,
    /// Where tensors live.
    pub device: Device,
    /// Threads that libtorch may use; 0 leaves its default.
    pub threads: usize,
    /// Largest held-out loss of an expert as a share of its cluster's floor.
    pub max_loss_ratio: f64,
    /// Requests that may wait.
    pub queue: usize,
}

/// Work of the device thread that its caller waits for.
type Call = Box<dyn FnOnce(&mut Worker) + Send>;

enum Job {
    Call(Call),
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
    /// Starts the thread, which prepares the images and then takes jobs. It serves once it has a router.
    ///
    /// # Errors
    /// Images or a charter that this build cannot use; [`Error::Ended`].
    pub fn start(config: EngineConfig) -> Result<Self> {
        let (jobs, received) = sync_channel(config.queue.max(1));
        let (ready, started) = sync_channel(1);
        let waiting = Arc::new(AtomicU32::new(0));
        let (limits, counter) = (config.charter.limits.sample, waiting.clone());
        let body = move || {
            let prepared = catch_unwind(AssertUnwindSafe(|| Worker::prepare(config))).unwrap_or_else(failed);
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

    /// Trains a router on the images, or goes on with its training; `on_step` hears of it from the device thread and stops
    /// it by returning false. Blocks until that is done.
    ///
    /// # Errors
    /// [`Error::Router`]; [`Error::Stopped`]; [`Error::Ended`]; files that cannot be read or written.
    pub fn train_router(
        &self,
        plan: RouterPlan,
        on_step: impl FnMut(RouterProgress) -> bool + Send + 'static,
    ) -> Result<TrainedRouter> {
        self.call(move |worker| worker.train_router(&plan, on_step))
    }

    /// Tests a router and serves with it from now on; the accuracy is absent where it was not measured. Blocks until that is
    /// done.
    ///
    /// # Errors
    /// [`Error::Refused`]; the router in service, if any, stays. [`Error::Ended`].
    pub fn use_router(&self, file: RouterFile) -> Result<Option<RouterAccuracy>> {
        self.call(move |worker| worker.use_router(&file))
    }

    fn call<T: Send + 'static>(&self, work: impl FnOnce(&mut Worker) -> Result<T> + Send + 'static) -> Result<T> {
        let (reply, outcome) = sync_channel(1);
        self.send(Job::Call(Box::new(move |worker| {
            let outcome = catch_unwind(AssertUnwindSafe(|| work(worker))).unwrap_or_else(failed);
            let _ = reply.send(outcome); // who asked may have gone
        })))?;
        outcome.recv().map_err(|_| ended())?
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
    Err(Error::Device(panic_message(&*panic)))
}

/// What the device thread owns.
pub(crate) struct Worker {
    pub charter: Verified<Charter>,
    pub images: Images,
    /// Cluster of each image.
    pub labels: Vec<u16>,
    /// Those of the images whose names nobody trains on.
    pub held_out: RouterExamples,
    /// None before there is a router.
    pub ensemble: Option<Ensemble>,
    pub router_digest: Option<Digest>,
    pub device: Device,
    test_set: HeldOut,
    max_loss_ratio: f64,
}

impl Worker {
    fn prepare(config: EngineConfig) -> Result<Self> {
        if config.threads > 0 {
            tch::set_num_threads(config.threads as i32);
        }
        let EngineConfig { charter, images, device, max_loss_ratio, .. } = config;
        let labels = match images.is_empty() {
            true => Vec::new(),
            false => data::assign(&data::features(&charter.extractor, &images)?, &charter.centroids),
        };
        let held_out = RouterExamples::of(&images, &labels, &charter, device, data::held_out)?;
        let rows = (0..images.len()).filter(|&i| data::held_out(&images.names[i]));
        let test_set = HeldOut { latents: held_out.latents.shallow_clone(), labels: rows.map(|i| labels[i]).collect() };
        let (ensemble, router_digest) = (None, None);
        Ok(Self { charter, images, labels, held_out, ensemble, router_digest, device, test_set, max_loss_ratio })
    }

    fn run(&mut self, jobs: Receiver<Job>, waiting: &AtomicU32) {
        for job in jobs {
            match job {
                Job::Admit { manifest, weights, reply } => {
                    let outcome = catch_unwind(AssertUnwindSafe(|| self.admit(&manifest, &weights)));
                    reply(outcome.unwrap_or_else(failed));
                }
                Job::Call(work) => work(self),
                Job::Remove(manifest) => {
                    if let Some(ensemble) = &mut self.ensemble {
                        ensemble.members.retain(|m| m.manifest != manifest);
                    }
                }
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
        let ensemble = self.ensemble.as_mut().ok_or(Error::NoRouter)?;
        let (spec, ratio) = (&manifest.spec, self.max_loss_ratio);
        let (expert, report) = test_expert(spec, weights, &self.test_set, ensemble.clamp, ratio, self.device)?;
        ensemble.members.retain(|m| m.manifest != manifest.digest());
        ensemble.members.push(Member { manifest: manifest.digest(), expert });
        Ok(report)
    }

    /// Denoises a request in micro-batches. Ends early, without an error, when the client leaves.
    fn sample(&self, request: &SampleRequest, sink: &mut SampleSink) -> Result<()> {
        let _guard = tch::no_grad_guard();
        let ensemble = self.ensemble.as_ref().ok_or(Error::NoRouter)?;
        if ensemble.members.is_empty() {
            return Err(Error::NoExpert(self.charter.digest()));
        }
        let times = sampler::time_grid(request.steps, request.shift.into());
        let seeds: Vec<u64> = (0..u64::from(request.count)).map(|i| request.seed + i).collect();
        let batches = seeds.len().div_ceil(MICRO_BATCH) as u32;
        let of = request.steps * batches;
        for (index, seeds) in (0u32..).zip(seeds.chunks(MICRO_BATCH)) {
            let condition = self.condition(request, seeds.len())?;
            let latent = &self.charter.latent;
            let shape = [latent.channels, latent.size, latent.size].map(i64::from);
            let noise = sampler::noise(seeds, shape, self.device);
            let fusion = ensemble.fusion(request.selection, request.conversion, request.converted_below, seeds.len());
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
                    Provenance { charter: self.charter.digest(), router: self.router_digest, seed, experts };
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
