//! Calls of the API's stand-in.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use nas_server::{Builder, Call, Fault, NasServer, Outcome};
use oss_server::OssServer;
use reqsign_core::StaticEnv;

use crate::store::RetryPolicy;

use super::client::Surroundings;
use super::{DataFlow, Descriptions, Nas, NasError, NewDataFlow, NewTask};

const REGION: &str = "cn-wulanchabu";
const FILE_SYSTEM: &str = "bmcpfs-1";

fn builder() -> Builder {
    NasServer::builder()
        .credentials("id", "secret")
        .file_system(FILE_SYSTEM, &["/data/", "/data/pv-1/"])
        .bucket("models")
        .untagged_bucket("untagged")
        .denied_bucket("denied")
}

fn start() -> NasServer {
    builder().start_blocking().unwrap()
}

/// Of the server, with what else the environment says.
fn nas_with(server: &NasServer, more: &[(&str, &str)]) -> Nas {
    let endpoint = server.endpoint();
    let given = [
        ("NAS_ENDPOINT", endpoint.as_str()),
        ("ALIBABA_CLOUD_ACCESS_KEY_ID", "id"),
        ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "secret"),
        // nobody listens on port 1
        ("ALIBABA_CLOUD_ECS_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1"),
    ];
    within(given.iter().chain(more)).unwrap()
}

fn nas(server: &NasServer) -> Nas {
    nas_with(server, &[])
}

fn within<'a>(vars: impl Iterator<Item = &'a (&'a str, &'a str)>) -> Result<Nas, NasError> {
    let envs: HashMap<String, String> =
        vars.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let policy = RetryPolicy {
        backoff_first: Duration::from_millis(1),
        backoff_max: Duration::from_millis(10),
        attempts: 5,
        ..RetryPolicy::default()
    };
    let env = Arc::new(StaticEnv { home_dir: None, envs });
    Nas::within(Surroundings { env, policy, longest: Duration::from_secs(5) }, false)
}

fn new_flow(token: &str) -> NewDataFlow {
    NewDataFlow {
        file_system: FILE_SYSTEM.to_owned(),
        file_system_path: "/data/pv-1/".to_owned(),
        source_storage: "oss://models".to_owned(),
        source_storage_path: "/a b/ü+&=/".to_owned(),
        source_security_type: Some("SSL".to_owned()),
        throughput: Some(600),
        description: Some("ossvp:claim_1-x".to_owned()),
        token: token.to_owned(),
    }
}

fn new_task(flow: &str, token: &str) -> NewTask {
    NewTask {
        file_system: FILE_SYSTEM.to_owned(),
        flow: flow.to_owned(),
        directory: Some("/".to_owned()),
        dst_directory: Some("/sub/".to_owned()),
        create_dir_if_not_exist: Some(true),
        data_type: "MetaAndData".to_owned(),
        conflict_policy: "OVERWRITE_EXISTING".to_owned(),
        token: token.to_owned(),
    }
}

async fn running_flow(server: &NasServer, nas: &Nas) -> String {
    let id = nas.create_data_flow(REGION, &new_flow("flow")).await.unwrap();
    server.advance(Duration::from_secs(180));
    id
}

fn tokens(calls: &[Call]) -> Vec<&str> {
    calls.iter().map(|call| call.parameter("ClientToken").unwrap_or_default()).collect()
}

