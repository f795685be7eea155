//! How bad input is reported: where it is, what stands there, what was expected; all mistakes at once.

use std::fmt;

/// Exit code of daemons and of the command line for input that cannot be used (`EX_USAGE` of `sysexits.h`).
pub const EXIT_BAD_INPUT: u8 = 64;

/// One mistake in one document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// File or other source, with the document's number or line where there is one: `cluster.yaml:12`.
    pub source: String,
    /// Path of the field: `spec.cidr`, `spec.ingress[0].ports[1].endPort`. Empty for the whole document.
    pub field: String,
    /// What stands there, shortened.
    pub value: String,
    /// What was expected instead, as a phrase: `an IPv4 or IPv6 prefix`.
    pub expected: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.source)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        if self.value.is_empty() {
            write!(f, "{}", self.expected)
        } else {
            write!(f, "{} found, {} expected", self.value, self.expected)
        }
    }
}

/// All the mistakes of one input. Never empty when it is returned as an error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl Mistakes {
    /// Adds one. `value` is shortened to 80 characters.
    pub fn add(
        &mut self,
        source: impl Into<String>,
        field: impl Into<String>,
        value: impl fmt::Display,
        expected: impl Into<String>,
    ) {
        let mut value = value.to_string();
        if value.chars().count() > 80 {
            value = value.chars().take(79).chain(['…']).collect();
        }
        self.0.push(Mistake { source: source.into(), field: field.into(), value, expected: expected.into() });
    }

    /// `Ok(value)` if nothing was found wrong.
    pub fn into_result<T>(self, value: T) -> Result<T, Mistakes> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }

    /// Whether nothing was found wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes over the mistakes of another input.
    pub fn extend(&mut self, other: Mistakes) {
        self.0.extend(other.0);
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            mistake.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}
