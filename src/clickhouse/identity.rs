//! Notices that another ClickHouse server answers than before: a load balancer, a name with several addresses, a failover.
//!
//! The marks of one server say nothing about the rows of another. So each answer that decides also says who gives it:
//!
//! - A deciding read has the server's name, its uptime and its id ([`COLUMNS`]). The id stays the same through restarts and new names.
//! - The acknowledgement of an insert has only the name, in a header. Another name there proves nothing yet: the insert counts as
//!   unknown, and the protocol asks the marks. That read decides.
//!
//! A proxy may drop the header, and two servers may have one name. Then an acknowledgement says nothing about its server, and only
//! reads and the looks of [`INTERVAL`] notice the second one. `check` and the log say so. A look also compares the ids of the tables:
//! an embedded server has no id of its own, and tables may be created again. In each read that would double the time of a small one.
//!
//! ClickHouse Cloud answers from several servers of one service at one address, by design. Each of them shows all rows to a read that
//! asks for it (`select_sequential_consistency`). So there only the ids of the tables count ([`Identity::of_service`]).
//!
//! An address of several named servers needs a [`Client`](super::client::Client), and so an [`Identity`], for each of them. Tables that
//! are made with ON CLUSTER have the same ids everywhere; the server's id tells these apart.

use crate::platform::lock::locked;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Columns of an answer that say who gives it: the name, the uptime in seconds, and the server's id. They cost nothing.
pub(super) const COLUMNS: &str =
    "displayName() AS server_name, toUInt32(uptime()) AS server_uptime, toString(serverUUID()) AS server_id";

/// Returns the column of a look with the ids of the tables. `database` is an identifier.
pub(super) fn tables(database: &str) -> String {
    format!(
        "(SELECT arrayStringConcat(arraySort(groupArray(toString(uuid))), ' ') FROM system.tables WHERE database = '{database}' \
         AND name IN ('email_events', 'rejected_events', 'daily'))"
    )
}

/// Header of an answer with the server's name.
pub const NAME_HEADER: &str = "X-ClickHouse-Server-Display-Name";

/// Remedy where the header does not come back.
pub(super) const NO_NAME: &str = "a proxy in between drops the header X-ClickHouse-Server-Display-Name. Only reads, and a look each 15 s, \
    notice a second server behind clickhouse.url then. Let the proxy pass the header";

/// Number of looks at the start, each over a connection of its own. A balancer that takes turns is noticed by two of them. One that
/// chooses by chance is noticed by four in seven of eight cases, and by the later looks otherwise.
pub(super) const LOOKS: usize = 4;

/// Number of looks of `check`, which is in no hurry.
pub const LOOKS_OF_CHECK: usize = 12;

/// Interval of the later looks.
pub(super) const INTERVAL: Duration = Duration::from_secs(15);

/// Says who has given an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    /// `display_name` of the configuration, by default the host name.
    pub(super) name: String,
    /// Time since its start, rounded down to seconds.
    pub(super) uptime: Duration,
    /// Id of the server.
    pub(super) id: String,
    /// Ids of the tables, if they were asked for.
    pub(super) tables: Option<String>,
}

impl Server {
    fn described(&self) -> String {
        let tables = self.tables.as_ref().map_or_else(String::new, |tables| format!(", tables {tables}"));
        format!("\"{}\" (id {}{tables})", self.name, self.id)
    }
}

/// Reasons not to believe an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    /// The next read decides.
    Unclear(String),
    /// Another server has answered. No later answer changes that.
    Other(String),
}

#[derive(Debug, Default)]
struct Known {
    server: Option<Server>,
    /// True if the server's name comes back in the header. `None`: nobody has looked yet.
    in_header: Option<bool>,
    /// Time of the last question that the server answered under this name.
    asked: Option<Instant>,
    /// Other name under which an insert was acknowledged since.
    suspect: Option<String>,
    /// Time of the last change of the name or the suspect. An answer to an older question may still have the old name.
    changed: Option<Instant>,
}

/// The server that answers at one address.
#[derive(Debug, Default)]
pub(super) struct Identity {
    /// True if any server with the same tables may answer.
    is_service: bool,
    known: Mutex<Known>,
    other: watch::Sender<Option<String>>,
}

impl Identity {
    /// Returns the identity of a service of ClickHouse Cloud, whose servers share their tables.
    pub(super) fn of_service() -> Identity {
        Identity { is_service: true, ..Identity::default() }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        locked(&self.known)
    }

