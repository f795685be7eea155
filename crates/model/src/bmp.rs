//! Monitoring stations (BMP, RFC 7854), in the words of the cluster's configuration and of a speaker alone.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// A station that is told what BGP neighbours tell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BmpStation {
    /// Where it listens.
    pub address: SocketAddr,
    /// For people; none: its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it is told.
    #[serde(default = "default_views")]
    pub views: Vec<BmpView>,
    /// Seconds between statistics: 0 (never), or 5 to 3600.
    #[serde(default = "default_statistics")]
    pub statistics_seconds: u16,
}

/// A table that a station is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BmpView {
    /// Adj-RIB-in as it came.
    PrePolicy,
    /// Adj-RIB-in as it is used.
    PostPolicy,
    /// Loc-RIB (RFC 9069).
    LocRib,
}

/// Views of a station that says nothing of them.
pub fn default_views() -> Vec<BmpView> {
    vec![BmpView::PrePolicy, BmpView::PostPolicy]
}

/// Time between statistics of a station that says nothing of it.
pub fn default_statistics() -> u16 {
    60
}

/// A field of a station that cannot work, its value, and what was expected.
pub type StationMistake = (&'static str, String, &'static str);

impl BmpStation {
    /// Its name, or its address.
    pub fn title(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.address.to_string())
    }

    /// What of it cannot work.
    pub fn mistakes(&self) -> Vec<StationMistake> {
        let (ip, mut all) = (self.address.ip(), vec![]);
        if ip.is_unspecified() || ip.is_multicast() || self.address.port() == 0 {
            let expected = "address and port of a station (10.0.0.9:11019, '[fd00::9]:11019')";
            all.push(("address", self.address.to_string(), expected));
        }
        if self.name.as_ref().is_some_and(|name| name.is_empty() || name.len() > 63) {
            all.push(("name", self.title(), "1 to 63 octets"));
        }
        if self.views.is_empty() {
            all.push(("views", "nothing".to_owned(), "some of prePolicy, postPolicy, locRib"));
        }
        if !matches!(self.statistics_seconds, 0 | 5..=3600) {
            let expected = "0 (never), or 5 to 3600 seconds";
            all.push(("statisticsSeconds", self.statistics_seconds.to_string(), expected));
        }
        all
    }
}

/// Most stations.
pub const MOST_STATIONS: usize = 8;

/// What of a list of stations cannot work: which of them, and what.
pub fn mistakes(stations: &[BmpStation]) -> Vec<(usize, StationMistake)> {
    let mut all = vec![];
    for (at, station) in stations.iter().enumerate() {
        all.extend(station.mistakes().into_iter().map(|mistake| (at, mistake)));
        if stations[..at].iter().any(|other| other.address == station.address) {
            let mistake = ("address", station.address.to_string(), "an address that stands there once");
            all.push((at, mistake));
        }
        if at == MOST_STATIONS {
            all.push((at, ("address", station.address.to_string(), "at most 8 stations")));
        }
    }
    all
}
