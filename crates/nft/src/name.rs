//! Names of tables, chains and sets: checked once, then trusted by the text form and the encoder.

use std::borrow::Cow;
use std::fmt;

/// Longest name that the kernel takes (`NFT_NAME_MAXLEN` less the closing zero byte).
pub const NAME_MAX: usize = 255;

/// Name of a table, chain, set or map, in the form that `nft` can read back: a letter, then letters, digits,
/// `-`, `_`, `.` and `/`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Cow<'static, str>);

/// Text that cannot be a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an nftables name (a letter, then letters, digits, '-', '_', '.' and '/', at most 255)")]
pub struct InvalidName(pub String);

impl Name {
    /// A name known when compiling. In a `const` a bad one is a compile error.
    ///
    /// # Panics
    /// When `text` is no name.
    pub const fn literal(text: &'static str) -> Self {
        assert!(is_name(text.as_bytes()), "not an nftables name");
        Self(Cow::Borrowed(text))
    }

    /// A name made at run time.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
        let text = text.into();
        if is_name(text.as_bytes()) { Ok(Self(Cow::Owned(text))) } else { Err(InvalidName(text)) }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

const fn is_name(bytes: &[u8]) -> bool {
    if bytes.is_empty() || bytes.len() > NAME_MAX || !bytes[0].is_ascii_alphabetic() {
        return false;
    }
    let mut i = 1;
    while i < bytes.len() {
        let b = bytes[i];
        if !(b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'.' || b == b'/') {
            return false;
        }
        i += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nft_reads_back_is_a_name() {
        for good in ["a", "podway-guard", "ok_any", "c.1/x"] {
            assert_eq!(Name::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "1a", "a b", "a\"", "-a", "ä", "a;drop"] {
            assert_eq!(Name::new(bad), Err(InvalidName(bad.to_owned())));
        }
        assert!(Name::new("n".repeat(NAME_MAX)).is_ok());
        assert!(Name::new("n".repeat(NAME_MAX + 1)).is_err());
    }
}
