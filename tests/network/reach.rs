//! What stands before the source: names, proxies, certificates, redirects.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use oss_server::{Operation, OssServer};

use crate::common::{
    KEYS, On, Scheme, Versions, body, builder, filled, finishes, hasty, keys, promised, signed,
    status, watched,
};
use crate::support::cases::{Part, not_here, shown};
use crate::support::{BUCKET, Place, bytes, files};

/// Takes connections and never says anything.
fn silent() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // the kernel takes them; nobody reads
    (listener, address)
}

/// A port that is taken, so that no other test gets it, and that nobody listens at.
fn unheard() -> (tokio::net::TcpSocket, SocketAddr) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// Runs against `endpoint`, where nothing good is, and then against the server.
#[track_caller]
fn unreachable(name: &str, endpoint: &str, code: i32, says: &str, more: &[(&str, &str)]) {
    for scheme in [Scheme::Oss, Scheme::S3] {
        let (server, place) = (filled(builder()), Place::new());
        let mut command = hasty(endpoint, scheme, &place.volume(), "2s");
        command.args(["--addressing", "path"]).envs(more.iter().copied());
        let (ran, _) = watched(&mut command, name);
        promised(&ran, code, &place, &Versions::default(), name);
        let said = ran.stderr.lines().last().unwrap();
        assert!(said.contains(says), "{name}: {said}");
        let again = &mut signed(&server.endpoint(), scheme, &place.volume());
        finishes(again, &server, &keys(), &place, name);
    }
    let what = "no wrong byte, no marker; the next run without the fault finishes";
    shown(Part::Network, name, what, code);
}

#[test]
fn a_source_that_cannot_be_reached_is_4_and_named() {
    let (_socket, free) = unheard();
    let (_listener, quiet) = silent();
    let tls = filled(builder().tls());
    let plain = filled(builder());
    let cannot = "cannot connect to ";
    let silent = "no answer for bucket";
    unreachable("a port that nobody listens at", &format!("http://{free}"), 4, cannot, &[]);
    unreachable(
        "a host that takes connections and is silent",
        &format!("http://{quiet}"),
        4,
        silent,
        &[],
    );
    unreachable("a TLS handshake that stands still", &format!("https://{quiet}"), 4, "", &[]);
    unreachable(
        "TLS where the server speaks none",
        &plain.endpoint().replace("http:", "https:"),
        4,
        "",
        &[],
    );
    unreachable(
        "no TLS where the server speaks it",
        &tls.endpoint().replace("https:", "http:"),
        4,
        "",
        &[],
    );
    unreachable(
        "a host name that does not exist",
        "http://nowhere.invalid",
        4,
        "nowhere.invalid",
        &[],
    );
    let proxy = format!("http://user:proxy-password@{free}");
    unreachable(
        "a proxy that nobody listens at",
        &plain.endpoint(),
        4,
        cannot,
        &[("HTTP_PROXY", &proxy)],
    );
    let proxy = format!("http://{quiet}");
    unreachable(
        "a proxy that takes connections and is silent",
        &tls.endpoint(),
        4,
        "",
        &[("HTTPS_PROXY", &proxy)],
    );
}

#[test]
fn a_certificate_that_is_not_trusted_is_3() {
    let says = "the certificate of 127.0.0";
    let unknown = filled(builder().tls());
    unreachable("a certificate of an unknown authority", &unknown.endpoint(), 3, says, &[]);
    let place = Place::new();
    let trust = |server: &OssServer| {
        std::fs::write(place.file("ca.pem"), server.ca_pem().unwrap()).unwrap();
        place.file("ca.pem").to_str().unwrap().to_owned()
    };
    let expired = filled(builder().expired());
    let bundle = [("OSSVP_CA_BUNDLE", trust(&expired))];
    let bundle = bundle.each_ref().map(|(name, path)| (*name, path.as_str()));
    unreachable("a certificate that has expired", &expired.endpoint(), 3, says, &bundle);
    let other = filled(builder().listen(([0, 0, 0, 0], 0).into()).tls());
    let elsewhere = format!("https://127.0.0.9:{}", other.address().port());
    let bundle = [("OSSVP_CA_BUNDLE", trust(&other))];
    let bundle = bundle.each_ref().map(|(name, path)| (*name, path.as_str()));
    unreachable("a certificate for another host", &elsewhere, 3, says, &bundle);
}

/// `inner` in a mount namespace of its own, where the file of each pair stands in the place of the
/// system's. It ends in 99 where that cannot be.
fn with_files(inner: &Command, files: &[(String, PathBuf)]) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c"]).arg(
        "while [ \"$1\" != -- ]; do mount --bind \"$2\" \"$1\" || exit 99; shift 2; done; \
         shift; exec \"$@\"",
    );
    command.arg("sh");
    for (place, file) in files {
        command.arg(place).arg(file);
    }
    command.arg("--").arg(inner.get_program()).args(inner.get_args());
    command.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

