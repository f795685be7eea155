//! Finds the programs that build and tests need, and gets the missing ones from Debian's packages.
//!
//! A package is unpacked, never installed: no service starts, no file outside the cache changes. Shared
//! libraries that the machine lacks are unpacked beside it and found through `LD_LIBRARY_PATH`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{complain, say};

/// A program, or a header, that something needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    /// Its name on `PATH`; with a slash in it, its path below an include folder.
    pub(crate) program: &'static str,
    /// Debian package that has it.
    pub(crate) package: &'static str,
    /// What for, and whether it can be done without.
    pub(crate) what_for: &'static str,
    /// Whether nothing goes without it.
    pub(crate) required: bool,
}

const fn need(program: &'static str, package: &'static str, required: bool, what_for: &'static str) -> Need {
    Need { program, package, what_for, required }
}

/// The protobuf compiler: the only tool that the build itself needs.
pub(crate) const PROTOC: Need =
    need("protoc", "protobuf-compiler", true, "building the etcd client (its messages are generated)");

/// The message definitions that come with the compiler: Debian has them in a package of their own.
pub(crate) const PROTOC_INCLUDE: Need = need(
    "google/protobuf/descriptor.proto",
    "libprotobuf-dev",
    true,
    "building the etcd client (its messages import these)",
);

/// Everything that build, demo and tests use.
pub(crate) const ALL: [Need; 14] = [
    PROTOC,
    PROTOC_INCLUDE,
    need("ip", "iproute2", true, "looking at links and routes from outside our own code"),
    need("nft", "nftables", true, "listing nftables rules from outside our own code"),
    need("iptables-nft", "iptables", false, "tests beside the rules of others"),
    need("nsenter", "util-linux", true, "stepping into a node or a pod"),
    need("etcd", "etcd-server", false, "the cluster store; without it the demo runs on the file store"),
    need("etcdctl", "etcd-client", false, "tests of the example roles for etcd, which are made with it"),
    need("ping", "iputils-ping", false, "looking into a lab that was kept"),
    need("tcpdump", "tcpdump", false, "looking into a lab that was kept"),
    need("bird", "bird2", false, "BGP tests against another implementation"),
    need("birdc", "bird2", false, "BGP tests against another implementation"),
    need("gobgpd", "gobgpd", false, "BGP tests against another implementation"),
    need("gobgp", "gobgpd", false, "BGP tests against another implementation"),
];

/// The programs that were found, and where.
#[derive(Debug)]
pub(crate) struct Tools {
    root: PathBuf,
    found: Vec<(Need, Option<PathBuf>)>,
}

/// `$XDG_CACHE_HOME/podway` or `~/.cache/podway`.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()) {
        return Ok(PathBuf::from(dir).join("podway"));
    }
    let home = std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?;
    Ok(PathBuf::from(home).join(".cache/podway"))
}

/// Debian's code name, so that a cache outlives an upgrade of the machine without being wrong.
fn release() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map_or_else(|| "unknown".to_owned(), |name| name.trim_matches('"').to_owned())
}

impl Tools {
    /// Finds all of `needs`; gets what is missing. Fails if a required one is not to be had.
    pub(crate) fn prepare(needs: &[Need]) -> Result<Self> {
        let root = cache_dir()?.join("tools").join(release());
        let mut tools = Self { root, found: vec![] };
        tools.look(needs);
        let missing: BTreeSet<&str> = tools.missing().map(|need| need.package).collect();
        if !missing.is_empty() {
            complain(&format!("==> getting {}\n", missing.iter().copied().collect::<Vec<_>>().join(", ")));
            for package in missing {
                if let Err(error) = tools.unpack(package) {
                    complain(&format!("    {package}: {error:#}\n"));
                }
            }
            tools.look(needs);
        }
        for need in tools.missing() {
            complain(&format!(
                "    {} is missing (needed for {}); get it with: apt-get install --no-install-recommends {}\n",
                need.program, need.what_for, need.package
            ));
        }
        if let Some(need) = tools.missing().find(|need| need.required) {
            bail!("{} is required", need.program);
        }
        Ok(tools)
    }

    fn look(&mut self, needs: &[Need]) {
        let (programs, includes) = (self.folders(), self.include_folders());
        let places = |need: &Need| if need.program.contains('/') { &includes } else { &programs };
        self.found = needs
            .iter()
            .map(|need| {
                (*need, places(need).iter().map(|dir| dir.join(need.program)).find(|path| path.is_file()))
            })
            .collect();
    }

