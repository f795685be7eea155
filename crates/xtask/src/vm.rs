//! The layer `vm`: tests on another kernel than the machine's, under emulation. Debian's kernel for clouds has as
//! modules what others may lack (ipip, wireguard, sctp, netem), and is of the oldest release that we promise to
//! run on, so the same tests that pass on the host say whether the promise holds.
//!
//! An archive with our static test programs, a shell, the modules and the tools that tests look from outside with
//! becomes the machine's only file system. Its first process loads the modules, runs the programs one after the
//! other, says on the serial console how each ended, and switches the machine off. Functional only: under
//! emulation no time means anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::build::{self, TestProgram};
use crate::cpio::Archive;
use crate::say;
use crate::tally::Tally;
use crate::tools::Tools;
use crate::watch::{log_dir, watched};

/// What runs: package, target, and the arguments that choose its tests (none: all). What the table looks like
/// in text differs from kernel to kernel, since newer ones know flags that older ones do not.
const PROGRAMS: [(&str, &str, &[&str]); 5] = [
    ("podway-kern", "netns", &[]),
    ("podway-kern", "tunnels", &[]),
    ("routed", "routed", &["dataplane::tests::kernel", "dataplane::tests::packets"]),
    ("cni-plugin", "it", &["sctp"]),
    ("policy-agent", "enforcement", &["--skip", "the_table_reads_as_written"]),
];

/// Modules that the tests need, without those that these need.
const MODULES: [&str; 33] = [
    "veth",
    "dummy",
    "ifb",
    "bridge",
    "vxlan",
    "ipip",
    "sit",
    "ip6_tunnel",
    "wireguard",
    "vrf",
    "nf_tables",
    "nfnetlink",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nft_chain_nat",
    "nft_ct",
    "nft_fib_inet",
    "nft_masq",
    "nft_nat",
    "nft_log",
    "nft_limit",
    "nft_numgen",
    "nft_reject_inet",
    "nft_redir",
    "nfnetlink_log",
    "sch_tbf",
    "sch_ingress",
    "sch_netem",
    "act_mirred",
    "cls_matchall",
    "cls_u32",
    "sctp",
];

/// Programs that tests look at the kernel with, from outside our own code.
const WITNESSES: [&str; 2] = ["ip", "nft"];

/// Marks on the console.
const BEGIN: &str = "@@ begin ";
const END: &str = "@@ end ";
const DONE: &str = "@@ done";

/// Boots the kernel and runs the programs in it.
pub(crate) fn layer(tools: &Tools, programs: &[TestProgram], tally: &mut Tally) -> Result<()> {
    let machine = match Machine::prepare(tools) {
        Ok(machine) => machine,
        Err(error) => {
            say(&format!("    {error:#}\n"));
            tally.skip("vm", "no qemu, kernel or busybox package");
            return Ok(());
        }
    };
    let wanted: Vec<(&TestProgram, &[&str])> = PROGRAMS
        .iter()
        .filter_map(|(package, target, filters)| {
            let program = programs.iter().find(|p| p.package == *package && p.name == *target)?;
            Some((program, *filters))
        })
        .collect();
    if wanted.len() != PROGRAMS.len() {
        bail!("{} of {} test programs were built", wanted.len(), PROGRAMS.len());
    }
    let archive = log_dir().join("vm.cpio");
    machine.archive(tools, &wanted, &archive)?;
    machine.run(tools, &wanted, &archive, tally)
}

/// What the emulated machine is made of.
struct Machine {
    /// Folder of qemu's own files.
    firmware: [PathBuf; 2],
    qemu: PathBuf,
    /// Folder of the parts that qemu loads at run time.
    parts: PathBuf,
    busybox: PathBuf,
    kernel: PathBuf,
    /// `6.1.0-…`: name of the modules' folder.
    release: String,
    /// Module files by name (`_` for `-`).
    modules: BTreeMap<String, PathBuf>,
}