#[tokio::test]
async fn a_data_flow_is_made_and_seen_and_deleted() {
    let server = start();
    let nas = nas(&server);
    let id = nas.create_data_flow(REGION, &new_flow("t")).await.unwrap();
    let flows = nas.describe_data_flows(REGION, FILE_SYSTEM).await.unwrap();
    let mut expected = DataFlow {
        id: id.clone(),
        status: "Starting".to_owned(),
        file_system_path: "/data/pv-1/".to_owned(),
        source_storage: "oss://models".to_owned(),
        source_storage_path: "/a b/ü+&=/".to_owned(),
        source_security_type: Some("SSL".to_owned()),
        throughput: Some(600),
        description: Some("ossvp:claim_1-x".to_owned()),
        create_time: Some("2026-01-02T03:04:05Z".to_owned()),
        ..DataFlow::default()
    };
    assert_eq!(flows, [expected.clone()]);

    let error = nas.delete_data_flow(REGION, FILE_SYSTEM, &id, "d").await.unwrap_err();
    assert_eq!(error.code(), "OperationDenied.InvalidState");
    server.advance(Duration::from_secs(180));
    expected.status = "Running".to_owned();
    assert_eq!(nas.describe_data_flows(REGION, FILE_SYSTEM).await.unwrap(), [expected]);

    nas.delete_data_flow(REGION, FILE_SYSTEM, &id, "d2").await.unwrap();
    let flows = nas.describe_data_flows(REGION, FILE_SYSTEM).await.unwrap();
    assert_eq!(flows[0].status, "Deleting");
    server.advance(Duration::from_secs(60));
    assert_eq!(nas.describe_data_flows(REGION, FILE_SYSTEM).await.unwrap(), []);
}

#[tokio::test]
async fn a_task_is_made_and_seen_to_its_end() {
    let server = start();
    let nas = nas(&server);
    let flow = running_flow(&server, &nas).await;
    server.outcome(Outcome {
        files_total: 10,
        files_done: 9,
        bytes_total: 1000,
        bytes_done: 900,
        error: None,
        reports: vec![("FailedFiles".to_owned(), "/.dataflow_report/x".to_owned())],
    });
    let id = nas.create_data_flow_task(REGION, &new_task(&flow, "t")).await.unwrap();
    let seen = async || {
        let mut tasks = nas.describe_data_flow_tasks(REGION, FILE_SYSTEM, &[&flow]).await.unwrap();
        assert_eq!(tasks.len(), 1);
        tasks.remove(0)
    };
    let task = seen().await;
    assert_eq!((task.id.as_str(), task.status.as_str(), task.progress), (&*id, "Pending", 0));
    assert_eq!(
        (task.directory.as_deref(), task.dst_directory.as_deref()),
        (Some("/"), Some("/sub/"))
    );

    server.advance(Duration::from_secs(10 + 40));
    let task = seen().await;
    assert_eq!((task.status.as_str(), task.progress), ("Executing", 40));
    assert_eq!((task.files_total, task.files_done, task.bytes_done), (10, 4, 400));
    assert_eq!((task.bytes_per_s, task.remaining_s), (10, 60));

    server.advance(Duration::from_secs(60));
    let task = seen().await;
    assert_eq!((task.status.as_str(), task.progress), ("Completed", 100));
    assert_eq!((task.files_done, task.bytes_done), (9, 900));
    assert_eq!(task.reports[0].path, "/.dataflow_report/x");
}

#[tokio::test]
async fn a_task_is_canceled() {
    let server = start();
    let nas = nas(&server);
    let flow = running_flow(&server, &nas).await;
    let id = nas.create_data_flow_task(REGION, &new_task(&flow, "t")).await.unwrap();
    nas.cancel_data_flow_task(REGION, FILE_SYSTEM, &flow, &id, "c").await.unwrap();
    let status = async || {
        let tasks = nas.describe_data_flow_tasks(REGION, FILE_SYSTEM, &[&flow]).await.unwrap();
        tasks[0].status.clone()
    };
    assert_eq!(status().await, "Canceling");
    server.advance(Duration::from_secs(300));
    assert_eq!(status().await, "Canceled");
    let again = nas.cancel_data_flow_task(REGION, FILE_SYSTEM, &flow, &id, "c2").await;
    assert_eq!(again.unwrap_err().code(), "OperationDenied.ConflictOperation");
}

