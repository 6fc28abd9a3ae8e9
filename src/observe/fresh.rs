//! Reads past the watch caches: what the API server has agreed on, never something older.
//!
//! A watch cache may be behind, for a moment or, after a restart next to a lagging API server, for long. That is no harm
//! as long as servers are added by it; before any are taken away, what is there is read here.

use std::{collections::BTreeMap, sync::Arc};

use kube::{Api, Client, Resource, ResourceExt, api::ListParams, core::NamespaceResourceScope};
use serde::de::DeserializeOwned;

use super::seen::Seen;
use crate::api::{ModelDeployment, names};

/// A read that did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {what} anew: {source}")]
pub struct ReadError {
    /// What was to be read.
    what: String,
    /// The API server's answer.
    #[source]
    source: Box<kube::Error>,
}

/// A model and its children.
pub struct Fresh {
    /// The object.
    pub object: ModelDeployment,
    /// Its children.
    pub seen: Seen,
}

/// The object as it is now; `None` when it is gone or another one of its name.
pub async fn object(client: &Client, known: &ModelDeployment) -> Result<Option<ModelDeployment>, ReadError> {
    let (namespace, name) = (known.namespace().unwrap_or_default(), known.name_any());
    let found = Api::<ModelDeployment>::namespaced(client.clone(), &namespace).get_opt(&name).await;
    let found = found
        .map_err(|source| ReadError { what: format!("ModelDeployment {namespace}/{name}"), source: source.into() })?;
    Ok(found.filter(|found| found.uid() == known.uid() && found.metadata.deletion_timestamp.is_none()))
}

/// The object and its children as they are now; `None` when it is gone or another one of its name.
pub async fn read(client: &Client, known: &ModelDeployment) -> Result<Option<Fresh>, ReadError> {
    let Some(object) = object(client, known).await? else { return Ok(None) };
    let (revisions, deployments, locks, services, budgets, policies, pods) = tokio::try_join!(
        children(client, &object),
        children(client, &object),
        children(client, &object),
        children(client, &object),
        children(client, &object),
        children(client, &object),
        children(client, &object),
    )?;
    let mine = object.uid().unwrap_or_default();
    let seen = Seen {
        revisions: by_revision(owned(&mine, revisions)),
        deployments: by_revision(owned(&mine, deployments)),
        locks: by_revision(owned(&mine, locks)),
        service: owned(&mine, services).into_iter().next(),
        budget: owned(&mine, budgets).into_iter().next(),
        policy: owned(&mine, policies).into_iter().next(),
        pods: pods.into_iter().map(Arc::new).collect(),
        strays: Vec::new(),
    };
    Ok(Some(Fresh { object, seen: seen.with_own_pods() }))
}

async fn children<K>(client: &Client, model: &ModelDeployment) -> Result<Vec<K>, ReadError>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let namespace = model.namespace().unwrap_or_default();
    let ours = format!("{}={},{}", names::MANAGED_BY, names::MANAGER, names::selector(&model.name_any()));
    // No version is asked for: the answer is as new as the question.
    let list = Api::<K>::namespaced(client.clone(), &namespace).list(&ListParams::default().labels(&ours)).await;
    let list = list.map_err(|source| ReadError {
        what: format!("the {} in {namespace}", K::plural(&())),
        source: source.into(),
    })?;
    Ok(list.items)
}

fn owned<K: Resource>(owner: &str, children: Vec<K>) -> Vec<Arc<K>> {
    let mine = |child: &K| child.owner_references().iter().any(|reference| reference.uid == owner);
    children.into_iter().filter(mine).map(Arc::new).collect()
}

fn by_revision<K: Resource>(children: Vec<Arc<K>>) -> BTreeMap<String, Arc<K>> {
    let revision = |child: &Arc<K>| child.labels().get(names::REVISION).cloned();
    children.into_iter().filter_map(|child| Some((revision(&child)?, child))).collect()
}
