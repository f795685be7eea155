//! Arithmetic of prefixes.

use ipnet::IpNet;

/// Whether two prefixes share an address.
pub fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// Addresses of a prefix of `prefix_len` bits in a family whose addresses have `max_prefix_len`; saturates.
pub fn block_size(prefix_len: u8, max_prefix_len: u8) -> u64 {
    1u64.checked_shl(u32::from(max_prefix_len.saturating_sub(prefix_len))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_overlap_where_one_holds_the_other() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        for (a, b, expected) in [
            ("10.0.0.0/24", "10.0.0.64/26", true),
            ("10.0.0.0/24", "10.0.0.0/24", true),
            ("10.0.0.0/24", "10.0.1.0/24", false),
            ("10.0.0.0/8", "fd00::/8", false),
        ] {
            assert_eq!((overlap(net(a), net(b)), overlap(net(b), net(a))), (expected, expected), "{a} {b}");
        }
    }

    #[test]
    fn sizes_saturate() {
        assert_eq!((block_size(26, 32), block_size(122, 128), block_size(32, 32)), (64, 64, 1));
        assert_eq!((block_size(64, 128), block_size(65, 128)), (u64::MAX, 1 << 63));
    }
}
