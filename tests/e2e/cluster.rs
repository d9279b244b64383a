//! What a cluster refuses, as its callers read it.

use std::time::Duration;

use serde_json::{Value, json};
use stackd_testkit::within;

use crate::IMAGE;
use crate::on::On;
use crate::server::Server;

fn body(cpu: &str) -> Value {
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: challenge}}\nspec:\n  containers:\n    - name: \
         app\n      image: {IMAGE}\n      ports: [{{containerPort: 80}}]\n      resources: \
         {{requests: {{cpu: {cpu}, memory: 64Mi}}, limits: {{cpu: {cpu}, memory: 64Mi}}}}\n"
    );
    json!({"target_port": 80, "pod_spec": pod})
}

#[tokio::test]
async fn what_it_refuses_is_told_in_the_documents_words() {
    if !On::Kubernetes.is_here() {
        return;
    }
    let cluster = On::Kubernetes.cluster();
    let namespace = cluster.namespace();
    let name = &namespace.name;
    let server = Server::in_namespace(name, &[]).await;
    let refused = async |cpu: &str| {
        let (status, answer) = server.post("/stacks", &body(cpu)).await;
        let (_, list) = server.get("/stacks").await;
        let stacks = list["stacks"].as_array().expect("a list").len();
        (status.as_u16(), answer["error"].as_str().unwrap_or_default().to_owned(), stacks)
    };
    // No node has as much, which the scheduler says.
    assert_eq!(refused("1000").await, (503, "cluster saturated".to_owned(), 0));

    cluster.apply(&format!(
        "apiVersion: v1\nkind: ResourceQuota\nmetadata: {{name: quota, namespace: {name}}}\n\
         spec: {{hard: {{pods: '1'}}}}\n"
    ));
    // It holds from when the cluster has counted what is there.
    within("the quota holds", async {
        let counted = "--output=jsonpath={.status.hard.pods}";
        let asked = ["get", "resourcequota", "quota", "--namespace", name, counted];
        while cluster.kubectl(&asked) != "1" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let (status, first) = server.post("/stacks", &body("100m")).await;
    assert_eq!(status, 201, "{first}");
    let (status, error, stacks) = refused("100m").await;
    assert_eq!((status, stacks), (503, 1), "{error}");
    assert!(error.starts_with("cluster saturated: exceeded quota: quota"), "{error}");

    cluster.apply(&format!(
        "apiVersion: v1\nkind: LimitRange\nmetadata: {{name: limits, namespace: {name}}}\n\
         spec: {{limits: [{{type: Container, max: {{cpu: '2'}}}}]}}\n"
    ));
    let (status, error, stacks) = refused("3").await;
    assert_eq!((status, stacks), (400, 1), "{error}");
    let text = "invalid pod spec: maximum cpu usage per Container is 2, but limit is 3";
    assert!(error.starts_with(text), "{error}");
    server.finish().await;
}

#[tokio::test]
async fn an_image_of_another_registry_is_refused_before_a_node_is_asked() {
    if !On::Kubernetes.is_here() {
        return;
    }
    let namespace = On::Kubernetes.cluster().namespace();
    let options = ["--allowed-registry", "registry.example"];
    let server = Server::in_namespace(&namespace.name, &options).await;
    // One of Docker Hub's, by its name; that the nodes have it makes no difference.
    let (status, answer) = server.post("/stacks", &body("100m")).await;
    let text = "invalid pod spec: images of docker.io may not be pulled here";
    assert_eq!((status.as_u16(), answer["error"].as_str()), (400, Some(text)), "{answer}");
    let (_, list) = server.get("/stacks").await;
    assert_eq!(list["stacks"], json!([]));
    server.finish().await;
}
