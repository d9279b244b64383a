use super::*;

fn web() -> Draft {
    Draft {
        id: Some("web100".to_owned()),
        name: Some("Web 100".to_owned()),
        runtime: Some("docker".to_owned()),
        image: Some("myctf-web100:latest".to_owned()),
        port: Some(80),
        ..Draft::default()
    }
}

fn check(draft: Draft) -> Result<Challenge, Vec<Invalid>> {
    let number = ChallengeNumber::new(12).unwrap();
    draft.check(number, &ChallengePolicy::default(), &PodDefaults::default(), Timestamp::UNIX_EPOCH)
}

fn faults(draft: Draft) -> Vec<(&'static str, String)> {
    check(draft).unwrap_err().into_iter().map(|e| (e.field, e.message)).collect()
}

#[test]
fn an_image_becomes_a_pod_with_the_documents_defaults() {
    let challenge = check(web()).unwrap();
    let container = &challenge.spec.containers[0];
    assert_eq!(container.image, "myctf-web100:latest");
    assert_eq!(
        (container.resources.cpu_milli, container.resources.memory_bytes),
        (1000, 512 << 20)
    );
    let port = TargetPort { container_port: 80, protocol: Protocol::Tcp };
    assert_eq!(challenge.spec.target_ports, [port]);
    let Definition { enabled, stack_enabled, destroy_on_solve, scheme, .. } = challenge.definition;
    assert!(enabled && stack_enabled && destroy_on_solve && scheme == Scheme::Http);
}

#[test]
fn a_draft_of_a_challenge_is_that_challenge() {
    let extra = r#"{"env":{"A":"1"},"ports":[{"port":53,"protocol":"udp"}],"pids_limit":9}"#;
    let first = check(Draft { extra_config: Some(extra.to_owned()), ..web() }).unwrap();
    assert_eq!(check(Draft::of(&first)), Ok(first.clone()));
    assert_eq!(first.spec.restrictions.pids_limit, Some(9));
    assert_eq!(first.spec.target_ports.len(), 2);
    let pod = "kind: Pod\nspec:\n  containers:\n  - name: a\n    image: b\n    ports: [{containerPort: 7}]\n    resources: {limits: {cpu: 1, memory: 1Gi}}\n";
    let draft = Draft {
        image: None,
        port: None,
        pod_spec: Some(pod.to_owned()),
        target_port: Some(TargetPorts::Any(7)),
        protocol: Some("tcp".to_owned()),
        ..web()
    };
    let second = check(draft).unwrap();
    assert_eq!(check(Draft::of(&second)), Ok(second.clone()));
    assert_eq!(second.spec.containers[0].resources.memory_bytes, 1 << 30);
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let fields = |draft| faults(draft).into_iter().map(|(field, _)| field).collect::<Vec<_>>();
    assert_eq!(fields(Draft::default()), ["id", "name", "runtime", "image", "port"]);
    let draft = Draft {
        id: Some("Web".to_owned()),
        name: Some(" ".to_owned()),
        runtime: Some("podman".to_owned()),
        port: Some(70_000),
        protocol: Some("udp".to_owned()),
        cpu_count: Some(3),
        memory_mb: Some(-1),
        ttl_seconds: Some(0),
        extra_config: Some("{".to_owned()),
        ..web()
    };
    let expected = [
        "id",
        "name",
        "runtime",
        "ttl_seconds",
        "extra_config",
        "protocol",
        "cpu_count",
        "memory_mb",
        "port",
    ];
    assert_eq!(fields(draft), expected);
}