    /// Returns the name under which the server has answered last.
    pub(super) fn name(&self) -> Option<String> {
        self.known().server.as_ref().map(|server| server.name.clone())
    }

    /// Refuses everything once another server has answered.
    pub(super) fn refuse(&self) -> Result<(), Doubt> {
        self.other.borrow().clone().map_or(Ok(()), |other| Err(Doubt::Other(other)))
    }

    /// Waits until another server has answered.
    pub(super) async fn other(&self) -> String {
        let mut other = self.other.subscribe();
        let message = other.wait_for(Option::is_some).await.map(|message| message.clone().unwrap_or_default());
        match message {
            Ok(message) => message,
            // The sender is in `self`.
            Err(_) => std::future::pending().await,
        }
    }

    /// Judges the answer to a read that was sent at `asked`.
    pub(super) fn read(&self, server: Server, asked: Instant) -> Result<(), Doubt> {
        self.refuse()?;
        let judged = match self.is_service {
            true => self.known().read_of_service(server),
            false => self.known().read(server, asked),
        };
        if let Err(Doubt::Other(message)) = &judged {
            self.other.send_replace(Some(message.clone()));
        }
        judged
    }

    /// Judges the acknowledgement of an insert that was sent at `asked`.
    pub(super) fn acknowledged(&self, name: Option<&str>, asked: Instant) -> Result<(), Doubt> {
        self.refuse()?;
        if self.is_service {
            return Ok(());
        }
        self.known().acknowledged(name.unwrap_or_default(), asked)
    }

    /// Notes at the first look if the header with the name comes back. Returns true if it does.
    pub(super) fn is_in_header(&self, arrived: bool) -> bool {
        *self.known().in_header.get_or_insert(arrived)
    }
}

impl Known {
    /// Judges an answer of a service. Other tables are those of another service, or were created again.
    fn read_of_service(&mut self, seen: Server) -> Result<(), Doubt> {
        let tables = self.server.as_ref().and_then(|server| server.tables.clone());
        if let (Some(known), Some(now)) = (&tables, &seen.tables)
            && known != now
        {
            let before = self.server.as_ref().map_or_else(String::new, Server::described);
            return Err(Doubt::Other(format!("first {before}, then {}", seen.described())));
        }
        self.server = Some(Server { tables: seen.tables.clone().or(tables), ..seen });
        Ok(())
    }

    fn read(&mut self, seen: Server, asked: Instant) -> Result<(), Doubt> {
        let Some(server) = &self.server else {
            (self.server, self.asked) = (Some(seen), Some(asked));
            return Ok(());
        };
        let both = format!("first {}, then {}", server.described(), seen.described());
        let tables = seen.tables.clone().or(server.tables.clone());
        if seen.id != server.id || server.tables.as_ref().is_some_and(|known| tables.as_ref() != Some(known)) {
            return Err(Doubt::Other(both));
        }
        let is_old = self.changed.is_some_and(|changed| asked < changed);
        match &self.suspect {
            Some(suspect) if *suspect != seen.name && !is_old => {
                return Err(Doubt::Other(format!("\"{suspect}\" has acknowledged an insert, then {both} was read")));
            }
            _ if seen.name == server.name => {}
            _ if is_old => return Err(Doubt::Unclear(both)),
            // A server has another name only after a start.
            _ if self.asked.is_some_and(|last| seen.uptime > last.elapsed()) => return Err(Doubt::Other(both)),
            _ => {
                tracing::warn!(
                    "the ClickHouse server \"{}\" has started under the name \"{}\"",
                    server.name,
                    seen.name
                );
                self.changed = Some(Instant::now());
            }
        }
        self.suspect = self.suspect.take().filter(|_| is_old);
        (self.server, self.asked) = (Some(Server { tables, ..seen }), self.asked.max(Some(asked)));
        Ok(())
    }