#[tokio::test]
async fn states_that_nobody_has_heard_of_are_seen() {
    let server = start();
    let nas = nas(&server);
    let flow = running_flow(&server, &nas).await;
    let task = nas.create_data_flow_task(REGION, &new_task(&flow, "t")).await.unwrap();
    server.set_flow(&flow, "Hibernating", Some("SourceStorageUnreachable"));
    server.set_task(&task, "Meditating");
    server.advance(Duration::from_secs(100_000));
    let flows = nas.describe_data_flows(REGION, FILE_SYSTEM).await.unwrap();
    let said = (flows[0].status.as_str(), flows[0].error.as_deref());
    assert_eq!(said, ("Hibernating", Some("SourceStorageUnreachable")));
    let tasks = nas.describe_data_flow_tasks(REGION, FILE_SYSTEM, &[&flow]).await.unwrap();
    assert_eq!(tasks[0].status, "Meditating");
}

#[tokio::test]
async fn an_import_s_files_are_in_place_before_it_says_so() {
    let (done, imported) = std::sync::mpsc::channel();
    let server = builder()
        // as time passes, so it does with looking
        .per_describe(Duration::from_secs(60))
        .on_import(move |import| {
            done.send(import.clone()).unwrap();
            Outcome { error: Some("DiskFull".to_owned()), ..Outcome::default() }
        })
        .start_blocking()
        .unwrap();
    let nas = nas(&server);
    let flow = running_flow(&server, &nas).await;
    nas.create_data_flow_task(REGION, &new_task(&flow, "t")).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..4 {
        let tasks = nas.describe_data_flow_tasks(REGION, FILE_SYSTEM, &[&flow]).await.unwrap();
        seen.push(tasks[0].status.clone());
        assert_eq!(tasks[0].error.as_deref(), (seen.len() > 2).then_some("DiskFull"));
    }
    assert_eq!(seen, ["Pending", "Executing", "Failed", "Failed"]);
    let import = imported.try_recv().unwrap();
    assert_eq!((import.bucket.as_str(), import.source.as_str()), ("models", "/a b/ü+&=/"));
    assert_eq!(import.destination, "/data/pv-1/sub/");
    assert!(imported.try_recv().is_err());
}

#[tokio::test]
async fn all_pages_are_read() {
    let server = start();
    let nas = nas(&server);
    for n in 0..201 {
        server.fileset(FILE_SYSTEM, &format!("fset-{n:03}"), &format!("/data/fset-{n:03}/"));
    }
    let all = nas.describe_filesets(REGION, FILE_SYSTEM, None).await.unwrap();
    assert_eq!(all.len(), 201);
    assert_eq!((all[200].id.as_str(), all[200].status.as_str()), ("fset-200", "CREATED"));
    assert_eq!(server.calls_of("DescribeFilesets").len(), 3);

    let one = nas.describe_filesets(REGION, FILE_SYSTEM, Some("fset-007")).await.unwrap();
    assert_eq!(one.len(), 1);
    assert_eq!(one[0].file_system_path, "/data/fset-007/");
}

#[tokio::test]
async fn a_throttled_call_is_repeated_with_the_same_token() {
    let server = start();
    let nas = nas(&server);
    server.fault("CreateDataFlow", Fault::throttle());
    server.fault("CreateDataFlow", Fault::throttle_for(5));
    server.fault("CreateDataFlow", Fault::refuse(503, "ServiceUnavailable"));
    nas.create_data_flow(REGION, &new_flow("same")).await.unwrap();
    let calls = server.calls_of("CreateDataFlow");
    assert_eq!(tokens(&calls), ["same"; 4]);
    let codes: Vec<_> = calls.iter().map(|call| call.code.as_str()).collect();
    assert_eq!(codes, ["Throttling.User", "Throttling.User", "ServiceUnavailable", ""]);
    assert_eq!(server.flows().len(), 1);
}

