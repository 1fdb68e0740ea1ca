//! Errors of ClickHouse, classified by the reaction that they need.
//!
//! Must never print a password, nor more of a server's answer than [`MAX_MESSAGE_BYTES`].

use std::error::Error as StdError;
use std::io;

use super::exchange::LeaseExpired;
use super::identity::Doubt;
use crate::platform::advice::Advice;
use crate::platform::tls::{self, Cause};
use thiserror::Error;

/// Greatest length of the part of a server's answer that is kept, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 2048;

/// A failed conversation with ClickHouse. The text describes the failure and the next step.
///
/// `message` and `reason` are the words of the server, or of the layer that failed. They are cut to [`MAX_MESSAGE_BYTES`]. `code`
/// and `name` are ClickHouse's own, as in its table `system.errors`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}", self.advice())]
#[expect(missing_docs, reason = "the fields are described above, once for all variants")]
pub enum ClickHouseError {
    /// The options cannot be used; nothing was sent.
    Config(String),
    /// There is no complete answer: connection refused, name not found, connection cut, or no answer in time. A statement that
    /// changes data may have taken effect nevertheless.
    Unreachable { url: String, reason: String },
    /// One side does not accept the other's certificate, or the other side does not speak TLS.
    Tls { url: String, reason: String, cause: Cause },
    /// The answer is not ClickHouse's. It is for instance a load balancer's 502.
    NotClickHouse { url: String, message: String },
    /// The answer does not have the query id that was sent. The request may have taken effect nevertheless.
    NotOurs { url: String, message: String },
    /// The server, the user or the way to it prevents exact reads or writes.
    Unfit { url: String, advice: Advice },
    /// Two servers answer at the address. Rows of one are not on the other.
    OtherServer { url: String, message: String },
    /// A server of another name has answered. The next read shows if it is the same server.
    OtherName { url: String, message: String },
    /// A materialized view of the users' own, on one of Tallyhouse's tables, refuses an insert.
    OwnView { code: u32, name: String, message: String },
    /// The server does not accept this user and password.
    Unauthorized { user: String, message: String },
    /// The user is logged in, but may not do this.
    Forbidden { user: String, message: String },
    /// The configured database does not exist.
    UnknownDatabase { database: String, message: String },
    /// A table of the schema does not exist.
    UnknownTable { message: String },
    /// The server cannot do it now, and may be able to later.
    ServerBusy { code: u32, name: String, message: String },
    /// The server cannot write to a replicated table now: it does not reach Keeper, or the table is read-only.
    NoKeeper { url: String, code: u32, name: String, message: String },
    /// A replica has not fetched all rows that the shard has, so its answers about rows prove nothing.
    NotSynced { server: String, table: String, message: String },
    /// No second replica confirms what was inserted, so nothing may vouch for it.
    Unconfirmed { message: String },
    /// Parts were lost with a replica, and perhaps tokens with them. Nothing is inserted until no older insert can arrive.
    Quarantined { server: String, seconds: u64 },
    /// An insert of the batch runs for longer than inserts may take.
    StillRunning { query_id: String },
    /// The member's lease expired while it sent an insert, and it broke the insert off.
    LeaseExpired,
    /// Any other exception of the server.
    Server { code: u32, name: String, message: String },
    /// The answer does not have the form this binary expects.
    Decode(String),
}

/// The words of a batch that waits for its confirmation.
pub const UNCONFIRMED: &str = "no second replica confirms a batch (clickhouse.replicas_confirmed)";

