//! The least rate of a transfer: a peer that moves bytes more slowly holds a place that others could use. Only time spent
//! waiting for the peer counts, and only while more is due.

use super::Limits;
use std::{io, time::Duration};
use tokio::time::Instant;

/// Measures one stream's transfers, one window after another.
pub(super) struct Pace {
    slowest: u64,
    window: Duration,
    waited: Duration,
    moved: u64,
}

impl Pace {
    pub(super) fn new(limits: &Limits) -> Self {
        Self { slowest: limits.slowest, window: limits.slowest_over, waited: Duration::ZERO, moved: 0 }
    }

    /// Counts `bytes` that were waited for since `start`.
    ///
    /// # Errors
    /// `TimedOut` if a window ends below the least rate.
    pub(super) fn count(&mut self, bytes: usize, start: Instant) -> io::Result<()> {
        self.add(bytes as u64, start.elapsed())
    }

    fn add(&mut self, bytes: u64, waited: Duration) -> io::Result<()> {
        self.moved += bytes;
        self.waited += waited;
        if self.waited < self.window {
            return Ok(());
        }
        let rate = (self.moved as f64 / self.waited.as_secs_f64()) as u64;
        if rate < self.slowest {
            let why = format!("moves {rate} bytes a second, at least {} are expected", self.slowest);
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        (self.moved, self.waited) = (0, Duration::ZERO);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_window_is_judged_by_itself() {
        let limits = Limits { slowest: 100, slowest_over: Duration::from_secs(10), ..Limits::default() };
        let mut pace = Pace::new(&limits);
        let second = Duration::from_secs(1);
        pace.add(1, 9 * second).unwrap(); // no window has ended
        pace.add(1000, second).unwrap();
        pace.add(1 << 20, 9 * second).unwrap();
        pace.add(0, second).unwrap();
        pace.add(500, 5 * second).unwrap(); // what a fast window had over is no credit
        assert_eq!(pace.add(499, 5 * second).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
