//! `podwayctl node install`: the CNI plugin and its network configuration onto a node. This is what the init
//! container of the DaemonSet runs; its image has no shell and no `cp`.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use podway_daemon::files;
use podway_model::names::{IPAM_PLUGIN, OTHER_PLUGINS, PLUGIN};
use serde::Serialize;

use crate::args::InstallArgs;
use crate::flannel;
use crate::outcome::Failure;
use crate::output::Output;

/// The network configuration, as shipped.
const CONFLIST: &str = include_str!("../../deploy/10-podway.conflist");
/// Its name: sorts before what distributions ship, since runtimes take the first one.
const CONFLIST_NAME: &str = "10-podway.conflist";

/// A file, and whether it had to be written.
#[derive(Debug, Serialize, PartialEq, Eq)]
struct Installed {
    file: PathBuf,
    written: bool,
}

/// One line of what was done.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Done {
    Installed(Installed),
    Removed { removed: String },
}

pub(crate) fn run(args: &InstallArgs, output: &Output) -> Result<(), Failure> {
    // Before anything is changed: with pods of flannel's on the node nothing is.
    let removed = if args.replace_flannel { flannel::remove_devices()? } else { vec![] };
    let plugin = match &args.plugin {
        Some(plugin) => plugin.clone(),
        None => beside_this_program()?,
    };
    let binary = fs::read(&plugin).map_err(|error| failed(&plugin, &error))?;
    // The order matters: a runtime that finds the configuration calls the plugin at once.
    let mut installed = vec![install(&args.bin_dir, PLUGIN, &binary, 0o755)?];
    for name in OTHER_PLUGINS.into_iter().chain([IPAM_PLUGIN]) {
        installed.extend(link(&args.bin_dir, name)?);
    }
    installed.push(install(&args.conf_dir, CONFLIST_NAME, CONFLIST.as_bytes(), 0o644)?);
    // Last: a runtime always finds a configuration.
    let aside = if args.replace_flannel { flannel::set_aside(&args.conf_dir)? } else { vec![] };
    for earlier in sorting_earlier(&args.conf_dir)? {
        output.warn(&format!(
            "{} sorts before {CONFLIST_NAME}: container runtimes will use it instead of Podway; remove it",
            earlier.display()
        ));
    }
    let done: Vec<Done> = removed
        .into_iter()
        .chain(aside)
        .map(|removed| Done::Removed { removed })
        .chain(installed.into_iter().map(Done::Installed))
        .collect();
    let line = |done: &Done| match done {
        Done::Installed(file) => {
            format!("{} {}\n", file.file.display(), if file.written { "written" } else { "unchanged" })
        }
        Done::Removed { removed } => format!("{removed} removed\n"),
    };
    output.show(|_| done.iter().map(line).collect(), &done)
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::Failed(format!("{}: {error}", path.display()))
}

fn beside_this_program() -> Result<PathBuf, Failure> {
    Ok(std::env::current_exe()?.with_file_name(PLUGIN))
}

/// Puts a file into a folder, unless it is there with this content and mode.
fn install(dir: &Path, name: &str, content: &[u8], mode: u32) -> Result<Installed, Failure> {
    let path = dir.join(name);
    let same = fs::read(&path).is_ok_and(|found| found == content)
        && fs::metadata(&path).is_ok_and(|found| found.permissions().mode() & 0o7777 == mode);
    if !same {
        fs::create_dir_all(dir).map_err(|error| failed(dir, &error))?;
        files::replace(&path, content, mode, true).map_err(|error| failed(&path, &error))?;
        // The umask of whoever called us is not ours.
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            .map_err(|error| failed(&path, &error))?;
    }
    Ok(Installed { file: path, written: !same })
}

/// Makes a link to the plugin under another plugin's name. Where a file of that name stands, it is somebody's choice,
/// and stays.
fn link(dir: &Path, name: &str) -> Result<Option<Installed>, Failure> {
    let path = dir.join(name);
    match std::os::unix::fs::symlink(PLUGIN, &path) {
        Ok(()) => Ok(Some(Installed { file: path, written: true })),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let ours = fs::read_link(&path).is_ok_and(|target| target == Path::new(PLUGIN));
            Ok(ours.then_some(Installed { file: path, written: false }))
        }
        Err(error) => Err(failed(&path, &error)),
    }
}

/// Network configurations that a runtime would take before ours (libcni's `ConfFiles`: sorted by name).
fn sorting_earlier(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut earlier: Vec<PathBuf> = fs::read_dir(dir)
        .map_err(|error| failed(dir, &error))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension().is_some_and(|end| end == "conf" || end == "conflist" || end == "json")
                && path.file_name().is_some_and(|name| name < CONFLIST_NAME)
        })
        .collect();
    earlier.sort();
    Ok(earlier)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_time_nothing_is_written_and_a_change_is_put_right() {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("opt/cni/bin");
        let first = install(&bin, "podway", b"binary", 0o755).unwrap();
        assert_eq!(first, Installed { file: bin.join("podway"), written: true });
        assert!(!install(&bin, "podway", b"binary", 0o755).unwrap().written);
        fs::set_permissions(bin.join("podway"), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(install(&bin, "podway", b"binary", 0o755).unwrap().written);
        assert!(install(&bin, "podway", b"newer", 0o755).unwrap().written);
        assert_eq!(fs::read(bin.join("podway")).unwrap(), b"newer");
    }

    #[test]
    fn links_are_made_only_where_no_file_stands() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("host-local"), "somebody's").unwrap();
        std::os::unix::fs::symlink("/nowhere", dir.path().join("bandwidth")).unwrap();
        let made = |name: &str| link(dir.path(), name).unwrap().map(|installed| installed.written);
        assert_eq!((made("host-local"), made("bandwidth")), (None, None));
        assert_eq!((made("loopback"), made("loopback")), (Some(true), Some(false)));
        assert_eq!(fs::read(dir.path().join("host-local")).unwrap(), b"somebody's");
        assert_eq!(fs::read_link(dir.path().join("loopback")).unwrap(), Path::new("podway"));
    }

    #[test]
    fn configurations_that_runtimes_would_prefer_are_named() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "05-other.conflist",
            "10-podway.conflist",
            "10-flannel.conflist",
            "99-loopback.conf",
            "00-README",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let earlier = sorting_earlier(dir.path()).unwrap();
        let names: Vec<_> = earlier.iter().filter_map(|path| path.file_name()).collect();
        assert_eq!(names, ["05-other.conflist", "10-flannel.conflist"]);
    }

    #[test]
    fn the_shipped_configuration_suits_runtimes_of_every_age() {
        let conflist: serde_json::Value = serde_json::from_str(CONFLIST).unwrap();
        // containerd 1.6 knows nothing above 1.0.0.
        assert_eq!(conflist["cniVersion"], "1.0.0");
        assert_eq!(conflist["cniVersions"], serde_json::json!(["0.4.0", "1.0.0", "1.1.0"]));
        assert_eq!(
            (&conflist["name"], &conflist["plugins"][0]["type"]),
            (&"podway".into(), &"podway".into())
        );
        // Without being declared, a capability's values are kept from the plugin.
        for capability in ["portMappings", "bandwidth"] {
            assert_eq!(conflist["plugins"][0]["capabilities"][capability], true);
        }
    }
}
