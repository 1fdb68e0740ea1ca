//! The servers of one shard in order of preference, and the one in use.
//!
//! All statements of a member go to one server at a time. The member changes to the next server when the one in use does not
//! answer or cannot write, and returns to a preferred one later. Each change waits for the sync of the new server.
//!
//! An insert may be under way on the server that was left. Its token is in Keeper, so the same insert on another server is dropped
//! if the first one arrives, and the other way around. That is why only replicas of the same tables may take each other's place.
//!
//! Must never change to a server before its sync has succeeded, nor to one whose tables are not replicas of the others.

use super::client::{ClickHouseOptions, Client};
use super::error::ClickHouseError;
use super::schema::{Schema, SchemaProblem};
use super::sight;
use crate::platform::advice::Advice;
use crate::platform::metrics::SERVER_IN_USE;
use metrics::gauge;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Interval of the looks at the server in use.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Longest wait for the answer to a look.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// Number of looks in a row that fail before another server is tried.
const FAILED_LOOKS_MAX: u32 = 3;

/// Shortest time between two attempts to return to a preferred server.
const RETURN_INTERVAL: Duration = Duration::from_secs(15);

/// The servers of one shard.
#[derive(Debug)]
pub struct Servers {
    list: Vec<Client>,
    in_use: AtomicUsize,
}

impl Servers {
    /// Returns the clients that the options name, in order of preference.
    ///
    /// # Errors
    /// [`ClickHouseError::Config`] if an option cannot be used.
    pub fn clients(options: &ClickHouseOptions) -> Result<Vec<Client>, ClickHouseError> {
        options
            .url
            .split(',')
            .map(|url| Client::new(&ClickHouseOptions { url: url.trim().to_owned(), ..options.clone() }))
            .collect()
    }

    /// Returns a client for the first server that answers, or for the first one if none does. A single server is not asked.
    ///
    /// # Errors
    /// [`ClickHouseError::Config`] if an option cannot be used.
    pub async fn answering(options: &ClickHouseOptions) -> Result<Client, ClickHouseError> {
        let mut clients = Servers::clients(options)?;
        let mut first = 0;
        if clients.len() > 1 {
            for (number, client) in clients.iter().enumerate() {
                let asked = timeout(LOOK_TIMEOUT, client.server_query("SELECT toUInt64(1)").scalar_u64()).await;
                if matches!(asked, Ok(Ok(_))) {
                    first = number;
                    break;
                }
            }
        }
        Ok(clients.swap_remove(first))
    }

    /// Returns the servers of `list`, of which the one with this number is in use. [`fit`] has returned `client` for it.
    pub fn new(list: &[Client], in_use: usize, client: &Client, schema: &Schema) -> Servers {
        let mut list: Vec<Client> = list.iter().map(|client| client.for_form(schema.form())).collect();
        list[in_use] = client.clone();
        let servers = Servers { list, in_use: AtomicUsize::new(in_use) };
        servers.note(in_use);
        servers
    }

    /// Returns the server in use.
    pub fn in_use(&self) -> &Client {
        &self.list[self.in_use.load(Ordering::Relaxed)]
    }

    /// Returns all servers.
    pub fn all(&self) -> &[Client] {
        &self.list
    }

    /// Waits until another server answers at one of the addresses than before.
    pub async fn other_server(&self) -> ClickHouseError {
        let mut waiting = JoinSet::new();
        for client in self.list.iter().cloned() {
            waiting.spawn(async move { client.other_server().await });
        }
        match waiting.join_next().await {
            Some(Ok(error)) => error,
            // Only a panic or the end of the process can be the reason.
            _ => std::future::pending().await,
        }
    }

    fn note(&self, in_use: usize) {
        for (number, server) in self.list.iter().enumerate() {
            gauge!(SERVER_IN_USE, "server" => server.url().to_owned()).set(f64::from(u8::from(number == in_use)));
        }
    }

    /// Changes the server in use when it has to be changed, until `stop`. With one server there is nothing to do.
    pub async fn watch(self: Arc<Self>, schema: Schema, stop: CancellationToken) {
        if self.list.len() < 2 {
            return;
        }
        let (mut failed, mut returned) = (0, Instant::now());
        loop {
            tokio::select! {
                () = sleep(LOOK_INTERVAL) => {}
                () = stop.cancelled() => return,
            }
            let in_use = self.in_use.load(Ordering::Relaxed);
            let trouble = look(&self.list[in_use]).await.err();
            failed = if trouble.is_some() { failed + 1 } else { 0 };
            if let Some(error) = trouble {
                tracing::warn!("{error}; look {failed} of {FAILED_LOOKS_MAX} before another server is tried");
            }
            let candidates: Vec<usize> = match failed {
                0 if returned.elapsed() >= RETURN_INTERVAL => (0..in_use).collect(),
                FAILED_LOOKS_MAX.. => (0..self.list.len()).filter(|number| *number != in_use).collect(),
                _ => Vec::new(),
            };
            if candidates.is_empty() {
                continue;
            }
            returned = Instant::now();
            for number in candidates {
                match can_replace(&self.list[in_use], &self.list[number], &schema).await {
                    Ok(()) => {
                        let (from, to) = (self.list[in_use].described(), self.list[number].described());
                        tracing::warn!("the member now uses the ClickHouse server {to}, and no longer {from}");
                        self.in_use.store(number, Ordering::Relaxed);
                        self.note(number);
                        failed = 0;
                        break;
                    }
                    Err(problem) => tracing::warn!("{} is not used: {problem}", self.list[number].described()),
                }
            }
        }
    }
}

/// Checks that a server answers and can write.
async fn look(client: &Client) -> Result<(), ClickHouseError> {
    let late = || client.unanswered(LOOK_TIMEOUT);
    let states = timeout(LOOK_TIMEOUT, client.table_states()).await.map_err(|_| late())??;
    match states.iter().find(|state| state.is_readonly > 0) {
        None => Ok(()),
        Some(state) => Err(ClickHouseError::NoKeeper {
            url: client.url().to_owned(),
            code: 242,
            name: "TABLE_IS_READ_ONLY".to_owned(),
            message: format!("system.replicas has is_readonly = 1 for {}", state.table),
        }),
    }
}

/// Checks that members may use a server, and returns a client for its tables. Its rows may be believed after that.
///
/// # Errors
/// Any [`SchemaProblem`].
pub async fn fit(client: &Client) -> Result<(Client, Schema), SchemaProblem> {
    // Statements have to arrive whole before any answer is believed.
    client.prove().await?;
    let (client, schema) = Schema::found(client).await?;
    schema.check(&client).await?;
    // Where that cannot be told now, a row that is not shown stops its partition.
    sight::refuse_filters(&client).await?;
    if client.is_replica() {
        client.prove_settings().await?;
        client.table_states().await?;
        client.sync().await?;
    }
    Ok((client, schema))
}

/// Checks that a server can take the place of the one in use.
async fn can_replace(in_use: &Client, client: &Client, schema: &Schema) -> Result<(), SchemaProblem> {
    look(client).await?;
    let (client, found) = fit(client).await?;
    if found != *schema || client.paths() != in_use.paths() {
        let problem = format!("its tables are not replicas of those of {}", in_use.described());
        return Err(client.unfit(Advice::new(problem, "Let clickhouse.url name replicas of one shard")).into());
    }
    Ok(())
}
