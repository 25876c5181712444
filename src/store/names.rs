//! Names and their addresses: a name is looked up once for many connections, and all its addresses are
//! used, because each may lead to another machine.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use tokio::sync::Mutex;
use tower_service::Service;

/// How long addresses are used. Connections are made in bursts, hundreds within a second, and in a Pod
/// each look-up may be ten questions, because search domains come first.
const FRESH: Duration = Duration::from_secs(5);

/// Looks names up, by the system's resolver if not told otherwise.
#[derive(Debug, Clone, Default)]
pub(super) struct Names<R> {
    resolver: R,
    known: Arc<Mutex<HashMap<Name, Known>>>,
}

#[derive(Debug)]
struct Known {
    since: Instant,
    addresses: Vec<SocketAddr>,
    /// Connections made to them.
    used: usize,
}

impl Known {
    /// The addresses in the order in which the next connection tries them. Those of the family that
    /// the resolver prefers stay in front.
    fn next(&mut self) -> Vec<SocketAddr> {
        let mut addresses = self.addresses.clone();
        let preferred = addresses.first().map_or(0, |first| {
            addresses.iter().take_while(|one| one.is_ipv4() == first.is_ipv4()).count()
        });
        if preferred > 0 {
            addresses[..preferred].rotate_left(self.used % preferred);
        }
        self.used += 1;
        addresses
    }
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
{
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = R::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, R::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), R::Error>> {
        self.resolver.poll_ready(cx)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let Self { mut resolver, known } = self.clone();
        Box::pin(async move {
            // whoever is first looks it up, the others wait for what it finds
            let mut known = known.lock().await;
            known.retain(|_, known| known.since.elapsed() < FRESH);
            if let Some(known) = known.get_mut(&name) {
                return Ok(known.next().into_iter());
            }
            let addresses = resolver.call(name.clone()).await?.collect();
            let mut found = Known { since: Instant::now(), addresses, used: 0 };
            let next = found.next();
            known.insert(name, found);
            Ok(next.into_iter())
        })
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
