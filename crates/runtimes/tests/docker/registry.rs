//! Images that the engine pulls from a real registry, by the rules and with the words of the embedded
//! runtime.

use std::time::Duration;

use stackd_core::runtime::ErrorKind;
use stackd_core::spec::ImagePullPolicy;
use stackd_core::stack::reason;
use stackd_core::{Runtime, RuntimeError};
use stackd_runtimes::docker::DockerRuntime;
use stackd_testkit::registry::{PASSWORD, Registry};
use stackd_testkit::{build, within};

use crate::Body;
use crate::bed::{self, Bed};

pub(crate) fn all(add: &mut dyn FnMut(&str, Body)) {
    add("registry::credentials_are_those_of_the_file", |bed| Box::pin(credentials(bed)));
    add("registry::a_policy_says_when_it_is_asked", |bed| Box::pin(policies(bed)));
}

async fn refused(runtime: &DockerRuntime, image: &str, policy: Option<ImagePullPolicy>) -> Refusal {
    let prepared = within("a pull ends", runtime.prepare(image, policy)).await;
    let RuntimeError { kind, condition, operator, .. } = prepared.expect_err("it is refused");
    assert!(condition.message.contains(image), "{condition:?} of {image}");
    Refusal { kind, reason: condition.reason, message: condition.message, operator }
}

struct Refusal {
    kind: ErrorKind,
    reason: String,
    message: String,
    operator: String,
}

async fn prepare(runtime: &DockerRuntime, image: &str, policy: Option<ImagePullPolicy>) {
    within("a pull ends", runtime.prepare(image, policy)).await.expect("the image");
}

async fn credentials(mut bed: Bed) {
    let registry = Registry::start(true, false);
    registry.push_sample("team/app:1").await;
    let image = registry.name("team/app:1");
    let login = bed.path().join("docker.json");
    let log_in = |password: &str| {
        std::fs::write(&login, registry.docker_config(password)).expect("a file");
    };
    bed.config.machine.docker_config = Some(login.clone());
    let runtime = bed.open().await;
    log_in("not-the-password");
    let denied = refused(&runtime, &image, None).await;
    assert_eq!((denied.kind, denied.reason.as_str()), (ErrorKind::Rejected, reason::IMAGE_PULL));
    assert!(denied.message.contains("denies access"), "{}", denied.message);
    assert!(!denied.operator.contains("not-the-password"), "{}", denied.operator);
    // The file is read again for each pull.
    log_in(PASSWORD);
    prepare(&runtime, &image, None).await;
    let request = bed::request(build::spec(&image).build());
    bed::run(&runtime, &request).await;
    let page = bed::get(request.ports[0].node_port, "/healthz").await.expect("an answer");
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    runtime.remove(request.id, Duration::ZERO).await.expect("removed");
    runtime.images().remove(&image, true).await.expect("removed");
}

async fn id_of(bed: &Bed, image: &str) -> String {
    let there = bed.docker().await.inspect_image(image).await.expect("it is here");
    there.id.expect("an id")
}

async fn policies(bed: Bed) {
    use ImagePullPolicy::{Always, IfNotPresent, Never};
    let registry = Registry::start(false, false);
    registry.push_sample("app:1").await;
    let (image, missing) = (registry.name("app:1"), registry.name("app:2"));
    let runtime = bed.open().await;

    let never = refused(&runtime, &image, Some(Never)).await;
    let (kind, why) = (never.kind, never.reason.as_str());
    assert_eq!((kind, why), (ErrorKind::Rejected, reason::IMAGE_NEVER_PULL));
    for policy in [None, Some(Always), Some(IfNotPresent)] {
        let absent = refused(&runtime, &missing, policy).await;
        let (kind, why) = (absent.kind, absent.reason.as_str());
        assert_eq!((kind, why), (ErrorKind::Rejected, reason::IMAGE_PULL), "{policy:?}");
        assert!(absent.message.contains("does not exist"), "{}", absent.message);
    }

    prepare(&runtime, &image, Some(IfNotPresent)).await;
    let first = id_of(&bed, &image).await;
    registry.push_large_sample("app:1", 4096).await;
    for policy in [None, Some(IfNotPresent), Some(Never)] {
        prepare(&runtime, &image, policy).await;
        assert_eq!(id_of(&bed, &image).await, first, "{policy:?} asks nobody");
    }
    prepare(&runtime, &image, Some(Always)).await;
    assert_ne!(id_of(&bed, &image).await, first, "there is a newer one");

    drop(registry);
    for policy in [None, Some(IfNotPresent), Some(Never)] {
        prepare(&runtime, &image, policy).await;
    }
    for (image, policy) in [(&image, Some(Always)), (&missing, None)] {
        let away = refused(&runtime, image, policy).await;
        let (kind, why) = (away.kind, away.reason.as_str());
        assert_eq!((kind, why), (ErrorKind::Retry, reason::IMAGE_PULL));
    }
    runtime.images().remove(&image, true).await.expect("removed");
}
