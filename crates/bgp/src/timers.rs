//! When something is due, of many peers.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

/// What stands in the timers for one peer.
pub(crate) type Armed = Option<Duration>;

/// Each peer stands in it once at most: what stands there is kept beside the peer.
#[derive(Debug, Default)]
pub(crate) struct Timers(BTreeSet<(Duration, IpAddr)>);

impl Timers {
    /// Has a peer stand at `at`, or not at all.
    pub(crate) fn arm(&mut self, peer: IpAddr, armed: &mut Armed, at: Option<Duration>) {
        if *armed != at {
            if let Some(old) = std::mem::replace(armed, at) {
                self.0.remove(&(old, peer));
            }
            self.0.extend(at.map(|at| (at, peer)));
        }
    }

    /// A peer that is due, the longest due first; it stands there no longer, and what is kept beside it is to be cleared.
    pub(crate) fn pop_due(&mut self, now: Duration) -> Option<IpAddr> {
        let (at, peer) = self.0.first().copied().filter(|(at, _)| *at <= now)?;
        self.0.remove(&(at, peer));
        Some(peer)
    }

    /// When the next one is due.
    pub(crate) fn next(&self) -> Option<Duration> {
        self.0.first().map(|(at, _)| *at)
    }
}
