//! Words for specifications on the command line, shared by the commands that train, import and predict.

use clap::ValueEnum;
use hdd_protocol::{Objective, Schedule, TimestepMap};

/// What a network predicts.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ObjectiveName {
    /// The noise (DDPM)
    Epsilon,
    /// The clean sample
    X0,
    /// alpha eps - sigma x0
    V,
    /// The path's velocity (flow matching)
    Velocity,
}

impl From<ObjectiveName> for Objective {
    fn from(name: ObjectiveName) -> Self {
        match name {
            ObjectiveName::Epsilon => Self::Epsilon,
            ObjectiveName::X0 => Self::X0,
            ObjectiveName::V => Self::V,
            ObjectiveName::Velocity => Self::Velocity,
        }
    }
}

/// The noising path.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ScheduleName {
    /// (1 - t, t)
    Linear,
    /// (cos, sin)
    Cosine,
    /// Cosine with the offset 0.008
    CosineOffset,
    /// DDPM's thousand betas
    LinearBeta,
}

impl From<ScheduleName> for Schedule {
    fn from(name: ScheduleName) -> Self {
        match name {
            ScheduleName::Linear => Self::Linear,
            ScheduleName::Cosine => Self::Cosine,
            ScheduleName::CosineOffset => Self::CosineOffset { offset: 0.008 },
            ScheduleName::LinearBeta => Self::DDPM,
        }
    }
}

/// How a network reads the time.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum TimestepMapName {
    /// The time itself
    Paper,
    /// DiT's step with the same signal-to-noise ratio: the linear path's 0.5 is step 258
    Snr,
}

impl From<TimestepMapName> for TimestepMap {
    fn from(name: TimestepMapName) -> Self {
        match name {
            TimestepMapName::Paper => Self::Paper,
            TimestepMapName::Snr => Self::Snr,
        }
    }
}
