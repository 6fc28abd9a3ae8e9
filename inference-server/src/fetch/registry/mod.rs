//! A model in an OCI registry: `oci://`.
//!
//! What is named is a manifest, and its digest is the model's: it is what `oras` and `crane` print, it binds every byte of the
//! layers, and a revision that is bound to it is asked for by it, so a tag may move without harm. The client is our own, since none
//! keeps to the addresses that a model may come from ([`super::address`]).

mod client;
mod kept;
mod manifest;
mod reference;

use std::collections::BTreeMap;

use ortolan_protocol::failure::{Failure, FailureReason};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::archive::{self, Kind};
use super::download::store;
use super::file::Content;
use super::package::Package;
use super::{Digest, Fetched, Wanted, cache, failure, hex, http, too_large};
use crate::inside::Inside;
use client::Conversation;
use manifest::{ACCEPT, Descriptor, Layers, Manifest, unusable};
pub use reference::Reference;

/// What messages call it.
const ARTIFACT: &str = "artifact";

/// Brings a model into the cache folder.
pub(super) async fn fetch(reference: &Reference, wanted: &Wanted<'_>) -> Result<Fetched, Failure> {
    cache::create(wanted.cache)?;
    if let Some(fetched) = kept::find(wanted) {
        wanted.found(&fetched.digest)?;
        return Ok(fetched);
    }
    wanted.retries.again(|| attempt(reference, wanted)).await
}

async fn attempt(reference: &Reference, wanted: &Wanted<'_>) -> Result<Fetched, Failure> {
    let conversation = Conversation::new(reference, wanted.access)?;
    let resolved = resolve(&conversation, reference, &wanted.digest).await?;
    wanted.found(&resolved.digest)?;
    let folder = cache::part(wanted.cache)?;
    let pull = Pull { conversation, folder: &folder, resolved: &resolved, wanted };
    let fetched = match resolved.manifest.model()? {
        Layers::Files { model, others } => pull.files(model, others).await?,
        Layers::Archives(archives) => pull.archives(&archives).await?,
    };
    Ok(Fetched { digest: resolved.digest, ..fetched })
}

/// What a reference stands for.
struct Resolved {
    /// The manifest with the model.
    manifest: Manifest,
    /// What the artifact is known by: the digest of the manifest, or of the list that names it, as hex.
    digest: String,
    /// The texts that were read on the way: the one with that digest first, and the manifest last.
    texts: Vec<Vec<u8>>,
}

/// Reads the manifest. What is bound to a digest is asked for by it.
async fn resolve(conversation: &Conversation<'_>, reference: &Reference, wanted: &Digest) -> Result<Resolved, Failure> {
    let named = reference.sha256.as_deref();
    let known = wanted.hex().or(named);
    let name = known.map_or_else(|| reference.tag.clone(), |hex| format!("sha256:{hex}"));
    let (manifest, text) = read_manifest(conversation, &name).await.map_err(|failure| missing(failure, wanted))?;
    let digest = digest_of(&text);
    if known.is_some_and(|known| known != digest) {
        return Err(unusable("the registry gave another manifest than the one with the digest that it was asked for"));
    }
    if manifest.manifests.is_empty() {
        return Ok(Resolved { manifest, digest, texts: vec![text] });
    }
    // The digest of a list binds what is in it.
    let only = manifest.only()?.sha256()?;
    let (manifest, listed) = read_manifest(conversation, &format!("sha256:{only}")).await?;
    if digest_of(&listed) != only {
        return Err(unusable("a manifest is not the one that its list names"));
    }
    Ok(Resolved { manifest, digest, texts: vec![text, listed] })
}

fn digest_of(text: &[u8]) -> String {
    hex(Sha256::new_with_prefix(text))
}

/// A manifest that a revision is bound to, and that is gone.
fn missing(failure: Failure, wanted: &Digest) -> Failure {
    let message = match (failure.reason, wanted) {
        (FailureReason::SourceNotFound, Digest::Locked { sha256, revision }) => {
            format!("{} with the digest sha256:{sha256}, which revision {revision} began with", failure.message)
        }
        _ => failure.message,
    };
    Failure { message, ..failure }
}

async fn read_manifest(conversation: &Conversation<'_>, name: &str) -> Result<(Manifest, Vec<u8>), Failure> {
    let response = conversation.get("manifests", name, ACCEPT).await?;
    let text = http::read_short(response).await?.ok_or_else(|| unusable("its manifest is too long"))?;
    let manifest =
        serde_json::from_slice(&text).map_err(|_| unusable("its manifest is not one of the OCI's or Docker's"))?;
    Ok((manifest, text))
}

/// What is being brought, and where to.
struct Pull<'a> {
    conversation: Conversation<'a>,
    folder: &'a TempDir,
    resolved: &'a Resolved,
    wanted: &'a Wanted<'a>,
}

impl Pull<'_> {
    /// A layer, as a file in the folder. `left`: how many bytes may still come.
    async fn layer(&self, layer: &Descriptor, name: &Inside, left: u64) -> Result<Content, Failure> {
        if layer.size > left {
            return Err(too_large(self.wanted.max_bytes));
        }
        let sha256 = layer.sha256()?;
        let response = self.conversation.get("blobs", &layer.digest, "*/*").await?;
        let content = store(http::incoming(response), &self.folder.path().join(name), left).await?;
        if content.sha256 == sha256 {
            return Ok(content);
        }
        let message = format!("the registry gave other bytes for a layer than those with its digest sha256:{sha256}");
        Err(failure(FailureReason::DigestMismatch, &message))
    }

    async fn files(
        &self,
        (name, layer): (Inside, Descriptor),
        mut others: BTreeMap<Inside, Descriptor>,
    ) -> Result<Fetched, Failure> {
        let path = self.folder.path().join(&name);
        let model = self.layer(&layer, &name, self.wanted.max_bytes).await?;
        if let Some(kind) = Kind::of(&path)? {
            return archive::fetch(vec![(kind, path)], ARTIFACT, self.folder.path(), self.wanted).await;
        }
        let mut package = Package::of(path.clone(), model);
        for beside in (self.wanted.data_files)(&path) {
            let place = name.beside(&beside);
            // What is not there is for the engine to miss.
            let Some(layer) = others.remove(&place) else { continue };
            let content = self.layer(&layer, &place, self.wanted.max_bytes - package.bytes()).await?;
            package.add(beside, self.folder.path().join(&place), content);
        }
        let root = path.parent().unwrap_or(self.folder.path());
        kept::keep(root, package.fetched(), self.resolved, self.wanted.cache)
    }

    async fn archives(&self, layers: &[Descriptor]) -> Result<Fetched, Failure> {
        let mut archives = Vec::new();
        let mut left = self.wanted.max_bytes;
        for (number, layer) in layers.iter().enumerate() {
            let name = Inside::parse(&format!("layer-{number}")).unwrap_or_else(Inside::model);
            left -= self.layer(layer, &name, left).await?.bytes;
            let path = self.folder.path().join(&name);
            let kind = Kind::of(&path)?.ok_or_else(|| unusable("a layer that is said to be an archive is none"))?;
            archives.push((kind, path));
        }
        archive::fetch(archives, ARTIFACT, self.folder.path(), self.wanted).await
    }
}
