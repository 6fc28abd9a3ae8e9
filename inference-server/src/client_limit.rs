//! How much one client may ask for, where the server is told a limit.
//!
//! A client is who holds an API key, where the server wants keys; else an address, or the 64 bits of an IPv6 address that a host
//! is given as a whole. What a request says of where it comes from (`X-Forwarded-For`) is not believed: anybody can write it.
//!
//! Only so many clients are remembered, so that many addresses cannot fill the memory: who comes once makes room for the
//! next one, who keeps asking stays. A client that was forgotten begins anew.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::http::Extensions;
use clap::Args;
use governor::clock::{Clock, MonotonicClock};
use governor::nanos::Nanos;
use governor::state::{InMemoryState, StateStore, direct::NotKeyed};
use governor::{Quota, RateLimiter};
use quick_cache::sync::Cache;

use crate::error::Error;

/// The most clients that are remembered; about 2 MiB.
const REMEMBERED: usize = 16_384;

/// The flags of `serve` about it.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct ClientLimits {
    /// Requests a second that one client may send in the long run, told apart by its API key where keys are wanted, else by its
    /// address; beyond it they are refused with 429
    #[arg(long, value_name = "REQUESTS", env = "ORTOLAN_CLIENT_REQUESTS_PER_SECOND")]
    pub client_requests_per_second: Option<NonZeroU32>,
    /// Requests that a client may send at once after it was quiet [default: those of a second]
    #[arg(long, value_name = "REQUESTS", requires = "client_requests_per_second", env = "ORTOLAN_CLIENT_BURST")]
    pub client_burst: Option<NonZeroU32>,
    /// Connections for REST and gRPC that one address may have open; more are closed at once. What stands between clients and
    /// this server, such as an ingress, is one address
    #[arg(long, value_name = "CONNECTIONS", env = "ORTOLAN_CLIENT_CONNECTIONS")]
    pub client_connections: Option<NonZeroUsize>,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client(u128);

impl Client {
    /// Who holds the key with this SHA-256.
    pub fn with_key(hash: &[u8; 32]) -> Self {
        Self(hash.iter().take(16).fold(0, |client, byte| client << 8 | u128::from(*byte)))
    }

    /// Who asks from an address.
    pub fn at(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(address.to_ipv6_mapped().to_bits()),
            IpAddr::V6(address) => {
                Self(address.to_bits() & !Ipv6Addr::from_segments([0, 0, 0, 0, !0, !0, !0, !0]).to_bits())
            }
        }
    }

    /// Who asks over the connection that a request came by, where connections tell.
    pub fn of_connection(extensions: &Extensions) -> Option<Self> {
        extensions.get().copied()
    }
}

/// The limit of requests, and what each client has used of it.
#[derive(Debug)]
pub struct RequestLimit {
    limiter: RateLimiter<Client, Remembered, MonotonicClock>,
    per_second: NonZeroU32,
}

impl RequestLimit {
    /// The limit, if the flags have one.
    pub fn new(limits: ClientLimits) -> Option<Self> {
        let per_second = limits.client_requests_per_second?;
        let burst = limits.client_burst.unwrap_or(per_second);
        let quota = Quota::per_second(per_second).allow_burst(burst);
        Some(Self { limiter: RateLimiter::new(quota, Remembered::default(), MonotonicClock), per_second })
    }

    /// Lets a request of a client in, or says when the next one may come.
    pub fn check(&self, client: Client) -> Result<(), Error> {
        let outcome = self.limiter.check_key(&client);
        outcome.map_err(|until| {
            Error::too_many_requests(self.per_second.get(), until.wait_time_from(self.limiter.clock().now()))
        })
    }
}

/// What clients have used, for as many of them as are remembered.
struct Remembered(Cache<Client, Arc<InMemoryState>>);

impl Default for Remembered {
    fn default() -> Self {
        Self(Cache::new(REMEMBERED))
    }
}

impl std::fmt::Debug for Remembered {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Remembered").field("clients", &self.0.len()).finish()
    }
}

impl StateStore for Remembered {
    type Key = Client;

    fn measure_and_replace<T, F, E>(&self, client: &Client, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let state = self.0.get(client).unwrap_or_else(|| {
            // Two first requests at once: the state of one of them is dropped, and a request with it.
            let state = Arc::<InMemoryState>::default();
            self.0.insert(*client, Arc::clone(&state));
            state
        });
        state.measure_and_replace(&NotKeyed::NonKey, decide)
    }
}

