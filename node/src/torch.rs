//! What training and serving share: the device, the images at hand, and what the linked libtorch is.

use crate::{Error, Result};
use clap::ValueEnum;
use hdd_expert_runtime::{self as runtime, data, data::Images};
use hdd_protocol::{Charter, Codec};
use std::path::PathBuf;
use tch::{Cuda, Device};

pub use runtime::leave_panics_to_their_owners;

/// One line on libtorch and on whether it sees CUDA.
pub fn torch_version() -> Option<String> {
    let cuda = match cuda_devices() {
        0 => "CUDA not seen".to_owned(),
        n => format!("CUDA seen, {n} device{}", if n == 1 { "" } else { "s" }),
    };
    Some(format!("libtorch {}, {cuda}", runtime::torch_version()))
}

fn cuda_devices() -> i64 {
    if Cuda::is_available() { Cuda::device_count() } else { 0 }
}

/// Where and with how many threads tensors are computed.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct DeviceArgs {
    /// Where to compute
    #[arg(long, value_enum, default_value_t = DeviceName::Auto)]
    device: DeviceName,
    /// Threads for libtorch; give each process its share of the cores, or they fight for them [default: all cores]
    #[arg(long, env = "HDD_THREADS", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DeviceName {
    /// The first CUDA card if there is one, else the CPU
    Auto,
    /// The CPU
    Cpu,
    /// The first CUDA card
    Cuda,
}

impl DeviceArgs {
    /// The device.
    ///
    /// # Errors
    /// [`Error::Usage`] if CUDA is asked for and not seen.
    pub fn device(&self) -> Result<Device> {
        match (self.device, cuda_devices()) {
            (DeviceName::Cuda, 0) => Err(Error::Usage(
                "libtorch sees no CUDA device; `hdd-node --version` tells what it sees, --device cpu computes here"
                    .into(),
            )),
            (DeviceName::Cpu, _) | (DeviceName::Auto, 0) => Ok(Device::Cpu),
            _ => Ok(Device::Cuda(0)),
        }
    }

    /// Threads; 0 leaves libtorch's default.
    pub fn threads(&self) -> usize {
        self.threads.map_or(0, usize::from)
    }

    /// Applies the number of threads to the calling thread's libtorch, before its first operation.
    pub fn apply(&self) {
        runtime::keep_pages();
        if self.threads() > 0 {
            tch::set_num_threads(self.threads() as i32);
        }
    }
}

/// Images that a person trains or serves with. They never leave the machine.
#[derive(Debug, Clone, clap::Args)]
pub struct ImageArgs {
    /// Folder of PNG images, captions in .txt files beside them [default: the embedded emoji]
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
}

impl ImageArgs {
    /// Reads the images, with the charter's cluster of each.
    ///
    /// # Errors
    /// A folder without a readable image; a charter whose codec or features this build lacks.
    pub fn read(&self, charter: &Charter) -> Result<(Images, Vec<u16>)> {
        if charter.latent.codec != Codec::Pixels {
            let name = &charter.name;
            return Err(Error::Usage(format!(
                "charter {name} works in the latents of an autoencoder, which this build lacks"
            )));
        }
        let images = match &self.images {
            Some(folder) => data::read_folder(folder, charter.latent.size)?,
            None => data::emoji32()?,
        };
        if images.size != charter.latent.size {
            let (have, want) = (images.size, charter.latent.size);
            return Err(Error::Usage(format!(
                "the embedded images are {have} pixels wide, the charter asks for {want}; give --images DIR"
            )));
        }
        let clusters = data::assign(&data::features(&charter.extractor, &images)?, &charter.centroids);
        Ok((images, clusters))
    }
}
