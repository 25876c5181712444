//! What this process serves for the node: the driver, and the way to the API server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::driver::{Sockets, Volumes};
use crate::Error;

/// A thread that serves until this is dropped.
#[derive(Debug)]
pub(crate) struct Serving {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Serving {
    /// `service` listens in the node's network; what connects there gets to `api`.
    pub(crate) fn start(
        sockets: Sockets,
        volumes: Volumes,
        service: std::net::TcpListener,
        api: SocketAddr,
    ) -> Result<Self, Error> {
        let failed = |source| Error::Start { name: "the driver".to_owned(), source };
        service.set_nonblocking(true).map_err(failed)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(failed)?;
        let (stop, stopped) = oneshot::channel();
        // a runtime may not be dropped where a test of tokio runs, so that a thread owns it
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    result = sockets.serve(Arc::new(volumes)) => result,
                    result = forward(service, api) => result,
                    _ = stopped => Ok(()),
                }
            })
        });
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // fails only if the thread has ended
        self.stop.take().map(|stop| stop.send(()));
        self.thread.take().map(JoinHandle::join);
    }
}

/// The service `kubernetes`: there is no kube-proxy, and this is its only entry that is needed.
async fn forward(service: std::net::TcpListener, api: SocketAddr) -> std::io::Result<()> {
    let service = TcpListener::from_std(service)?;
    // an error of `accept` is one of a connection that is gone
    loop {
        let Ok((mut client, _)) = service.accept().await else { continue };
        tokio::spawn(async move {
            if let Ok(mut server) = TcpStream::connect(api).await {
                // an error is the end of one of both
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}
