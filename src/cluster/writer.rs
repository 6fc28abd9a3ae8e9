//! Writes to the API server, each under the field manager `ortolan` and only when something differs.

use std::fmt::Debug;

use k8s_openapi::{
    NamespaceResourceScope, api::apps::v1::Deployment, apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use super::{differs::first_difference, ending::is_ending, events::Publisher, patience::Unanswered};
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
    /// The API server did not answer; it may carry the write out all the same.
    #[error("cannot {verb} {kind} {name}: the API server did not answer within {seconds} s")]
    Unanswered {
        /// What was tried.
        verb: &'static str,
        /// The kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// How long the answer was waited for.
        seconds: u64,
    },
    /// The object is not the one, or not in the state, that this write was decided for.
    #[error("cannot {verb} {kind} {name}: it was changed by someone else again and again in the meantime")]
    Behind {
        /// What was tried.
        verb: &'static str,
        /// The kind of the object.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The model is gone, or its namespace is going: nothing can be written, and nothing need be.
    #[error("cannot {verb} {kind} {name}: it is gone, or its namespace is being deleted")]
    Ending {
        /// What was tried.
        verb: &'static str,
        /// The kind of the object.
        kind: String,
        /// Its name.
        name: String,
    },
    /// An object of this name is left of a deleted ModelDeployment of the same name.
    #[error(
        "{kind} {name} is still there from a deleted ModelDeployment of the same name; as soon as the cluster's garbage collector has removed it, it is made anew"
    )]
    Leftover {
        /// The kind of the object.
        kind: String,
        /// Its name.
        name: String,
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
            Self::Unanswered { .. } => "unanswered",
            Self::Behind { .. } => "conflict",
            Self::Ending { .. } => "ending",
            Self::Leftover { .. } => "leftover",
            Self::Foreign { .. } => "foreign_object",
            Self::Serialize { .. } => "serialize",
        }
    }

    /// Whether it is better to leave the API server alone for a growing while: it is in trouble, or others write the same
    /// objects again and again. The seconds for which it wants to be left alone, zero where it did not say.
    pub fn overload(&self) -> Option<u32> {
        match self {
            Self::Unanswered { .. } | Self::Behind { .. } => Some(0),
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) if status.code == 429 || status.code >= 500 => {
                    Some(status.details.as_ref().map_or(0, |details| details.retry_after_seconds))
                }
                kube::Error::Api(_) => None,
                _ => Some(0),
            },
            _ => None,
        }
    }
}

/// What is being written, for errors.
struct Attempt<'a> {
    verb: &'static str,
    kind: &'a str,
    name: &'a str,
}

