//! The project's own kernels for float32 on the CPU, with their gradients. Elsewhere, on x86 without AVX2 or from a compiler that
//! cannot build for several processors at once, and should one of them fail, libtorch's operators compute the same.

use super::outcome;
use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

unsafe extern "C" {
    fn hdd_kernels() -> bool;
    fn hdd_gelu(out: *mut *mut C_tensor, x: *mut C_tensor) -> *mut std::ffi::c_char;
    fn hdd_norm_modulate(
        out: *mut *mut C_tensor,
        x: *mut C_tensor,
        shift: *mut C_tensor,
        scale: *mut C_tensor,
        epsilon: f64,
    ) -> *mut std::ffi::c_char;
    fn hdd_attention(
        out: *mut *mut C_tensor,
        q_rows: *mut C_tensor,
        kv_rows: *mut C_tensor,
        heads: i64,
    ) -> *mut std::ffi::c_char;
}

/// Most probabilities a head that [`attention`] takes, and keeps for the backward pass.
const MOST_PROBABILITIES: i64 = 256 * 256;

/// Whether attention of `n` tokens to `l` on `device` goes through [`attention`], which keeps `n * l` probabilities a head.
pub fn keeps_probabilities(n: i64, l: i64, device: Device) -> bool {
    device == Device::Cpu && worthwhile() && n * l <= MOST_PROBABILITIES
}

fn worthwhile() -> bool {
    // SAFETY: asks about the processor, no memory is passed.
    unsafe { hdd_kernels() }
}

fn serves(x: &Tensor) -> bool {
    x.device() == Device::Cpu && x.kind() == Kind::Float && worthwhile()
}

fn pointer(tensor: &Tensor) -> *mut C_tensor {
    tensor.as_ptr() as *mut C_tensor
}

/// The tensor that `call` writes a pointer to.
fn made(call: impl FnOnce(*mut *mut C_tensor) -> *mut std::ffi::c_char) -> Option<Tensor> {
    let mut out = std::ptr::null_mut();
    outcome(call(&raw mut out)).ok()?;
    // SAFETY: on success the shim leaves a new tensor, owned by the caller.
    Some(unsafe { Tensor::from_ptr(out) })
}

/// The tanh GELU of `x`, or None where [the kernel](self) does not serve.
pub fn gelu(x: &Tensor) -> Option<Tensor> {
    // SAFETY: one live tensor of floats on the CPU.
    serves(x).then(|| made(|out| unsafe { hdd_gelu(out, pointer(x)) }))?
}

/// `norm(x) (1 + scale) + shift` of `(B, N, D)` with `(B, 1, D)`; the norm has no affine part. None as [`gelu`].
pub fn norm_modulate(x: &Tensor, shift: &Tensor, scale: &Tensor, epsilon: f64) -> Option<Tensor> {
    let fit = |m: &Tensor| serves(m) && m.dim() == 3 && m.size()[1..] == [1, x.size()[2]] && m.stride()[2] == 1;
    if !serves(x) || x.dim() != 3 || !fit(shift) || !fit(scale) {
        return None;
    }
    // SAFETY: live tensors of floats on the CPU; those of modulation have contiguous rows of x's width.
    made(|out| unsafe { hdd_norm_modulate(out, pointer(x), pointer(shift), pointer(scale), epsilon) })
}

