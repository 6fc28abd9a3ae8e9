//! What a request to the API server asks for, read from its method and path.

use std::fmt;

use hyper::{Method, Uri};

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `list`, `watch`, `get`, `create`, `patch`, `update` or `delete`.
    pub verb: &'static str,
    /// The plural name of the kind, with its subresource: `modeldeployments/status`. The path for what is no resource.
    pub resource: String,
    /// The name of the object, where it is about one.
    pub name: Option<String>,
    /// The path and query under which the request goes to the API server.
    pub target: String,
}

impl Call {
    /// Reads a request. One about all namespaces becomes one about `namespace`, so that every operator under test sees
    /// a world of its own and many can be tried at once.
    pub fn of(method: &Method, uri: &Uri, namespace: &str) -> Self {
        let path = uri.path();
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let prefix = match parts.first() {
            Some(&"api") => 2,
            Some(&"apis") => 3,
            _ => parts.len(),
        };
        let (group, rest) = parts.split_at(prefix.min(parts.len()));
        let (scope, rest) = match rest {
            ["namespaces", name, rest @ ..] if !rest.is_empty() => (Some(*name), rest),
            rest => (None, rest),
        };
        let resource = match rest {
            [resource, _, subresource, ..] => format!("{resource}/{subresource}"),
            [resource, ..] => (*resource).to_owned(),
            [] => path.to_owned(),
        };
        let name = rest.get(1).map(|name| (*name).to_owned());
        let query = uri.query().unwrap_or_default();
        let watching = query.split('&').any(|part| part == "watch=true" || part == "watch=1");
        let verb = match (method.as_str(), &name) {
            ("GET" | "HEAD", _) if watching => "watch",
            ("GET" | "HEAD", None) if !rest.is_empty() => "list",
            ("GET" | "HEAD", _) => "get",
            ("POST", _) => "create",
            ("PATCH", _) => "patch",
            ("DELETE", _) => "delete",
            _ => "update",
        };
        let everywhere = scope.is_none() && name.is_none() && matches!(verb, "list" | "watch");
        let path = if everywhere && !rest.is_empty() {
            format!("/{}/namespaces/{namespace}/{}", group.join("/"), rest.join("/"))
        } else {
            path.to_owned()
        };
        let target = if query.is_empty() { path } else { format!("{path}?{query}") };
        Self { verb, resource, name, target }
    }

    /// Whether it changes something. The operator's Lease is no part of what is tried here.
    pub fn is_write(&self) -> bool {
        !matches!(self.verb, "list" | "watch" | "get") && self.resource != "leases"
    }

    /// Whether it is a watch, or the list that one begins with: they come in pages, which nothing else asks for.
    pub fn is_watching(&self) -> bool {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        self.verb == "watch" || (self.verb == "list" && query.split('&').any(|part| part.starts_with("limit=")))
    }

    /// The plural name of the kind without its subresource.
    pub fn kind(&self) -> &str {
        self.resource.split('/').next().unwrap_or_default()
    }
}

impl fmt::Display for Call {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {} {}", self.verb, self.resource, self.name.as_deref().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(method: &Method, uri: &str) -> Call {
        Call::of(method, &uri.parse().unwrap(), "mine")
    }

    #[test]
    fn what_is_about_all_namespaces_becomes_one() {
        let list = call(&Method::GET, "/api/v1/pods?limit=500");
        assert_eq!((list.verb, list.target.as_str()), ("list", "/api/v1/namespaces/mine/pods?limit=500"));
        let watch = call(&Method::GET, "/apis/apps/v1/deployments?watch=true&resourceVersion=1");
        assert_eq!(watch.verb, "watch");
        assert!(list.is_watching() && watch.is_watching());
        assert!(!call(&Method::GET, "/apis/apps/v1/namespaces/mine/deployments?labelSelector=a").is_watching());
        assert_eq!(watch.target, "/apis/apps/v1/namespaces/mine/deployments?watch=true&resourceVersion=1");
    }

    #[test]
    fn writes_are_told_from_reads() {
        let status =
            call(&Method::PATCH, "/apis/ortolan.dev/v1alpha1/namespaces/mine/modeldeployments/m/status?force=1");
        assert_eq!((status.resource.as_str(), status.kind()), ("modeldeployments/status", "modeldeployments"));
        assert!(status.is_write());
        assert_eq!(status.target, "/apis/ortolan.dev/v1alpha1/namespaces/mine/modeldeployments/m/status?force=1");
        let event = call(&Method::POST, "/apis/events.k8s.io/v1/namespaces/mine/events");
        assert_eq!((event.verb, event.name.as_deref()), ("create", None));
        assert!(!call(&Method::GET, "/apis/apps/v1/namespaces/mine/deployments/m").is_write());
        assert!(!call(&Method::PATCH, "/apis/coordination.k8s.io/v1/namespaces/x/leases/l").is_write());
    }

    #[test]
    fn what_is_no_resource_stays_as_it_is() {
        assert_eq!(call(&Method::GET, "/version").target, "/version");
    }
}
