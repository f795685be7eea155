//! Numbers of `linux/netfilter/nf_tables.h` and of nft's own user data, and how our types map to them.

use crate::expr::{Field, Verdict};
use crate::object::{ChainKind, Family, Hook, KeyType, Policy, TableFlags};
use crate::value::DataType;

/// Messages (`enum nf_tables_msg_types`).
pub mod msg {
    /// `NFT_MSG_NEWTABLE`
    pub const NEWTABLE: u8 = 0;
    /// `NFT_MSG_GETTABLE`
    pub const GETTABLE: u8 = 1;
    /// `NFT_MSG_DELTABLE`
    pub const DELTABLE: u8 = 2;
    /// `NFT_MSG_NEWCHAIN`
    pub const NEWCHAIN: u8 = 3;
    /// `NFT_MSG_GETCHAIN`
    pub const GETCHAIN: u8 = 4;
    /// `NFT_MSG_DELCHAIN`
    pub const DELCHAIN: u8 = 5;
    /// `NFT_MSG_NEWRULE`
    pub const NEWRULE: u8 = 6;
    /// `NFT_MSG_GETRULE`
    pub const GETRULE: u8 = 7;
    /// `NFT_MSG_DELRULE`
    pub const DELRULE: u8 = 8;
    /// `NFT_MSG_NEWSET`
    pub const NEWSET: u8 = 9;
    /// `NFT_MSG_GETSET`
    pub const GETSET: u8 = 10;
    /// `NFT_MSG_DELSET`
    pub const DELSET: u8 = 11;
    /// `NFT_MSG_NEWSETELEM`
    pub const NEWSETELEM: u8 = 12;
    /// `NFT_MSG_GETSETELEM`
    pub const GETSETELEM: u8 = 13;
    /// `NFT_MSG_DELSETELEM`
    pub const DELSETELEM: u8 = 14;
    /// `NFT_MSG_NEWGEN`
    pub const NEWGEN: u8 = 15;
    /// `NFT_MSG_GETGEN`
    pub const GETGEN: u8 = 16;
}

pub(crate) mod table {
    pub(crate) const NAME: u16 = 1;
    pub(crate) const FLAGS: u16 = 2;
    pub(crate) const F_OWNER: u32 = 2;
    pub(crate) const F_PERSIST: u32 = 4;
}

/// Matches and targets of iptables.
pub(crate) mod xt {
    pub(crate) const NAME: u16 = 1;
    pub(crate) const INFO: u16 = 3;
}

pub(crate) mod chain {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const NAME: u16 = 3;
    pub(crate) const HOOK: u16 = 4;
    pub(crate) const POLICY: u16 = 5;
    pub(crate) const TYPE: u16 = 7;
    pub(crate) const HOOK_NUM: u16 = 1;
    pub(crate) const HOOK_PRIORITY: u16 = 2;
}

pub(crate) mod rule {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const CHAIN: u16 = 2;
    pub(crate) const HANDLE: u16 = 3;
    pub(crate) const EXPRESSIONS: u16 = 4;
    pub(crate) const USERDATA: u16 = 7;
    /// nft's user data: comment.
    pub(crate) const UDATA_COMMENT: u8 = 0;
}

pub(crate) mod set {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const NAME: u16 = 2;
    pub(crate) const FLAGS: u16 = 3;
    pub(crate) const KEY_TYPE: u16 = 4;
    pub(crate) const KEY_LEN: u16 = 5;
    pub(crate) const DATA_TYPE: u16 = 6;
    pub(crate) const DATA_LEN: u16 = 7;
    pub(crate) const DESC: u16 = 9;
    pub(crate) const ID: u16 = 10;
    pub(crate) const USERDATA: u16 = 13;
    pub(crate) const DESC_CONCAT: u16 = 2;
    pub(crate) const FIELD_LEN: u16 = 1;
    pub(crate) const F_ANONYMOUS: u32 = 0x01;
    pub(crate) const F_CONSTANT: u32 = 0x02;
    pub(crate) const F_INTERVAL: u32 = 0x04;
    pub(crate) const F_MAP: u32 = 0x08;
    pub(crate) const F_CONCAT: u32 = 0x80;
    /// `NFT_DATA_VERDICT`: type of a verdict map's data.
    pub(crate) const DATA_VERDICT: u32 = 0xffff_ff00;
    /// nft's user data: byte order of the key, of the data, and whether data are ranges.
    pub(crate) const UDATA_KEY_ORDER: u8 = 0;
    pub(crate) const UDATA_DATA_ORDER: u8 = 1;
    pub(crate) const UDATA_DATA_INTERVAL: u8 = 6;
}

