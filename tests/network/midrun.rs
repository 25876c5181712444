//! What a run is allowed changes while it goes on: keys, sessions, clocks.

use std::process::{Command, Stdio};
use std::time::Duration;

use oss_server::{Fault, Operation, OssServer};

use crate::common::{
    On, Scheme, Versions, bare, builder, filled, finishes, hasty, keys, promised, same, signed,
    watched,
};
use crate::support::cases::{Part, shown};
use crate::support::{BUCKET, ID, Place, Ran, SECRET, wait_until};

const ROLE: &str = "acs:ram::1234567890123456:role/worker";
const PROVIDER: &str = "acs:ram::1234567890123456:oidc-provider/ack-rrsa";

/// With a service account's token, as in a Pod with RRSA.
fn rrsa(server: &OssServer, place: &Place) -> Command {
    std::fs::write(place.file("token"), "token-1").unwrap();
    let mut command = bare(&server.endpoint(), Scheme::Oss, &place.volume());
    command
        .env("ALIBABA_CLOUD_ROLE_ARN", ROLE)
        .env("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", PROVIDER)
        .env("ALIBABA_CLOUD_OIDC_TOKEN_FILE", place.file("token"))
        .env("ALIBABA_CLOUD_STS_ENDPOINT", server.endpoint())
        .args(["--timeout", "20s", "--retry-for", "0s"]);
    command
}

#[test]
fn credentials_that_end_in_mid_run_are_replaced_where_there_are_others() {
    for code in ["SecurityTokenExpired", "InvalidSecurityToken", "InvalidAccessKeyId"] {
        for on in On::ALL {
            let server = filled(builder().oidc(ROLE, PROVIDER, "token-1"));
            let place = Place::new();
            let what = format!("403 {code} for {}", on.name());
            // STS fails as well when it is asked again, and then gives others
            server.fault(on.matcher().times(2).status(403, code));
            let sts = Fault::on(Operation::AssumeRole);
            server.fault(sts.nth(2).status(503, "ServiceUnavailable"));
            let (ran, _) = watched(&mut rrsa(&server, &place), &what);
            promised(&ran, 0, &place, &Versions::of(&server, &keys()), &what);
            same(&server, &keys(), &place.volume(), &what);
            assert_eq!(server.issued(), 2, "{what}");

            // others are refused as well
            let place = Place::new();
            server.clear_faults();
            server.fault(on.matcher().status(403, code));
            let (ran, _) = watched(&mut rrsa(&server, &place), &what);
            promised(&ran, 3, &place, &Versions::of(&server, &keys()), &what);
            server.clear_faults();
            finishes(&mut rrsa(&server, &place), &server, &keys(), &place, &what);

            // and STS gives none any more
            let place = Place::new();
            server.fault(on.matcher().status(403, code));
            let sts = Fault::on(Operation::AssumeRole);
            server.fault(sts.skip(1).status(503, "ServiceUnavailable"));
            let (ran, _) = watched(&mut rrsa(&server, &place), &what);
            promised(&ran, 4, &place, &Versions::of(&server, &keys()), &what);
            assert!(ran.stderr.contains("credentials from RRSA"), "{}", ran.stderr);
            server.clear_faults();
            finishes(&mut rrsa(&server, &place), &server, &keys(), &place, &what);
        }
        let case = |what: &str| format!("403 {code} in mid-run with RRSA, {what}");
        shown(Part::Network, &case("once, while STS fails once"), "replaced; complete", 0);
        let again = "no wrong byte, no marker; the next run without the fault finishes";
        shown(Part::Network, &case("again with other credentials"), again, 3);
        shown(Part::Network, &case("and STS gives no others"), again, 4);
    }
}

/// A run that stands still in `data/b`, so that something can change behind its back.
fn amid(server: &OssServer, place: &Place, command: &mut Command, change: impl FnOnce()) -> Ran {
    server.fault(Fault::get("data/b").times(1).stall_after(10, Duration::from_secs(2)));
    let gets = server.gets(BUCKET, "data/b");
    command.args(["--concurrency", "1"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    wait_until("a request that stalls", || server.gets(BUCKET, "data/b") > gets);
    change();
    let ran = Ran::from(child.wait_with_output().unwrap());
    assert_eq!(place.is_marked(), ran.code == 0);
    ran
}

#[test]
fn a_key_that_is_revoked_in_mid_run_is_3() {
    for scheme in [Scheme::Oss, Scheme::S3] {
        let (server, place) = (filled(builder()), Place::new());
        let mut command = hasty(&server.endpoint(), scheme, &place.volume(), "20s");
        let ran = amid(&server, &place, &mut command, || server.revoke(ID));
        let versions = Versions::of(&server, &keys());
        promised(&ran, 3, &place, &versions, "a revoked key");
        assert!(ran.stderr.contains("the access key was not accepted"), "{}", ran.stderr);
        assert!(place.volume().join("a").exists(), "what was committed stays");
        server.set_credentials(ID, SECRET, None, None);
        let again = &mut signed(&server.endpoint(), scheme, &place.volume());
        finishes(again, &server, &keys(), &place, "a revoked key");
    }
    let what = "what is committed stays; the next run with a key that is valid finishes";
    shown(Part::Network, "an access key that is revoked in mid-run", what, 3);
}

#[test]
fn a_session_that_expires_in_mid_run_is_3() {
    let server = filled(builder().session("STS.session", "session-secret", "session-token", None));
    let place = Place::new();
    let mut command = bare(&server.endpoint(), Scheme::Oss, &place.volume());
    command.env("OSS_ACCESS_KEY_ID", "STS.session").env("OSS_ACCESS_KEY_SECRET", "session-secret");
    command.env("OSS_SESSION_TOKEN", "session-token");
    let ran = amid(&server, &place, &mut command, || server.expire("STS.session"));
    promised(&ran, 3, &place, &Versions::of(&server, &keys()), "an expired session");
    let again = &mut signed(&server.endpoint(), Scheme::Oss, &place.volume());
    finishes(again, &server, &keys(), &place, "an expired session");
    let what = "what is committed stays; the next run with other credentials finishes";
    shown(
        Part::Network,
        "a session that expires in mid-run, without a provider of others",
        what,
        3,
    );
}

#[test]
fn a_clock_that_leaps_by_an_hour_in_mid_run_is_followed() {
    for scheme in [Scheme::Oss, Scheme::S3] {
        for ahead in [3600, -3600] {
            let (server, place) = (filled(builder()), Place::new());
            let mut command = hasty(&server.endpoint(), scheme, &place.volume(), "20s");
            let ran = amid(&server, &place, &mut command, || server.set_clock_ahead(ahead));
            promised(&ran, 0, &place, &Versions::of(&server, &keys()), "a leap of the clock");
            same(&server, &keys(), &place.volume(), "a leap of the clock");
        }
    }
    shown(Part::Network, "clocks that differ by an hour, from some moment on", "corrected", 0);
}
