//! etcd, API version 3.
//!
//! | module | what |
//! |---|---|
//! | [`connection`] | one endpoint at a time, TLS, authentication, errors |
//! | [`lease`] | this process's lease, kept alive |
//! | [`watch`] | snapshot in pages, then watch; recovery |
//!
//! A call goes to the endpoint that answered last; one that fails makes the next call try the next endpoint.
//! Writes are never repeated here: after an error that leaves it open whether they happened, the caller looks.

mod connection;
mod lease;
#[cfg(test)]
mod roles;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod watch;

use std::sync::Arc;

use async_trait::async_trait;
use etcd_client::{Client, Compare, CompareOp, Error, PutOptions, Txn, TxnOp, TxnOpResponse};
use podway_model::config::EtcdConfig;
use podway_model::mistakes::Mistakes;

use crate::coalesce::Outlet;
use crate::{Capabilities, Entry, Expect, Guard, Listing, Store, StoreError, Watch, Written};
use connection::Connection;
use lease::Lease;

/// A cluster store in etcd.
#[derive(Debug)]
pub(crate) struct EtcdStore {
    connection: Arc<Connection>,
    lease: Lease,
}

impl EtcdStore {
    /// Checks the configuration; connects nowhere yet.
    pub(crate) fn open(config: &EtcdConfig) -> Result<Self, Mistakes> {
        let connection = Arc::new(Connection::new(config)?);
        let lease = Lease::new(connection.clone(), config.lease_seconds);
        Ok(Self { connection, lease })
    }

    /// A transaction of one write under conditions, answering what stands there otherwise.
    async fn conditional(
        &self,
        what: &'static str,
        key: &str,
        conditions: Vec<Compare>,
        write: TxnOp,
    ) -> Result<Written, StoreError> {
        let full = self.connection.full_key(key);
        let txn = Txn::new().when(conditions).and_then([write]).or_else([TxnOp::get(full, None)]);
        let answer =
            self.connection.once(what, key, async move |mut client: Client| client.txn(txn).await).await?;
        let revision = answer.header().map_or(0, |header| header.revision());
        if answer.succeeded() {
            return Ok(Written::Done { revision });
        }
        let found = answer.op_responses().into_iter().find_map(|response| match response {
            TxnOpResponse::Get(got) => got.kvs().first().map(|kv| self.connection.entry(kv)),
            _ => None,
        });
        Ok(Written::Refused { found: found.flatten() })
    }

    fn condition(&self, key: &str, expect: Expect) -> Compare {
        let full = self.connection.full_key(key);
        match expect {
            Expect::Absent => Compare::version(full, CompareOp::Equal, 0),
            Expect::Revision(revision) => Compare::mod_revision(full, CompareOp::Equal, revision),
        }
    }
}

#[async_trait]
impl Store for EtcdStore {
    fn describe(&self) -> String {
        format!("etcd at {}", self.connection.endpoints())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { writable: true, leases: true, shared: true }
    }

    fn watch(&self, prefixes: &[&str]) -> Watch {
        let (outlet, watch) = Outlet::new();
        let prefixes = prefixes.iter().map(|p| (*p).to_owned()).collect();
        tokio::spawn(watch::run(self.connection.clone(), prefixes, outlet));
        watch
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let full = self.connection.full_key(key);
        let answer = self
            .connection
            .read("read", key, move |mut client: Client| {
                let full = full.clone();
                async move { client.get(full, None).await }
            })
            .await?;
        Ok(answer.kvs().first().and_then(|kv| self.connection.entry(kv)))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let connected = self.connection.connected().await?;
        let pages = watch::read_pages(&self.connection, &connected, &[prefix.to_owned()]).await;
        let (entries, revision) = pages.map_err(|stop| match stop {
            watch::Stop::Failed(error) => error,
            watch::Stop::Relist(why) => {
                StoreError::Unavailable { endpoint: connected.endpoint.clone(), cause: why }
            }
        })?;
        Ok(Listing { entries, revision })
    }

    async fn put(&self, key: &str, value: &[u8]) -> Result<i64, StoreError> {
        let (full, value) = (self.connection.full_key(key), value.to_owned());
        let answer = self
            .connection
            .once("write", key, async move |mut client: Client| client.put(full, value, None).await)
            .await?;
        Ok(answer.header().map_or(0, |header| header.revision()))
    }

    async fn put_if(&self, key: &str, value: &[u8], expect: Expect) -> Result<Written, StoreError> {
        let write = TxnOp::put(self.connection.full_key(key), value, None);
        self.conditional("write", key, vec![self.condition(key, expect)], write).await
    }

    async fn put_guarded(
        &self,
        key: &str,
        value: &[u8],
        expect: Expect,
        guards: &[Guard],
    ) -> Result<Written, StoreError> {
        let write = TxnOp::put(self.connection.full_key(key), value, None);
        let others = guards.iter().map(|guard| self.condition(&guard.key, guard.expect));
        let conditions = [self.condition(key, expect)].into_iter().chain(others).collect();
        self.conditional("write", key, conditions, write).await
    }

    async fn put_for(
        &self,
        key: &str,
        value: &[u8],
        expect: Expect,
        seconds: u32,
    ) -> Result<Written, StoreError> {
        let grant = async move |mut client: Client| client.lease_grant(i64::from(seconds), None).await;
        let lease = self.connection.once("make a lease for", key, grant).await?.id();
        let write =
            TxnOp::put(self.connection.full_key(key), value, Some(PutOptions::new().with_lease(lease)));
        let written = self.conditional("write", key, vec![self.condition(key, expect)], write).await;
        if !matches!(written, Ok(Written::Done { .. })) {
            // Nothing is bound to it, or the caller looks: at worst it ends by itself.
            let revoke = async move |mut client: Client| client.lease_revoke(lease).await;
            if !written.as_ref().is_err_and(StoreError::is_unsure) {
                drop(self.connection.once("end the lease of", key, revoke).await);
            }
        }
        written
    }

    fn takes_outside(&self, prefix: &str) -> Result<(), String> {
        let own = self.connection.full_key("");
        if prefix.starts_with(own.trim_end_matches('/')) || own.starts_with(prefix) {
            return Err(format!("{prefix} and the store's own prefix {own} are not apart"));
        }
        Ok(())
    }

    async fn put_leased(&self, key: &str, value: &[u8], expect: Expect) -> Result<Written, StoreError> {
        let mut attempts = 0;
        loop {
            let lease = self.lease.id(key).await?;
            let options = PutOptions::new().with_lease(lease);
            let write = TxnOp::put(self.connection.full_key(key), value, Some(options));
            match self.conditional("write", key, vec![self.condition(key, expect)], write).await {
                // The lease ended before its keeper noticed; nothing was written, so once more with a new one.
                Err(StoreError::Refused { cause, .. })
                    if attempts == 0 && connection::is_lease_lost(&cause) =>
                {
                    attempts += 1;
                    self.lease.forget(lease).await;
                }
                result => return result,
            }
        }
    }

    async fn delete(&self, key: &str) -> Result<bool, StoreError> {
        let full = self.connection.full_key(key);
        let answer = self
            .connection
            .once("delete", key, async move |mut client: Client| client.delete(full, None).await)
            .await?;
        Ok(answer.deleted() > 0)
    }

    async fn delete_if(&self, key: &str, mod_revision: i64) -> Result<Written, StoreError> {
        let write = TxnOp::delete(self.connection.full_key(key), None);
        let condition = self.condition(key, Expect::Revision(mod_revision));
        self.conditional("delete", key, vec![condition], write).await
    }
}

/// What one call to the client answers.
type Answer<T> = Result<T, Error>;
