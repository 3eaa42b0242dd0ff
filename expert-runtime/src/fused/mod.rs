//! libtorch's fused kernels that tch does not bind, and kernels of the project's own. With the memory map in `weights`, the only unsafe code of the project.
//!
//! Every call passes pointers of live tensors, all of one length, and returns libtorch's exception as an error.
#![allow(unsafe_code)]

mod kernels;

pub use kernels::{attention, gelu, keeps_probabilities, norm_modulate};

use crate::{Error, Result};
use std::ffi::{CStr, c_char};
use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

unsafe extern "C" {
    fn hdd_torch_version() -> *const c_char;
    fn hdd_free(message: *mut c_char);
    fn hdd_fused_adamw(
        params: *mut *mut C_tensor,
        grads: *mut *mut C_tensor,
        first: *mut *mut C_tensor,
        second: *mut *mut C_tensor,
        steps: *mut *mut C_tensor,
        n: usize,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> *mut c_char;
    fn hdd_foreach_lerp(targets: *mut *mut C_tensor, sources: *mut *mut C_tensor, n: usize, weight: f64)
    -> *mut c_char;
    fn hdd_backward(outputs: *mut *mut C_tensor, grads: *mut *mut C_tensor, n: usize) -> *mut c_char;
    fn hdd_normal(tensor: *mut C_tensor, seed: u64) -> *mut c_char;
    fn hdd_autocast(cuda: bool, enabled: bool, half: bool) -> *mut c_char;
    fn hdd_allow_tf32(allow: bool) -> *mut c_char;
    fn hdd_free_memory(index: i8, bytes: *mut usize) -> *mut c_char;
    fn hdd_stay_on_this_thread();
    fn hdd_keep_pages();
}

/// The version of libtorch that this build was compiled against.
pub fn torch_version() -> String {
    // SAFETY: the shim returns a string literal.
    unsafe { CStr::from_ptr(hdd_torch_version()) }.to_string_lossy().into_owned()
}

/// Keeps freed pages in the process instead of returning them to the system between steps: a training step of a small
/// expert runs a tenth faster. Does nothing where the C library is not glibc.
pub fn keep_pages() {
    // SAFETY: sets allocator parameters, no memory is passed.
    unsafe { hdd_keep_pages() }
}

/// Keeps libtorch's operators that this thread calls on this thread. A second thread with helpers of its own would give the process
/// more threads than cores, and OpenMP then puts threads to sleep between any two operators.
pub fn stay_on_this_thread() {
    // SAFETY: sets this thread's number of helpers, no memory is passed.
    unsafe { hdd_stay_on_this_thread() }
}

fn pointers(tensors: &[Tensor]) -> Vec<*mut C_tensor> {
    tensors.iter().map(|t| t.as_ptr() as *mut C_tensor).collect()
}

fn outcome(message: *mut c_char) -> Result<()> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: the shim returns null or a NUL-terminated string of its own, freed once here.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        hdd_free(message);
        text
    };
    Err(Error::Torch(text.lines().next().unwrap_or_default().to_owned()))
}

/// `target += weight (source - target)` for every pair, fused: an EMA step with `weight = 1 - decay`.
///
/// # Errors
/// [`Error::Torch`] if lengths or shapes differ.
pub fn lerp(targets: &[Tensor], sources: &[Tensor], weight: f64) -> Result<()> {
    same_length(targets.len(), &[sources.len()])?;
    let (mut t, mut s) = (pointers(targets), pointers(sources));
    // SAFETY: both arrays hold `t.len()` live tensors.
    outcome(unsafe { hdd_foreach_lerp(t.as_mut_ptr(), s.as_mut_ptr(), t.len(), weight) })
}

/// Back-propagates from `outputs`, given the gradient at each, into the leaves that made them.
///
/// # Errors
/// [`Error::Torch`] if lengths or shapes differ, or a graph is used a second time.
pub fn backward(outputs: &[Tensor], gradients: &[Tensor]) -> Result<()> {
    same_length(outputs.len(), &[gradients.len()])?;
    let (mut o, mut g) = (pointers(outputs), pointers(gradients));
    // SAFETY: both arrays hold `o.len()` live tensors.
    outcome(unsafe { hdd_backward(o.as_mut_ptr(), g.as_mut_ptr(), o.len()) })
}

