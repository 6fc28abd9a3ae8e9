//! One operator, its proxy and its namespace: the bench on which one fault is tried.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::{
    fault::Fault,
    normal,
    operator::Program,
    proxy::{Log, Proxy, Upstream},
    scenario,
    world::World,
};

/// No write for this long, and what was reached is the end.
const QUIET: Duration = Duration::from_millis(2500);
/// The kinds that an operator watches.
const KINDS: usize = 8;
/// Between two looks at what was reached.
const LOOK: Duration = Duration::from_millis(50);

/// What all rigs share.
pub struct Lab {
    /// The cluster.
    pub world: World,
    /// The operator.
    pub program: Program,
    /// The API server.
    pub upstream: Upstream,
}

/// What is to be reached.
#[derive(Clone, Copy, Debug)]
pub enum Goal<'a> {
    /// Whatever the acts lead to when nothing goes wrong: the model is served, or gone with all that was its.
    Settled,
    /// The same as without a fault.
    Same(&'a Value),
}

/// The bench.
pub struct Rig<'a> {
    lab: &'a Lab,
    /// What the operator sees.
    pub namespace: String,
    /// What went through.
    pub log: Arc<Log>,
    proxy: Option<Proxy>,
    /// After how many seconds operators list everything anew.
    pub relist: u32,
    /// The UID and generation of the model that there is, after the last act.
    model: Option<(String, i64)>,
}

impl<'a> Rig<'a> {
    /// A new namespace; no operator yet.
    pub async fn new(lab: &'a Lab, name: &str) -> anyhow::Result<Self> {
        scenario::prepare(&lab.world.client, name).await.context("the namespace cannot be made")?;
        Ok(Self { lab, namespace: name.to_owned(), log: Arc::default(), proxy: None, relist: 1800, model: None })
    }

    /// Starts an operator behind a proxy with this fault; one that still runs is killed.
    pub async fn start(&mut self, fault: Fault) -> anyhow::Result<()> {
        self.proxy = None;
        let proxy = Proxy::start(self.lab.upstream.clone(), &self.namespace, self.log.clone(), fault).await?;
        proxy.is_for(self.lab.program.start(&self.namespace, proxy.address, self.relist)?);
        self.proxy = Some(proxy);
        Ok(())
    }

    /// The proxy of the operator that runs.
    pub fn proxy(&self) -> anyhow::Result<&Proxy> {
        self.proxy.as_ref().context("no operator was started")
    }

    /// Does what a user does.
    pub async fn act(&mut self, act: scenario::Act) -> anyhow::Result<()> {
        let done = act.perform(&self.lab.world.client, &self.namespace).await;
        self.model = done.with_context(|| format!("{act:?} was refused"))?;
        Ok(())
    }

    /// Whether the observer has seen what was done last.
    fn is_seen(&self) -> bool {
        let objects = self.lab.world.objects(&self.namespace);
        let model = objects.iter().find(|object| object["kind"] == "ModelDeployment").map(|model| &model["metadata"]);
        let found = model.and_then(|model| Some((model["uid"].as_str()?.to_owned(), model["generation"].as_i64()?)));
        found == self.model
    }

    /// What is there.
    pub fn state(&self) -> Value {
        normal::state(&self.namespace, &self.lab.world.objects(&self.namespace))
    }

