//! A headless Chromium, for the tests of pages that people open.
//!
//! It speaks the DevTools protocol over two pipes: a JSON text and a zero byte for each message. So it listens at no port.
//!
//! Must never wait without a time limit, and must never open anything but a file.

use crate::{
    cache::Cache,
    error::{Context, Error, Result},
    fetch,
    process::{self, Output, Server},
};
use serde_json::{Value, json};
use std::{
    io::{self, BufRead, BufReader, PipeReader, PipeWriter, Write},
    os::fd::AsRawFd,
    path::Path,
    process::Command,
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Time limit for an answer. The first one includes the start, which takes a second; a machine that also compiles takes longer.
const DEADLINE: Duration = Duration::from_secs(60);

/// A running browser. Dropping it kills the browser.
#[derive(Debug)]
pub struct Browser {
    commands: PipeWriter,
    messages: Receiver<Value>,
    last_id: u64,
    /// Messages of pages, which are no answers.
    events: Vec<Value>,
    server: Server,
    _data: TempDir,
}

/// A page that has been loaded.
#[derive(Debug)]
pub struct Page<'b> {
    browser: &'b mut Browser,
    session: String,
}

impl Browser {
    /// Starts a browser. Fails when Chromium cannot be fetched or started.
    pub fn start() -> Result<Browser> {
        let chromium = fetch::chromium(&Cache::open()?)?;
        let data = tempfile::tempdir().context("make a temporary folder in", &std::env::temp_dir())?;
        let here = Path::new("the browser's pipes");
        let (their_commands, commands) = io::pipe().context("make", here)?;
        let (messages, their_messages) = io::pipe().context("make", here)?;
        // Chromium reads commands from descriptor 3 and writes messages to 4. The shell opens both by the names that the kernel gives
        // to the descriptors of this process.
        let named = |descriptor: i32| format!("/proc/{}/fd/{descriptor}", std::process::id());
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$@\" 3<\"$COMMANDS\" 4>\"$MESSAGES\"", "sh"]).arg(chromium.get_program());
        command.env("COMMANDS", named(their_commands.as_raw_fd())).env("MESSAGES", named(their_messages.as_raw_fd()));
        for (name, value) in chromium.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        // The sandbox needs rights that a container seldom has. The pages are our own files.
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
        command.args(["--disable-background-networking", "--disable-breakpad", "--remote-debugging-pipe"]);
        command.arg(format!("--user-data-dir={}", data.path().display()));
        let server = process::spawn("Chromium", command, Output::Log(data.path().join("browser.log")))?;
        let messages = read(messages)?;
        let mut browser = Browser { commands, messages, last_id: 0, events: Vec::new(), server, _data: data };
        browser.call(None, "Browser.getVersion", json!({}))?;
        // The browser has opened its ends. Closed here, they end with the browser.
        drop((their_commands, their_messages));
        Ok(browser)
    }

    /// Opens a file and waits until it is loaded.
    pub fn open(&mut self, file: &Path) -> Result<Page<'_>> {
        let target = self.call(None, "Target.createTarget", json!({"url": "about:blank"}))?;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = self.call(None, "Target.attachToTarget", attach)?;
        let session = attached["sessionId"].as_str().unwrap_or_default().to_owned();
        self.events.clear();
        for domain in ["Page.enable", "Network.enable"] {
            self.call(Some(&session), domain, json!({}))?;
        }
        let navigate = json!({"url": format!("file://{}", file.display())});
        let navigated = self.call(Some(&session), "Page.navigate", navigate)?;
        if let Some(problem) = navigated["errorText"].as_str() {
            return Err(Error::Browser { method: "Page.navigate".to_owned(), message: problem.to_owned() });
        }
        let deadline = Instant::now() + DEADLINE;
        while !self.events.iter().any(|event| event["method"] == "Page.loadEventFired") {
            let event = self.next("Page.loadEventFired", deadline)?;
            self.events.push(event);
        }
        Ok(Page { browser: self, session })
    }

    /// Sends a command and returns its result. Messages that are no answer are kept.
    fn call(&mut self, session: Option<&str>, method: &str, parameters: Value) -> Result<Value> {
        self.last_id += 1;
        let mut command = json!({"id": self.last_id, "method": method, "params": parameters});
        if let Some(session) = session {
            command["sessionId"] = session.into();
        }
        let failed = |message: String| Error::Browser { method: method.to_owned(), message };
        write!(self.commands, "{command}\0").map_err(|error| failed(format!("{error}\n{}", self.server.log_tail())))?;
        let deadline = Instant::now() + DEADLINE;
        loop {
            let mut message = self.next(method, deadline)?;
            if message["id"] != self.last_id {
                self.events.push(message);
                continue;
            }
            return match message.get("error") {
                Some(error) => Err(failed(error.to_string())),
                None => Ok(message["result"].take()),
            };
        }
    }

    fn next(&self, method: &str, deadline: Instant) -> Result<Value> {
        let left = deadline.saturating_duration_since(Instant::now());
        self.messages.recv_timeout(left).map_err(|error| {
            let message = format!("no answer: {error}. The end of its log:\n{}", self.server.log_tail());
            Error::Browser { method: method.to_owned(), message }
        })
    }
}

impl Page<'_> {
    /// Evaluates a JavaScript expression in the page and returns its value, which must fit into JSON.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let parameters = json!({"expression": expression, "returnByValue": true});
        let mut answer = self.browser.call(Some(&self.session), "Runtime.evaluate", parameters)?;
        match answer.get("exceptionDetails") {
            Some(problem) => {
                Err(Error::Browser { method: "Runtime.evaluate".to_owned(), message: problem.to_string() })
            }
            None => Ok(answer["result"]["value"].take()),
        }
    }

    /// Returns the addresses that the page has loaded, its own first.
    pub fn requested(&self) -> Vec<&str> {
        let requests = self.browser.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        requests.filter_map(|event| event["params"]["request"]["url"].as_str()).collect()
    }
}

/// Reads messages on a thread, so that waiting for one can have a time limit. The thread ends with the browser.
fn read(pipe: PipeReader) -> Result<Receiver<Value>> {
    let (sender, messages) = mpsc::channel();
    let read_all = move || {
        for text in BufReader::new(pipe).split(0).map_while(io::Result::ok) {
            let message = serde_json::from_slice(&text).unwrap_or(Value::Null);
            if sender.send(message).is_err() {
                break;
            }
        }
    };
    let thread = thread::Builder::new().name("devstack-browser".into()).spawn(read_all);
    thread.context("start the thread that reads", Path::new("the browser's messages"))?;
    Ok(messages)
}
