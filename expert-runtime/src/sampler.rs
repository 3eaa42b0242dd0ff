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
/// (`s t / (s t + 1 - t)`, Esser et al. 2024, Eq. 23). `shift` is above 0.
pub fn time_grid(steps: u32, shift: f64) -> Vec<f64> {
    let at = |i: u32| 1.0 - f64::from(i) / f64::from(steps);
    (0..=steps).map(|i| shift * at(i) / (shift * at(i) + (1.0 - at(i)))).collect()
}

/// Integrates `field` from `x` at `times[0]` to `times.last()`, on any falling grid; shapes `(B, ...)`.
///
/// [`Solver::Multistep`] is the two-step method of Adams and Bashforth with variable steps (Hairer, Norsett and Wanner,
/// Solving Ordinary Differential Equations I, Sec. III.5): the line through the last two velocities, integrated over
/// the step. Its first step is Euler's.
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
    let mut before: Option<(f64, Tensor)> = None; // the last step and its velocity
    for (done, pair) in times.windows(2).enumerate() {
        let (t, next) = (pair[0], pair[1]);
        let step = next - t;
        let v = field.velocity(&x, &vec![t; batch], condition)?;
        let mean = match (solver, &before) {
            // The last step of Heun stays first order: at t = 0 a field may be singular.
            (Solver::Heun, _) if next > 0.0 => {
                let ahead = field.velocity(&(&x + &v * step), &vec![next; batch], condition)?;
                (&v + ahead) / 2.0
            }
            (Solver::Multistep, Some((last, old))) => &v + (&v - old) * (step / last / 2.0),
            _ => v.shallow_clone(),
        };
        x = &x + mean * step;
        before = Some((step, v));
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
    use crate::oracle::Mixture;

    #[test]
    fn grids_fall_from_noise_to_data_and_a_shift_stays_longer_at_noise() {
        for shift in [0.1, 1.0, 3.0, 20.0] {
            let times = time_grid(10, shift);
            assert_eq!((times.len(), times[0], times[10]), (11, 1.0, 0.0));
            assert!(times.windows(2).all(|pair| pair[1] < pair[0]), "{times:?}");
            // The uniform grid's odds t / (1 - t), times the shift.
            let odds = |t: f64| t / (1.0 - t);
            for (t, even) in times.iter().zip(time_grid(10, 1.0)).skip(1) {
                assert!((odds(*t) - shift * odds(even)).abs() < 1e-9, "{t}");
            }
        }
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
        let field = Mixture::gaussian(vec![0.0], vec![1.0]).unwrap();
        let nothing = Condition { text: None, guidance: None };
        let stop = |done| if done == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        let x = Tensor::from_slice(&[1.0]).reshape([1, 1]);
        assert!(sample(&field, x, &nothing, &time_grid(10, 1.0), Solver::Euler, stop).unwrap().is_none());
    }
}
