//! A decision in words: what `kubectl describe` shows in `status.scaling.reason` and in Events.

use super::{Cause, Config, Limit, Plan};

/// The sentence for a plan.
pub(super) fn reason(config: &Config, plan: &Plan) -> String {
    let Plan { replicas, cause, limited, load, capacity } = plan;
    let quantile = format!("p{:.0}", config.quantile * 100.0);
    let target = seconds(config.target.as_secs_f64());
    let numbers = format!(
        "{} rows/s expected, one server carries {} rows/s with {quantile} within {target}",
        number(*load),
        number(*capacity)
    );
    let text = match cause {
        Cause::Load | Cause::Idle | Cause::Steady => numbers,
        Cause::Latency => {
            format!("{quantile} stays above {target} although there should be enough servers ({numbers})")
        }
        Cause::Unknown => "nothing was executed yet, so the capacity of a server is not known".to_owned(),
        Cause::Silent => "servers do not tell their numbers; their number is held".to_owned(),
        Cause::Bounds => format!("minReplicas {} and maxReplicas {} allow {replicas}", config.min, config.max),
    };
    match limited {
        None => text,
        Some(Limit::MaxReplicas { wanted }) => {
            format!("{text}; {wanted} servers are needed, maxReplicas is {}", config.max)
        }
        Some(Limit::TargetOutOfReach { execution }) => format!(
            "{text}; one execution alone takes {}, more than the target leaves: give a server more CPU, lower batching.maxDelay, or raise the target",
            seconds(*execution)
        ),
    }
}

/// A number in two significant digits.
pub fn number(value: f64) -> String {
    if value >= 100.0 || value <= 0.0 {
        return format!("{:.0}", two_digits(value));
    }
    format!("{}", two_digits(value))
}

/// A duration in two significant digits, in milliseconds below a second.
pub fn seconds(value: f64) -> String {
    if value >= 0.9995 { format!("{}s", number(value)) } else { format!("{}ms", number(value * 1000.0)) }
}

/// The value rounded to two significant digits.
fn two_digits(value: f64) -> f64 {
    if value.abs() < 1e-9 || !value.is_finite() {
        return 0.0;
    }
    // Through text: the shortest decimal, without the dust of binary fractions.
    format!("{value:.1e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_two_significant_digits() {
        for (value, text) in
            [(0.0, "0"), (0.01234, "0.012"), (1.26, "1.3"), (47.1, "47"), (128.0, "130"), (98765.0, "99000")]
        {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn durations_choose_their_unit() {
        for (value, text) in [(0.000_123, "0.12ms"), (0.05, "50ms"), (1.0, "1s"), (12.34, "12s"), (0.1, "100ms")] {
            assert_eq!(seconds(value), text);
        }
    }
}
