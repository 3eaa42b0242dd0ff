//! The one place that reads the wall clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A node announces its own records again this often: gossip forgets, and peers come and go.
pub const ANNOUNCE: Duration = Duration::from_secs(300);

/// Seconds since 1970; 0 on a machine whose clock stands before.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// Whether half of a record's life, between two Unix times, has passed: its author then signs it anew.
pub fn is_half_spent(issued_at: u64, expires_at: u64) -> bool {
    unix_now() >= issued_at / 2 + expires_at / 2
}
