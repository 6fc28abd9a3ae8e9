//! A namespace that is being deleted, as the API server tells of it.

use kube::core::Status;

/// Whether a refusal is about a namespace that is being deleted, or is gone.
pub(super) fn is_ending(status: &Status) -> bool {
    let Some(details) = &status.details else { return false };
    let ending = details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating");
    (status.is_forbidden() && ending) || (status.is_not_found() && details.kind == "namespaces")
}

#[cfg(test)]
pub(in crate::cluster) mod tests {
    use super::*;

    /// What an API server (1.35) answers to an apply where the namespace is being deleted, where there is none, where a
    /// right is missing, and to a status of an object that is gone.
    pub(in crate::cluster) fn answers() -> [(Status, bool); 4] {
        [
        (
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"services \"m\" is forbidden:
            unable to create new content in namespace ending because it is being terminated","reason":"Forbidden",
            "details":{"name":"m","kind":"services","causes":[{"reason":"NamespaceTerminating",
            "message":"namespace ending is being terminated","field":"metadata.namespace"}]},"code":403}"#,
            true,
        ),
        (
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"namespaces \"nowhere\" not
            found","reason":"NotFound","details":{"name":"nowhere","kind":"namespaces"},"code":404}"#,
            true,
        ),
        (
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"services \"m\" is forbidden:
            User \"x\" cannot patch resource \"services\" in API group \"\" in the namespace \"ml\"",
            "reason":"Forbidden","details":{"name":"m","kind":"services"},"code":403}"#,
            false,
        ),
        (
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure",
            "message":"modeldeployments.ortolan.dev \"m\" not found","reason":"NotFound",
            "details":{"name":"m","group":"ortolan.dev","kind":"modeldeployments"},"code":404}"#,
            false,
        ),
        ]
        .map(|(text, is_ending)| (serde_json::from_str(&text.replace('\n', " ")).unwrap(), is_ending))
    }

    #[test]
    fn a_namespace_that_is_being_deleted_is_told_from_a_refusal() {
        for (status, ending) in answers() {
            assert_eq!(is_ending(&status), ending, "{}", status.message);
        }
    }
}