/// The connections that each address has open.
#[derive(Debug)]
pub struct OpenConnections {
    most: usize,
    open: Mutex<HashMap<Client, usize>>,
}

impl OpenConnections {
    /// The limit, if the flags have one.
    pub fn new(limits: ClientLimits) -> Option<Arc<Self>> {
        let most = limits.client_connections?.get();
        Some(Arc::new(Self { most, open: Mutex::default() }))
    }

    /// Takes a connection in, for as long as the answer is kept; `None` when the address has enough of them.
    pub fn open(self: &Arc<Self>, address: IpAddr) -> Option<OpenConnection> {
        let client = Client::at(address);
        let mut open = self.lock();
        let count = open.entry(client).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(OpenConnection { all: Arc::clone(self), client })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Client, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that counts until it is dropped.
#[derive(Debug)]
pub struct OpenConnection {
    all: Arc<OpenConnections>,
    client: Client,
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let mut open = self.all.lock();
        if let Some(count) = open.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use governor::clock::FakeRelativeClock;
    use governor::middleware::NoOpMiddleware;

    use super::*;

    fn client(address: &str) -> Client {
        Client::at(address.parse().unwrap())
    }

    fn limits(per_second: u32, burst: u32) -> ClientLimits {
        ClientLimits {
            client_requests_per_second: NonZeroU32::new(per_second),
            client_burst: NonZeroU32::new(burst),
            client_connections: NonZeroUsize::new(2),
        }
    }

    #[test]
    fn a_client_is_a_host_or_a_key() {
        assert_eq!(client("10.0.0.1"), client("::ffff:10.0.0.1"));
        assert_ne!(client("10.0.0.1"), client("10.0.0.2"));
        assert_eq!(client("2001:db8::1"), client("2001:db8::ffff:0:0:2"), "a host has a /64");
        assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
        let mut key = [7; 32];
        let first = Client::with_key(&key);
        key[15] = 8;
        assert_ne!(Client::with_key(&key), first);
    }

    #[test]
    fn a_client_has_its_burst_and_then_its_rate_and_others_have_their_own() {
        let limit = RequestLimit::new(limits(10, 3)).unwrap();
        let (one, other) = (client("10.0.0.1"), client("10.0.0.2"));
        for _ in 0..3 {
            limit.check(one).unwrap();
        }
        let error = limit.check(one).unwrap_err();
        let after = error.retry_after().unwrap();
        assert!(after > Duration::ZERO && after <= Duration::from_millis(100), "{after:?}");
        assert!(error.message().contains("10 requests a second"), "{}", error.message());
        assert!(limit.check(other).is_ok());
        assert!(RequestLimit::new(ClientLimits::default()).is_none());
    }

    #[test]
    fn time_gives_requests_back() {
        let clock = FakeRelativeClock::default();
        let quota = Quota::per_second(NonZeroU32::new(2).unwrap()).allow_burst(NonZeroU32::new(1).unwrap());
        let limiter = RateLimiter::<_, _, _, NoOpMiddleware<Nanos>>::new(quota, Remembered::default(), clock.clone());
        let one = client("10.0.0.1");
        assert!(limiter.check_key(&one).is_ok() && limiter.check_key(&one).is_err());
        clock.advance(Duration::from_millis(499));
        assert!(limiter.check_key(&one).is_err());
        clock.advance(Duration::from_millis(1));
        assert!(limiter.check_key(&one).is_ok());
    }

    #[test]
    fn many_addresses_take_no_more_memory_than_so_many_and_one_that_keeps_asking_is_not_forgotten() {
        let limit = RequestLimit::new(limits(1, 20)).unwrap();
        let busy = client("10.0.0.1");
        for _ in 0..20 {
            limit.check(busy).unwrap();
        }
        for address in 0..200_000u32 {
            limit.check(Client::at(IpAddr::V4((0x0b00_0000 + address).into()))).unwrap();
            if address.is_multiple_of(100) {
                assert!(limit.check(busy).is_err(), "forgotten after {address}");
            }
        }
        assert!(limit.limiter.into_state_store().0.len() <= REMEMBERED);
    }

    #[test]
    fn connections_count_while_they_are_open() {
        let connections = OpenConnections::new(limits(1, 1)).unwrap();
        let (address, other) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let first = connections.open(address).unwrap();
        let second = connections.open(address).unwrap();
        assert!(connections.open(address).is_none() && connections.open(other).is_some());
        drop(first);
        let third = connections.open(address);
        assert!(third.is_some());
        drop((third, second));
        assert!(connections.lock().is_empty(), "nothing is kept of who has left");
    }
}
