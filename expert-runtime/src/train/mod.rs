//! Training of one expert on one device (paper Section 6.2).
//!
//! Every random draw of a step comes from the run's seed and the step's number, so that a run that was interrupted goes
//! on as if it had not been: a checkpoint holds weights, moments, averages, the loss scale and the step. A loader
//! prepares batches ahead; how one is computed ([`Compute`]) changes memory and speed, and results by rounding only.

mod compute;
mod estimate;
mod examples;
mod loader;
mod loss;
mod losses;
mod memory;
mod optimiser;
mod precision;
mod recompute;
mod scaler;
mod step;
mod times;

pub use compute::Compute;
pub use estimate::Footprint;
pub use examples::Examples;
pub use memory::{available_memory, with_fitting_batch};
pub use step::{Progress, Stop, Trainer};
pub use times::draw_times;

use examples::Order;
use loader::{Batch, Loader};
