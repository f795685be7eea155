//! Flannel's layout of etcd.

use podway_model::flannel::{LeaseAttrs, NetworkConfig, Prefix, Subnet};
use podway_model::mistakes::Mistakes;

/// The last part of a key, a line feed, and a value: read as a lease and as the configuration.
pub fn flannel(bytes: &[u8]) {
    let (key, value) = match bytes.iter().position(|byte| *byte == b'\n') {
        Some(at) => (String::from_utf8_lossy(&bytes[..at]), &bytes[at + 1..]),
        None => (String::from_utf8_lossy(&[]), bytes),
    };
    match key.parse::<Subnet>() {
        Ok(subnet) => {
            assert_eq!(subnet.to_string().parse(), Ok(subnet));
            assert!(subnet.nets().all(|net| subnet.overlaps(net)));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(prefix) = key.parse::<Prefix>() {
        assert_eq!(prefix.to_string(), key);
    }
    match LeaseAttrs::parse("input", value) {
        Ok(read) => assert_eq!(LeaseAttrs::parse("again", &read.encode()), Ok(read)),
        Err(mistakes) => worded(&mistakes),
    }
    match NetworkConfig::parse("input", value) {
        Ok(config) => ranges(&config),
        Err(mistakes) => worded(&mistakes),
    }
}

/// First and last subnet are the network's, and there is none after the last.
fn ranges(config: &NetworkConfig) {
    for number in [0, config.count_v4() - 1] {
        let v4 = config.nth_v4(number).expect("a subnet of that number");
        assert!(config.fits(&Subnet { v4, v6: None }) && config.v4.network.contains(&v4));
    }
    assert_eq!(config.nth_v4(config.count_v4()), None);
    let Some(range) = config.v6 else { return assert_eq!(config.nth_v6(0), None) };
    let v6 = config.nth_v6(0).expect("a first subnet");
    let v4 = config.nth_v4(0).expect("a first subnet");
    assert!(config.fits(&Subnet { v4, v6: Some(v6) }) && range.network.contains(&v6));
}

fn worded(mistakes: &Mistakes) {
    assert!(!mistakes.is_empty(), "refused without a reason");
    assert!(mistakes.0.iter().all(|mistake| !mistake.to_string().is_empty()));
}
