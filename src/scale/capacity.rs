//! What one server carries within the latency target.
//!
//! Learned: the service time of a batch, S(b) = α + β·b, by least squares over what the servers executed, older batches
//! fading out; and the CPU seconds that a row costs all in all, which is what limits a small model, where parsing and
//! writing cost more than the model does.
//!
//! Capacity is the largest arrival rate λ at which the predicted quantile of the latency meets the target. Prediction,
//! for batches that are formed from what waits when the server becomes free:
//!
//! - a request meets a batch under way and then its own: 2·S(b), with b the quantile of the rows that arrive during one
//!   service, a Poisson number: b = λS + z·√(λS) (a fixed point, as S depends on b);
//! - what does not fit into full batches waits longer: the reflected diffusion of the backlog, whose stationary quantile
//!   is ln(1/(1−q))·λS / 2(B−λS) rows (heavy-traffic limit, Kingman 1962), exact in the limit for B = 1.
//!
//! A server that runs several batches at once counts as so many servers that share its CPUs.
//!
//! This is deliberately simple and errs towards more servers; a simulation is meant to replace [`Learned::capacity`].

use ortolan_protocol::stats::BatchCell;

use super::PodWindow;

/// How much of what was learned before is kept when a server reports once more.
const FADING: f64 = 0.98;
/// The share of its CPUs that a server may use at its capacity.
const CPU_SHARE: f64 = 0.8;
/// More batches at once than a server can have been told to run.
const MOST_INSTANCES: u64 = 256;
/// The utilization up to which a server is used although the prediction sees no rate that meets the target.
const LEAST_UTILIZATION: f64 = 0.5;

/// The latency to keep.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    /// Between 0 and 1.
    pub quantile: f64,
    /// In seconds.
    pub target: f64,
}

/// What one server carries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Capacity {
    /// Rows a second within the target.
    pub rows_per_second: f64,
    /// The time of one execution in seconds, where that alone is above the target.
    pub out_of_reach: Option<f64>,
}

/// What was learned about the servers of a model, as sums that fade.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Learned {
    batches: f64,
    rows: f64,
    seconds: f64,
    rows_squared: f64,
    rows_seconds: f64,
    requests_admitted: f64,
    rows_arrived: f64,
    cpu_seconds: f64,
    cpu_rows: f64,
    cpus: f64,
    max_batch_rows: f64,
    instances: u64,
}

/// S(b) = α + β·b in seconds, b in rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServiceTime {
    /// The part that does not depend on the batch.
    pub alpha: f64,
    /// The part of each row.
    pub beta: f64,
}

impl ServiceTime {
    /// The time of a batch of `rows` in seconds.
    pub fn of(self, rows: f64) -> f64 {
        self.alpha + self.beta * rows
    }
}

impl Learned {
    /// Takes in what one server did.
    pub fn observe(&mut self, pod: &PodWindow) {
        let executed: u64 = pod.batches.iter().map(|cell| cell.rows).sum();
        if pod.max_batch_rows > 0 {
            self.max_batch_rows = pod.max_batch_rows as f64;
            self.instances = pod.instances;
        }
        if executed == 0 {
            return;
        }
        for sum in [
            &mut self.batches,
            &mut self.rows,
            &mut self.seconds,
            &mut self.rows_squared,
            &mut self.rows_seconds,
            &mut self.requests_admitted,
            &mut self.rows_arrived,
            &mut self.cpu_seconds,
            &mut self.cpu_rows,
        ] {
            *sum *= FADING;
        }
        self.add(&pod.batches, 1.0);
        self.requests_admitted += pod.requests_admitted as f64;
        self.rows_arrived += pod.rows_arrived as f64;
        self.cpu_seconds += pod.cpu_seconds;
        self.cpu_rows += executed as f64;
        self.cpus = pod.cpus;
    }

    /// Takes in what a server executed before it was looked at for the first time, its warm-up at least. It counts as at
    /// most a hundred batches, so that what is seen later soon outweighs it.
    pub fn begin_with(&mut self, batches: &[BatchCell]) {
        let count: u64 = batches.iter().map(|cell| cell.count).sum();
        self.add(batches, (100.0 / count.max(1) as f64).min(1.0));
    }

    fn add(&mut self, batches: &[BatchCell], weight: f64) {
        for cell in batches.iter().filter(|cell| cell.count > 0) {
            let count = cell.count as f64;
            let rows = cell.rows as f64 / count;
            self.batches += weight * count;
            self.rows += weight * cell.rows as f64;
            self.seconds += weight * cell.seconds;
            self.rows_squared += weight * count * rows * rows;
            self.rows_seconds += weight * rows * cell.seconds;
        }
    }

