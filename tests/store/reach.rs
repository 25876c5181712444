//! Ways to the server: addressing, TLS, proxies.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use oss_server::OssServer;
use ossvp::store::{Addressing, Class, StoreError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{BUCKET, Setup, chain, get, keys, server, start};

/// Lists and reads one object.
async fn works(setup: Setup) {
    let source = setup.open();
    assert_eq!(keys(&source).await, ["a//b c"]);
    assert_eq!(get(&source, "a//b c").await.unwrap(), "hello");
}

fn filled(server: OssServer) -> OssServer {
    server.put(BUCKET, "a//b c", "hello");
    server
}

fn hosts(server: &OssServer) -> Vec<String> {
    let mut hosts: Vec<String> = server.log().into_iter().map(|l| l.host).collect();
    hosts.dedup();
    hosts
}

/// The server itself as the proxy for plain HTTP: it takes whole URLs, and names need no DNS.
fn by_name(setup: Setup, server: &OssServer, endpoint: &str, addressing: Addressing) -> Setup {
    setup.env("HTTP_PROXY", &server.endpoint()).connection(|c| {
        c.endpoint = Some(endpoint.to_owned());
        c.addressing = addressing;
    })
}

#[tokio::test]
async fn path_style() {
    let server = filled(start(server()));
    works(Setup::oss(&server)).await;
    works(Setup::s3(&server)).await;
    let targets: Vec<String> = server.log().into_iter().map(|l| l.target).collect();
    assert!(targets[0].starts_with("/models/?list-type=2"), "{targets:?}");
    assert_eq!(targets[1], "/models/a//b%20c");
}

#[tokio::test]
async fn virtual_hosts_and_a_proxy_for_plain_http() {
    let server = filled(start(server().endpoint_host("oss.test")));
    for setup in [Setup::oss(&server), Setup::s3(&server)] {
        works(by_name(setup, &server, "http://oss.test", Addressing::Auto)).await;
    }
    assert_eq!(hosts(&server), ["models.oss.test"]);
}

#[tokio::test]
async fn a_domain_of_the_buckets_own() {
    let server = filled(start(server().cname("data.example.com", BUCKET)));
    for setup in [Setup::oss(&server), Setup::s3(&server)] {
        works(by_name(setup, &server, "http://data.example.com", Addressing::Cname)).await;
    }
    assert_eq!(hosts(&server), ["data.example.com"]);
}

#[tokio::test]
async fn ipv6() {
    let listen = "[::1]:0".parse().unwrap();
    let Ok(server) = server().listen(listen).start_blocking() else { return };
    works(Setup::oss(&filled(server))).await;
}

#[tokio::test]
async fn anonymous_requests_are_not_signed() {
    let server = filled(start(server().public_bucket(BUCKET)));
    works(Setup::of("oss", &server).connection(|c| c.anonymous = true)).await;
    assert!(server.log().iter().all(|l| l.access_key_id.is_none()));
}

#[tokio::test]
async fn tls_trusts_the_bundle_and_nothing_else() {
    let server = filled(start(server().tls()));
    let home = tempfile::tempdir().unwrap();
    let ca = home.path().join("ca.pem");
    std::fs::write(&ca, server.ca_pem().unwrap()).unwrap();
    works(Setup::oss(&server).connection(|c| c.ca_bundle = Some(ca.clone()))).await;
    works(Setup::oss(&server).env("SSL_CERT_FILE", ca.to_str().unwrap())).await;

    let error = get(&Setup::oss(&server).open(), "a//b c").await.unwrap_err();
    assert!(matches!(error, StoreError::Certificate { .. }), "{error:?}");
    assert_eq!(error.class(), Class::Refused);
    assert!(chain(&error).contains("UnknownIssuer"), "{}", chain(&error));
}

#[tokio::test]
async fn a_bundle_that_is_none_is_a_usage_error() {
    let server = start(server());
    let home = tempfile::tempdir().unwrap();
    let empty = home.path().join("empty.pem");
    std::fs::write(&empty, "nothing").unwrap();
    for path in [home.path().join("missing.pem"), empty] {
        let setup = Setup::oss(&server).connection(|c| c.ca_bundle = Some(path.clone()));
        let error = setup.try_open().unwrap_err();
        assert_eq!(error.class(), Class::Usage);
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

/// A proxy that knows CONNECT and leads everywhere to `to`; counts its tunnels, and keeps the head
/// of the last request.
async fn tunnels(
    to: std::net::SocketAddr,
) -> (String, Arc<AtomicUsize>, Arc<std::sync::Mutex<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (count, seen) = (Arc::new(AtomicUsize::new(0)), Arc::<std::sync::Mutex<String>>::default());
    let (counted, saw) = (count.clone(), Arc::clone(&seen));
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(client.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            assert!(head.starts_with("CONNECT "), "{head}");
            *saw.lock().unwrap() = head;
            counted.fetch_add(1, Relaxed);
            client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await.unwrap();
            let mut server = TcpStream::connect(to).await.unwrap();
            tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (address.to_string(), count, seen)
}

#[tokio::test]
async fn a_tunnel_for_https_and_virtual_hosts_in_it() {
    let server = filled(start(server().endpoint_host("oss.test").tls()));
    let home = tempfile::tempdir().unwrap();
    let ca = home.path().join("ca.pem");
    std::fs::write(&ca, server.ca_pem().unwrap()).unwrap();
    let (proxy, count, seen) = tunnels(server.address()).await;
    let setup = || {
        Setup::oss(&server).env("HTTPS_PROXY", &format!("http://user:pass@{proxy}")).connection(
            |c| {
                c.endpoint = Some("oss.test".into());
                c.ca_bundle = Some(ca.clone());
            },
        )
    };
    works(setup()).await;
    assert_eq!(count.load(Relaxed), 2, "one tunnel for the listing, one for the objects");
    let head = seen.lock().unwrap().to_ascii_lowercase();
    assert!(head.starts_with("connect models.oss.test:443 "), "{head}");
    assert!(head.contains("proxy-authorization: basic "), "{head}");
    assert_eq!(hosts(&server), ["models.oss.test"]);

    // what NO_PROXY names is asked directly
    let direct =
        setup().env("NO_PROXY", "127.0.0.1").connection(|c| c.endpoint = Some(server.endpoint()));
    works(direct).await;
    assert_eq!(count.load(Relaxed), 2);
}

/// A SOCKS 5 proxy (RFC 1928) without passwords that leads everywhere to `to`.
async fn socks(to: std::net::SocketAddr) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut hello = [0; 2];
            client.read_exact(&mut hello).await.unwrap();
            client.read_exact(&mut vec![0; usize::from(hello[1])]).await.unwrap();
            client.write_all(&[5, 0]).await.unwrap();
            let mut request = [0; 5];
            client.read_exact(&mut request).await.unwrap();
            assert_eq!(request[..4], [5, 1, 0, 3], "a CONNECT by name");
            let mut name = vec![0; usize::from(request[4]) + 2];
            client.read_exact(&mut name).await.unwrap();
            assert!(name.starts_with(b"models.oss.test"), "{name:?}");
            client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
            let mut server = TcpStream::connect(to).await.unwrap();
            tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    address.to_string()
}

#[tokio::test]
async fn socks_for_both_schemes() {
    let plain = filled(start(server().endpoint_host("oss.test")));
    let proxy = format!("socks5h://{}", socks(plain.address()).await);
    let named = |c: &mut ossvp::store::Connection| c.endpoint = Some("http://oss.test".into());
    works(Setup::oss(&plain).env("ALL_PROXY", &proxy).connection(named)).await;

    let tls = filled(start(server().endpoint_host("oss.test").tls()));
    let home = tempfile::tempdir().unwrap();
    let ca = home.path().join("ca.pem");
    std::fs::write(&ca, tls.ca_pem().unwrap()).unwrap();
    let proxy = format!("socks5://{}", socks(tls.address()).await);
    let setup = Setup::oss(&tls).env("HTTPS_PROXY", &proxy).connection(|c| {
        c.endpoint = Some("oss.test".into());
        c.ca_bundle = Some(ca);
    });
    works(setup).await;
}

#[tokio::test]
async fn a_proxy_that_is_none_is_a_usage_error() {
    let server = start(server());
    let error = Setup::oss(&server).env("HTTPS_PROXY", "ftp://u:pass@h").try_open().unwrap_err();
    assert_eq!(error.class(), Class::Usage);
    assert!(!error.to_string().contains("pass"), "{error}");
}

#[tokio::test]
async fn nobody_there() {
    let server = start(server());
    let setup = |endpoint: &str| {
        Setup::oss(&server).connection(|c| c.endpoint = Some(endpoint.to_owned())).open()
    };
    for (endpoint, named) in [
        ("http://127.0.0.1:1", "127.0.0.1:1"),
        ("http://no-such-host.invalid", "no-such-host.invalid"),
    ] {
        let error = get(&setup(endpoint), "a").await.unwrap_err();
        assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
        assert_eq!(error.class(), Class::Transient);
        assert!(error.to_string().contains(named), "{error}");
    }
}
