//! A real ClickHouse server: the `libchdb` library of an npm package, run in a process of its own.
//!
//! The server process is this executable started again ([`crate::init`]), since the library takes over the process it runs
//! in. It must never be loaded into the process that tests.

use crate::process::Process;
use crate::{DevstackError, cache, io};
use std::ffi::{CString, c_char, c_int, c_void};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const VERSION: &str = "26.7.3-stable.1";
const HOST_VARIABLE: &str = "TALLYHOUSE_DEVSTACK_CLICKHOUSE_ARGS";
/// Names a server to use instead of starting one.
pub const ADDRESS_VARIABLE: &str = "TALLYHOUSE_TEST_CLICKHOUSE";
const HEALTH_DEADLINE: Duration = Duration::from_secs(60);
const HEALTH_POLL_INTERVAL: Duration = Duration::from_millis(50);
const LOG_LINES_SHOWN: usize = 60;

/// A ClickHouse server of our own, with its data in a temporary folder.
#[derive(Debug)]
pub struct ClickHouse {
    library: PathBuf,
    data: TempDir,
    http_port: u16,
    tcp_port: u16,
    process: Process,
}

impl ClickHouse {
    /// Fetches the server if the cache does not have it, starts it and waits until it answers.
    ///
    /// # Errors
    /// Any of [`DevstackError`].
    pub fn start() -> Result<ClickHouse, DevstackError> {
        let library = fetch()?;
        let data = tempfile::tempdir().map_err(io("creating a folder for ClickHouse's data"))?;
        let (http_port, tcp_port) = (free_port()?, free_port()?);
        let process = launch(&library, data.path(), http_port, tcp_port)?;
        let mut server = ClickHouse { library, data, http_port, tcp_port, process };
        server.await_healthy()?;
        Ok(server)
    }

    /// The URL of its HTTP interface; user `default`, empty password.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.http_port)
    }

    /// Kills the server as `kill -9` does.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill9(&mut self) -> Result<(), DevstackError> {
        self.process.kill9()
    }

    /// Starts it again on its data and ports, and waits until it answers.
    ///
    /// # Errors
    /// Any of [`DevstackError`].
    pub fn restart(&mut self) -> Result<(), DevstackError> {
        self.process = launch(&self.library, self.data.path(), self.http_port, self.tcp_port)?;
        self.await_healthy()
    }

    fn await_healthy(&mut self) -> Result<(), DevstackError> {
        let deadline = Instant::now() + HEALTH_DEADLINE;
        loop {
            if answers_ping(self.http_port) {
                return Ok(());
            }
            let reason = match self.process.is_alive() {
                false => "it ended".to_owned(),
                true if Instant::now() > deadline => format!("no answer within {HEALTH_DEADLINE:?}"),
                true => {
                    std::thread::sleep(HEALTH_POLL_INTERVAL);
                    continue;
                }
            };
            return Err(DevstackError::Unhealthy { server: "ClickHouse", reason, log: self.log_tail() });
        }
    }

    /// The last lines that the server printed, for a report of a failure.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read(log_file(self.data.path())).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
    }
}

fn log_file(data: &Path) -> PathBuf {
    data.join("server.log")
}

fn answers_ping(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let ping = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /ping HTTP/1.0\r\n\r\n")?;
        // The status line: "HTTP/1.x 200".
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        Ok(answer.ends_with(b" 200"))
    };
    ping().unwrap_or(false)
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16, DevstackError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(io("looking for a free port"))?;
    listener.local_addr().map(|address| address.port()).map_err(io("looking for a free port"))
}

fn launch(library: &Path, data: &Path, http_port: u16, tcp_port: u16) -> Result<Process, DevstackError> {
    let log = File::options().create(true).append(true).open(log_file(data)).map_err(io("opening ClickHouse's log"))?;
    let errors = log.try_clone().map_err(io("opening ClickHouse's log"))?;
    let arguments = [
        library.display().to_string(),
        "--multiquery".to_owned(),
        format!("--path={}", data.join("data").display()),
        "--listen_host=127.0.0.1".to_owned(),
        format!("--http_port={http_port}"),
        format!("--tcp_port={tcp_port}"),
        "--query".to_owned(),
        "SYSTEM START LISTEN HTTP; \
         SELECT sleepEachRow(1) FROM numbers(1000000) SETTINGS max_block_size = 1 FORMAT Null"
            .to_owned(),
    ];
    let own = std::env::current_exe().map_err(io("finding this executable"))?;
    let mut command = Command::new(own);
    command.env(HOST_VARIABLE, arguments.join("\n")).stdin(std::process::Stdio::null()).stdout(log).stderr(errors);
    Process::spawn(command)
}

/// Becomes the server if this process was started to be one.
pub(crate) fn host_if_asked() {
    if let Ok(arguments) = std::env::var(HOST_VARIABLE) {
        let code = host(&arguments).unwrap_or_else(|error| {
            eprintln!("{error}");
            1
        });
        std::process::exit(code);
    }
}

fn host(arguments: &str) -> Result<i32, Box<dyn std::error::Error>> {
    type Entry = unsafe extern "C" fn(c_int, *mut *mut c_char) -> *mut c_void;
    let mut words = arguments.lines();
    let library = words.next().ok_or("no library is named")?;
    let words: Vec<CString> = std::iter::once("clickhouse").chain(words).map(CString::new).collect::<Result<_, _>>()?;
    let mut pointers: Vec<*mut c_char> = words.iter().map(|word| word.as_ptr().cast_mut()).collect();
    // SAFETY: the library is ClickHouse's own; its initialisers may run in this process, which exists for nothing else.
    let library = unsafe { libloading::Library::new(library)? };
    // SAFETY: the package declares `void* chdb_query_cmdline(int argc, char** argv)`.
    let entry = unsafe { library.get::<Entry>(b"chdb_query_cmdline\0")? };
    // SAFETY: argv points to argc strings that end with NUL and outlive the call.
    let answer = unsafe { entry(pointers.len() as c_int, pointers.as_mut_ptr()) };
    Ok(i32::from(answer.is_null()))
}

/// The path of `libchdb.so`, fetched into the cache if it is not there.
fn fetch() -> Result<PathBuf, DevstackError> {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };
    let name = format!("chdb-{VERSION}-{architecture}");
    let folder = cache::entry(&cache::folder(), &name, |folder| {
        eprintln!("devstack: fetching ClickHouse ({name}, about 180 MB)");
        let package = format!("@chdb/lib-linux-{architecture}-gnu@{VERSION}");
        run("npm", Command::new("npm").args(["pack", "--silent", &package]).current_dir(folder))?;
        let archive = format!("chdb-lib-linux-{architecture}-gnu-{VERSION}.tgz");
        let unpack = ["-xzf", &archive, "--strip-components=1", "package/libchdb.so"];
        run("tar", Command::new("tar").args(unpack).current_dir(folder))?;
        std::fs::remove_file(folder.join(archive)).map_err(io("removing the fetched archive"))
    })?;
    Ok(folder.join("libchdb.so"))
}

fn run(program: &'static str, command: &mut Command) -> Result<(), DevstackError> {
    let output = command.output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => DevstackError::MissingProgram {
            program,
            hint: "Debian: apt-get install npm tar",
            variable: ADDRESS_VARIABLE,
        },
        _ => io(format!("running {program}"))(error),
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(DevstackError::Failed { program, output: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
}
