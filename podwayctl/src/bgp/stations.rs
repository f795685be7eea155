//! `podwayctl bgp stations`: who is told what BGP neighbours tell, and how far that is.

use podway_model::socket::{BgpStationStatus, RoutedReply, RoutedRequest};

use super::{ask, since, unexpected};
use crate::args::SocketArgs;
use crate::outcome::Failure;
use crate::output::Output;
use crate::table::{Cell, Table, Tone};

pub(crate) fn show(args: &SocketArgs, output: &Output) -> Result<(), Failure> {
    let stations = match ask(&args.routed_socket, &RoutedRequest::BgpStations)? {
        RoutedReply::BgpStations { stations } => stations,
        other => return Err(unexpected(&other)),
    };
    output.show(
        |colour| {
            if stations.is_empty() {
                "no monitoring station\n".to_owned()
            } else {
                table(&stations).render(colour, 0)
            }
        },
        &stations,
    )
}

fn table(stations: &[BgpStationStatus]) -> Table {
    let mut table = Table::new(&[
        "NAME",
        "ADDRESS",
        "STATE",
        "SINCE",
        "MESSAGES",
        "WAITING",
        "DROPPED",
        "ANEW",
        "LAST ERROR",
    ]);
    for station in stations {
        let state = if station.connected { ("connected", Tone::Good) } else { ("gone", Tone::Bad) };
        table.row(vec![
            station.name.clone().into(),
            station.address.to_string().into(),
            Cell::toned(state.0, state.1),
            since(station.since_seconds).into(),
            station.messages.to_string().into(),
            station.waiting.to_string().into(),
            station.dropped.to_string().into(),
            station.told_anew.to_string().into(),
            station.last_error.clone().unwrap_or_default().into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stations_as_a_table() {
        let station = |name: &str, connected: bool| BgpStationStatus {
            name: name.to_owned(),
            address: "10.0.0.9:11019".parse().unwrap(),
            connected,
            since_seconds: 7500,
            messages: 12,
            waiting: 3,
            dropped: 0,
            told_anew: 0,
            last_error: (!connected).then(|| "connect: Connection refused (os error 111)".to_owned()),
        };
        let text = table(&[station("one", true), station("two", false)]).render(false, 0);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("one   10.0.0.9:11019  connected  2h05m  12"), "{text}");
        assert!(
            lines[2].contains("gone") && lines[2].ends_with("connect: Connection refused (os error 111)"),
            "{text}"
        );
    }
}
