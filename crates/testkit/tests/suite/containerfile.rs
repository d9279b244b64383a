//! `deploy/Containerfile`, built by a real engine and run once by what it says itself.

use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{
    CreateContainerOptions, LogsOptionsBuilder, StartContainerOptions, WaitContainerOptions,
};
use futures_util::StreamExt;
use stackd_testkit::docker::{Engine, build_server};
use stackd_testkit::{sample, within};

const IMAGE: &str = "test.invalid/stackd:built";

#[tokio::test]
async fn the_image_of_a_server_runs_its_program_as_nobody() {
    let engine = Engine::with(&[]);
    let docker = engine.docker().await;
    let program = std::fs::read(sample::build_program("stackd", "stackd")).expect("the program");
    build_server(&docker, &program, IMAGE).await;
    let config = docker.inspect_image(IMAGE).await.expect("an image").config.expect("its settings");
    assert_eq!(config.user.as_deref(), Some("65532:65532"));
    assert_eq!(config.entrypoint, Some(vec!["/stackd".to_owned()]));
    assert_eq!(config.cmd, Some(vec!["serve".to_owned()]));
    assert_eq!(config.exposed_ports, Some(vec!["8080/tcp".to_owned()]));

    // There is nothing in it but the program: that it runs at all is that it needs nothing else.
    let body = ContainerCreateBody {
        image: Some(IMAGE.to_owned()),
        cmd: Some(vec!["doctor".to_owned(), "--runtime".to_owned(), "simulated".to_owned()]),
        host_config: Some(HostConfig {
            network_mode: Some("none".to_owned()),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    };
    let made = docker.create_container(None::<CreateContainerOptions>, body).await.expect("made");
    let started = docker.start_container(&made.id, None::<StartContainerOptions>).await;
    started.expect("it starts");
    let mut end = docker.wait_container(&made.id, None::<WaitContainerOptions>);
    // Nobody may write to the data directory of an image, so that the doctor is not content.
    within("it ends", end.next()).await.expect("an end").expect_err("12");
    let options = LogsOptionsBuilder::default().stdout(true).stderr(true).build();
    let mut parts = docker.logs(&made.id, Some(options));
    let mut said = String::new();
    while let Some(part) = parts.next().await {
        said.push_str(&part.expect("what it wrote").to_string());
    }
    let user = said.lines().find(|line| line.contains("user")).unwrap_or_default();
    assert!(user.starts_with("ok") && user.contains("not root"), "{said}");
}
