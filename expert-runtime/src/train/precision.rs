use crate::{
    Result,
    fused::{self, Autocast},
};
use hdd_protocol::Precision;
use tch::{Device, Kind};

/// Runs a forward pass with the precision's products. Backward passes follow the forward's kinds by themselves.
///
/// # Errors
/// What `forward` returns; [`crate::Error::Torch`] on a device without such products.
pub fn with_precision<T>(precision: Precision, device: Device, forward: impl FnOnce() -> Result<T>) -> Result<T> {
    let kind = match precision {
        Precision::Float32 | Precision::Tf32 => return forward(),
        Precision::Bf16 => Kind::BFloat16,
        Precision::Fp16 => Kind::Half,
    };
    let _guard = Autocast::new(device, kind)?;
    forward()
}

/// Sets what the float32 products of this process may use: TensorFloat-32 for all precisions but [`Precision::Float32`].
///
/// # Errors
/// [`crate::Error::Torch`] if libtorch refuses.
pub fn set_products(precision: Precision) -> Result<()> {
    fused::allow_tf32(precision != Precision::Float32)
}