pub(crate) mod elem {
    pub(crate) const LIST_TABLE: u16 = 1;
    pub(crate) const LIST_SET: u16 = 2;
    pub(crate) const LIST_ELEMENTS: u16 = 3;
    pub(crate) const KEY: u16 = 1;
    pub(crate) const DATA: u16 = 2;
    pub(crate) const FLAGS: u16 = 3;
    pub(crate) const USERDATA: u16 = 6;
    pub(crate) const KEY_END: u16 = 10;
    pub(crate) const F_INTERVAL_END: u32 = 1;
    /// nft's user data: flags; 1 is "reaches to the end of the address space".
    pub(crate) const UDATA_FLAGS: u8 = 1;
    pub(crate) const UDATA_F_OPEN: u32 = 1;
}

pub(crate) mod data {
    pub(crate) const VALUE: u16 = 1;
    pub(crate) const VERDICT: u16 = 2;
    pub(crate) const VERDICT_CODE: u16 = 1;
    pub(crate) const VERDICT_CHAIN: u16 = 2;
}

/// `NFTA_LIST_ELEM`.
pub(crate) const LIST_ELEM: u16 = 1;

/// `NFPROTO_*`.
pub fn family(family: Family) -> u8 {
    match family {
        Family::Inet => 1,
        Family::Ip => 2,
        Family::Ip6 => 10,
    }
}

pub(crate) fn family_of(number: u8) -> Option<Family> {
    [Family::Inet, Family::Ip, Family::Ip6].into_iter().find(|f| family(*f) == number)
}

pub(crate) fn table_flags(flags: TableFlags) -> u32 {
    (if flags.owner { table::F_OWNER } else { 0 }) | (if flags.persist { table::F_PERSIST } else { 0 })
}

pub(crate) fn hook(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}

pub(crate) const HOOKS: [Hook; 5] =
    [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];

pub(crate) fn chain_kind(kind: ChainKind) -> &'static str {
    match kind {
        ChainKind::Filter => "filter",
        ChainKind::Nat => "nat",
    }
}

pub(crate) fn policy(policy: Policy) -> u32 {
    match policy {
        Policy::Drop => 0,
        Policy::Accept => 1,
    }
}

/// Verdict codes: `NF_*` and `enum nft_verdicts`, as the kernel sends them.
pub(crate) fn verdict(verdict: &Verdict) -> u32 {
    let code: i32 = match verdict {
        Verdict::Drop => 0,
        Verdict::Accept => 1,
        Verdict::Continue => -1,
        Verdict::Jump(_) => -3,
        Verdict::Goto(_) => -4,
        Verdict::Return => -5,
    };
    code.cast_unsigned()
}

/// nft's type numbers (`enum datatypes` in nft's `include/datatype.h`): the kernel only keeps them.
pub(crate) fn data_type(kind: DataType) -> u32 {
    match kind {
        DataType::NfProto => 2,
        DataType::Ipv4Addr => 7,
        DataType::Ipv6Addr => 8,
        DataType::InetProto => 12,
        DataType::InetService => 13,
        DataType::IcmpType => 14,
        DataType::Mark => 19,
        DataType::IfIndex => 20,
        DataType::ClassId => 23,
        DataType::CtState => 26,
        DataType::CtStatus => 28,
        DataType::Icmpv6Type => 29,
        DataType::DevGroup => 35,
        DataType::FibAddrType => 38,
        DataType::Boolean => 39,
        DataType::IfName => 41,
    }
}

