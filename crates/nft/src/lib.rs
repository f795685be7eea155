//! nftables objects, transactions, text form, netlink encoding, fake and packet evaluator.
