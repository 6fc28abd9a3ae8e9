//! Reads a request's body.

use std::sync::Arc;

use axum::body::{Body, HttpBody};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_ENCODING;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

use crate::body::{Bounded, Held, UnderWay, too_large};
use crate::error::{Error, ErrorKind};

/// The whole body, of at most `max_bytes` (unpacked, where it came compressed), and what must be kept as long as it. A body that comes in one piece is not
/// copied.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Body,
    max_bytes: usize,
    under_way: &Arc<UnderWay>,
) -> Result<(Bytes, Held), Error> {
    if let Some(encoding) =
        headers.get(CONTENT_ENCODING).filter(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
    {
        let encoding = String::from_utf8_lossy(encoding.as_bytes());
        return Err(Error::new(
            ErrorKind::UnsupportedEncoding,
            format!("bodies encoded with '{}' are not read; send gzip, deflate, or none", encoding.escape_debug()),
        ));
    }
    if body.size_hint().lower() > max_bytes as u64 {
        return Err(too_large(max_bytes));
    }
    let mut body = Bounded::new(body, under_way, 0);
    let bytes = collect(&mut body).await?;
    Ok((bytes, body.into_held()))
}

async fn collect(body: &mut Bounded) -> Result<Bytes, Error> {
    // Never more than the limit: the size was checked.
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(0);
    let Some(first) = next(body).await? else { return Ok(Bytes::new()) };
    let Some(second) = next(body).await? else { return Ok(first) };
    let mut whole = BytesMut::with_capacity(announced.max(first.len() + second.len()));
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&second);
    while let Some(bytes) = next(body).await? {
        whole.extend_from_slice(&bytes);
    }
    Ok(whole.freeze())
}

/// The next piece; trailers carry nothing for us.
async fn next(body: &mut Bounded) -> Result<Option<Bytes>, Error> {
    while let Some(frame) = body.frame().await {
        if let Ok(bytes) = frame?.into_data() {
            return Ok(Some(bytes));
        }
    }
    Ok(None)
}
