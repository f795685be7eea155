//! What goes into the speaker and what comes out of it. All of it serialises, so that a run can be recorded.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::{Claims, Role, SpeakerConfig};
use crate::session::State;

/// A TCP connection. Outgoing ones are numbered by the speaker, incoming ones by the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ConnId {
    /// Opened by us.
    Outgoing(u64),
    /// Opened by the other side.
    Incoming(u64),
}

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outgoing(number) => write!(f, "out-{number}"),
            Self::Incoming(number) => write!(f, "in-{number}"),
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// [`crate::Speaker::deadline`] has come.
    Timer,
    /// The configuration is now this one.
    Configured(Arc<SpeakerConfig>),
    /// The claims are now these: routes are judged again.
    Claimed(Arc<Claims>),
    /// Somebody connected to us.
    Accepted {
        /// The new connection.
        conn: ConnId,
        /// Who.
        remote: IpAddr,
    },
    /// A connection asked for by [`Action::Connect`] stands.
    Connected {
        /// Which.
        conn: ConnId,
    },
    /// Bytes came in.
    Received {
        /// On which connection.
        conn: ConnId,
        /// Any number of them.
        bytes: Bytes,
    },
    /// That many bytes of what [`Action::Send`] gave have left our hands.
    Sent {
        /// On which connection.
        conn: ConnId,
        /// How many.
        bytes: usize,
    },
    /// The connection is gone, or never stood. No event follows for it.
    Closed {
        /// Which.
        conn: ConnId,
        /// Why, for people.
        reason: String,
    },
    /// The operator wants a session to begin anew.
    Reset {
        /// Whose.
        peer: IpAddr,
        /// For the operator at the other end (RFC 9003).
        words: String,
    },
    /// The operator wants a neighbour's whole table again (RFC 2918).
    Refresh {
        /// Whose.
        peer: IpAddr,
    },
    /// Somebody else knows that the way to a neighbour is gone: BFD, or the kernel.
    Lost {
        /// Whose.
        peer: IpAddr,
        /// Its forwarding is gone too: no route to it is kept, whatever graceful restart says. What it reflected is
        /// kept where no other reflector is up.
        purge: bool,
        /// For people.
        reason: String,
    },
    /// How long the shell took to carry out the last batch of sends: flushes are paced by it.
    Flushed {
        /// Measured.
        took: Duration,
    },
    /// The daemon is about to end.
    Stopped {
        /// What peers shall do with our routes.
        routes: AfterStop,
    },
}

/// What peers shall do with our routes when the speaker stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AfterStop {
    /// Keep them: we will be back (RFC 4724). Connections close without a NOTIFICATION where the peer does
    /// graceful restart.
    Keep,
    /// Drop them: a Cease says so.
    Drop,
}

/// What the shell must do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Open a connection; answer with `Connected` or `Closed`.
    Connect {
        /// Its name from now on.
        conn: ConnId,
        /// Whereto.
        remote: SocketAddr,
        /// From which own address; none: as the kernel chooses.
        local: Option<IpAddr>,
    },
    /// Write these bytes after all earlier ones; answer with `Sent`.
    Send {
        /// On which connection.
        conn: ConnId,
        /// Whole messages.
        bytes: Bytes,
    },
    /// Write what is queued, shut down the write side, read until the other side closes or a few seconds have
    /// passed, then close: a NOTIFICATION must not be lost to a reset. No event is expected any more.
    Close {
        /// Which connection.
        conn: ConnId,
    },
    /// The best routes of a prefix changed.
    RouteChanged {
        /// Which prefix.
        prefix: IpNet,
        /// Its next hops; empty: no route (or our own).
        next_hops: Vec<IpAddr>,
    },
    /// A session came up or went down.
    PeerChanged {
        /// Whose.
        peer: IpAddr,
        /// Whether it is up.
        up: bool,
        /// It went down because the hold timer expired.
        silent: bool,
        /// What happened to the routes, and why, for people.
        reason: String,
    },
    /// Something a peer sent was not used.
    Ignoring {
        /// Who sent it.
        peer: IpAddr,
        /// What and why, for people.
        what: String,
    },
    /// Something that the operator should know while all still works.
    Warned {
        /// About whom.
        peer: IpAddr,
        /// What, for people.
        what: String,
    },
    /// A configuration cannot work; the one before stays in force.
    Refused {
        /// Every mistake in it, for people.
        mistakes: Vec<String>,
    },
    /// All peers that were up before a restart have sent their tables, or the deferral time is over: routes of
    /// the earlier life may be swept.
    Synced,
}

/// A session as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Its AS number.
    pub asn: u32,
    /// Its role.
    pub role: Role,
    /// The furthest state of its connections.
    pub state: State,
    /// Since when.
    pub since: Duration,
    /// Prefixes in its adj-RIB-in.
    pub received: usize,
    /// Of these: those that the import rule lets through.
    pub usable: usize,
    /// Of these: kept over a restart and not refreshed yet.
    pub stale: usize,
    /// Prefixes that it has been told.
    pub advertised: usize,
    /// UPDATE messages that came from it, over all its sessions.
    pub updates: u64,
    /// Why the session is not, or was last not, up.
    pub last_error: Option<String>,
    /// The last NOTIFICATION that it was sent, and when; it stays when a session is up again.
    pub told: Option<(String, Duration)>,
    /// How much of what it sent was not used as it came (RFC 7606), over all its sessions.
    pub ignored: u64,
    /// The last remark about what it sent.
    pub remark: Option<String>,
    /// Its session is to end, and when.
    pub leaving: Option<String>,
}

/// A path as people see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteStatus {
    /// Destination.
    pub prefix: IpNet,
    /// Next hop.
    pub next_hop: IpAddr,
    /// From whom; none: ours.
    pub from: Option<IpAddr>,
    /// ORIGINATOR_ID (RFC 4456).
    pub originator_id: Option<Ipv4Addr>,
    /// Degree of preference.
    pub local_pref: u32,
    /// AS path as text.
    pub as_path: String,
    /// MED.
    pub med: Option<u32>,
    /// Communities (`64512:7`) and large ones (`64512:0:9`).
    pub communities: Vec<String>,
    /// Whether it is the best path.
    pub best: bool,
    /// Whether the import rule lets it through.
    pub usable: bool,
    /// Whether it is kept over a restart and not refreshed yet.
    pub stale: bool,
}
