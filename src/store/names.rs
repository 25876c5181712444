//! Names and their addresses: a name is looked up once for many connections, and all its addresses are
//! used, because each may lead to another machine.

use crate::lock::lock;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use tower_service::Service;

/// How long addresses are used. Connections are made in bursts, hundreds within a second, and in a Pod
/// each look-up may be ten questions, because search domains come first.
const FRESH: Duration = Duration::from_secs(5);

/// Looks names up, by the system's resolver if not told otherwise.
pub(super) struct Names<R: Service<Name>> {
    resolver: R,
    known: Arc<Mutex<HashMap<Name, Known<R::Error>>>>,
}

impl<R: Service<Name> + Clone> Clone for Names<R> {
    fn clone(&self) -> Self {
        Self { resolver: self.resolver.clone(), known: Arc::clone(&self.known) }
    }
}

/// One look-up, for all who want to know.
type LookUp<E> = Shared<BoxFuture<'static, Result<Arc<[SocketAddr]>, Arc<E>>>>;

struct Known<E> {
    since: Instant,
    found: LookUp<E>,
    /// Connections made to what was found.
    used: usize,
}

/// The addresses in the order in which the connection `number` tries them. Those of the family that the
/// resolver prefers stay in front.
fn in_turn(addresses: &[SocketAddr], number: usize) -> Vec<SocketAddr> {
    let mut addresses = addresses.to_vec();
    let preferred = addresses.first().map_or(0, |first| {
        addresses.iter().take_while(|one| one.is_ipv4() == first.is_ipv4()).count()
    });
    if preferred > 0 {
        addresses[..preferred].rotate_left(number % preferred);
    }
    addresses
}

impl Names<GaiResolver> {
    pub(super) fn of_the_system() -> Self {
        Self { resolver: GaiResolver::new(), known: Arc::default() }
    }
}

impl<R> Service<Name> for Names<R>
where
    R: Service<Name, Response: Iterator<Item = SocketAddr>> + Clone + Send + 'static,
    R::Future: Send,
    R::Error: Send + Sync + 'static,
{
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = Arc<R::Error>;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.resolver.poll_ready(cx).map_err(Arc::new)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let mut known = lock(&self.known);
        // what failed is not remembered, only shared by those who wait for it
        known.retain(|_, known| {
            known.since.elapsed() < FRESH && !matches!(known.found.peek(), Some(Err(_)))
        });
        let known = known.entry(name.clone()).or_insert_with(|| {
            let looking = self.resolver.call(name);
            let found = async move { Ok(looking.await.map_err(Arc::new)?.collect()) };
            Known { since: Instant::now(), found: found.boxed().shared(), used: 0 }
        });
        let (found, number) = (known.found.clone(), known.used);
        known.used += 1;
        async move { Ok(in_turn(&found.await?, number).into_iter()) }.boxed()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    /// Knows one name, and counts how often it is asked.
    #[derive(Clone)]
    struct Scripted {
        addresses: Vec<SocketAddr>,
        asked: Arc<AtomicUsize>,
    }

    impl Service<Name> for Scripted {
        type Response = std::vec::IntoIter<SocketAddr>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Name) -> Self::Future {
            self.asked.fetch_add(1, Relaxed);
            std::future::ready(Ok(self.addresses.clone().into_iter()))
        }
    }

    fn names(addresses: &[&str]) -> (Names<Scripted>, Arc<AtomicUsize>) {
        let addresses = addresses.iter().map(|one| one.parse().unwrap()).collect();
        let asked = Arc::<AtomicUsize>::default();
        let resolver = Scripted { addresses, asked: Arc::clone(&asked) };
        (Names { resolver, known: Arc::default() }, asked)
    }

    async fn firsts(names: &mut Names<Scripted>, count: usize) -> Vec<String> {
        let mut firsts = Vec::new();
        for _ in 0..count {
            let mut found = names.call("oss.test".parse().unwrap()).await.unwrap();
            firsts.push(found.next().unwrap().to_string());
        }
        firsts
    }

    #[tokio::test]
    async fn connections_go_to_all_addresses_in_turn_after_one_look_up() {
        let (mut names, asked) = names(&["10.0.0.1:0", "10.0.0.2:0", "10.0.0.3:0"]);
        let firsts = firsts(&mut names, 5).await;
        assert_eq!(firsts, ["10.0.0.1:0", "10.0.0.2:0", "10.0.0.3:0", "10.0.0.1:0", "10.0.0.2:0"]);
        assert_eq!(asked.load(Relaxed), 1);
    }

    #[tokio::test]
    async fn the_preferred_family_stays_in_front_and_the_other_behind() {
        let (mut names, _) = names(&["[fd00::1]:0", "[fd00::2]:0", "10.0.0.1:0"]);
        assert_eq!(firsts(&mut names, 3).await, ["[fd00::1]:0", "[fd00::2]:0", "[fd00::1]:0"]);
        let found = names.call("oss.test".parse().unwrap()).await.unwrap();
        assert_eq!(found.last().unwrap(), "10.0.0.1:0".parse().unwrap());
    }

    #[tokio::test]
    async fn a_name_without_addresses_is_no_error_here() {
        let (mut names, _) = names(&[]);
        assert_eq!(names.call("oss.test".parse().unwrap()).await.unwrap().count(), 0);
    }
}
