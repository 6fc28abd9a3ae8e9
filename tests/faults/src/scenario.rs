//! What users do with a model.

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use ortolan::api::ModelDeployment;
use serde_json::json;

/// The name of the model in every scenario.
pub const MODEL: &str = "m";
/// What the servers, as far as there are any, tell of their model.
const DIGEST: &str = "5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f5f";

/// One thing that a user does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Makes the model with this many servers, of which the first finds out the digest.
    Create(u32),
    /// Makes it with a digest in its spec.
    CreatePinned(u32),
    /// Changes what its pods run.
    Update,
    /// Has them speak TLS.
    Encrypt,
    /// Asks for this many servers.
    Scale(u32),
    /// Deletes it.
    Delete,
    /// Deletes it and makes one of the same name at once, with this many servers.
    Recreate(u32),
}

/// Acts, each begun when the one before has come to its end.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// In one word.
    pub name: &'static str,
    /// What has come to its end before anything goes wrong.
    pub base: &'static [Act],
    /// What things go wrong during.
    pub acts: &'static [Act],
    /// Servers that are to be ready all the time during `acts`.
    pub floor: usize,
}

/// All scenarios.
pub const SCENARIOS: &[Scenario] = &[
    Scenario { name: "create", base: &[], acts: &[Act::Create(2)], floor: 0 },
    Scenario { name: "pinned", base: &[], acts: &[Act::CreatePinned(1)], floor: 0 },
    Scenario { name: "update", base: &[Act::Create(2)], acts: &[Act::Update], floor: 2 },
    // Another kind of server: the Service has the ports of both until the last pod of the old kind is gone.
    Scenario { name: "tls", base: &[Act::Create(2)], acts: &[Act::Encrypt], floor: 2 },
    Scenario { name: "scale", base: &[Act::Create(1)], acts: &[Act::Scale(3), Act::Scale(1)], floor: 1 },
    Scenario { name: "delete", base: &[Act::Create(1)], acts: &[Act::Delete], floor: 0 },
    Scenario { name: "recreate", base: &[Act::Create(1)], acts: &[Act::Recreate(2)], floor: 0 },
];

/// Makes a namespace.
pub async fn prepare(client: &Client, namespace: &str) -> kube::Result<()> {
    let metadata = ObjectMeta { name: Some(namespace.to_owned()), ..ObjectMeta::default() };
    let made = Namespace { metadata, ..Namespace::default() };
    Api::all(client.clone()).create(&PostParams::default(), &made).await.map(drop)
}

/// Takes a namespace away, without waiting.
pub async fn clear(client: &Client, namespace: &str) {
    // One that is gone already is fine, and the cluster goes away at the end anyway.
    let _ = Api::<Namespace>::all(client.clone()).delete(namespace, &DeleteParams::default()).await;
}

impl Act {
    /// Does it: the UID and generation of the model that there is now, if there is one.
    pub async fn perform(self, client: &Client, namespace: &str) -> kube::Result<Option<(String, i64)>> {
        let models = Api::<ModelDeployment>::namespaced(client.clone(), namespace);
        let merge = |patch: serde_json::Value| {
            let models = models.clone();
            async move { models.patch(MODEL, &PatchParams::default(), &Patch::Merge(patch)).await.map(identity) }
        };
        match self {
            Self::Create(servers) => create(&models, servers, None).await,
            Self::CreatePinned(servers) => create(&models, servers, Some(DIGEST)).await,
            Self::Update => merge(json!({"spec": {"server": {"batching": {"maxSize": 16}}}})).await,
            Self::Encrypt => merge(json!({"spec": {"server": {"tls": {"certificateSecret": "web"}}}})).await,
            Self::Scale(servers) => merge(json!({"spec": {"replicas": servers}})).await,
            Self::Delete => models.delete(MODEL, &DeleteParams::background()).await.map(|_| None),
            Self::Recreate(servers) => {
                models.delete(MODEL, &DeleteParams::background()).await?;
                create(&models, servers, None).await
            }
        }
    }
}

fn identity(model: ModelDeployment) -> Option<(String, i64)> {
    Some((model.metadata.uid?, model.metadata.generation?))
}

async fn create(
    models: &Api<ModelDeployment>,
    servers: u32,
    digest: Option<&str>,
) -> kube::Result<Option<(String, i64)>> {
    let spec = json!({
        "apiVersion": "ortolan.dev/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": MODEL},
        "spec": {
            "model": {"uri": "configmap://digits/digits.onnx", "sha256": digest}, "replicas": servers,
            "server": {"threads": 1, "batching": {"maxSize": 8}},
        },
    });
    let model = serde_json::from_value(spec).map_err(kube::Error::SerdeError)?;
    models.create(&PostParams::default(), &model).await.map(identity)
}
