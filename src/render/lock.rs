//! The digest lock of a revision: a ConfigMap with the digest that its first server found.
//!
//! Each later server reads it at its start and refuses other bytes. It cannot be changed (`immutable`), only deleted, and
//! goes with its revision.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;

use super::metadata;
use crate::api::{names, validated::DesiredModel};

/// The key, and so the file's name in the pod.
pub(super) const KEY: &str = "sha256";

/// The lock of `revision`; `digest`: 64 hexadecimal digits.
pub fn lock(model: &DesiredModel, revision: &str, digest: &str) -> ConfigMap {
    let labels = names::revision_labels(&model.name, names::DEFAULT_VARIANT, revision);
    ConfigMap {
        metadata: metadata(model, names::lock(&model.name, revision), labels),
        immutable: Some(true),
        data: Some(BTreeMap::from([(KEY.to_owned(), digest.to_owned())])),
        binary_data: None,
    }
}

/// The digest in a lock.
pub fn locked(lock: &ConfigMap) -> Option<&str> {
    lock.data.as_ref()?.get(KEY).map(String::as_str)
}