pub(crate) const DATA_TYPES: [DataType; 16] = [
    DataType::NfProto,
    DataType::Ipv4Addr,
    DataType::Ipv6Addr,
    DataType::InetProto,
    DataType::InetService,
    DataType::IcmpType,
    DataType::Mark,
    DataType::IfIndex,
    DataType::ClassId,
    DataType::CtState,
    DataType::CtStatus,
    DataType::Icmpv6Type,
    DataType::DevGroup,
    DataType::FibAddrType,
    DataType::Boolean,
    DataType::IfName,
];

/// A concatenation's number: six bits for each part, the first part highest.
pub(crate) fn key_type(key: &KeyType) -> u32 {
    key.0.iter().fold(0, |number, part| (number << 6) | data_type(*part))
}

pub(crate) fn key_type_of(mut number: u32) -> Option<KeyType> {
    let mut parts = Vec::new();
    while number != 0 {
        parts.insert(0, DATA_TYPES.into_iter().find(|kind| data_type(*kind) == number & 0x3f)?);
        number >>= 6;
    }
    (!parts.is_empty()).then_some(KeyType(parts))
}

/// nft's byte orders: 0 of several kinds, 1 the machine's, 2 the network's.
pub(crate) fn byte_order(parts: &[DataType]) -> u32 {
    match parts {
        [one] if one.is_host_order() || *one == DataType::IfName => 1,
        [_] => 2,
        _ => 0,
    }
}

/// How a field is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Load {
    Meta(u32),
    Ct(u32),
    /// Base, offset, length.
    Payload(u32, u32, u32),
    /// Result, flags.
    Fib(u32, u32),
}

/// The field that is loaded so, of those that rules of other people's tables are asked about. Where the family decides
/// what lies there, it is IPv4 for four bytes and IPv6 for sixteen.
pub(crate) fn field_of(loaded: Load) -> Option<Field> {
    [
        Field::NfProto,
        Field::L4Proto,
        Field::IpSaddr,
        Field::IpDaddr,
        Field::Ip6Saddr,
        Field::Ip6Daddr,
        Field::ThSport,
        Field::ThDport,
    ]
    .into_iter()
    .find(|field| load(*field) == loaded)
}

pub(crate) fn load(field: Field) -> Load {
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    match field {
        Field::Priority => Load::Meta(2),
        Field::Mark => Load::Meta(3),
        Field::Iif => Load::Meta(4),
        Field::Oif => Load::Meta(5),
        Field::IifName => Load::Meta(6),
        Field::OifName => Load::Meta(7),
        Field::NfProto => Load::Meta(15),
        Field::L4Proto => Load::Meta(16),
        Field::IifGroup => Load::Meta(21),
        Field::OifGroup => Load::Meta(22),
        Field::CtState => Load::Ct(0),
        Field::CtStatus => Load::Ct(2),
        Field::CtMark => Load::Ct(3),
        Field::IpSaddr => Load::Payload(NETWORK, 12, 4),
        Field::IpDaddr => Load::Payload(NETWORK, 16, 4),
        Field::Ip6Saddr => Load::Payload(NETWORK, 8, 16),
        Field::Ip6Daddr => Load::Payload(NETWORK, 24, 16),
        Field::IcmpType | Field::Icmpv6Type => Load::Payload(TRANSPORT, 0, 1),
        Field::ThSport => Load::Payload(TRANSPORT, 0, 2),
        Field::ThDport => Load::Payload(TRANSPORT, 2, 2),
        // Results: 1 interface index (with the flag 32, only whether there is one), 3 address type.
        // Flags: 1 source, 2 destination, 8 input interface.
        Field::FibSaddrIif => Load::Fib(1, 1 | 8 | 32),
        Field::FibSaddrType => Load::Fib(3, 1),
        Field::FibDaddrType => Load::Fib(3, 2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_types_survive_the_kernel() {
        let key = KeyType(vec![DataType::IfName, DataType::Mark, DataType::InetService]);
        assert_eq!(key_type(&key), 0x294cd, "as nft 1.0.6 numbers `ifname . mark . inet_service`");
        assert_eq!(key_type_of(0x294cd), Some(key));
        assert_eq!(key_type_of(0), None);
        assert_eq!(key_type_of(63), None);
        for kind in DATA_TYPES {
            assert_eq!(key_type_of(data_type(kind)), Some(KeyType(vec![kind])));
        }
    }
}
