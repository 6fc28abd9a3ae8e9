//! Stands between one operator process and the API server: passes everything on, and misbehaves as told.
//!
//! Each process gets a proxy of its own, which is dead from the moment at which its process is killed: nothing that was
//! still under way can reach the API server afterwards. What went through is kept in a [`Log`] that the processes of a
//! scenario share.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::pin,
    process::Child,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use futures::{SinkExt, StreamExt, channel::mpsc};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, RETRY_AFTER, TRANSFER_ENCODING},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::{
    call::Call,
    events::{self, Lines},
    fault::{Disturbance, Fault, Step},
};

type Body = BoxBody<Bytes, io::Error>;

/// The real API server and the rights under which it is called.
#[derive(Clone)]
pub struct Upstream {
    /// Verifies the API server's certificate.
    pub client: reqwest::Client,
    /// `https://HOST:PORT`.
    pub server: String,
    /// The operator's token.
    pub token: String,
}

/// One request and what became of it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// When it came.
    pub at: Instant,
    /// What it asked for.
    pub call: Call,
    /// The answer's status; 0 when there was none.
    pub status: u16,
}

/// What went through the proxies of one scenario.
#[derive(Default)]
pub struct Log {
    entries: Mutex<Vec<Entry>>,
    armed: AtomicBool,
    writes: AtomicUsize,
    events: AtomicUsize,
    /// The event that was lost, or the write at which the operator was killed.
    hit: Mutex<Option<String>>,
    /// The paths of lists, by kind.
    lists: Mutex<BTreeMap<String, String>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    /// From now on writes and events are counted.
    pub fn arm(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }

    /// Writes since it was armed.
    pub fn writes(&self) -> usize {
        self.writes.load(Ordering::SeqCst)
    }

    /// Events since it was armed.
    pub fn events(&self) -> usize {
        self.events.load(Ordering::SeqCst)
    }

    /// What the fault hit, once it did.
    pub fn hit(&self) -> Option<String> {
        locked(&self.hit).clone()
    }

    /// All requests so far.
    pub fn entries(&self) -> Vec<Entry> {
        locked(&self.entries).clone()
    }

    /// The time since the last write.
    pub fn quiet_for(&self) -> Duration {
        let entries = locked(&self.entries);
        entries.iter().rev().find(|entry| entry.call.is_write()).map_or(Duration::MAX, |entry| entry.at.elapsed())
    }

    /// The paths of all lists that were asked for, by the plural name of the kind.
    pub fn lists(&self) -> BTreeMap<String, String> {
        locked(&self.lists).clone()
    }

    fn counted(&self, counter: &AtomicUsize) -> Option<usize> {
        self.armed.load(Ordering::SeqCst).then(|| counter.fetch_add(1, Ordering::SeqCst) + 1)
    }

    fn begin(&self, call: &Call) -> (usize, Option<usize>) {
        if call.verb == "list" {
            locked(&self.lists).entry(call.kind().to_owned()).or_insert_with(|| call.target.clone());
        }
        let write = if call.is_write() { self.counted(&self.writes) } else { None };
        let mut entries = locked(&self.entries);
        entries.push(Entry { at: Instant::now(), call: call.clone(), status: 0 });
        (entries.len() - 1, write)
    }

    fn end(&self, index: usize, status: u16) {
        if let Some(entry) = locked(&self.entries).get_mut(index) {
            entry.status = status;
        }
    }
}

struct Shared {
    upstream: Upstream,
    namespace: String,
    log: Arc<Log>,
    fault: watch::Sender<Fault>,
    dead: watch::Sender<bool>,
    victim: Mutex<Option<Child>>,
    watched: Mutex<BTreeSet<String>>,
}

/// A proxy on a port of its own.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.kill();
        self.task.abort();
    }
}

