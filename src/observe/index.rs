//! The children of every model, found by their owner: kept up to date from the watch, never searched.
//!
//! One index a kind. A watch feeds it event by event; each event says which models have something to do, which is none
//! where nothing changed that anybody reads (the API server's own bookkeeping, a status that is not looked at). While a
//! list comes in again after a lost watch, what was known stays, and whatever the list does not name is gone at its
//! end.
//!
//! A new kind of child: an `impl Child`, a field in [`super::stores::Stores`] and in [`super::seen::Seen`].

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Debug,
    sync::{Arc, PoisonError, RwLock},
};

use k8s_openapi::NamespaceResourceScope;
use kube::{Resource, ResourceExt, runtime::watcher::Event};
use serde::{Serialize, de::DeserializeOwned};

use super::packed::{PackError, Packed, Packer};
use crate::api::ModelDeployment;

/// The model that a child belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner {
    /// By which the child is found: the UID of the model, where the child tells it.
    pub key: Arc<str>,
    /// The model's namespace.
    pub namespace: String,
    /// The model's name.
    pub name: String,
}

/// A kind that the operator makes, directly or through others.
pub trait Child:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// What is needed every second, so that it must not be unpacked first.
    type Facts: Debug + Send + Sync + 'static;

    /// What is needed every second.
    fn facts(&self) -> Self::Facts;

    /// Takes away what nobody reads: a change of it is no change.
    fn prune(&mut self) {}

    /// Whose it is: by default that of the owner reference which makes the garbage collector take it along.
    fn owner(&self) -> Option<Owner> {
        let kind = ModelDeployment::kind(&());
        let owner =
            self.owner_references().iter().find(|owner| owner.controller == Some(true) && owner.kind == kind)?;
        Some(Owner { key: owner.uid.as_str().into(), namespace: self.namespace()?, name: owner.name.clone() })
    }
}

/// The children of one kind; clones share them.
#[derive(Clone, Debug)]
pub struct Index<K: Child>(Arc<Shared<K>>);

#[derive(Debug)]
struct Shared<K: Child> {
    packer: Packer,
    kept: RwLock<Kept<K>>,
}

/// A child's namespace and name.
type Place = (Arc<str>, Arc<str>);

#[derive(Debug)]
struct Kept<K: Child> {
    children: HashMap<Place, Entry<K>>,
    /// The places of an owner's children, sorted.
    by_owner: HashMap<Arc<str>, Vec<Place>>,
    /// Namespaces, so that each is held once.
    namespaces: BTreeSet<Arc<str>>,
    /// Which list from the start it is.
    list: u32,
}

#[derive(Debug)]
struct Entry<K: Child> {
    owner: Arc<str>,
    packed: Packed,
    /// The object's version: beside it, so that an object whose version is all that changed is still the same.
    version: Option<Box<str>>,
    facts: Arc<K::Facts>,
    /// The last list that named it, or that was under way when it changed.
    list: u32,
}

impl<K: Child> Default for Index<K> {
    fn default() -> Self {
        let kept = Kept { children: HashMap::new(), by_owner: HashMap::new(), namespaces: BTreeSet::new(), list: 0 };
        Self(Arc::new(Shared { packer: Packer::new(), kept: RwLock::new(kept) }))
    }
}

impl<K: Child> Index<K> {
    /// Takes in one event of the watch; the models whose children changed by it.
    pub fn take(&self, event: Event<K>) -> Vec<Owner> {
        match event {
            Event::Apply(child) | Event::InitApply(child) => self.insert(child),
            Event::Delete(child) => {
                let place = self.write(|kept| kept.place(&child));
                self.remove(&place)
            }
            Event::Init => {
                self.write(|kept| kept.list = kept.list.wrapping_add(1));
                Vec::new()
            }
            Event::InitDone => {
                let gone: Vec<_> = self.read(|kept| {
                    let old = kept.children.iter().filter(|(_, entry)| entry.list != kept.list);
                    old.map(|(place, _)| place.clone()).collect()
                });
                gone.iter().flat_map(|place| self.remove(place)).collect()
            }
        }
    }

    /// The children of an owner, by name.
    pub fn of(&self, owner: &str) -> Vec<K> {
        let kept: Vec<_> =
            self.read(|kept| kept.of(owner).map(|entry| (entry.packed.clone(), entry.version.clone())).collect());
        let unpacked = kept.into_iter().filter_map(|(packed, version)| {
            let mut child = self.unpack(&packed)?;
            child.meta_mut().resource_version = version.map(String::from);
            Some(child)
        });
        unpacked.collect()
    }

