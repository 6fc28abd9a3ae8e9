//! The index against the plain search that it replaces.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Service;
use proptest::{collection::vec, prelude::*};
use serde_json::json;

use super::*;

/// A Service `name` of the model with the UID `owner`; of nobody without one.
fn service(name: &str, owner: Option<&str>, port: u16) -> Service {
    let reference = |uid: &str| json!({"apiVersion": "ortolan.dev/v1alpha1", "kind": "ModelDeployment", "name": format!("model-{uid}"), "uid": uid, "controller": true});
    let owners: Vec<_> = owner.iter().map(|uid| reference(uid)).collect();
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "ml", "ownerReferences": owners, "resourceVersion": "1"},
        "spec": {"ports": [{"port": port}]},
    }))
    .unwrap()
}

fn uids(owners: &[Owner]) -> Vec<&str> {
    owners.iter().map(|owner| &*owner.key).collect()
}

fn names(index: &Index<Service>, owner: &str) -> Vec<String> {
    index.of(owner).iter().map(ResourceExt::name_any).collect()
}

#[test]
fn children_are_found_by_their_owner() {
    let index = Index::default();
    for name in ["b", "a"] {
        assert_eq!(uids(&index.take(Event::Apply(service(name, Some("1"), 80)))), ["1"]);
    }
    index.take(Event::Apply(service("c", Some("2"), 80)));
    assert_eq!(names(&index, "1"), ["a", "b"]);
    assert_eq!(names(&index, "2"), ["c"]);
    assert_eq!(names(&index, "3"), Vec::<String>::new());
    assert_eq!(uids(&index.take(Event::Delete(service("a", Some("1"), 80)))), ["1"]);
    assert_eq!(names(&index, "1"), ["b"]);
}

#[test]
fn what_nobody_reads_wakes_nobody() {
    let index = Index::default();
    index.take(Event::Apply(service("a", Some("1"), 80)));
    let mut same = service("a", Some("1"), 80);
    same.metadata.resource_version = Some("2".into());
    same.metadata.managed_fields =
        Some(vec![k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry::default()]);
    same.status = Some(k8s_openapi::api::core::v1::ServiceStatus::default());
    assert_eq!(uids(&index.take(Event::Apply(same))), Vec::<&str>::new());
    assert_eq!(uids(&index.take(Event::Apply(service("a", Some("1"), 81)))), ["1"]);
}

#[test]
fn a_child_that_changes_hands_wakes_both() {
    let index = Index::default();
    index.take(Event::Apply(service("a", Some("1"), 80)));
    assert_eq!(uids(&index.take(Event::Apply(service("a", Some("2"), 80)))), ["2", "1"]);
    assert_eq!(uids(&index.take(Event::Apply(service("a", None, 80)))), ["2"]);
    assert_eq!(index.size().0, 0);
}

#[test]
fn what_a_new_list_does_not_name_is_gone_at_its_end_and_not_before() {
    let index = Index::default();
    for name in ["a", "b"] {
        index.take(Event::Apply(service(name, Some("1"), 80)));
    }
    index.take(Event::Init);
    assert_eq!(uids(&index.take(Event::InitApply(service("b", Some("1"), 80)))), Vec::<&str>::new());
    assert_eq!(names(&index, "1"), ["a", "b"]);
    assert_eq!(uids(&index.take(Event::InitDone)), ["1"], "a deletion that the watch missed");
    assert_eq!(names(&index, "1"), ["b"]);
}

/// What happens to a child `name`, as numbers.
#[derive(Clone, Debug)]
enum Step {
    Apply(u8, Option<u8>, u16),
    Delete(u8),
    Relist(Vec<(u8, Option<u8>, u16)>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let child = || (0..6u8, proptest::option::of(0..3u8), 80..83u16);
    let step = prop_oneof![
        6 => child().prop_map(|(name, owner, port)| Step::Apply(name, owner, port)),
        3 => (0..6u8).prop_map(Step::Delete),
        1 => vec(child(), 0..6).prop_map(Step::Relist),
    ];
    vec(step, 0..40)
}

/// The plain list that is searched.
type World = BTreeMap<u8, (Option<u8>, u16)>;

fn made(name: u8, owner: Option<u8>, port: u16) -> Service {
    service(&name.to_string(), owner.map(|owner| owner.to_string()).as_deref(), port)
}

fn found(world: &World, owner: u8) -> Vec<(String, i32)> {
    let children = world.iter().filter(|(_, (its, _))| *its == Some(owner));
    children.map(|(name, (_, port))| (name.to_string(), i32::from(*port))).collect()
}

fn play(index: &Index<Service>, world: &mut World, step: Step) -> Vec<Owner> {
    match step {
        Step::Apply(name, owner, port) => {
            world.insert(name, (owner, port));
            index.take(Event::Apply(made(name, owner, port)))
        }
        Step::Delete(name) => {
            let (owner, port) = world.remove(&name).unwrap_or_default();
            index.take(Event::Delete(made(name, owner, port)))
        }
        Step::Relist(children) => {
            world.clear();
            let mut woken = index.take(Event::Init);
            for (name, owner, port) in children {
                world.insert(name, (owner, port));
                woken.extend(index.take(Event::InitApply(made(name, owner, port))));
            }
            woken.extend(index.take(Event::InitDone));
            woken
        }
    }
}

proptest! {
    #[test]
    fn the_index_finds_what_a_search_finds_and_wakes_whoever_lost_or_got_something(steps in steps()) {
        let (index, mut world) = (Index::default(), World::new());
        for step in steps {
            let before: Vec<_> = (0..3).map(|owner| found(&world, owner)).collect();
            let woken = play(&index, &mut world, step);
            for owner in 0..3u8 {
                let key = owner.to_string();
                let now = found(&world, owner);
                let port = |service: &Service| service.spec.as_ref().unwrap().ports.as_ref().unwrap()[0].port;
                let kept: Vec<_> = index.of(&key).iter().map(|child| (child.name_any(), port(child))).collect();
                prop_assert_eq!(&kept, &now);
                prop_assert_eq!(index.facts(&key).len(), now.len());
                let changed = before[usize::from(owner)] != now;
                prop_assert!(!changed || woken.iter().any(|woken| *woken.key == *key), "{} was not woken", owner);
            }
            prop_assert_eq!(index.size().0, world.values().filter(|(owner, _)| owner.is_some()).count());
        }
    }
}
