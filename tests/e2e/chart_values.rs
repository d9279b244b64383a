//! What the chart refuses, before anything of it is in a cluster, and in which words.

use std::process::Command;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/stackd");

/// What `helm template` says to these values: what it has rendered, or why it has not.
fn rendered(values: &[&str]) -> Result<String, String> {
    let mut helm = Command::new("helm");
    helm.args(["template", "stackd", CHART, "--namespace", "default", "--kube-version", "1.33.0"]);
    for value in values {
        helm.args(["--set-json", value]);
    }
    let output = helm.output().unwrap_or_else(|error| {
        panic!("helm: {error}; `ci/test.sh helm` builds it, into ~/.cache")
    });
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[test]
fn what_cannot_work_is_refused_with_its_name() {
    if stackd_testkit::kubernetes::is_left_out() {
        return;
    }
    let database = r#"database.existingSecret="pg""#;
    let refusals: &[(&[&str], &str)] = &[
        (
            &["replicas=2"],
            "several replicas share a PostgreSQL database: set database.existingSecret",
        ),
        (
            &[r#"stacks.namespace="default""#],
            "stacks.namespace must not be the namespace of the release",
        ),
        (&["replicas=10", database], "/replicas'"),
        (&["replicas=1.5"], "/replicas'"),
        (&[r#"runtime="docker""#], "/runtime'"),
        (&[r#"image.repository="""#], "/image/repository'"),
        (&[r#"image.digest="sha256:abc""#], "/image/digest'"),
        (&[r#"image.pullPolicy="Sometimes""#], "/image/pullPolicy'"),
        (&[r#"stacks.namespace="Not_A_Name""#], "/stacks/namespace'"),
        (&[r#"stacks.nodePorts="31001""#], "/stacks/nodePorts'"),
        (&[r#"stacks.podSecurity="privileged""#], "/stacks/podSecurity'"),
        (&[r#"persistence.size="a lot""#], "/persistence/size'"),
        (&["service.port=0"], "/service/port'"),
        (&[r#"service.type="ExternalName""#], "/service/type'"),
        (&[r#"serviceMonitor.interval="often""#], "/serviceMonitor/interval'"),
        // A name that nothing reads would be believed in.
        (&["replicaCount=3"], "'replicaCount' not allowed"),
        (&["persistence.enable=false"], "'enable' not allowed"),
    ];
    let refused = |values: &[&str], word: &str| match rendered(values) {
        Ok(_) => Some(format!("{values:?} is accepted")),
        Err(said) if said.contains(word) => None,
        Err(said) => Some(format!("{values:?}: {said:?} does not name {word:?}")),
    };
    let wrong: Vec<_> =
        refusals.iter().filter_map(|(values, word)| refused(values, word)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // What the same words allow is rendered.
    for values in [&[][..], &["replicas=2", database], &[r#"runtime="simulated""#]] {
        let rendered = rendered(values).expect("it is accepted");
        assert!(rendered.contains("kind: Deployment"), "{values:?}");
    }
}

/// The page of the way to a cluster, its commands taken as it prints them.
#[test]
fn the_pages_commands_name_what_the_chart_has() {
    if stackd_testkit::kubernetes::is_left_out() {
        return;
    }
    const PAGE: &str = include_str!("../../docs/cluster.md");
    // Nothing is installed: what a command would bring is written, and the rest of a block left out.
    const INSTEAD: &str = "
        kubectl() { :; }
        helm() {
            local words=() word
            for word in \"${@:2}\"; do [ \"$word\" = --reuse-values ] || words+=(\"$word\"); done
            command helm template \"${words[@]}\" --kube-version 1.33.0
        }
    ";
    let installs = |block: &&str| {
        block
            .lines()
            .any(|line| line.starts_with("helm install") || line.starts_with("helm upgrade"))
    };
    let blocks: Vec<_> = PAGE.split("```").skip(1).step_by(2).filter(installs).collect();
    let brought = ["stackd-first-key", "max_ttl = \"8h\"", "replicas: 3"];
    assert_eq!(blocks.len(), brought.len(), "{blocks:#?}");
    for (block, brings) in blocks.into_iter().zip(brought) {
        let output = Command::new("bash")
            .args(["-euc", &format!("{INSTEAD}{block}")])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .output()
            .expect("bash");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{block}\n{errors}");
        let rendered = String::from_utf8_lossy(&output.stdout);
        assert!(rendered.contains("kind: Deployment"), "{block}\n{rendered}");
        assert!(rendered.contains(brings), "{block}\nbrings no {brings:?}\n{rendered}");
    }
}
