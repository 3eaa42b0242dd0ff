//! Training of one expert on one device (paper Section 6.2).
//!
//! Every random draw of a step comes from the run's seed and the step's number, so that a run that was interrupted goes
//! on as if it had not been: a checkpoint holds weights, moments, averages and the step.

mod examples;
mod step;
mod times;

pub use examples::Examples;
pub use step::{Progress, Stop, Trainer};
pub use times::draw_times;