impl Machine {
    fn prepare(tools: &Tools) -> Result<Self> {
        let emulator =
            tools.unpacked("qemu-system-x86", &["qemu-system-common", "qemu-system-data", "seabios"])?;
        let busybox = tools.unpacked("busybox-static", &[])?.join("bin/busybox");
        // The package without a version names the newest one.
        let kernel = tools.unpacked("linux-image-cloud-amd64", &[])?;
        let image = files_below(&kernel.join("boot"))?
            .into_iter()
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
            .with_context(|| format!("no kernel image below {}", kernel.display()))?;
        let release = image
            .file_name()
            .and_then(|name| name.to_str()?.strip_prefix("vmlinuz-").map(str::to_owned))
            .context("release of the kernel image")?;
        let modules = files_below(&kernel.join("lib/modules").join(&release))?
            .into_iter()
            .filter(|path| path.extension().is_some_and(|extension| extension == "ko"))
            .filter_map(|path| Some((path.file_stem()?.to_str()?.replace('-', "_"), path)))
            .collect();
        Ok(Self {
            firmware: [emulator.join("usr/share/qemu"), emulator.join("usr/share/seabios")],
            qemu: emulator.join("usr/bin/qemu-system-x86_64"),
            parts: emulator.join("usr/lib/x86_64-linux-gnu/qemu"),
            busybox,
            kernel: image,
            release,
            modules,
        })
    }

    /// The release up to what a distribution adds: `6.1.0`.
    fn version(&self) -> &str {
        self.release.split('-').next().unwrap_or(&self.release)
    }

    /// Writes the machine's file system.
    fn archive(&self, tools: &Tools, programs: &[(&TestProgram, &[&str])], path: &Path) -> Result<()> {
        let file = std::fs::File::create(path).with_context(|| format!("create {}", path.display()))?;
        let mut archive = Archive::new(std::io::BufWriter::new(file));
        for folder in ["proc", "sys", "dev", "run", "tmp", "root", "mnt", "var/lib", "etc"] {
            archive.folder(folder)?;
        }
        archive.copy("bin/busybox", &self.busybox)?;
        archive.link("bin/sh", "busybox")?;
        let mut script = String::from(SETUP);
        for module in self.in_order(&MODULES)? {
            let target = format!("lib/modules/{}.ko", module);
            archive.copy(&target, &self.modules[&module])?;
            // What the kernel has built in, or its processor lacks, is no failure: tests say what they miss.
            let _ = writeln!(script, "busybox insmod /{target}");
        }
        for witness in WITNESSES {
            let program = tools.path_of(witness).with_context(|| format!("{witness} is missing"))?;
            archive.copy(&format!("bin/{witness}"), program)?;
            for library in libraries(tools, program)? {
                let name = library.file_name().and_then(|name| name.to_str()).context("name of a library")?;
                // The loader has its place in the program, the others are searched for.
                let folder = if name.starts_with("ld-") { "lib64" } else { "lib" };
                archive.copy(&format!("{folder}/{name}"), &library)?;
            }
        }
        // Tests find the programs where cargo put them.
        let built = build::bin_dir()?;
        for name in ["routed", "policy-agent", "podwayctl", "podway"] {
            archive.copy(&built.join(name).to_string_lossy(), &built.join(name))?;
        }
        script.push_str("export LD_LIBRARY_PATH=/lib PATH=/bin RUST_BACKTRACE=1\n");
        for (program, filters) in programs {
            let title = program.title();
            archive.copy(&format!("tests/{title}"), &program.path)?;
            // Files that tests read stand beside their sources.
            let data = program.folder.join("tests");
            for file in if data.is_dir() { files_below(&data)? } else { vec![] } {
                archive.copy(&file.to_string_lossy(), &file)?;
            }
            let folder = program.folder.display();
            archive.folder(&folder.to_string())?;
            let _ = writeln!(
                script,
                "cd {folder}; echo '{BEGIN}{title}'\nCARGO_MANIFEST_DIR={folder} /tests/{title} --show-output \
                 --test-threads 1 {}; echo \"{END}{title} $?\"",
                filters.join(" ")
            );
        }
        let _ = write!(script, "echo '{DONE}'\nbusybox poweroff -f\n");
        archive.file("init", script.as_bytes())?;
        archive.finish()?.into_inner().context("write the archive")?;
        Ok(())
    }

