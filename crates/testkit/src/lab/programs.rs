//! Where the programs under test and their tools are.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// Paths of programs.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The CNI plugin.
    pub podway: PathBuf,
    /// The route daemon.
    pub routed: PathBuf,
    /// The policy daemon.
    pub policy_agent: PathBuf,
    /// The command line.
    pub podwayctl: PathBuf,
    /// etcd, where there is one.
    pub etcd: Option<PathBuf>,
    lab_dir: PathBuf,
}

impl Programs {
    /// Finds the workspace's programs beside the running one, and etcd in `PATH`.
    ///
    /// # Errors
    /// A program was not built: the text says how.
    pub fn find() -> Result<Self> {
        let me = std::env::current_exe().context("path of the running program")?;
        let mut dir = me.parent().context("a program lies in a folder")?.to_owned();
        if dir.ends_with("deps") {
            // A test binary lies one level below the programs.
            dir.pop();
        }
        let program = |name: &str| {
            let path = dir.join(name);
            if !path.is_file() {
                bail!(
                    "{} is not there: build it with the same profile (`cargo xtask test` does, or \
                     `cargo build --profile ci -p cni-plugin -p routed -p policy-agent -p podwayctl`)",
                    path.display()
                );
            }
            Ok(path)
        };
        // <target>/<triple>/<profile>: logs go to <target>/lab.
        let target = dir.ancestors().nth(2).context("programs lie in target/<triple>/<profile>")?;
        Ok(Self {
            podway: program("podway")?,
            routed: program("routed")?,
            policy_agent: program("policy-agent")?,
            podwayctl: program("podwayctl")?,
            etcd: find_tool("etcd"),
            lab_dir: target.join("lab"),
        })
    }

    /// Folder for the logs of labs.
    pub fn lab_dir(&self) -> &Path {
        &self.lab_dir
    }
}

/// A program in `PATH`.
pub fn find_tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|candidate| candidate.is_file())
}
