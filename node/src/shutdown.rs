//! One way to stop: Ctrl-C or SIGTERM asks, everything long-lived listens, a second signal ends the process at once.

use crate::{Error, Result};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// Exit code of a process that was stopped by Ctrl-C, as shells have it: 128 + SIGINT.
const INTERRUPTED: i32 = 130;

/// Tells whether the process should stop. Cheap to clone; threads may poll it, tasks may wait for it.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

/// Asks for the stop that the [`Shutdown`]s made with it wait for. Dropping it asks for nothing.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

impl Trigger {
    /// Asks.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// One that a program asks, for tests and embedding.
    pub fn manual() -> (Trigger, Self) {
        let (sender, receiver) = watch::channel(false);
        (Trigger(sender), Self(receiver))
    }

    /// One that signals ask; needs a running tokio runtime.
    ///
    /// # Errors
    /// [`Error::Io`] if the system lets no handler be set.
    pub fn on_signals() -> Result<Self> {
        let handler = |kind| signal(kind).map_err(Error::io("set a handler for", "signals"));
        let (mut interrupt, mut terminate) = (handler(SignalKind::interrupt())?, handler(SignalKind::terminate())?);
        let (trigger, shutdown) = Self::manual();
        tokio::spawn(async move {
            let mut next = async || tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} };
            next().await;
            tracing::info!("stopping; press Ctrl-C again to stop at once");
            trigger.stop();
            next().await;
            std::process::exit(INTERRUPTED);
        });
        Ok(shutdown)
    }

    /// Whether a stop was asked for.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns once a stop is asked for.
    pub async fn requested(&self) {
        if self.0.clone().wait_for(|stop| *stop).await.is_err() {
            std::future::pending().await // the trigger is gone: nobody will ever ask
        }
    }

    /// As [`Self::interrupts`], but a stop is how this work is meant to end.
    ///
    /// # Errors
    /// `work`'s own.
    pub async fn until(&self, work: impl Future<Output = Result<()>>) -> Result<()> {
        match self.interrupts(work).await {
            Err(Error::Interrupted) => Ok(()),
            result => result,
        }
    }

    /// Runs `work` to its end or until a stop is asked for, which drops it.
    ///
    /// # Errors
    /// `work`'s own; [`Error::Interrupted`].
    pub async fn interrupts<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            result = work => result,
            () = self.requested() => Err(Error::Interrupted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{future::pending, time::Duration};

    #[tokio::test]
    async fn a_stop_interrupts_work_and_stays_asked_for() {
        let (trigger, shutdown) = Shutdown::manual();
        assert_eq!(shutdown.interrupts(async { Ok(7) }).await.unwrap(), 7);
        assert!(!shutdown.is_requested());
        trigger.stop();
        assert!(matches!(shutdown.interrupts(pending::<Result<()>>()).await, Err(Error::Interrupted)));
        drop(trigger);
        assert!(shutdown.is_requested());
        shutdown.requested().await;
    }

    #[tokio::test]
    async fn a_lost_trigger_is_no_stop() {
        let (trigger, shutdown) = Shutdown::manual();
        drop(trigger);
        assert!(tokio::time::timeout(Duration::from_millis(20), shutdown.requested()).await.is_err());
    }
}
