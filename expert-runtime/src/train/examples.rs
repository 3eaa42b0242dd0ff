use crate::{Error, Result};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha12Rng;
use tch::Tensor;

/// Latents and their text in memory.
pub struct Examples {
    latents: Tensor, // (N, C, H, W)
    text: Tensor,    // (N, L, W)
}

impl Examples {
    /// Pairs `latents (N, C, H, W)` with `text (N, L, W)`, both on the training device.
    ///
    /// # Errors
    /// [`Error::Data`] if there is none or the counts differ.
    pub fn new(latents: Tensor, text: Tensor) -> Result<Self> {
        let (n, m) = (latents.size()[0], text.size()[0]);
        if n == 0 || n != m {
            let why = format!("{n} images with {m} captions cannot be trained on; prepare the data again");
            return Err(Error::Data { what: "training data".into(), why });
        }
        Ok(Self { latents, text })
    }

    /// Number of images, N.
    pub fn len(&self) -> usize {
        self.latents.size()[0] as usize
    }

    /// Never: [`Examples::new`] refuses it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The batch of `step` (counting from 0): every image once an epoch, each epoch in an order of its own.
    pub fn batch(&self, seed: u64, step: u64, batch: usize) -> (Tensor, Tensor) {
        let n = self.len() as u64;
        let first = step * batch as u64;
        let mut indices = Vec::with_capacity(batch);
        let mut epoch = (u64::MAX, Vec::new());
        for position in first..first + batch as u64 {
            if epoch.0 != position / n {
                epoch = (position / n, order(seed, position / n, n as i64));
            }
            indices.push(epoch.1[(position % n) as usize]);
        }
        let indices = Tensor::from_slice(&indices).to_device(self.latents.device());
        (self.latents.index_select(0, &indices), self.text.index_select(0, &indices))
    }
}

fn order(seed: u64, epoch: u64, n: i64) -> Vec<i64> {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    rng.set_stream(epoch);
    let mut order: Vec<i64> = (0..n).collect();
    order.shuffle(&mut rng);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn every_image_comes_once_an_epoch() {
        let latents = Tensor::arange(10, (Kind::Float, Device::Cpu)).reshape([10, 1, 1, 1]);
        let examples = Examples::new(latents, Tensor::zeros([10, 1, 1], (Kind::Float, Device::Cpu))).unwrap();
        let mut seen: Vec<f32> = Vec::new();
        for step in 0..5 {
            seen.extend(Vec::<f32>::try_from(examples.batch(3, step, 4).0.flatten(0, -1)).unwrap());
        }
        for epoch in seen.chunks(10) {
            let mut epoch = epoch.to_vec();
            epoch.sort_by(f32::total_cmp);
            assert_eq!(epoch, (0..10).map(|i| i as f32).collect::<Vec<_>>());
        }
        assert_ne!(seen[..10], seen[10..]);
    }
}
