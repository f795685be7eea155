//! The connection: one endpoint at a time, TLS, authentication, and what errors mean.
//!
//! The client library can balance over endpoints, but then a share of the calls goes to those that are down. So
//! each connection here has one endpoint; it is probed before use with a read that needs a quorum, and the next
//! endpoint is tried when a call fails for want of an answer. Certificates and the password are read anew for
//! each connection: they may have been renewed.

use std::path::Path;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, GetOptions, Identity, KeyValue, TlsOptions};
use podway_model::config::EtcdConfig;
use podway_model::mistakes::Mistakes;
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;

use super::Answer;
use crate::{Entry, StoreError, TAKES_NO_MORE};

/// How long one endpoint has to accept a connection and to answer the probe.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a call may take.
const CALL: Duration = Duration::from_secs(5);
/// HTTP/2 pings: a dead path is noticed after both. etcd refuses pings closer than 5 s.
const PING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// gRPC status codes (grpc/doc/statuscodes.md) as far as they tell errors apart.
mod code {
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const NOT_FOUND: i32 = 5;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(super) const FAILED_PRECONDITION: i32 = 9;
    pub(super) const OUT_OF_RANGE: i32 = 11;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

/// A connection to the store, made when it is needed.
#[derive(Debug)]
pub(super) struct Connection {
    config: EtcdConfig,
    slot: Mutex<Slot>,
    /// What keeps the store from taking writes: for every watch to tell.
    alarms: watch::Sender<Vec<String>>,
}

#[derive(Debug, Default)]
struct Slot {
    current: Option<Connected>,
    /// Endpoint to try first.
    next: usize,
    last_number: u64,
}

/// A live connection.
#[derive(Clone)]
pub(super) struct Connected {
    pub(super) client: Client,
    pub(super) endpoint: String,
    /// etcd's cluster id: another one after a restore from a backup.
    pub(super) cluster: u64,
    /// Revision of the store when the connection was made.
    pub(super) revision: i64,
    number: u64,
}

impl std::fmt::Debug for Connected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connected({})", self.endpoint)
    }
}

impl Connection {
    /// Checks the configuration and that its files can be read.
    pub(super) fn new(config: &EtcdConfig) -> Result<Self, Mistakes> {
        let mut mistakes = Mistakes::default();
        let mut wrong = |field: &str, value: &dyn std::fmt::Display, expected: &str| {
            mistakes.add("store", format!("store.etcd.{field}"), value, expected);
        };
        if config.endpoints.is_empty() {
            wrong("endpoints", &"nothing", "at least one URL");
        }
        for endpoint in &config.endpoints {
            let tls = endpoint.starts_with("https://");
            if !tls && !endpoint.starts_with("http://") {
                wrong("endpoints", endpoint, "a URL with http:// or https://");
            }
            if tls && config.ca_file.is_none() {
                wrong("caFile", &"nothing", "a file, since an endpoint is https");
            }
            if !tls && config.ca_file.is_some() {
                wrong("endpoints", endpoint, "https, since caFile is set");
            }
        }
        let files = [
            ("caFile", &config.ca_file),
            ("certFile", &config.cert_file),
            ("keyFile", &config.key_file),
            ("passwordFile", &config.password_file),
        ];
        for (field, file) in files {
            if let Some(Err(error)) = file.as_ref().map(std::fs::File::open) {
                let path = file.as_deref().unwrap_or(Path::new("")).display().to_string();
                wrong(field, &path, &format!("a file that can be read ({error})"));
            }
        }
        let alarms = watch::channel(vec![]).0;
        mistakes.into_result(Self { config: config.clone(), slot: Mutex::default(), alarms })
    }

    /// All endpoints, for people.
    pub(super) fn endpoints(&self) -> String {
        self.config.endpoints.join(", ")
    }

    /// The key with the store's prefix; a whole one as it is.
    pub(super) fn full_key(&self, key: &str) -> String {
        if key.starts_with('/') { key.to_owned() } else { format!("{}{key}", self.config.prefix) }
    }

    /// What etcd holds, with a relative key, or a whole one outside of the prefix. `None` for a key that is neither.
    pub(super) fn entry(&self, kv: &KeyValue) -> Option<Entry> {
        Some(Entry {
            key: self.relative(kv)?,
            value: kv.value().to_owned(),
            create_revision: kv.create_revision(),
            mod_revision: kv.mod_revision(),
        })
    }

    /// The key without the store's prefix; whole if it is outside.
    pub(super) fn relative(&self, kv: &KeyValue) -> Option<String> {
        let key = kv.key_str().ok()?;
        key.strip_prefix(&self.config.prefix)
            .or_else(|| key.starts_with('/').then_some(key))
            .map(str::to_owned)
    }

