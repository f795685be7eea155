//! The text of the fixed tables, for people to read; that it is what the real `nft` lists is shown by
//! `podway-kern`'s test `the_fixed_tables_are_nfts_own`. `UPDATE_GOLDEN=1` rewrites the files.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests; a switch for their golden files")]

use podway_nft::TableState;
use podway_nft::tables::{Masquerade, guard, masquerade, ports};

fn golden(name: &str, table: &TableState) {
    let path = format!("{}/tests/golden/{name}.nft", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, table.to_string()).unwrap();
    }
    assert_eq!(table.to_string(), std::fs::read_to_string(&path).unwrap(), "{path}");
}

fn nets<T: FromIterator<ipnet::IpNet>>(texts: &[&str]) -> T {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn the_fixed_tables_read_as_written() {
    golden("guard", &guard(&nets::<Vec<_>>(&["192.0.2.7/32", "fd00:9::/64"])));
    golden(
        "masquerade",
        &masquerade(&Masquerade {
            sources: nets(&["10.244.0.0/16", "fd00:10:244::/48"]),
            exclude: nets(&["10.244.0.0/16", "10.245.0.0/16", "fd00:10:244::/48"]),
            local_pods: ["10.244.1.2", "fd00:10:244:1::2"].map(|a| a.parse().unwrap()).into(),
        }),
    );
    golden("ports", &ports([]));
}
