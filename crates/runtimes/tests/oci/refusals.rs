//! What goes wrong by somebody's doing: the author of a Pod or an image is told what, a start that
//! is not wanted any more is given up, and a full disk is told whatever its size.

use std::time::Duration;

use futures_util::StreamExt;
use stackd_core::StackId;
use stackd_core::port::Protocol;
use stackd_core::runtime::{ErrorKind, Observation, Runtime, RuntimeState};
use stackd_core::spec::VolumeMedium;
use stackd_core::stack::reason;
use stackd_runtimes::oci::OciRuntime;
use stackd_runtimes::oci::images::ImportOptions;

use crate::Body;
use crate::life::{mount, volume};
use crate::support::*;

pub(crate) fn all(add: &mut dyn FnMut(&str, Body)) {
    add("what_a_pod_or_an_image_is_the_reason_of_is_told", |bed| Box::pin(author(bed)));
    add("a_start_that_is_not_wanted_any_more_is_given_up", |bed| Box::pin(given_up(bed)));
    add("a_full_disk_of_any_size_is_told", |bed| Box::pin(full_disk(bed)));
}

/// The stacks that are here now.
async fn inventory(runtime: &OciRuntime) -> Vec<StackId> {
    let stacks = runtime
        .observe()
        .take_while(|change| std::future::ready(matches!(change, Observation::Stack(_))));
    let ids = stacks.filter_map(|change| {
        std::future::ready(match change {
            Observation::Stack(stack) => Some(stack.id),
            _ => None,
        })
    });
    ids.collect().await
}

/// What the author of a Pod or an image has to change is said.
async fn author(bed: Bed) {
    let layer = bed.path().join("busybox");
    std::os::unix::fs::symlink("/nowhere/at/all", layer.join("gone")).expect("a link");
    let images = bed.images().await;
    for (name, path, link) in
        [("file-for-proc", "proc", None), ("etc-leads-nowhere", "etc", Some("/none"))]
    {
        let other = bed.path().join(name);
        std::fs::create_dir_all(other.join("bin")).expect("a directory");
        std::fs::copy("/bin/busybox", other.join("bin/sh")).expect("a shell");
        match link {
            Some(target) => std::os::unix::fs::symlink(target, other.join(path)),
            None => std::fs::write(other.join(path), ""),
        }
        .expect("something in the way");
        let options = ImportOptions { name: name.to_owned(), ..ImportOptions::default() };
        images.import(&other, options).await.expect("an image");
    }
    let runtime = OciRuntime::open(bed.config.clone(), images).await.expect("a runtime");
    let at = |path: &str| {
        let mut main = container("main", &["sleep", "1000"]);
        main.volume_mounts = vec![mount("v", path)];
        main
    };
    let of = |image: &str| {
        let mut main = container("main", &["/bin/sh"]);
        main.image = image.to_owned();
        main
    };
    let mut first = script("first", "ln -s /none/at/all /v/link");
    first.volume_mounts = vec![mount("v", "/v")];
    let mut by_link = at("/v");
    by_link.volume_mounts[0].sub_path = Some("link".to_owned());
    let mut tiny = container("main", &["sleep", "1000"]);
    tiny.resources.memory_bytes = 4096;
    let long = format!("/{}", "x".repeat(300));
    for (main, text) in [
        (at("/bin/busybox"), "cannot mount volume \"v\" on /bin/busybox: not a directory"),
        (
            at("/gone/x"),
            "cannot mount volume \"v\" on /gone/x: a symbolic link in the path leads nowhere",
        ),
        (at(&long), &format!("cannot mount volume \"v\" on {long}: file name too long")),
        (of("file-for-proc"), "cannot mount /proc: not a directory"),
        (
            of("etc-leads-nowhere"),
            "cannot mount /etc/hosts: a symbolic link in the path leads nowhere",
        ),
        (
            by_link,
            "cannot mount volume \"v\" on /v from its subPath \"link\": \
             a symbolic link in the path leads nowhere",
        ),
        (tiny, "a memory limit of 4096 bytes is less than starting a process takes"),
    ] {
        let linked = text.contains("subPath");
        let mut spec = spec(vec![main], &[(80, Protocol::Tcp)]);
        spec.volumes = vec![volume("v", VolumeMedium::Memory, None)];
        if linked {
            spec.init_containers = vec![first.clone()];
        }
        let request = request(spec);
        runtime.claim_ports(request.id, &request.ports).expect("ports");
        let condition = match runtime.ensure(request.clone()).await {
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::Rejected, "{error:?}");
                error.condition
            }
            // It comes after the init container.
            Ok(()) => match until_ended(&runtime, request.id).await {
                RuntimeState::Ended { condition, .. } => condition,
                other => panic!("{other:?}"),
            },
        };
        assert_eq!((condition.reason.as_str(), &*condition.message), (reason::START_ERROR, text));
        runtime.remove(request.id, Duration::ZERO).await.expect("a removal");
    }
}

async fn given_up(bed: Bed) {
    let runtime = bed.open().await;
    let many = (0..32).map(|n| container(&format!("c{n}"), &["sleep", "1000"])).collect();
    let request = request(spec(many, &[(80, Protocol::Tcp)]));
    let (id, port) = (request.id, request.ports[0].node_port);
    runtime.claim_ports(id, &request.ports).expect("ports");
    let reached = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
    let start = {
        let (runtime, request) = (runtime.clone(), request.clone());
        tokio::spawn(async move { runtime.ensure(request).await })
    };
    while !inventory(&runtime).await.contains(&id) {
        tokio::task::yield_now().await;
    }
    assert!(reached());
    runtime.close_ports(id);
    assert!(!reached(), "connections are accepted still");
    runtime.remove(id, Duration::ZERO).await.expect("a removal");
    let error = start.await.expect("no panic").expect_err("the start was given up");
    assert!(matches!(error.kind, ErrorKind::Rejected | ErrorKind::Retry), "{error:?}");
    // One that runs is closed as soon.
    let request = crate::support::request(spec(vec![web()], &[(8080, Protocol::Tcp)]));
    run(&runtime, &request).await;
    let port = request.ports[0].node_port;
    assert!(get(port, "/").is_ok());
    runtime.close_ports(request.id);
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    runtime.remove(request.id, Duration::ZERO).await.expect("a removal");
}

async fn full_disk(bed: Bed) {
    let runtime = bed.open().await;
    for mebibytes in [8, 16, 32, 48, 256] {
        let mut request = request(spec(vec![web()], &[(8080, Protocol::Tcp)]));
        request.disk_bytes = mebibytes << 20;
        run(&runtime, &request).await;
        let id = request.id;
        let fill = "dd if=/dev/zero of=/full bs=1M";
        let (text, _) = exec(&runtime, id, &["sh", "-c", fill]).await;
        assert!(text.contains("No space left"), "{mebibytes} MiB: {text}");
        until(&runtime, id, "its reason", |state| match state {
            RuntimeState::Running { condition: Some(condition), .. } => {
                condition.reason == reason::DISK_FULL
            }
            _ => false,
        })
        .await;
        runtime.remove(id, Duration::ZERO).await.expect("a removal");
    }
}
