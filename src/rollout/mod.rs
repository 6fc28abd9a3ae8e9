//! From one revision to the next, replayable from what is seen: `(stable, desired, counts) → plan`.
//!
//! Pure: no clock, no IO, no log, and no memory either. Each revision has its own Deployment; a new one grows by a
//! quarter of the servers at a time, and the old one gives up a server only for a new one that is ready, so there are
//! never fewer ready servers than there should be. A revision that cannot start never takes anything from the stable
//! one, and going back is the same step in the other direction.
//!
//! Canary and shadow steps with gates on quality come with their own issue; they replace [`plan`]'s counting, not its
//! callers.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

/// What is seen of one revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Servers that its Deployment asks for.
    pub wanted: u32,
    /// Servers that are ready.
    pub ready: u32,
}

/// What to do with the revisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The revision that counts as stable from now on.
    pub stable: Option<String>,
    /// The revision on its way to replace it.
    pub candidate: Option<String>,
    /// Servers for each revision that stays.
    pub replicas: BTreeMap<String, u32>,
    /// Revisions that are to be removed.
    pub retired: Vec<String>,
    /// The candidate has become the stable one by this plan.
    pub promoted: bool,
}

/// Plans the next step. `stable`: the revision that served last with all its servers; `desired`: the one `spec` asks
/// for; `servers`: how many there should be in all; `most`: the most servers of `desired` for now (those that it has
/// stay); `seen`: the revisions that exist.
pub fn plan(stable: Option<&str>, desired: &str, servers: u32, most: u32, seen: &BTreeMap<String, Count>) -> Plan {
    let count = |revision: &str| seen.get(revision).copied().unwrap_or_default();
    let old = stable.filter(|stable| *stable != desired && seen.contains_key(*stable));
    let new = count(desired);
    let most = most.max(new.wanted).min(servers);
    let mut plan = Plan::default();
    match old {
        Some(old) if new.ready < servers => {
            let surge = servers.div_ceil(4);
            let grown = new.wanted.max(new.ready + surge).min(most);
            plan.stable = Some(old.to_owned());
            plan.candidate = Some(desired.to_owned());
            plan.replicas.insert(desired.to_owned(), grown);
            plan.replicas.insert(old.to_owned(), servers - new.ready);
        }
        _ => {
            let known = stable == Some(desired);
            let answers = known || new.ready > 0;
            plan.stable = answers.then(|| desired.to_owned());
            plan.candidate = (!answers).then(|| desired.to_owned());
            plan.promoted = answers && !known;
            plan.replicas.insert(desired.to_owned(), most);
        }
    }
    plan.retired = retired(&plan, servers, seen);
    for revision in seen.keys().filter(|revision| !plan.retired.contains(revision)) {
        plan.replicas.entry(revision.clone()).or_insert_with(|| count(revision).wanted);
    }
    plan
}