#[test]
fn a_name_server_that_never_answers_is_4() {
    let Ok(nameserver) = std::net::UdpSocket::bind("127.0.0.77:53") else {
        return not_here("no right to be a name server");
    };
    let place = Place::new();
    std::fs::write(place.file("resolv.conf"), "nameserver 127.0.0.77\n").unwrap();
    std::fs::write(place.file("nsswitch.conf"), "hosts: dns\n").unwrap();
    let mut inner = hasty("http://quiet.example", Scheme::Oss, &place.volume(), "2s");
    inner.args(["--addressing", "path"]);
    let files = ["resolv.conf", "nsswitch.conf"];
    let mut command =
        with_files(&inner, &files.map(|name| (format!("/etc/{name}"), place.file(name))));
    let (ran, took) = watched(&mut command, "a name server that never answers");
    if ran.code == 99 || ran.stderr.contains("unshare") {
        return not_here(format!("no mount namespace: {}", ran.stderr));
    }
    promised(&ran, 4, &place, &Versions::default(), "a name server that never answers");
    assert!(ran.stderr.contains("cannot connect to quiet.example"), "{}", ran.stderr);
    assert!(took < Duration::from_secs(20), "{took:?}");
    nameserver.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert!(nameserver.recv(&mut [0; 512]).is_ok(), "it was never asked");
    let server = filled(builder());
    let again = &mut signed(&server.endpoint(), Scheme::Oss, &place.volume());
    finishes(again, &server, &keys(), &place, "a name server that never answers");
    let what = "no wrong byte, no marker; the next run without the fault finishes";
    shown(Part::Network, "a name server that never answers", what, 4);
}

/// A name with two addresses: both are used, one that refuses is passed by, and one that takes
/// connections and never answers costs a moment.
#[test]
fn all_addresses_of_a_name_are_used() {
    let addresses = ["127.0.0.5", "127.0.0.6"];
    let hosts = addresses.map(|address| format!("{address} two.example\n")).concat();
    for second in ["serves", "refuses", "is silent"] {
        let what = format!("the second of two addresses {second}");
        let place = Place::new();
        std::fs::write(place.file("hosts"), &hosts).unwrap();
        std::fs::write(place.file("nsswitch.conf"), "hosts: files\n").unwrap();
        let listen = |address: &str, port| format!("{address}:{port}").parse().unwrap();
        let first = filled(builder().listen(listen(addresses[0], 0)));
        let port = first.address().port();
        let other =
            (second == "serves").then(|| filled(builder().listen(listen(addresses[1], port))));
        let _silent =
            (second == "is silent").then(|| TcpListener::bind((addresses[1], port)).unwrap());
        let endpoint = format!("http://two.example:{port}");
        let mut inner = signed(&endpoint, Scheme::Oss, &place.volume());
        inner.args(["--addressing", "path", "--concurrency", "8"]);
        let own = ["hosts", "nsswitch.conf"];
        let own = own.map(|name| (format!("/etc/{name}"), place.file(name)));
        let mut command = with_files(&inner, &own);
        let (ran, _) = watched(&mut command, &what);
        if ran.code == 99 || ran.stderr.contains("unshare") {
            return not_here(format!("no mount namespace: {}", ran.stderr));
        }
        assert_eq!(ran.code, 0, "{what}: {}", ran.stderr);
        let found = files(&place.volume());
        assert!(
            KEYS.iter().all(|key| found.get(&key["data/".len()..]) == Some(&body(key))),
            "{what}"
        );
        for server in std::iter::once(&first).chain(&other) {
            assert!(
                server.log().iter().any(|line| line.operation == Operation::GetObject),
                "{what}"
            );
        }
        shown(Part::Network, &what, "complete, every byte right", 0);
    }
}

#[test]
fn no_redirect_is_followed() {
    let trap = OssServer::builder().public_bucket(BUCKET).start_blocking().unwrap();
    KEYS.iter().for_each(|key| trap.put(BUCKET, key, bytes(99, 10_000)));
    for status in [301, 302, 303, 307, 308] {
        for on in On::ALL {
            let (server, place) = (filled(builder()), Place::new());
            let own = server.endpoint();
            let other = trap.endpoint();
            for to in [format!("{own}/bucket/elsewhere"), format!("{other}/bucket/data/b")] {
                server.fault(on.matcher().action(self::status(status, "", &[("location", &to)])));
                let what = format!("{status} for {}", on.name());
                let mut command = hasty(&own, Scheme::Oss, &place.volume(), "20s");
                let (ran, _) = watched(&mut command, &what);
                promised(&ran, 3, &place, &Versions::of(&server, &keys()), &what);
                server.clear_faults();
            }
            assert!(server.log().iter().all(|logged| !logged.target.contains("elsewhere")));
            let again = &mut signed(&own, Scheme::Oss, &place.volume());
            finishes(again, &server, &keys(), &place, "a redirect");
        }
    }
    assert_eq!(trap.stats().requests, 0, "{:?}", trap.log());
    let what =
        "not followed: nobody else sees a signature; the next run without the fault finishes";
    shown(Part::Network, "a redirect to another path or another host", what, 3);
}