    /// The service time, or `None` before the first batch.
    pub fn service_time(&self) -> Option<ServiceTime> {
        if self.batches <= 0.0 || self.seconds <= 0.0 {
            return None;
        }
        let mean_rows = self.rows / self.batches;
        let mean_seconds = self.seconds / self.batches;
        let variance = self.rows_squared / self.batches - mean_rows * mean_rows;
        let covariance = self.rows_seconds / self.batches - mean_rows * mean_seconds;
        // With one size only the slope is unknown; that a batch gains nothing is the careful assumption.
        let proportional = mean_seconds / mean_rows;
        let beta =
            if variance > 0.05 * mean_rows { (covariance / variance).clamp(0.0, proportional) } else { proportional };
        Some(ServiceTime { alpha: mean_seconds - beta * mean_rows, beta })
    }

    /// Mean rows of a request, at least one.
    fn rows_per_request(&self) -> f64 {
        if self.requests_admitted > 0.0 { (self.rows_arrived / self.requests_admitted).max(1.0) } else { 1.0 }
    }

    /// What one server carries, or `None` before the first batch.
    pub fn capacity(&self, goal: Goal) -> Option<Capacity> {
        let service = self.service_time()?;
        let request = self.rows_per_request();
        let server = Server { service, request, largest: self.max_batch_rows.max(request) };
        let alone = service.of(request);
        let least = LEAST_UTILIZATION * request / alone;
        let instances = self.instances.clamp(1, MOST_INSTANCES) as f64;
        let latency_bound = instances * server.largest_rate(goal).max(least);
        let cpu_bound =
            if self.cpu_seconds > 0.0 { CPU_SHARE * self.cpus * self.cpu_rows / self.cpu_seconds } else { f64::MAX };
        Some(Capacity {
            rows_per_second: latency_bound.min(cpu_bound),
            out_of_reach: (alone > goal.target).then_some(alone),
        })
    }
}

/// One batching server; all in rows and seconds.
#[derive(Clone, Copy, Debug)]
pub struct Server {
    /// Its service time.
    pub service: ServiceTime,
    /// Rows of one request.
    pub request: f64,
    /// The largest batch.
    pub largest: f64,
}

impl Server {
    /// The largest rate in rows a second that meets the goal; 0 when none does.
    pub fn largest_rate(&self, goal: Goal) -> f64 {
        let (mut meets, mut fails) = (0.0, self.largest / self.service.of(self.largest));
        for _ in 0..40 {
            let rate = f64::midpoint(meets, fails);
            if self.latency(rate, goal.quantile) <= goal.target { meets = rate } else { fails = rate }
        }
        meets
    }

    /// The predicted quantile of the latency in seconds at `rate` rows a second; infinite when overloaded.
    pub fn latency(&self, rate: f64, quantile: f64) -> f64 {
        let full = self.service.of(self.largest);
        let arriving_full = rate * full;
        if arriving_full >= self.largest {
            return f64::INFINITY;
        }
        let tail = (1.0 / (1.0 - quantile)).ln();
        let backlog = tail * self.request * arriving_full / (2.0 * (self.largest - arriving_full));
        let overflow = backlog / self.largest * full;
        let batch = self.batch(rate, tail);
        let behind = if self.largest > self.request { self.service.of(batch) } else { 0.0 };
        behind + self.service.of(batch) + overflow
    }