impl ClickHouseError {
    /// Returns the failure and the next step.
    pub fn advice(&self) -> Advice {
        match self {
            Self::Config(why) => Advice::without_fix(format!("invalid ClickHouse configuration: {why}")),
            Self::Unreachable { url, reason } => Advice::new(
                format!("ClickHouse at {url} does not answer: {reason}"),
                "Check that it runs and that clickhouse.url is right",
            ),
            Self::Tls { url, reason, cause } => {
                Advice::new(format!("no trusted TLS connection to ClickHouse at {url}: {reason}"), tls_fix(*cause))
            }
            Self::NotClickHouse { url, message } => Advice::new(
                format!("something other than ClickHouse answers at {url}: {message}"),
                "Check clickhouse.url and any proxy in between",
            ),
            Self::NotOurs { url, message } => Advice::new(
                format!(
                    "something other than ClickHouse answers at {url}, or in its place: the answer \"{message}\" has not the query id that was sent"
                ),
                "Check clickhouse.url and any proxy or load balancer in between",
            ),
            Self::Unfit { url, advice } => {
                let problem = format!("ClickHouse at {url} cannot be used: {}", advice.problem);
                Advice { problem, fix: advice.fix.clone() }
            }
            Self::OtherServer { url, message } => Advice::new(
                format!("different ClickHouse servers answer at {url}, or its tables were created again: {message}"),
                "Rows of one server are not on the other, so no answer counts any more. Set clickhouse.url to one server, not to a load \
                 balancer or a name of several, and start again",
            ),
            Self::OtherName { url, message } => Advice::new(
                format!("another ClickHouse server seems to answer at {url}: {message}"),
                "That answer does not count, and the server is asked again",
            ),
            Self::OwnView { code, name, message } => Advice::new(
                format!("a materialized view of your own on Tallyhouse's tables fails ({code} {name}): {message}"),
                "Fix or drop that view: `tallyhouse check` names all that there are. Tallyhouse's own tables are exact; the view may miss \
                 rows of this batch (`tallyhouse explain limits`)",
            ),
            Self::Unauthorized { user, message } => Advice::new(
                format!("ClickHouse refuses to log in the user \"{user}\": {message}"),
                "Set clickhouse.user and clickhouse.password to a user that exists there",
            ),
            Self::Forbidden { user, message } => Advice::new(
                format!("the ClickHouse user \"{user}\" may not do this: {message}"),
                "GRANT what the message names, and give the user a settings profile that is not readonly",
            ),
            Self::UnknownDatabase { database, message } => Advice::new(
                format!("the ClickHouse database \"{database}\" does not exist: {message}"),
                "Check clickhouse.database, or run: tallyhouse migrate",
            ),
            Self::UnknownTable { message } => {
                Advice::new(format!("a table is missing in ClickHouse: {message}"), "Run: tallyhouse migrate")
            }
            Self::ServerBusy { code, name, message } => Advice::new(
                format!("ClickHouse is busy or degraded ({code} {name}): {message}"),
                "It is worth trying again later",
            ),
            Self::NoKeeper { url, code, name, message } => Advice::new(
                format!(
                    "the ClickHouse server at {url} does not reach Keeper, or its table is read-only ({code} {name}): {message}"
                ),
                "It is tried again. Look at Keeper, and at system.replicas on that server",
            ),
            Self::Unconfirmed { message } => Advice::new(
                format!("{UNCONFIRMED}: {message}"),
                "Members wait for a second server of clickhouse.url; look at the other replicas",
            ),
            Self::NotSynced { server, table, message } => Advice::new(
                format!("the replica {server} does not have all rows of {table} yet ({message})"),
                "Nothing is believed of it until it has them, and it is tried again. system.replication_queue on that server names the \
                 parts that it waits for; see `tallyhouse explain limits`",
            ),
            Self::Quarantined { server, seconds } => Advice::new(
                format!(
                    "parts of the tables were lost with a replica, says {server}: nothing is inserted for {seconds} s more"
                ),
                "ClickHouse may have forgotten the tokens of these parts, so an older insert could arrive beside a repeat of it. It goes on by itself",
            ),
            Self::StillRunning { query_id } => Advice::new(
                "an insert of this batch still runs in ClickHouse, for longer than clickhouse.insert_timeout_ms",
                format!(
                    "Look in system.processes for a query_id like '{query_id}', and KILL QUERY it if it does not end"
                ),
            ),
            Self::LeaseExpired => Advice::without_fix(LeaseExpired.to_string()),
            Self::Server { code, name, message } => Advice::new(
                format!("ClickHouse reports an error ({code} {name}): {message}"),
                format!("Look {name} up in the server's log before trying again"),
            ),
            Self::Decode(why) => Advice::new(
                format!("cannot read ClickHouse's answer: {why}"),
                "This binary and the server's schema or version do not fit together",
            ),
        }
    }

    /// True if the same request may succeed later without a change by anybody.
    ///
    /// It does not mean that the request had no effect.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::NotClickHouse { .. }
                | Self::NotOurs { .. }
                | Self::OtherName { .. }
                | Self::ServerBusy { .. }
                | Self::LeaseExpired
                | Self::NoKeeper { .. }
                | Self::NotSynced { .. }
                | Self::Unconfirmed { .. }
                | Self::Quarantined { .. }
        )
    }
}

