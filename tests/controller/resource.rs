//! The resource as users write it, and what the API server says to what it is not.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::case::Case;
use crate::world::{World, shared, until};

/// The YAML of the document that the product implements, its indentation restored.
const MODEL_SERVING: &str = r"
apiVersion: storage.alibabacloud.com/v1beta1
kind: OSSVolumePopulator
metadata:
  name: qwen3-32b
spec:
  bucket: my-models
  region: cn-hangzhou
  endpoint: oss-cn-hangzhou-internal.aliyuncs.com
  path: /Qwen3-32B/
  mode: bmcpfs-dataflow
  bmcpfsDataflow:
    throughput: 1200
    sourceSecurityType: SSL
    dataType: metadataAndData
";
const BATCH_WORKFLOW: &str = r#"
apiVersion: storage.alibabacloud.com/v1beta1
kind: OSSVolumePopulator
metadata:
  name: generic-demo
spec:
  bucket: my-test-bucket
  region: cn-hangzhou
  endpoint: oss-cn-hangzhou-internal.aliyuncs.com
  path: /many-files/
  mode: generic
  generic:
    labels:
      alibabacloud.com/eci: "true"
    annotations:
      k8s.aliyun.com/eci-use-specs: "2-4Gi"
    rrsaConfigs:
      roleArn: "acs:ram::1234567:role/oss-populator"
      oidcProviderArn: "acs:ram::1234567:oidc-provider/my-oidc-provider"
    affinity:
      nodeAffinity:
        requiredDuringSchedulingIgnoredDuringExecution:
          nodeSelectorTerms:
          - matchExpressions:
            - key: "disktype"
              operator: NotIn
              values:
              - "hdd"
    tolerations:
    - key: "virtual-kubelet.io/provider"
      operator: Equal
      value: "alibabacloud"
      effect: NoSchedule
    throughput: 1000
"#;