    fn missing(&self) -> impl Iterator<Item = &Need> {
        self.found.iter().filter(|(_, path)| path.is_none()).map(|(need, _)| need)
    }

    /// Where a program stands, if it does.
    pub(crate) fn path_of(&self, program: &str) -> Option<&Path> {
        self.found.iter().find(|(need, _)| need.program == program)?.1.as_deref()
    }

    /// Folder of the packages that have a folder of their own.
    pub(crate) fn apart(&self) -> PathBuf {
        self.root.with_extension("apart")
    }

    /// Folders that are searched: the machine's own first, then the cache.
    fn folders(&self) -> Vec<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
        for dir in ["/usr/local/sbin", "/usr/sbin", "/sbin"] {
            if !folders.iter().any(|known| known == Path::new(dir)) {
                folders.push(dir.into());
            }
        }
        folders.extend(["usr/sbin", "usr/bin", "sbin", "bin"].map(|dir| self.root.join(dir)));
        folders
    }

    /// Folders of message definitions and headers that are searched.
    fn include_folders(&self) -> Vec<PathBuf> {
        let given = std::env::var_os("PROTOC_INCLUDE").map(PathBuf::from);
        let usual = ["/usr/local/include", "/usr/include"].map(PathBuf::from);
        given.into_iter().chain(usual).chain([self.root.join("usr/include")]).collect()
    }

    /// Environment for everything that is run: `PATH`, `LD_LIBRARY_PATH`, `PROTOC`, `PROTOC_INCLUDE`, and where
    /// others' plugins and runtimes are.
    pub(crate) fn environment(&self) -> Vec<(&'static str, OsString)> {
        let mut environment = vec![];
        if let Ok(path) = std::env::join_paths(self.folders()) {
            environment.push(("PATH", path));
        }
        let arch = std::env::consts::ARCH;
        let mut libraries: Vec<PathBuf> = ["usr/lib", "lib"]
            .iter()
            .map(|lib| self.root.join(lib).join(format!("{arch}-linux-gnu")))
            .filter(|dir| dir.is_dir())
            .collect();
        if !libraries.is_empty() {
            let given = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
            libraries.extend(std::env::split_paths(&given).filter(|dir| !dir.as_os_str().is_empty()));
            if let Ok(path) = std::env::join_paths(libraries) {
                environment.push(("LD_LIBRARY_PATH", path));
            }
        }
        // Where iptables looks for its extensions.
        let extensions = self.root.join("usr/lib").join(format!("{arch}-linux-gnu/xtables"));
        if extensions.is_dir() {
            environment.push(("XTABLES_LIBDIR", extensions.into()));
        }
        environment.extend(self.foreign_environment());
        if let Some(protoc) = self.path_of("protoc") {
            environment.push(("PROTOC", protoc.into()));
        }
        let include = self.path_of(PROTOC_INCLUDE.program).and_then(|path| path.ancestors().nth(3));
        if let Some(include) = include {
            environment.push(("PROTOC_INCLUDE", include.into()));
        }
        environment
    }

    /// Prints the environment as a shell reads it.
    pub(crate) fn print_environment(&self) {
        for (name, value) in self.environment() {
            let value = value.to_string_lossy().replace('\'', r"'\''");
            say(&format!("export {name}='{value}'\n"));
        }
    }

    /// Prints what was found.
    pub(crate) fn print_table(&self) {
        for (need, path) in &self.found {
            let place = path.as_ref().map_or_else(|| "missing".to_owned(), |path| path.display().to_string());
            say(&format!("{:32} {:60} {}\n", need.program, place, need.what_for));
        }
    }

    /// Unpacks a package and the libraries that it needs and the machine lacks.
    fn unpack(&self, package: &str) -> Result<()> {
        for name in with_libraries(package)? {
            self.unpack_one(&name, &self.root)?;
        }
        Ok(())
    }

    /// A package in a folder of its own, with others beside it; its libraries stand where those of all tools do. A
    /// package that is only a name for the newest version of another one is that one.
    pub(crate) fn unpacked(&self, package: &str, beside: &[&str]) -> Result<PathBuf> {
        let folder = self.apart().join(package);
        if folder.join(".complete").exists() {
            return Ok(folder);
        }
        complain(&format!("==> getting {package}\n"));
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let mut needed = with_libraries(package)?;
        let meta: Vec<String> =
            dependencies(package)?.into_iter().filter(|name| is_version_of(name, package)).collect();
        let own =
            [package.to_owned()].into_iter().chain(beside.iter().map(|name| (*name).to_owned())).chain(meta);
        for name in own {
            for library in with_libraries(&name)? {
                if library != name && !needed.contains(&library) {
                    needed.push(library);
                }
            }
            needed.retain(|library| *library != name);
            self.unpack_one(&name, &folder)?;
        }
        for library in needed {
            self.unpack_one(&library, &self.root)?;
        }
        std::fs::write(folder.join(".complete"), "")?;
        Ok(folder)
    }

    /// Unpacks one package into a folder, once.
    fn unpack_one(&self, name: &str, folder: &Path) -> Result<()> {
        let downloads = folder.join("packages");
        std::fs::create_dir_all(&downloads).with_context(|| format!("create {}", downloads.display()))?;
        let done = downloads.join(format!("{name}.unpacked"));
        if done.exists() {
            return Ok(());
        }
        complain(&format!("    {name}\n"));
        apt(&downloads, &["-o", "APT::Sandbox::User=root", "download", name])?;
        let prefix = format!("{name}_");
        let file = std::fs::read_dir(&downloads)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| {
                path.extension().is_some_and(|ext| ext == "deb")
                    && path.file_name().is_some_and(|f| f.to_string_lossy().starts_with(&prefix))
            })
            .with_context(|| format!("apt-get download {name} left no file"))?;
        let status = Command::new("dpkg").arg("-x").arg(&file).arg(folder).status().context("run dpkg")?;
        if !status.success() {
            bail!("dpkg -x {} ended with {status}", file.display());
        }
        std::fs::remove_file(&file)?;
        std::fs::write(&done, "")?;
        Ok(())
    }
}

