//! NetworkPolicy: selectors, resolution, oracle, lowering to nftables objects.
