//! nftables over raw netlink: the transport of `podway-nft`'s transactions.
