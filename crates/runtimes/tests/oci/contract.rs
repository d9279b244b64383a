//! What every runtime promises, kept with real containers of the sample image.

use std::sync::Arc;

use libtest_mimic::Trial;
use stackd_testkit::runtime_contract::{Real, Subject};
use stackd_testkit::sample;

use crate::support::Bed;

pub(crate) fn all(trials: &mut Vec<Trial>) {
    for (name, promise) in stackd_testkit::runtime_contract!(@table) {
        let body = move || {
            crate::run(|bed| async move {
                let subject = subject(&bed).await;
                promise(&subject).await;
            })
        };
        trials.push(Trial::test(format!("contract::{name}"), body));
    }
}

async fn subject(bed: &Bed) -> Subject {
    let archive = bed.path().join("sample.tar");
    std::fs::write(&archive, sample::docker_archive(&["sample:1"])).expect("an archive");
    let images = bed.images().await;
    images.load(&archive, None).await.expect("the sample image");
    let runtime = stackd_runtimes::oci::OciRuntime::open(bed.config.clone(), images).await;
    Subject {
        runtime: Arc::new(runtime.expect("a runtime")),
        image: "sample:1".to_owned(),
        real: Some(Real { sample: sample::PROGRAM.to_owned(), address: bed.config.node_port_bind }),
        keep: Box::new(()),
    }
}
