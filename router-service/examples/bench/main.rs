//! One side of a benchmark: does the work of a case as this project does it, as often as it is told.
//!
//! `deploy/bench/compare.py` starts it beside the same work in PyTorch and lets them take turns. It speaks lines of JSON: on
//! standard input first a [`Case`], then [`Command`]s; each line is answered by one on standard output.

mod sample;
mod train;

use hdd_expert_runtime::{keep_pages, weights::Named};
use hdd_protocol::{Architecture, Precision};
use sample::Sample;
use serde::{Deserialize, de::DeserializeOwned};
use std::{
    error::Error,
    io::{BufRead, stdin},
    path::{Path, PathBuf},
};
use tch::{Device, Kind, Tensor};
use train::Train;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What is measured.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// Of every expert.
    architecture: Architecture,
    /// Whether it runs on the first CUDA card instead of the CPU.
    cuda: bool,
    /// libtorch's threads.
    threads: i32,
    /// Images a step.
    batch: u32,
    /// Of the networks' products.
    precision: Precision,
    work: Work,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Work {
    Train(Train),
    Sample(Sample),
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Command {
    /// Writes weights, inputs and results into this folder, for the other side to compare its own with.
    Check(PathBuf),
    /// Does this many steps and answers with the seconds that they took.
    Run(u64),
}

impl Case {
    fn device(&self) -> Device {
        if self.cuda { Device::Cuda(0) } else { Device::Cpu }
    }

    /// Images, `(B, C, H, W)`, and text for them, `(B, L, W)`: standard normal numbers.
    fn inputs(&self, images: u32) -> (Tensor, Tensor) {
        let a = &self.architecture;
        let normal = |shape: [u32; 4]| Tensor::randn(shape.map(i64::from), (Kind::Float, self.device()));
        let text = normal([images, 1, a.text_length, a.text_width]).squeeze_dim(1);
        (normal([images, a.channels, a.size, a.size]), text)
    }
}

/// Redraws what begins as zero, so that every layer changes the result.
fn fill(parameters: &Named) {
    let _guard = tch::no_grad_guard();
    for parameter in parameters.values().filter(|p| !bool::try_from(p.any()).unwrap_or(true)) {
        let _ = parameter.shallow_clone().normal_(0.0, 0.05);
    }
}

/// The next line, if the other process has not gone.
fn receive<T: DeserializeOwned>() -> Result<Option<T>> {
    let Some(line) = stdin().lock().lines().next() else { return Ok(None) };
    Ok(Some(serde_json::from_str(&line?)?))
}

fn reply(seconds: f64) {
    println!("{}", serde_json::json!({ "seconds": seconds }));
}

/// Waits for the next round and returns its steps, or None once the other process has gone. Meanwhile it lets `check` write
/// its files.
fn next_round(check: impl Fn(&Path) -> Result<()>) -> Result<Option<u64>> {
    loop {
        match receive()? {
            Some(Command::Run(steps)) => return Ok(Some(steps)),
            Some(Command::Check(folder)) => {
                check(&folder)?;
                reply(0.0);
            }
            None => return Ok(None),
        }
    }
}

fn main() -> Result<()> {
    let Some(case) = receive::<Case>()? else { return Ok(()) };
    keep_pages();
    tch::set_num_threads(case.threads);
    tch::manual_seed(1);
    match &case.work {
        Work::Train(train) => train.serve(&case),
        Work::Sample(sample) => sample.serve(&case),
    }
}
