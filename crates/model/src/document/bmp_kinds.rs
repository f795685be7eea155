//! Monitoring stations in the cluster's configuration.

use super::cluster_kinds::number;
use super::reader::Field;
use crate::bmp::{self, BmpStation, BmpView};

const ADDRESS: &str = "address and port of a station (10.0.0.9:11019, '[fd00::9]:11019')";

/// `bgp.bmp`.
pub(super) fn stations(field: &Field<'_>) -> Option<Vec<BmpStation>> {
    let items = field.items("a list of stations (address, name, views, statisticsSeconds)")?;
    let read: Option<Vec<BmpStation>> = items.iter().map(station).collect();
    let stations = read?;
    let mistakes = bmp::mistakes(&stations);
    for (at, (key, found, expected)) in &mistakes {
        items[*at].note(format!("{key} {found}"), *expected);
    }
    mistakes.is_empty().then_some(stations)
}

fn station(field: &Field<'_>) -> Option<BmpStation> {
    let map = field.map("a station (address, name, views, statisticsSeconds)")?;
    let address = map.required("address", ADDRESS).and_then(|f| f.parse(ADDRESS));
    let name = map.maybe("name", |f| f.text("a name").map(str::to_owned));
    let views = map.or("views", bmp::default_views(), |f| {
        f.list("a list of prePolicy, postPolicy, locRib", |f| {
            f.one_of(&[
                ("prePolicy", BmpView::PrePolicy),
                ("postPolicy", BmpView::PostPolicy),
                ("locRib", BmpView::LocRib),
            ])
        })
    });
    let statistics_seconds = map.or("statisticsSeconds", bmp::default_statistics(), |f| {
        number(f, "0 (never), or 5 to 3600 seconds", |n: u16| matches!(n, 0 | 5..=3600).then_some(n))
    });
    map.refuse_unknown();
    Some(BmpStation {
        address: address?,
        name: name?,
        views: views?,
        statistics_seconds: statistics_seconds?,
    })
}