impl Proxy {
    /// Listens for an operator that is to see `namespace` and nothing else.
    pub async fn start(upstream: Upstream, namespace: &str, log: Arc<Log>, fault: Fault) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("the proxy cannot listen")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream,
            namespace: namespace.to_owned(),
            log,
            fault: watch::Sender::new(fault),
            dead: watch::Sender::new(false),
            victim: Mutex::default(),
            watched: Mutex::default(),
        });
        let task = tokio::spawn(accept(listener, shared.clone()));
        Ok(Self { address, shared, task })
    }

    /// Whom to kill.
    pub fn is_for(&self, child: Child) {
        *locked(&self.shared.victim) = Some(child);
    }

    /// Whether its operator is gone.
    pub fn is_dead(&self) -> bool {
        *self.shared.dead.borrow()
    }

    /// Whether its operator ended by itself.
    pub fn ended_by_itself(&self) -> bool {
        let mut victim = locked(&self.shared.victim);
        victim.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))))
    }

    /// How many kinds its operator watches.
    pub fn watched(&self) -> usize {
        locked(&self.shared.watched).len()
    }

    /// Changes what goes wrong.
    pub fn set(&self, fault: Fault) {
        self.shared.fault.send_replace(fault);
    }

    /// Reads a list as the operator would.
    pub async fn read(&self, target: &str) -> anyhow::Result<Vec<u8>> {
        let Upstream { client, server, token } = &self.shared.upstream;
        let answer = client.get(format!("{server}{target}")).bearer_auth(token).send().await?.error_for_status()?;
        Ok(answer.bytes().await?.to_vec())
    }
}

impl Shared {
    fn kill(&self) {
        self.dead.send_replace(true);
        if let Some(mut child) = locked(&self.victim).take() {
            // An error means that it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Ends when the operator is killed.
    async fn death(&self) {
        // The sender lives in `self`: the channel cannot close.
        let _ = self.dead.subscribe().wait_for(|dead| *dead).await;
    }

    fn hit(&self, what: String) {
        locked(&self.log.hit).get_or_insert(what);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(shared.clone(), request));
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                // Connections end with an error when the operator is killed or a fault wants it.
                _ = connection => {}
                () = shared.death() => {}
            }
        });
    }
}

/// Answers one request; an error closes the connection without an answer.
async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, io::Error> {
    let call = Call::of(request.method(), request.uri(), &shared.namespace);
    let (index, write) = shared.log.begin(&call);
    if call.verb == "watch" {
        locked(&shared.watched).insert(call.kind().to_owned());
    }
    let step = shared.fault.borrow().step(&call, write);
    match step {
        Step::KillBefore => {
            shared.hit(format!("before {call}"));
            shared.kill();
            return Err(gone());
        }
        Step::Refuse(code, retry_after) => {
            shared.log.end(index, code);
            return Ok(refusal(code, retry_after));
        }
        Step::Hang => return std::future::pending().await,
        Step::Wait(time) => tokio::time::sleep(time).await,
        Step::Pass | Step::KillAfter | Step::Reset => {}
    }
    if let Some(answer) = stale(&shared, &call) {
        shared.log.end(index, 200);
        return Ok(answer);
    }
    let answer = forward(&shared, &call, request).await?;
    let status = answer.status();
    shared.log.end(index, status.as_u16());
    if call.verb == "watch" && status.is_success() {
        return stream(shared, call, answer);
    }
    let head = head(&answer);
    let body = answer.bytes().await.map_err(io::Error::other)?;
    match step {
        Step::KillAfter => {
            shared.hit(format!("after {call} ({status})"));
            shared.kill();
            Err(gone())
        }
        Step::Reset => Err(gone()),
        _ => head.body(whole(body)).map_err(io::Error::other),
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the connection is closed on purpose")
}

fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed()
}

/// The status and headers of an answer, as they are passed on.
fn head(answer: &reqwest::Response) -> hyper::http::response::Builder {
    let mut head = Response::builder().status(answer.status());
    for (name, value) in answer.headers() {
        if ![TRANSFER_ENCODING, CONTENT_LENGTH, CONNECTION].contains(name) {
            head = head.header(name, value);
        }
    }
    head
}

/// A refusal as the API server words it.
fn refusal(code: u16, retry_after: Option<u32>) -> Response<Body> {
    let (reason, message) = match code {
        409 => ("Conflict", "the object has been modified; please apply your changes to the latest version"),
        429 => ("TooManyRequests", "too many requests, please try again later"),
        504 => ("Timeout", "the request timed out"),
        _ => ("InternalError", "an error on the server has prevented the request from succeeding"),
    };
    let mut status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    let mut answer = Response::builder().status(code).header("content-type", "application/json");
    if let Some(seconds) = retry_after {
        status["details"] = json!({"retryAfterSeconds": seconds});
        answer = answer.header(RETRY_AFTER, seconds);
    }
    answer.body(whole(status.to_string())).unwrap_or_else(|_| Response::new(whole("")))
}

