//! Accepts connections and serves them, for all three ports alike, until told to stop; then lets them finish.

use std::future::{pending, poll_fn};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::Request;
use axum::{BoxError, Router};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use ortolan_protocol::failure::{Failure, FailureReason};
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;
use tower::Service;
use tracing::{debug, warn};

use crate::client_limit::{Client, OpenConnections};
use crate::tls::Tls;

/// How long to wait when no connection can be accepted, for want of file descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Room for large tensors: the default of 64 KiB makes a client wait for permission after every piece.
const WINDOW: u32 = 4 << 20;
/// What came just before a port closed has this long to be read: an idle connection is closed without another look.
const LINGER: Duration = Duration::from_millis(100);
/// When the ports close, a connection that has not brought a request has this long to bring it or to go: what holds up a
/// drain are requests, not clients that are about to speak.
const GOODBYE: Duration = Duration::from_secs(1);
/// How an HTTP/2 connection begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Behind the preface comes a frame of settings, which begins with that many bytes.
const FRAME_HEAD: usize = 9;
/// Between the first two looks at a beginning that is not complete. Later the wait doubles: many connections that stay
/// so must not keep the server busy.
const LOOK_AGAIN: Duration = Duration::from_millis(1);
/// Finds connections whose other end vanished.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Which versions of HTTP a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.1, and HTTP/2 for clients that begin with it.
    Http,
    /// HTTP/2 only, as gRPC needs it.
    Http2,
}

/// Opens a port. `what`: its name in messages.
pub async fn bind(address: IpAddr, port: u16, what: &str) -> Result<TcpListener, Failure> {
    let outcome = match TcpListener::bind((address, port)).await {
        // A machine without IPv6.
        Err(error) if address.is_unspecified() && error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error()) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        outcome => outcome,
    };
    outcome.map_err(|error| Failure {
        reason: FailureReason::ConfigInvalid,
        message: format!("port {port} ({what}) cannot be opened: {error}"),
    })
}

/// How the connections of a port are served.
#[derive(Clone)]
pub struct Connections {
    builder: Builder<TokioExecutor>,
    tls: Option<Arc<Tls>>,
    /// How long a connection may take to show its protocol, and how long the head of a request may take.
    head_timeout: Duration,
    clients: Clients,
}

/// What is done about the clients of a port; by default nothing.
#[derive(Clone, Default)]
pub struct Clients {
    /// Requests carry the [`Client`] whose connection they came by.
    pub are_told: bool,
    /// What each address has open.
    pub open: Option<Arc<OpenConnections>>,
}

impl Connections {
    /// The settings for a port that speaks so.
    pub fn new(speaks: Speaks, tls: Option<Arc<Tls>>, head_timeout: Duration) -> Self {
        let mut builder = Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(head_timeout);
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .keep_alive_interval(KEEP_ALIVE);
        let builder = if speaks == Speaks::Http2 { builder.http2_only() } else { builder };
        Self { builder, tls, head_timeout, clients: Clients::default() }
    }

    /// The same, with that done about clients.
    #[must_use]
    pub fn with_clients(self, clients: Clients) -> Self {
        Self { clients, ..self }
    }

    /// Those of a connection whose client said by ALPN which HTTP it speaks; who says nothing speaks the older.
    fn builder_for(&self, alpn: Option<&[u8]>) -> Builder<TokioExecutor> {
        let builder = self.builder.clone();
        match alpn {
            _ if !builder.is_http1_available() => builder,
            Some(b"h2") => builder.http2_only(),
            _ => builder.http1_only(),
        }
    }
}

/// Serves connections until `stop` holds true (or nobody holds it any more), takes those that wait already, and ends when
/// all have finished.
pub async fn serve(listener: TcpListener, router: Router, connections: Connections, stop: watch::Receiver<bool>) {
    let graceful = GracefulShutdown::new();
    let connections = Arc::new(connections);
    let start = |stream, peer: SocketAddr| {
        let open = connections.clients.open.as_ref().map(|open| open.open(peer.ip()));
        if let Some(None) = open {
            debug!(%peer, "a connection is closed: its address has as many open as it may");
            return;
        }
        let served = serve_one(stream, router.clone(), Arc::clone(&connections), (graceful.watcher(), stop.clone()));
        tokio::spawn(async move {
            let _open = open;
            if let Err(error) = served.await {
                debug!(%peer, %error, "a connection ended early");
            }
        });
    };
    let mut stopped = std::pin::pin!(stopped(stop.clone()));
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => start(stream, peer),
                Err(error) => {
                    warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            () = &mut stopped => break,
        }
    }
    // The kernel has accepted these; closing the port would reset them.
    while let Some((stream, peer)) = poll_fn(|context| Poll::Ready(waiting(&listener, context))).await {
        start(stream, peer);
    }
    drop(listener);
    tokio::time::sleep(LINGER).await;
    graceful.shutdown().await;
}

