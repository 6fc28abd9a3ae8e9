//! The names in a path.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use crate::error::Error;

/// As axum's extractor of this name, but refused in the protocol's form, and without the names of our own code.
pub(super) struct Path<T>(pub T);

impl<T, S> FromRequestParts<S> for Path<T>
where
    T: DeserializeOwned + Send,
    S: Send + Sync,
{
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let found = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        // The routes have the parts that handlers ask for, and any text is one.
        let found = found.map_err(|_| Error::invalid("the path is not UTF-8 behind its percent signs"))?;
        Ok(Self(found.0))
    }
}