/// Revisions with no part in the plan, once the others carry everything without them.
fn retired(plan: &Plan, servers: u32, seen: &BTreeMap<String, Count>) -> Vec<String> {
    let stays = |revision: &String| plan.replicas.contains_key(revision);
    let ready: u32 = seen.iter().filter(|(revision, _)| stays(revision)).map(|(_, count)| count.ready).sum();
    seen.iter()
        .filter(|(revision, count)| !stays(revision) && (ready >= servers || count.ready == 0))
        .map(|(revision, _)| revision.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    fn seen(revisions: &[(&str, u32, u32)]) -> BTreeMap<String, Count> {
        revisions
            .iter()
            .map(|(name, wanted, ready)| ((*name).to_owned(), Count { wanted: *wanted, ready: *ready }))
            .collect()
    }

    /// Plays a rollout: every step the Deployments get what the plan says, and `starts(revision)` servers become ready.
    fn play(
        mut stable: Option<String>,
        desired: &str,
        servers: u32,
        mut world: BTreeMap<String, Count>,
        starts: &dyn Fn(&str) -> u32,
    ) -> String {
        let mut transcript = String::new();
        for _ in 0..30 {
            let plan = plan(stable.as_deref(), desired, servers, u32::MAX, &world);
            let before = world.clone();
            world.retain(|revision, _| !plan.retired.contains(revision));
            for (revision, wanted) in &plan.replicas {
                let count = world.entry(revision.clone()).or_default();
                count.wanted = *wanted;
                count.ready = count.ready.saturating_add(starts(revision)).min(*wanted);
            }
            let text: Vec<_> =
                world.iter().map(|(name, count)| format!("{name} {}/{}", count.ready, count.wanted)).collect();
            let mark = if plan.promoted { " promoted" } else { "" };
            writeln!(transcript, "{}{mark}", text.join(", ")).unwrap();
            stable = plan.stable;
            if world == before && !plan.promoted {
                break;
            }
        }
        transcript
    }

    #[test]
    fn a_first_revision_starts_with_all_its_servers() {
        insta::assert_snapshot!(play(None, "a", 3, BTreeMap::new(), &|_| 2), @r"
        a 2/3
        a 3/3 promoted
        a 3/3
        ");
    }

    #[test]
    fn a_new_revision_replaces_the_old_one_server_by_server() {
        insta::assert_snapshot!(play(Some("a".into()), "b", 4, seen(&[("a", 4, 4)]), &|_| 1), @r"
        a 4/4, b 1/1
        a 3/3, b 2/2
        a 2/2, b 3/3
        a 1/1, b 4/4
        b 4/4 promoted
        b 4/4
        ");
    }

    #[test]
    fn a_single_server_is_replaced_only_by_a_ready_one() {
        insta::assert_snapshot!(play(Some("a".into()), "b", 1, seen(&[("a", 1, 1)]), &|_| 1), @r"
        a 1/1, b 1/1
        b 1/1 promoted
        b 1/1
        ");
    }

    #[test]
    fn a_revision_that_never_starts_takes_nothing_from_the_stable_one() {
        let starts = |revision: &str| u32::from(revision == "a");
        insta::assert_snapshot!(play(Some("a".into()), "b", 3, seen(&[("a", 3, 3)]), &starts), @r"
        a 3/3, b 0/1
        a 3/3, b 0/1
        ");
    }

    #[test]
    fn going_back_keeps_the_ready_servers_until_the_old_revision_has_its_own() {
        insta::assert_snapshot!(play(Some("a".into()), "a", 4, seen(&[("a", 2, 2), ("b", 3, 2)]), &|_| 1), @r"
        a 3/4, b 3/3
        a 4/4, b 3/3
        a 4/4
        a 4/4
        ");
    }

    #[test]
    fn a_revision_whose_bytes_nobody_knows_yet_begins_with_one_server_and_loses_none_that_it_has() {
        let first = |wanted| plan(None, "a", 4, 1, &seen(&[("a", wanted, 0)])).replicas["a"];
        assert_eq!((first(0), first(1), first(3), first(9)), (1, 1, 3, 4));
        let plan = plan(Some("a"), "b", 8, 1, &seen(&[("a", 8, 8), ("b", 1, 0)]));
        assert_eq!((plan.replicas["a"], plan.replicas["b"]), (8, 1));
    }

    #[test]
    fn a_third_revision_replaces_a_candidate_that_does_not_start_at_once() {
        let plan = plan(Some("a"), "c", 2, u32::MAX, &seen(&[("a", 2, 2), ("b", 1, 0)]));
        assert_eq!(plan.retired, ["b"]);
        assert_eq!(plan.candidate.as_deref(), Some("c"));
    }

    #[test]
    fn a_stable_revision_that_is_gone_is_not_waited_for() {
        let plan = plan(Some("a"), "b", 2, u32::MAX, &seen(&[("b", 1, 1)]));
        assert_eq!((plan.stable.as_deref(), plan.promoted), (Some("b"), true));
    }

    proptest::proptest! {
        #[test]
        fn there_are_never_fewer_ready_servers_than_there_should_be(
            servers in 1u32..20, old_ready in 0u32..20, new_ready in 0u32..20, new_wanted in 0u32..20
        ) {
            let old_ready = old_ready.min(servers);
            let new_ready = new_ready.min(new_wanted).min(servers);
            let plan = plan(Some("a"), "b", servers, u32::MAX, &seen(&[("a", servers, old_ready), ("b", new_wanted, new_ready)]));
            let kept = |revision: &str, ready: u32| plan.replicas.get(revision).map_or(0, |wanted| ready.min(*wanted));
            let left = kept("a", old_ready) + kept("b", new_ready);
            proptest::prop_assert!(left >= servers.min(old_ready + new_ready).min(old_ready.max(new_ready)));
            proptest::prop_assert!(plan.replicas.values().sum::<u32>() <= 2 * servers);
        }
    }
}
