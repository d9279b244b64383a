//! Every example of both documents, asked of the real router. Only ids, times, addresses and node
//! ports differ.

use serde_json::{Value, json};
use stackd_runtimes::simulated::SimulatedConfig;

use crate::harness::{App, POD, Setup, id};

const HARDENED: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: challenge\nspec:\n  automountServiceAccountToken: false\n  containers:\n  - image: nginx:stable\n    name: app\n    ports:\n    - containerPort: 80\n      protocol: TCP\n    resources:\n      limits:\n        cpu: 100m\n        memory: 128Mi\n      requests:\n        cpu: 100m\n        memory: 128Mi\n    securityContext:\n      allowPrivilegeEscalation: false\n      privileged: false\n      seccompProfile:\n        type: RuntimeDefault\n  enableServiceLinks: false\n  restartPolicy: Never\n  securityContext:\n    seccompProfile:\n      type: RuntimeDefault\nstatus: {}\n";

async fn app() -> App {
    let runtime = SimulatedConfig {
        node: "dev-worker2".to_owned(),
        public_ip: Some("12.34.56.78".to_owned()),
        ..SimulatedConfig::instant()
    };
    App::with(Setup { runtime: Some(runtime), ..Setup::default() }).await
}

/// The fields of the documents, in their order, with what varies replaced by the documents' own.
fn documented(stack: &Value, status: &str) -> Value {
    let id = id(stack);
    let node_port = stack["node_port"].as_u64().unwrap();
    assert!((31001..=32767).contains(&node_port));
    assert_eq!(stack["pod_id"], json!(id));
    assert_eq!(stack["service_name"], json!(format!("svc-{id}")));
    for time in ["ttl_expires_at", "created_at", "updated_at"] {
        is_time(&stack[time]);
    }
    json!({
        "stack_id": id,
        "pod_id": id,
        "namespace": "stacks",
        "node_id": "dev-worker2",
        "node_public_ip": "12.34.56.78",
        "pod_spec": HARDENED,
        "ports": [{"container_port": 80, "protocol": "TCP", "node_port": node_port}],
        "target_port": 80,
        "node_port": node_port,
        "service_name": format!("svc-{id}"),
        "status": status,
        "ttl_expires_at": stack["ttl_expires_at"],
        "created_at": stack["created_at"],
        "updated_at": stack["updated_at"],
        "requested_cpu_milli": 100,
        "requested_memory_bytes": 134217728,
    })
}

/// RFC 3339 in UTC, up to nine digits of a second, none of them a trailing zero.
fn is_time(value: &Value) {
    let text = value.as_str().unwrap();
    let parsed: stackd_core::Timestamp = text.parse().unwrap();
    assert_eq!(parsed.to_string(), text);
    assert!(text.ends_with('Z') && !text.ends_with("0Z") | !text.contains('.'), "{text}");
}

/// The documented part is equal; more fields may follow.
#[track_caller]
fn includes(answer: &Value, expected: &Value) {
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(answer.get(name), Some(value), "{name}");
    }
}

/// Where each field stands in the text.
fn order(text: &str, fields: &[&str]) {
    let at: Vec<_> = fields.iter().map(|f| text.rfind(&format!("\"{f}\":")).expect(f)).collect();
    assert!(at.is_sorted(), "{fields:?} in {text}");
}

