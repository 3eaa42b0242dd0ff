use crate::{Error, Result};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha12Rng;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

/// Latents and their text in the host's memory; a loader brings batches to the device. Clones share
/// that memory.
#[derive(Clone)]
pub struct Examples {
    images: usize,
    latents: Rows,
    text: Rows,
}

/// A tensor by its first dimension. Not libtorch's, whose copies would take threads from the step that is computed meanwhile.
#[derive(Clone)]
struct Rows {
    shape: Vec<i64>, // of a row
    values: Arc<Vec<f32>>,
}

impl Rows {
    fn new(tensor: &Tensor) -> Result<Self> {
        let shape = tensor.size().get(1..).unwrap_or_default().to_vec();
        let flat = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_flatten(0, -1)?;
        Ok(Self { shape, values: Arc::new(Vec::try_from(flat)?) })
    }

    fn select(&self, indices: &[usize]) -> Result<Tensor> {
        let numbers = self.shape.iter().product::<i64>() as usize;
        let rows = indices.iter().flat_map(|&i| &self.values[i * numbers..(i + 1) * numbers]);
        let shape = [&[indices.len() as i64], &self.shape[..]].concat();
        Ok(Tensor::from_slice(&rows.copied().collect::<Vec<f32>>()).f_reshape(shape)?)
    }
}

impl Examples {
    /// Pairs `latents (N, C, H, W)` with `text (N, L, W)`, copied to the host as float32.
    ///
    /// # Errors
    /// [`Error::Data`] if there is none or the counts differ.
    pub fn new(latents: &Tensor, text: &Tensor) -> Result<Self> {
        let (n, m) = (latents.size()[0], text.size()[0]);
        if n == 0 || n != m {
            let why = format!("{n} images with {m} captions cannot be trained on; prepare the data again");
            return Err(Error::Data { what: "training data".into(), why });
        }
        Ok(Self { images: n as usize, latents: Rows::new(latents)?, text: Rows::new(text)? })
    }

    /// Number of images, N.
    pub fn len(&self) -> usize {
        self.images
    }

    /// Never: [`Examples::new`] refuses it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Latents `(B, C, H, W)` and text `(B, L, W)` of the images `indices`, each below N, on the CPU.
    ///
    /// # Errors
    /// [`Error::Torch`] without memory.
    pub fn select(&self, indices: &[usize]) -> Result<(Tensor, Tensor)> {
        Ok((self.latents.select(indices)?, self.text.select(indices)?))
    }
}

/// The order in which a run visits its images: every image once an epoch, each epoch in an order of its own.
pub struct Order {
    seed: u64,
    images: u64,
    epoch: Option<u64>,
    order: Vec<usize>, // of `epoch`
}

impl Order {
    /// Of `images` images, at least 1.
    pub fn new(seed: u64, images: usize) -> Self {
        Self { seed, images: images as u64, epoch: None, order: Vec::new() }
    }

    /// Indices of the `batch` images of `step`, which counts from 0.
    pub fn batch(&mut self, step: u64, batch: usize) -> Vec<usize> {
        let first = step * batch as u64;
        (first..first + batch as u64).map(|position| self.at(position)).collect()
    }

    fn at(&mut self, position: u64) -> usize {
        let (epoch, place) = (position / self.images, position % self.images);
        if self.epoch != Some(epoch) {
            let mut rng = ChaCha12Rng::seed_from_u64(self.seed);
            rng.set_stream(epoch);
            self.order = (0..self.images as usize).collect();
            self.order.shuffle(&mut rng);
            self.epoch = Some(epoch);
        }
        self.order[place as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_comes_once_an_epoch() {
        let mut order = Order::new(3, 10);
        let seen: Vec<usize> = (0..5).flat_map(|step| order.batch(step, 4)).collect();
        for epoch in seen.chunks(10) {
            let mut epoch = epoch.to_vec();
            epoch.sort_unstable();
            assert_eq!(epoch, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(seen[..10], seen[10..]);
        assert_eq!(Order::new(3, 10).batch(3, 4), seen[12..16], "a batch depends on its step alone");
    }
}
