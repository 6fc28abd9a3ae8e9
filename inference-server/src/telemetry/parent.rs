//! The trace that a request belongs to, as W3C's Trace Context writes it into its headers.
//!
//! `traceparent` is read here and not by OpenTelemetry's library, which takes allocations for it: it comes with every request of
//! those who trace anything, also where this one is not traced.

use axum::http::HeaderMap;
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

/// `VERSION-TRACE-SPAN-FLAGS` in hexadecimal digits, so many of each.
const LENGTH: usize = 2 + 1 + 32 + 1 + 16 + 1 + 2;

/// So many bytes of `tracestate` must be passed on; a longer one is left out as a whole. Each span that waits to be sent holds it.
const LONGEST_STATE: usize = 512;

/// The span of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parent {
    pub trace: TraceId,
    pub span: SpanId,
    /// Whether the caller records it.
    pub is_sampled: bool,
}

impl Parent {
    /// What a request says of its trace. What is not of the form says nothing, as the specification wants it.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all("traceparent").iter();
        let text = values.next()?.as_bytes().trim_ascii();
        if values.next().is_some() {
            return None;
        }
        Self::parse(text)
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let (known, more) = text.split_at_checked(LENGTH)?;
        if [2, 35, 52].iter().any(|dash| known[*dash] != b'-') {
            return None;
        }
        let version = number(&known[..2])?;
        let (trace, span, flags) = (number(&known[3..35])?, number(&known[36..52])?, number(&known[53..])?);
        // Later versions may say more, behind another dash; the last number is none.
        let is_whole = more.is_empty() || (version > 0 && more.starts_with(b"-"));
        if version == 0xff || !is_whole || trace == 0 || span == 0 {
            return None;
        }
        let span = SpanId::from(u64::try_from(span).ok()?);
        Some(Self { trace: TraceId::from(trace), span, is_sampled: flags & 1 == 1 })
    }

    /// With what vendors have to say, for spans that belong to it.
    pub fn context(self, state: TraceState) -> SpanContext {
        SpanContext::new(self.trace, self.span, TraceFlags::SAMPLED, true, state)
    }
}

/// `tracestate`, over all headers of the name; none where it is not of the form, or too long.
pub(super) fn state(headers: &HeaderMap) -> TraceState {
    let values: Option<Vec<&str>> = headers.get_all("tracestate").iter().map(|value| value.to_str().ok()).collect();
    let text = values.map(|values| values.join(",")).filter(|text| text.len() <= LONGEST_STATE);
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

/// The number that lower-case hexadecimal digits make; at most 32 of them.
fn number(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
    const SPAN: u64 = 0x00f0_67aa_0ba9_02b7;

    fn parent(value: &str) -> Option<Parent> {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", value.parse().unwrap());
        Parent::of(&headers)
    }

    #[test]
    fn a_caller_says_whether_it_is_sampled() {
        let expected = |is_sampled| Some(Parent { trace: TRACE.into(), span: SPAN.into(), is_sampled });
        for (value, is_sampled) in [
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00", false),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", true),
            (" 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03 ", true),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-02", false),
            ("02-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-09", true),
            ("02-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-09-XYZxsf09", true),
        ] {
            assert_eq!(parent(value), expected(is_sampled), "{value}");
        }
    }

    #[test]
    fn what_is_not_of_the_form_says_nothing() {
        for value in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "0x-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-+1",
        ] {
            assert_eq!(parent(value), None, "{value}");
        }
        let mut twice = HeaderMap::new();
        for _ in 0..2 {
            let value = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
            twice.append("traceparent", value.parse().unwrap());
        }
        assert_eq!(Parent::of(&twice), None, "nobody knows which");
        assert_eq!(Parent::of(&HeaderMap::new()), None);
    }

    #[test]
    fn what_vendors_say_is_joined_over_its_headers() {
        let mut headers = HeaderMap::new();
        assert_eq!(state(&headers), TraceState::default());
        headers.append("tracestate", "rojo=00f067aa0ba902b7".parse().unwrap());
        headers.append("tracestate", "congo=t61rcWkgMzE".parse().unwrap());
        assert_eq!(state(&headers).header(), "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE");
        let longest = format!("a={},b={}", "x".repeat(253), "x".repeat(254));
        assert_eq!(longest.len(), LONGEST_STATE);
        headers.insert("tracestate", longest.parse().unwrap());
        assert_ne!(state(&headers), TraceState::default());
        headers.append("tracestate", "c=d".parse().unwrap());
        assert_eq!(state(&headers), TraceState::default());
        headers.insert("tracestate", "nonsense".parse().unwrap());
        assert_eq!(state(&headers), TraceState::default());
    }
}
