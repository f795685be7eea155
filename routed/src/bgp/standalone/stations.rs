//! Monitoring stations in the file of a speaker alone.

use std::net::SocketAddr;

use podway_model::bmp::{self, BmpStation, BmpView};
use podway_model::mistakes::Mistakes;
use serde::Deserialize;

/// As [`BmpStation`], but it refuses keys that it does not know.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct StationFile {
    address: SocketAddr,
    name: Option<String>,
    #[serde(default = "bmp::default_views")]
    views: Vec<BmpView>,
    #[serde(default = "bmp::default_statistics")]
    statistics_seconds: u16,
}

/// The stations of the file.
pub(super) fn read(source: &str, all: &[StationFile], mistakes: &mut Mistakes) -> Vec<BmpStation> {
    let one = |file: &StationFile| BmpStation {
        address: file.address,
        name: file.name.clone(),
        views: file.views.clone(),
        statistics_seconds: file.statistics_seconds,
    };
    let stations: Vec<BmpStation> = all.iter().map(one).collect();
    for (at, (key, found, expected)) in bmp::mistakes(&stations) {
        mistakes.add(source, format!("bmp[{at}].{key}"), found, expected);
    }
    stations
}

#[cfg(test)]
mod tests {
    use crate::bgp::standalone::config::parse;

    fn file(bmp: &str) -> String {
        format!(
            "{{asn: 64512, routerId: 10.0.0.1, listen: [], neighbours: [{{address: 10.0.0.2}}], bmp: {bmp}}}"
        )
    }

    #[test]
    fn stations_are_read_and_what_cannot_work_is_named() {
        let read = parse("t.yaml", &file("[{address: '10.0.0.9:11019', views: [locRib]}]")).unwrap();
        let station = &read.desired.stations[0];
        assert_eq!((station.title().as_str(), station.statistics_seconds), ("10.0.0.9:11019", 60));
        let bad =
            "[{address: '10.0.0.9:0', statisticsSeconds: 1, views: []}, {address: '10.0.0.9:0', name: ''}]";
        let said = parse("t.yaml", &file(bad)).unwrap_err().to_string();
        for part in [
            "bmp[0].address: 10.0.0.9:0",
            "bmp[0].statisticsSeconds: 1",
            "bmp[0].views: nothing",
            "bmp[1].name",
            "an address that stands there once",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        for (bad, part) in
            [("[{address: here}]", "socket address"), ("[{address: '1.1.1.1:1', port: 1}]", "port")]
        {
            let said = parse("t.yaml", &file(bad)).unwrap_err().to_string();
            assert!(said.contains(part), "{part}: {said}");
        }
    }
}
