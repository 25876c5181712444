//! A controller that dies between any two of its changes, and one of two that dies.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::json;

use crate::case::Case;
use crate::world::{Controller, SYSTEM, USER, World, alone, until};

/// Passes requests on to the API server, until it has answered the n-th that changes something: that
/// answer and all others never arrive.
struct Proxy {
    url: String,
    left: AtomicI64,
    dead: tokio::sync::Notify,
    client: Client<hyper_rustls::HttpsConnector<HttpConnector>, Incoming>,
    target: String,
}

impl Proxy {
    async fn start(world: &World, changes: i64) -> Arc<Self> {
        let mut roots = rustls::RootCertStore::empty();
        let pem = world.plane.ca_pem();
        for authority in
            <rustls_pki_types::CertificateDer as rustls_pki_types::pem::PemObject>::pem_slice_iter(
                pem.as_bytes(),
            )
        {
            roots.add(authority.unwrap()).unwrap();
        }
        let tls =
            rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http1();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Arc::new(Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            left: AtomicI64::new(changes),
            dead: tokio::sync::Notify::new(),
            client: Client::builder(TokioExecutor::new()).build(https.build()),
            target: world.plane.url().to_owned(),
        });
        let this = proxy.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let this = this.clone();
                tokio::spawn(async move {
                    let pass = service_fn(|request| this.pass(request));
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _ = connection.serve_connection(TokioIo::new(stream), pass).await;
                });
            }
        });
        proxy
    }

    async fn pass(
        &self,
        mut request: Request<Incoming>,
    ) -> Result<Response<BoxBody<Bytes, hyper::Error>>, std::io::Error> {
        let broken = || std::io::Error::other("the proxy is dead");
        if self.left.load(Ordering::SeqCst) < 0 {
            return Err(broken());
        }
        let path = request.uri().path_and_query().unwrap().as_str().to_owned();
        // who leads is another test's
        let changes = request.method() != Method::GET && !path.contains("/leases");
        *request.uri_mut() = format!("{}{path}", self.target).parse().unwrap();
        request.headers_mut().remove(http::header::HOST);
        let response = self.client.request(request).await.map_err(|_| broken())?;
        if !changes {
            return Ok(response.map(BodyExt::boxed));
        }
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(|_| broken())?.to_bytes();
        // a change that was refused, such as an event that is there already, is none
        if head.status.is_success() && self.left.fetch_sub(1, Ordering::SeqCst) <= 1 {
            self.left.store(-1, Ordering::SeqCst);
            self.dead.notify_one();
            return Err(broken());
        }
        Ok(Response::from_parts(head, Full::from(body).map_err(|never| match never {}).boxed()))
    }
}

/// Runs `live` with a controller that is killed after its n-th change, for every n, and then with one
/// that goes on; `live` is told n. Ends when a controller lives through it.
pub async fn killed_after_each_change<F>(world: &Arc<World>, live: impl Fn(i64) -> F)
where
    F: Future<Output = ()>,
{
    for n in 1.. {
        let proxy = Proxy::start(world, n).await;
        let config = std::fs::read_to_string(&world.kubeconfig).unwrap();
        let through = world.plane.folder().join("through-proxy.kubeconfig");
        std::fs::write(&through, config.replace(world.plane.url(), &proxy.url)).unwrap();
        let log = world.plane.folder().join(format!("killed-{n}.log"));
        let no_lease = ["--no-leader-election"];
        let first = Controller::start(world, &through, &no_lease, log.clone());
        let next = async {
            proxy.dead.notified().await;
            // SIGKILL
            drop(first);
            let after = log.with_extension("after.log");
            Controller::start(world, &world.kubeconfig, &no_lease, after)
        };
        let mut next = std::pin::pin!(next);
        let mut live = std::pin::pin!(live(n));
        tokio::select! {
            () = &mut live => {
                println!("lived through: {} changes in all", n - 1);
                assert!(n > 8, "only {n} changes were seen");
                return;
            }
            // the second one is kept until the end
            _second = &mut next => live.await,
        }
    }
}

