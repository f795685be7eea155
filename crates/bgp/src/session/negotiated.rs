//! Our OPEN to a neighbour, the check of its OPEN, and what both agree on.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::config::{Neighbour, Role, SpeakerConfig};
use crate::message::capability::{Capabilities, GracefulRestart, LongLived, RoleSaid};
use crate::message::notification::code;
use crate::message::open::Open;
use crate::message::update::{DecodeContext, Encoding};
use crate::message::{MAX_EXTENDED_LEN, MAX_LEN, Notification};
use crate::types::{Families, Family};

/// What our OPEN says of graceful restart now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RestartBits {
    /// R.
    pub(crate) restarting: bool,
    /// F, for all families alike.
    pub(crate) preserved: bool,
}

/// RFC 9687 section 4: eight minutes, or twice the hold time, whichever is longer.
const LEAST_SEND_HOLD: Duration = Duration::from_secs(480);

/// Our OPEN to `neighbour`.
pub(crate) fn our_open(config: &SpeakerConfig, neighbour: &Neighbour, bits: RestartBits) -> Open {
    let seconds = |time: Duration, most: u16| u16::try_from(time.as_secs()).unwrap_or(most).min(most);
    let (families, options) = (neighbour.families, &neighbour.options);
    let asn = options.local_as.map_or(config.asn, |local| local.asn).number();
    let several = |wanted: bool| if wanted { families } else { Families::NONE };
    let preserved = bits.preserved;
    Open {
        asn,
        hold_time: seconds(options.hold_time.unwrap_or(config.hold_time), u16::MAX),
        router_id: config.router_id,
        capabilities: Capabilities {
            families: Some(families),
            route_refresh: true,
            enhanced_refresh: options.enhanced_refresh,
            extended_next_hop: options.extended_next_hop,
            extended_messages: options.extended_messages,
            role: options.relation.map(RoleSaid::One),
            four_octet_as: Some(asn),
            graceful_restart: config.graceful_restart.as_ref().map(|restart| GracefulRestart {
                restarting: bits.restarting,
                notification: options.notifications_restart.unwrap_or(restart.notifications),
                time: seconds(restart.restart_time, 4095),
                families,
                preserved: if preserved { families } else { Families::NONE },
            }),
            add_path_receive: several(options.add_path.receive),
            add_path_send: several(options.add_path.send > 0),
            long_lived: options
                .long_lived
                .filter(|_| config.graceful_restart.is_some())
                .map(|time| families.iter().map(|family| LongLived { family, preserved, time }).collect()),
        },
    }
}

/// What two OPENs agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Negotiated {
    /// The peer's BGP identifier.
    pub(crate) router_id: Ipv4Addr,
    /// The smaller of both hold times.
    pub(crate) hold_time: Duration,
    /// How long sent octets may lie unread; zero: for ever.
    pub(crate) send_hold: Duration,
    /// Families that both speak.
    pub(crate) families: Families,
    /// The peer's graceful restart capability, if we have it too.
    pub(crate) graceful_restart: Option<GracefulRestart>,
    /// NOTIFICATIONs count as restarts on both sides (RFC 8538).
    pub(crate) notifications_restart: bool,
    /// The peer's long-lived capability, if we have it too.
    pub(crate) long_lived: Option<Vec<LongLived>>,
    /// Refreshes stand between BoRR and EoRR.
    pub(crate) enhanced_refresh: bool,
    /// The peer answers ROUTE-REFRESH.
    pub(crate) route_refresh: bool,
    /// The peer takes IPv4 prefixes with IPv6 next hops, and so do we.
    pub(crate) extended_next_hop: bool,
    /// The peer's AS number.
    pub(crate) asn: u32,
    /// How its UPDATEs are read.
    pub(crate) decode: DecodeContext,
    /// How ours are written.
    pub(crate) encoding: Encoding,
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
        let (capabilities, options) = (&theirs.capabilities, &neighbour.options);
        check_role(neighbour, capabilities)?;
        // RFC 4760 section 8: without the capability there is IPv4 unicast only.
        let offered = capabilities.families.unwrap_or(Families::IPV4);
        let families = neighbour.families.and(offered);
        let four_octet_as = capabilities.four_octet_as.is_some();
        let external = (neighbour.role == Role::External).then(|| neighbour.asn.number());
        let own_hold = options.hold_time.unwrap_or(config.hold_time);
        let hold_time = own_hold.min(Duration::from_secs(u64::from(theirs.hold_time)));
        let graceful_restart =
            capabilities.graceful_restart.clone().filter(|_| config.graceful_restart.is_some());
        let ours_notify = config
            .graceful_restart
            .as_ref()
            .is_some_and(|restart| options.notifications_restart.unwrap_or(restart.notifications));
        let extended_next_hop = options.extended_next_hop && capabilities.extended_next_hop;
        let several = |wanted: bool, theirs: Families| match wanted {
            true => families.and(theirs),
            false => Families::NONE,
        };
        // RFC 8654 section 4: whoever has offered it can be sent such messages.
        let extended = options.extended_messages && capabilities.extended_messages;
        Ok(Self {
            router_id: theirs.router_id,
            hold_time,
            send_hold: options.send_hold.unwrap_or(LEAST_SEND_HOLD.max(hold_time * 2)),
            families,
            notifications_restart: ours_notify && graceful_restart.as_ref().is_some_and(|r| r.notification),
            long_lived: capabilities
                .long_lived
                .clone()
                .filter(|_| options.long_lived.is_some() && graceful_restart.is_some()),
            graceful_restart,
            enhanced_refresh: options.enhanced_refresh && capabilities.enhanced_refresh,
            route_refresh: capabilities.route_refresh,
            extended_next_hop,
            asn: theirs.asn,
            decode: DecodeContext {
                four_octet_as,
                external,
                families,
                add_path: several(options.add_path.receive, capabilities.add_path_send),
                extended_next_hop,
                first_as: options.first_as,
            },
            encoding: Encoding {
                four_octet_as,
                add_path: several(options.add_path.send > 0, capabilities.add_path_receive),
                max_len: if extended { MAX_EXTENDED_LEN } else { MAX_LEN },
            },
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

    /// Whether the peer knows what LLGR_STALE means.
    pub(crate) fn understands_long_lived(&self) -> bool {
        self.long_lived.is_some()
    }

    /// How long the peer's stale routes of `family` are kept when the restart time is over (RFC 9494 section 4.2).
    pub(crate) fn long_lived_time(&self, family: Family) -> Duration {
        let all = self.long_lived.iter().flatten();
        all.filter(|one| one.family == family).map(|one| one.time).next().unwrap_or(Duration::ZERO)
    }
}

/// RFC 9234 section 4.2.
fn check_role(neighbour: &Neighbour, capabilities: &Capabilities) -> Result<(), Notification> {
    let mismatch = || Notification::new(code::OPEN, 11);
    match (neighbour.options.relation, capabilities.role) {
        (None, _) => Ok(()),
        (Some(_), None) if !neighbour.options.relation_strict => Ok(()),
        (Some(ours), Some(RoleSaid::One(theirs))) if theirs == ours.counterpart() => Ok(()),
        (Some(_), _) => Err(mismatch()),
    }
}
