//! Where requests from the network meet the device thread.

use crate::network::Service;
use hdd_protocol::{
    Charter, Digest, ErrorCode, Offer, OfferedExpert, SampleEvent, SampleRequest, SecretKey, ServiceResponse, Signed,
    Verified,
};
use hdd_router_service::{Engine, SampleSink};
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::mpsc::{Sender, error::TrySendError};

/// The aggregator's service: closed while it has no router.
pub struct Desk {
    key: SecretKey,
    open: RwLock<Option<Open>>,
}

struct Open {
    engine: Arc<Engine>,
    charter: Verified<Charter>,
    router: Digest,
    offer: Option<Vec<u8>>,
}

impl Desk {
    /// A closed desk that will sign offers with `key`.
    pub fn new(key: SecretKey) -> Self {
        Self { key, open: RwLock::new(None) }
    }

    /// Takes requests from now on.
    pub fn open(&self, engine: Arc<Engine>, charter: Verified<Charter>, router: Digest) {
        *self.open.write().unwrap_or_else(PoisonError::into_inner) =
            Some(Open { engine, charter, router, offer: None });
    }

    /// Takes no more requests until it is opened again.
    pub fn close(&self) {
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Offers `experts` from now on; none is no offer.
    ///
    /// # Errors
    /// The protocol's for more experts than an offer carries.
    pub fn set_experts(&self, experts: Vec<OfferedExpert>, now: u64) -> hdd_protocol::Result<()> {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = open.as_mut() else { return Ok(()) };
        let offer = Offer {
            aggregator: self.key.public(),
            charter: open.charter.digest(),
            router: Some(open.router),
            limits: open.charter.limits.sample,
            issued_at: now,
            experts,
        };
        open.offer = match offer.experts.is_empty() {
            true => None,
            false => Some(Signed::sign(offer, &self.key)?.bytes().to_vec()),
        };
        Ok(())
    }
}

impl Service for Desk {
    fn offer(&self) -> Option<Vec<u8>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).as_ref()?.offer.clone()
    }

    fn sample(&self, request: SampleRequest, events: Sender<ServiceResponse>) {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let outcome = match &*open {
            Some(open) => open.engine.sample(request, sink(events.clone())).map_err(|e| (e.code(), e.to_string())),
            None => Err((ErrorCode::NotReady, "the router is not ready; ask again in a few minutes".into())),
        };
        if let Err((code, message)) = outcome {
            // The channel is fresh: there is room, or the client has left.
            let _ = events.try_send(ServiceResponse::Refused { code, message });
        }
    }
}

/// Hands events to the stream. Progress is dropped while the client is slow; pictures and endings wait for it, on the
/// device thread, within the stream's own timeout.
fn sink(events: Sender<ServiceResponse>) -> SampleSink {
    Box::new(move |event| match event {
        ServiceResponse::Event(SampleEvent::Step { .. } | SampleEvent::Queued { .. }) => {
            !matches!(events.try_send(event), Err(TrySendError::Closed(_)))
        }
        event => events.blocking_send(event).is_ok(),
    })
}
