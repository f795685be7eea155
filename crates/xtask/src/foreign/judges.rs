//! Programs that judge what ours says, built of Go modules: decoders of somebody else.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Fnv, run_go};
use crate::tools::{Tools, cache_dir};
use crate::{build, complain};

/// Their module.
const MODULE: &str = "tests/interop/go";

impl Tools {
    /// Builds them, unless they are there. Without Go or network the tests that ask them are skipped.
    pub(super) fn prepare_judges(&self) {
        let Ok(folder) = Self::judges() else { return };
        if folder.join("bmpd").is_file() {
            return;
        }
        complain("==> building GoBGP's BMP decoder\n");
        let mut target = folder.into_os_string();
        target.push("/");
        let mut command = Command::new("go");
        command.args(["build", "-mod=readonly", "-o"]).arg(target).arg("./bmpd");
        command.current_dir(build::workspace().join(MODULE));
        run_go(command.env("CGO_ENABLED", "0").envs(self.environment()));
    }

    /// Where they are built to: a folder for each version.
    pub(super) fn judges() -> Result<PathBuf> {
        let module = build::workspace().join(MODULE);
        let mut hash = Fnv::default();
        for file in ["go.mod", "go.sum", "bmpd/main.go"] {
            let path = module.join(file);
            hash.write(&std::fs::read(&path).with_context(|| format!("read {}", path.display()))?);
        }
        Ok(cache_dir()?.join(format!("judges-{:016x}", hash.finish())))
    }
}
