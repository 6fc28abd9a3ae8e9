//! Reads a request's body: within its limit, counted while it streams, and within its time.

use axum::body::{Body, HttpBody};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_ENCODING;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

use crate::config::RequestLimits;
use crate::error::{Error, ErrorKind};

/// The whole body. A body that comes in one piece is not copied.
pub(super) async fn read(headers: &HeaderMap, body: Body, limits: RequestLimits) -> Result<Bytes, Error> {
    if let Some(encoding) =
        headers.get(CONTENT_ENCODING).filter(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
    {
        let encoding = String::from_utf8_lossy(encoding.as_bytes());
        return Err(Error::new(
            ErrorKind::UnsupportedEncoding,
            format!("bodies encoded with '{}' are not read; send them as they are", encoding.escape_debug()),
        ));
    }
    if body.size_hint().lower() > limits.max_bytes as u64 {
        return Err(too_large(limits.max_bytes));
    }
    tokio::time::timeout(limits.body_timeout, collect(body, limits.max_bytes)).await.unwrap_or_else(|_| {
        Err(Error::new(
            ErrorKind::RequestTimeout,
            format!("the body did not come within {} seconds", limits.body_timeout.as_secs_f64()),
        ))
    })
}

async fn collect(mut body: Body, max_bytes: usize) -> Result<Bytes, Error> {
    // Never more than the limit: the size was checked.
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(0);
    let Some(first) = next(&mut body).await? else { return Ok(Bytes::new()) };
    if first.len() > max_bytes {
        return Err(too_large(max_bytes));
    }
    let Some(second) = next(&mut body).await? else { return Ok(first) };
    let mut whole = BytesMut::with_capacity(announced.max(first.len() + second.len()));
    whole.extend_from_slice(&first);
    let mut piece = Some(second);
    while let Some(bytes) = piece {
        if whole.len() + bytes.len() > max_bytes {
            return Err(too_large(max_bytes));
        }
        whole.extend_from_slice(&bytes);
        piece = next(&mut body).await?;
    }
    Ok(whole.freeze())
}

/// The next piece; trailers carry nothing for us.
async fn next(body: &mut Body) -> Result<Option<Bytes>, Error> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Error::invalid("the body ended before it was complete"))?;
        if let Ok(bytes) = frame.into_data() {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}

fn too_large(max_bytes: usize) -> Error {
    Error::new(ErrorKind::TooLarge, format!("the body is larger than the {max_bytes} bytes that are allowed"))
}
