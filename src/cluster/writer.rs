//! Writes to the API server, each under the field manager `ortolan` and only when something differs.

use std::fmt::Debug;

use k8s_openapi::{NamespaceResourceScope, api::apps::v1::Deployment};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use super::{differs::first_difference, events::Publisher};
use crate::{
    api::{
        ModelDeployment, ModelDeploymentStatus, names,
        validated::{DesiredModel, hex},
    },
    metrics::Metrics,
    status::events::Note,
};

/// A write that did not happen.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The API server refused it or could not be reached.
    #[error("cannot {verb} {kind} {name}: {source}")]
    Api {
        /// What was tried.
        verb: &'static str,
        /// The kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// The API server's answer.
        #[source]
        source: Box<kube::Error>,
    },
    /// An object of this name exists and is not ours.
    #[error("{kind} {name} exists and belongs to someone else: delete or rename it, or rename the ModelDeployment")]
    Foreign {
        /// The kind of the object.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The object could not be written as JSON.
    #[error("cannot serialize {kind}: {source}")]
    Serialize {
        /// The kind of the object.
        kind: String,
        /// What serde said.
        #[source]
        source: serde_json::Error,
    },
}

impl WriteError {
    /// The class of the error, for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Api { .. } => "api",
            Self::Foreign { .. } => "foreign_object",
            Self::Serialize { .. } => "serialize",
        }
    }
}

/// What became of an object that was to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was as it should be.
    Unchanged,
    /// It was made or changed.
    Written,
    /// Somebody had changed it: the place, now as it should be again.
    PutBack(String),
}

/// Writes to one cluster.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    events: Publisher,
    metrics: Metrics,
}

/// Holds the hash of what was last applied: a live object with the right hash and the wrong content was edited by hand.
const RENDERED: &str = "ortolan.dev/rendered";

impl Writer {
    /// A writer whose Events come from `instance`.
    pub fn new(client: Client, instance: Option<String>, metrics: Metrics) -> Self {
        let events = Publisher::new(client.clone(), instance);
        Self { client, events, metrics }
    }

    /// Makes `live` what `rendered` says, unless it is so already.
    pub async fn apply<K>(&self, model: &DesiredModel, mut rendered: K, live: Option<&K>) -> Result<Outcome, WriteError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
    {
        let kind = K::kind(&()).into_owned();
        let name = format!("{}/{}", model.namespace, rendered.name_any());
        let to_json = |object: &K| {
            serde_json::to_value(object).map_err(|source| WriteError::Serialize { kind: kind.clone(), source })
        };
        let hash = fingerprint(&to_json(&rendered)?);
        rendered.annotations_mut().insert(RENDERED.to_owned(), hash.clone());
        let wanted = to_json(&rendered)?;
        let mut outcome = Outcome::Written;
        if let Some(live) = live {
            let Some(place) = first_difference(&wanted, &to_json(live)?) else { return Ok(Outcome::Unchanged) };
            if live.annotations().get(RENDERED) == Some(&hash) {
                outcome = Outcome::PutBack(place);
            }
        }
        let api = Api::<K>::namespaced(self.client.clone(), &model.namespace);
        let failed = |verb| {
            let (kind, name) = (kind.clone(), name.clone());
            move |source| WriteError::Api { verb, kind, name, source: Box::new(source) }
        };
        if live.is_none() {
            // Not in the cache: new, or somebody else's, which a forced apply would take over.
            let existing = api.get_metadata_opt(&rendered.name_any()).await.map_err(failed("look for"))?;
            if existing.is_some_and(|found| !found.owner_references().iter().any(|owner| owner.uid == model.uid)) {
                return Err(WriteError::Foreign { kind, name });
            }
        }
        let parameters = PatchParams::apply(names::MANAGER).force();
        api.patch(&rendered.name_any(), &parameters, &Patch::Apply(&rendered)).await.map_err(failed("apply"))?;
        self.metrics.written(&kind);
        tracing::info!(kind, name, ?outcome, "applied");
        Ok(outcome)
    }

    /// Sets the number of servers of a Deployment and nothing else of it.
    pub async fn resize(&self, live: &Deployment, replicas: u32) -> Result<Outcome, WriteError> {
        let asked = live.spec.as_ref().and_then(|spec| spec.replicas);
        if asked.and_then(|asked| u32::try_from(asked).ok()) == Some(replicas) {
            return Ok(Outcome::Unchanged);
        }
        let (namespace, name) = (live.namespace().unwrap_or_default(), live.name_any());
        let patch = json!({"metadata": {"uid": live.uid()}, "spec": {"replicas": replicas}});
        let parameters = PatchParams { field_manager: Some(names::MANAGER.to_owned()), ..PatchParams::default() };
        let api = Api::<Deployment>::namespaced(self.client.clone(), &namespace);
        api.patch(&name, &parameters, &Patch::Merge(&patch)).await.map_err(|source| WriteError::Api {
            verb: "resize",
            kind: "Deployment".to_owned(),
            name: format!("{namespace}/{name}"),
            source: Box::new(source),
        })?;
        self.metrics.written("Deployment");
        tracing::info!(namespace, name, replicas, "resized");
        Ok(Outcome::Written)
    }

    /// Deletes a child together with what it owns; one that is gone already is fine.
    pub async fn delete<K>(&self, child: &K) -> Result<(), WriteError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
    {
        let (kind, namespace, name) =
            (K::kind(&()).into_owned(), child.namespace().unwrap_or_default(), child.name_any());
        let parameters = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            // Never another object that has taken the name since.
            preconditions: Some(Preconditions { uid: child.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        match Api::<K>::namespaced(self.client.clone(), &namespace).delete(&name, &parameters).await {
            Ok(_) => {
                self.metrics.written(&kind);
                tracing::info!(kind, namespace, name, "deleted");
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
            Err(source) => {
                let name = format!("{namespace}/{name}");
                Err(WriteError::Api { verb: "delete", kind, name, source: Box::new(source) })
            }
        }
    }

    /// Writes the status.
    pub async fn status(&self, object: &ModelDeployment, status: &ModelDeploymentStatus) -> Result<(), WriteError> {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let api = Api::<ModelDeployment>::namespaced(self.client.clone(), &namespace);
        let patch = json!({
            "apiVersion": ModelDeployment::api_version(&()), "kind": ModelDeployment::kind(&()),
            // A status for an object that was deleted and made anew is refused.
            "metadata": {"name": name, "uid": object.uid()},
            "status": status,
        });
        let parameters = PatchParams::apply("ortolan-status").force();
        api.patch_status(&name, &parameters, &Patch::Apply(&patch)).await.map_err(|source| WriteError::Api {
            verb: "write the status of",
            kind: "ModelDeployment".to_owned(),
            name: format!("{namespace}/{name}"),
            source: Box::new(source),
        })?;
        self.metrics.written("ModelDeploymentStatus");
        Ok(())
    }

    /// Publishes an Event about a model.
    pub async fn publish(&self, object: &ModelDeployment, note: &Note) {
        self.events.publish(object, note).await;
    }
}

/// A short hash of what was rendered.
fn fingerprint(rendered: &serde_json::Value) -> String {
    use sha2::{Digest, Sha256};
    hex(&Sha256::digest(rendered.to_string())[..8])
}