    /// What keeps the store from taking writes, as it changes.
    pub(super) fn alarms(&self) -> watch::Receiver<Vec<String>> {
        self.alarms.subscribe()
    }

    /// Asks for alarms: who has nothing to write learns of them all the same. Tells nothing where it is not answered.
    pub(super) async fn look_for_alarms(&self, connected: &Connected) {
        let mut client = connected.client.clone();
        let Ok(Ok(status)) = timeout(CALL, client.status()).await else { return };
        let raised = |name: &str| status.errors().iter().any(|error| error.contains(name));
        let mut alarms = vec![];
        if raised("NOSPACE") {
            alarms.push(no_space(&connected.endpoint));
        }
        if raised("CORRUPT") {
            let endpoint = &connected.endpoint;
            alarms.push(format!(
                "{endpoint}: etcd's alarm CORRUPT is raised: a member's data differ from the others'"
            ));
        }
        self.set_alarms(|known| *known = alarms);
    }

    fn set_alarms(&self, change: impl FnOnce(&mut Vec<String>)) {
        self.alarms.send_if_modified(|known| {
            let before = known.clone();
            change(known);
            *known != before
        });
    }

    /// A write that was taken, or refused for want of space, says more than the last look.
    fn note_write(&self, connected: &Connected, is_full: bool) {
        self.set_alarms(|known| {
            let is_known = known.iter().any(|alarm| alarm.contains(TAKES_NO_MORE));
            if is_full && !is_known {
                known.push(no_space(&connected.endpoint));
            } else if !is_full {
                known.retain(|alarm| !alarm.contains(TAKES_NO_MORE));
            }
        });
    }

    /// The live connection, or a new one to the first endpoint that answers.
    pub(super) async fn connected(&self) -> Result<Connected, StoreError> {
        let mut slot = self.slot.lock().await;
        if let Some(connected) = &slot.current {
            return Ok(connected.clone());
        }
        let mut errors: Vec<StoreError> = Vec::new();
        for i in 0..self.config.endpoints.len() {
            let index = (slot.next + i) % self.config.endpoints.len();
            let endpoint = &self.config.endpoints[index];
            let attempt = timeout(CONNECT * 2, self.connect(endpoint)).await;
            match attempt.unwrap_or_else(|_| {
                Err(StoreError::Timeout { endpoint: endpoint.clone(), after: CONNECT * 2 })
            }) {
                Ok(mut connected) => {
                    slot.last_number += 1;
                    connected.number = slot.last_number;
                    slot.next = index;
                    slot.current = Some(connected.clone());
                    return Ok(connected);
                }
                Err(error) => errors.push(error),
            }
        }
        // A refusal says more than an endpoint that is down; else the first one's words, and how many there are.
        let others = errors.len().saturating_sub(1);
        let telling = errors.iter().position(|error| !error.is_unsure()).unwrap_or(0);
        Err(match errors.into_iter().nth(telling) {
            Some(StoreError::Unavailable { endpoint, cause }) if others > 0 => StoreError::Unavailable {
                endpoint,
                cause: format!("{cause}; nor are {others} other endpoints"),
            },
            Some(error) => error,
            None => StoreError::Unavailable { endpoint: self.endpoints(), cause: "no endpoints".into() },
        })
    }

