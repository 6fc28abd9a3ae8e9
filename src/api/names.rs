//! Names and labels of what Ortolan makes.

use std::collections::BTreeMap;

/// The field manager and the value of `app.kubernetes.io/managed-by`.
pub const MANAGER: &str = "ortolan";
/// Label: whose it is.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Label: the ModelDeployment's name.
pub const MODEL: &str = "ortolan.dev/model";
/// Label: the variant's name.
pub const VARIANT: &str = "ortolan.dev/variant";
/// Label: the revision's hash.
pub const REVISION: &str = "ortolan.dev/revision";
/// The variant of a ModelDeployment that has only one.
pub const DEFAULT_VARIANT: &str = "default";
/// The model container's name in its pod.
pub const CONTAINER: &str = "server";

/// The name of a revision's ControllerRevision.
pub fn controller_revision(model: &str, revision: &str) -> String {
    format!("{model}-{revision}")
}

/// The name of a revision's Deployment.
pub fn deployment(model: &str, variant: &str, revision: &str) -> String {
    format!("{model}-{variant}-{revision}")
}

/// The name of a model's NetworkPolicy: not just the model's, which a NetworkPolicy of the user's own may well have.
pub fn network_policy(model: &str) -> String {
    format!("{model}-servers")
}

/// The name of the ConfigMap with a revision's digest.
pub fn lock(model: &str, revision: &str) -> String {
    format!("{model}-{revision}-lock")
}

/// The labels of everything that belongs to a model.
pub fn model_labels(model: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(MANAGED_BY.to_owned(), MANAGER.to_owned()), (MODEL.to_owned(), model.to_owned())])
}

/// The labels of everything that belongs to one revision of a model's variant.
pub fn revision_labels(model: &str, variant: &str, revision: &str) -> BTreeMap<String, String> {
    let mut labels = model_labels(model);
    labels.insert(VARIANT.to_owned(), variant.to_owned());
    labels.insert(REVISION.to_owned(), revision.to_owned());
    labels
}

/// The selector of all pods of a model, as text.
pub fn selector(model: &str) -> String {
    format!("{MODEL}={model}")
}