#[tokio::test]
async fn what_was_done_though_no_answer_came_is_not_done_twice() {
    let server = start();
    let nas = nas(&server);
    for (fault, token) in [
        (Fault::drop_after(), "a"),
        (Fault::refuse_after(500, "InternalError"), "b"),
        (Fault::drop_before(), "c"),
    ] {
        server.clear_calls();
        server.fault("CreateDataFlow", fault);
        let id = nas.create_data_flow(REGION, &new_flow(token)).await.unwrap();
        let calls = server.calls_of("CreateDataFlow");
        assert!(tokens(&calls).iter().all(|sent| *sent == token));
        assert_eq!(calls.iter().filter(|call| call.changed).count(), 1, "{token}");
        let flows = server.flows();
        assert_eq!(flows.iter().filter(|flow| flow.id == id).count(), 1);
    }
    assert_eq!(server.flows().len(), 3);
}

#[tokio::test]
async fn a_request_that_a_kept_connection_sent_twice_is_signed_anew() {
    let server = start();
    let nas = nas(&server);
    nas.describe_data_flows(REGION, FILE_SYSTEM).await.unwrap();
    server.fault("CreateDataFlow", Fault::drop_after());
    nas.create_data_flow(REGION, &new_flow("t")).await.unwrap();
    let calls = server.calls_of("CreateDataFlow");
    let codes: Vec<_> = calls.iter().map(|call| (call.code.as_str(), call.changed)).collect();
    assert_eq!(codes, [("", true), ("SignatureNonceUsed", false), ("", false)]);
    assert_eq!(server.flows().len(), 1);
}

#[tokio::test]
async fn an_api_that_stays_throttled_or_silent_is_given_up_soon() {
    let server = start();
    let nas = nas(&server);
    server.fault_always("DescribeDataFlows", Fault::throttle());
    let error = nas.describe_data_flows(REGION, FILE_SYSTEM).await.unwrap_err();
    assert!(error.is_throttled() && error.is_passing(), "{error:?}");
    assert_eq!(server.calls_of("DescribeDataFlows").len(), 5);

    server.fault_always("DescribeDataFlows", Fault::hang());
    let started = std::time::Instant::now();
    let error = nas.describe_data_flows(REGION, FILE_SYSTEM).await.unwrap_err();
    assert!(matches!(error, NasError::NoAnswer { action: "DescribeDataFlows", .. }), "{error:?}");
    assert!(error.is_passing() && started.elapsed() < Duration::from_secs(8));
}

#[tokio::test]
async fn refusals_say_which_and_why_and_are_not_repeated() {
    let server = start();
    let nas = nas(&server);
    let bucket =
        |name: &str| NewDataFlow { source_storage: format!("oss://{name}"), ..new_flow(name) };
    for (new, code, status) in [
        (bucket("untagged"), "OperationDenied.DependBucketTag", 403),
        (bucket("denied"), "InvalidSourceStorage.PermissionDenied", 404),
        (bucket("nowhere"), "InvalidSourceStorage.NotFound", 404),
        (
            NewDataFlow { file_system: "bmcpfs-2".to_owned(), ..new_flow("f") },
            "InvalidFileSystem.NotFound",
            404,
        ),
    ] {
        server.clear_calls();
        let error = nas.create_data_flow(REGION, &new).await.unwrap_err();
        assert_eq!(error.code(), code);
        assert!(!error.is_passing() && !error.is_throttled());
        assert_eq!(server.calls().len(), 1);
        let NasError::Refused { action, status: found, message, request_id, .. } = &error else {
            panic!("{error:?}")
        };
        assert_eq!((*action, *found), ("CreateDataFlow", status));
        assert!(!message.is_empty() && request_id.starts_with("473469C7-"), "{error}");
        assert!(error.to_string().contains(request_id.as_str()), "{error}");
    }
    let elsewhere = nas.describe_data_flows("cn-hangzhou", FILE_SYSTEM).await.unwrap_err();
    assert_eq!(elsewhere.code(), "InvalidFileSystem.NotFound");
}