#[test]
fn a_controller_killed_after_any_change_converges_and_repeats_no_event() {
    alone(&["--allow-endpoint=127.0.0.1"], |world| async move {
        let world = &world;
        killed_after_each_change(world, |n| async move {
            let case = Case::new(world, &format!("fill-{n}")).await;
            case.source("models", case.spec(json!({}))).await;
            case.claim("data", "models", "immediate", json!({})).await;
            case.filled("data").await;
            let told = BTreeSet::from(["PopulatorCreated", "PopulatorFinished"].map(str::to_owned));
            assert_eq!(case.reasons("data").await, told, "killed after {n}");
        })
        .await;
        killed_after_each_change(world, |n| async move {
            let case = Case::new(world, &format!("consumer-{n}")).await;
            case.source("models", case.spec(json!({}))).await;
            case.claim("data", "models", "consumer", json!({})).await;
            let pod = serde_json::from_value(json!({
                "metadata": {"name": "reader"},
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [{"name": "reader", "image": "busybox", "command": ["/bin/true"]}],
                    "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
                },
            }));
            case.api::<Pod>().create(&PostParams::default(), &pod.unwrap()).await.unwrap();
            case.filled("data").await;
            let told = BTreeSet::from(["PopulatorCreated", "PopulatorFinished"].map(str::to_owned));
            assert_eq!(case.reasons("data").await, told, "killed after {n}");
        })
        .await;
        killed_after_each_change(world, |n| async move {
            let case = Case::new(world, &format!("fail-{n}")).await;
            let mut spec = case.spec(json!({}));
            spec["bucket"] = "no-such-bucket".into();
            case.source("models", spec).await;
            let claim = case.claim("data", "models", "immediate", json!({})).await;
            let uid = claim.uid().unwrap();
            case.event("data", Some("models"), &["PopulatorFailed", "no-such-bucket"]).await;
            let primes = case.populators::<PersistentVolumeClaim>();
            let noted = |prime: &PersistentVolumeClaim| {
                prime.annotations().get("storage.alibabacloud.com/failure").map(drop)
            };
            case.object(&primes, &format!("prime-{uid}"), "failure noted", noted).await;
            assert_eq!(case.pods(&uid).await.len(), 1, "killed after {n}");
            // its Pod stays
            let jobs = case.populators::<Job>();
            let orphan = DeleteParams::orphan();
            jobs.delete(&format!("populate-{uid}"), &orphan).await.unwrap();
            let claims = case.api::<PersistentVolumeClaim>();
            case.delete(&claims, "data").await;
            case.gone(&claims, "data").await;
            case.no_scaffolding(&uid).await;
            let told = BTreeSet::from(["PopulatorCreated", "PopulatorFailed"].map(str::to_owned));
            assert_eq!(case.reasons("data").await, told, "killed after {n}");
        })
        .await;
        world.promise_holds();
        rights_are_the_least(world);
    });
}

/// Checks in the audit log that the controller was refused nothing, and that it used every right that
/// it has.
fn rights_are_the_least(world: &World) {
    let requests = world.requests();
    let refused: Vec<_> = requests.iter().filter(|it| it.code == 403).map(|it| &it.uri).collect();
    assert!(refused.is_empty(), "{refused:?}");
    let used: BTreeSet<(String, String, String)> = requests
        .iter()
        .map(|it| {
            let resource = match it.subresource.as_str() {
                "" => it.resource.clone(),
                sub => format!("{}/{sub}", it.resource),
            };
            (it.namespace.clone(), resource, it.verb.clone())
        })
        .collect();
    let file = world.plane.folder().join("manifests.yaml");
    let roles = world.kubectl(&[
        "get",
        "-f",
        file.to_str().unwrap(),
        "-o",
        r#"jsonpath={range .items[?(@.rules)]}{.metadata.namespace}{"\t"}{.rules}{"\n"}{end}"#,
    ]);
    let mut rights = 0;
    for line in roles.lines() {
        let (namespace, rules) = line.split_once('\t').unwrap();
        let rules: Vec<serde_json::Value> = serde_json::from_str(rules).unwrap();
        let texts = |rule: &serde_json::Value, field: &str| -> Vec<String> {
            serde_json::from_value(rule[field].clone()).unwrap()
        };
        for rule in rules {
            for resource in texts(&rule, "resources") {
                for verb in texts(&rule, "verbs") {
                    rights += 1;
                    let uses = |(at, what, how): &(String, String, String)| {
                        (namespace.is_empty() || at == namespace)
                            && *what == resource
                            && *how == verb
                    };
                    // by the other tests: a node that is given up, and who leads
                    let elsewhere = resource == "leases";
                    assert!(
                        elsewhere || used.iter().any(uses),
                        "{verb} {resource} in {namespace:?} is never used"
                    );
                }
            }
        }
    }
    println!("{rights} rights, each of them used by {USER}");
    assert!(rights > 20, "{roles}");
}

