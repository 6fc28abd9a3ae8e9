//! Accepts connections and serves them, for all three ports alike, until told to stop; then lets them finish.

use std::future::{Future, poll_fn};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use ortolan_protocol::failure::{Failure, FailureReason};
use rustix::io::Errno;
use tokio::net::{TcpListener, TcpStream};
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

/// Serves connections until `stop` is ready, takes those that wait already, and ends when all have finished.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    connections: Arc<Builder<TokioExecutor>>,
    stop: impl Future<Output = ()>,
) {
    let graceful = GracefulShutdown::new();
    let start = |stream, peer| spawn(stream, peer, router.clone(), &connections, &graceful);
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => start(stream, peer),
                Err(error) => {
                    warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            () = &mut stop => break,
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

/// The settings of a port's connections.
pub fn connections(speaks: Speaks, head_timeout: Duration) -> Arc<Builder<TokioExecutor>> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(head_timeout);
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .keep_alive_interval(KEEP_ALIVE);
    Arc::new(if speaks == Speaks::Http2 { builder.http2_only() } else { builder })
}

fn waiting(listener: &TcpListener, context: &mut Context<'_>) -> Option<(TcpStream, SocketAddr)> {
    match listener.poll_accept(context) {
        Poll::Ready(Ok(accepted)) => Some(accepted),
        Poll::Ready(Err(_)) | Poll::Pending => None,
    }
}

fn spawn(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    connections: &Builder<TokioExecutor>,
    graceful: &GracefulShutdown,
) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%peer, %error, "small answers may be delayed");
    }
    let connection = connections.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).into_owned();
    let connection = graceful.watch(connection);
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%peer, %error, "a connection ended early");
        }
    });
}