    /// What is known every second of the children of an owner, by name.
    pub fn facts(&self, owner: &str) -> Vec<Arc<K::Facts>> {
        self.read(|kept| kept.of(owner).map(|entry| entry.facts.clone()).collect())
    }

    /// How many children there are of all owners, and the bytes that they take packed.
    pub fn size(&self) -> (usize, usize) {
        self.read(|kept| (kept.children.len(), kept.children.values().map(|entry| entry.packed.len()).sum()))
    }

    fn insert(&self, mut child: K) -> Vec<Owner> {
        child.prune();
        let meta = child.meta_mut();
        meta.managed_fields = None;
        let version = meta.resource_version.take().map(String::into_boxed_str);
        let owner = child.owner();
        let packed = match self.0.packer.pack(&child) {
            Ok(packed) => packed,
            Err(error) => {
                report(&error);
                return Vec::new();
            }
        };
        let Some(owner) = owner else {
            // Carries our label and belongs to nobody we know, or to nobody any more.
            let place = self.write(|kept| kept.place(&child));
            return self.remove(&place);
        };
        let entry = Entry { owner: owner.key.clone(), packed, version, facts: Arc::new(child.facts()), list: 0 };
        let before = self.write(|kept| {
            let place = kept.place(&child);
            kept.insert(place, entry)
        });
        match before {
            Replaced::Same => Vec::new(),
            Replaced::Nothing => vec![owner],
            Replaced::Other(before) if before.owner == owner.key => vec![owner],
            // It went over to another model: the one that lost it has something to do, too.
            Replaced::Other(before) => vec![owner].into_iter().chain(self.owner_of(&before)).collect(),
        }
    }

    fn remove(&self, place: &Place) -> Vec<Owner> {
        let removed = self.write(|kept| kept.remove(place));
        removed.and_then(|entry| self.owner_of(&entry)).into_iter().collect()
    }

    fn owner_of(&self, entry: &Entry<K>) -> Option<Owner> {
        self.unpack(&entry.packed)?.owner()
    }

    fn unpack(&self, packed: &Packed) -> Option<K> {
        self.0.packer.unpack(packed).inspect_err(report).ok()
    }

    fn read<T>(&self, look: impl FnOnce(&Kept<K>) -> T) -> T {
        // Nothing that runs under the lock leaves half a change behind when it panics.
        look(&self.0.kept.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, change: impl FnOnce(&mut Kept<K>) -> T) -> T {
        change(&mut self.0.kept.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What an insertion found in its place.
enum Replaced<K: Child> {
    Nothing,
    Same,
    Other(Entry<K>),
}

impl<K: Child> Kept<K> {
    fn of(&self, owner: &str) -> impl Iterator<Item = &Entry<K>> {
        self.by_owner.get(owner).into_iter().flatten().filter_map(|place| self.children.get(place))
    }

    fn place(&mut self, child: &K) -> Place {
        let namespace = child.namespace().unwrap_or_default();
        let known = self.namespaces.get(namespace.as_str()).cloned();
        let namespace = known.unwrap_or_else(|| {
            let new: Arc<str> = namespace.into();
            self.namespaces.insert(new.clone());
            new
        });
        (namespace, child.name_any().into())
    }

    fn insert(&mut self, place: Place, mut entry: Entry<K>) -> Replaced<K> {
        entry.list = self.list;
        if let Some(known) = self.children.get_mut(&place)
            && known.owner == entry.owner
        {
            if known.packed == entry.packed {
                (known.list, known.version) = (entry.list, entry.version);
                return Replaced::Same;
            }
            return Replaced::Other(std::mem::replace(known, entry));
        }
        let before = self.remove(&place);
        let places = self.by_owner.entry(entry.owner.clone()).or_default();
        if let Err(at) = places.binary_search(&place) {
            // Mostly there is only one: no room for more.
            places.reserve_exact(1);
            places.insert(at, place.clone());
        }
        self.children.insert(place, entry);
        before.map_or(Replaced::Nothing, Replaced::Other)
    }

    fn remove(&mut self, place: &Place) -> Option<Entry<K>> {
        let entry = self.children.remove(place)?;
        if let Some(places) = self.by_owner.get_mut(&entry.owner) {
            places.retain(|other| other != place);
            if places.is_empty() {
                self.by_owner.remove(&entry.owner);
            }
        }
        Some(entry)
    }
}

fn report(error: &PackError) {
    tracing::error!(error = error as &dyn std::error::Error, "this is a fault of the operator, please report it");
}

#[cfg(test)]
mod tests;