async fn forward(shared: &Shared, call: &Call, request: Request<Incoming>) -> Result<reqwest::Response, io::Error> {
    let Upstream { client, server, token } = &shared.upstream;
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let mut headers = parts.headers;
    for name in [HOST, CONTENT_LENGTH, CONNECTION, TRANSFER_ENCODING, AUTHORIZATION] {
        headers.remove(name);
    }
    let url = format!("{server}{}", call.target);
    let request = client.request(parts.method, url).headers(headers).bearer_auth(token).body(body);
    request.send().await.map_err(io::Error::other)
}

/// What a list or watch that is to be old is answered with.
fn stale(shared: &Arc<Shared>, call: &Call) -> Option<Response<Body>> {
    let Fault::Stale { lists } = &*shared.fault.borrow() else { return None };
    let list = lists.get(call.kind())?;
    match call.verb {
        "list" => Some(json_answer(whole(list.clone()))),
        "watch" => {
            let (sender, receiver) = mpsc::channel(64);
            tokio::spawn(late(shared.clone(), call.clone(), sender));
            Some(json_answer(streamed(receiver)))
        }
        _ => None,
    }
}

fn json_answer(body: Body) -> Response<Body> {
    let mut answer = Response::new(body);
    answer.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    answer
}

/// A watch that is silent until its fault ends.
async fn late(shared: Arc<Shared>, call: Call, sender: mpsc::Sender<Result<Bytes, io::Error>>) {
    let mut fault = shared.fault.subscribe();
    let ended = fault.wait_for(|fault| !matches!(fault, Fault::Stale { .. })).await.map(drop).is_ok();
    let Upstream { client, server, token } = &shared.upstream;
    let url = format!("{server}{}", call.target);
    if ended && let Ok(answer) = client.get(url).bearer_auth(token).send().await {
        pump(shared, &call, answer, sender).await;
    }
}

/// Passes the answer of a watch on.
fn stream(shared: Arc<Shared>, call: Call, answer: reqwest::Response) -> Result<Response<Body>, io::Error> {
    let head = head(&answer);
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move { pump(shared, &call, answer, sender).await });
    head.body(streamed(receiver)).map_err(io::Error::other)
}

fn streamed(receiver: mpsc::Receiver<Result<Bytes, io::Error>>) -> Body {
    BodyExt::boxed(StreamBody::new(receiver.map(|piece| piece.map(Frame::data))))
}

async fn pump(
    shared: Arc<Shared>,
    call: &Call,
    answer: reqwest::Response,
    mut sender: mpsc::Sender<Result<Bytes, io::Error>>,
) {
    let (mut fault, mut dead) = (shared.fault.subscribe(), pin!(shared.death()));
    let (mut pieces, mut lines) = (answer.bytes_stream(), Lines::default());
    loop {
        let (last, mute) = {
            let fault = fault.borrow_and_update();
            let mute = matches!(&*fault, Fault::Disturb(disturbance) if disturbance.mutes(call.kind()));
            (last_words(&fault), mute)
        };
        if let Some(last) = last {
            // A receiver that is gone needs no last words.
            let _ = sender.send(last).await;
            return;
        }
        tokio::select! {
            piece = pieces.next(), if !mute => {
                let Some(Ok(piece)) = piece else { return };
                for line in lines.take(&piece) {
                    if !loses(&shared, &line) && sender.send(Ok(line.into())).await.is_err() {
                        return;
                    }
                }
            }
            _ = fault.changed() => {}
            () = &mut dead => return,
        }
    }
}

/// With what a disturbed watch ends.
fn last_words(fault: &Fault) -> Option<Result<Bytes, io::Error>> {
    match fault {
        Fault::Disturb(Disturbance::Truncate) => Some(Ok(Bytes::from_static(b"{\"type\":\"MODIFIED\",\"obj"))),
        Fault::Disturb(Disturbance::RefuseAll { .. } | Disturbance::SilentAll) => Some(Err(gone())),
        Fault::Disturb(Disturbance::Gone) => {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "too old resource version", "reason": "Expired", "code": 410,
            });
            Some(Ok(format!("{}\n", json!({"type": "ERROR", "object": status})).into()))
        }
        _ => None,
    }
}

/// Counts an event; whether it is the one to be lost.
fn loses(shared: &Shared, line: &[u8]) -> bool {
    let Some(told) = events::told(line) else { return false };
    let event = shared.log.counted(&shared.log.events);
    let lost = matches!(&*shared.fault.borrow(), Fault::Lose { event: at } if event == Some(*at));
    if lost {
        shared.hit(told);
    }
    lost
}
