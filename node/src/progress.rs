//! What a person sees while waiting: a bar on a terminal, a plain line now and then elsewhere; always on standard error.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::IsTerminal as _,
    sync::Mutex,
    time::{Duration, Instant},
};

/// Plain lines come at most this often.
const PLAIN_INTERVAL: Duration = Duration::from_secs(10);
/// A spinner turns this often.
const TICK: Duration = Duration::from_millis(120);

/// How far one piece of work has come.
pub struct Progress {
    label: String,
    bar: ProgressBar,
    show: Show,
    last_line: Mutex<Option<Instant>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Show {
    Steps,
    Bytes,
    Waiting,
}

impl Progress {
    /// Counts to `total` steps.
    pub fn steps(label: impl Into<String>, total: u64) -> Self {
        Self::new(label.into(), total, Show::Steps, "{prefix} [{bar:24}] {pos}/{len}, {eta} left {msg}")
    }

    /// Counts to `total` bytes, with the rate.
    pub fn bytes(label: impl Into<String>, total: u64) -> Self {
        let template =
            "{prefix} [{bar:24}] {binary_bytes}/{binary_total_bytes}, {binary_bytes_per_sec}, {eta} left {msg}";
        Self::new(label.into(), total, Show::Bytes, template)
    }

    /// Waits for something whose length nobody knows.
    pub fn waiting(label: impl Into<String>) -> Self {
        let progress = Self::new(label.into(), 0, Show::Waiting, "{spinner} {prefix} {msg}");
        progress.bar.enable_steady_tick(TICK);
        progress
    }

    fn new(label: String, total: u64, show: Show, template: &str) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total), target).with_prefix(label.clone());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self { label, bar, show, last_line: Mutex::default() }
    }

    /// `done` of `total` is done, where the total shows only now.
    pub fn set_of(&self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.set(done);
    }

    /// `done` of the total is done.
    pub fn set(&self, done: u64) {
        self.bar.set_position(done);
        self.line(|bar| {
            let total = bar.length().unwrap_or(0);
            let (done, total) = match self.show {
                Show::Bytes => (crate::table::bytes(done), crate::table::bytes(total)),
                _ => (done.to_string(), total.to_string()),
            };
            let (left, message) = (crate::table::duration(bar.eta().as_secs()), bar.message());
            let comma = if message.is_empty() { "" } else { ", " };
            format!("{done} of {total}, {left} left{comma}{message}")
        });
    }

    /// What is being done or waited for right now. Beside a count it shows with the next [`set`](Self::set).
    pub fn say(&self, message: impl Into<String>) {
        self.bar.set_message(message.into());
        if self.show == Show::Waiting {
            self.line(|bar| bar.message());
        }
    }

    /// Ends with a last word.
    pub fn finish(self, message: &str) {
        self.bar.finish_and_clear();
        eprintln!("{} {message}", self.label);
    }

    // A hidden bar draws nothing: then lines stand in for it.
    fn line(&self, text: impl FnOnce(&ProgressBar) -> String) {
        if !self.bar.is_hidden() {
            return;
        }
        let Ok(mut last) = self.last_line.lock() else { return };
        if last.is_none_or(|last| last.elapsed() >= PLAIN_INTERVAL) {
            *last = Some(Instant::now());
            eprintln!("{} {}", self.label, text(&self.bar));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear(); // an error or Ctrl-C leaves no half bar on the terminal
    }
}