    /// The quantile of a batch's rows: what arrives while a batch of that size is served.
    fn batch(&self, rate: f64, tail: f64) -> f64 {
        // The normal quantile z of a tail probability p is close to √(2·ln(1/p)) − 0.7 for the quantiles in use.
        let z = ((2.0 * tail).sqrt() - 0.7).max(0.0);
        let mut rows = self.request;
        for _ in 0..30 {
            let requests = rate * self.service.of(rows) / self.request;
            rows = (self.request * (requests + z * requests.sqrt())).clamp(self.request, self.largest);
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOAL: Goal = Goal { quantile: 0.99, target: 0.1 };

    fn pod(cells: &[(u64, f64, u64)]) -> PodWindow {
        let batches: Vec<_> = cells
            .iter()
            .map(|(rows, seconds, count)| BatchCell {
                limit: *rows,
                count: *count,
                rows: rows * count,
                seconds: seconds * *count as f64,
            })
            .collect();
        let rows = batches.iter().map(|cell| cell.rows).sum();
        PodWindow {
            seconds: 1.0,
            requests_admitted: rows,
            rows_arrived: rows,
            max_batch_rows: 32,
            batches,
            cpus: 1.0,
            ..PodWindow::default()
        }
    }

    #[test]
    fn the_service_time_is_found_from_batches_of_different_sizes() {
        let mut learned = Learned::default();
        learned.observe(&pod(&[(1, 0.015, 10), (4, 0.030, 10), (16, 0.090, 10)]));
        let ServiceTime { alpha, beta } = learned.service_time().unwrap();
        assert!((alpha - 0.010).abs() < 1e-9 && (beta - 0.005).abs() < 1e-9, "{alpha} {beta}");
    }

    #[test]
    fn a_servers_warm_up_is_the_first_knowledge() {
        let mut learned = Learned::default();
        learned.begin_with(&pod(&[(1, 0.015, 1000), (16, 0.090, 1000)]).batches);
        let ServiceTime { alpha, beta } = learned.service_time().unwrap();
        assert!((alpha - 0.010).abs() < 1e-9 && (beta - 0.005).abs() < 1e-9, "{alpha} {beta}");
        (0..20).for_each(|_| learned.observe(&pod(&[(1, 0.1, 50)])));
        assert!(learned.service_time().unwrap().of(1.0) > 0.05, "what is seen soon outweighs it");
    }

    #[test]
    fn batches_of_one_size_are_assumed_to_gain_nothing() {
        let mut learned = Learned::default();
        learned.observe(&pod(&[(1, 0.02, 50)]));
        assert_eq!(learned.service_time(), Some(ServiceTime { alpha: 0.0, beta: 0.02 }));
    }

    #[test]
    fn batches_that_run_at_once_carry_more_as_far_as_the_cpus_go() {
        let capacity = |instances, cpu_seconds| {
            let mut learned = Learned::default();
            learned.observe(&PodWindow { instances, cpu_seconds, cpus: 2.0, ..pod(&[(1, 0.02, 50), (8, 0.1, 10)]) });
            learned.capacity(GOAL).unwrap().rows_per_second
        };
        let one = capacity(0, 0.0);
        assert!((capacity(1, 0.0) - one).abs() < 1e-9 && (capacity(2, 0.0) - 2.0 * one).abs() < 1e-9);
        // 130 rows in 2 s of CPU time: 2 CPUs are used at 104 rows a second.
        assert!(capacity(64, 2.0) < 110.0);
        assert!(capacity(u64::MAX, 0.0).is_finite());
    }

    #[test]
    fn nothing_is_known_before_the_first_batch() {
        let mut learned = Learned::default();
        learned.observe(&PodWindow { max_batch_rows: 32, ..PodWindow::default() });
        assert_eq!(learned.capacity(GOAL), None);
    }

    /// For S(b) = 10 ms + 5 ms·b, at most 32, p99 ≤ 100 ms, a simulation of this server found about 130 rows a second.
    #[test]
    fn the_capacity_of_a_batching_server_is_below_what_a_simulation_finds_and_not_absurdly_so() {
        let server = Server { service: ServiceTime { alpha: 0.01, beta: 0.005 }, request: 1.0, largest: 32.0 };
        let rate = server.largest_rate(GOAL);
        assert!((40.0..140.0).contains(&rate), "{rate}");
    }

    #[test]
    fn a_server_without_batching_stays_below_its_raw_rate() {
        let server = Server { service: ServiceTime { alpha: 0.0, beta: 0.01 }, request: 1.0, largest: 1.0 };
        let rate = server.largest_rate(GOAL);
        assert!((50.0..95.0).contains(&rate), "{rate}");
    }

    #[test]
    fn an_execution_longer_than_the_target_is_said() {
        let mut learned = Learned::default();
        learned.observe(&pod(&[(1, 0.25, 50)]));
        let capacity = learned.capacity(GOAL).unwrap();
        assert!((capacity.out_of_reach.unwrap() - 0.25).abs() < 1e-9);
        assert!((capacity.rows_per_second - 2.0).abs() < 1e-9, "half of its raw rate of 4");
    }

    #[test]
    fn the_cpu_limits_a_model_that_costs_less_than_its_transport() {
        let mut learned = Learned::default();
        learned.observe(&PodWindow { cpu_seconds: 0.5, cpus: 1.0, ..pod(&[(1, 1e-5, 1000)]) });
        let capacity = learned.capacity(GOAL).unwrap().rows_per_second;
        assert!((capacity - 1600.0).abs() < 1.0, "{capacity}");
    }

    proptest! {
        #[test]
        fn a_longer_target_never_lowers_the_capacity(
            alpha in 0.0..0.05f64, beta in 1e-5..0.02f64, largest in 1u32..128, target in 0.01..1.0f64
        ) {
            let server = Server { service: ServiceTime { alpha, beta }, request: 1.0, largest: f64::from(largest) };
            let short = server.largest_rate(Goal { quantile: 0.99, target });
            let long = server.largest_rate(Goal { quantile: 0.99, target: 2.0 * target });
            prop_assert!(long >= short - 1e-6);
            prop_assert!(long.is_finite() && short >= 0.0);
        }
    }
}
