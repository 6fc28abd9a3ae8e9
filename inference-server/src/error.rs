//! What can go wrong with a request, and what the client gets for it.
//!
//! This is the one place where kinds of errors become REST status and gRPC codes. Messages are for the client: they say
//! what was expected and what came, and never hold a path, a backtrace or an internal name.

use std::borrow::Cow;
use std::time::Duration;

use axum::http::StatusCode;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The kinds of errors that a request can end with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The client sent what cannot be answered.
    InvalidArgument,
    /// The client did not show a key that lets it in.
    Unauthenticated,
    /// The model, version or route does not exist.
    NotFound,
    /// The route exists, but not for this verb.
    MethodNotAllowed,
    /// The body is larger than the limit.
    TooLarge,
    /// The body is encoded in a way that we do not read.
    UnsupportedEncoding,
    /// The client took too long to send its request.
    RequestTimeout,
    /// The model is not there yet.
    NotReady,
    /// This client asks more than it may.
    TooManyRequests,
    /// The queue is full.
    Overloaded,
    /// The deadline passed before the answer was there.
    DeadlineExceeded,
    /// Our fault. Others stand before it: [`ErrorKind::ALL`] ends here.
    Internal,
}

/// An error with the sentence that the client reads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: Cow<'static, str>,
    allowed: Option<&'static str>,
    retry_after: Option<Duration>,
}

/// After what time a client that was turned away for want of room may try again.
const SOON: Duration = Duration::from_secs(1);

impl Error {
    /// An error of that kind.
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, message: bounded(message.into()), allowed: None, retry_after: None }
    }

    /// The client's fault.
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    /// The model is still being fetched or loaded.
    pub fn not_ready() -> Self {
        Self::new(ErrorKind::NotReady, "the model is not ready yet")
    }

    /// The deadline passed.
    pub fn deadline_exceeded() -> Self {
        Self::new(ErrorKind::DeadlineExceeded, "the deadline passed before the model could answer")
    }

    /// The route takes other verbs, as the header Allow names them.
    pub fn method_not_allowed(verbs: &'static str) -> Self {
        let message = format!("this route takes {verbs}");
        Self { allowed: Some(verbs), ..Self::new(ErrorKind::MethodNotAllowed, message) }
    }

    /// The client has used up its `per_second` requests, and may send the next one after that time.
    pub fn too_many_requests(per_second: u32, after: Duration) -> Self {
        let message = format!(
            "this client sent more than the {per_second} requests a second that it may; the next one may come in {:.3} s",
            after.as_secs_f64()
        );
        Self { retry_after: Some(after), ..Self::new(ErrorKind::TooManyRequests, message) }
    }

    /// After what time the same request may succeed, where time helps.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after.or_else(|| self.kind.is_worth_retrying().then_some(SOON))
    }

    /// The verbs that the route takes, where another came.
    pub fn allowed(&self) -> Option<&'static str> {
        self.allowed
    }

    /// Which kind it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The sentence for the client.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl ErrorKind {
    /// Every kind, in order.
    pub const ALL: [Self; Self::Internal as usize + 1] = [
        Self::InvalidArgument,
        Self::Unauthenticated,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::TooLarge,
        Self::UnsupportedEncoding,
        Self::RequestTimeout,
        Self::NotReady,
        Self::TooManyRequests,
        Self::Overloaded,
        Self::DeadlineExceeded,
        Self::Internal,
    ];

    /// Its name in metrics, traces and the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::Unauthenticated => "unauthenticated",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::TooLarge => "too_large",
            Self::UnsupportedEncoding => "unsupported_encoding",
            Self::RequestTimeout => "request_timeout",
            Self::NotReady => "not_ready",
            Self::TooManyRequests => "too_many_requests",
            Self::Overloaded => "overloaded",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Internal => "internal",
        }
    }

    /// The status over REST.
    pub fn status(self) -> StatusCode {
        match self {
            Self::InvalidArgument => StatusCode::BAD_REQUEST,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedEncoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::NotReady | Self::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The code over gRPC.
    pub fn code(self) -> Code {
        match self {
            Self::InvalidArgument => Code::InvalidArgument,
            Self::Unauthenticated => Code::Unauthenticated,
            Self::NotFound => Code::NotFound,
            Self::MethodNotAllowed | Self::UnsupportedEncoding => Code::Unimplemented,
            Self::TooLarge | Self::TooManyRequests | Self::Overloaded => Code::ResourceExhausted,
            Self::NotReady => Code::Unavailable,
            Self::RequestTimeout | Self::DeadlineExceeded => Code::DeadlineExceeded,
            Self::Internal => Code::Internal,
        }
    }

    /// Whether the same request may succeed a little later.
    fn is_worth_retrying(self) -> bool {
        matches!(self, Self::NotReady | Self::Overloaded)
    }
}

/// The longest message, in bytes. Some repeat what the client sent, which may be anything; over gRPC a message is a header, and
/// clients take headers of some 8 KiB, in which each byte may take three.
const LONGEST: usize = 1024;

fn bounded(message: Cow<'static, str>) -> Cow<'static, str> {
    const CUT: char = '…';
    if message.len() <= LONGEST {
        return message;
    }
    let end = message.floor_char_boundary(LONGEST - CUT.len_utf8());
    Cow::Owned(format!("{}{CUT}", &message[..end]))
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = error.kind.code();
        match error.retry_after {
            // As google.rpc.RetryInfo, which clients' libraries read.
            Some(after) => Self::with_error_details(code, error.message, ErrorDetails::with_retry_info(Some(after))),
            None => Self::new(code, error.message),
        }
    }
}
