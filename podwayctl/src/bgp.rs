//! `podwayctl bgp`: what this node's `routed` says of its sessions and routes.

use std::path::Path;
use std::time::Duration;

use podway_daemon::client::{Client, ClientError};
use podway_model::socket::{BgpPeerStatus, BgpRouteStatus, RoutedReply, RoutedRequest};

use crate::args::SocketArgs;
use crate::outcome::Failure;
use crate::output::Output;
use crate::table::{Cell, Table, Tone};

/// How long a daemon may take to answer: it has a whole routing table to copy at worst.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);

pub(crate) fn peers(args: &SocketArgs, output: &Output) -> Result<(), Failure> {
    let mut peers = match ask(&args.routed_socket, &RoutedRequest::BgpPeers)? {
        RoutedReply::BgpPeers { peers } => peers,
        other => return Err(unexpected(&other)),
    };
    peers.sort_by(|a, b| (&a.name, a.address).cmp(&(&b.name, b.address)));
    output.show(
        |colour| {
            if peers.is_empty() {
                "no BGP session: the backend is not bgp, or this node is alone\n".to_owned()
            } else {
                peer_table(&peers).render(colour, 0)
            }
        },
        &peers,
    )
}

pub(crate) fn routes(args: &SocketArgs, output: &Output) -> Result<(), Failure> {
    let mut routes = match ask(&args.routed_socket, &RoutedRequest::BgpRoutes)? {
        RoutedReply::BgpRoutes { routes } => routes,
        other => return Err(unexpected(&other)),
    };
    routes.sort_by_key(|route| (route.prefix, !route.best, route.next_hop));
    output.show(
        |colour| {
            if routes.is_empty() {
                "no BGP route\n".to_owned()
            } else {
                route_table(&routes).render(colour, 0)
            }
        },
        &routes,
    )
}

/// Asks `routed` one question.
pub(crate) fn ask(socket: &Path, question: &RoutedRequest) -> Result<RoutedReply, ClientError> {
    Client::connect(socket, LIMIT)?.ask(question)
}

/// Why an answer is none.
pub(crate) fn unexpected(reply: &RoutedReply) -> Failure {
    Failure::Failed(match reply {
        RoutedReply::Failed { reason } => format!("routed: {reason}"),
        _ => "routed answered something else than was asked: binaries of different versions".to_owned(),
    })
}

/// One row per session.
fn peer_table(peers: &[BgpPeerStatus]) -> Table {
    let heads =
        ["NAME", "ADDRESS", "ASN", "ROLE", "STATE", "SINCE", "RECEIVED", "SENT", "STALE", "LAST ERROR"];
    let mut table = Table::new(&heads);
    for peer in peers {
        let up = peer.state == "Established";
        table.row(vec![
            peer.name.clone().into(),
            peer.address.to_string().into(),
            peer.asn.to_string().into(),
            peer.role.clone().into(),
            Cell::toned(peer.state.clone(), if up { Tone::Good } else { Tone::Bad }),
            since(peer.since_seconds).into(),
            peer.received.to_string().into(),
            peer.advertised.to_string().into(),
            peer.stale.to_string().into(),
            peer.last_error.clone().unwrap_or_default().into(),
        ]);
    }
    table
}

fn route_table(routes: &[BgpRouteStatus]) -> Table {
    let mut table =
        Table::new(&["", "PREFIX", "NEXT HOP", "FROM", "ORIGINATOR", "LOCAL PREF", "AS PATH", ""]);
    for route in routes {
        table.row(vec![
            if route.best { Cell::toned("*", Tone::Good) } else { " ".into() },
            route.prefix.to_string().into(),
            route.next_hop.to_string().into(),
            route.from.map_or("this node".to_owned(), |from| from.to_string()).into(),
            route.originator_id.map(|id| id.to_string()).unwrap_or_default().into(),
            route.local_pref.to_string().into(),
            route.as_path.clone().into(),
            if route.stale { Cell::toned("stale", Tone::Warning) } else { " ".into() },
        ]);
    }
    table
}

/// `42s`, `7m`, `3h05m`, `12d`.
fn since(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_as_a_table() {
        let peer = |name: &str, state: &str, last_error: Option<&str>| BgpPeerStatus {
            name: name.into(),
            address: "10.0.0.2".parse().unwrap(),
            asn: 64512,
            state: state.into(),
            role: "mesh".into(),
            since_seconds: 7500,
            received: 2,
            advertised: 1,
            stale: 0,
            updates: 0,
            bfd: None,
            last_error: last_error.map(str::to_owned),
        };
        let peers = [peer("n2", "Established", None), peer("n3", "Active", Some("hold timer expired"))];
        insta::assert_snapshot!(peer_table(&peers).render(false, 0));
    }

    #[test]
    fn routes_as_a_table() {
        let route = |prefix: &str, best: bool, stale: bool| BgpRouteStatus {
            prefix: prefix.parse().unwrap(),
            next_hop: "10.0.0.2".parse().unwrap(),
            from: best.then(|| "10.0.0.9".parse().unwrap()),
            originator_id: best.then(|| "10.0.0.2".parse().unwrap()),
            local_pref: 100,
            as_path: String::new(),
            med: None,
            communities: vec![],
            best,
            stale,
        };
        let routes = [route("10.244.0.64/26", true, true), route("10.244.0.64/26", false, false)];
        insta::assert_snapshot!(route_table(&routes).render(false, 0));
    }

    #[test]
    fn times_are_short() {
        for (seconds, text) in [(0, "0s"), (119, "119s"), (120, "2m"), (7500, "2h05m"), (200_000, "2d")] {
            assert_eq!(since(seconds), text);
        }
    }
}