#[tokio::test]
async fn an_answer_that_is_none_is_malformed() {
    let server = start();
    server.fault("DescribeDataFlows", Fault::garbage());
    let error = nas(&server).describe_data_flows(REGION, FILE_SYSTEM).await.unwrap_err();
    assert!(matches!(error, NasError::Malformed { .. }) && error.is_passing(), "{error:?}");
}

#[tokio::test]
async fn a_temporary_key_s_token_is_sent_and_signed() {
    let server = builder().temporary_credentials("STS.1", "s", "CAIS+t/k==").start_blocking();
    let server = server.unwrap();
    let token = "CAIS+t/k==";
    let nas = nas_with(
        &server,
        &[
            ("ALIBABA_CLOUD_ACCESS_KEY_ID", "STS.1"),
            ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "s"),
            ("ALIBABA_CLOUD_SECURITY_TOKEN", token),
        ],
    );
    assert_eq!(nas.describe_data_flows(REGION, FILE_SYSTEM).await.unwrap(), []);
    let calls = server.calls();
    assert_eq!(calls[0].access_key_id.as_deref(), Some("STS.1"));
    assert_eq!(calls[0].security_token.as_deref(), Some(token));
}

#[tokio::test]
async fn the_service_account_s_token_becomes_credentials_and_again_when_they_are_refused() {
    let (role, provider) = ("acs:ram::1:role/ossvp", "acs:ram::1:oidc-provider/ack");
    let sts = OssServer::builder().oidc(role, provider, "jwt").start_blocking().unwrap();
    let server = start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "jwt").unwrap();
    let endpoints = [server.endpoint(), sts.endpoint()];
    let given = [
        ("NAS_ENDPOINT", endpoints[0].as_str()),
        ("ALIBABA_CLOUD_STS_ENDPOINT", endpoints[1].as_str()),
        ("ALIBABA_CLOUD_ROLE_ARN", role),
        ("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", provider),
        ("ALIBABA_CLOUD_OIDC_TOKEN_FILE", file.to_str().unwrap()),
    ];
    let nas = within(given.iter()).unwrap();
    // the API does not know what this STS gives
    let error = nas.describe_data_flows(REGION, FILE_SYSTEM).await.unwrap_err();
    assert_eq!(error.code(), "InvalidAccessKeyId.NotFound");
    let calls = server.calls();
    let sent: Vec<_> = calls.iter().map(|call| call.security_token.clone().unwrap()).collect();
    assert!(sent.len() == 2 && sent[0] != sent[1], "{sent:?}");
    assert!(sent.iter().all(|token| token.starts_with("CAIS+")), "{sent:?}");
}

#[tokio::test]
async fn no_error_shows_a_secret() {
    let server = start();
    // the API quotes what was to be signed, and with it the token
    let (secret, token) = ("wrong-secret", "TOKEN+/==");
    server.allow("id", "right", Some(token));
    let nas = nas_with(
        &server,
        &[("ALIBABA_CLOUD_ACCESS_KEY_SECRET", secret), ("ALIBABA_CLOUD_SECURITY_TOKEN", token)],
    );
    let error = nas.describe_data_flows(REGION, FILE_SYSTEM).await.unwrap_err();
    assert_eq!(error.code(), "SignatureDoesNotMatch");
    for text in [format!("{error} {error:?}"), format!("{nas:?}")] {
        assert!(!text.contains(token) && !text.contains(secret), "{text}");
    }
}

#[tokio::test]
async fn an_access_key_that_is_refused_is_asked_for_anew_once() {
    let server = start();
    server.fault("DescribeDataFlows", Fault::refuse(400, "InvalidSecurityToken.Expired"));
    let nas = nas(&server);
    assert_eq!(nas.describe_data_flows(REGION, FILE_SYSTEM).await.unwrap(), []);
    server.clear_calls();
    server.forbid("id");
    let error = nas.describe_data_flows(REGION, FILE_SYSTEM).await.unwrap_err();
    assert_eq!(error.code(), "InvalidAccessKeyId.NotFound");
    assert_eq!(server.calls().len(), 2);
}