    /// Waits for a goal and for rest; an operator that was killed is started anew on the way.
    pub async fn reach(&mut self, goal: Goal<'_>, within: Duration) -> anyhow::Result<Value> {
        let started = Instant::now();
        loop {
            if self.proxy()?.is_dead() {
                self.start(Fault::Calm).await?;
            }
            ensure!(!self.proxy()?.ended_by_itself(), "the operator ended by itself\n{}", self.last_words());
            // First, so that the state is not one from before what was done last.
            let seen = self.is_seen();
            let state = self.state();
            let there = match goal {
                Goal::Settled => self.is_settled(&state),
                Goal::Same(expected) => state == *expected,
            };
            if there && seen && self.log.quiet_for() >= QUIET {
                return Ok(state);
            }
            if started.elapsed() > within {
                bail!("not within {} s: {}", within.as_secs(), self.missing(goal, &state));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until the state is as it should be.
    pub async fn until(&self, what: &str, within: Duration, holds: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let started = Instant::now();
        loop {
            let state = self.state();
            if holds(&state) {
                return Ok(state);
            }
            let late = started.elapsed() > within;
            ensure!(!late, "{what}: not within {} s: {state:#}\n{}", within.as_secs(), self.last_words());
            tokio::time::sleep(LOOK).await;
        }
    }

    fn is_settled(&self, state: &Value) -> bool {
        let objects = self.lab.world.objects(&self.namespace);
        let model = objects.iter().find(|object| object["kind"] == "ModelDeployment");
        let nothing = state.as_object().is_some_and(|state| state.len() == 1)
            && state["pods by revision"].as_object().is_some_and(serde_json::Map::is_empty);
        match model {
            Some(model) => {
                let resolved = model["status"]["stable"]["digest"].is_string();
                resolved && normal::is_served(state, model["metadata"]["generation"].as_i64())
            }
            None => nothing,
        }
    }

    fn missing(&self, goal: Goal<'_>, state: &Value) -> String {
        let what = match goal {
            Goal::Settled => format!("{:#}", state["ModelDeployment/m"]["status"]),
            Goal::Same(expected) => normal::differences(expected, state).join("\n    "),
        };
        let quiet = self.log.quiet_for().as_secs_f64();
        format!("the last write was {quiet:.1} s ago\n    {what}\n{}", self.last_words())
    }

    /// Waits until the operator has asked for all its lists; their paths, by the plural name of the kind.
    pub async fn lists(&self, within: Duration) -> anyhow::Result<BTreeMap<String, String>> {
        let started = Instant::now();
        let proxy = self.proxy()?;
        while proxy.watched() < KINDS {
            ensure!(started.elapsed() < within, "the operator does not list what there is\n{}", self.last_words());
            tokio::time::sleep(LOOK).await;
        }
        Ok(self.log.lists())
    }

    /// All writes so far, in words.
    pub fn writes(&self) -> Vec<String> {
        let writes = self.log.entries().into_iter().filter(|entry| entry.call.is_write());
        writes.map(|entry| format!("{} → {}", entry.call, entry.status)).collect()
    }

    /// How many calls of which kind there were, the last of them, and the end of the log.
    pub fn last_words(&self) -> String {
        let calls: Vec<_> = self.log.entries();
        let calls = calls.iter().rev().filter(|entry| entry.call.verb != "watch").take(25).collect::<Vec<_>>();
        let calls: Vec<_> = calls
            .iter()
            .rev()
            .map(|entry| format!("  {:.2} s ago {} → {}", entry.at.elapsed().as_secs_f64(), entry.call, entry.status))
            .collect();
        let mut counts = BTreeMap::<String, usize>::new();
        for entry in self.log.entries() {
            *counts.entry(format!("{} {}", entry.call.verb, entry.call.resource)).or_default() += 1;
        }
        let counts: Vec<_> = counts.iter().map(|(call, count)| format!("{count} {call}")).collect();
        let (counts, calls) = (counts.join(", "), calls.join("\n"));
        format!("all calls: {counts}\nlast:\n{calls}\nlog:\n{}", self.lab.program.last_words(&self.namespace))
    }

    /// The warnings in the operator's log.
    pub fn warnings(&self) -> Vec<String> {
        self.lab.program.warnings(&self.namespace)
    }

    /// Takes operator and namespace away.
    pub async fn clear(mut self) {
        self.proxy = None;
        scenario::clear(&self.lab.world.client, &self.namespace).await;
    }
}
