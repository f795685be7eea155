//! Versions of the CNI specification that the plugin serves.

use crate::error::{CniError, Code};

/// A version of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SpecVersion {
    /// 0.3.0
    V030,
    /// 0.3.1
    V031,
    /// 0.4.0: the first one with CHECK.
    V040,
    /// 1.0.0: `ips[].version` is gone.
    V100,
    /// 1.1.0: STATUS, GC, `interfaces[].mtu`.
    V110,
}

impl SpecVersion {
    /// All, oldest first.
    pub const ALL: [Self; 5] = [Self::V030, Self::V031, Self::V040, Self::V100, Self::V110];
    /// The newest: what an answer carries where the question's version could not be read.
    pub const NEWEST: Self = Self::V110;

    /// As the specification writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V030 => "0.3.0",
            Self::V031 => "0.3.1",
            Self::V040 => "0.4.0",
            Self::V100 => "1.0.0",
            Self::V110 => "1.1.0",
        }
    }

    /// The version with this name.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        Self::ALL.into_iter().find(|version| version.as_str() == text).ok_or_else(|| {
            let served = Self::ALL.map(Self::as_str).join(", ");
            CniError::new(
                Code::IncompatibleVersion,
                format!("cniVersion: {text:?} found, one of {served} expected"),
            )
        })
    }
}
