//! Who leads: what to do about the Lease, from what is seen of it. No clock, no client; `lease.rs` carries it out.
//!
//! Clocks of different machines are never compared. A holder's time runs from the moment at which *this* process saw
//! its last renewal, on this machine's clock, so a wrong clock elsewhere neither ends a lease early nor keeps a dead
//! one alive. `renewTime` is written for people.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};

/// How long a lease is valid after its last renewal was seen.
pub const LEASE: Duration = Duration::from_secs(15);
/// The longest duration of a lease that is believed, whatever stands in it.
const LONGEST: Duration = Duration::from_mins(1);

/// The Lease as this process has seen it.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// `None`: there is none.
    lease: Option<Lease>,
    /// When it was first seen to say this.
    since: Duration,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nobody holds it: take it.
    Take,
    /// It is held by this process: renew it.
    Renew,
    /// Somebody else holds it, for at least this long.
    Wait(Duration),
    /// It was held by this process, and is not any more.
    Lost,
}

impl Observed {
    /// Takes in what the API server tells at `now`. Any change of what it says is a sign of life of its holder.
    pub fn see(&mut self, lease: Option<Lease>, now: Duration) {
        let spec = |lease: &Option<Lease>| lease.as_ref().and_then(|lease| lease.spec.clone());
        if spec(&self.lease) != spec(&lease) {
            self.since = now;
        }
        self.lease = lease;
    }

    /// The object, if there is one.
    pub fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// Who holds it, as it says.
    pub fn holder(&self) -> Option<&str> {
        let holder = self.lease.as_ref()?.spec.as_ref()?.holder_identity.as_deref()?;
        Some(holder).filter(|holder| !holder.is_empty())
    }

    /// What the process `me` does at `now`; `leads`: it has held the lease before.
    pub fn next(&self, me: &str, leads: bool, now: Duration) -> Action {
        match self.holder() {
            // Also before it leads: the answer to the write that took the lease may have been lost.
            Some(holder) if holder == me => Action::Renew,
            _ if leads => Action::Lost,
            None => Action::Take,
            Some(_) => match (self.since + self.duration()).saturating_sub(now) {
                Duration::ZERO => Action::Take,
                left => Action::Wait(left),
            },
        }
    }

    fn duration(&self) -> Duration {
        let told = self.lease.as_ref().and_then(|lease| lease.spec.as_ref()?.lease_duration_seconds);
        let seconds = told.and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
        seconds.map_or(LEASE, Duration::from_secs).min(LONGEST)
    }

    /// The object to be written for `me` to hold the lease. It carries the version that was seen, so that of two writers
    /// the API server refuses the second.
    pub fn held_by(&self, me: &str, now: Timestamp) -> Lease {
        let mut lease = self.lease.clone().unwrap_or_default();
        let before = lease.spec.take().unwrap_or_default();
        let renews = self.holder() == Some(me);
        let transitions = before.lease_transitions.unwrap_or_default();
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(me.to_owned()),
            acquire_time: if renews { before.acquire_time.clone() } else { Some(MicroTime(now)) },
            renew_time: Some(MicroTime(now)),
            lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
            // A lease that is made is no change of hands.
            lease_transitions: Some(transitions.saturating_add(i32::from(!renews && self.lease.is_some()))),
            ..before
        });
        lease
    }

    /// The object to be written for nobody to hold it any more; `None` unless `me` does.
    pub fn released_by(&self, me: &str, now: Timestamp) -> Option<Lease> {
        let mut lease = self.lease.clone().filter(|_| self.holder() == Some(me))?;
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.renew_time = Some(MicroTime(now));
        Some(lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn clock(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    /// Seen at `now` as it was written by `holder`.
    fn seen(holder: &str, renewed: i64, now: u64) -> Observed {
        let mut observed = Observed::default();
        let lease = observed.held_by(holder, clock(renewed));
        observed.see(Some(lease), at(now));
        observed
    }

    #[test]
    fn a_lease_that_nobody_holds_is_taken() {
        assert_eq!(Observed::default().next("a", false, at(0)), Action::Take, "there is none");
        let mut released = seen("b", 0, 0);
        let empty = released.released_by("b", clock(1));
        released.see(empty, at(1));
        assert_eq!(released.next("a", false, at(1)), Action::Take);
    }

    #[test]
    fn anothers_lease_is_waited_for_from_when_its_last_renewal_was_seen() {
        let mut observed = seen("b", 0, 100);
        assert_eq!(observed.next("a", false, at(101)), Action::Wait(at(14)));
        observed.see(observed.lease.clone(), at(105));
        assert_eq!(observed.next("a", false, at(105)), Action::Wait(at(10)), "the same again is no renewal");
        let renewed = observed.held_by("b", clock(5));
        observed.see(Some(renewed), at(106));
        assert_eq!(observed.next("a", false, at(106)), Action::Wait(at(15)));
        assert_eq!(observed.next("a", false, at(121)), Action::Take);
    }

    #[test]
    fn the_clock_of_another_machine_does_not_count() {
        for renewed in [-1_000_000, 1_000_000] {
            assert_eq!(seen("b", renewed, 100).next("a", false, at(101)), Action::Wait(at(14)));
        }
    }

    #[test]
    fn the_holder_renews_and_the_number_of_changes_stays() {
        let mut observed = seen("a", 0, 0);
        assert_eq!(observed.next("a", true, at(5)), Action::Renew);
        assert_eq!(observed.next("a", false, at(5)), Action::Renew, "the answer to taking it was lost");
        let renewed = observed.held_by("a", clock(5));
        observed.see(Some(renewed), at(5));
        let spec = observed.lease.unwrap().spec.unwrap();
        assert_eq!((spec.lease_transitions, spec.acquire_time), (Some(0), Some(MicroTime(clock(0)))));
    }

    #[test]
    fn a_change_of_hands_is_counted() {
        let observed = seen("b", 0, 0);
        let spec = observed.held_by("a", clock(20)).spec.unwrap();
        assert_eq!((spec.lease_transitions, spec.acquire_time), (Some(1), Some(MicroTime(clock(20)))));
    }

    #[test]
    fn who_led_and_finds_another_holder_or_none_has_lost() {
        assert_eq!(seen("b", 0, 0).next("a", true, at(1_000)), Action::Lost, "even when the other's has run out");
        assert_eq!(Observed::default().next("a", true, at(0)), Action::Lost, "somebody deleted it");
    }

    #[test]
    fn only_the_holder_releases() {
        assert_eq!(seen("b", 0, 0).released_by("a", clock(1)), None);
        let released = seen("a", 0, 0).released_by("a", clock(1)).unwrap();
        assert_eq!(released.spec.unwrap().holder_identity.as_deref(), Some(""));
    }

    #[test]
    fn a_duration_that_makes_no_sense_is_not_believed() {
        for (told, wait) in [(None, 15), (Some(0), 15), (Some(-5), 15), (Some(i32::MAX), 60), (Some(30), 30)] {
            let mut observed = seen("b", 0, 0);
            observed.lease.as_mut().unwrap().spec.as_mut().unwrap().lease_duration_seconds = told;
            assert_eq!(observed.next("a", false, at(0)), Action::Wait(at(wait)), "{told:?}");
        }
    }

    #[test]
    fn what_is_written_carries_the_version_that_was_seen() {
        let mut observed = seen("b", 0, 0);
        observed.lease.as_mut().unwrap().metadata.resource_version = Some("7".into());
        assert_eq!(observed.held_by("a", clock(1)).metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(observed.released_by("b", clock(1)).unwrap().metadata.resource_version.as_deref(), Some("7"));
    }
}
