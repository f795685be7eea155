//! Which kernel changes concern the data plane. Pure.
//!
//! The kernel deletes some things without a word (`podway_kern::fib`), so a change that can have such an effect
//! counts as well: a link that is not up, an address or next hop that is gone. Our own changes are known already.

use podway_kern::monitor::{Change, Event, Notice};
use podway_model::names::{NEXT_HOP_ID_MAX, NEXT_HOP_ID_MIN, POD_GROUP, POD_ROUTE_PROTOCOL, ROUTE_PROTOCOL};

use super::desired::Desired;

/// What has to be looked at again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Touched {
    /// What we hold in the kernel may have changed: read it back.
    pub(crate) ours: bool,
    /// Pod routes may be missing.
    pub(crate) pods: bool,
}

impl Touched {
    pub(crate) fn add(&mut self, other: Self) {
        self.ours |= other.ours;
        self.pods |= other.pods;
    }
}

/// What a change touches. `port` is our own socket's; `devices` are the indices of our devices.
pub(crate) fn touched(notice: &Notice, port: u32, devices: &[u32], desired: &Desired) -> Touched {
    let none = Touched::default();
    if notice.cause == port && !matches!(notice.change, Change::Overrun) {
        return none;
    }
    let ours = Touched { ours: true, pods: false };
    let pods = Touched { ours: false, pods: true };
    match &notice.change {
        Change::Overrun => Touched { ours: true, pods: true },
        // A pod's link coming up: its routes went when it went down. Nothing of ours leads over it.
        Change::Link(event, link) if link.group == POD_GROUP => {
            if *event == Event::Present && link.up {
                pods
            } else {
                none
            }
        }
        // Whatever else happens to links is rare, and may have taken next hops along.
        Change::Link(..) => ours,
        Change::Address(Event::Gone, ..) => ours,
        Change::Address(Event::Present, index, _) if devices.contains(index) => ours,
        Change::Neighbour(_, index) if devices.contains(index) => ours,
        Change::Address(..) | Change::Neighbour(..) => none,
        Change::NextHop(_, id, protocol) => {
            let ours_by_id = (NEXT_HOP_ID_MIN..=NEXT_HOP_ID_MAX).contains(id);
            if ours_by_id || *protocol == ROUTE_PROTOCOL { ours } else { none }
        }
        Change::Route(event, route) => match (route.protocol, event) {
            (POD_ROUTE_PROTOCOL, Event::Gone) => pods,
            (POD_ROUTE_PROTOCOL, Event::Present) => none,
            (ROUTE_PROTOCOL, _) => ours,
            // Somebody else's route in our place: it has replaced ours, or has made room for it.
            _ if desired.routes.contains_key(&route.key()) => ours,
            _ => none,
        },
    }
}

#[cfg(test)]
mod tests {
    use podway_kern::rtnl::{Link, Route};

    use super::super::desired::{RouteSpec, Target, key};
    use super::*;

    const OWN: u32 = 77;

    fn look(change: Change, cause: u32) -> Touched {
        let wanted = "10.244.1.0/26".parse().unwrap();
        let spec = RouteSpec { target: Target::Blackhole, source: None, mtu: None };
        let mut desired = Desired::default();
        desired.routes.insert(key(wanted, None), spec);
        touched(&Notice { change, cause }, OWN, &[9], &desired)
    }

    fn route(event: Event, destination: &str, protocol: u8) -> Change {
        Change::Route(event, Box::new(Route::to(destination.parse().unwrap(), protocol)))
    }

    #[test]
    fn our_own_changes_are_known_and_others_to_our_things_are_not() {
        let ours = Touched { ours: true, pods: false };
        for change in [
            route(Event::Gone, "10.244.7.0/26", 112),
            route(Event::Present, "10.244.7.0/26", 112),
            route(Event::Present, "10.244.1.0/26", 4),
            route(Event::Gone, "10.244.1.0/26", 4),
            Change::NextHop(Event::Gone, 0x7000_0001, 112),
            Change::NextHop(Event::Present, 0x7000_0001, 3),
            Change::Address(Event::Gone, 2, "192.0.2.1".parse().unwrap()),
            Change::Neighbour(Event::Gone, 9),
            Change::Link(Event::Gone, Box::default()),
        ] {
            assert_eq!(look(change.clone(), 5), ours, "{change:?}");
            assert_eq!(look(change, OWN), Touched::default());
        }
    }

    #[test]
    fn the_traffic_of_others_is_passed_over() {
        for change in [
            route(Event::Present, "10.9.0.0/16", 4),
            route(Event::Present, "10.244.1.5/32", 113),
            Change::NextHop(Event::Gone, 12, 3),
            Change::Address(Event::Present, 2, "192.0.2.1".parse().unwrap()),
            Change::Neighbour(Event::Present, 2),
            Change::Link(Event::Gone, Box::new(Link { group: POD_GROUP, ..Link::default() })),
        ] {
            assert_eq!(look(change.clone(), 5), Touched::default(), "{change:?}");
        }
    }

    #[test]
    fn pods_are_looked_after_and_an_overrun_means_everything() {
        let up = Link { group: POD_GROUP, up: true, ..Link::default() };
        assert!(look(Change::Link(Event::Present, Box::new(up)), 5).pods);
        assert!(look(route(Event::Gone, "10.244.0.5/32", 113), 5).pods);
        assert_eq!(look(Change::Overrun, 0), Touched { ours: true, pods: true });
    }
}