impl ClickHouseError {
    /// True if an insert was refused for its size, by a limit of the user, of the server's settings or of a proxy. A memory limit
    /// of the whole server does not count: it proves nothing about the insert.
    pub fn refuses_size(&self) -> bool {
        match self {
            Self::NotClickHouse { message, .. } => message.starts_with(PAYLOAD_TOO_LARGE),
            // MEMORY_LIMIT_EXCEEDED
            Self::ServerBusy { code: 241, message, .. } => !message.contains("(total)"),
            // TOO_MANY_PARTS has two meanings.
            Self::ServerBusy { code: 252, message, .. } => message.contains("Too many partitions for single INSERT"),
            // TOO_MANY_ROWS, TOO_MANY_BYTES, TOO_MANY_ROWS_OR_BYTES
            Self::Server { code: 158 | 307 | 396, .. } => true,
            _ => false,
        }
    }

    /// True if ClickHouse refuses an insert for a reason that may lie in some of its rows.
    pub fn may_refuse_rows(&self) -> bool {
        matches!(self, Self::Server { .. } | Self::OwnView { .. }) || self.refuses_size() || self.is_for_good()
    }

    /// True if waiting certainly does not help: somebody has to change the tables, the rights or the configuration.
    ///
    /// An error that is neither this nor [`is_retryable`](Self::is_retryable) may be either.
    pub fn is_for_good(&self) -> bool {
        match self {
            Self::Unauthorized { .. } | Self::Forbidden { .. } | Self::Unfit { .. } => true,
            Self::OtherServer { .. } => true,
            Self::UnknownDatabase { .. } | Self::UnknownTable { .. } => true,
            Self::Tls { cause, .. } => *cause != Cause::Other,
            // The constraint of a repair goes away by itself.
            Self::Server { code, message, .. } => refuses_for_good(*code) && !message.contains("tallyhouse_repair_"),
            _ => false,
        }
    }
}

/// Beginning of a refusal by a proxy: the status of its answer.
const PAYLOAD_TOO_LARGE: &str = "413 ";

/// Codes of operations that a table or a user's settings do not allow.
fn refuses_for_good(code: u32) -> bool {
    matches!(
        code,
        8 | 10 | 16 | 47 // THERE_IS_NO_COLUMN, NOT_FOUND_COLUMN_IN_BLOCK, NO_SUCH_COLUMN_IN_TABLE, UNKNOWN_IDENTIFIER
        | 44 | 53 | 349 | 691 // ILLEGAL_COLUMN, TYPE_MISMATCH, CANNOT_INSERT_NULL_IN_ORDINARY_COLUMN, UNKNOWN_ELEMENT_OF_ENUM
        | 62 | 115 | 452 // SYNTAX_ERROR, UNKNOWN_SETTING, SETTING_CONSTRAINT_VIOLATION
        | 469 // VIOLATED_CONSTRAINT
    )
}

fn tls_fix(cause: Cause) -> &'static str {
    match cause {
        Cause::UnknownAuthority => {
            "Set clickhouse.ca_file to the PEM of the authority that signed the server's certificate"
        }
        Cause::Expired => "Renew the server's certificate, or set this machine's clock",
        Cause::WrongName => {
            "Name the server in clickhouse.url as its certificate does, or give it a certificate for this name"
        }
        Cause::ClientCertificate => {
            "Set clickhouse.cert_file and clickhouse.key_file to a client certificate that is valid and that the server trusts"
        }
        Cause::Other => {
            "Check that the port of clickhouse.url is the HTTPS one, and which TLS versions the server speaks"
        }
    }
}

/// The peer of the conversation, with the names that the error's text may contain.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    pub(crate) url: String,
    pub(crate) user: String,
    pub(crate) database: String,
}

impl Peer {
    /// Classifies an error of the `clickhouse` crate.
    pub(crate) fn classify(&self, error: &clickhouse::error::Error) -> ClickHouseError {
        use clickhouse::error::Error;
        match error {
            Error::BadResponse(text) => self.classify_answer(text),
            Error::TimedOut => self.unreachable("no answer in time".to_owned()),
            Error::Network(source) => {
                let reason = chain(source.as_ref());
                match causes(source.as_ref()).find_map(|cause| cause.downcast_ref::<rustls::Error>()) {
                    Some(error) => ClickHouseError::Tls { url: self.url.clone(), reason, cause: tls::cause(error) },
                    None => self.unreachable(reason),
                }
            }
            Error::Other(source) if source.is::<LeaseExpired>() => ClickHouseError::LeaseExpired,
            Error::InvalidParams(source) => ClickHouseError::Config(chain(source.as_ref())),
            other => ClickHouseError::Decode(chain(other)),
        }
    }

    pub(crate) fn unreachable(&self, reason: String) -> ClickHouseError {
        let url = self.url.clone();
        ClickHouseError::Unreachable { url, reason }
    }

