//! All that is tried, many at once.

use futures::{
    FutureExt,
    future::{BoxFuture, join_all, try_join_all},
};
use tokio::sync::Semaphore;

use crate::{
    checks::{
        disturbed::{self, DISTURBANCES},
        ending, rest, stale, steps, taken,
    },
    report::{Row, say},
    rig::Lab,
    scenario::{SCENARIOS, Scenario},
};

/// What is tried by itself: it ends with rows for the table.
type Try<'a> = BoxFuture<'a, Vec<Row>>;

/// All that is tried.
pub struct All<'a> {
    lab: &'a Lab,
    only: &'a str,
    every: bool,
    turns: Semaphore,
}

impl<'a> All<'a> {
    /// `only`: what the names of what is tried must hold; `every`: each is told, not only those that fail.
    pub fn new(lab: &'a Lab, only: &'a str, every: bool, at_once: usize) -> Self {
        Self { lab, only, every, turns: Semaphore::new(at_once) }
    }

    /// Tries all; each scenario begins as soon as it was played without a fault.
    pub async fn try_them(&self) -> anyhow::Result<Vec<Row>> {
        let scenarios = try_join_all(SCENARIOS.iter().map(|scenario| self.scenario(scenario)));
        let (alone, scenarios) = futures::join!(self.alone(), scenarios);
        Ok(alone.into_iter().chain(scenarios?.into_iter().flatten()).collect())
    }

    fn wants(&self, name: &str) -> bool {
        name.contains(self.only)
    }

    /// Tries these, each when it is its turn.
    async fn take(&self, tries: Vec<Try<'_>>) -> Vec<Row> {
        let turns = tries.into_iter().map(|tried| async move {
            // Never closed: an error cannot come.
            let _turn = self.turns.acquire().await;
            let rows = tried.await;
            rows.iter().filter(|row| self.every || row.result.is_err()).for_each(Row::say);
            rows
        });
        join_all(turns).await.into_iter().flatten().collect()
    }

    /// What needs no other run to be compared with; the longest first.
    async fn alone(&self) -> Vec<Row> {
        let all: [(&str, BoxFuture<'_, Row>); 3] = [
            ("rest", rest::idle(self.lab).boxed()),
            ("taken", taken::service(self.lab).boxed()),
            ("ending", ending::namespace(self.lab).boxed()),
        ];
        let wanted = all.into_iter().filter(|(name, _)| self.wants(name));
        self.take(wanted.map(|(_, row)| row.map(|row| vec![row]).boxed()).collect()).await
    }

    /// One scenario: undisturbed, and then with all that can go wrong.
    async fn scenario(&self, scenario: &Scenario) -> anyhow::Result<Vec<Row>> {
        let (lab, wants) = (self.lab, |kind: &str| self.wants(&format!("{} {kind}", scenario.name)));
        let disturbances: Vec<_> = (0..DISTURBANCES.len())
            .filter(|index| scenario.name == "update" && wants(&format!("disturbed {}", DISTURBANCES[*index].0)))
            .collect();
        let [kill, lose, stale] = ["kill", "lose", "stale"].map(wants);
        if disturbances.is_empty() && ![kill, lose, stale].contains(&true) {
            return Ok(Vec::new());
        }
        let course = &steps::undisturbed(lab, scenario).await?;
        say(&format!("{} undisturbed: {course}", scenario.name));
        // The longest first.
        let mut tries: Vec<Try<'_>> = Vec::new();
        let disturbed = |index| async move { vec![disturbed::update(lab, scenario, course, index).await] };
        tries.extend(disturbances.into_iter().map(|index| disturbed(index).boxed()));
        tries.extend(stale.then(|| stale::restarts(lab, scenario, course).boxed()));
        let kills = steps::kills(course).into_iter().filter(|_| kill);
        let losses = steps::losses(course).into_iter().filter(|_| lose);
        let step = |fault| async move { vec![steps::disturbed(lab, scenario, course, fault).await] };
        tries.extend(kills.chain(losses).map(|fault| step(fault).boxed()));
        Ok(self.take(tries).await)
    }
}