#[test]
fn each_fault_says_what_would_be_right() {
    let cases = [
        (Draft { cpu_count: Some(3), ..web() }, ("cpu_count", "must be one of 1, 2, 4")),
        (
            Draft { image: Some("No Image".to_owned()), ..web() },
            ("image", "must be an image reference such as registry.example/web:1"),
        ),
        (
            Draft { target_port: Some(TargetPorts::Any(1)), ..web() },
            ("target_port", "belongs to pod_spec; an image has a port"),
        ),
        (
            Draft { extra_config: Some(r#"{"env":{"A=B":""}}"#.to_owned()), ..web() },
            (
                "extra_config",
                "unknown or unsupported field spec.containers[0].env[0].name: must be printable ASCII without =",
            ),
        ),
        (
            Draft { extra_config: Some(r#"{"ports":[{"port":80}]}"#.to_owned()), ..web() },
            ("extra_config", "ports names a port twice"),
        ),
        (
            Draft {
                protocol: Some("http".to_owned()),
                extra_config: Some(r#"{"protocol":"tcp"}"#.to_owned()),
                ..web()
            },
            ("extra_config", "protocol is http outside of it"),
        ),
        (
            Draft {
                image: None,
                port: None,
                pod_spec: Some("kind: Job".to_owned()),
                target_port: Some(TargetPorts::Any(7)),
                ..web()
            },
            ("pod_spec", "kind must be Pod"),
        ),
    ];
    for (draft, (field, message)) in cases {
        assert_eq!(faults(draft), [(field, message.to_owned())]);
    }
    let both = Draft { pod_spec: Some("kind: Pod".to_owned()), ..web() };
    let fields: Vec<_> = faults(both).into_iter().map(|(field, _)| field).collect();
    assert_eq!(fields, ["image", "port", "target_port"]);
}

#[test]
fn a_flag_is_checked_against_its_containers_and_the_servers_secret() {
    let with = |extra: &str| Draft { extra_config: Some(extra.to_owned()), ..web() };
    assert!(check(with(r#"{"flag":{"value":"ctf{x}"}}"#)).is_ok());
    for (extra, part) in [
        (r#"{"flag":{"value":"x","containers":["web"]}}"#, "there is no container \"web\""),
        (r#"{"flag":{"value":"x"},"env":{"FLAG":"y"}}"#, "env says already what FLAG is"),
        (r#"{"flag":{}}"#, "flag_secret, which is not set"),
    ] {
        let faults = faults(with(extra));
        assert_eq!(faults.len(), 1);
        assert!(faults[0].0 == "extra_config" && faults[0].1.contains(part), "{faults:?}");
    }
    let policy = ChallengePolicy {
        flag_secret: Some("a-secret-of-the-server-0123456789".into()),
        ..ChallengePolicy::default()
    };
    let number = ChallengeNumber::new(12).unwrap();
    let draft = with(r#"{"flag":{}}"#);
    let made = draft.check(number, &policy, &PodDefaults::default(), Timestamp::UNIX_EPOCH);
    assert!(made.unwrap().definition.flag().unwrap().unwrap().is_derived());
}

#[test]
fn what_stays_is_not_held_against_a_later_policy() {
    let secret = ChallengePolicy {
        flag_secret: Some("a-secret-of-the-server-0123456789".into()),
        ..ChallengePolicy::default()
    };
    let (defaults, epoch) = (PodDefaults::default(), Timestamp::UNIX_EPOCH);
    let draft = Draft {
        cpu_count: Some(4),
        memory_mb: Some(2048),
        extra_config: Some(r#"{"flag":{}}"#.to_owned()),
        ..web()
    };
    let before = draft.check(ChallengeNumber::new(12).unwrap(), &secret, &defaults, epoch).unwrap();
    let narrow = ChallengePolicy {
        cpu_counts: vec![1, 2],
        memory_mbs: vec![512],
        ..ChallengePolicy::default()
    };
    let change = |change: fn(&mut Draft)| {
        let mut draft = Draft::of(&before);
        change(&mut draft);
        draft.change(&before, &narrow, &defaults, Timestamp::MAX)
    };
    let off = change(|draft| draft.enabled = Some(false)).unwrap();
    assert!(!off.definition.enabled);
    assert_eq!((off.spec, off.number, off.created_at), (before.spec.clone(), before.number, epoch));
    let wrong = change(|draft| {
        draft.cpu_count = Some(8);
        draft.memory_mb = Some(1024);
        draft.extra_config = Some(r#"{"flag":{},"pids_limit":9}"#.to_owned());
    });
    let fields: Vec<_> = wrong.unwrap_err().into_iter().map(|wrong| wrong.field).collect();
    assert_eq!(fields, ["extra_config", "cpu_count", "memory_mb"]);
}

#[test]
fn any_amount_is_allowed_where_no_set_is() {
    let policy = ChallengePolicy {
        cpu_counts: Vec::new(),
        memory_mbs: Vec::new(),
        ..ChallengePolicy::default()
    };
    let draft = |cpu, memory| Draft { cpu_count: Some(cpu), memory_mb: Some(memory), ..web() };
    let number = ChallengeNumber::new(12).unwrap();
    let check =
        |draft: Draft| draft.check(number, &policy, &PodDefaults::default(), Timestamp::UNIX_EPOCH);
    let resources = check(draft(3, 333)).unwrap().spec.containers[0].resources;
    assert_eq!((resources.cpu_milli, resources.memory_bytes), (3000, 333 << 20));
    let faults = check(draft(0, -1)).unwrap_err();
    let fields: Vec<_> = faults.iter().map(|fault| fault.field).collect();
    assert_eq!(fields, ["cpu_count", "memory_mb"]);
    assert!(faults.iter().all(|fault| fault.message == "must be a whole number above 0"));
}

/// What a Pod did not say was taken from the defaults of the day when it was written.
#[test]
fn a_pod_stays_what_it_was_when_the_defaults_change() {
    let pod = "kind: Pod\nspec:\n  containers:\n  - name: a\n    image: b\n    ports: [{containerPort: 7}]\n";
    let draft = Draft {
        image: None,
        port: None,
        pod_spec: Some(pod.to_owned()),
        target_port: Some(TargetPorts::Any(7)),
        ..web()
    };
    let (policy, now) = (ChallengePolicy::default(), Timestamp::UNIX_EPOCH);
    let number = ChallengeNumber::new(12).unwrap();
    let defaults = PodDefaults { cpu_milli: Some(500), memory_bytes: Some(1 << 30) };
    let before = draft.check(number, &policy, &defaults, now).unwrap();
    let none = PodDefaults::default();
    let off = Draft { enabled: Some(false), ..Draft::of(&before) };
    let after = off.change(&before, &policy, &none, now).unwrap();
    assert_eq!((after.spec, after.definition.enabled), (before.spec.clone(), false));
    let other = Draft { pod_spec: Some(format!("{pod} ")), ..Draft::of(&before) };
    assert!(other.change(&before, &policy, &none, now).is_err());
}
