//! `podwayctl bgp`: what this node's `routed` says of its sessions and routes; reflectors and filters of the cluster.

pub(crate) mod filter;
pub(crate) mod paths;
pub(crate) mod reflector;
pub(crate) mod stations;

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
    // What is not there of anybody takes no column.
    let watched = peers.iter().any(|peer| peer.bfd.is_some());
    let asked = peers.iter().any(|peer| peer.kernel.is_some());
    let told = peers.iter().any(|peer| peer.told.is_some());
    let leaving = peers.iter().any(|peer| peer.leaving.is_some());
    let ignored = peers.iter().any(|peer| peer.ignored > 0 || peer.remark.is_some());
    let mut heads = vec!["NAME", "ADDRESS", "ASN", "ROLE", "STATE", "SINCE", "RECEIVED", "SENT", "STALE"];
    heads.extend(watched.then_some("BFD"));
    heads.extend(asked.then_some("KERNEL"));
    heads.extend(leaving.then_some("ENDS WHEN"));
    heads.push("LAST ERROR");
    heads.extend(told.then_some("TOLD"));
    heads.extend(ignored.then_some("IGNORED"));
    let mut table = Table::new(&heads);
    for peer in peers {
        let up = peer.state == "Established";
        let mut row: Vec<Cell> = vec![
            peer.name.clone().into(),
            peer.address.to_string().into(),
            peer.asn.to_string().into(),
            peer.role.clone().into(),
            Cell::toned(peer.state.clone(), if up { Tone::Good } else { Tone::Bad }),
            since(peer.since_seconds).into(),
            peer.received.to_string().into(),
            peer.advertised.to_string().into(),
            peer.stale.to_string().into(),
        ];
        row.extend(watched.then(|| match peer.bfd.as_deref() {
            None => "".into(),
            Some("up") => Cell::toned("up", Tone::Good),
            Some(other) => Cell::toned(other, Tone::Bad),
        }));
        row.extend(asked.then(|| match peer.kernel.as_deref() {
            None => "".into(),
            Some("answers") => Cell::toned("answers", Tone::Good),
            Some("dead") => Cell::toned("dead", Tone::Bad),
            Some(other) => Cell::toned(other, Tone::Warning),
        }));
        row.extend(leaving.then(|| match &peer.leaving {
            None => "".into(),
            Some(why) => Cell::toned(why.clone(), Tone::Warning),
        }));
        row.push(peer.last_error.clone().unwrap_or_default().into());
        row.extend(told.then(|| {
            let ago = peer.told_seconds.map(|ago| format!(", {} ago", since(ago))).unwrap_or_default();
            peer.told.as_ref().map(|told| format!("{told}{ago}")).unwrap_or_default().into()
        }));
        row.extend(ignored.then(|| {
            let remark = peer.remark.as_ref().map(|remark| format!(": {remark}")).unwrap_or_default();
            let text = if peer.ignored == 0 && remark.is_empty() {
                String::new()
            } else {
                format!("{}{remark}", peer.ignored)
            };
            Cell::toned(text, Tone::Warning)
        }));
        table.row(row);
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
pub(crate) fn since(seconds: u64) -> String {
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
            kernel: None,
            last_error: last_error.map(str::to_owned),
            told: None,
            told_seconds: None,
            ignored: 0,
            remark: None,
            leaving: None,
        };
        let mut peers = [peer("n2", "Established", None), peer("n3", "Active", Some("hold timer expired"))];
        insta::assert_snapshot!(peer_table(&peers).render(false, 0));
        peers[0].bfd = Some("up".to_owned());
        peers[0].kernel = Some("answers".to_owned());
        peers[1].told = Some("maximum number of prefixes reached (6/1)".to_owned());
        peers[1].told_seconds = Some(130);
        peers[1].ignored = 2;
        peers[0].leaving = Some("2 prefixes have another way".to_owned());
        peers[1].remark = Some("attribute 1: value 9 (Withdraw)".to_owned());
        insta::assert_snapshot!("sessions_with_remarks", peer_table(&peers).render(false, 0));
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