#[tokio::test]
async fn create_list_get_status_in_both_versions() {
    let app = app().await;
    let v2 = json!([{"container_port": 80, "protocol": "TCP"}]);
    for target_port in [v2, json!(80)] {
        let request = json!({"target_port": target_port, "pod_spec": POD});
        let answer = app.post("/stacks", &request).await.is(201);
        let created = answer.json();
        let id = id(&created);
        assert_eq!(answer.header("location"), Some(format!("/stacks/{id}").as_str()));
        includes(&created, &documented(&created, "creating"));
        order(
            &answer.text,
            &[
                "stack_id",
                "pod_id",
                "namespace",
                "node_id",
                "node_public_ip",
                "pod_spec",
                "ports",
                "target_port",
                "node_port",
                "service_name",
                "status",
                "ttl_expires_at",
                "created_at",
                "updated_at",
                "requested_cpu_milli",
                "requested_memory_bytes",
                "effective_security",
            ],
        );
        let life = |stack: &Value, from: &str| {
            let time = |name: &str| {
                stack[name].as_str().unwrap().parse::<stackd_core::Timestamp>().unwrap()
            };
            time("ttl_expires_at").duration_since(time(from)).as_secs()
        };
        assert_eq!(life(&created, "created_at"), 7200);

        let one = app.get(&format!("/stacks/{id}?wait=running")).await.is(200).json();
        includes(&one, &documented(&one, "running"));
        assert_eq!(one["created_at"], created["created_at"]);
        assert_eq!((one.get("reason"), one.get("message")), (None, None));
        let all = app.get("/stacks").await.is(200).json();
        assert_eq!(all, json!({"stacks": [one]}));

        let answer = app.get(&format!("/stacks/{id}/status")).await.is(200);
        assert_eq!(
            answer.json(),
            json!({
                "stack_id": id,
                "status": "running",
                "ttl": one["ttl_expires_at"],
                "ports": one["ports"],
                "node_port": one["node_port"],
                "target_port": 80,
                "node_public_ip": "12.34.56.78",
            })
        );

        let gone = app.delete(&format!("/stacks/{id}")).await.is(200);
        assert_eq!(gone.text, format!(r#"{{"deleted":true,"stack_id":"{id}"}}"#));
    }
}

#[tokio::test]
async fn health_and_stats() {
    let app = app().await;
    assert_eq!(app.get("/healthz").await.is(200).text, r#"{"status":"ok"}"#);
    for _ in 0..3 {
        app.running().await;
    }
    let answer = app.get("/stats").await.is(200);
    includes(
        &answer.json(),
        &json!({
            "total_stacks": 3,
            "active_stacks": 3,
            "node_distribution": {"dev-worker2": 3},
            "used_node_ports": 3,
            "reserved_cpu_milli": 300,
            "reserved_memory_bytes": 3 * 134217728u64,
        }),
    );
    order(
        &answer.text,
        &[
            "total_stacks",
            "active_stacks",
            "node_distribution",
            "used_node_ports",
            "reserved_cpu_milli",
            "reserved_memory_bytes",
            "reserved_disk_bytes",
        ],
    );
}

#[tokio::test]
async fn an_ended_stack_keeps_its_row_and_frees_the_rest() {
    let app = app().await;
    let id = app.running().await;
    let stack = app.get(&format!("/stacks/{id}")).await.json();
    app.runtime.end(id.parse().unwrap(), stackd_runtimes::simulated::End::failed(3));
    let ended = app.get(&format!("/stacks/{id}?wait=ended")).await.is(200).json();
    assert_eq!(ended["status"], "failed");
    assert_eq!((&ended["reason"], &ended["exit_code"]), (&json!("Error"), &json!(3)));
    assert!(ended["message"].is_string() && ended["ended_at"].is_string());
    // A client of the first version still reads plain numbers.
    assert_eq!((&ended["target_port"], &ended["node_port"]), (&json!(80), &stack["node_port"]));
    let stats = app.get("/stats").await.json();
    includes(
        &stats,
        &json!({
            "total_stacks": 1, "active_stacks": 0, "node_distribution": {}, "used_node_ports": 0,
            "reserved_cpu_milli": 0, "reserved_memory_bytes": 0, "reserved_disk_bytes": 0,
        }),
    );
}

#[tokio::test]
async fn what_is_not_known_is_null_and_the_key_is_there() {
    let app = App::new().await;
    let stack = app.create(json!({})).await;
    assert_eq!(stack.get("node_public_ip"), Some(&Value::Null));
    assert_eq!(stack["node_id"], "simulated");
    let status = app.get(&format!("/stacks/{}/status", id(&stack))).await.json();
    assert_eq!(status.get("node_public_ip"), Some(&Value::Null));
}

#[tokio::test]
async fn the_namespace_is_configured() {
    let mut setup = Setup::default();
    setup.server.namespace = "ctf".to_owned();
    let app = App::with(setup).await;
    assert_eq!(app.create(json!({})).await["namespace"], "ctf");
}
