//! A real etcd for tests, in a network namespace of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use podway_model::config::EtcdConfig;

/// An etcd process; killed when dropped.
pub(crate) struct Etcd {
    child: Child,
}

impl Etcd {
    /// Starts etcd with its data in `data` on a loopback port, and with `more` arguments.
    pub(crate) fn start(data: &Path, port: u16, more: &[String]) -> Self {
        let url = |port| format!("http://127.0.0.1:{port}");
        let mut command = Command::new(program("etcd").expect("looked up before"));
        command.arg("--data-dir").arg(data).args(["--log-level", "error", "--name", "t"]);
        command.args(["--listen-peer-urls", &url(2380), "--initial-advertise-peer-urls", &url(2380)]);
        command.args(["--initial-cluster", &format!("t={}", url(2380))]);
        if !more.iter().any(|arg| arg.starts_with("--listen-client-urls")) {
            command.args(["--listen-client-urls", &url(port), "--advertise-client-urls", &url(port)]);
        }
        let child = command.args(more).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { child }
    }

    /// Kills it and waits for its end.
    pub(crate) fn stop(mut self) {
        self.kill();
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A program in the folder of the tests' programs, or on `PATH`.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let folders = [std::env::var_os("PODWAY_BIN_PATH"), std::env::var_os("PATH")];
    let folders: Vec<PathBuf> = folders.iter().flatten().flat_map(std::env::split_paths).collect();
    folders.into_iter().map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// Runs a test in a thread with a network namespace of its own, loopback up; says so where that cannot be done.
pub(crate) fn with_etcd<F: Future<Output = ()>>(
    name: &str,
    test: impl FnOnce(PathBuf) -> F + Send + 'static,
) {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP {name}: needs root");
        return;
    }
    if program("etcd").is_none() {
        println!("SKIP {name}: needs etcd on PATH or PODWAY_BIN_PATH");
        return;
    }
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(folder.path().to_owned()));
    };
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Waits until `attempt` has an answer; it is asked again every 20 ms.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = attempt().await {
            return answer;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{what}: not within 30 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn openssl(folder: &Path, arguments: &str) -> bool {
    let done = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output();
    done.is_ok_and(|output| output.status.success())
}

/// A certification authority, a server, and clients with these common names.
pub(crate) fn make_certificates(folder: &Path, clients: &[&str]) -> bool {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    std::fs::write(folder.join("server.ext"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    std::fs::write(folder.join("client.ext"), "extendedKeyUsage=clientAuth\n").unwrap();
    let mut done = openssl(folder, &format!("req -x509 {key} -subj /CN=ca -keyout ca.key -out ca.pem"));
    for name in clients.iter().chain(&["server"]) {
        let kind = if *name == "server" { "server" } else { "client" };
        done &= openssl(
            folder,
            &format!("req -new {key} -subj /CN={name} -keyout {name}.key -out {name}.csr"),
        ) && openssl(
            folder,
            &format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile {kind}.ext -out {name}.pem"
            ),
        );
    }
    done
}

/// etcd's arguments for TLS with client certificates, on port 2379.
pub(crate) fn tls_arguments(folder: &Path) -> [String; 6] {
    let file = |name: &str| folder.join(name).display().to_string();
    [
        "--listen-client-urls=https://127.0.0.1:2379".to_owned(),
        "--advertise-client-urls=https://127.0.0.1:2379".to_owned(),
        "--client-cert-auth".to_owned(),
        format!("--trusted-ca-file={}", file("ca.pem")),
        format!("--cert-file={}", file("server.pem")),
        format!("--key-file={}", file("server.key")),
    ]
}

/// What the owner of a certificate has in its configuration.
pub(crate) fn tls_config(folder: &Path, name: &str) -> EtcdConfig {
    EtcdConfig {
        endpoints: vec!["https://127.0.0.1:2379".into()],
        ca_file: Some(folder.join("ca.pem")),
        cert_file: Some(folder.join(format!("{name}.pem"))),
        key_file: Some(folder.join(format!("{name}.key"))),
        lease_seconds: 2,
        ..EtcdConfig::default()
    }
}
