//! Watches that begin anew with a list from time to time.
//!
//! A watch tells of each change once. Should the API server, or something between, ever swallow one, the cache would be
//! wrong until the object changes again, perhaps forever: a reconcile that comes by the clock sees the same cache. So
//! everything is listed anew now and then, and what was missed is made up for.

use std::{fmt::Debug, time::Duration};

use futures::{Stream, StreamExt, stream};
use kube::{
    Api, Resource,
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;

/// Watches, and lists anew after `every` or a little more: kinds are not all listed at once.
pub fn watch<K>(
    api: &Api<K>,
    config: &watcher::Config,
    every: Duration,
) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + use<K>
where
    K: Resource<DynamicType: Default> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let (api, config) = (api.clone(), config.clone());
    let letters: u32 = K::plural(&K::DynamicType::default()).bytes().map(u32::from).sum();
    let every = every.mul_f64(1.0 + f64::from(letters % 16) / 64.0);
    let round =
        move || watcher(api.clone(), config.clone()).default_backoff().take_until(tokio::time::sleep(every)).boxed();
    stream::repeat_with(round).flatten()
}
