//! The load to be expected, from the arrivals of the last seconds.
//!
//! Expected is the largest of an upper bound of the present rate (mean of five seconds and two standard deviations of
//! that mean, arrivals taken as Poisson) and where a significant trend of the last ten seconds leads by the time that a
//! new server is ready.

use std::collections::VecDeque;

use super::Observation;

/// Seconds over which the present rate is averaged.
const PRESENT: f64 = 5.0;
/// Seconds over which a trend is looked for.
const TREND: f64 = 10.0;
/// A slope below this many of its standard errors is chance.
const SIGNIFICANT: f64 = 3.0;

/// The arrivals of the last seconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Demand {
    /// `(when, rows a second, rows per request)`, oldest first, of the last [`TREND`] seconds.
    arrivals: VecDeque<(f64, f64, f64)>,
    /// `(when, present rate)` of those looks of the scale-in window that no later one was above: falling rates.
    rates: VecDeque<(f64, f64)>,
}

impl Demand {
    /// Takes in one look; `window`: how long its rate is remembered for [`Demand::peak`].
    pub fn observe(&mut self, observation: &Observation, now: f64, window: f64) {
        let per_second = |rows: u64, seconds: f64| rows as f64 / seconds.max(0.1);
        // Servers that told nothing in this look are taken to be as busy as the others.
        let unseen = observation.unseen();
        let rows = unseen * observation.pods.iter().map(|pod| per_second(pod.rows_arrived, pod.seconds)).sum::<f64>();
        let requests =
            unseen * observation.pods.iter().map(|pod| per_second(pod.requests_admitted, pod.seconds)).sum::<f64>();
        let each = if requests > 0.0 { (rows / requests).max(1.0) } else { 1.0 };
        self.arrivals.push_back((now, rows, each));
        while self.arrivals.front().is_some_and(|(at, ..)| now - at > TREND) {
            self.arrivals.pop_front();
        }
        let present = self.present();
        while self.rates.back().is_some_and(|(_, rate)| *rate <= present) {
            self.rates.pop_back();
        }
        self.rates.push_back((now, present));
        while self.rates.front().is_some_and(|(at, _)| now - at > window) {
            self.rates.pop_front();
        }
    }

    /// Gives back room for more looks than are remembered.
    pub fn shrink(&mut self) {
        self.arrivals.shrink_to_fit();
        self.rates.shrink_to_fit();
    }

    /// An upper bound of the present rate in rows a second.
    fn present(&self) -> f64 {
        let Some((latest, ..)) = self.arrivals.back() else { return 0.0 };
        let recent: Vec<_> = self.arrivals.iter().filter(|(at, ..)| latest - at < PRESENT).collect();
        let count = recent.len() as f64;
        let mean = recent.iter().map(|(_, rows, _)| rows).sum::<f64>() / count;
        let each = recent.iter().map(|(.., each)| each).sum::<f64>() / count;
        mean + 2.0 * (mean * each / count).sqrt()
    }

    /// The rate in rows a second to be ready for in `horizon` seconds.
    pub fn expected(&self, horizon: f64) -> f64 {
        let present = self.present();
        present + self.trend().map_or(0.0, |slope| slope * horizon.min(60.0))
    }

    /// The highest rate of the window.
    pub fn peak(&self) -> f64 {
        self.rates.front().map_or(0.0, |(_, rate)| *rate)
    }

    /// The growth in rows a second per second, where it is more than chance.
    fn trend(&self) -> Option<f64> {
        let count = self.arrivals.len() as f64;
        if count < 5.0 {
            return None;
        }
        let mean_at = self.arrivals.iter().map(|(at, ..)| at).sum::<f64>() / count;
        let mean_rate = self.arrivals.iter().map(|(_, rate, _)| rate).sum::<f64>() / count;
        let spread: f64 = self.arrivals.iter().map(|(at, ..)| (at - mean_at).powi(2)).sum();
        let slope = self.arrivals.iter().map(|(at, rate, _)| (at - mean_at) * (rate - mean_rate)).sum::<f64>()
            / spread.max(1e-9);
        let unexplained: f64 =
            self.arrivals.iter().map(|(at, rate, _)| (rate - mean_rate - slope * (at - mean_at)).powi(2)).sum();
        let error = (unexplained / (count - 2.0) / spread.max(1e-9)).sqrt();
        (slope > SIGNIFICANT * error && slope > 0.0).then_some(slope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scale::PodWindow;

    fn look(rows: u64) -> Observation {
        let pod = PodWindow { seconds: 1.0, rows_arrived: rows, requests_admitted: rows, ..PodWindow::default() };
        Observation { pods: vec![pod], ..Observation::default() }
    }

    fn after(rates: impl IntoIterator<Item = u64>) -> Demand {
        let mut demand = Demand::default();
        for (second, rows) in rates.into_iter().enumerate() {
            demand.observe(&look(rows), second as f64, 60.0);
        }
        demand
    }

    #[test]
    fn a_steady_rate_is_expected_with_a_margin_for_chance() {
        let expected = after([100; 20]).expected(10.0);
        assert!((100.0..115.0).contains(&expected), "{expected}");
    }

    #[test]
    fn a_rising_rate_is_followed_to_the_horizon() {
        let expected = after((0..20).map(|second| 10 * second)).expected(10.0);
        assert!((250.0..320.0).contains(&expected), "{expected}");
    }

    #[test]
    fn noise_is_no_trend() {
        let expected = after([90, 110, 95, 105, 100, 92, 108, 99, 101, 97, 103]).expected(60.0);
        assert!(expected < 120.0, "{expected}");
    }

    #[test]
    fn the_peak_is_forgotten_after_the_window() {
        let mut rates = vec![500; 5];
        rates.extend([10; 50]);
        assert!(after(rates.clone()).peak() > 400.0);
        rates.extend([10; 30]);
        assert!(after(rates).peak() < 50.0);
    }

    #[test]
    fn nothing_seen_is_nothing_expected() {
        assert!(Demand::default().expected(10.0).abs() < f64::EPSILON);
    }
}