    async fn connect(&self, endpoint: &str) -> Result<Connected, StoreError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT)
            .with_keep_alive(PING.0, PING.1)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        let file = |path: &Path| {
            std::fs::read(path).map_err(|error| StoreError::Unavailable {
                endpoint: endpoint.to_owned(),
                cause: format!("{}: {error}", path.display()),
            })
        };
        if let Some(ca) = &self.config.ca_file {
            let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(file(ca)?));
            if let (Some(cert), Some(key)) = (&self.config.cert_file, &self.config.key_file) {
                tls = tls.identity(Identity::from_pem(file(cert)?, file(key)?));
            }
            options = options.with_tls(tls);
        }
        if let (Some(user), Some(password)) = (&self.config.username, &self.config.password_file) {
            let password =
                String::from_utf8_lossy(&file(password)?).trim_end_matches(['\r', '\n']).to_owned();
            options = options.with_user(user, password).with_auto_token_refresh(true);
        }
        let failed = |error| classify(error, endpoint, "log in", "");
        let mut client = Client::connect([endpoint], Some(options)).await.map_err(failed)?;
        let probe = client.get(self.full_key("config"), Some(GetOptions::new().with_count_only())).await;
        let answer = probe.map_err(|error| classify(error, endpoint, "read", "config"))?;
        let (cluster, revision) = answer.header().map_or((0, 0), |h| (h.cluster_id(), h.revision()));
        Ok(Connected { client, endpoint: endpoint.to_owned(), cluster, revision, number: 0 })
    }

    /// The next call makes a new connection, beginning with the next endpoint.
    pub(super) async fn failed(&self, connected: &Connected) {
        let mut slot = self.slot.lock().await;
        if slot.current.as_ref().is_some_and(|current| current.number == connected.number) {
            slot.current = None;
            slot.next = (slot.next + 1) % self.config.endpoints.len().max(1);
        }
    }

    /// One call over this connection, bounded in time.
    pub(super) async fn call<T>(
        &self,
        connected: &Connected,
        what: &'static str,
        key: &str,
        call: impl AsyncFnOnce(Client) -> Answer<T>,
    ) -> Result<T, StoreError> {
        let result = match timeout(CALL, call(connected.client.clone())).await {
            Ok(Ok(answer)) => {
                if what == "write" {
                    self.note_write(connected, false);
                }
                return Ok(answer);
            }
            Ok(Err(error)) => Err(classify(error, &connected.endpoint, what, key)),
            Err(_) => Err(StoreError::Timeout { endpoint: connected.endpoint.clone(), after: CALL }),
        };
        if let Err(StoreError::Full { .. }) = result {
            self.note_write(connected, true);
        }
        // A denied call may be an expired token: the next connection logs in again.
        if let Err(StoreError::Unavailable { .. } | StoreError::Timeout { .. } | StoreError::Denied { .. }) =
            result
        {
            self.failed(connected).await;
        }
        result
    }

    /// One attempt: for writes.
    pub(super) async fn once<T>(
        &self,
        what: &'static str,
        key: &str,
        call: impl AsyncFnOnce(Client) -> Answer<T>,
    ) -> Result<T, StoreError> {
        let connected = self.connected().await?;
        self.call(&connected, what, key, call).await
    }

    /// One attempt per endpoint: for reads.
    pub(super) async fn read<T, F: Future<Output = Answer<T>>>(
        &self,
        what: &'static str,
        key: &str,
        call: impl Fn(Client) -> F,
    ) -> Result<T, StoreError> {
        let mut left = self.config.endpoints.len();
        loop {
            let connected = self.connected().await?;
            left = left.saturating_sub(1);
            match self.call(&connected, what, key, async |client| call(client).await).await {
                Err(error) if error.is_unsure() && left > 0 => {}
                result => return result,
            }
        }
    }
}

/// What an operator reads: the cause, what goes on, and the way out.
fn no_space(endpoint: &str) -> String {
    format!(
        "{endpoint}: etcd {TAKES_NO_MORE} (alarm NOSPACE): nothing new is written, everything that runs goes on; \
         compact, defragment, then `etcdctl alarm disarm` (deploy/etcd/README.md)"
    )
}

/// Whether history was compacted under a read at an older revision (`rpctypes.ErrGRPCCompacted`).
pub(super) fn is_compacted(error: &StoreError) -> bool {
    matches!(error, StoreError::Refused { cause, .. } if cause.contains("has been compacted"))
}

/// Whether a write names a lease that has ended (`rpctypes.ErrGRPCLeaseNotFound`).
pub(super) fn is_lease_lost(cause: &str) -> bool {
    cause.contains("lease not found")
}

/// The client's error in our terms.
pub(super) fn classify(error: Error, endpoint: &str, what: &str, key: &str) -> StoreError {
    let endpoint = endpoint.to_owned();
    let Error::GRpcStatus(status) = &error else {
        return StoreError::Unavailable { endpoint, cause: with_sources(&error) };
    };
    let cause = status.message().to_owned();
    // Wrong user or password come as INVALID_ARGUMENT (etcd, `rpctypes/error.go`).
    let login =
        cause.contains("authentication") || cause.contains("user name") || cause.contains("auth token");
    match status.code() as i32 {
        code::PERMISSION_DENIED | code::UNAUTHENTICATED => {
            StoreError::Denied { endpoint, what: format!("{what} {key}").trim_end().to_owned(), cause }
        }
        code::INVALID_ARGUMENT | code::FAILED_PRECONDITION if login => {
            StoreError::Denied { endpoint, what: format!("{what} {key}").trim_end().to_owned(), cause }
        }
        code::RESOURCE_EXHAUSTED if cause.contains("space") => {
            StoreError::Full { endpoint, key: key.to_owned(), cause }
        }
        code::INVALID_ARGUMENT | code::NOT_FOUND | code::OUT_OF_RANGE | code::FAILED_PRECONDITION => {
            StoreError::Refused { endpoint, key: key.to_owned(), cause }
        }
        _ => {
            let cause = if cause.is_empty() { with_sources(status) } else { with_sources_of(status, cause) };
            StoreError::Unavailable { endpoint, cause }
        }
    }
}

fn with_sources(error: &dyn std::error::Error) -> String {
    with_sources_of(error, error.to_string())
}

/// A transport error says why only in its sources.
fn with_sources_of(error: &dyn std::error::Error, mut text: String) -> String {
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}
