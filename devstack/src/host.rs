//! The child's side of ClickHouse: this executable, started again, becomes the server.
//!
//! libchdb.so is the whole ClickHouse server as a library. It owns its process (threads, signals, memory), so it gets
//! one of its own. That process is this same executable, and an environment variable makes it the server.
//!
//! Must never return to `main` once it is a host.

use crate::error::{Error, Result};
use std::{
    env,
    ffi::{CString, OsStr, c_char, c_int, c_void},
    os::unix::ffi::OsStrExt,
    path::Path,
    process::{Command, exit},
    sync::atomic::{AtomicBool, Ordering},
};

/// Environment variable with the path of the library, in a process that is to be a host.
const LIBRARY_VARIABLE: &str = "TALLYHOUSE_DEVSTACK_CLICKHOUSE_LIBRARY";
/// Environment variable with the port at which other replicas fetch this server's parts, if it is a replica.
const FETCHES_VARIABLE: &str = "TALLYHOUSE_DEVSTACK_FETCHES_PORT";
const ENTRY: &[u8] = b"chdb_query_cmdline\0";

static INITIALISED: AtomicBool = AtomicBool::new(false);

/// Must be the first call in `main` of every executable that starts a [`crate::ClickHouse`].
///
/// In a process that was started to host ClickHouse it does so and never returns. In any other it does next to
/// nothing.
pub fn init() {
    if let Some(library) = env::var_os(LIBRARY_VARIABLE) {
        let problem = serve(Path::new(&library));
        eprintln!("devstack: the ClickHouse host ended: {problem}");
        exit(1);
    }
    INITIALISED.store(true, Ordering::Relaxed);
}

/// Returns the command that makes this executable a ClickHouse host. With `fetches`, it is a replica whose parts others
/// fetch at this port.
///
/// Fails unless [`init`] was called, since the child would then run the caller's `main` again, and so on without end.
pub(crate) fn command(library: &Path, fetches: Option<u16>) -> Result<Command> {
    if !INITIALISED.load(Ordering::Relaxed) {
        return Err(Error::InitNotCalled);
    }
    // This is not the path on disk: a rebuild may have replaced that file since.
    let mut command = Command::new("/proc/self/exe");
    command.env(LIBRARY_VARIABLE, library);
    if let Some(port) = fetches {
        command.env(FETCHES_VARIABLE, port.to_string());
    }
    Ok(command)
}

/// Runs the server until the process ends. It returns only after a failure, with the error's text.
fn serve(library: &Path) -> String {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    let arguments = [OsStr::new("clickhouse").to_owned()].into_iter().chain(env::args_os().skip(1));
    let arguments: Result<Vec<CString>, _> = arguments.map(|argument| CString::new(argument.as_bytes())).collect();
    let arguments = match arguments {
        Ok(arguments) => arguments,
        Err(error) => return error.to_string(),
    };
    let mut argv: Vec<*mut c_char> = arguments.iter().map(|argument| argument.as_ptr().cast_mut()).collect();
    argv.push(std::ptr::null_mut());
    // SAFETY: loading runs the library's initialisers. It is the pinned libchdb.so, and nothing else runs here yet.
    let library = match unsafe { Library::open(Some(library), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => library,
        Err(error) => return error.to_string(),
    };
    // SAFETY: chdb.h declares this symbol with this signature.
    let entry = unsafe { library.get::<unsafe extern "C" fn(c_int, *mut *mut c_char) -> *mut c_void>(ENTRY) };
    let entry = match entry {
        Ok(entry) => entry,
        Err(error) => return error.to_string(),
    };
    if let Ok(port) = env::var(FETCHES_VARIABLE)
        && let Err(problem) = make_replica(*entry as *const c_void, &port)
    {
        return problem;
    }
    // SAFETY: argv holds argc NUL-terminated strings and a closing null, all alive until the call returns. The server
    // only reads the strings.
    unsafe { entry(arguments.len() as c_int, argv.as_mut_ptr()) };
    "its query came to an end".to_owned()
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn make_replica(entry: *const c_void, port: &str) -> Result<(), String> {
    let port = port.parse().map_err(|_| format!("{FETCHES_VARIABLE} is {port:?}, not a port"))?;
    crate::replicas::patch::install(entry, port)
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn make_replica(_entry: *const c_void, _port: &str) -> Result<(), String> {
    Err(crate::replicas::unavailable().unwrap_or_default())
}
