use hdd_protocol::{Digest, ErrorCode};

/// What can go wrong between experts and images.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An expert failed a test.
    #[error("refused: {0}")]
    Refused(String),
    /// The router cannot be trained.
    #[error("the router's training failed: {0}")]
    Router(String),
    /// Training was stopped, and saved.
    #[error("the router's training was stopped and saved at step {step}; run the same command again to go on")]
    Stopped {
        /// Steps done.
        step: u64,
    },
    /// A request that no aggregator of this charter could serve.
    #[error(transparent)]
    Invalid(#[from] hdd_protocol::Error),
    /// There is no router yet.
    #[error("there is no router yet; ask again in a few minutes")]
    NoRouter,
    /// No expert is admitted.
    #[error("no expert of charter {} is admitted yet; contribute one, or ask again later", .0.short())]
    NoExpert(Digest),
    /// The queue is full.
    #[error("{0} requests are waiting already; try again in a while")]
    Busy(u32),
    /// The device thread has ended.
    #[error("the device thread has ended: {0}")]
    Ended(String),
    /// An operation on tensors panicked.
    #[error("the device failed: {0}")]
    Device(String),
    /// An expert, its data or its weights.
    #[error(transparent)]
    Expert(#[from] hdd_expert_runtime::Error),
}

impl Error {
    /// The stable code that a client sees.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Invalid(_) => ErrorCode::Invalid,
            Self::NoRouter | Self::NoExpert(_) => ErrorCode::NotReady,
            Self::Busy(_) => ErrorCode::Busy,
            Self::Refused(_)
            | Self::Router(_)
            | Self::Stopped { .. }
            | Self::Ended(_)
            | Self::Device(_)
            | Self::Expert(_) => ErrorCode::Internal,
        }
    }
}

impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        Self::Expert(error.into())
    }
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
