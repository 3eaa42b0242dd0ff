//! Memory of the device: how much there is, and what to do when it ends.

use super::Compute;
use crate::{Error, Result, fused, panic_message};
use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};
use tch::Device;

/// Bytes that a run may take on `device`: what a card's driver or `/proc/meminfo` calls free. None where nobody tells.
pub fn available_memory(device: Device) -> Option<u64> {
    match device {
        Device::Cuda(index) => fused::cuda_free_memory(index).ok(),
        _ => {
            let text = fs::read_to_string("/proc/meminfo").ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
            line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
        }
    }
}

/// Whether libtorch's message says that a device's memory is used up.
fn is_out_of_memory(message: &str) -> bool {
    let words = ["out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED"];
    words.iter().any(|word| message.contains(word))
}

/// Does `work` with as many images at a time as `compute` says; whenever memory ends, halves the number, says so and
/// begins again.
///
/// libtorch's operators report by panic as well as by error; both count.
///
/// # Errors
/// [`Error::Memory`] if one image is too many; what `work` returns.
pub fn with_fitting_batch<T>(compute: &mut Compute, mut work: impl FnMut(u32) -> Result<T>) -> Result<T> {
    loop {
        let images = compute.micro_batch;
        let why = match catch_unwind(AssertUnwindSafe(|| work(images))) {
            Ok(Err(Error::Torch(message))) if is_out_of_memory(&message) => message,
            Ok(result) => return result,
            Err(panic) => match panic_message(&*panic) {
                message if is_out_of_memory(&message) => message,
                _ => resume_unwind(panic),
            },
        };
        if images <= 1 {
            return Err(Error::Memory { why, recompute: compute.recompute });
        }
        compute.micro_batch = images / 2;
        tracing::warn!("out of memory with {images} images at a time; going on with {}", compute.micro_batch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_does_not_fit_is_halved_until_it_does() {
        for panics in [false, true] {
            let (mut compute, mut tried) = (Compute { micro_batch: 100, recompute: false }, Vec::new());
            let fits = with_fitting_batch(&mut compute, |n| {
                tried.push(n);
                let message = "CUDA out of memory. Tried to allocate 2.00 GiB".to_owned();
                match n {
                    ..=12 => Ok(n),
                    _ if panics => std::panic::panic_any(message),
                    _ => Err(Error::Torch(message)),
                }
            });
            assert_eq!((fits.unwrap(), compute.micro_batch), (12, 12));
            assert_eq!(tried, [100, 50, 25, 12]);
        }
    }

    #[test]
    fn other_errors_pass_and_one_image_too_many_is_said() {
        for recompute in [false, true] {
            let mut compute = Compute { micro_batch: 8, recompute };
            let other = with_fitting_batch::<()>(&mut compute, |_| Err(Error::Torch("shapes differ".into())));
            assert!(matches!(other, Err(Error::Torch(_))) && compute.micro_batch == 8);
            let full = with_fitting_batch::<()>(&mut compute, |_| Err(Error::Torch("HIP out of memory".into())));
            let advises_recomputing = full.unwrap_err().to_string().contains("--recompute");
            assert_eq!((advises_recomputing, compute.micro_batch), (!recompute, 1));
        }
        // What the CPU's allocator says.
        let error = tch::Tensor::f_empty([1 << 50], (tch::Kind::Float, Device::Cpu)).unwrap_err();
        assert!(is_out_of_memory(&error.to_string()), "{error}");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_machine_has_memory() {
        assert!(available_memory(Device::Cpu).unwrap() > 1 << 20);
    }
}