/// Standard normal numbers on the CPU from a generator of their own: those that `randn` gives after `manual_seed(seed)`.
///
/// # Errors
/// [`Error::Torch`] if there is no memory.
pub fn normal(shape: &[i64], seed: u64) -> Result<Tensor> {
    let tensor = Tensor::f_empty(shape, (Kind::Float, Device::Cpu))?;
    // SAFETY: one live tensor.
    outcome(unsafe { hdd_normal(tensor.as_ptr() as *mut C_tensor, seed) })?;
    Ok(tensor)
}

/// Matrix products of this thread in a half precision while it lives; weights stay as they are.
#[derive(Debug)]
pub struct Autocast {
    device: Device,
}

impl Autocast {
    /// Switches to `kind`, [`Kind::Half`] or else bfloat16, for products on `device`.
    ///
    /// # Errors
    /// [`Error::Torch`] if this libtorch knows no such device.
    pub fn new(device: Device, kind: Kind) -> Result<Self> {
        // SAFETY: sets flags of this thread, no memory is passed.
        outcome(unsafe { hdd_autocast(device.is_cuda(), true, kind == Kind::Half) })?;
        Ok(Self { device })
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        // SAFETY: as above. What could be switched on can be switched off.
        let _ = outcome(unsafe { hdd_autocast(self.device.is_cuda(), false, false) });
    }
}

/// Lets float32 matrix products of the process use TensorFloat-32 on devices that have it, or forbids it.
///
/// # Errors
/// [`Error::Torch`] if libtorch refuses.
pub fn allow_tf32(allow: bool) -> Result<()> {
    // SAFETY: sets a flag, no memory is passed.
    outcome(unsafe { hdd_allow_tf32(allow) })
}

/// Free memory of a CUDA card, bytes, as its driver tells.
///
/// # Errors
/// [`Error::Torch`] where this libtorch or the machine has no such card.
pub fn cuda_free_memory(index: usize) -> Result<u64> {
    let mut bytes = 0;
    let index = i8::try_from(index).map_err(|_| Error::Torch(format!("there is no CUDA card {index}")))?;
    // SAFETY: writes one number through a pointer to it.
    outcome(unsafe { hdd_free_memory(index, &mut bytes) })?;
    Ok(bytes as u64)
}

fn same_length(n: usize, others: &[usize]) -> Result<()> {
    if others.iter().all(|&m| m == n) {
        return Ok(());
    }
    Err(Error::Torch(format!("lists of {n} and {others:?} tensors do not pair up")))
}

/// AdamW's constants (Loshchilov and Hutter, 2019).
#[derive(Debug, Clone, Copy)]
pub struct Adam {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// AdamW's moments, one pair a parameter.
pub struct AdamState {
    /// First moments.
    pub first: Vec<Tensor>,
    /// Second moments.
    pub second: Vec<Tensor>,
}

impl AdamState {
    /// Zero moments of the parameters' shapes.
    pub fn new(params: &[Tensor]) -> Self {
        let zeros = || params.iter().map(|p| p.detach().zeros_like()).collect();
        Self { first: zeros(), second: zeros() }
    }