async fn stopped(mut stop: watch::Receiver<bool>) {
    // An error means that nobody can say stop any more, which says it, too.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn waiting(listener: &TcpListener, context: &mut Context<'_>) -> Option<(TcpStream, SocketAddr)> {
    match listener.poll_accept(context) {
        Poll::Ready(Ok(accepted)) => Some(accepted),
        Poll::Ready(Err(_)) | Poll::Pending => None,
    }
}

async fn serve_one(
    stream: TcpStream,
    router: Router,
    connections: Arc<Connections>,
    (watcher, stop): (Watcher, watch::Receiver<bool>),
) -> Result<(), BoxError> {
    stream.set_nodelay(true)?;
    let client =
        connections.clients.are_told.then(|| stream.peer_addr()).transpose()?.map(|peer| Client::at(peer.ip()));
    // The timeouts of HTTP begin when it is known which HTTP it is.
    let opening = async {
        match &connections.tls {
            None => begun(&stream).await.map(|()| Begun::Plain(stream)),
            Some(tls) => tls.acceptor().accept(stream).await.map(|stream| Begun::Tls(Box::new(stream))),
        }
    };
    let begun = tokio::select! {
        begun = tokio::time::timeout(connections.head_timeout, opening) => begun??,
        () = stopped_for(stop.clone(), LINGER) => return Ok(()),
    };
    match begun {
        Begun::Plain(stream) => answer(stream, &connections.builder, (router, client), (watcher, stop)).await,
        Begun::Tls(stream) => {
            let builder = connections.builder_for(stream.get_ref().1.alpn_protocol());
            answer(stream, &builder, (router, client), (watcher, stop)).await
        }
    }
}

/// A connection whose protocol is known.
enum Begun {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Answers the requests of a connection until it ends or the server does.
async fn answer<S>(
    stream: S,
    builder: &Builder<TokioExecutor>,
    (router, client): (Router, Option<Client>),
    (watcher, stop): (Watcher, watch::Receiver<bool>),
) -> Result<(), BoxError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let has_request = Arc::new(AtomicBool::new(false));
    let service = {
        let has_request = Arc::clone(&has_request);
        service_fn(move |mut request: Request<Incoming>| {
            has_request.store(true, Ordering::Relaxed);
            client.map(|client| request.extensions_mut().insert(client));
            router.clone().call(request)
        })
    };
    let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    tokio::select! {
        ended = watcher.watch(connection) => ended,
        () = async {
            stopped_for(stop, GOODBYE).await;
            if has_request.load(Ordering::Relaxed) {
                pending::<()>().await;
            }
        } => Ok(()),
    }
}

async fn stopped_for(stop: watch::Receiver<bool>, time: Duration) {
    stopped(stop).await;
    tokio::time::sleep(time).await;
}

/// Waits until a client has said enough to know its protocol, or has closed. What it said is not taken off the stream.
async fn begun(stream: &TcpStream) -> std::io::Result<()> {
    let mut beginning = [0; PREFACE.len() + FRAME_HEAD];
    let mut wait = LOOK_AGAIN;
    loop {
        let length = stream.peek(&mut beginning).await?;
        if length == 0 || is_decided(&beginning[..length]) {
            return Ok(());
        }
        // Bytes that were looked at are still there: a look does not wait for more.
        tokio::time::sleep(wait).await;
        wait *= 2;
    }
}

/// Whether a connection that begins so is HTTP/1.1 (or nothing known), or HTTP/2 with all that its client says by itself.
fn is_decided(beginning: &[u8]) -> bool {
    let preface = &beginning[..beginning.len().min(PREFACE.len())];
    !PREFACE.starts_with(preface) || beginning.len() >= PREFACE.len() + FRAME_HEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_is_known_when_it_cannot_be_http_2_or_has_begun_as_such() {
        let http2 = [PREFACE, &[0; FRAME_HEAD]].concat();
        for length in 1..http2.len() {
            assert!(!is_decided(&http2[..length]), "{length}");
        }
        for decided in [&http2[..], b"G", b"PO", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\0"] {
            assert!(is_decided(decided), "{decided:?}");
        }
    }
}
