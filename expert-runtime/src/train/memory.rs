//! Memory of the device: how much there is, and what to do when it ends.

use crate::{Error, Result, fused};
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

/// Does `work` with `micro_batch` images at a time; whenever memory ends, halves the number, says so and begins again.
///
/// libtorch's operators report by panic as well as by error; both count.
///
/// # Errors
/// [`Error::Memory`] if one image is too many; what `work` returns.
pub fn with_fitting_batch<T>(micro_batch: &mut u32, mut work: impl FnMut(u32) -> Result<T>) -> Result<T> {
    loop {
        let message = match catch_unwind(AssertUnwindSafe(|| work(*micro_batch))) {
            Ok(Err(Error::Torch(message))) if is_out_of_memory(&message) => message,
            Ok(result) => return result,
            Err(panic) => match panic.downcast_ref::<String>() {
                Some(message) if is_out_of_memory(message) => message.clone(),
                _ => resume_unwind(panic),
            },
        };
        if *micro_batch <= 1 {
            return Err(Error::Memory { why: message.lines().next().unwrap_or_default().to_owned() });
        }
        let smaller = *micro_batch / 2;
        tracing::warn!("out of memory with {micro_batch} images at a time; going on with {smaller}");
        *micro_batch = smaller;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_does_not_fit_is_halved_until_it_does() {
        for panics in [false, true] {
            let (mut micro_batch, mut tried) = (100, Vec::new());
            let fits = with_fitting_batch(&mut micro_batch, |n| {
                tried.push(n);
                let message = "CUDA out of memory. Tried to allocate 2.00 GiB".to_owned();
                match n {
                    ..=12 => Ok(n),
                    _ if panics => std::panic::panic_any(message),
                    _ => Err(Error::Torch(message)),
                }
            });
            assert_eq!((fits.unwrap(), micro_batch), (12, 12));
            assert_eq!(tried, [100, 50, 25, 12]);
        }
    }

    #[test]
    fn other_errors_pass_and_one_image_too_many_is_said() {
        let mut micro_batch = 8;
        let other = with_fitting_batch::<()>(&mut micro_batch, |_| Err(Error::Torch("shapes differ".into())));
        assert!(matches!(other, Err(Error::Torch(_))) && micro_batch == 8);
        let full = with_fitting_batch::<()>(&mut micro_batch, |_| Err(Error::Torch("HIP out of memory".into())));
        assert!(full.unwrap_err().to_string().contains("--recompute") && micro_batch == 1);
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