    pub(crate) fn not_ours(&self, answer: &[u8]) -> ClickHouseError {
        let message = bounded(&String::from_utf8_lossy(answer));
        ClickHouseError::NotOurs { url: self.url.clone(), message }
    }

    pub(super) fn doubted(&self, doubt: Doubt) -> ClickHouseError {
        let url = self.url.clone();
        match doubt {
            Doubt::Other(message) => ClickHouseError::OtherServer { url, message },
            Doubt::Unclear(message) => ClickHouseError::OtherName { url, message },
        }
    }

    pub(crate) fn unfit(&self, advice: Advice) -> ClickHouseError {
        ClickHouseError::Unfit { url: self.url.clone(), advice }
    }

    fn classify_answer(&self, text: &str) -> ClickHouseError {
        let message = bounded(text);
        let user = self.user.clone();
        let Some((code, name)) = parse_exception(text) else {
            let url = self.url.clone();
            return ClickHouseError::NotClickHouse { url, message };
        };
        if text.contains("while pushing to view") || text.contains("Target table '") {
            return ClickHouseError::OwnView { code, name, message };
        }
        match code {
            192..=194 | 516 => ClickHouseError::Unauthorized { user, message },
            164 | 497 => ClickHouseError::Forbidden { user, message },
            81 => ClickHouseError::UnknownDatabase { database: self.database.clone(), message },
            60 => ClickHouseError::UnknownTable { message },
            _ if is_without_keeper(code) => ClickHouseError::NoKeeper { url: self.url.clone(), code, name, message },
            _ if is_busy(code) => ClickHouseError::ServerBusy { code, name, message },
            _ => ClickHouseError::Server { code, name, message },
        }
    }
}

/// True for codes of a replicated table that cannot be written to now. The outcome of an insert that ends so is unknown.
fn is_without_keeper(code: u32) -> bool {
    // NO_ZOOKEEPER, TABLE_IS_READ_ONLY, UNKNOWN_STATUS_OF_INSERT, KEEPER_EXCEPTION
    matches!(code, 225 | 242 | 319 | 999)
}

/// True for codes of conditions that pass: load, limits, lost replicas, a shutdown, a full disk.
fn is_busy(code: u32) -> bool {
    matches!(
        code,
        159 | 160 // TIMEOUT_EXCEEDED, TOO_SLOW
        | 173 | 241 // CANNOT_ALLOCATE_MEMORY, MEMORY_LIMIT_EXCEEDED
        | 201 | 202 // QUOTA_EXCEEDED, TOO_MANY_SIMULTANEOUS_QUERIES
        | 203 | 209 | 210 | 279 // NO_FREE_CONNECTION, SOCKET_TIMEOUT, NETWORK_ERROR, ALL_CONNECTION_TRIES_FAILED
        | 236 | 394 // ABORTED, QUERY_WAS_CANCELLED
        | 733 // TABLE_IS_BEING_RESTARTED
        | 243 | 252 // NOT_ENOUGH_SPACE, TOO_MANY_PARTS
        | 285 | 286 // TOO_FEW_LIVE_REPLICAS, UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE
        | 425 | 439 | 745 // SYSTEM_ERROR, CANNOT_SCHEDULE_TASK, SERVER_OVERLOADED
    )
}

/// Reads code and name from `Code: 60. DB::Exception: … (UNKNOWN_TABLE) (version …)`, or from `Code: 60` alone.
fn parse_exception(text: &str) -> Option<(u32, String)> {
    let rest = text.trim_start().strip_prefix("Code: ")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let code = rest[..digits].parse().ok()?;
    let before_version = rest.rsplit_once(" (version").map_or(rest, |(head, _)| head);
    let name =
        before_version.strip_suffix(')').and_then(|head| head.rsplit_once('(')).map_or("unnamed", |(_, name)| name);
    Some((code, bounded(name)))
}

