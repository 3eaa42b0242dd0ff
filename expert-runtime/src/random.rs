//! Draws from libtorch's generator, of which a process has one.

use std::sync::{Mutex, PoisonError};

/// What `draw` gives when libtorch's generator begins at `seed`, whatever other threads do: seeding and drawing are one
/// turn at the generator. `draw` must not call this function again. For normal numbers alone, [`normal`](crate::normal) has
/// a generator of its own.
pub fn seeded<T>(seed: u64, draw: impl FnOnce() -> T) -> T {
    static GENERATOR: Mutex<()> = Mutex::new(());
    let _turn = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner); // the next turn seeds anew
    tch::manual_seed(seed as i64);
    draw()
}
