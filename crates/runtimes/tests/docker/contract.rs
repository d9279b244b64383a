//! What every runtime promises, kept by a real engine with containers of the sample image.

use std::sync::Arc;

use libtest_mimic::Trial;
use stackd_testkit::runtime_contract::{Real, Subject};
use stackd_testkit::sample;

use crate::bed::Bed;

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
    Subject {
        runtime: Arc::new(bed.open().await),
        image: "sample:1".to_owned(),
        real: Some(Real {
            sample: sample::PROGRAM.to_owned(),
            address: bed.config.machine.node_port_bind,
        }),
        keep: Box::new(()),
    }
}
