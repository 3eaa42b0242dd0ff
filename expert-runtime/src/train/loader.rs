//! Batches prepared ahead of the device, on a thread of their own.

use super::{Examples, Order, draw_times};
use crate::{Error, Result, column, fused::stay_on_this_thread, normal, panic_message};
use hdd_protocol::Recipe;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;
use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{Receiver, sync_channel},
    thread::{self, JoinHandle},
};
use tch::{Device, Kind, Tensor};

/// Batches that wait beside the one in the loader's hands.
const AHEAD: usize = 1;

/// Images of one step with everything random about it.
#[derive(Debug)]
pub struct Batch {
    /// Clean latents, `(B, C, H, W)`.
    pub x0: Tensor,
    /// Noise, `(B, C, H, W)`.
    pub eps: Tensor,
    /// Text, `(B, L, W)`.
    pub text: Tensor,
    /// Times in (0, 1), B of them.
    pub times: Vec<f64>,
    /// 1 where the text gives way to the learned null, else 0; `(B, 1, 1)`.
    pub dropped: Tensor,
}

impl Batch {
    /// Some of the images, sharing memory.
    ///
    /// # Errors
    /// [`Error::Torch`] for rows that are not there.
    pub fn part(&self, rows: Range<usize>) -> Result<Self> {
        let part = self.each(|t| Ok(t.f_narrow(0, rows.start as i64, rows.len() as i64)?))?;
        Ok(Self { times: self.times[rows].to_vec(), ..part })
    }

    /// The same on `device`. From page-locked memory a card's copy runs beside what the host does next.
    ///
    /// # Errors
    /// [`Error::Torch`] if the device has no memory for it.
    pub fn to(&self, device: Device) -> Result<Self> {
        self.each(|t| Ok(t.f_to_device_(device, Kind::Float, true, false)?))
    }

    /// In page-locked memory if `device` is a card, which reads it faster; where the system has none left, as it is.
    fn pinned_for(&self, device: Device) -> Result<Self> {
        self.each(|t| match device {
            Device::Cuda(_) => Ok(t.f_pin_memory(device).unwrap_or_else(|_| t.shallow_clone())),
            _ => Ok(t.shallow_clone()),
        })
    }

    fn each(&self, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self {
            x0: f(&self.x0)?,
            eps: f(&self.eps)?,
            text: f(&self.text)?,
            dropped: f(&self.dropped)?,
            times: self.times.clone(),
        })
    }
}

/// Prepares the batches of a run, one after the other.
pub struct Loader {
    batches: Option<Receiver<Result<Batch>>>,
    thread: Option<JoinHandle<()>>,
}

