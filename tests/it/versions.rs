//! Tests the commands against older lines of ClickHouse, as far as the settings that those lines know go.
//!
//! A proxy before today's server stands for an older one. It gives each setting that the older line lacks another name, in
//! requests. So the server itself refuses the setting (code 115) and shows no row for it in `system.settings`.
//! `settings_since.tsv` says which line knows which setting.

use crate::audit::{assert_clean, double_a_counter};
use crate::operate::{check, json};
use crate::service::Bench;
use std::collections::HashSet;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

const SINCE: &str = include_str!("settings_since.tsv");
/// The lines older than today's server, in the order of their age.
const LINES: [&str; 3] = ["25.3", "25.8", "26.3"];

/// A server of an older line, behind a proxy.
struct Older {
    line: &'static str,
    unknown: HashSet<&'static str>,
}

/// Returns the head and the body of a request as the server gets them.
pub type Rewrite = dyn Fn(&str, &str) -> (String, String) + Send + Sync;

impl Older {
    fn new(line: &'static str) -> Older {
        let number = |line: &str| -> (u32, u32) {
            let (major, minor) = line.split_once('.').unwrap();
            (major.parse().unwrap(), minor.parse().unwrap())
        };
        let since = SINCE.lines().filter(|row| !row.starts_with('#')).map(|row| row.split_once('\t').unwrap());
        let unknown: HashSet<&str> =
            since.filter(|(since, _)| number(since) > number(line)).map(|(_, name)| name).collect();
        assert!(unknown.len() > 100, "{line}");
        Older { line, unknown }
    }

    /// Returns the text with other names for unknown settings, and another version for the server's.
    fn rewrite(&self, text: &str) -> String {
        let mut rewritten = String::with_capacity(text.len());
        for word in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            let name = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            rewritten.push_str(name);
            if self.unknown.contains(name) {
                rewritten.push_str("_of_a_later_version");
            }
            rewritten.push_str(&word[name.len()..]);
        }
        rewritten.replace("SELECT version()", &format!("SELECT '{}.1.1'", self.line))
    }

    /// Starts the proxy and returns its URL.
    async fn start(self, url: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap();
        pass_all(listener, url, Arc::new(move |head, body| (self.rewrite(head), self.rewrite(body))));
        format!("http://{here}")
    }
}

/// Passes one request on. Data of inserts comes in chunks and is passed on as it is.
async fn pass(mut client: TcpStream, there: SocketAddr, rewrite: &Rewrite) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1);
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut server = TcpStream::connect(there).await?;
    match length {
        Some(length) => {
            let mut body = vec![0; length];
            client.read_exact(&mut body).await?;
            let (head, body) = match String::from_utf8(body) {
                Ok(sql) => {
                    let (head, sql) = rewrite(&head, &sql);
                    (head, sql.into_bytes())
                }
                Err(data) => (rewrite(&head, "").0, data.into_bytes()),
            };
            let line = |line: &str| match line.to_ascii_lowercase().starts_with("content-length: ") {
                true => format!("content-length: {}\r\n", body.len()),
                false => format!("{line}\r\n"),
            };
            server.write_all(head.trim_end().lines().map(line).collect::<String>().as_bytes()).await?;
            server.write_all(b"\r\n").await?;
            server.write_all(&body).await?;
        }
        None => server.write_all(rewrite(&head, "").0.as_bytes()).await?,
    }
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}

/// Passes the requests that come to a listener on to a server.
pub fn pass_all(listener: TcpListener, url: &str, rewrite: Arc<Rewrite>) {
    let there = url.trim_start_matches("http://").trim_end_matches('/').to_socket_addrs().unwrap().next().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let rewrite = Arc::clone(&rewrite);
            // A connection that breaks is the client's to notice.
            tokio::spawn(async move { drop(pass(client, there, &*rewrite).await) });
        }
    });
}

/// `migrate`, `run`, `check`, `audit`, `repair` and `erase` work against each line, and none sends a setting that it does not
/// know.
pub async fn every_command_works_on_older_lines(url: &str, database: &str) {
    for line in LINES {
        let proxy = Older::new(line).start(url).await;
        let database = format!("{database}_{}", line.replace('.', "_"));
        let bench = Bench::new(&proxy, &database).await;
        let unknown = "SELECT 1 SETTINGS use_strict_insert_block_limits = 0";
        let refused = bench.try_execute(unknown).await.unwrap_err().to_string();
        assert!(refused.contains("use_strict_insert_block_limits_of_a_later_version"), "{refused}");
        let known = "SELECT toUInt64(count()) FROM system.settings WHERE name = 'deduplicate_insert'";
        assert_eq!(bench.count(known).await, u64::from(line == "26.3"));

        let (status, said, error) = bench.run(&["migrate"], &[]);
        assert_eq!(status, Some(0), "{line}: {said}{error}");
        let ledger = bench.produce(1_000);
        bench.consume(ledger.produced).await;
        bench.assert_exact(&ledger, line).await;
        let (status, report) = json(&bench, "check", &[]);
        assert_eq!((status, check(&report, "settings").0.as_str()), (Some(0), "ok"), "{line}: {report:#}");
        assert_eq!(check(&report, "clickhouse_version").0, "ok", "{line}: {report:#}");
        assert_clean(&bench, line);

        let month = bench.count("SELECT toUInt64(max(toYYYYMM(day))) FROM daily").await as u32;
        double_a_counter(&bench, month).await;
        let (status, said, error) = bench.run(&["repair", "daily", "--month", &month.to_string()], &[]);
        assert!(status == Some(0) && said.contains("0 counters differ now"), "{line}: {status:?} {said}{error}");
        bench.assert_exact(&ledger, line).await;

        let email = bench.rows::<String>("SELECT any(email) FROM email_events").await.remove(0);
        let (status, said, error) = bench.run(&["erase", "--email", &email, "--yes"], &[]);
        assert_eq!(status, Some(0), "{line}: {said}{error}");
        assert_eq!(bench.count(&format!("SELECT count() FROM email_events WHERE email = '{email}'")).await, 0);
        assert_clean(&bench, line);
    }
}
