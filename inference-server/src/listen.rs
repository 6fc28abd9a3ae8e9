//! Accepts connections and serves them, for all three ports alike, until told to stop; then lets them finish.

use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::{BoxError, Router};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use ortolan_protocol::failure::{Failure, FailureReason};
use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tracing::{debug, warn};

/// How long to wait when no connection can be accepted, for want of file descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Room for large tensors: the default of 64 KiB makes a client wait for permission after every piece.
const WINDOW: u32 = 4 << 20;
/// What came just before a port closed has this long to be read: an idle connection is closed without another look.
const LINGER: Duration = Duration::from_millis(100);
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
    /// How long a connection may stay silent at its beginning, and how long the head of a request may take.
    head_timeout: Duration,
}

impl Connections {
    /// The settings for a port that speaks so.
    pub fn new(speaks: Speaks, head_timeout: Duration) -> Self {
        let mut builder = Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(head_timeout);
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .keep_alive_interval(KEEP_ALIVE);
        let builder = if speaks == Speaks::Http2 { builder.http2_only() } else { builder };
        Self { builder, head_timeout }
    }
}

/// Serves connections until `stop` holds true (or nobody holds it any more), takes those that wait already, and ends when
/// all have finished.
pub async fn serve(listener: TcpListener, router: Router, connections: Connections, stop: watch::Receiver<bool>) {
    let graceful = GracefulShutdown::new();
    let connections = Arc::new(connections);
    let start = |stream, peer| {
        let served = serve_one(stream, router.clone(), Arc::clone(&connections), (graceful.watcher(), stop.clone()));
        tokio::spawn(async move {
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
    // The timeouts of HTTP begin with the first byte, or behind it.
    let mut first = [0];
    tokio::select! {
        spoken = tokio::time::timeout(connections.head_timeout, stream.peek(&mut first)) => { spoken??; }
        () = async {
            stopped(stop).await;
            tokio::time::sleep(LINGER).await;
        } => return Ok(()),
    }
    let connection = connections.builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    watcher.watch(connection.into_owned()).await
}