impl Attempt<'_> {
    /// Waits for the answer, and says what it means.
    async fn answer<T>(&self, call: impl Future<Output = kube::Result<T>>) -> Result<T, WriteError> {
        let (verb, kind, name) = (self.verb, self.kind.to_owned(), self.name.to_owned());
        call.await.map_err(|error| match (Unanswered::of(&error), &error) {
            (Some(time), _) => WriteError::Unanswered { verb, kind, name, seconds: time.as_secs() },
            (None, kube::Error::Api(status)) if status.is_conflict() => WriteError::Behind { verb, kind, name },
            (None, kube::Error::Api(status)) if is_ending(status) => WriteError::Ending { verb, kind, name },
            _ => WriteError::Api { verb, kind, name, source: Box::new(error) },
        })
    }

    /// What an error means for an object that is written only while it is there.
    fn of_what_is_gone(&self, error: WriteError) -> WriteError {
        match &error {
            WriteError::Api { source, .. } if is_gone(source) => {
                WriteError::Ending { verb: self.verb, kind: self.kind.to_owned(), name: self.name.to_owned() }
            }
            _ => error,
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
        if let Some(live) = live {
            // Only over what this was decided for: neither a newer state nor another object of this name.
            rendered.meta_mut().uid = live.uid();
            rendered.meta_mut().resource_version = live.resource_version();
        } else {
            // Not in the cache: new, or not seen yet, or somebody else's, which a forced apply would take over.
            let attempt = Attempt { verb: "look for", kind: &kind, name: &name };
            let existing = attempt.answer(api.get_metadata_opt(&rendered.name_any())).await?;
            existing.map_or(Ok(()), |found| Err(in_the_way(model, &found, &attempt)))?;
        }
        let parameters = PatchParams::apply(names::MANAGER).force();
        let patch = Patch::Apply(&rendered);
        let attempt = Attempt { verb: "apply", kind: &kind, name: &name };
        attempt.answer(api.patch(&rendered.name_any(), &parameters, &patch)).await?;
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
        let seen = json!({"uid": live.uid(), "resourceVersion": live.resource_version()});
        let patch = json!({"metadata": seen, "spec": {"replicas": replicas}});
        let parameters = PatchParams { field_manager: Some(names::MANAGER.to_owned()), ..PatchParams::default() };
        let api = Api::<Deployment>::namespaced(self.client.clone(), &namespace);
        let attempt = Attempt { verb: "resize", kind: "Deployment", name: &format!("{namespace}/{name}") };
        attempt.answer(api.patch(&name, &parameters, &Patch::Merge(&patch))).await?;
        self.metrics.written("Deployment");
        tracing::info!(namespace, name, replicas, "resized");
        Ok(Outcome::Written)
    }

    /// Deletes a child together with what it owns; one that is gone already is fine. Only for what was read past the
    /// caches: another state of it, as after every pod that became ready, is deleted as well.
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
        let api = Api::<K>::namespaced(self.client.clone(), &namespace);
        let attempt = Attempt { verb: "delete", kind: &kind, name: &format!("{namespace}/{name}") };
        match attempt.answer(api.delete(&name, &parameters)).await {
            Ok(_) => {
                self.metrics.written(&kind);
                tracing::info!(kind, namespace, name, "deleted");
                Ok(())
            }
            Err(WriteError::Api { source, .. }) if is_gone(&source) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Writes the status over `version` of the object, and over no other: what it tells (how many servers there should
    /// be, which revision is stable) was worked out from that one. The version that this makes.
    pub async fn status(
        &self,
        object: &ModelDeployment,
        version: Option<&str>,
        status: &ModelDeploymentStatus,
    ) -> Result<Option<String>, WriteError> {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let api = Api::<ModelDeployment>::namespaced(self.client.clone(), &namespace);
        let patch = json!({
            "apiVersion": ModelDeployment::api_version(&()), "kind": ModelDeployment::kind(&()),
            // A status for an object that was deleted and made anew is refused.
            "metadata": {"name": name, "uid": object.uid(), "resourceVersion": version},
            "status": status,
        });
        let parameters = PatchParams::apply("ortolan-status").force();
        let name_in_words = format!("{namespace}/{name}");
        let attempt = Attempt { verb: "write the status of", kind: "ModelDeployment", name: &name_in_words };
        let written = attempt.answer(api.patch_status(&name, &parameters, &Patch::Apply(&patch))).await;
        let written = written.map_err(|error| attempt.of_what_is_gone(error))?;
        self.metrics.written("ModelDeploymentStatus");
        Ok(written.resource_version())
    }

    /// Publishes an Event about a model.
    pub async fn publish(&self, object: &ModelDeployment, note: &Note) {
        self.events.publish(object, note).await;
    }
}

fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}

/// Why an object that is not in the cache cannot be made.
fn in_the_way<K: Resource>(model: &DesiredModel, found: &K, attempt: &Attempt<'_>) -> WriteError {
    let (kind, name) = (attempt.kind.to_owned(), attempt.name.to_owned());
    let owners = found.owner_references();
    let same_name = |owner: &OwnerReference| owner.kind == model.owner.kind && owner.name == model.owner.name;
    if owners.iter().any(|owner| owner.uid == model.uid) {
        WriteError::Behind { verb: "make", kind, name }
    } else if owners.iter().any(same_name) {
        WriteError::Leftover { kind, name }
    } else {
        WriteError::Foreign { kind, name }
    }
}

/// A short hash of what was rendered.
fn fingerprint(rendered: &serde_json::Value) -> String {
    use sha2::{Digest, Sha256};
    hex(&Sha256::digest(rendered.to_string())[..8])
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;
    use crate::cluster::ending::tests::answers;

    #[tokio::test]
    async fn what_an_answer_means_is_known() {
        let attempt = Attempt { verb: "apply", kind: "Service", name: "ml/m" };
        let [ending, nowhere, forbidden, gone] = answers().map(|(status, _)| status);
        let conflict = Status { code: 409, reason: "Conflict".to_owned(), ..forbidden.clone() };
        let answers = [ending, nowhere, forbidden, gone, conflict];
        let mut errors = Vec::new();
        for status in answers {
            errors.push(attempt.answer(async { Err::<(), _>(kube::Error::Api(status.boxed())) }).await.unwrap_err());
        }
        let kinds: Vec<_> = errors.iter().map(WriteError::kind).collect();
        assert_eq!(kinds, ["ending", "ending", "api", "api", "conflict"]);
        assert_eq!(errors[4].overload(), Some(0), "who is always late rests");
        let gone = attempt.of_what_is_gone(errors.swap_remove(3));
        assert_eq!(gone.kind(), "ending", "a status is written only while its object is there");
    }
}
