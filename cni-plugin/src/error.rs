//! What the plugin answers when it cannot do what it was asked: CNI SPEC 1.1.0, section 5, "Error".

use std::fmt;

use podway_ipam::{LeaseError, NodeFileError, Refusal, StoreError};
use podway_kern::KernelError;
use podway_model::mistakes::Mistakes;
use serde_json::{Value, json};

/// Error code. Up to 99 as the specification has them, from 100 our own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The configuration's `cniVersion` is not served, or does not know the verb.
    IncompatibleVersion,
    /// A field asks for what this plugin does not do; the message names key and value.
    UnsupportedField,
    /// An environment variable is missing or cannot be used; the message names it.
    Environment,
    /// A file or socket failed.
    Io,
    /// The standard input is not JSON.
    Decode,
    /// The network configuration cannot be used.
    Config,
    /// `CNI_NETNS` is no network namespace, or the plugin's own (a code of libcni, not of the specification).
    Netns,
    /// It may succeed later.
    TryAgain,
    /// STATUS: ADD would fail.
    NotAvailable,
    /// The kernel refused.
    Kernel,
    /// CHECK: the attachment is not what ADD made.
    Damaged,
    /// What another address plugin answered cannot be used.
    Delegate,
    /// Another address plugin's own code, passed on.
    Foreign(u32),
}

impl Code {
    /// The number that is answered.
    pub fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::UnsupportedField => 2,
            Self::Environment => 4,
            Self::Io => 5,
            Self::Decode => 6,
            Self::Config => 7,
            Self::Netns => 8,
            Self::TryAgain => 11,
            Self::NotAvailable => 50,
            Self::Kernel => 100,
            Self::Damaged => 101,
            Self::Delegate => 102,
            Self::Foreign(number) => number,
        }
    }
}

/// An error, as it goes to standard output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniError {
    /// Its code.
    pub code: Code,
    /// Short text, one line.
    pub message: String,
    /// Long text, empty if there is no more to say.
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: String::new() }
    }

    /// Adds a line of details.
    #[must_use]
    pub fn with(mut self, line: impl fmt::Display) -> Self {
        if !self.details.is_empty() {
            self.details.push('\n');
        }
        self.details.push_str(&line.to_string());
        self
    }

    /// The mistakes of a network configuration: the first one short, all of them in the details.
    pub fn config(mistakes: &Mistakes) -> Self {
        let first = mistakes.0.first().map(ToString::to_string).unwrap_or_default();
        let error = Self::new(Code::Config, first);
        if mistakes.0.len() > 1 { error.with(mistakes) } else { error }
    }

    /// A file that cannot be read or written.
    pub fn io(path: &std::path::Path, attempted: &str, error: &std::io::Error) -> Self {
        Self::new(Code::Io, format!("{}: cannot {attempted}: {error}", path.display()))
    }

    /// The JSON text. `version` is the configuration's, where it could be read.
    pub fn to_json(&self, version: &str) -> Value {
        let mut value = json!({ "cniVersion": version, "code": self.code.number(), "msg": self.message });
        if !self.details.is_empty() {
            value["details"] = Value::from(self.details.as_str());
        }
        value
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.message, self.code.number())
    }
}

impl From<KernelError> for CniError {
    fn from(error: KernelError) -> Self {
        Self::new(Code::Kernel, error.to_string())
    }
}

impl From<StoreError> for CniError {
    fn from(error: StoreError) -> Self {
        Self::new(Code::Io, error.to_string())
    }
}

impl From<NodeFileError> for CniError {
    fn from(error: NodeFileError) -> Self {
        Self::new(Code::TryAgain, error.to_string())
    }
}

impl From<Refusal> for CniError {
    fn from(refusal: Refusal) -> Self {
        let code = match &refusal {
            Refusal::Exhausted { .. } | Refusal::NoPool | Refusal::Taken { .. } => Code::TryAgain,
            Refusal::UnknownPool { .. }
            | Refusal::Outside { .. }
            | Refusal::Reserved(_)
            | Refusal::TwoOfOneFamily(..) => Code::Config,
        };
        Self::new(code, refusal.to_string())
    }
}

impl From<LeaseError> for CniError {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Refused(refusal) => refusal.into(),
            LeaseError::Store(error) => error.into(),
        }
    }
}
