//! The nft tables of the data plane: masquerade and guard.

use std::time::Duration;

use podway_kern::KernelError;

use super::desired::Masquerade;

/// How often the tables are looked at.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The tables.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    problems: Vec<String>,
}

impl Tables {
    pub(crate) fn open() -> Result<Self, KernelError> {
        Ok(Self::default())
    }

    pub(crate) fn ensure(&mut self, _masquerade: Option<Option<&Masquerade>>) -> usize {
        0
    }

    pub(crate) fn problems(&self) -> &[String] {
        &self.problems
    }

    pub(crate) fn remove(&mut self) -> Vec<String> {
        Vec::new()
    }
}