fn apply(world: &World, namespace: &str, yaml: &str) -> (bool, String) {
    let mut kubectl = Command::new(world.plane.kubectl())
        .env("KUBECONFIG", world.plane.kubeconfig())
        .args(["-n", namespace, "apply", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    kubectl.stdin.take().unwrap().write_all(yaml.as_bytes()).unwrap();
    let output = kubectl.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn the_documents_yaml_applies_unchanged() {
    shared(|world| async move {
        let case = Case::new(&world, "yaml").await;
        for yaml in [MODEL_SERVING, BATCH_WORKFLOW] {
            let (ok, said) = apply(&world, &case.namespace, yaml);
            // also without a warning of fields that are unknown
            assert!(ok && !said.contains("arning"), "{said}");
        }
        let secret = BATCH_WORKFLOW.split("    rrsaConfigs").next().unwrap().to_owned();
        world.kubectl(&["-n", &case.namespace, "delete", "ossvp", "generic-demo"]);
        let (ok, said) =
            apply(&world, &case.namespace, &format!("{secret}    secretRef: oss-secret\n"));
        assert!(ok && !said.contains("arning"), "{said}");
        // by its short name, and with what is not said filled in
        let shown = world.kubectl(&["-n", &case.namespace, "get", "ossvp", "-o", "yaml"]);
        assert!(shown.contains("mode: generic"), "{shown}");
    });
}

/// The YAML of a page, one block after the other.
fn blocks(page: &str) -> impl Iterator<Item = &str> {
    let blocks = page.split("```yaml\n").skip(1);
    blocks.map(|block| block.split("```").next().unwrap())
}

/// The namespace that an object says it is of.
fn within(document: &str) -> &str {
    let line = document.lines().find_map(|line| line.trim().strip_prefix("namespace: "));
    line.unwrap_or("default")
}

#[test]
fn the_walkthroughs_yaml_is_taken_as_it_stands() {
    shared(|world| async move {
        for page in ["walkthrough-model-serving.md", "walkthrough-batch-workflow.md"] {
            let path = format!("{}/docs/{page}", env!("CARGO_MANIFEST_DIR"));
            let page = std::fs::read_to_string(path).unwrap();
            let mut taken = 0;
            for document in blocks(&page).flat_map(|block| block.split("---\n")) {
                // Argo's own definition is not here
                if document.contains("kind: Workflow\n") {
                    continue;
                }
                // a new namespace's service account takes a moment
                let said = until(&world, document, || async {
                    let (ok, said) = apply(&world, within(document), document);
                    (ok || !said.contains("serviceaccount")).then_some((ok, said))
                })
                .await;
                assert!(said.0 && !said.1.contains("arning"), "{}\n{document}", said.1);
                taken += 1;
            }
            assert!(taken >= 4, "{page}");
        }
        // they have served; nobody makes their volumes
        world.kubectl(&["delete", "namespace", "bmcpfs-dataflow-demo", "argo", "--wait=false"]);
        world.kubectl(&["delete", "storageclass", "bmcpfs"]);
        world.kubectl(&["-n", "ack-volume-populator", "delete", "secret", "oss-secret"]);
    });
}

#[test]
fn what_cannot_work_is_refused_with_words_that_help() {
    shared(|world| async move {
        let case = Case::new(&world, "words").await;
        let base = "apiVersion: storage.alibabacloud.com/v1beta1\nkind: OSSVolumePopulator\n\
                    metadata: {name: x}\nspec: {bucket: my-models, region: r, endpoint: e.aliyuncs.com, ";
        for (rest, words) in [
            ("generic: {}", "exactly one of secretRef and rrsaConfigs"),
            (
                "generic: {secretRef: s, rrsaConfigs: {roleArn: 'acs:ram::1:role/r', oidcProviderArn: 'acs:ram::1:oidc-provider/p'}}",
                "exactly one of secretRef and rrsaConfigs",
            ),
            ("path: /a/", "mode generic needs generic.secretRef or generic.rrsaConfigs"),
            ("path: /a/../b/, generic: {secretRef: s}", "no segment may be '..'"),
            ("mode: fast", r#"supported values: "generic", "bmcpfs-dataflow""#),
            ("mode: bmcpfs-dataflow, bmcpfsDataflow: {throughput: 700}", "600, 1200 or 1500"),
            (
                "mode: bmcpfs-dataflow, bmcpfsDataflow: {dataType: all}",
                r#""metadata", "metadataAndData""#,
            ),
            (
                "mode: bmcpfs-dataflow, bmcpfsDataflow: {sourceSecurityType: TLS}",
                r#"supported values: "SSL""#,
            ),
            ("mode: bmcpfs-dataflow, generic: {secretRef: s}", "only for mode generic"),
            (
                "generic: {secretRef: s}, bmcpfsDataflow: {throughput: 600}",
                "only for mode bmcpfs-dataflow",
            ),
            (
                "generic: {secretRef: s, verify: sometimes}",
                r#"supported values: "auto", "require", "off""#,
            ),
            ("generic: {secretRef: s, partSize: large}", "partSize"),
            ("generic: {secretRef: s, concurrency: 0}", "greater than or equal to 1"),
            ("generic: {secretRef: s, throughput: 0}", "greater than or equal to 1"),
            ("generic: {secretRef: s, parallelism: 0}", "greater than or equal to 1"),
            ("generic: {secretRef: s, parallelism: 257}", "less than or equal to 256"),
            (
                "generic: {rrsaConfigs: {roleArn: admin, oidcProviderArn: 'acs:ram::1:oidc-provider/p'}}",
                "roleArn",
            ),
            ("generic: {secretRef: s, image: evil}", "unknown field"),
        ] {
            let (ok, said) = apply(&world, &case.namespace, &format!("{base}{rest}}}"));
            assert!(!ok && said.contains(words), "{rest}: {said}");
        }
        let nothing = "apiVersion: storage.alibabacloud.com/v1beta1\nkind: OSSVolumePopulator\nmetadata: {name: x}\n";
        let (ok, said) =
            apply(&world, &case.namespace, &format!("{nothing}spec: {{mode: generic}}"));
        assert!(!ok && said.contains("bucket") && said.contains("endpoint"), "{said}");
    });
}

#[test]
fn the_manifests_are_accepted_by_the_api_server() {
    shared(|world| async move {
        for (n, more) in [
            &[][..],
            &["--", "--feature-gates=VolumePopulatorPodHandler=false"],
            &["--namespace=ack-volume-populator", "--", "--require-grant"],
            &["--", "--worker-security=root-no-caps"],
            &[
                "--cpfs-role-arn=acs:ram::1234567:role/ossvp-controller",
                "--cpfs-oidc-provider-arn=acs:ram::1234567:oidc-provider/ack-rrsa-c1234",
            ],
            &["--cpfs-secret=cpfs"],
        ]
        .into_iter()
        .enumerate()
        {
            let mut manifests = Command::new(env!("CARGO_BIN_EXE_ossvp"));
            let output = manifests
                .args(["manifests", "--image=registry.example.com/ossvp:1"])
                .args(more)
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            let file = world.plane.folder().join(format!("manifests-{n}.yaml"));
            std::fs::write(&file, output.stdout).unwrap();
            // of another manager's fields only the namespaces' levels differ
            let said = world.kubectl(&[
                "apply",
                "--server-side",
                "--force-conflicts",
                "--dry-run=server",
                "-f",
                file.to_str().unwrap(),
            ]);
            assert!(!said.contains("arning"), "{said}");
            assert!(said.contains("deployment.apps/ossvp-controller"), "{said}");
        }
    });
}
