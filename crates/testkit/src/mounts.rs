//! Private directories of a node: every program runs with its shipped paths, and nodes do not see each other's.
//!
//! The directories lie in a tmpfs that only the node's mount namespace can reach, and are bound over the usual
//! paths. Where the host lacks such a path, the nearest existing folder above it gets an overlay whose upper
//! side lies in the same tmpfs, so that nothing is created on the host. `/sys` stays the host's: a new sysfs would
//! hide the cgroup mounts that a container runtime needs.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::place::Place;

/// What is private on every node: our own paths and those of container runtimes and the kubelet.
pub const PRIVATE: &[&str] = &[
    "/run/podway",
    "/var/lib/podway",
    "/etc/podway",
    "/etc/cni/net.d",
    "/opt/cni/bin",
    "/run/netns",
    "/var/lib/cni",
    "/var/lib/containerd",
    "/run/containerd",
    "/run/nri",
    "/var/lib/kubelet",
    "/var/log/pods",
    "/var/log/containers",
];

/// Folder at which the tmpfs is mounted while the binds are made (FHS: for temporary mounts).
const STAGING: &str = "/mnt";
const NOTHING: Option<&str> = None;

/// Gives a place private directories over `paths`, and shared propagation inside, as container runtimes want it.
pub fn make_private(place: &Place, paths: &[&str]) -> Result<()> {
    place
        .enter(|| make_private_here(paths))?
        .with_context(|| format!("private directories of {}", place.name()))
}

fn make_private_here(paths: &[&str]) -> Result<()> {
    mount(Some("tmpfs"), STAGING, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0755"))
        .context("mount a tmpfs")?;
    // All overlays first: one over a folder would hide what is bound below it.
    for path in paths.iter().map(Path::new).filter(|path| !path.is_dir()) {
        overlay_nearest(path)?;
    }
    for path in paths.iter().map(Path::new) {
        let private = staged("dirs", path);
        std::fs::create_dir_all(&private).with_context(|| format!("create {}", private.display()))?;
        mount(Some(&private), path, NOTHING, MsFlags::MS_BIND, NOTHING)
            .with_context(|| format!("bind over {}", path.display()))?;
    }
    // The binds and overlays keep the tmpfs alive; nobody needs its own path.
    umount2(STAGING, MntFlags::MNT_DETACH).context("hide the tmpfs")?;
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_SHARED, NOTHING).context("share mounts inside")
}

/// Puts a file with this text over `path`, for one place alone: also over files of `/proc`.
pub fn cover_file(place: &Place, path: &str, text: &str) -> Result<()> {
    let cover = || -> Result<()> {
        mount(Some("tmpfs"), STAGING, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
            .context("mount a tmpfs")?;
        let file = staged("files", Path::new(path));
        std::fs::create_dir_all(file.parent().context("a staged file lies in a folder")?)?;
        std::fs::write(&file, text)?;
        mount(Some(&file), path, NOTHING, MsFlags::MS_BIND, NOTHING).context("bind")?;
        umount2(STAGING, MntFlags::MNT_DETACH).context("hide the tmpfs")
    };
    place.enter(cover)?.with_context(|| format!("{}: cover {path}", place.name()))
}

/// Makes a missing path by an overlay over the nearest existing folder above it.
fn overlay_nearest(path: &Path) -> Result<()> {
    let base = path.ancestors().skip(1).find(|p| p.is_dir()).context("/ is a directory")?;
    let (upper, work) = (staged("upper", base), staged("work", base));
    if upper.is_dir() {
        // Overlaid for an earlier path: its upper side is ours already.
        return std::fs::create_dir_all(path).with_context(|| format!("create {}", path.display()));
    }
    for dir in [&upper, &work] {
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let options =
        format!("lowerdir={},upperdir={},workdir={}", base.display(), upper.display(), work.display());
    mount(Some("overlay"), base, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .with_context(|| format!("overlay {}", base.display()))?;
    std::fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))
}

fn staged(kind: &str, path: &Path) -> PathBuf {
    let flat = path.to_string_lossy().trim_start_matches('/').replace('/', "_");
    Path::new(STAGING).join(kind).join(flat)
}

#[cfg(test)]
mod tests {
    use nix::sys::statfs::{TMPFS_MAGIC, statfs};

    use super::*;

    #[test]
    fn a_path_that_the_host_lacks_uncovers_none_that_it_has() {
        if !crate::root_or_skip("a_path_that_the_host_lacks_uncovers_none_that_it_has") {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (there, missing) = (folder.path().join("there"), folder.path().join("missing/deep"));
        std::fs::create_dir(&there).unwrap();
        let paths = [there.to_str().unwrap(), missing.to_str().unwrap()];
        let place = Place::new("mounts").unwrap();
        make_private(&place, &paths).unwrap();
        let kinds = place.enter(|| paths.map(|path| statfs(path).unwrap().filesystem_type())).unwrap();
        assert_eq!(kinds, [TMPFS_MAGIC; 2]);
        place.enter(|| paths.map(|path| std::fs::write(Path::new(path).join("x"), "").unwrap())).unwrap();
        assert!(!there.join("x").exists() && !missing.exists(), "nothing is made on the host");
    }
}