/// Softmax attention, `(B, N, D)`, of the queries, keys and values side by side in `q_rows (B, N, 3 D)`; or of the queries
/// `q_rows (B, N, D)` to the keys and values in `kv_rows (B, L, 2 D)`. Heads share D out in order. None as [`gelu`].
pub fn attention(q_rows: &Tensor, kv_rows: Option<&Tensor>, heads: i64) -> Option<Tensor> {
    let keys = kv_rows.unwrap_or(q_rows);
    let (q, kv) = (q_rows.size(), keys.size());
    let &[batch, n, columns] = q.as_slice() else { return None };
    let width = if kv_rows.is_some() { columns } else { columns / 3 };
    let fit = kv.len() == 3 && kv[0] == batch && (kv_rows.is_none() || kv[2] == 2 * width) && width % heads == 0;
    if !serves(q_rows) || !serves(keys) || !fit || n == 0 || kv[1] == 0 || !keeps_probabilities(n, kv[1], Device::Cpu) {
        return None;
    }
    // SAFETY: live tensors of floats on the CPU, with the shapes that the kernel reads.
    made(|out| unsafe { hdd_attention(out, pointer(q_rows), pointer(keys), heads) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::normal;

    fn drawn(shape: &[i64], seed: u64) -> Tensor {
        (normal(shape, seed).unwrap() * 1.5).set_requires_grad(true)
    }

    /// Output and gradients of `ours` and of libtorch's operators in float64 agree to rounding.
    fn agree(inputs: &[Tensor], ours: impl Fn(&[Tensor]) -> Tensor, theirs: impl Fn(&[Tensor]) -> Tensor) {
        let gradients = |inputs: &[Tensor], y: &Tensor| {
            let upstream = normal(&y.size(), 99).unwrap().to_kind(y.kind());
            Tensor::run_backward(&[(y * upstream).sum(y.kind())], inputs, false, false)
        };
        let y = ours(inputs);
        let exact: Vec<Tensor> =
            inputs.iter().map(|x| x.detach().to_kind(Kind::Double).set_requires_grad(true)).collect();
        let reference = theirs(&exact);
        let found = gradients(inputs, &y).into_iter().chain([y.detach()]);
        let wanted = gradients(&exact, &reference).into_iter().chain([reference.detach()]);
        for (found, wanted) in found.zip(wanted) {
            let difference = (found - &wanted).abs().max().double_value(&[]);
            let scale = wanted.abs().max().double_value(&[]);
            assert!(difference < 3e-6 * scale.max(1.0), "{difference} of {scale}");
        }
        let quiet = tch::no_grad(|| ours(inputs));
        assert_eq!(quiet, y, "without gradient the result is the same");
    }

    #[test]
    fn gelu_is_libtorchs() {
        for shape in [vec![3, 5, 7], vec![2, 100, 300]] {
            agree(&[drawn(&shape, 1)], |x| gelu(&x[0]).unwrap(), |x| x[0].gelu("tanh"));
        }
        let ends = Tensor::from_slice(&[-90.0f32, 90.0, f32::NAN]);
        let y: Vec<f32> = Vec::try_from(gelu(&ends).unwrap()).unwrap();
        assert!(y[0].abs() < 1e-30 && y[1] == 90.0 && y[2].is_nan(), "{y:?}");
    }

    #[test]
    fn norm_modulate_is_libtorchs() {
        for [b, n, d] in [[2, 3, 10], [4, 64, 192]] {
            let parts = |m: &Tensor| m.unsqueeze(2).unbind(1);
            agree(
                &[drawn(&[b, n, d], 1), drawn(&[b, 2, d], 2)],
                |x| norm_modulate(&x[0], &parts(&x[1])[0], &parts(&x[1])[1], 1e-6).unwrap(),
                |x| {
                    let m = parts(&x[1]);
                    x[0].layer_norm([d], None::<Tensor>, None::<Tensor>, 1e-6, true) * (&m[1] + 1.0) + &m[0]
                },
            );
        }
    }

    #[test]
    fn attention_is_libtorchs() {
        let heads = |x: &Tensor, h: i64| x.unflatten(2, [h, -1]).transpose(1, 2);
        let reference = |q: &Tensor, k: &Tensor, v: &Tensor, h: i64| {
            Tensor::scaled_dot_product_attention(
                &heads(q, h),
                &heads(k, h),
                &heads(v, h),
                None::<Tensor>,
                0.0,
                false,
                None,
                false,
            )
            .transpose(1, 2)
            .flatten(2, 3)
        };
        for [b, n, l, h, d] in [[2, 9, 5, 3, 10], [2, 64, 8, 6, 32], [1, 70, 77, 2, 72], [1, 3, 1, 1, 4]] {
            agree(
                &[drawn(&[b, n, 3 * h * d], 1)],
                |x| attention(&x[0], None, h).unwrap(),
                |x| {
                    let p = x[0].chunk(3, 2);
                    reference(&p[0], &p[1], &p[2], h)
                },
            );
            agree(
                &[drawn(&[b, n, h * d], 2), drawn(&[b, l, 2 * h * d], 3)],
                |x| attention(&x[0], Some(&x[1]), h).unwrap(),
                |x| {
                    let p = x[1].chunk(2, 2);
                    reference(&x[0], &p[0], &p[1], h)
                },
            );
        }
    }

    #[test]
    fn other_kinds_and_shapes_are_left_to_libtorch() {
        let x = Tensor::ones([2, 3, 6], (Kind::Double, Device::Cpu));
        assert!(gelu(&x).is_none() && norm_modulate(&x, &x, &x, 1e-6).is_none() && attention(&x, None, 2).is_none());
        let x = x.to_kind(Kind::Float);
        assert!(norm_modulate(&x, &x, &x, 1e-6).is_none(), "modulation of every token");
        assert!(attention(&x, None, 4).is_none(), "a width that heads do not divide");
        assert!(attention(&x, Some(&x), 2).is_none(), "keys without values");
        let long = Tensor::ones([1, 1000, 6], (Kind::Float, Device::Cpu));
        assert!(attention(&long, None, 2).is_none(), "more probabilities than are kept");
    }
}
