//! Our OPEN to a neighbour, the check of its OPEN, and what both agree on.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::config::{Neighbour, Role, SpeakerConfig};
use crate::message::Notification;
use crate::message::capability::{Capabilities, GracefulRestart};
use crate::message::notification::code;
use crate::message::open::Open;
use crate::message::update::DecodeContext;
use crate::types::{Families, Family};

/// What our OPEN says of graceful restart now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RestartBits {
    /// R.
    pub(crate) restarting: bool,
    /// F, for all families alike.
    pub(crate) preserved: bool,
}

/// Our OPEN to `neighbour`.
pub(crate) fn our_open(config: &SpeakerConfig, neighbour: &Neighbour, bits: RestartBits) -> Open {
    let seconds = |time: Duration, most: u16| u16::try_from(time.as_secs()).unwrap_or(most).min(most);
    let families = neighbour.families;
    Open {
        asn: config.asn.number(),
        hold_time: seconds(config.hold_time, u16::MAX),
        router_id: config.router_id,
        capabilities: Capabilities {
            families: Some(families),
            route_refresh: true,
            four_octet_as: Some(config.asn.number()),
            graceful_restart: config.graceful_restart.as_ref().map(|restart| GracefulRestart {
                restarting: bits.restarting,
                time: seconds(restart.restart_time, 4095),
                families,
                preserved: if bits.preserved { families } else { Families::NONE },
            }),
        },
    }
}

/// What a session runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Negotiated {
    /// The peer's BGP identifier.
    pub(crate) router_id: Ipv4Addr,
    /// The smaller of both hold times; zero: no keepalives.
    pub(crate) hold_time: Duration,
    /// Families that both offer.
    pub(crate) families: Families,
    /// Whether AS numbers have four octets.
    pub(crate) four_octet_as: bool,
    /// The peer's graceful restart capability, if we have it too.
    pub(crate) graceful_restart: Option<GracefulRestart>,
    /// How its UPDATEs are read.
    pub(crate) decode: DecodeContext,
}

impl Negotiated {
    /// Checks a neighbour's OPEN against what we know of it.
    ///
    /// The error is the NOTIFICATION of RFC 4271 6.2.
    pub(crate) fn new(
        config: &SpeakerConfig,
        neighbour: &Neighbour,
        theirs: &Open,
    ) -> Result<Self, Notification> {
        if theirs.asn != neighbour.asn.number() {
            return Err(Notification::new(code::OPEN, 2));
        }
        // RFC 6286 section 2.2: the identifier is unique within the AS.
        if neighbour.role != Role::External && theirs.router_id == config.router_id {
            return Err(Notification::new(code::OPEN, 3));
        }
        let capabilities = &theirs.capabilities;
        // RFC 4760 section 8: without the capability there is IPv4 unicast only.
        let offered = capabilities.families.unwrap_or(Families::IPV4);
        let families = neighbour.families.and(offered);
        let four_octet_as = capabilities.four_octet_as.is_some();
        let external = (neighbour.role == Role::External).then(|| neighbour.asn.number());
        let hold_time = config.hold_time.min(Duration::from_secs(u64::from(theirs.hold_time)));
        let graceful_restart = capabilities.graceful_restart.clone();
        Ok(Self {
            router_id: theirs.router_id,
            hold_time,
            families,
            four_octet_as,
            graceful_restart: graceful_restart.filter(|_| config.graceful_restart.is_some()),
            decode: DecodeContext { four_octet_as, external, families },
        })
    }

    /// Families whose routes the peer wants kept when it restarts.
    pub(crate) fn restart_families(&self) -> Families {
        self.graceful_restart.as_ref().map_or(Families::NONE, |restart| restart.families.and(self.families))
    }

    /// Whether the peer's forwarding state of `family` survived.
    pub(crate) fn preserved(&self, family: Family) -> bool {
        self.graceful_restart
            .as_ref()
            .is_some_and(|restart| restart.families.contains(family) && restart.preserved.contains(family))
    }

    /// Whether the peer says that it has restarted.
    pub(crate) fn restarting(&self) -> bool {
        self.graceful_restart.as_ref().is_some_and(|restart| restart.restarting)
    }
}
