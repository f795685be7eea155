//! `podwayctl bgp received`, `advertised`, `refresh`, `reset`: one peer of this node.

use std::net::IpAddr;
use std::path::Path;

use podway_model::socket::{BgpPathStatus, RoutedReply, RoutedRequest};
use serde::Serialize;

use super::{ask, unexpected};
use crate::args::{PeerArgs, ResetArgs};
use crate::outcome::Failure;
use crate::output::Output;
use crate::table::{Cell, Table, Tone};

pub(crate) fn received(args: &PeerArgs, output: &Output) -> Result<(), Failure> {
    let socket = &args.sockets.routed_socket;
    let peer = find(socket, &args.peer)?;
    show(ask(socket, &RoutedRequest::BgpReceived { peer })?, "has told nothing", peer, output)
}

pub(crate) fn advertised(args: &PeerArgs, output: &Output) -> Result<(), Failure> {
    let socket = &args.sockets.routed_socket;
    let peer = find(socket, &args.peer)?;
    show(ask(socket, &RoutedRequest::BgpAdvertised { peer })?, "has been told nothing", peer, output)
}

pub(crate) fn refresh(args: &PeerArgs, output: &Output) -> Result<(), Failure> {
    let socket = &args.sockets.routed_socket;
    let peer = find(socket, &args.peer)?;
    done(ask(socket, &RoutedRequest::BgpRefresh { peer })?, "has been asked for its table", peer, output)
}

pub(crate) fn reset(args: &ResetArgs, output: &Output) -> Result<(), Failure> {
    // RFC 9003 section 2.
    if args.words.len() > 255 {
        return Err(Failure::bad_argument("--words", args.words.len(), "at most 255 octets"));
    }
    let socket = &args.sockets.routed_socket;
    let peer = find(socket, &args.peer)?;
    let question = RoutedRequest::BgpReset { peer, words: args.words.clone() };
    done(ask(socket, &question)?, "was told that its session begins anew", peer, output)
}

/// The address of a peer by address or name.
fn find(socket: &Path, wanted: &str) -> Result<IpAddr, Failure> {
    let peers = match ask(socket, &RoutedRequest::BgpPeers)? {
        RoutedReply::BgpPeers { peers } => peers,
        other => return Err(unexpected(&other)),
    };
    let address: Option<IpAddr> = wanted.parse().ok();
    let found: Vec<IpAddr> = peers
        .iter()
        .filter(|peer| address == Some(peer.address) || peer.name == wanted)
        .map(|peer| peer.address)
        .collect();
    match found.as_slice() {
        [one] => Ok(*one),
        [] => {
            Err(Failure::NotFound(format!("BGP peer {wanted:?} not found; `podwayctl bgp peers` names all")))
        }
        several => {
            let several: Vec<String> = several.iter().map(ToString::to_string).collect();
            Err(Failure::bad_argument(
                "PEER",
                format!("{wanted:?}"),
                &format!("one of {}", several.join(", ")),
            ))
        }
    }
}

fn show(reply: RoutedReply, nothing: &str, peer: IpAddr, output: &Output) -> Result<(), Failure> {
    let mut paths = match reply {
        RoutedReply::BgpPaths { paths } => paths,
        other => return Err(unexpected(&other)),
    };
    paths.sort_by_key(|path| (path.prefix, path.path_id));
    let text = |colour| {
        if paths.is_empty() { format!("{peer} {nothing}\n") } else { table(&paths).render(colour, 0) }
    };
    output.show(text, &paths)
}

fn done(reply: RoutedReply, what: &str, peer: IpAddr, output: &Output) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Done {
        peer: IpAddr,
        done: bool,
    }
    match reply {
        RoutedReply::Done => output.show(|_| format!("{peer} {what}\n"), &Done { peer, done: true }),
        other => Err(unexpected(&other)),
    }
}

fn table(paths: &[BgpPathStatus]) -> Table {
    // Path identifiers only where somebody uses them.
    let several = paths.iter().any(|path| path.path_id != 0);
    let mut heads = vec!["PREFIX"];
    heads.extend(several.then_some("ID"));
    heads.extend(["NEXT HOP", "AS PATH", "LOCAL PREF", "MED", "COMMUNITIES", "STATE"]);
    let mut table = Table::new(&heads);
    let number = |number: Option<u32>| number.map(|number| number.to_string()).unwrap_or_default();
    for path in paths {
        let mut row: Vec<Cell> = vec![path.prefix.to_string().into()];
        row.extend(several.then(|| path.path_id.to_string().into()));
        row.extend([
            path.next_hop.to_string().into(),
            path.as_path.clone().into(),
            number(path.local_pref).into(),
            number(path.med).into(),
            path.communities.join(" ").into(),
            match path.state.as_str() {
                "best" => Cell::toned("best", Tone::Good),
                "rejected" => Cell::toned("rejected", Tone::Bad),
                other => other.into(),
            },
        ]);
        table.row(row);
    }
    table
}
