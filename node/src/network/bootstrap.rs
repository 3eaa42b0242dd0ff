//! Whom to dial, and when: bootstraps whenever they are not connected, so that two meshes behind one heal; remembered peers
//! only while there is no other. A state machine without I/O; [`super::event_loop`] does what it says.

use libp2p::{
    Multiaddr, PeerId,
    swarm::{ConnectionId, DialError},
};
use std::{error::Error as _, time::Duration};
use tokio::time::Instant;

/// Whom to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Goal {
    Bootstrap(Multiaddr),
    Remembered(PeerId, Vec<Multiaddr>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting(Instant),
    Dialling(ConnectionId),
    Connected(PeerId),
}

struct Target {
    goal: Goal,
    state: State,
    delay: Duration,
    cause: Option<String>,
}

/// Keeps the targets and their next attempts.
pub(super) struct Dialer {
    targets: Vec<Target>,
    first: Duration,
    last: Duration,
}

impl Dialer {
    /// All targets due at once; waits grow from `first` to `last`.
    pub(super) fn new(goals: impl IntoIterator<Item = Goal>, now: Instant, first: Duration, last: Duration) -> Self {
        let target = |goal| Target { goal, state: State::Waiting(now), delay: first, cause: None };
        Self { targets: goals.into_iter().map(target).collect(), first, last }
    }

    /// What to dial now; `alone` if no peer is connected. Each must be followed by a call of one of the others.
    pub(super) fn due(&self, now: Instant, alone: bool) -> Vec<Goal> {
        let due = |t: &&Target| {
            matches!(t.state, State::Waiting(at) if at <= now) && (alone || matches!(t.goal, Goal::Bootstrap(_)))
        };
        self.targets.iter().filter(due).map(|t| t.goal.clone()).collect()
    }

    pub(super) fn dialling(&mut self, goal: &Goal, connection: ConnectionId) {
        self.set(goal, State::Dialling(connection));
    }

    /// A target turns out to be connected already.
    pub(super) fn reached(&mut self, goal: &Goal, peer: PeerId) {
        self.set(goal, State::Connected(peer));
    }

    /// A connection has been opened.
    pub(super) fn connected(&mut self, connection: ConnectionId, peer: PeerId) {
        for target in &mut self.targets {
            if target.state == State::Dialling(connection) {
                (target.state, target.delay, target.cause) = (State::Connected(peer), self.first, None);
            }
        }
    }

    /// The last connection to `peer` has closed.
    pub(super) fn disconnected(&mut self, peer: PeerId, now: Instant) {
        for target in &mut self.targets {
            if target.state == State::Connected(peer) {
                target.state = State::Waiting(now + self.first);
            }
        }
    }

    /// A dial failed for `cause`. Returns the address if it was a bootstrap's.
    pub(super) fn failed(&mut self, connection: ConnectionId, cause: &str, now: Instant) -> Option<Multiaddr> {
        let target = self.targets.iter_mut().find(|t| t.state == State::Dialling(connection))?;
        target.state = State::Waiting(now + target.delay);
        target.delay = (target.delay * 2).min(self.last);
        target.cause = Some(cause.into());
        match &target.goal {
            Goal::Bootstrap(addr) => Some(addr.clone()),
            Goal::Remembered(..) => None,
        }
    }

    /// The target of `connection` is this node itself: nothing to dial.
    pub(super) fn is_self(&mut self, connection: ConnectionId) {
        self.targets.retain(|t| t.state != State::Dialling(connection));
    }

    /// Bootstraps that are not connected, with the last cause.
    pub(super) fn unreached(&self) -> Vec<(Multiaddr, Option<String>)> {
        let unreached = self.targets.iter().filter(|t| !matches!(t.state, State::Connected(_)));
        let cause = |t: &Target| match &t.goal {
            Goal::Bootstrap(addr) => Some((addr.clone(), t.cause.clone())),
            Goal::Remembered(..) => None,
        };
        unreached.filter_map(cause).collect()
    }

    fn set(&mut self, goal: &Goal, state: State) {
        for target in self.targets.iter_mut().filter(|t| t.goal == *goal) {
            target.state = state;
        }
    }
}

/// Why a dial failed, for people: the innermost reason of each address.
pub(super) fn cause(error: &DialError) -> String {
    match error {
        DialError::Transport(errors) => {
            let innermost = |error: &dyn std::error::Error| {
                let mut text = error.to_string();
                let mut source = error.source();
                while let Some(inner) = source {
                    text = inner.to_string();
                    source = inner.source();
                }
                text
            };
            let mut causes: Vec<_> = errors.iter().map(|(_, error)| innermost(error)).collect();
            causes.dedup();
            causes.join("; ")
        }
        DialError::WrongPeerId { obtained, .. } => {
            format!("another node answers there: its address ends in /p2p/{obtained}")
        }
        DialError::NoAddresses => "no address of it is known".into(),
        other => other.source().map_or_else(|| other.to_string(), ToString::to_string),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_last_and_start_over_after_a_connection() {
        let [first, last] = [1, 4].map(Duration::from_secs);
        let start = Instant::now();
        let addr: Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
        let goal = Goal::Bootstrap(addr.clone());
        let mut dialer = Dialer::new([goal.clone()], start, first, last);
        let mut now = start;
        for (attempt, wait) in [1, 2, 4, 4].into_iter().enumerate() {
            assert_eq!(dialer.due(now, true), std::slice::from_ref(&goal));
            let connection = ConnectionId::new_unchecked(attempt);
            dialer.dialling(&goal, connection);
            assert!(dialer.due(now, true).is_empty(), "not dialled twice");
            assert_eq!(dialer.failed(connection, "refused", now), Some(addr.clone()));
            assert_eq!(dialer.unreached(), [(addr.clone(), Some("refused".into()))]);
            let wait = Duration::from_secs(wait);
            assert!(dialer.due(now + wait - Duration::from_millis(1), true).is_empty());
            now += wait;
        }
        let (connection, peer) = (ConnectionId::new_unchecked(9), PeerId::random());
        dialer.dialling(&goal, connection);
        dialer.connected(connection, peer);
        assert!(dialer.unreached().is_empty());
        dialer.disconnected(peer, now);
        assert_eq!(dialer.due(now + first, false), [goal]);
    }

    #[test]
    fn remembered_peers_are_dialled_only_when_alone() {
        let now = Instant::now();
        let goal = Goal::Remembered(PeerId::random(), Vec::new());
        let dialer = Dialer::new([goal.clone()], now, Duration::ZERO, Duration::ZERO);
        assert!(dialer.due(now, false).is_empty());
        assert_eq!(dialer.due(now, true), [goal]);
    }
}