    /// The modules and those that they need, each behind what it needs.
    fn in_order(&self, wanted: &[&str]) -> Result<Vec<String>> {
        let (mut order, mut seen) = (vec![], BTreeSet::new());
        for name in wanted {
            // Without a file it is built in.
            if self.modules.contains_key(*name) {
                self.visit(name, &mut seen, &mut order)?;
            }
        }
        Ok(order)
    }

    fn visit(&self, name: &str, seen: &mut BTreeSet<String>, order: &mut Vec<String>) -> Result<()> {
        if !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let path = self.modules.get(name).with_context(|| format!("no module {name}"))?;
        let content = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        for needed in needs(&content) {
            self.visit(&needed, seen, order)?;
        }
        order.push(name.to_owned());
        Ok(())
    }

    fn run(
        &self,
        tools: &Tools,
        programs: &[(&TestProgram, &[&str])],
        archive: &Path,
        tally: &mut Tally,
    ) -> Result<()> {
        let mut command = Command::new(&self.qemu);
        command.envs(tools.environment()).env("QEMU_MODULE_DIR", &self.parts);
        for folder in &self.firmware {
            command.arg("-L").arg(folder);
        }
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "3072"]);
        command.args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(archive);
        command.args(["-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on"]);
        say(&format!("    Linux {} under emulation\n", self.version()));
        let (mut inside, mut ended, mut done) = (Tally::default(), BTreeMap::new(), false);
        let machine = watched("vm", command, 0, |line| {
            let line = line.trim_end_matches('\r');
            done |= line == DONE;
            if let Some((title, code)) = line.strip_prefix(END).and_then(|rest| rest.rsplit_once(' ')) {
                ended.insert(title.to_owned(), code.to_owned());
            }
            inside.take(line) || line.starts_with(BEGIN)
        })?;
        for (program, _) in programs {
            let title = program.title();
            match ended.get(&title).map(String::as_str) {
                Some("0") => {}
                Some(code) if inside.failed == 0 => inside.fail(&format!("{title}: exit code {code}")),
                Some(_) => {}
                None => inside.fail(&format!("{title}: did not run to its end")),
            }
        }
        if !done {
            inside.fail(&format!("the machine {}, see {}", machine.words(), machine.log.display()));
        }
        tally.absorb(inside, &format!("on Linux {}", self.version()));
        Ok(())
    }
}

/// First lines of the machine's first process.
const SETUP: &str = "#!/bin/sh
export PATH=/bin
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
busybox mount -t tmpfs tmp /tmp
busybox mount -t tmpfs run /run
# What a node of the tests has for itself, without overlays.
busybox mkdir -p /run/netns /run/podway /run/containerd /run/nri /etc/podway /etc/cni/net.d /opt/cni/bin
busybox mkdir -p /var/lib/podway /var/lib/cni /var/lib/containerd /var/lib/kubelet /var/lib/etcd
busybox mkdir -p /var/log/pods /var/log/containers
busybox --install -s /bin
busybox ip link set lo up
";

/// Names of the modules that a module needs: `depends=a,b` of its `.modinfo` section.
fn needs(module: &[u8]) -> Vec<String> {
    let mark = b"\0depends=";
    let Some(at) = module.windows(mark.len()).position(|window| window == mark) else { return vec![] };
    let rest = &module[at + mark.len()..];
    let text = rest.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

/// Shared libraries of a program, its loader among them.
fn libraries(tools: &Tools, program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).envs(tools.environment()).output().context("run ldd")?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from))
        .collect())
}

/// All files below a folder, links to files among them.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (vec![], vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if entry.path().is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_needs_stands_in_it() {
        assert_eq!(
            needs(b"x\0license=GPL\0depends=udp_tunnel,ip6-udp-tunnel\0name=vxlan\0"),
            ["udp_tunnel", "ip6_udp_tunnel"]
        );
        assert_eq!(needs(b"\0depends=\0"), Vec::<String>::new());
        assert_eq!(needs(b"nothing"), Vec::<String>::new());
    }
}
