//! ModelDeployments as the watch cache keeps them: packed, with what the look a second needs beside it.

use std::borrow::Cow;

use kube::{
    Resource,
    core::{DeserializeGuard, ObjectMeta},
};
use serde::{Deserialize, Deserializer};

use super::packed::{Packed, Packer};
use crate::api::{
    ModelDeployment,
    conditions::{READY, SCALING_LIMITED, STALLED},
    validated::{DesiredModel, ScalingGoal},
};

/// All of them are packed alike; the cache of kube gives no place of its own for it.
static PACKER: Packer = Packer::new();

/// Holds the whole object once more.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A ModelDeployment, or an object that cannot be read as one and must not stop the watch.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Name, namespace, UID and versions.
    meta: ObjectMeta,
    packed: Result<Packed, String>,
    /// What is looked at every second; `None` where the object does not say what it must.
    subject: Option<Subject>,
    shown: Shown,
}

/// What the operator's metrics tell of a model: what its status says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Condition `Ready`.
    pub ready: bool,
    /// Condition `Stalled`.
    pub stalled: bool,
    /// Condition `ScalingLimited`.
    pub limited: bool,
    /// Servers that exist.
    pub replicas: u32,
    /// Servers that there should be.
    pub desired: u32,
}

impl Shown {
    fn of(object: &ModelDeployment) -> Self {
        let Some(status) = &object.status else { return Self::default() };
        let holds =
            |type_| status.conditions.iter().any(|condition| condition.type_ == type_ && condition.status == "True");
        Self {
            ready: holds(READY),
            stalled: holds(STALLED),
            limited: holds(SCALING_LIMITED),
            replicas: status.replicas,
            desired: status.scaling.as_ref().map_or(status.replicas, |scaling| scaling.desired),
        }
    }
}

/// What a look needs to know of a model.
#[derive(Clone, Debug)]
pub struct Subject {
    /// `metadata.uid`.
    pub uid: String,
    /// How many servers there should be.
    pub scaling: ScalingGoal,
    /// How many servers `status` says there should be.
    pub previous: Option<u32>,
    /// A candidate that cannot start: neither help on its way nor a rollout to wait for.
    pub hopeless: Option<String>,
}

impl Subject {
    fn of(object: &ModelDeployment) -> Option<Self> {
        let model = DesiredModel::parse(object).ok()?;
        let status = object.status.as_ref();
        Some(Self {
            uid: model.uid,
            scaling: model.scaling,
            previous: status.and_then(|status| Some(status.scaling.as_ref()?.desired)),
            hopeless: status.and_then(|status| {
                let mut conditions = status.conditions.iter();
                let stalled = conditions.any(|condition| condition.type_ == STALLED && condition.status == "True");
                let candidate = status.candidate.as_ref().filter(|_| stalled && status.stable.is_some())?;
                Some(candidate.revision.clone())
            }),
        })
    }
}

impl Watched {
    /// The whole object, or why it cannot be read.
    pub fn object(&self) -> Result<ModelDeployment, String> {
        PACKER.unpack(self.packed.as_ref().map_err(Clone::clone)?).map_err(|error| error.to_string())
    }

    /// What a look needs to know of it; `None` where the object does not say what it must.
    pub fn subject(&self) -> Option<&Subject> {
        self.subject.as_ref()
    }

    /// What the operator's metrics tell of it.
    pub fn shown(&self) -> Shown {
        self.shown
    }
}

impl From<ModelDeployment> for Watched {
    fn from(mut object: ModelDeployment) -> Self {
        object.metadata.managed_fields = None;
        object.metadata.annotations.iter_mut().for_each(|annotations| drop(annotations.remove(LAST_APPLIED)));
        Self {
            meta: short(&object.metadata),
            subject: Subject::of(&object),
            shown: Shown::of(&object),
            packed: PACKER.pack(&object).map_err(|error| error.to_string()),
        }
    }
}

impl<'de> Deserialize<'de> for Watched {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match DeserializeGuard::<ModelDeployment>::deserialize(deserializer)?.0 {
            Ok(object) => object.into(),
            Err(invalid) => Self {
                meta: short(&invalid.metadata),
                packed: Err(invalid.error),
                subject: None,
                shown: Shown::default(),
            },
        })
    }
}

/// What is needed of an object's metadata without unpacking it.
fn short(meta: &ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        deletion_timestamp: meta.deletion_timestamp.clone(),
        ..ObjectMeta::default()
    }
}

impl Resource for Watched {
    type DynamicType = ();
    type Scope = <ModelDeployment as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        ModelDeployment::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        ModelDeployment::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        ModelDeployment::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        ModelDeployment::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(spec: &serde_json::Value) -> serde_json::Value {
        json!({
            "apiVersion": "ortolan.dev/v1alpha1", "kind": "ModelDeployment", "spec": spec,
            "metadata": {"name": "digits", "namespace": "ml", "uid": "0b51", "resourceVersion": "7",
                "annotations": {LAST_APPLIED: "{}", "kept": "yes"}, "managedFields": [{"manager": "kubectl"}]},
            "status": {"conditions": [{"type": "Stalled", "status": "True", "reason": "X", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}], "replicas": 1,
                "stable": {"revision": "a"}, "candidate": {"revision": "b"},
                "scaling": {"desired": 3, "reason": "", "at": "2026-01-01T00:00:00Z"}},
        })
    }

    #[test]
    fn an_object_is_kept_whole_but_for_what_others_note_in_it() {
        let text = object(&json!({"model": {"uri": "file:///m.onnx"}}));
        let watched: Watched = serde_json::from_value(text.clone()).unwrap();
        let mut expected: ModelDeployment = serde_json::from_value(text).unwrap();
        expected.metadata.managed_fields = None;
        expected.metadata.annotations = Some([("kept".to_owned(), "yes".to_owned())].into());
        assert_eq!(serde_json::to_value(watched.object().unwrap()).unwrap(), serde_json::to_value(expected).unwrap());
        let subject = watched.subject().unwrap();
        assert_eq!((subject.previous, subject.hopeless.as_deref()), (Some(3), Some("b")));
        assert_eq!(watched.meta().resource_version.as_deref(), Some("7"));
        assert_eq!(watched.shown(), Shown { stalled: true, replicas: 1, desired: 3, ..Shown::default() });
    }

    #[test]
    fn an_object_of_the_wrong_form_says_why_and_has_its_name() {
        let watched: Watched = serde_json::from_value(object(&json!({"model": 5}))).unwrap();
        assert!(watched.object().unwrap_err().contains("struct Model"), "{:?}", watched.object());
        assert_eq!(watched.meta().name.as_deref(), Some("digits"));
        assert!(watched.subject().is_none());
    }
}
