//! From noise to data along any velocity field.

use crate::{Condition, Result, VelocityField};
use hdd_protocol::Solver;
use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use rand_distr::{Distribution, StandardNormal};
use std::ops::ControlFlow;
use tch::{Device, Kind, Tensor};

/// Standard normal noise, `(B, C, H, W)`: each image's comes from its own seed, so that an image sampled beside others
/// is the one sampled alone, on every device.
pub fn noise(seeds: &[u64], shape: [i64; 3], device: Device) -> Tensor {
    let numbers: i64 = shape.iter().product();
    let values: Vec<f32> = seeds
        .iter()
        .flat_map(|&seed| {
            let rng = ChaCha12Rng::seed_from_u64(seed);
            Distribution::<f32>::sample_iter(StandardNormal, rng).take(numbers as usize)
        })
        .collect();
    let [c, h, w] = shape;
    Tensor::from_slice(&values).reshape([seeds.len() as i64, c, h, w]).to_device(device)
}

/// `steps + 1` times from 1 to 0. `shift = 1` is uniform; above 1, more steps are spent at high noise
/// (`s t / (1 + (s - 1) t)`, Esser et al. 2024, Eq. 23).
pub fn time_grid(steps: u32, shift: f64) -> Vec<f64> {
    let at = |i: u32| 1.0 - f64::from(i) / f64::from(steps);
    (0..=steps).map(|i| shift * at(i) / (1.0 + (shift - 1.0) * at(i))).collect()
}

/// Integrates `field` from `x` at `times[0]` to `times.last()`; shapes `(B, ...)`.
///
/// `on_step` hears of every step done; when it breaks, sampling ends and `None` is returned.
///
/// # Errors
/// What the field returns.
pub fn sample(
    field: &dyn VelocityField,
    x: Tensor,
    condition: &Condition,
    times: &[f64],
    solver: Solver,
    mut on_step: impl FnMut(u32) -> ControlFlow<()>,
) -> Result<Option<Tensor>> {
    let _guard = tch::no_grad_guard();
    let batch = x.size().first().copied().unwrap_or(0) as usize;
    let mut x = x;
    for (done, pair) in times.windows(2).enumerate() {
        let (t, next) = (pair[0], pair[1]);
        let v = field.velocity(&x, &vec![t; batch], condition)?;
        let euler = &x + &v * (next - t);
        // The last step of Heun stays first order: at t = 0 a field may be singular.
        x = if solver == Solver::Heun && next > 0.0 {
            let v2 = field.velocity(&euler, &vec![next; batch], condition)?;
            &x + (v + v2) * ((next - t) / 2.0)
        } else {
            euler
        };
        if on_step(done as u32 + 1).is_break() {
            return Ok(None);
        }
    }
    Ok(Some(x))
}

/// Pixels in [-1, 1], `(B, 3, H, W)`, as pictures.
pub fn to_pictures(x: &Tensor) -> Result<Vec<hdd_protocol::Picture>> {
    let (height, width) = (x.size()[2] as u32, x.size()[3] as u32);
    let bytes = ((x.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to_kind(Kind::Uint8).permute([0, 2, 3, 1]);
    let bytes = bytes.to_device(Device::Cpu).contiguous().flatten(0, -1);
    let bytes: Vec<u8> = Vec::try_from(&bytes)?;
    let one = 3 * width as usize * height as usize;
    Ok(bytes.chunks_exact(one).map(|rgb| hdd_protocol::Picture { width, height, rgb: rgb.to_vec() }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::column;

    /// Exact velocity of a Gaussian world: x0 ~ N(m, s^2) on the linear path.
    struct Gaussian {
        mean: f64,
        std: f64,
    }

    impl VelocityField for Gaussian {
        fn velocity(&self, x: &Tensor, t: &[f64], _: &Condition) -> Result<Tensor> {
            let var = |t: f64| (1.0 - t).powi(2) * self.std.powi(2) + t * t;
            let slope = column(t.iter().map(|&t| (t - (1.0 - t) * self.std.powi(2)) / var(t)), x);
            let centre = column(t.iter().map(|&t| (1.0 - t) * self.mean), x);
            Ok(slope * (x - centre) - self.mean)
        }
    }

    fn error(steps: u32, solver: Solver) -> f64 {
        let field = Gaussian { mean: 1.0, std: 0.5 };
        let x = Tensor::from_slice(&[-1.0, 0.0, 2.0]);
        let nothing = Condition { text: None, guidance: None };
        let y =
            sample(&field, x.shallow_clone(), &nothing, &time_grid(steps, 1.0), solver, |_| ControlFlow::Continue(()))
                .unwrap()
                .unwrap();
        // The flow maps quantiles to quantiles.
        (y - (x * 0.5 + 1.0)).abs().max().double_value(&[])
    }

    #[test]
    fn euler_converges_in_first_order_and_heun_in_second() {
        let (e1, e2) = (error(100, Solver::Euler), error(200, Solver::Euler));
        assert!((1.8..2.2).contains(&(e1 / e2)), "{e1} {e2}");
        let (h1, h2) = (error(100, Solver::Heun), error(200, Solver::Heun));
        assert!(h1 < e1 / 5.0 && h1 / h2 > 3.0, "{h1} {h2}");
    }

    #[test]
    fn noise_belongs_to_the_image() {
        let together = noise(&[7, 8, 9], [3, 4, 4], Device::Cpu);
        assert_eq!(together.narrow(0, 1, 1), noise(&[8], [3, 4, 4], Device::Cpu));
        let many = noise(&(0..64).collect::<Vec<_>>(), [3, 16, 16], Device::Cpu);
        assert!(many.mean(None).double_value(&[]).abs() < 0.02);
        assert!((many.std(true).double_value(&[]) - 1.0).abs() < 0.02);
    }

    #[test]
    fn a_break_ends_sampling() {
        let field = Gaussian { mean: 0.0, std: 1.0 };
        let nothing = Condition { text: None, guidance: None };
        let stop = |done| if done == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        let x = Tensor::from_slice(&[1.0]);
        assert!(sample(&field, x, &nothing, &time_grid(10, 1.0), Solver::Euler, stop).unwrap().is_none());
    }
}
