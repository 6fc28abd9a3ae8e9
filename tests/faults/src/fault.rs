//! What goes wrong between the operator and the API server, and what of it happened.

use std::{collections::BTreeMap, time::Duration};

use crate::call::Call;

/// On which side of a write the operator dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The API server never hears of the write.
    Before,
    /// The write is carried out, and the operator never hears of it.
    After,
}

/// A fault that a proxy brings about.
#[derive(Clone, Debug, Default)]
pub enum Fault {
    /// None.
    #[default]
    Calm,
    /// The operator is killed around its n-th write.
    Kill {
        /// From 1.
        write: usize,
        /// Before or after.
        moment: Moment,
    },
    /// The n-th event of all watches is never delivered.
    Lose {
        /// From 1.
        event: usize,
    },
    /// Lists are answered with what they were before, and the watches that follow are silent until this ends.
    Stale {
        /// By the plural name of the kind: the body of the list.
        lists: BTreeMap<String, Vec<u8>>,
    },
    /// Calls are disturbed until this ends.
    Disturb(Disturbance),
}

/// How calls are disturbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// Writes are refused with a code; `retry_after` in seconds.
    Refuse {
        /// The HTTP status.
        code: u16,
        /// What the header says.
        retry_after: Option<u32>,
    },
    /// Writes of one kind are refused with a code.
    RefuseKind {
        /// The plural name of the kind.
        kind: &'static str,
        /// The HTTP status.
        code: u16,
    },
    /// Every call is refused with a code, and watches that were open end.
    RefuseAll {
        /// The HTTP status.
        code: u16,
    },
    /// Writes are carried out, but the connection is gone before they are answered.
    Reset,
    /// Every answer comes this much later.
    Slow(Duration),
    /// Writes are never answered.
    Silent,
    /// No call is ever answered, and watches that were open end.
    SilentAll,
    /// Watches end in the middle of an event.
    Truncate,
    /// Watches are told that their version is too old.
    Gone,
    /// The events of some kinds come only when this ends.
    Mute {
        /// By the plural name of the kind.
        kinds: &'static [&'static str],
    },
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It goes on.
    Pass,
    /// It goes on, and the operator is killed before it is answered.
    KillAfter,
    /// The operator is killed at once.
    KillBefore,
    /// The answer is this code.
    Refuse(u16, Option<u32>),
    /// It goes on, and the connection ends before it is answered.
    Reset,
    /// It goes on after this time.
    Wait(Duration),
    /// Nothing ever comes.
    Hang,
}

impl Fault {
    /// What becomes of a call that is the `write`-th write, or none.
    pub fn step(&self, call: &Call, write: Option<usize>) -> Step {
        match self {
            Self::Kill { write: at, moment } if write == Some(*at) => match moment {
                Moment::Before => Step::KillBefore,
                Moment::After => Step::KillAfter,
            },
            Self::Disturb(disturbance) => disturbance.step(call),
            _ => Step::Pass,
        }
    }
}

impl Disturbance {
    /// Whether the events of a kind wait.
    pub fn mutes(self, kind: &str) -> bool {
        matches!(self, Self::Mute { kinds } if kinds.contains(&kind))
    }

    fn step(self, call: &Call) -> Step {
        match self {
            Self::RefuseAll { code } => Step::Refuse(code, None),
            Self::Refuse { code, retry_after } if call.is_write() => Step::Refuse(code, retry_after),
            Self::RefuseKind { kind, code } if call.is_write() && call.kind() == kind => Step::Refuse(code, None),
            Self::Reset if call.is_write() => Step::Reset,
            Self::Silent if call.is_write() => Step::Hang,
            Self::SilentAll => Step::Hang,
            Self::Slow(time) => Step::Wait(time),
            _ => Step::Pass,
        }
    }
}