impl Loader {
    /// Begins with the batch of `step`, from 0, and goes on to the recipe's last. Batches lie in the host's memory, page-locked
    /// where they go to a card.
    ///
    /// # Errors
    /// [`Error::Io`] if the system gives no thread.
    pub fn start(examples: &Examples, recipe: &Recipe, seed: u64, step: u64, device: Device) -> Result<Self> {
        let (sender, batches) = sync_channel(AHEAD);
        let (examples, recipe) = (examples.clone(), recipe.clone());
        let work = move || {
            stay_on_this_thread();
            let mut order = Order::new(seed, examples.len());
            for step in step..recipe.steps {
                let work = || prepare(&examples, &mut order, &recipe, seed, step)?.pinned_for(device);
                let batch = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
                    let what = format!("batch of step {}", step + 1);
                    Err(Error::Data { what, why: panic_message(&*panic) })
                });
                let failed = batch.is_err();
                if sender.send(batch).is_err() || failed {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("loader".into()).spawn(work).map_err(|source| Error::Io {
            action: "start a thread for",
            path: "loading batches".into(),
            source,
        })?;
        Ok(Self { batches: Some(batches), thread: Some(thread) })
    }

    /// The next batch.
    ///
    /// # Errors
    /// What kept it from being prepared: no memory, in the main.
    pub fn next_batch(&self) -> Result<Batch> {
        let gone = || Error::Torch("the loader ended; run the command again, the last checkpoint is kept".into());
        self.batches.as_ref().and_then(|batches| batches.recv().ok()).unwrap_or_else(|| Err(gone()))
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.batches = None; // the thread then ends at its next send
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn prepare(examples: &Examples, order: &mut Order, recipe: &Recipe, seed: u64, step: u64) -> Result<Batch> {
    let batch = recipe.batch as usize;
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    rng.set_stream(u64::MAX - step); // epochs' orders use the streams from 0 up
    let noise = rng.random();
    let (x0, text) = examples.select(&order.batch(step, batch))?;
    let times = draw_times(recipe.times, batch, &mut rng);
    let dropped = (0..batch).map(|_| f64::from(u8::from(rng.random_bool(recipe.text_dropout))));
    let dropped = column(dropped.collect::<Vec<_>>(), &text);
    let eps = normal(&x0.size(), noise)?;
    Ok(Batch { x0, eps, text, times, dropped })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examples() -> Examples {
        let latents = Tensor::arange(10 * 12, (Kind::Float, Device::Cpu)).reshape([10, 3, 2, 2]);
        Examples::new(&latents, &Tensor::ones([10, 2, 4], (Kind::Float, Device::Cpu))).unwrap()
    }

    fn run(from: u64, recipe: &Recipe) -> Vec<Batch> {
        let loader = Loader::start(&examples(), recipe, 5, from, Device::Cpu).unwrap();
        (from..recipe.steps).map(|_| loader.next_batch().unwrap()).collect()
    }

    #[test]
    fn batches_are_those_of_their_step_wherever_the_loader_began() {
        let recipe = Recipe { steps: 6, batch: 4, text_dropout: 0.5, ..Recipe::default() };
        let (whole, late) = (run(0, &recipe), run(4, &recipe));
        let mut order = Order::new(5, 10);
        for (step, batch) in whole.iter().enumerate() {
            let (x0, text) = examples().select(&order.batch(step as u64, 4)).unwrap();
            assert!(batch.x0 == x0 && batch.text == text);
        }
        for (a, b) in whole[4..].iter().zip(&late) {
            assert!(a.x0 == b.x0 && a.eps == b.eps && a.dropped == b.dropped && a.times == b.times);
        }
        assert_ne!(whole[0].eps, whole[1].eps);
        let dropped: f64 = whole.iter().map(|b| b.dropped.sum(Kind::Float).double_value(&[])).sum();
        assert!((1.0..24.0).contains(&dropped), "{dropped} of 24");
    }

    #[test]
    fn it_ends_with_its_run_and_with_its_owner() {
        let recipe = Recipe { steps: 2, batch: 4, ..Recipe::default() };
        let loader = Loader::start(&examples(), &recipe, 5, 0, Device::Cpu).unwrap();
        (0..2).for_each(|_| drop(loader.next_batch().unwrap()));
        loader.next_batch().unwrap_err();
        // Dropped while its thread waits to send.
        drop(Loader::start(&examples(), &Recipe { steps: 1_000_000, ..recipe }, 5, 0, Device::Cpu).unwrap());
    }

    #[test]
    fn a_panic_is_the_error_of_the_run() {
        let recipe = Recipe { steps: 2, batch: 4, text_dropout: 2.0, ..Recipe::default() }; // no probability
        let loader = Loader::start(&examples(), &recipe, 5, 0, Device::Cpu).unwrap();
        let error = loader.next_batch().unwrap_err().to_string();
        assert!(error.contains("batch of step 1: p=2"), "{error}");
    }

    #[test]
    fn parts_make_the_whole() {
        let recipe = Recipe { steps: 1, batch: 5, ..Recipe::default() };
        let batch = run(0, &recipe).remove(0);
        let parts = [batch.part(0..3).unwrap(), batch.part(3..5).unwrap()];
        assert_eq!(Tensor::cat(&[&parts[0].eps, &parts[1].eps], 0), batch.eps);
        assert_eq!([&parts[0].times[..], &parts[1].times[..]].concat(), batch.times);
    }
}