/// Runs apt-get in `dir`; refreshes the package lists once if the first try fails.
fn apt(dir: &Path, arguments: &[&str]) -> Result<()> {
    let run = |arguments: &[&str]| -> Result<std::process::Output> {
        Command::new("apt-get").arg("-qq").args(arguments).current_dir(dir).output().context("run apt-get")
    };
    let mut output = run(arguments)?;
    if !output.status.success() {
        let _ = run(&["update"])?;
        output = run(arguments)?;
    }
    if !output.status.success() {
        bail!("apt-get {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The package and, through `lib*` packages only, what it depends on and the machine lacks.
fn with_libraries(package: &str) -> Result<Vec<String>> {
    if !Command::new("apt-cache").arg("show").arg(package).output().context("run apt-cache")?.status.success()
    {
        // No package lists yet, as on a new machine.
        apt(Path::new("/"), &["update"])?;
    }
    let mut wanted = vec![package.to_owned()];
    let mut next = 0;
    while let Some(name) = wanted.get(next).cloned() {
        next += 1;
        for dependency in dependencies(&name)? {
            if dependency.starts_with("lib") && !wanted.contains(&dependency) && !is_installed(&dependency)? {
                wanted.push(dependency);
            }
        }
    }
    Ok(wanted)
}

/// What a package depends on directly.
fn dependencies(package: &str) -> Result<Vec<String>> {
    let output = Command::new("apt-cache")
        .args(["depends", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks"])
        .args(["--no-replaces", "--no-enhances", package])
        .output()
        .context("run apt-cache")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(|line| Some(line.split_once("Depends: ")?.1.trim().to_owned())).collect())
}

/// Whether `name` is `package` with a version in it: `linux-image-6.1.0-56-cloud-amd64` of
/// `linux-image-cloud-amd64`.
fn is_version_of(name: &str, package: &str) -> bool {
    package.match_indices('-').any(|(at, _)| {
        let (front, back) = package.split_at(at);
        name.strip_prefix(front).and_then(|rest| rest.strip_suffix(back)).is_some_and(|version| {
            version.strip_prefix('-').is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit()))
        })
    })
}

fn is_installed(package: &str) -> Result<bool> {
    let output = Command::new("dpkg-query")
        .args(["-W", "-f=${Status}\n", package])
        .output()
        .context("run dpkg-query")?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().any(|line| line == "install ok installed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_for_the_newest_version_is_told_from_other_dependencies() {
        let meta = "linux-image-cloud-amd64";
        assert!(is_version_of("linux-image-6.1.0-56-cloud-amd64", meta));
        for other in [
            "linux-base",
            "linux-image-cloud-amd64",
            "linux-image-amd64",
            "linux-headers-6.1.0-56-cloud-amd64",
        ] {
            assert!(!is_version_of(other, meta), "{other}");
        }
        assert!(!is_version_of("libbpf1", "qemu-system-x86"));
    }
}