#[tokio::test]
async fn without_credentials_the_error_says_what_helps() {
    let server = start();
    let endpoint = server.endpoint();
    let given = [
        ("NAS_ENDPOINT", endpoint.as_str()),
        ("ALIBABA_CLOUD_ECS_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1"),
    ];
    let nas = within(given.iter()).unwrap();
    let error = nas.describe_data_flows(REGION, FILE_SYSTEM).await.unwrap_err();
    assert!(matches!(error, NasError::NoCredentials) && !error.is_passing(), "{error:?}");
    assert!(server.calls().is_empty());
}

#[tokio::test]
async fn the_host_is_the_region_s_unless_the_environment_says_another() {
    let nas = |vars: &[(&str, &str)]| within(vars.iter());
    let asked =
        |nas: Nas, region: &str| nas.host(region).map(|(scheme, at)| format!("{scheme}://{at}"));
    let host = |vars: &[(&str, &str)]| asked(nas(vars).unwrap(), REGION).unwrap();
    assert_eq!(host(&[]), "https://nas.cn-wulanchabu.aliyuncs.com");
    let vpc = [("ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED", "true")];
    assert_eq!(host(&vpc), "https://nas-vpc.cn-wulanchabu.aliyuncs.com");
    for (given, expected) in [
        ("nas.example.com", "https://nas.example.com"),
        ("https://nas.example.com/", "https://nas.example.com"),
        ("http://10.0.0.1:8080", "http://10.0.0.1:8080"),
    ] {
        assert_eq!(host(&[("NAS_ENDPOINT", given)]), expected);
    }
    for wrong in ["ftp://a", "https://u:secret@a", "a/b", "https://", "a b"] {
        let error = nas(&[("NAS_ENDPOINT", wrong)]).unwrap_err();
        assert!(matches!(error, NasError::Endpoint { .. }), "{wrong}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    for wrong in ["", "cn-hangzhou.evil.example/", "CN", "a.b", "evil#"] {
        let error = asked(nas(&[]).unwrap(), wrong).unwrap_err();
        assert!(matches!(error, NasError::Region(_)) && !error.is_passing(), "{wrong}");
    }
    let error = nas(&[("OSSVP_CA_BUNDLE", "/nowhere/ca.pem")]).unwrap_err();
    assert!(matches!(error, NasError::Setup(_)), "{error:?}");
}

#[tokio::test]
async fn many_claims_are_told_by_one_description_until_something_is_done() {
    let server = start();
    let nas = nas(&server);
    let flow = running_flow(&server, &nas).await;
    nas.create_data_flow_task(REGION, &new_task(&flow, "task")).await.unwrap();
    server.clear_calls();
    let calls = || {
        (server.calls_of("DescribeDataFlows").len(), server.calls_of("DescribeDataFlowTasks").len())
    };
    let last = Descriptions::default();
    let look = |anew| last.of(&nas, REGION, FILE_SYSTEM, "ossvp", anew);
    for described in futures::future::join_all((0..50).map(|_| look(false))).await {
        let described = described.unwrap();
        assert_eq!((described.flows.len(), described.tasks.len()), (1, 1));
    }
    assert_eq!(calls(), (1, 1));
    look(true).await.unwrap();
    assert_eq!(calls(), (2, 2), "anew");
    look(false).await.unwrap();
    assert_eq!(calls(), (2, 2), "which serves others too");
    last.forget(REGION, FILE_SYSTEM);
    // one that does not answer is not asked by each of them
    server.fault_always("DescribeDataFlows", Fault::refuse(403, "Forbidden.RAM"));
    for described in futures::future::join_all((0..50).map(|_| look(false))).await {
        assert_eq!(described.unwrap_err().code(), "Forbidden.RAM");
    }
    assert_eq!(calls(), (3, 2));
    let elsewhere = last.of(&nas, REGION, "bmcpfs-none", "ossvp", false).await.unwrap_err();
    assert_eq!(elsewhere.code(), "Forbidden.RAM");
}
