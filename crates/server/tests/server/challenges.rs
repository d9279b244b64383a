//! The catalogue: every answer of its document, and every error.

use axum::http::Method;
use serde_json::{Value, json};

use crate::harness::{App, POD, Setup};

/// The document's example.
pub(crate) fn web100() -> Value {
    json!({
        "id": "web100",
        "name": "Web 100",
        "runtime": "docker",
        "image": "myctf-web100:latest",
        "port": 80,
        "cpu_count": 1,
        "memory_mb": 512,
        "ttl_seconds": 3600
    })
}

fn with(more: Value) -> Value {
    let mut body = web100();
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// What is wrong, as pairs of field and text.
fn problems(answer: &Value) -> Vec<(String, String)> {
    let entry = |entry: &Value| {
        let loc: Vec<_> =
            entry["loc"].as_array().unwrap().iter().map(|l| l.as_str().unwrap()).collect();
        assert_eq!(loc[0], "body");
        assert!(entry["type"].is_string() && entry.get("input").is_some(), "{entry}");
        (loc[1..].join("."), entry["msg"].as_str().unwrap().to_owned())
    };
    answer["detail"].as_array().unwrap().iter().map(entry).collect()
}

#[tokio::test]
async fn a_challenge_is_written_and_shown_whole() {
    let app = App::new().await;
    let made = app.post("/challenges", &web100()).await.is(201).json();
    let mut expected = with(json!({
        "number": 1, "protocol": "http", "extra_config": null, "pod_spec": null,
        "target_port": null, "enabled": true, "stack_enabled": true, "destroy_on_solve": true,
    }));
    for time in ["created_at", "updated_at"] {
        expected[time] = made[time].clone();
        assert!(made[time].as_str().unwrap().ends_with('Z'));
    }
    assert_eq!(made, expected);
    for path in ["/challenges/web100", "/challenges/1"] {
        assert_eq!(app.get(path).await.is(200).json(), made);
    }
    assert_eq!(app.get("/challenges").await.is(200).json(), json!([made]));
    app.delete("/challenges/web100").await.is(204);
    assert_eq!(app.get("/challenges").await.is(200).json(), json!([]));
    for path in ["/challenges/web100", "/challenges/1", "/challenges/Not-A-Slug", "/challenges/0"] {
        app.get(path).await.details(404, "challenge not found");
        app.delete(path).await.details(404, "challenge not found");
        app.patch(path, &json!({})).await.details(404, "challenge not found");
    }
    // A number is never given out again by itself.
    let next = app.post("/challenges", &web100()).await.is(201).json();
    assert_eq!(next["number"], 2);
    // What was removed by mistake comes back under the platform's number.
    app.delete("/challenges/web100").await.is(204);
    let back = app.post("/challenges", &with(json!({"number": 1}))).await.is(201).json();
    assert_eq!(back["number"], 1);
}

#[tokio::test]
async fn defaults_and_numbers_as_documents_have_them() {
    let app = App::new().await;
    let least = json!({"id": "a", "name": "A", "runtime": "kctf", "image": "i", "port": 1337});
    let made = app.post("/challenges", &least).await.is(201).json();
    assert_eq!((&made["cpu_count"], &made["memory_mb"]), (&json!(1), &json!(512)));
    assert_eq!(made["ttl_seconds"], Value::Null);
    let body =
        with(json!({"number": 12, "cpu_count": 2.0, "unknown": {"x": 1}, "protocol": "tcp"}));
    let made = app.post("/challenges", &body).await.is(201).json();
    assert_eq!((&made["number"], &made["cpu_count"]), (&json!(12), &json!(2)));
    assert_eq!(made["protocol"], "tcp");
    for (id, number) in [("web100", 99), ("other", 12)] {
        let body = with(json!({"id": id, "number": number}));
        app.post("/challenges", &body).await.details(409, "challenge already exists");
    }
    let next = app.post("/challenges", &with(json!({"id": "next"}))).await.is(201).json();
    assert_eq!(next["number"], 13);
    let pod = json!({"id": "pod", "name": "P", "runtime": "kata-firecracker", "pod_spec": POD, "target_port": 80});
    let made = app.post("/challenges", &pod).await.is(201).json();
    assert_eq!(
        (&made["target_port"], &made["image"], &made["cpu_count"]),
        (&json!(80), &Value::Null, &Value::Null)
    );
    assert_eq!(made["pod_spec"], POD);
}

#[tokio::test]
async fn all_that_is_wrong_is_told_with_its_place() {
    let app = App::new().await;
    let missing = app.post("/challenges", &json!({})).await.is(422).json();
    let fields: Vec<_> = problems(&missing).into_iter().map(|(field, _)| field).collect();
    assert_eq!(fields, ["id", "name", "runtime", "image", "port"]);
    assert_eq!(missing["detail"][0]["type"], "missing");

    let types = with(
        json!({"port": "80", "cpu_count": 1.5, "name": 7, "enabled": "yes", "extra_config": {}}),
    );
    let answer = app.post("/challenges", &types).await.is(422).json();
    let expected = [
        ("name", "name must be a text"),
        ("port", "port must be a whole number"),
        ("cpu_count", "cpu_count must be a whole number"),
        ("extra_config", "extra_config must be a text"),
        ("enabled", "enabled must be true or false"),
    ];
    assert_eq!(problems(&answer), expected.map(|(f, m)| (f.to_owned(), m.to_owned())));
    assert_eq!(answer["detail"][1]["input"], "80");

    for (more, field, message) in [
        (
            json!({"id": "Web"}),
            "id",
            "id must be at most 63 of a-z, 0-9 and -, with a letter or digit at both ends and at least one letter",
        ),
        (
            json!({"id": "42"}),
            "id",
            "id must be at most 63 of a-z, 0-9 and -, with a letter or digit at both ends and at least one letter",
        ),
        (json!({"id": "detect-protocol"}), "id", "id is reserved"),
        (json!({"number": 0}), "number", "number must be from 1 to 9007199254740991"),
        (
            json!({"runtime": "podman"}),
            "runtime",
            "runtime must be docker, kctf or kata-firecracker",
        ),
        (json!({"port": 70000}), "port", "port must be from 1 to 65535"),
        (json!({"protocol": "udp"}), "protocol", "protocol must be http or tcp"),
        (json!({"cpu_count": 3}), "cpu_count", "cpu_count must be one of 1, 2, 4"),
        (json!({"memory_mb": 100}), "memory_mb", "memory_mb must be one of 512, 1024, 2048"),
        (
            json!({"ttl_seconds": 0}),
            "ttl_seconds",
            "ttl_seconds must be a whole number of seconds above 0",
        ),
        (json!({"ttl_seconds": 999999999}), "ttl_seconds", "ttl_seconds must be from 1 to 604800"),
        (
            json!({"extra_config": "{\"privileged\":true}"}),
            "extra_config",
            "extra_config unknown field `privileged`, expected one of `version`, `env`, `command`, `args`, `working_dir`, `read_only_root`, `ports`, `protocol`, `pids_limit`, `cap_drop`, `flag`",
        ),
        (
            json!({"target_port": 80}),
            "target_port",
            "target_port belongs to pod_spec; an image has a port",
        ),
    ] {
        let answer = app.post("/challenges", &with(more.clone())).await.is(422).json();
        assert_eq!(problems(&answer), [(field.to_owned(), message.to_owned())], "{more}");
        let shown = if field == "extra_config" { &Value::Null } else { &more[field] };
        assert_eq!(&answer["detail"][0]["input"], shown, "{more}");
    }
    // What was sent is shown, but where a flag may be in it.
    for extra in [
        json!({"flag": {"value": "ctf{x}"}}),
        json!("{\"flag\": {\"value\": \"ctf{x}\"},"),
        json!(json!({"flag": "ctf{x}"}).to_string()),
        json!(json!({"flag": {"valeu": "ctf{x}"}}).to_string()),
        json!(json!({"flag": {"value": "ctf{x}"}, "pids_limit": 0}).to_string()),
    ] {
        let answer = app.post("/challenges", &with(json!({"extra_config": extra}))).await.is(422);
        assert!(!answer.text.contains("ctf{x}"), "{}", answer.text);
    }
    for (body, kind) in [("", "json_invalid"), ("nonsense", "json_invalid"), ("[]", "model_type")] {
        let answer = app.send(Method::POST, "/challenges", &[], body).await.is(422).json();
        assert_eq!(
            (&answer["detail"][0]["type"], &answer["detail"][0]["loc"]),
            (&json!(kind), &json!(["body"]))
        );
    }
    let large = "x".repeat((1 << 20) + 1);
    let answer = app.send(Method::POST, "/challenges", &[], large).await;
    answer.details(413, "request body too large");
    assert_eq!(app.get("/challenges").await.json(), json!([]));
}

#[tokio::test]
async fn a_trial_writes_nothing() {
    let app = App::new().await;
    let shown = app.post("/challenges?dry_run=true", &web100()).await.is(201).json();
    assert_eq!((&shown["id"], &shown["number"]), (&json!("web100"), &json!(1)));
    let bad = with(json!({"port": 0}));
    app.post("/challenges?dry_run=true", &bad).await.is(422);
    assert_eq!(app.get("/challenges").await.json(), json!([]));
    let made = app.post("/challenges", &web100()).await.is(201).json();
    app.post("/challenges?dry_run=1", &web100()).await.details(409, "challenge already exists");
    let path = "/challenges/web100?dry_run";
    let shown = app.patch(path, &json!({"ttl_seconds": 77})).await.is(200).json();
    assert_eq!(shown["ttl_seconds"], 77);
    app.patch(path, &json!({"number": 2})).await.is(422);
    assert_eq!(app.get("/challenges/web100").await.json(), made);
    let answer = app.post("/challenges?dry_run=maybe", &web100()).await.is(422).json();
    assert_eq!(answer["detail"][0]["loc"], json!(["query", "dry_run"]));
}

#[tokio::test]
async fn a_patch_changes_what_it_names() {
    let app = App::new().await;
    let made = app.post("/challenges", &with(json!({"extra_config": "{}"}))).await.is(201).json();
    let body = json!({"ttl_seconds": 3600, "cpu_count": 2, "memory_mb": 1024});
    let changed = app.patch("/challenges/1", &body).await.is(200).json();
    assert_eq!((&changed["cpu_count"], &changed["memory_mb"]), (&json!(2), &json!(1024)));
    assert_eq!((&changed["name"], &changed["created_at"]), (&made["name"], &made["created_at"]));
    // The whole object changes nothing, also not its time.
    let same = app.patch("/challenges/web100", &changed).await.is(200).json();
    assert_eq!(same, changed);
    let cleared = json!({"ttl_seconds": null, "extra_config": null, "pod_spec": null});
    let cleared = app.patch("/challenges/web100", &cleared).await.is(200).json();
    assert_eq!((&cleared["ttl_seconds"], &cleared["extra_config"]), (&Value::Null, &Value::Null));
    for (body, field, message) in [
        (json!({"id": "other"}), "id", "id cannot be changed"),
        (json!({"number": 2}), "number", "number cannot be changed"),
        (json!({"name": null}), "name", "name cannot be null"),
        (json!({"image": null}), "image", "image cannot be null"),
        (json!({"enabled": null}), "enabled", "enabled cannot be null"),
        (json!({"port": 0}), "port", "port must be from 1 to 65535"),
        (json!({"port": "x"}), "port", "port must be a whole number"),
        (
            json!({"target_port": 80}),
            "target_port",
            "target_port belongs to pod_spec; an image has a port",
        ),
    ] {
        let answer = app.patch("/challenges/web100", &body).await.is(422).json();
        assert_eq!(problems(&answer), [(field.to_owned(), message.to_owned())], "{body}");
        assert_eq!(answer["detail"][0]["input"], body[field], "{body}");
    }
    for path in ["/challenges/web100?destroy=maybe", "/challenges/none?destroy=maybe"] {
        let answer = app.delete(path).await.is(422).json();
        let expected = json!([{"type": "bool_type", "loc": ["query", "destroy"], "msg": "destroy must be true or false", "input": "maybe"}]);
        assert_eq!(answer["detail"], expected);
    }
    // A Pod takes the image's place, and back.
    let pod = json!({"pod_spec": POD, "target_port": [{"container_port": 80, "protocol": "TCP"}]});
    let by_pod = app.patch("/challenges/web100", &pod).await.is(200).json();
    assert_eq!((&by_pod["image"], &by_pod["target_port"]), (&Value::Null, &pod["target_port"]));
    assert_eq!(app.patch("/challenges/web100", &by_pod).await.is(200).json(), by_pod);
    let image = json!({"image": "web:2", "port": 8080});
    let by_image = app.patch("/challenges/web100", &image).await.is(200).json();
    assert_eq!((&by_image["pod_spec"], &by_image["port"]), (&Value::Null, &json!(8080)));
    assert_eq!(by_image["number"], 1);
}

/// Bodies that do not say who, and what is wrong with them.
pub(crate) fn wrong_subjects() -> Vec<(Value, Value)> {
    let line = |field: &str| format!("{field} must be one line of 1 to 255 characters");
    let kind = |field: &str| format!("{field} must be a text or a whole number");
    let wrong = |kind: &str, field: &str, message: String, input: Value| json!({"type": kind, "loc": ["body", field], "msg": message, "input": input});
    let long = "x".repeat(256);
    vec![
        (
            json!({}),
            json!([{"type": "missing", "loc": ["body"], "msg": "user or team must say who it is", "input": null}]),
        ),
        (json!({"user": " "}), json!([wrong("value_error", "user", line("user"), json!(" "))])),
        (json!({"team": long}), json!([wrong("value_error", "team", line("team"), json!(long))])),
        (
            json!({"user": [1], "team": 1.5}),
            json!([
                wrong("string_type", "user", kind("user"), json!([1])),
                wrong("string_type", "team", kind("team"), json!(1.5)),
            ]),
        ),
    ]
}

#[tokio::test]
async fn a_protocol_is_said_in_either_place() {
    let app = App::new().await;
    let extra = |protocol: &str| json!({"extra_config": json!({"protocol": protocol}).to_string()});
    let made = app.post("/challenges", &with(extra("tcp"))).await.is(201).json();
    assert_eq!(made["protocol"], "tcp");
    for protocol in ["http", "tcp"] {
        let changed = app.patch("/challenges/1", &extra(protocol)).await.is(200).json();
        assert_eq!(changed["protocol"], protocol);
        assert_eq!(app.patch("/challenges/1", &changed).await.is(200).json(), changed);
    }
    // Who says two things at once is asked which.
    let mut both = extra("tcp");
    both["protocol"] = json!("http");
    for body in [both.clone(), json!({"protocol": "http"})] {
        let answer = app.patch("/challenges/1", &body).await.is(422).json();
        let message = "extra_config protocol is http outside of it";
        assert_eq!(problems(&answer), [("extra_config".to_owned(), message.to_owned())]);
    }
    both["extra_config"] = extra("http")["extra_config"].clone();
    assert_eq!(app.patch("/challenges/1", &both).await.is(200).json()["protocol"], "http");
    // Without that option it stays what it was.
    app.patch("/challenges/1", &extra("tcp")).await.is(200);
    let cleared = app.patch("/challenges/1", &json!({"extra_config": null})).await.is(200).json();
    assert_eq!(cleared["protocol"], "tcp");
}

#[tokio::test]
async fn what_could_never_start_is_refused_when_it_is_written() {
    let engine = json!({"limit_range": {"container": {"max": {"memory": "256Mi"}}}});
    let app = App::with(Setup { engine: Some(engine), ..Setup::default() }).await;
    let why = "maximum memory usage per Container is 256Mi, but limit is";
    let refused = app.post("/challenges", &web100()).await.is(422).json();
    assert_eq!(refused["detail"][0]["loc"], json!(["body", "image"]));
    assert_eq!(refused["detail"][0]["msg"], format!("image: {why} 512Mi"));
    let mut by_pod = json!({"id": "pod", "name": "Pod", "runtime": "docker", "target_port": 80});
    by_pod["pod_spec"] = json!(POD.replace("128Mi", "1Gi"));
    let refused = app.post("/challenges", &by_pod).await.is(422).json();
    assert_eq!(refused["detail"][0]["loc"], json!(["body", "pod_spec"]));
    assert_eq!(refused["detail"][0]["msg"], format!("pod_spec: {why} 1Gi"));
    by_pod["pod_spec"] = json!(POD);
    app.post("/challenges", &by_pod).await.is(201);
    let larger = json!({"pod_spec": POD.replace("128Mi", "1Gi")});
    app.patch("/challenges/pod", &larger).await.is(422);
}

#[tokio::test]
async fn solves_and_locks_are_told_and_taken_back() {
    let app = App::new().await;
    app.post("/challenges", &web100()).await.is(201);
    for (what, missing) in [("solves", "solve not found"), ("locks", "lock not found")] {
        let path = format!("/challenges/web100/{what}");
        let first = app.post(&path, &json!({"user": 7})).await.is(201).json();
        assert_eq!((&first["user"], &first["team"]), (&json!("7"), &Value::Null));
        let again = app.post(&format!("/challenges/1/{what}"), &json!({"user": "7"})).await.is(200);
        assert_eq!(again.json(), first);
        app.post(&path, &json!({"team": "red"})).await.is(201);
        let listed = app.get(&path).await.is(200).json();
        assert_eq!(listed.as_array().unwrap().len(), 2);
        app.delete(&format!("{path}?user=7")).await.is(204);
        app.delete(&format!("{path}?user=7")).await.details(404, missing);
        // A name is what it is, with its blanks.
        let blank = app.post(&path, &json!({"team": "red "})).await.is(201).json();
        assert_eq!(blank["team"], "red ");
        app.delete(&format!("{path}?team=red%20")).await.is(204);
        app.delete(&format!("{path}?team=red%20")).await.details(404, missing);
        assert_eq!(app.get(&path).await.json().as_array().unwrap().len(), 1);
        let one_of = "one of user and team must say who it is";
        for (query, kind) in
            [("", "missing"), ("?user=", "missing"), ("?user=7&team=red", "value_error")]
        {
            let answer = app.delete(&format!("{path}{query}")).await.is(422).json();
            let expected = json!([{"type": kind, "loc": ["query"], "msg": one_of, "input": null}]);
            assert_eq!(answer["detail"], expected);
        }
        for (body, problems) in wrong_subjects() {
            let answer = app.post(&path, &body).await.is(422).json();
            assert_eq!(answer, json!({ "detail": problems }), "{body}");
        }
        app.post(&format!("/challenges/none/{what}"), &json!({"user": 7}))
            .await
            .details(404, "challenge not found");
        app.get(&format!("/challenges/none/{what}")).await.details(404, "challenge not found");
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_answer_in_its_form() {
    let app = App::new().await;
    app.get("/challenges/web100/nothing").await.details(404, "not found");
    app.get("/challenges/").await.details(404, "not found");
    app.send(Method::PUT, "/challenges", &[], "").await.details(405, "method not allowed");
    app.get("/challengesque").await.refuses(404, "not found");
    let problem = app
        .send(Method::GET, "/challenges/none", &[("accept", "application/problem+json")], "")
        .await
        .is(404)
        .json();
    assert_eq!(problem["detail"], "challenge not found");
}

#[tokio::test]
async fn images_are_pulled_ahead_of_need() {
    let app = App::with(Setup::default()).await;
    app.post("/challenges", &web100()).await.is(201);
    let answer = app.post("/challenges/web100/warm", &json!({})).await.is(200);
    assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
    let lines: Vec<Value> =
        answer.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let image = "myctf-web100:latest";
    assert_eq!(
        lines,
        [json!({"image": image, "state": "pulling"}), json!({"image": image, "state": "ready"})]
    );
    app.post("/challenges/none/warm", &json!({})).await.details(404, "challenge not found");
}

#[tokio::test]
async fn the_schema_of_a_file_needs_no_key() {
    let app = App::new().await;
    let schema = app.get("/schemas/challenge.json").await.is(200).json();
    assert_eq!(schema["required"], json!(["id", "name"]));
}