/// Returns an error and the errors below it. `io::Error::source` skips the error that it wraps, so this looks inside.
fn causes<'e>(error: &'e (dyn StdError + 'static)) -> impl Iterator<Item = &'e (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| {
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        wrapped.map(|inner| inner as &(dyn StdError + 'static)).or_else(|| error.source())
    })
}

/// Returns the text of an error and its causes, each only once.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = String::new();
    for cause in causes(error).map(ToString::to_string) {
        if !text.contains(&cause) {
            let separator = if text.is_empty() { "" } else { ": " };
            text = format!("{text}{separator}{cause}");
        }
    }
    bounded(&text)
}

fn bounded(text: &str) -> String {
    let text = text.trim();
    let end = text.floor_char_boundary(MAX_MESSAGE_BYTES);
    let ellipsis = if end < text.len() { "…" } else { "" };
    format!("{}{ellipsis}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classify(text: &str) -> ClickHouseError {
        let peer =
            Peer { url: "http://ch:8123/".to_owned(), user: "writer".to_owned(), database: "campaigns".to_owned() };
        peer.classify(&clickhouse::error::Error::BadResponse(text.to_owned()))
    }

    #[test]
    fn an_exception_gives_its_code_and_name() {
        let text =
            "Code: 62. DB::Exception: Syntax error (at end of query): (select. (SYNTAX_ERROR) (version 26.7.2.1)";
        assert_eq!(parse_exception(text), Some((62, "SYNTAX_ERROR".to_owned())));
        assert_eq!(parse_exception("Code: 60"), Some((60, "unnamed".to_owned())));
        assert_eq!(parse_exception("502 Bad Gateway"), None);
    }

    #[test]
    fn each_class_has_its_codes() {
        use ClickHouseError as E;
        assert!(matches!(classify("Code: 516. x"), E::Unauthorized { user, .. } if user == "writer"));
        assert!(matches!(classify("Code: 497. x"), E::Forbidden { .. }));
        assert!(matches!(classify("Code: 81. x"), E::UnknownDatabase { database, .. } if database == "campaigns"));
        assert!(matches!(classify("Code: 60. x"), E::UnknownTable { .. }));
        assert!(matches!(classify("Code: 252. x"), E::ServerBusy { code: 252, .. }));
        assert!(matches!(classify("Code: 319. x"), E::NoKeeper { code: 319, .. }));
        assert!(matches!(classify("Code: 62. x"), E::Server { code: 62, .. }));
        assert!(matches!(classify("<html>502</html>"), E::NotClickHouse { .. }));
    }

    #[test]
    fn only_passing_conditions_are_retryable() {
        for retryable in ["Code: 241. x", "Code: 242. x", "Code: 999. x", "502 Bad Gateway"] {
            assert!(classify(retryable).is_retryable(), "{retryable}");
        }
        for permanent in ["Code: 516. x", "Code: 81. x", "Code: 60. x", "Code: 27. x"] {
            assert!(!classify(permanent).is_retryable(), "{permanent}");
        }
    }

    #[test]
    fn a_refusal_for_size_is_told_from_a_busy_server() {
        for refused in [
            "Code: 241. DB::Exception: Query memory limit exceeded: would use 50.00 MiB. (MEMORY_LIMIT_EXCEEDED)",
            "Code: 252. DB::Exception: Too many partitions for single INSERT block (more than 1). (TOO_MANY_PARTS)",
            "Code: 396. x",
            "413 Payload Too Large: <html>nginx</html>",
        ] {
            assert!(classify(refused).refuses_size(), "{refused}");
        }
        for busy in [
            "Code: 241. DB::Exception: (total) memory limit exceeded: would use 5.00 GiB. (MEMORY_LIMIT_EXCEEDED)",
            "Code: 252. DB::Exception: Too many parts (3000). Merges are processing significantly slower than inserts.",
            "Code: 159. x",
            "502 Bad Gateway",
        ] {
            assert!(!classify(busy).refuses_size(), "{busy}");
        }
    }

    #[test]
    fn waiting_is_given_up_only_for_what_is_known_to_be_for_good() {
        let violated = "Code: 469. DB::Exception: Constraint `held` for table campaigns.email_events is violated";
        for for_good in ["Code: 516. x", "Code: 497. x", "Code: 81. x", "Code: 60. x", "Code: 16. x", violated] {
            assert!(classify(for_good).is_for_good(), "{for_good}");
        }
        let fence = violated.replace("held", "tallyhouse_repair_0123456789abcdef");
        // For most errors nobody knows if they pass: 49 is LOGICAL_ERROR, 473 DEADLOCK_AVOIDED.
        for passing in [&fence, "Code: 241. x", "Code: 49. x", "Code: 473. x", "502 Bad Gateway"] {
            assert!(!classify(passing).is_for_good(), "{passing}");
        }
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let long = format!("Code: 27. {}", "é".repeat(4000));
        let ClickHouseError::Server { message, .. } = classify(&long) else {
            panic!("wrong class");
        };
        assert!(message.len() <= MAX_MESSAGE_BYTES + "…".len());
        assert!(message.ends_with("é…"));
    }
}