    /// One step over all parameters from their gradients; `step` counts from 1.
    ///
    /// # Errors
    /// [`Error::Torch`] if shapes, kinds or devices differ.
    pub fn step(&self, params: &[Tensor], grads: &[Tensor], step: u64, learning_rate: f64, adam: Adam) -> Result<()> {
        same_length(params.len(), &[grads.len(), self.first.len(), self.second.len()])?;
        let Some(device) = params.first().map(Tensor::device) else { return Ok(()) };
        // The kernel reads one counter a parameter and advances none of them: all may be the same tensor.
        let counter = Tensor::full([], step as f64, (Kind::Float, device));
        let steps: Vec<Tensor> = params.iter().map(|_| counter.shallow_clone()).collect();
        let (mut p, mut g) = (pointers(params), pointers(grads));
        let (mut m, mut v, mut s) = (pointers(&self.first), pointers(&self.second), pointers(&steps));
        // SAFETY: five arrays of `p.len()` live tensors.
        outcome(unsafe {
            hdd_fused_adamw(
                p.as_mut_ptr(),
                g.as_mut_ptr(),
                m.as_mut_ptr(),
                v.as_mut_ptr(),
                s.as_mut_ptr(),
                p.len(),
                learning_rate,
                adam.beta1,
                adam.beta2,
                adam.weight_decay,
                adam.epsilon,
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeded;

    /// AdamW written out for one parameter, from the algorithm's definition.
    #[test]
    fn fused_adamw_is_adamw() {
        let adam = Adam { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1 };
        let param = Tensor::from_slice(&[1.0f32, -2.0, 0.5]);
        let state = AdamState::new(std::slice::from_ref(&param));
        let (mut x, mut m, mut v) = (vec![1.0f64, -2.0, 0.5], [0.0; 3], [0.0; 3]);
        for step in 1..=20u64 {
            let grad: Vec<f64> = x.iter().map(|x| x * step as f64 * 0.1 - 0.3).collect();
            let tensor = Tensor::from_slice(&grad).to_kind(Kind::Float);
            state.step(std::slice::from_ref(&param), &[tensor], step, 0.01, adam).unwrap();
            for i in 0..3 {
                m[i] = adam.beta1 * m[i] + (1.0 - adam.beta1) * grad[i];
                v[i] = adam.beta2 * v[i] + (1.0 - adam.beta2) * grad[i] * grad[i];
                let (m, v) = (m[i] / (1.0 - 0.9f64.powi(step as i32)), v[i] / (1.0 - 0.95f64.powi(step as i32)));
                x[i] -= 0.01 * (adam.weight_decay * x[i] + m / (v.sqrt() + adam.epsilon));
            }
        }
        let got: Vec<f32> = Vec::try_from(&param).unwrap();
        for (got, wanted) in got.iter().zip(x) {
            assert!((f64::from(*got) - wanted).abs() < 1e-5, "{got} {wanted}");
        }
    }

    #[test]
    fn normal_is_randn_of_its_seed_and_backward_takes_gradients() {
        let shape = [100, 1000];
        let drawn = normal(&shape, 11).unwrap();
        assert_eq!(drawn, seeded(11, || Tensor::randn(shape, (Kind::Float, Device::Cpu))));
        assert_ne!(drawn, normal(&shape, 12).unwrap());
        for (power, wanted, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            let moment = drawn.to_kind(Kind::Double).pow_tensor_scalar(power).mean(None).double_value(&[]);
            let spread = (variance / 1e5f64).sqrt();
            assert!((moment - wanted).abs() < 4.0 * spread, "moment {power} is {moment}");
        }

        let x = Tensor::from_slice(&[1.0f32, 2.0]).set_requires_grad(true);
        backward(&[&x * 3.0, x.square()], &[Tensor::from_slice(&[1.0f32, 2.0]), Tensor::from_slice(&[10.0f32, 20.0])])
            .unwrap();
        assert_eq!(Vec::<f32>::try_from(x.grad()).unwrap(), [23.0, 86.0]);
        cuda_free_memory(200).unwrap_err();
    }

    #[test]
    fn autocast_ends_with_its_guard() {
        let x = Tensor::ones([2, 2], (Kind::Float, Device::Cpu));
        for kind in [Kind::BFloat16, Kind::Half] {
            let guard = Autocast::new(Device::Cpu, kind).unwrap();
            assert_eq!(x.matmul(&x).kind(), kind);
            drop(guard);
            assert_eq!(x.matmul(&x).kind(), Kind::Float);
        }
    }

    #[test]
    fn lerp_averages_and_refuses_other_lengths() {
        let (a, b) = (Tensor::from_slice(&[0.0f32, 2.0]), Tensor::from_slice(&[1.0f32, 4.0]));
        lerp(std::slice::from_ref(&a), std::slice::from_ref(&b), 0.25).unwrap();
        assert_eq!(Vec::<f32>::try_from(&a).unwrap(), [0.25, 2.5]);
        lerp(&[a], &[b.shallow_clone(), b], 0.5).unwrap_err();
    }
}