    fn acknowledged(&mut self, name: &str, asked: Instant) -> Result<(), Doubt> {
        let Some(server) = self.server.as_ref().filter(|_| self.in_header == Some(true)) else { return Ok(()) };
        if name == server.name {
            self.asked = self.asked.max(Some(asked));
            return Ok(());
        }
        let doubt = format!("\"{name}\" has acknowledged an insert, and \"{}\" has answered before", server.name);
        (self.suspect, self.changed) = (Some(name.to_owned()), Some(Instant::now()));
        Err(Doubt::Unclear(doubt))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn server(name: &str, id: &str, uptime: Duration) -> Server {
        Server { name: name.to_owned(), uptime, id: id.to_owned(), tables: None }
    }

    /// Returns the identity of a server "a" that was seen just now.
    fn known(in_header: bool) -> Identity {
        let identity = Identity::default();
        identity.read(server("a", "1", HOUR), Instant::now()).unwrap();
        identity.is_in_header(in_header);
        identity
    }

    fn read(identity: &Identity, server: Server) -> Result<(), Doubt> {
        identity.read(server, Instant::now())
    }

    #[test]
    fn another_server_is_refused_for_good() {
        for other in [server("b", "2", HOUR), server("a", "2", HOUR), server("b", "1", HOUR)] {
            let identity = known(true);
            assert_eq!(read(&identity, server("a", "1", HOUR)), Ok(()));
            assert!(matches!(read(&identity, other.clone()), Err(Doubt::Other(_))), "{other:?}");
            assert!(matches!(read(&identity, server("a", "1", HOUR)), Err(Doubt::Other(_))));
            assert!(matches!(identity.acknowledged(Some("a"), Instant::now()), Err(Doubt::Other(_))));
        }
    }

    #[test]
    fn tables_of_other_ids_are_another_server() {
        let look = |tables: &str| Server { tables: Some(tables.to_owned()), ..server("a", "1", HOUR) };
        let identity = known(true);
        assert_eq!(read(&identity, look("x y z")), Ok(()));
        assert_eq!(read(&identity, server("a", "1", HOUR)), Ok(()), "it does not say which tables it has");
        assert_eq!(read(&identity, look("x y z")), Ok(()));
        assert!(matches!(read(&identity, look("x y w")), Err(Doubt::Other(_))));
    }

    #[test]
    fn servers_of_a_service_are_one_while_their_tables_are() {
        let identity = Identity::of_service();
        let look = |name: &str, tables: &str| Server { tables: Some(tables.to_owned()), ..server(name, name, HOUR) };
        assert_eq!(read(&identity, look("a", "x y z")), Ok(()));
        assert_eq!(read(&identity, server("b", "2", Duration::ZERO)), Ok(()));
        assert_eq!(identity.acknowledged(Some("c"), Instant::now()), Ok(()));
        assert_eq!(read(&identity, look("b", "x y z")), Ok(()));
        assert!(matches!(read(&identity, look("a", "x y w")), Err(Doubt::Other(_))));
        assert!(matches!(identity.acknowledged(Some("a"), Instant::now()), Err(Doubt::Other(_))));
    }

    #[test]
    fn a_server_that_starts_under_another_name_is_the_same() {
        let identity = known(true);
        let before = Instant::now();
        assert!(matches!(identity.acknowledged(Some("b"), Instant::now()), Err(Doubt::Unclear(_))));
        assert_eq!(read(&identity, server("b", "1", Duration::ZERO)), Ok(()));
        assert_eq!(identity.acknowledged(Some("b"), Instant::now()), Ok(()));
        // An answer from before the start was late.
        assert!(matches!(identity.read(server("a", "1", HOUR), before), Err(Doubt::Unclear(_))));
        assert_eq!(read(&identity, server("b", "1", Duration::ZERO)), Ok(()));
    }

    #[test]
    fn an_acknowledgement_by_another_name_counts_only_if_the_next_read_has_it() {
        let identity = known(true);
        assert!(matches!(identity.acknowledged(Some("b"), Instant::now()), Err(Doubt::Unclear(_))));
        assert!(matches!(read(&identity, server("a", "1", HOUR)), Err(Doubt::Other(_))));
        // The header is gone, and nobody knows why.
        let identity = known(true);
        assert!(matches!(identity.acknowledged(None, Instant::now()), Err(Doubt::Unclear(_))));
        assert!(matches!(read(&identity, server("a", "1", HOUR)), Err(Doubt::Other(_))));
    }

    #[test]
    fn without_the_header_only_reads_decide() {
        let identity = known(false);
        assert_eq!(identity.acknowledged(None, Instant::now()), Ok(()));
        assert!(matches!(read(&identity, server("a", "2", HOUR)), Err(Doubt::Other(_))));
        assert!(matches!(identity.acknowledged(None, Instant::now()), Err(Doubt::Other(_))));
    }
}