/// As the volume data source validator installs it, as far as it concerns us.
const VOLUME_POPULATORS: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: volumepopulators.populator.storage.k8s.io
  annotations: {api-approved.kubernetes.io: https://github.com/kubernetes/enhancements/pull/2934}
spec:
  group: populator.storage.k8s.io
  names: {kind: VolumePopulator, plural: volumepopulators}
  scope: Cluster
  versions:
  - name: v1beta1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        required: [sourceKind]
        properties:
          sourceKind:
            type: object
            required: [group, kind]
            properties: {group: {type: string}, kind: {type: string}}
";

#[test]
fn one_of_two_replicas_leads_and_the_other_takes_over() {
    alone(&["--allow-endpoint=127.0.0.1"], |world| async move {
        let log = |n| world.plane.folder().join(format!("replica-{n}.log"));
        let start = |n| Controller::start(&world, &world.kubeconfig, &[], log(n));
        let leads = |replica: &Controller| replica.log().contains("leading identity");
        world.kubectl_apply(VOLUME_POPULATORS);
        world.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"]);
        let first = start(1);
        until(&world, "the first leads", || async { leads(&first).then_some(()) }).await;
        let second = start(2);
        until(&world, "the second waits", || async {
            second.log().contains("waiting to lead").then_some(())
        })
        .await;
        let case = Case::new(&world, "led").await;
        case.hold_last_object();
        case.source("models", case.spec(json!({}))).await;
        let claim = case.claim("data", "models", "immediate", json!({})).await;
        case.running_pod(&claim.uid().unwrap()).await;
        assert!(!leads(&second), "{}", second.log());

        // SIGKILL: the Lease runs out
        drop(first);
        case.server.clear_faults();
        case.filled("data").await;
        assert!(leads(&second), "{}", second.log());

        let kind = world.kubectl(&[
            "get",
            "volumepopulators",
            "-o",
            "jsonpath={.items[*].sourceKind.kind}",
        ]);
        assert_eq!(kind, "OSSVolumePopulator");
        health_and_metrics(&second).await;
        // asked to end, it gives the Lease back, and the next one need not wait
        second.terminate();
        let ended = until(&world, "the end", || async { second.ended() }).await;
        assert!(ended.success(), "{}", second.log());
        let leases = Api::<Lease>::namespaced(world.client.clone(), SYSTEM);
        let lease = leases.get("ossvp-controller").await.unwrap().spec.unwrap();
        assert_eq!(lease.holder_identity, None);
    });
}

async fn health_and_metrics(controller: &Controller) {
    let log = controller.log();
    let line = log.lines().find(|line| line.contains("serving metrics and health")).unwrap();
    let address = line.split("address=").nth(1).unwrap().trim();
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let get = async |path: &str| {
        let response =
            client.get(format!("http://{address}{path}").parse().unwrap()).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status.as_u16(), String::from_utf8(body.to_vec()).unwrap())
    };
    assert_eq!(get("/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(get("/readyz").await, (200, "ok\n".to_owned()));
    assert_eq!(get("/").await.0, 404);
    let (status, metrics) = get("/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "ossvp_leading 1",
        r#"ossvp_population_seconds_count{result="success"} 1"#,
        "ossvp_populated_bytes_total 10000",
        "ossvp_populated_objects_total 5",
        r#"ossvp_actions_total{action="Rebind",result="success"} 1"#,
        r#"ossvp_claims{phase="Populating"} 0"#,
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}
